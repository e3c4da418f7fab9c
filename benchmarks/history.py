"""What publishing with history costs: our calls beside redis-benchmark, which runs the same function, in one run.

    ./dev bench benchmarks/history.py [--quick] [--place server|apart|together|free] [--json FILE]

One by one: so many callers, each with a channel of its own, await one message after the other, so every message is a
call of the function; redis-benchmark has as many of these calls on their way on one connection (-P). In batches: so
many messages on one channel in each turn of the loop.

"µs of Redis" is what the server says of the function itself (INFO commandstats), without reading and answering the
command; "µs of ours" is the CPU of our process, the load in it. Each round measures everything in turn, and what is
printed are the medians. On where the processes run see `redis_client.py`.
"""

from __future__ import annotations

import asyncio
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from machine import cpus, started_on
from redis_client_c import CBenchmark

from waterspout_core._history import History
from waterspout_core._redis._history import RedisHistory
from waterspout_core._redis._keys import keys_of
from waterspout_redis import Client
from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, find_servers

PAYLOAD: Final = b"x" * 100
CALLERS: Final = (16, 50, 200)
BATCHES: Final = (1, 10, 100, 1000)
TARGET_RATIO: Final = 0.8
COMMANDS: Final = ("fcall", "evalsha")


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


def one_by_one(server: RunningServer, callers: int, messages: int) -> dict[str, Any]:
    async def call(history: RedisHistory, channel: str) -> None:
        for _ in range(messages // callers):
            await history.publish(channel, PAYLOAD)

    async def work(history: RedisHistory) -> None:
        await asyncio.gather(*(call(history, f"channel{i}") for i in range(callers)))

    return asyncio.run(publish(server, messages // callers * callers, work))


def in_batches(server: RunningServer, batch: int, messages: int) -> dict[str, Any]:
    async def work(history: RedisHistory) -> None:
        for _ in range(messages // batch):
            await asyncio.gather(*(history.publish("news", PAYLOAD) for _ in range(batch)))

    return asyncio.run(publish(server, messages // batch * batch, work))


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


def measured(server: RunningServer, program: str | None, rounds: int, messages: int) -> dict[str, dict[str, Any]]:
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for callers in CALLERS:
        work[f"one by one, {callers} callers"] = partial(one_by_one, server, callers, messages)
        if program:
            work[f"redis-benchmark -P {callers}"] = partial(bare, server, program, callers, messages)
    for batch in BATCHES:
        # A batch of one waits for each answer.
        count = max(messages // 10 if batch == 1 else messages, batch)
        work[f"in batches of {batch}"] = partial(in_batches, server, batch, count)
    samples: dict[str, list[dict[str, Any]]] = {title: [] for title in work}
    with click.progressbar(list(work) * rounds, file=sys.stderr, item_show_func=lambda title: title) as bar:
        for title in bar:
            samples[title].append(work[title]())
    return {
        title: {name: statistics.median(sample[name] for sample in rows) for name in rows[0]}
        for title, rows in samples.items()
    }


def markdown(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| | messages/s | of redis-benchmark | µs of Redis | µs of ours |", "|---|---:|---:|---:|---:|"]
    for title, row in results.items():
        beside = results.get(title.replace("one by one, ", "redis-benchmark -P ").removesuffix(" callers"), row)
        share = f"{row['rate'] / beside['rate']:.0%}" if beside is not row else ""
        ours = f"{row['ours']:.1f}" if "ours" in row else ""
        lines.append(f"| {title} | {row['rate']:,.0f} | {share} | {row['redis']:.2f} | {ours} |")
    return "\n".join(lines)


@click.command(help=__doc__.splitlines()[0])
@click.option("--quick", is_flag=True, help="Fewer messages and rounds, for a first look.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="How often each is measured (5).")
@click.option("--messages", type=click.IntRange(1000), default=50_000, help="How many, each time (50000).")
@click.option(
    "--place",
    type=click.Choice(["server", "apart", "together", "free"]),
    default="apart",
    help="On which cores server and clients are (apart).",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured.")
def main(quick: bool, rounds: int, messages: int, place: str, json_file: Path | None) -> None:
    servers = find_servers()
    if not servers:
        raise click.ClickException(HOW_TO_GET_ONE)
    program = CBenchmark.find(servers[0].path)
    if program is None:
        click.echo("left out: redis-benchmark is not installed", err=True)
    if quick:
        rounds, messages = 2, 10_000
    server_cpus, client_cpus = cpus(place)
    server = RunningServer(servers[0])
    with started_on(server_cpus):
        server.start()
    with server, started_on(client_cpus):
        results = measured(server, program, rounds, messages)
    if json_file:
        json_file.write_text(json.dumps({"server": str(servers[0]), "rows": results}, indent=1))
    click.echo(f"{servers[0]}, {len(PAYLOAD)} B a message, {place}\n\n{markdown(results)}")


if __name__ == "__main__":
    main()
