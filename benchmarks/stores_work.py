"""What `stores.py` has measured; run as `stores_work.py WORK URL SECONDS CPU…`, each measurement is a process.

Its figures are one line of JSON on standard output. CPU is that of this process alone, in µs, the load (whoever
publishes or takes here) in it; memory is in bytes, of this process above what it had when all was imported. The
publisher of messages is one more process, on those CPUs, if any are given.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from machine import started_on
from redis_client_peers import CHANNEL, Take, how_many, publisher, redis_py_listening

from waterspout_channels import Channels
from waterspout_core import BaseStore, Gap, Message, QueueStore, RedisStore
from waterspout_redis import Client
from waterspout_redis.testing import eventually

SUBSCRIBERS: Final = 1_000
CHANNELS: Final = 100_000
MESSAGES: Final = 1_000_000
SIZE: Final = 100
"""Bytes of a message."""

BURST: Final = 100
MISSED: Final = 1_000
"""Messages that each subscriber needs who comes back."""

AT_ONCE: Final = 1_000
"""What is published or opened in one turn of the loop."""

IDLE: Final = 6.0  # seconds, so that what is done every few of them is in it
READS: Final = ("fcall", "fcall_ro", "eval", "eval_ro", "evalsha", "evalsha_ro", "xrange", "xrevrange")

CPUS: Final = sys.argv[4:]

Figures: TypeAlias = dict[str, float]


class Deaf:
    """A subscriber that does nothing."""

    def wake(self, store: BaseStore) -> None:
        pass


class Reader:
    """The least a subscriber can be: a cursor."""

    __slots__ = ("cursor",)
    read = 0
    """Messages, by all of them."""

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor

    def wake(self, store: BaseStore) -> None:
        while self.cursor < store.log.top:
            first, entries = store.log.read(self.cursor)
            self.cursor = first + len(entries) - 1
            Reader.read += sum(isinstance(entry, Message) for entry in entries)


@contextmanager
def counted(figures: Figures, times: int, prefix: str = "") -> Iterator[None]:
    """What is done inside of it is done so many times: its CPU and its rate, for each."""
    gc.collect()
    begun, cpu = time.perf_counter(), time.process_time()
    yield
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    figures |= {f"{prefix}rate": times / took, f"{prefix}cpu": cpu / times * 1e6}


def resident() -> int:
    """The memory of this process, in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# In process


async def flush(seconds: float, burst: int, publish: Callable[[], object]) -> Figures:
    """So many messages in each turn of the loop, by `publish`."""

    async def run(times: int) -> None:
        for _ in range(times):
            for _ in range(burst):
                publish()
            await asyncio.sleep(0)

    times, figures = await how_many(run, seconds), Figures()
    with counted(figures, times):
        await run(times)
    return figures


async def flush_store(seconds: float, burst: int) -> Figures:
    store = QueueStore()
    for _ in range(SUBSCRIBERS):
        store.register(Deaf())
    return await flush(seconds, burst, lambda: store.submit("x" * SIZE))


async def flush_one(url: str, seconds: float) -> Figures:
    return await flush_store(seconds, 1)


async def flush_burst(url: str, seconds: float) -> Figures:
    return await flush_store(seconds, BURST)


async def flush_bare(url: str, seconds: float) -> Figures:
    """The least it can cost in Python: a loop of calls."""
    subscribers = [Deaf() for _ in range(SUBSCRIBERS)]

    def publish() -> None:
        for subscriber in subscribers:
            subscriber.wake(None)  # type: ignore[arg-type]

    return await flush(seconds, 1, publish)


# Through Redis


async def receive(
    seconds: float,
    listening: AbstractAsyncContextManager[Take],
    publishing: AbstractContextManager[Callable[[int], None]],
) -> Figures:
    async with listening as take:
        with publishing as publish:

            def run(times: int) -> Awaitable[None]:
                publish(times)
                return take(times)

            await run(1)
            times, figures = await how_many(run, seconds), Figures()
            with counted(figures, times):
                await run(times)
    return figures


@asynccontextmanager
async def store_listening(url: str, history: int) -> AsyncIterator[Take]:
    async with RedisStore(CHANNEL, url, history=history) as store, store.subscribe() as messages:

        async def take(count: int) -> None:
            async for entry in messages:
                if isinstance(entry, Gap):
                    raise RuntimeError("a gap")
                count -= 1
                if not count:
                    return

        yield take


@contextmanager
def keeper(url: str, cpus: list[str]) -> Iterator[Callable[[int], None]]:
    """As `publisher` does, with history."""
    with (
        started_on([*map(int, cpus)]),
        subprocess.Popen(
            [sys.executable, __file__, "keep", url, "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        ) as process,
    ):
        assert process.stdin is not None
        yield lambda count: print(count, file=process.stdin)
        process.stdin.close()


async def keep(url: str, seconds: float) -> Figures:
    """The work of `keeper`: a count on each line."""
    async with RedisStore(CHANNEL, url) as store:
        while line := await asyncio.to_thread(sys.stdin.readline):
            for number in range(0, int(line), AT_ONCE):
                count = min(int(line) - number, AT_ONCE)
                await asyncio.gather(*(store.submit("x" * SIZE) for _ in range(count)))
    return {}


async def receive_plain(url: str, seconds: float) -> Figures:
    return await receive(seconds, store_listening(url, 0), publisher(url, SIZE, CPUS))


async def receive_history(url: str, seconds: float) -> Figures:
    return await receive(seconds, store_listening(url, 1000), keeper(url, CPUS))


async def receive_redis_py(url: str, seconds: float) -> Figures:
    return await receive(seconds, redis_py_listening(url), publisher(url, SIZE, CPUS))


async def recover(url: str, seconds: float) -> Figures:
    """All subscribers come back to a fresh node."""
    async with Channels(url) as channels:
        store = channels.open(CHANNEL)
        position = await store.position()
        for _ in range(MISSED // BURST):
            await asyncio.gather(*(store.submit("x" * SIZE) for _ in range(BURST)))
    del store
    figures = Figures()
    async with Client(url) as client, Channels(url) as channels:
        await client.call("CONFIG", "RESETSTAT")

        async def subscriber() -> None:
            store = channels.open(CHANNEL)
            reader = Reader(await store.seek({position.epoch: position.offset}))
            store.register(reader)
            reader.wake(store)

        with counted(figures, SUBSCRIBERS * MISSED):
            await asyncio.gather(*(subscriber() for _ in range(SUBSCRIBERS)))
        if Reader.read != SUBSCRIBERS * MISSED:
            raise RuntimeError(f"{Reader.read} messages came")
        stats: str = await client.call("INFO", "commandstats", decode="utf-8")
    calls = dict(line.removeprefix("cmdstat_").split(":", 1) for line in stats.splitlines() if ":" in line)
    figures["reads"] = sum(int(calls[name].split(",")[0].removeprefix("calls=")) for name in READS if name in calls)
    return figures


# Many


async def log(url: str, seconds: float) -> Figures:
    """One large log."""
    before, figures = resident(), Figures()
    store = QueueStore(max_messages=MESSAGES, max_bytes=MESSAGES * 10 * SIZE)
    with counted(figures, MESSAGES):
        for number in range(MESSAGES):
            store.submit(f"{number:0{SIZE}}")
    return figures | {"memory": resident() - before, "messages": len(store.log)}


async def log_bare(url: str, seconds: float) -> Figures:
    """The texts alone."""
    before, figures = resident(), Figures()
    with counted(figures, MESSAGES):
        texts = [f"{number:0{SIZE}}" for number in range(MESSAGES)]
    return figures | {"memory": resident() - before, "messages": len(texts)}


async def many(url: str, **options: Any) -> Figures:
    """Channels with a subscriber and a message each."""
    names = [f"channel-{number}" for number in range(CHANNELS)]
    loop, before, figures = asyncio.get_running_loop(), resident(), Figures()
    channels = Channels(url, max_channels=CHANNELS, **options)

    async def open_one(name: str) -> None:
        store = channels.open(name)
        store.register(Reader(await store.seek()))

    async def publish_some(first: int) -> None:
        some = names[first : first + AT_ONCE]
        await asyncio.gather(*(channels.open(name).submit(f"{name:{SIZE}}") for name in some))
        await eventually(lambda: Reader.read == first + AT_ONCE)

    with counted(figures, CHANNELS, "open "):
        for first in range(0, CHANNELS, AT_ONCE):
            await asyncio.gather(*map(open_one, names[first : first + AT_ONCE]))
    figures["open memory"] = resident() - before
    with counted(figures, CHANNELS, "publish "):
        for first in range(0, CHANNELS, AT_ONCE):
            await publish_some(first)
    figures["memory"] = resident() - before
    figures["idle seconds"] = IDLE
    with counted(figures, 1, "idle "):
        await asyncio.sleep(IDLE)
    timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]  # nothing public tells it
    figures |= {"tasks": len(asyncio.all_tasks()) - 1, "timers": sum(not timer.cancelled() for timer in timers)}
    with counted(figures, CHANNELS, "close "):
        await channels.aclose()
    return figures


async def many_in_memory(url: str, seconds: float) -> Figures:
    return await many("memory://")


async def many_plain(url: str, seconds: float) -> Figures:
    return await many(url, history=0)


async def many_history(url: str, seconds: float) -> Figures:
    return await many(url)


WORKS: Final = {
    work.__name__: work
    for work in (
        flush_one,
        flush_burst,
        flush_bare,
        receive_plain,
        receive_history,
        receive_redis_py,
        recover,
        log,
        log_bare,
        many_in_memory,
        many_plain,
        many_history,
        keep,
    )
}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(WORKS[sys.argv[1]](sys.argv[2], float(sys.argv[3])))))
