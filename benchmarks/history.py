"""What publishing with history costs: our calls beside redis-benchmark, which runs the same function, in one run.

    ./dev bench benchmarks/history.py [--quick] [--loop asyncio|uvloop|both] [--place server|apart|together|free]
        [--json FILE]

One by one: so many callers, each with a channel of its own, await one message after the other, so every message is a
call of the function; redis-benchmark has as many of these calls on their way on one connection (-P). In batches: so
many messages on one channel in each turn of the loop.

"µs of Redis" is what the server says of the function itself (INFO commandstats), without reading and answering the
command; "µs of ours" is the CPU of our process, the load in it. Each round measures everything in turn, and what is
printed are the medians. On where the processes run see `redis_client.py`; `stores.py --plot` draws what `--json` keeps.
"""

from __future__ import annotations

import asyncio
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
from machine import cpus, started_on
from redis_client_c import CBenchmark
from redis_client_report import LOOP_TITLES, PLACES, mark, table
from stores import about, environment

from waterspout_core._history import History
from waterspout_core._redis._history import RedisHistory
from waterspout_core._redis._keys import keys_of
from waterspout_redis import Client
from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, find_servers

PAYLOAD: Final = b"x" * 100
CALLERS: Final = (16, 50, 200)
BATCHES: Final = (1, 10, 100, 1000)
LARGE_BATCH: Final = 100
RATE_AIM: Final = 0.8
"""Of the rate of redis-benchmark, one by one."""

COMMANDS: Final = ("fcall", "evalsha")
TITLES: Final = {"one by one": "one by one, {} callers", "bare": "redis-benchmark -P {}", "batch": "in batches of {}"}


def redis_cost(server: RunningServer) -> tuple[int, float]:
    """Since the last time: how often the function was called, and the seconds that took Redis."""
    calls, seconds = 0, 0.0
    for line in server.call("INFO", "commandstats").decode().splitlines():
        name, _, facts = line.removeprefix("cmdstat_").partition(":")
        if name in COMMANDS:
            stats = dict(fact.split("=") for fact in facts.split(","))
            calls += int(stats["calls"])
            seconds += float(stats["usec"]) / 1e6
    server.call("CONFIG", "RESETSTAT")
    return calls, seconds


async def publish(
    server: RunningServer, messages: int, work: Callable[[RedisHistory], Awaitable[Any]]
) -> dict[str, Any]:
    """Have `work` publish so many messages."""
    async with Client(server.url) as client:
        history = RedisHistory(client, History())
        await history.publish("warm", PAYLOAD)  # the server gets the functions
        redis_cost(server)
        began, cpu = time.perf_counter(), time.process_time()
        await work(history)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        calls, redis = redis_cost(server)
    return {
        "calls": calls,
        "rate": messages / seconds,
        "redis": redis / messages * 1e6,
        "ours": cpu / messages * 1e6,
    }


def run(loop: str, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """On this event loop."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def one_by_one(server: RunningServer, callers: int, messages: int, loop: str) -> dict[str, Any]:
    async def call(history: RedisHistory, channel: str) -> None:
        for _ in range(messages // callers):
            await history.publish(channel, PAYLOAD)

    async def work(history: RedisHistory) -> None:
        await asyncio.gather(*(call(history, f"channel{i}") for i in range(callers)))

    return run(loop, publish(server, messages // callers * callers, work))


def in_batches(server: RunningServer, batch: int, messages: int, loop: str) -> dict[str, Any]:
    # A batch of one waits for each answer.
    count = max(messages // 10 if batch == 1 else messages, batch)

    async def work(history: RedisHistory) -> None:
        for _ in range(count // batch):
            await asyncio.gather(*(history.publish("news", PAYLOAD) for _ in range(batch)))

    return run(loop, publish(server, count // batch * batch, work))


def bare(server: RunningServer, program: str, callers: int, messages: int) -> dict[str, Any]:
    """redis-benchmark with the same function."""
    history = History()
    settings = ["news", str(history.messages), str(round(history.retention * 1000))]
    function = ["FCALL", "waterspout_append", "2", *keys_of("news"), *settings, PAYLOAD.decode()]
    options = ["-p", str(server.port), "-c", "1", "-P", str(callers), "-n", str(messages), "--csv"]
    redis_cost(server)
    done = subprocess.run([program, *options, *function], capture_output=True, text=True, check=True)
    _, redis = redis_cost(server)
    return {"rate": float(list(csv.reader(done.stdout.splitlines()))[-1][1]), "redis": redis / messages * 1e6}


def measured(
    server: RunningServer, program: str | None, loops: tuple[str, ...], rounds: int, messages: int
) -> list[dict[str, Any]]:
    """A row for each: what was done (see `TITLES`), with how many, on which loop, and the medians."""
    works: dict[tuple[str, int, str], Callable[[], dict[str, Any]]] = {}
    for callers in CALLERS:
        for loop in loops:
            works["one by one", callers, loop] = partial(one_by_one, server, callers, messages, loop)
        if program:
            works["bare", callers, ""] = partial(bare, server, program, callers, messages)
    for batch in BATCHES:
        for loop in loops:
            works["batch", batch, loop] = partial(in_batches, server, batch, messages, loop)
    samples: dict[tuple[str, int, str], list[dict[str, Any]]] = {work: [] for work in works}
    with click.progressbar(
        list(works) * rounds, file=sys.stderr, item_show_func=lambda work: work and title(*work)
    ) as bar:
        for work in bar:
            samples[work].append(works[work]())
    return [
        {"kind": kind, "number": number, "loop": loop}
        | {name: statistics.median(sample[name] for sample in taken) for name in taken[0]}
        for (kind, number, loop), taken in samples.items()
    ]


def title(kind: str, number: int, loop: str) -> str:
    return TITLES[kind].format(number) + (f", {LOOP_TITLES[loop]}" if loop else "")


def markdown(results: dict[str, Any]) -> str:
    facts, rows = results["facts"], results["rows"]
    single = [row for row in rows if row["kind"] == "one by one"]
    bare = {row["number"]: row["rate"] for row in rows if row["kind"] == "bare"}
    lines = [["", "messages/s", "of redis-benchmark", "µs of Redis", "µs of ours"]]
    for row in rows:
        share, redis, ours = "", f"{row['redis']:.2f}", f"{row['ours']:.1f}" if "ours" in row else ""
        if row in single and row["number"] in bare:
            ratio = row["rate"] / bare[row["number"]]
            share = f"{ratio * 100:.0f} %{mark(ratio >= RATE_AIM, False)}"
        if row["kind"] == "batch" and row["number"] >= LARGE_BATCH:
            alone = min(other["redis"] for other in single if other["loop"] == row["loop"])
            redis += mark(row["redis"] <= alone / 2, False)
        lines.append([title(row["kind"], row["number"], row["loop"]), f"{row['rate']:,.0f}", share, redis, ours])
    aims = (
        f"Aimed at: one by one, {RATE_AIM * 100:.0f} % of the rate of redis-benchmark; in batches of {LARGE_BATCH} and"
        " more, at most half of the µs of Redis that one by one takes."
    )
    return f"{table(lines)}\n\n{aims} {len(PAYLOAD)} bytes a message. {PLACES[facts['place']]} {about(facts)}"


@click.command(help=__doc__.splitlines()[0])
@click.option("--quick", is_flag=True, help="Fewer messages and rounds, for a first look.")
@click.option("--loop", type=click.Choice([*LOOP_TITLES, "both"]), default="both", help="On which event loop (both).")
@click.option("--rounds", type=click.IntRange(1), default=5, help="How often each is measured (5).")
@click.option("--messages", type=click.IntRange(1000), default=50_000, help="How many, each time (50000).")
@click.option(
    "--place",
    type=click.Choice(list(PLACES)),
    default="apart",
    help="On which cores server and clients are (apart).",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured.")
def main(quick: bool, loop: str, rounds: int, messages: int, place: str, json_file: Path | None) -> None:
    servers = find_servers()
    if not servers:
        raise click.ClickException(HOW_TO_GET_ONE)
    program = CBenchmark.find(servers[0].path)
    if program is None:
        click.echo("left out: redis-benchmark is not installed", err=True)
    loops = tuple(LOOP_TITLES) if loop == "both" else (loop,)
    if "uvloop" in loops and not find_spec("uvloop"):
        click.echo("left out: uvloop is not installed", err=True)
        loops = ("asyncio",)
    if quick:
        rounds, messages = 2, 10_000
    facts = environment(servers[0], ["waterspout"]) | {"rounds": rounds, "place": place}
    server_cpus, client_cpus = cpus(place)
    server = RunningServer(servers[0])
    with started_on(server_cpus):
        server.start()
    with server, started_on(client_cpus):
        results = {"facts": facts, "rows": measured(server, program, loops, rounds, messages)}
    if json_file:
        json_file.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(markdown(results))


if __name__ == "__main__":
    main()
