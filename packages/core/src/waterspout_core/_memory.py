"""The broker in this process: what Redis does for many processes, for one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from ._envelope import ENVELOPE, decoded
from ._feeds import Feed, feed_log
from ._glob import compile_glob
from ._history import History
from ._leases import MemoryLeases
from ._log import MiB
from ._message import Message
from ._position import Position
from ._pubsub import PubSub, PubSubProtocol, check_key
from ._soon import Soon
from ._stores import BaseStore

T = TypeVar("T")

KEY_SECONDS: Final = 300.0
"""For how long an idempotency key is remembered."""

_MAX_KEYS: Final = 100_000


_BOUNDS: Final = {"max_messages": 1_000, "max_bytes": 16 * MiB}
"""Of a log whose first message comes before its first store."""


class MemoryBroker:
    """Where the `MemoryPubSub`s of a process meet; it delivers in the next turn of the loop, in order.

    With a history, the log of a channel that no store reads any more is kept for the retention, and no longer than
    all of those logs together are within `max_total_bytes`.
    """

    def __init__(self, *, max_total_bytes: int = 256 * MiB) -> None:
        self.max_total_bytes = max_total_bytes
        self.channels: dict[str, dict[MemoryPubSub, None]] = {}
        self.patterns: dict[str, dict[MemoryPubSub, None]] = {}
        self.feeds: WeakValueDictionary[str, MemoryFeed] = WeakValueDictionary()
        self.leases = MemoryLeases()
        self._idle: dict[
            MemoryFeed, tuple[float, int]
        ] = {}  # until when, and their bytes; the one used last at the end
        self._idle_bytes = 0
        self._waiting: deque[tuple[MemoryPubSub, str, bytes, bool]] = deque()
        # Not at once: a client that publishes while it is being told must not overtake itself.
        self._deliver_soon = Soon()
        self._keys: dict[tuple[str, str], tuple[float, Position]] = {}

    def publish(self, channel: str, payload: bytes) -> int:
        """Put `payload` into the channel's log, queue it for every connection once per matching subscription, and count
        them."""
        feed = self.feeds.get(channel)
        if feed is not None and (message := decoded(payload)):
            feed.put((message,))
        return self._spread(channel, lambda: payload)

    def submit(self, feed: MemoryFeed | None, channel: str, message: Message, key: str | None) -> Position | None:
        """The same for a message, once for each `key`; its position in the log of `feed`."""
        if key is not None and (known := self._known(channel, key)):
            return known
        position = None
        if feed is not None:
            index = feed.log.top + 1  # whoever is woken by it may publish, too
            feed.put((message,))
            position = feed.log.position_at(index)
            if key is not None:
                self._keys[channel, key] = time.monotonic() + KEY_SECONDS, position
            if not feed.in_use:
                self.rest(feed)
        self._spread(channel, lambda: ENVELOPE.encode(message))
        return position

    def rest(self, feed: MemoryFeed) -> None:
        """Nobody reads `feed`: keep it for a while from now on, if it has a history."""
        self.wake(feed)
        now = time.monotonic()
        if feed.history is not None:
            feed.log.expire()
            self._idle[feed] = now + feed.history.retention, feed.log.size
            self._idle_bytes += feed.log.size
        while self._idle:
            oldest, (until, _) = next(iter(self._idle.items()))
            if until > now and self._idle_bytes <= self.max_total_bytes:
                break
            self.wake(oldest)

    def wake(self, feed: MemoryFeed) -> None:
        """Whoever has `feed` keeps it from now on."""
        _, size = self._idle.pop(feed, (0.0, 0))
        self._idle_bytes -= size

    def _spread(self, channel: str, payload: Callable[[], bytes]) -> int:
        receivers = [(receiver, False) for receiver in self.channels.get(channel, ())]
        for pattern, connections in self.patterns.items():
            if compile_glob(pattern)(channel):
                receivers += [(receiver, True) for receiver in connections]
        told = [(receiver, matched) for receiver, matched in receivers if receiver.wants(channel, matched=matched)]
        if told:
            once = payload()
            self._waiting.extend((receiver, channel, once, matched) for receiver, matched in told)
            self._deliver_soon(self._deliver)
        return len(receivers)

    def _deliver(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for receiver, channel, payload, matched in waiting:
            if receiver.wants(channel, matched=matched):  # it may have gone meanwhile
                receiver.receive(channel, payload)

    def _known(self, channel: str, key: str) -> Position | None:
        now = time.monotonic()
        while self._keys:
            oldest = next(iter(self._keys))
            if self._keys[oldest][0] > now and len(self._keys) < _MAX_KEYS:
                break
            del self._keys[oldest]
        found = self._keys.get((channel, key))
        return None if found is None else found[1]


class MemoryFeed(Feed):
    """The log itself: there is nothing to be asked for, and nothing to be waited for."""

    __slots__ = ()

    @property
    def begun(self) -> bool:
        return True

    @property
    def in_use(self) -> bool:
        """Whether there are stores that read it."""
        return bool(self._stores)

    def join(self, store: BaseStore, pubsub: PubSub) -> asyncio.Future[None]:
        assert isinstance(pubsub, MemoryPubSub)
        self._stores = (*self._stores, store)
        pubsub.broker.wake(self)
        pubsub.hold(self.topic)
        return _done(None)

    def leave(self, store: BaseStore, pubsub: PubSub) -> None:
        assert isinstance(pubsub, MemoryPubSub)
        self._stores = tuple(other for other in self._stores if other is not store)
        pubsub.release(self.topic)
        if not self._stores:
            pubsub.broker.rest(self)


class MemoryPubSub(PubSub):
    """A `PubSub` within this process; `broker` is shared by those who want to hear one another."""

    def __init__(
        self,
        broker: MemoryBroker | None = None,
        *,
        protocol: PubSubProtocol | None = None,
        history: History | None = None,
    ) -> None:
        super().__init__(protocol, history)
        self.broker = broker or MemoryBroker()
        self._names: set[str] = set()  # what clients have subscribed
        self._held: dict[str, int] = {}  # how many stores read a channel

    def __repr__(self) -> str:
        return "memory://"

    def subscribe(self, *channels: str) -> asyncio.Future[None]:
        self._names.update(channels)
        return self._join(self.broker.channels, channels)

    def psubscribe(self, *patterns: str) -> asyncio.Future[None]:
        return self._join(self.broker.patterns, patterns)

    def unsubscribe(self, *channels: str) -> asyncio.Future[None]:
        channels = channels or tuple(self._names)
        self._names.difference_update(channels)
        return self._leave(self.broker.channels, [name for name in channels if name not in self._held])

    def punsubscribe(self, *patterns: str) -> asyncio.Future[None]:
        return self._leave(self.broker.patterns, patterns or tuple(self.broker.patterns))

    def publish(self, channel: str, message: Any) -> asyncio.Future[int]:
        return _done(self.broker.publish(channel, self._encode(message)))

    def feed(self, topic: str, *, channel: str, max_messages: int, max_bytes: int) -> MemoryFeed:
        feed = self.broker.feeds.get(topic)
        if feed is None:
            feed = self.broker.feeds[topic] = MemoryFeed(
                topic, feed_log(self.history, channel, max_messages, max_bytes), self.history
            )
        elif not feed.in_use:
            feed.log.channel = channel  # who only published to it had no other name for it
        return feed

    def submit(self, topic: str, message: Message, *, key: str | None = None) -> asyncio.Future[Position | None]:
        check_key(key, self.history)
        # Whoever comes later finds it there.
        feed = self.broker.feeds.get(topic)
        if feed is None and self.history:
            feed = self.feed(topic, channel=topic, **_BOUNDS)
        return _done(self.broker.submit(feed, topic, message, key))

    @property
    def leases(self) -> MemoryLeases:
        return self.broker.leases

    def wants(self, channel: str, *, matched: bool) -> bool:
        """Whether clients are to be told of `channel`, which a pattern `matched` or not."""
        return bool(self._clients) and (matched or channel in self._names)

    def receive(self, channel: str, payload: bytes) -> None:
        """The broker has something for the clients."""
        self._broadcast(channel, payload)

    def hold(self, topic: str) -> None:
        """One more store reads `topic`."""
        self._held[topic] = self._held.get(topic, 0) + 1
        self._join(self.broker.channels, (topic,))

    def release(self, topic: str) -> None:
        """One less."""
        self._held[topic] -= 1
        if not self._held[topic]:
            del self._held[topic]
            if topic not in self._names:
                self._leave(self.broker.channels, (topic,))

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
        if self._state != "closed":
            self._state, self._since = "closed", time.monotonic()
            self._tell_health(self.health)

    def _join(self, places: dict[str, dict[MemoryPubSub, None]], names: Iterable[str]) -> asyncio.Future[None]:
        for name in names:
            places.setdefault(name, {})[self] = None
        return _done(None)

    def _leave(self, places: dict[str, dict[MemoryPubSub, None]], names: Iterable[str]) -> asyncio.Future[None]:
        for name in names:
            members = places.get(name, {})
            members.pop(self, None)
            if not members:
                places.pop(name, None)
        return _done(None)


def _done(result: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future
