"""What `channels.py` has measured; run as `channels_work.py WORK URL SECONDS CPU…`, each measurement is a process.

Its figures are one line of JSON on standard output. CPU is that of this process alone, in µs. Who publishes is one more
process, on those CPUs, if any are given.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from redis_client_peers import how_many
from stores_work import AT_ONCE, Figures, counted

from waterspout_channels import Channel, Channels
from waterspout_core import Envelope, Message

CHANNEL: Final = "match"
EVENT: Final = "goal"
DATA: Final = {"match": "FRA-BRA", "minute": 27, "score": [1, 0], "player": "Zinédine Zidane", "assist": "E. Petit"}
MANY: Final = 10_000
MOST: Final = 100_000

CPUS: Final = sys.argv[4:]
_PIPELINED: Final = 500


class Counter:
    """A callback that counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, channel: Channel, event: str, data: Any) -> None:
        self.count += 1


class CoroutineCounter(Counter):
    """The same as a coroutine function."""

    async def __call__(self, channel: Channel, event: str, data: Any) -> None:  # type: ignore[override]
        self.count += 1


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # an event for it would be measured, too
        await asyncio.sleep(0.001)


# The publisher


@contextmanager
def publisher(url: str, kind: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that has another process publish so many events."""
    command = [sys.executable, __file__, kind, url, "0", *CPUS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, bufsize=1) as process:
        assert process.stdin is not None
        yield lambda count: print(count, file=process.stdin)
        process.stdin.close()


async def publish_plain(url: str, seconds: float) -> Figures:
    """As cheaply as it can be done."""
    os.sched_setaffinity(0, [*map(int, CPUS)] or os.sched_getaffinity(0))
    name, payload = CHANNEL.encode(), Envelope().encode(Message(DATA, EVENT))
    command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port or 6379)) as server, server.makefile("rb") as replies:
        for line in sys.stdin:  # noqa: ASYNC251, RUF100  # nothing else is to be done here
            for begun in range(0, int(line), _PIPELINED):
                count = min(int(line) - begun, _PIPELINED)
                server.sendall(command * count)
                for _ in range(count):
                    replies.readline()
    return {}


async def publish_history(url: str, seconds: float) -> Figures:
    os.sched_setaffinity(0, [*map(int, CPUS)] or os.sched_getaffinity(0))
    async with Channels(url) as channels:
        while line := await asyncio.to_thread(sys.stdin.readline):
            for begun in range(0, int(line), AT_ONCE):
                count = min(int(line) - begun, AT_ONCE)
                await asyncio.gather(*(channels.publish(CHANNEL, EVENT, DATA) for _ in range(count)))
    return {}


# Events


async def dispatched(
    url: str,
    seconds: float,
    *,
    history: int = 0,
    registered: int = 1,
    patterns: int = 1,
    counter: type[Counter] = Counter,
    at_once: int = sys.maxsize,
) -> Figures:
    """Events of one channel of those `registered`, so many of them `at_once`, each to a callback of all `patterns`."""
    others, last = Counter(), counter()
    async with Channels(url, history=history, linger=0) as channels:
        for number in range(registered - 1):
            channels.register(f"other{number}", EVENT, others)
        for number in range(patterns - 1):
            channels.register(CHANNEL, f"g[{number}o]al", others)
        await channels.register(CHANNEL, EVENT, last).ready()
        await channels.connect(None)
        with publisher(url, "publish_history" if history else "publish_plain") as publish:

            async def run(times: int) -> None:
                for begun in range(0, times, at_once):
                    count = min(times - begun, at_once)
                    end = last.count + count
                    publish(count)
                    await until(lambda end=end: last.count == end)  # type: ignore[misc]

            await run(1)
            times, figures = await how_many(run, seconds), Figures()
            with counted(figures, times):
                await run(times)
    if others.count % max(patterns - 1, 1):
        raise RuntimeError("an event did not fire all patterns that match")
    return figures


# Registering


async def registering(url: str, seconds: float, *, history: int) -> Figures:
    """Many channels, while connected: until the broker has confirmed each, and until it has none of them any more."""
    figures, counter = Figures(), Counter()
    names = [f"channel-{number}" for number in range(MANY)]
    async with Channels(url, history=history, linger=0) as channels:
        await channels.connect()
        with counted(figures, MANY, "register "):
            registered = [channels.register(name, EVENT, counter) for name in names]
            await registered[-1].ready()  # it is the last one
        if not all(store.subscribed for store in channels.stores) or len(channels.stores) != MANY + 1:
            raise RuntimeError("the others are not ready")
        with counted(figures, MANY, "unregister "):
            for name in names:
                channels.unregister(name, EVENT, counter)
            await asyncio.sleep(0)  # until they are sent
            await channels.pubsub.subscribe("end")  # it stands behind them in line
        if sorted(await channels.pubsub.channels()) != ["end", channels.status_channel.name]:
            raise RuntimeError("not all are unsubscribed")
        await channels.publish(names[-1], EVENT, DATA)
        again = channels.register(names[-1], EVENT, counter)
        await again.ready()
        await channels.publish(names[-1], EVENT, DATA)
        await until(lambda: counter.count == 1)
    return figures


WORKS: Final[dict[str, Callable[[str, float], Awaitable[Figures]]]] = {
    "publish_plain": publish_plain,
    "publish_history": publish_history,
    "plain": dispatched,
    "history": partial(dispatched, history=1000),
    # All at once are more than its log holds: it gets no turn between them.
    "coroutine": partial(dispatched, counter=CoroutineCounter, at_once=500),
    "of_1000": partial(dispatched, registered=1_000),
    "of_most": partial(dispatched, registered=MOST),
    "patterns_10": partial(dispatched, patterns=10),
    "patterns_100": partial(dispatched, patterns=100),
    "registering_plain": partial(registering, history=0),
    "registering_history": partial(registering, history=1000),
}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(WORKS[sys.argv[1]](sys.argv[2], float(sys.argv[3])))))
