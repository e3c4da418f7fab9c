"""One message to many subscribers: what it costs Waterspout, its peers, and a bare loop of `send`.

    ./dev bench benchmarks/fanout.py [--quick] [--rounds 3] [--subscribers 1000 --subscribers 10000] [--only NAME]
        [--json FILE] [--from FILE] [--write]

Each server is a process of its own on one core, the subscribers are in this process on another. In each round each
server is started anew for each number of subscribers, publishes one message at a time, each when the one before has
arrived everywhere, and then bursts of messages; what its idle subscribers weigh is measured before. Then an idle
server, one whose subscribers stop to read, and one behind Redis (`fanout_redis.py`). What is printed are the medians of
the rounds. The main figure is the CPU time of the server's process (user and system) per delivery: the load generator
is not in it, and a busy machine changes it less than it changes anything that is taken from a clock.
Each subscriber has to get every message once and in order, or the run fails.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import fanout_redis
from fanout_peers import PEERS
from fanout_plot import plot
from fanout_process import MissingError, raise_file_limit, take_cpus
from fanout_report import Results, Sample, environment, write
from fanout_tables import markdown
from fanout_work import HEARTBEAT, deliveries, idle, stopped

from waterspout_redis.testing import find_servers

HEARTBEATS = ("eventsource", "websocket")  # whose idle CPU is measured
WORKS = ("deliveries", "stopped", "idle", "redis")


@dataclass(frozen=True)
class Setting:
    """What was asked for."""

    subscribers: tuple[int, ...]
    deliveries: int
    rounds: int
    idle_subscribers: int
    heartbeat: float
    lazy_subscribers: int
    redis_seconds: float


FULL = Setting((1_000, 10_000, 19_000), 200_000, 3, 10_000, HEARTBEAT, 1_000, fanout_redis.SECONDS)
QUICK = Setting((200, 1_000), 20_000, 2, 1_000, HEARTBEAT / 5, 200, fanout_redis.QUICK_SECONDS)


@dataclass(frozen=True)
class Work:
    """One thing to be measured in each round."""

    title: str
    where: dict[str, object]
    measure: Callable[[], Iterable[dict[str, object]]]
    once: bool = False  # and not in each round


def works(setting: Setting, peers: list[str], kinds: tuple[str, ...], cpu: int | None) -> list[Work]:
    """What a round is made of, in its order."""
    found = []

    def add(kind: str, peer: str, number: int, measure: Callable[[], dict[str, object]]) -> None:
        where = {"kind": kind, "peer": peer, "subscribers": number}
        # An idle server is watched for so long that once is enough.
        found.append(Work(f"{kind}, {peer}, {number:,} subscribers", where, lambda: [measure()], once=kind == "idle"))

    for number in setting.subscribers if "deliveries" in kinds else ():
        for peer in (name for name in peers if number <= PEERS[name].most):
            add("deliveries", peer, number, partial(deliveries, peer, number, setting.deliveries, cpu))
    if "stopped" in kinds and "eventsource" in peers:
        number = setting.lazy_subscribers
        add("stopped", "eventsource", number, partial(stopped, "eventsource", number, setting.deliveries, cpu))
    if "idle" in kinds:
        for peer in HEARTBEATS:
            if peer in peers:
                number = setting.idle_subscribers
                add("idle", peer, number, partial(idle, peer, number, setting.heartbeat, cpu))
    if "redis" in kinds:
        through_redis = partial(fanout_redis.measured, setting.redis_seconds, cpu)
        found.append(Work(f"redis, {fanout_redis.SUBSCRIBERS:,} subscribers", {"kind": "redis"}, through_redis))
    return found


def measured(rounds: int, todo: list[Work]) -> tuple[list[Sample], dict[str, str]]:
    """All samples, and why there are none of what has failed once."""
    samples: list[Sample] = []
    failed: dict[str, str] = {}
    plan = [(turn, work) for turn in range(1, rounds + 1) for work in todo if turn == 1 or not work.once]
    gc.collect()
    gc.freeze()
    gc.disable()  # latencies shall be the servers', not ours
    began = time.monotonic()
    for done, (turn, work) in enumerate(plan):
        left = f", {(time.monotonic() - began) / done * (len(plan) - done) / 60:.0f} min left" if done else ""
        click.echo(f"[{done + 1}/{len(plan)}{left}] round {turn}/{rounds}: {work.title}", nl=False, err=True)
        if work.title in failed:
            click.echo("  left out", err=True)
            continue
        try:
            taken = [{**work.where, "round": turn, **figures} for figures in work.measure()]
        except Exception as error:  # what an hour has measured shall not be lost
            failed[work.title] = str(error) or repr(error)
            samples = [sample for sample in samples if not work.where.items() <= sample.items()]
            click.echo(f"  FAILED: {failed[work.title]}", err=True)
        else:
            samples += taken
            click.echo("  " + "; ".join(map(summary, taken)), err=True)
        gc.collect()
    return samples, failed


def summary(sample: Sample) -> str:
    """A word or two on what was measured."""
    shown = {name: sample[name] for name in ("cpu", "burst_cpu", "p95", "p99", "p99_without") if name in sample}
    return ", ".join(f"{name} {figure:.3g}" for name, figure in shown.items())


def installed(names: tuple[str, ...]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """What those of the peers that can run are made of, and why the others cannot."""
    found, missing = {}, {}
    for name in names or PEERS:
        try:
            found[name] = PEERS[name].versions()
        except MissingError as error:
            missing[name] = str(error)
    return found, missing


def run(setting: Setting, only: tuple[str, ...], kinds: tuple[str, ...]) -> Results:
    """Measure everything that can be measured here."""
    raise_file_limit(max(*setting.subscribers, setting.idle_subscribers, fanout_redis.SUBSCRIBERS))
    found, missing = installed(only)
    if "redis" in kinds and not find_servers():
        missing["Redis"] = "no server found"
        kinds = tuple(name for name in kinds if name != "redis")
    for name, why in missing.items():
        click.echo(f"left out: {name}: {why}", err=True)
    versions = {name: version for peer in found.values() for name, version in peer.items()}
    facts = environment(versions, *find_servers()[:1]) | {
        "rounds": setting.rounds,
        "deliveries": setting.deliveries,
        "missing": missing,
    }
    samples, facts["failed"] = measured(setting.rounds, works(setting, list(found), kinds, take_cpus()))
    return Results(facts, samples)


def command(options: dict[str, Any]) -> str:
    """What measures the same once more."""
    words = ["./dev bench benchmarks/fanout.py"]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value:
            words += [f"--{name} {each}" for each in (value if isinstance(value, tuple) else (value,))]
    return " ".join(words)


@click.command(help=__doc__.splitlines()[0])
@click.option("--subscribers", multiple=True, type=click.IntRange(2), help="How many; may be repeated.")
@click.option("--deliveries", type=click.IntRange(1), help="About how many for each figure (200000).")
@click.option("--rounds", type=click.IntRange(1), help="How often each is measured (3).")
@click.option("--quick", is_flag=True, help="Less of all, where not said otherwise.")
@click.option("--only", multiple=True, type=click.Choice(list(PEERS)), help="Only this peer; may be repeated.")
@click.option("--work", multiple=True, type=click.Choice(WORKS), help="Measure only this; may be repeated.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured.")
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True), help="Measure nothing, read this.")
@click.option("--write", "writing", is_flag=True, help="Put tables and plots into docs/ as well.")
def main(
    subscribers: tuple[int, ...],
    deliveries: int | None,
    rounds: int | None,
    quick: bool,
    only: tuple[str, ...],
    work: tuple[str, ...],
    json_file: Path | None,
    source: Path | None,
    writing: bool,
) -> None:
    if writing and (only or work):
        raise click.UsageError("--write needs all of them: leave out --only and --work")
    if source:
        results = Results.read(source)
    else:
        asked = {"subscribers": subscribers, "deliveries": deliveries, "rounds": rounds}
        chosen: dict[str, Any] = {name: value for name, value in asked.items() if value}
        results = run(replace(QUICK if quick else FULL, **chosen), only, work or WORKS)
        results.facts["command"] = command({**chosen, "only": only, "work": work, "quick": quick})
    if json_file:
        results.write(json_file)
    text = markdown(results)
    click.echo(text)
    if writing:
        for path in (write(text), *plot(results)):
            click.echo(f"written: {path}", err=True)
    if results.facts["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
