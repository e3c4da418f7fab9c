"""The Redis client side by side with others, in one run on one machine: python benchmarks/redis_client.py

GET of a 16-byte value by 1 and by 50 concurrent callers, and receiving published messages as objects. Each figure is
the median of several rounds, taken in turns so that a disturbance hits all clients alike. It starts its own server.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from waterspout_redis import Client, Pipeline, PubSubClient
from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, find_servers

VALUE = b"0123456789abcdef"
CHANNEL = "bench"


@dataclass(frozen=True, slots=True)
class Figure:
    """Of one round."""

    rate: float
    """operations per second"""
    cpu: float
    """microseconds of this process' CPU per operation"""


async def measured(work: Awaitable[Any], operations: int) -> Figure:
    begun, cpu = time.perf_counter(), time.process_time()
    await work
    return Figure(operations / (time.perf_counter() - begun), (time.process_time() - cpu) / operations * 1e6)


async def callers(get: Callable[[], Awaitable[Any]], count: int, operations: int) -> Figure:
    async def caller() -> None:
        for _ in range(operations // count):
            await get()

    async def everyone() -> None:
        await asyncio.gather(*(caller() for _ in range(count)))

    assert await get() == VALUE
    return await measured(everyone(), operations)


async def publish(url: str, count: int) -> None:
    """From another process, so that its CPU is not counted."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--publish", url, str(count))
    await process.wait()


async def publisher(url: str, count: int) -> None:
    pipeline = Pipeline()
    for _ in range(500):
        pipeline.stack_call("PUBLISH", CHANNEL, VALUE)
    async with Client(url) as client:
        for _ in range(count // len(pipeline)):
            await client.call(pipeline)


async def received(take: Callable[[int], Awaitable[Any]], url: str, count: int) -> Figure:
    """`take(n)` returns when n messages were received. The clock starts with the first one, when the other process
    is up."""
    publishing = asyncio.create_task(publish(url, count))
    await take(1)
    figure = await measured(take(count - 1), count - 1)
    await publishing
    return figure


class Waterspout:
    name = "waterspout-redis"
    package = "waterspout_redis"

    async def get(self, url: str, count: int, operations: int) -> Figure:
        async with Client(url) as client:
            return await callers(lambda: client.call("GET", "k"), count, operations)

    async def receive(self, url: str, messages: int) -> Figure:
        async with PubSubClient(url) as pubsub:
            await pubsub.subscribe(CHANNEL)

            async def take(count: int) -> None:
                async for _ in pubsub:
                    count -= 1
                    if not count:
                        return

            return await received(take, url, messages)


class RedisPy:
    name = "redis-py"
    package = "redis"

    async def get(self, url: str, count: int, operations: int) -> Figure:
        import redis.asyncio

        pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=50)
        async with redis.asyncio.Redis.from_pool(pool) as client:
            return await callers(lambda: client.get("k"), count, operations)

    async def receive(self, url: str, messages: int) -> Figure:
        import redis.asyncio

        async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
            await pubsub.subscribe(CHANNEL)

            async def take(count: int) -> None:
                async for message in pubsub.listen():
                    count -= message["type"] == "message"
                    if not count:
                        return

            return await received(take, url, messages)


class Coredis:
    name = "coredis"
    package = "coredis"

    async def get(self, url: str, count: int, operations: int) -> Figure:
        import coredis

        async with coredis.Redis.from_url(url) as client:
            return await callers(lambda: client.get("k"), count, operations)

    async def receive(self, url: str, messages: int) -> Figure:
        import coredis

        async with coredis.Redis.from_url(url) as client, client.pubsub(channels=[CHANNEL]) as pubsub:

            async def take(count: int) -> None:
                async for message in pubsub:
                    count -= message["type"] == "message"
                    if not count:
                        return

            return await received(take, url, messages)


async def main(rounds: int, scale: float, loop_name: str) -> None:
    servers = find_servers()
    if not servers:
        sys.exit(HOW_TO_GET_ONE)
    clients = [client for client in (Waterspout(), RedisPy(), Coredis()) if importlib.util.find_spec(client.package)]
    figures: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    with RunningServer(servers[0]) as server:
        server.call("SET", "k", VALUE)
        workloads: list[tuple[str, Callable[[Any], Awaitable[Figure]]]] = [
            ("GET, 1 caller", lambda client: client.get(server.url, 1, int(5_000 * scale))),
            (
                "GET, 50 callers",
                # The fast one needs more of them for the clock to be precise.
                lambda client: client.get(server.url, 50, int((100_000 if client is clients[0] else 10_000) * scale)),
            ),
            (
                "messages received",
                lambda client: client.receive(server.url, int((200_000 if client is clients[0] else 50_000) * scale)),
            ),
        ]
        for number in range(rounds):
            for title, work in workloads:
                for client in clients:
                    progress(f"round {number + 1} of {rounds}: {title}, {client.name} …")
                    try:
                        figures[title, client.name].append(await work(client))
                    except Exception as error:
                        progress("")
                        print(f"{client.name} cannot do {title}: {error!r}", file=sys.stderr)
        progress("")
    print(f"{servers[0]}, Python {sys.version.split()[0]}, {loop_name} loop, medians of {rounds} rounds\n")
    print("| | client | op/s | CPU per op, µs | times slower than ours |\n| --- | --- | ---: | ---: | ---: |")
    for title, _ in workloads:
        ours = statistics.median(figure.rate for figure in figures[title, clients[0].name])
        for client in clients:
            taken = figures[title, client.name]
            if not taken:
                continue
            first = title if client is clients[0] else ""
            rate = statistics.median(figure.rate for figure in taken)
            cpu = statistics.median(figure.cpu for figure in taken)
            ratio = "" if client is clients[0] else f"{ours / rate:.1f}"
            print(f"| {first} | {named(client)} | {rate:,.0f} | {cpu:.1f} | {ratio} |")


def progress(text: str) -> None:
    """Show what is being done, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def named(client: Any) -> str:
    if client.package == "waterspout_redis":
        return str(client.name)
    return f"{client.name} {importlib.metadata.version(client.package)}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--publish"]:
        asyncio.run(publisher(sys.argv[2], int(sys.argv[3])))
    else:
        options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        options.add_argument("--rounds", type=int, default=5)
        options.add_argument("--scale", type=float, default=1.0, help="of the number of operations (1.0)")
        options.add_argument("--uvloop", action="store_true", help="run on uvloop")
        chosen = options.parse_args()
        if chosen.uvloop:
            import uvloop

            uvloop.run(main(chosen.rounds, chosen.scale, "uvloop"))
        else:
            asyncio.run(main(chosen.rounds, chosen.scale, "asyncio's"))
