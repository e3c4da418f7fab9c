"""The clients that `redis_client.py` compares; run as `redis_client_peers.py PEER LOOP URL CPU…`, one is a process.

Each is used as its documentation shows it first, with its default options, and in the same way: an operation is one
call of a function that returns something to await. A line of JSON on standard input asks for one measurement::

    {"row": "GET, 50 callers, 16 B", "seconds": 0.3, "times": null}

`times` is how often each caller does its work; null asks to find out what takes so many seconds. The answer is a line
as well: {"times": …, "rate": operations per second, "cpu": µs of this process' CPU, of all threads, per operation},
or {"error": …}. The end of standard input is its end. The publisher of messages runs on those CPUs, if any are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from redis_client_rows import BY_TITLE, Row, next_times

CHANNEL: Final = "bench"
DEADLINE: Final = 60.0  # seconds for one measurement


@dataclass(frozen=True)
class Commands:
    """`get(key)`, `set(key, value)` and `pipeline(key, depth)`: the last is as many GETs, sent and answered at once."""

    get: Callable[[str], Awaitable[Any]]
    set: Callable[[str, bytes], Awaitable[Any]]
    pipeline: Callable[[str, int], Awaitable[Any]]


Take = Callable[[int], Awaitable[None]]
"""Returns when so many messages were received."""


@dataclass(frozen=True)
class Peer:
    """One of those that are compared. `package` is what it needs installed, from `distribution`."""

    title: str
    package: str | None
    distribution: str
    commands: Callable[[str], AbstractAsyncContextManager[Commands]]
    listening: Callable[[str], AbstractAsyncContextManager[Take]] | None

    def does(self, row: Row) -> bool:
        return self.package is not None or (row.kind == "GET" and row.size == 16)


@asynccontextmanager
async def nobody(url: str) -> AsyncIterator[Commands]:
    """The ceiling: Futures that are answered all together in the next turn of the loop. What is left is the load."""
    loop, value = asyncio.get_running_loop(), Row("GET").value
    waiting: list[asyncio.Future[bytes]] = []

    def answer() -> None:
        for future in waiting:
            future.set_result(value)
        waiting.clear()

    def get(key: str) -> asyncio.Future[bytes]:
        if not waiting:
            loop.call_soon(answer)
        future: asyncio.Future[bytes] = asyncio.Future(loop=loop)
        waiting.append(future)
        return future

    async def no(*args: object) -> None:
        raise NotImplementedError

    yield Commands(get, no, no)


@asynccontextmanager
async def waterspout(url: str) -> AsyncIterator[Commands]:
    from waterspout_redis import Client, Pipeline

    async with Client(url) as client:

        def pipeline(key: str, depth: int) -> Awaitable[list[Any]]:
            several = Pipeline()
            for _ in range(depth):
                several.stack_call("GET", key)
            return client.call(several)

        yield Commands(partial(client.call, "GET"), partial(client.call, "SET"), pipeline)


@asynccontextmanager
async def waterspout_listening(url: str) -> AsyncIterator[Take]:
    from waterspout_redis import PubSubClient, PubSubMessage

    async with PubSubClient(url) as pubsub:
        await pubsub.subscribe(CHANNEL)

        async def take(count: int) -> None:
            async for item in pubsub:
                count -= isinstance(item, PubSubMessage)
                if not count:
                    return

        yield take


@asynccontextmanager
async def redis_py(url: str) -> AsyncIterator[Commands]:
    from redis.asyncio import BlockingConnectionPool, Redis

    # Its plain pool refuses more callers than it has connections.
    async with Redis.from_pool(BlockingConnectionPool.from_url(url)) as client:

        def pipeline(key: str, depth: int) -> Awaitable[list[Any]]:
            several = client.pipeline(transaction=False)
            for _ in range(depth):
                several.get(key)
            return several.execute()

        yield Commands(client.get, client.set, pipeline)


@asynccontextmanager
async def redis_py_listening(url: str) -> AsyncIterator[Take]:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)

        async def take(count: int) -> None:
            async for message in pubsub.listen():
                count -= message["type"] == "message"
                if not count:
                    return

        yield take


@asynccontextmanager
async def coredis(url: str) -> AsyncIterator[Commands]:
    from coredis import Redis

    async with Redis.from_url(url) as client:

        async def pipeline(key: str, depth: int) -> list[Any]:
            async with client.pipeline(transaction=False) as several:
                for _ in range(depth):
                    several.get(key)
            return list(several.results or ())

        yield Commands(client.get, client.set, pipeline)


@asynccontextmanager
async def coredis_listening(url: str) -> AsyncIterator[Take]:
    from coredis import Redis

    async with Redis.from_url(url) as client, client.pubsub(channels=[CHANNEL]) as pubsub:

        async def take(count: int) -> None:
            async for message in pubsub:
                count -= message["type"] == "message"
                if not count:
                    return

        yield take


@asynccontextmanager
async def glide_client(url: str, **options: Any) -> AsyncIterator[Any]:
    from glide import GlideClient, GlideClientConfiguration, NodeAddress

    address = urlsplit(url)
    node = NodeAddress(address.hostname or "", address.port or 6379)
    client = await GlideClient.create(GlideClientConfiguration([node], **options))
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def glide(url: str) -> AsyncIterator[Commands]:
    from glide import Batch

    async with glide_client(url) as client:

        def pipeline(key: str, depth: int) -> Awaitable[list[Any]]:
            several = Batch(is_atomic=False)
            for _ in range(depth):
                several.get(key)
            answers: Awaitable[list[Any]] = client.exec(several, raise_on_error=True)
            return answers

        yield Commands(client.get, client.set, pipeline)


@asynccontextmanager
async def glide_listening(url: str) -> AsyncIterator[Take]:
    from glide import GlideClientConfiguration as Configuration

    exact = Configuration.PubSubChannelModes.Exact
    subscriptions = Configuration.PubSubSubscriptions({exact: {CHANNEL}}, callback=None, context=None)
    async with glide_client(url, pubsub_subscriptions=subscriptions) as client:

        async def take(count: int) -> None:
            for _ in range(count):
                await client.get_pubsub_message()

        yield take


OURS: Final = "waterspout"
PEERS: Final = {
    OURS: Peer("Waterspout", "waterspout_redis", "waterspout-redis", waterspout, waterspout_listening),
    "redis-py": Peer("redis-py", "redis", "redis", redis_py, redis_py_listening),
    "coredis": Peer("coredis", "coredis", "coredis", coredis, coredis_listening),
    "glide": Peer("valkey-glide", "glide", "valkey-glide", glide, glide_listening),
    "nobody": Peer("no client at all", None, "", nobody, None),
}


@contextlib.contextmanager
def publisher(url: str, size: int, cpus: Sequence[str]) -> Iterator[Callable[[int], None]]:
    """Gives a function that has so many messages of so many bytes published by another process, as fast as it can."""
    script = Path(__file__).with_name("redis_client_publisher.py")
    address = urlsplit(url)
    what = [str(address.hostname), str(address.port), CHANNEL, str(size), *cpus]
    command = [sys.executable, "-IS", str(script), *what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        yield lambda count: print(count, file=process.stdin)
        process.stdin.close()


Run = Callable[[int], Awaitable[object]]
"""Has each caller do its work so many times, and returns when all are done."""


@asynccontextmanager
async def workload(peer: Peer, row: Row, url: str) -> AsyncIterator[Run]:
    """A client that is connected and answers rightly, and what it is to do."""
    if row.kind == "pub/sub":
        assert peer.listening is not None
        async with peer.listening(url) as take:
            with publisher(url, row.size, sys.argv[4:]) as publish:

                def receive(times: int) -> Awaitable[None]:
                    publish(times)
                    return take(times)

                yield receive
        return

    async with peer.commands(url) as commands:
        if row.kind == "pipeline":
            operation: Callable[[], Awaitable[Any]] = partial(commands.pipeline, row.key, row.depth)
            right = list(await operation()) == [row.value] * row.depth
        else:
            set_it = row.kind == "SET"
            operation = partial(commands.set, row.key, row.value) if set_it else partial(commands.get, row.key)
            await operation()
            right = await commands.get(row.key) == row.value
        if not right:
            raise RuntimeError("a wrong reply")

        async def caller(times: int) -> None:
            for _ in range(times):
                await operation()

        yield lambda times: asyncio.gather(*(caller(times) for _ in range(row.callers)))


async def measure(peer: Peer, row: Row, url: str, seconds: float, times: int | None) -> dict[str, float]:
    async with asyncio.timeout(DEADLINE), workload(peer, row, url) as run:
        await run(1)  # makes the connections of a pool
        if times is None:
            times = await how_many(run, seconds)
        else:
            await run(max(times // 10, 1))
        gc.collect()
        begun, cpu = time.perf_counter(), time.process_time()
        await run(times)
        took, cpu = time.perf_counter() - begun, time.process_time() - cpu
        operations = times * row.unit
        return {"times": times, "rate": operations / took, "cpu": cpu / operations * 1e6}


async def how_many(run: Run, seconds: float) -> int:
    """How many times take about so many seconds."""
    times = 1
    while True:
        begun = time.perf_counter()
        await run(times)
        took = time.perf_counter() - begun
        more = next_times(times, took, seconds)
        if more is None:
            return max(round(times * seconds / took), 1)
        times = more


def obey(peer: Peer, loop: str, url: str) -> None:
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    # What a client prints, in C or Rust even, is not to come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answers, asyncio.Runner(loop_factory=factory) as runner:
        for line in sys.stdin:
            asked = json.loads(line)
            row = BY_TITLE[asked["row"]]
            try:
                answer: dict[str, Any] = runner.run(measure(peer, row, url, asked["seconds"], asked["times"]))
            except Exception as error:
                # A client that cannot do it with its defaults has that said in the table.
                answer = {"error": name_of(error), "why": str(error)[:500]}
            print(json.dumps(answer), file=answers, flush=True)


def name_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__


if __name__ == "__main__":
    obey(PEERS[sys.argv[1]], *sys.argv[2:4])
