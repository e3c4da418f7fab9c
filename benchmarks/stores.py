"""The stores: what a flush, a received message, a channel and a recovery cost, beside their peers.

    ./dev bench benchmarks/stores.py [--quick] [--only TEXT] [--rounds N] [--seconds N] [--json FILE]
    ./dev bench benchmarks/stores.py --from FILE --history FILE --plot docs/images/stores.svg

`--history` is what `history.py --json` has kept: it is drawn too.

Each measurement is a fresh process. In each round all are done in turn, so that a disturbance hits all alike, and what
is printed are the medians of the rounds. The server has one core, and the publisher of messages with it, the process
that is measured all others.

CPU is that of the measured process alone, and all targets of speed are judged by it: rates hang on what else the
machine does, and on how fast the publisher is. "per second of CPU" is what a core reaches that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import redis_client_report
from machine import cpus, started_on
from redis_client_report import mark, table, times
from stores_plot import plot
from stores_work import BURST, CHANNELS, MESSAGES, SUBSCRIBERS

import waterspout_channels
import waterspout_core
from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, ServerBinary, find_servers

DEADLINE: Final = 300.0  # seconds for one measurement
MB: Final = 1e6
CHANNELS_BOUND: Final = 250 * MB

Figures = Mapping[str, Mapping[str, float]]
"""The medians, of each work."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what has to be measured for it, what is said then, and whether that is good enough."""

    title: str
    works: tuple[str, ...]
    told: Callable[[Figures], str]
    aim: str = ""
    kept: Callable[[Figures], bool] | None = None


def per_cpu(work: Mapping[str, float]) -> float:
    """How often in one second of CPU."""
    return 1e6 / work["cpu"]


def received(work: str) -> Callable[[Figures], str]:
    return lambda f: (
        f"{per_cpu(f[work]):,.0f} per second of CPU ({f[work]['cpu']:.2f} µs; {f[work]['rate']:,.0f} per second)"
    )


def life(work: str) -> Callable[[Figures], str]:
    return lambda f: ", ".join(
        f"{what} {CHANNELS / f[work][f'{what} rate']:.1f} s ({f[work][f'{what} cpu']:.0f} µs of CPU each)"
        for what in ("open", "publish", "close")
    )


def idle(work: str) -> Callable[[Figures], str]:
    return lambda f: (
        f"{f[work]['tasks']:.0f} tasks, {f[work]['timers']:.0f} timers, "
        f"{f[work]['idle cpu'] / f[work]['idle seconds'] / 1e4:.1f} % of a core"
    )


def memory(work: str) -> Callable[[Figures], str]:
    return lambda f: f"{f[work]['memory'] / MB:.0f} MB"


MANY: Final = {
    "many_in_memory": "in memory",
    "many_plain": "through Redis, without history",
    "many_history": "through Redis, with history",
}

ROWS: Final = (
    Row(
        f"a message to {SUBSCRIBERS:,} subscribers in process",
        ("flush_one", "flush_bare"),
        lambda f: (
            f"{f['flush_one']['cpu'] / SUBSCRIBERS:.3f} µs of CPU each"
            f" (a bare loop of calls: {f['flush_bare']['cpu'] / SUBSCRIBERS:.3f})"
        ),
        "≤ 0.3 µs",
        lambda f: f["flush_one"]["cpu"] <= 0.3 * SUBSCRIBERS,
    ),
    Row(
        f"a burst of {BURST} messages, against one",
        ("flush_one", "flush_burst"),
        lambda f: times(f["flush_burst"]["cpu"] / f["flush_one"]["cpu"]) + f" ({f['flush_burst']['cpu']:.0f} µs)",
        "< 5 \N{MULTIPLICATION SIGN}",
        lambda f: f["flush_burst"]["cpu"] < 5 * f["flush_one"]["cpu"],
    ),
    Row(
        "Redis → store → async iterator, messages of 100 B",
        ("receive_plain",),
        received("receive_plain"),
        "≥ 300,000/s",
        lambda f: per_cpu(f["receive_plain"]) >= 300_000,
    ),
    Row(
        "the same, against redis-py's `listen()`",
        ("receive_plain", "receive_redis_py"),
        lambda f: (
            f"{times(f['receive_redis_py']['cpu'] / f['receive_plain']['cpu'])}"
            f" (redis-py: {f['receive_redis_py']['cpu']:.2f} µs; {f['receive_redis_py']['rate']:,.0f} per second)"
        ),
        "≥ 3 \N{MULTIPLICATION SIGN}",
        lambda f: f["receive_redis_py"]["cpu"] >= 3 * f["receive_plain"]["cpu"],
    ),
    Row("the same, with history", ("receive_history",), received("receive_history")),
    *(
        Row(
            f"{CHANNELS:,} channels {where}, a message and a cursor each",
            (work,),
            memory(work),
            f"≤ {CHANNELS_BOUND / MB:.0f} MB",
            lambda f, work=work: f[work]["memory"] <= CHANNELS_BOUND,  # type: ignore[misc]
        )
        for work, where in MANY.items()
    ),
    Row(
        f"{MESSAGES:,} messages of 100 B in one log",
        ("log", "log_bare"),
        lambda f: (
            f"{f['log']['memory'] / MB:.0f} MB, {f['log']['cpu']:.2f} µs of CPU each"
            f" (a list of the texts alone: {f['log_bare']['memory'] / MB:.0f} MB, {f['log_bare']['cpu']:.2f} µs)"
        ),
        "≤ 350 MB",
        lambda f: f["log"]["memory"] <= 350 * MB,
    ),
    Row(
        f"{SUBSCRIBERS:,} subscribers come back at once for 1,000 messages each",
        ("recover",),
        lambda f: f"{f['recover']['reads']:.0f} reads of Redis, {f['recover']['cpu']:.3f} µs of CPU per message",
        "a handful of reads",
        lambda f: f["recover"]["reads"] <= 10,
    ),
    *(
        Row(
            f"{CHANNELS:,} idle channels {where}",
            (work,),
            idle(work),
            "a constant few tasks and timers",
            lambda f, work=work: f[work]["tasks"] + f[work]["timers"] <= 10,  # type: ignore[misc]
        )
        for work, where in MANY.items()
    ),
    *(Row(f"{CHANNELS:,} channels {where}", (work,), life(work)) for work, where in MANY.items()),
)


def measure(work: str, url: str, seconds: float, publisher_cpus: list[int]) -> dict[str, Any]:
    """See `stores_work`."""
    script = Path(__file__).with_name("stores_work.py")
    command = [sys.executable, str(script), work, url, str(seconds), *map(str, publisher_cpus)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        return {"work": work, "error": "it took too long"}
    if done.returncode:
        return {"work": work, "error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout)
    return {"work": work, **figures}


def environment(server: ServerBinary, clients: list[str]) -> dict[str, Any]:
    """Where it is measured, with what."""
    facts = redis_client_report.environment(server, clients)
    for package in (waterspout_channels, waterspout_core):
        facts["versions"][package.__name__.replace("_", "-")] = package.__version__
    return facts


def measured(rows: list[Row], rounds: int, seconds: float) -> dict[str, Any]:
    """All samples, and where they were taken: what `--json` keeps."""
    servers = find_servers()
    if not servers:
        raise click.ClickException(HOW_TO_GET_ONE)
    works = list(dict.fromkeys(work for row in rows for work in row.works))
    facts = environment(servers[0], ["waterspout", "redis-py"]) | {"rounds": rounds, "seconds": seconds}
    samples, failed = [], set[str]()
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
            if work in failed:
                continue
            server.call("FLUSHALL")
            sample = measure(work, server.url, seconds, server_cpus)
            if "error" in sample:
                failed.add(work)
                click.echo(f"\n{work}: {sample['error']}", err=True)
            samples.append(sample)
    return {"facts": facts, "samples": samples}


def medians(samples: list[dict[str, Any]]) -> tuple[Figures, dict[str, str]]:
    """Of each work, and why there are none."""
    figures: dict[str, dict[str, float]] = {}
    errors: dict[str, str] = {sample["work"]: sample["error"] for sample in samples if "error" in sample}
    for work in {sample["work"] for sample in samples} - errors.keys():
        own = [sample for sample in samples if sample["work"] == work]
        names = own[0].keys() - {"work"}
        figures[work] = {name: statistics.median(sample[name] for sample in own) for name in names}
    return figures, errors


def verdict(row: Row, figures: Figures) -> str:
    return "" if row.kept is None else mark(row.kept(figures), False)


def markdown(rows: list[Row], results: dict[str, Any]) -> str:
    facts = results["facts"]
    figures, errors = medians(results["samples"])
    lines = [["", "aimed at", "measured"]]
    for row in rows:
        if not errors.keys() | figures.keys() >= {*row.works}:
            continue  # it was not asked for
        error = next((errors[work] for work in row.works if work in errors), None)
        lines.append([row.title, row.aim, error or row.told(figures) + verdict(row, figures)])
    return f"{table(lines)}\n\n{about(facts)}"


def about(facts: dict[str, Any]) -> str:
    """How often it was measured, where, and with what."""
    rounds = "One round" if facts["rounds"] == 1 else f"Medians of {facts['rounds']} rounds"
    what = [facts["processor"], facts["system"], facts["python"], facts["server"]]
    what += [f"{name} {number}" for name, number in sorted(facts["versions"].items())]
    return f"{rounds}. {'; '.join(what)}."


@click.command(help=__doc__.splitlines()[0])
@click.option("--quick", is_flag=True, help="Only the rows that have a target, once.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only rows with this in their title; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="How often each is measured (3).")
@click.option("--seconds", type=click.FloatRange(0.01), default=0.5, help="How long about, where that is free (0.5).")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured.")
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True), help="Measure nothing, read this.")
@click.option("--history", type=click.Path(path_type=Path, exists=True), help="What history.py has kept, to draw it.")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw this, an SVG.")
def main(
    quick: bool,
    only: tuple[str, ...],
    rounds: int,
    seconds: float,
    json_file: Path | None,
    source: Path | None,
    history: Path | None,
    picture: Path | None,
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
    if picture:
        plot(
            medians(results["samples"])[0],
            json.loads(history.read_text())["rows"] if history else [],
            CHANNELS_BOUND,
            picture,
        )
        click.echo(f"written: {picture}", err=True)


if __name__ == "__main__":
    main()
