"""The channels: events to callbacks, among few and many channels and patterns, and registering many while connected.

    ./dev bench benchmarks/channels.py [--quick] [--only TEXT] [--rounds N] [--seconds N] [--json FILE]
    ./dev bench benchmarks/channels.py --from FILE

Each measurement is a fresh process. In each round all are done in turn, so that a disturbance hits all alike, and what
is printed are the medians of the rounds. The server has one core, and the publisher with it, the process that is
measured all others.

CPU is that of the measured process alone, and the rate that is aimed at is what a core reaches that does nothing else:
1 s divided by the CPU of an event.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from channels_work import DATA, MANY, MOST
from machine import cpus, started_on
from redis_client_report import times
from stores import DEADLINE, Figures, Row, environment, markdown, per_cpu

from waterspout_core import to_json
from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, find_servers

SAME: Final = 1.1
"""Times as much is the same, on a machine that others use too."""


def events(work: str) -> Callable[[Figures], str]:
    return lambda f: (
        f"{per_cpu(f[work]):,.0f} per second of CPU ({f[work]['cpu']:.2f} µs; {f[work]['rate']:,.0f} per second)"
    )


def against(work: str, other: str) -> Callable[[Figures], str]:
    return lambda f: f"{f[work]['cpu']:.2f} µs of CPU, {times(f[work]['cpu'] / f[other]['cpu'])}"


def per_pattern(work: str, count: int) -> Callable[[Figures], str]:
    return lambda f: (
        f"{f[work]['cpu']:.2f} µs of CPU, {(f[work]['cpu'] - f['plain']['cpu']) / (count - 1):.2f} for each more"
    )


def registering(work: str) -> Callable[[Figures], str]:
    return lambda f: ", ".join(
        f"{what} {MANY / f[work][f'{what} rate']:.2f} s ({f[work][f'{what} cpu']:.0f} µs of CPU each)"
        for what in ("register", "unregister")
    )


def within_a_second(work: str) -> Callable[[Figures], bool]:
    return lambda f: all(f[work][f"{what} rate"] >= MANY for what in ("register", "unregister"))


SIZE: Final = len(to_json(DATA).encode())

ROWS: Final = (
    Row(
        f"Redis → one callback, JSON of {SIZE} B",
        ("plain",),
        events("plain"),
        "≥ 150,000/s",
        lambda f: per_cpu(f["plain"]) >= 150_000,
    ),
    Row("the same, with history", ("history",), events("history")),
    Row("the same, to a coroutine function", ("coroutine",), events("coroutine")),
    Row("one channel of 1,000, against the only one", ("of_1000", "plain"), against("of_1000", "plain")),
    Row(
        f"one channel of {MOST:,}, against the only one",
        ("of_most", "plain"),
        against("of_most", "plain"),
        f"≤ {SAME} \N{MULTIPLICATION SIGN}",
        lambda f: f["of_most"]["cpu"] <= SAME * f["plain"]["cpu"],
    ),
    Row("10 patterns that match", ("patterns_10", "plain"), per_pattern("patterns_10", 10)),
    Row("100 patterns that match", ("patterns_100", "plain"), per_pattern("patterns_100", 100)),
    Row(
        f"{MANY:,} channels while connected",
        ("registering_plain",),
        registering("registering_plain"),
        "≤ 1 s each",
        within_a_second("registering_plain"),
    ),
    Row(
        "the same, with history",
        ("registering_history",),
        registering("registering_history"),
        "≤ 1 s each",
        within_a_second("registering_history"),
    ),
)


def measure(work: str, url: str, seconds: float, publisher_cpus: list[int]) -> dict[str, Any]:
    """See `channels_work`."""
    script = Path(__file__).with_name("channels_work.py")
    command = [sys.executable, str(script), work, url, str(seconds), *map(str, publisher_cpus)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        return {"work": work, "error": "it took too long"}
    if done.returncode:
        return {"work": work, "error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    return {"work": work, **json.loads(done.stdout)}


def measured(rows: list[Row], rounds: int, seconds: float) -> dict[str, Any]:
    """All samples, and where they were taken: what `--json` keeps."""
    servers = find_servers()
    if not servers:
        raise click.ClickException(HOW_TO_GET_ONE)
    works = list(dict.fromkeys(work for row in rows for work in row.works))
    facts = environment(servers[0], ["waterspout"]) | {"rounds": rounds, "seconds": seconds}
    samples = []
    server_cpus, client_cpus = cpus("apart")
    # Who is slow to take its messages is to be measured, not cut off.
    server = RunningServer(servers[0], "--client-output-buffer-limit", "pubsub 0 0 0")
    with started_on(server_cpus):
        server.start()
    with (
        server,
        started_on(client_cpus),
        click.progressbar(works * rounds, file=sys.stderr, item_show_func=lambda work: work) as bar,
    ):
        for work in bar:
            server.call("FLUSHALL")
            samples.append(measure(work, server.url, seconds, server_cpus))
    return {"facts": facts, "samples": samples}


@click.command(help=__doc__.splitlines()[0])
@click.option("--quick", is_flag=True, help="Only the rows that have a target, once.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only rows with this in their title; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="How often each is measured (5).")
@click.option("--seconds", type=click.FloatRange(0.01), default=1.0, help="How long about, where that is free (1).")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured.")
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True), help="Measure nothing, read this.")
def main(
    quick: bool, only: tuple[str, ...], rounds: int, seconds: float, json_file: Path | None, source: Path | None
) -> None:
    rows = [row for row in ROWS if row.kept or not quick]
    if only:
        rows = [row for row in rows if any(text.lower() in row.title.lower() for text in only)]
    if not rows:
        raise click.UsageError("no row has that in its title; there are:\n  " + "\n  ".join(row.title for row in ROWS))
    results = json.loads(source.read_text()) if source else measured(rows, 1 if quick else rounds, seconds)
    if json_file:
        json_file.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(markdown(rows, results))


if __name__ == "__main__":
    main()
