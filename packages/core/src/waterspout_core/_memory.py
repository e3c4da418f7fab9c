"""The broker in this process: what Redis does for many processes, for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ._glob import compile_glob
from ._pubsub import PubSub, PubSubProtocol
from ._soon import Soon

T = TypeVar("T")


class MemoryBroker:
    """Where the `MemoryPubSub`s of a process meet; it delivers in the next turn of the loop, in order."""

    def __init__(self) -> None:
        self.channels: dict[str, dict[MemoryPubSub, None]] = {}
        self.patterns: dict[str, dict[MemoryPubSub, None]] = {}
        self._waiting: deque[tuple[MemoryPubSub, str, bytes]] = deque()
        # Not at once: a client that publishes while it is being told must not overtake itself.
        self._deliver_soon = Soon()

    def publish(self, channel: str, payload: bytes) -> int:
        """Queue `payload` for every connection once per matching subscription, and count them."""
        receivers = list(self.channels.get(channel, ()))
        for pattern, connections in self.patterns.items():
            if compile_glob(pattern)(channel):
                receivers += connections
        if receivers:
            self._waiting.extend((receiver, channel, payload) for receiver in receivers)
            self._deliver_soon(self._deliver)
        return len(receivers)

    def _deliver(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for receiver, channel, payload in waiting:
            receiver.receive(channel, payload)


class MemoryPubSub(PubSub):
    """A `PubSub` within this process; `broker` is shared by those who want to hear one another."""

    def __init__(self, broker: MemoryBroker | None = None, *, protocol: PubSubProtocol | None = None) -> None:
        super().__init__(protocol)
        self.broker = broker or MemoryBroker()

    def __repr__(self) -> str:
        return "memory://"

    def subscribe(self, *channels: str) -> asyncio.Future[None]:
        return self._join(self.broker.channels, channels)

    def psubscribe(self, *patterns: str) -> asyncio.Future[None]:
        return self._join(self.broker.patterns, patterns)

    def unsubscribe(self, *channels: str) -> asyncio.Future[None]:
        return self._leave(self.broker.channels, channels)

    def punsubscribe(self, *patterns: str) -> asyncio.Future[None]:
        return self._leave(self.broker.patterns, patterns)

    def publish(self, channel: str, message: Any) -> asyncio.Future[int]:
        return _done(self.broker.publish(channel, self._encode(message)))

    def receive(self, channel: str, payload: bytes) -> None:
        """The broker has something for us; too late if the last subscription has just gone."""
        self._broadcast(channel, payload)

    async def count(self, *channels: str) -> dict[str, int]:
        return {channel: len(self.broker.channels.get(channel, ())) for channel in channels}

    async def count_patterns(self) -> int:
        return len(self.broker.patterns)

    async def channels(self, pattern: str = "*") -> list[str]:
        matches: Callable[[str], bool] = compile_glob(pattern)
        return [channel for channel in self.broker.channels if matches(channel)]

    async def aclose(self) -> None:
        self.unsubscribe()
        self.punsubscribe()
        self._clients.clear()

    def _join(self, places: dict[str, dict[MemoryPubSub, None]], names: tuple[str, ...]) -> asyncio.Future[None]:
        for name in names:
            places.setdefault(name, {})[self] = None
        return _done(None)

    def _leave(self, places: dict[str, dict[MemoryPubSub, None]], names: tuple[str, ...]) -> asyncio.Future[None]:
        for name in names or tuple(places):
            members = places.get(name, {})
            members.pop(self, None)
            if not members:
                places.pop(name, None)
        return _done(None)


def _done(result: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future
