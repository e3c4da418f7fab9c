"""The manager: opens the store of a channel by its name, and lets it go when nobody has wanted it for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Final

from waterspout_core import (
    BrokerError,
    ChannelStore,
    Message,
    MiB,
    Position,
    PubSub,
    TooManyChannels,
    check_channel,
    open_pubsub,
)

_GRACE: Final = 10.0
"""Seconds for which an opened store is nobody else's to close: whoever opened it is about to register."""

_SWEEP: Final = 5.0
"""Seconds in which all channels are looked at for what may be closed; less where `linger` is short."""

_STEP: Final = 1000
_STEP_PAUSE: Final = 0.1
"""Very many channels take longer: so many in a step, and so many seconds at least between two steps."""


class Channels:
    """Many channels over one `PubSub`; a *source* of stores for handlers.

    `pubsub` is a broker's URL (`memory://`, `redis://…`) or a `PubSub`. `namespace` stands before every channel's name
    at the broker and nowhere else. With a URL, the broker keeps the newest `history` messages of each channel for
    `retention` seconds, so that a subscriber may come back to any process; 0 turns that off.

    A channel that nobody reads is kept for `linger` seconds after it was last used, so that a subscriber whose
    connection broke finds what it missed. There are never more than `max_channels`: a new one takes the place of the
    one unused for longest, or is refused with `TooManyChannels`. `max_messages` and `max_bytes` bound each
    channel's log; when all logs together exceed `max_total_bytes`, those unused for longest go first.
    """

    def __init__(
        self,
        pubsub: PubSub | str = "memory://",
        *,
        namespace: str = "",
        history: int = 1_000,
        retention: float = 3600.0,
        linger: float = 60.0,
        max_channels: int = 10_000,
        max_messages: int = 1_000,
        max_bytes: int = 16 * MiB,
        max_total_bytes: int = 256 * MiB,
    ) -> None:
        if isinstance(pubsub, str):
            pubsub = open_pubsub(pubsub, history=history, retention=retention)
        self.pubsub = pubsub
        self.namespace = namespace
        self.linger = linger
        self.max_channels = max_channels
        self.max_total_bytes = max_total_bytes
        self._bounds = {"max_messages": max_messages, "max_bytes": max_bytes}
        self._stores: dict[str, ChannelStore] = {}  # by topic, the one opened last at the end
        self._used: dict[str, float] = {}  # when last, by topic
        self._closed = False
        self._sweep: asyncio.TimerHandle | None = None
        self._unseen: list[str] = []  # topics that this round has not come to
        self._seen_bytes = 0  # of the logs that it has seen
        self._round = 0.0  # seconds that it takes

    def __repr__(self) -> str:
        return f"Channels({self.pubsub!r}, namespace={self.namespace!r})"

    def __len__(self) -> int:
        """How many channels are open."""
        return len(self._stores)

    def __iter__(self) -> Iterator[ChannelStore]:
        """The stores of the open channels."""
        return iter(tuple(self._stores.values()))

    def __contains__(self, channel: object) -> bool:
        return isinstance(channel, str) and self.prefixed(channel) in self._stores

    def prefixed(self, channel: str) -> str:
        """The broker's name for `channel`; one that has it already stays as it is."""
        return channel if channel.startswith(self.namespace) else self.namespace + channel

    def open(self, channel: str) -> ChannelStore:
        """The store of `channel`, subscribed at the broker (`await store.ready()` to have that confirmed).

        Raises `BadChannel`, `TooManyChannels`, and `BrokerError` after `aclose`.
        """
        if self._closed:
            raise BrokerError("these channels are closed")
        topic = self.prefixed(check_channel(channel))
        # Taken out and put in again: the order is that of opening, where the clock is too coarse to tell.
        store = self._stores.pop(topic, None) or self._new(topic)
        self._stores[topic] = store
        self._used[topic] = time.monotonic()
        return store

    def publish(
        self, channel: str, event: str | None, data: Any = None, *, key: str | None = None
    ) -> asyncio.Future[Position | None]:
        """Publish `data` under the name `event`; the channel need not be open here.

        The Future gives its position, or None where the broker keeps no history. With an idempotency `key`, what was
        published with the same key in the last 5 minutes is not published again. Raises `BadChannel`, `BadMessage`, and
        `BrokerError` through the Future.
        """
        return self.pubsub.submit(self.prefixed(check_channel(channel)), Message(data, event), key=key)

    async def aclose(self) -> None:
        """Close every channel and the broker's connections."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for topic in tuple(self._stores):
            self._close(topic)
        await self.pubsub.aclose()

    async def __aenter__(self) -> Channels:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _new(self, topic: str) -> ChannelStore:
        if len(self._stores) >= self.max_channels:
            self._make_room()
        store = ChannelStore(topic.removeprefix(self.namespace), self.pubsub, topic=topic, **self._bounds)
        store.open()
        if self._sweep is None:
            self._sweep_later()
        return store

    def _make_room(self) -> None:
        idle = self._idle(min(_GRACE, self.linger))
        if not idle:
            raise TooManyChannels(self.max_channels)
        # Some at a time: looking for them costs more than closing them.
        for topic in idle[: max(1, self.max_channels // 100)]:
            self._close(topic)

    def _idle(self, seconds: float) -> list[str]:
        """The channels without subscribers that were not used for `seconds`, the one unused for longest first."""
        now = time.monotonic()
        idle = [topic for topic, store in self._stores.items() if self._is_idle(topic, store, seconds, now)]
        return sorted(idle, key=self._used.__getitem__)

    def _is_idle(self, topic: str, store: ChannelStore, seconds: float, now: float) -> bool:
        if store.subscribers:
            return False
        # Whoever waits for the broker to confirm is about to register.
        return now - self._used[topic] >= (seconds if store.subscribed else max(seconds, _GRACE))

    def _sweep_later(self) -> None:
        """One timer for all channels. It looks at all of them in `_SWEEP` seconds; of very many it looks at some in
        each step, so as not to hold up the loop."""
        steps = len(self._stores) // _STEP + 1
        pause = max(min(_SWEEP, self.linger / 2) / steps, _STEP_PAUSE)
        self._round = steps * pause
        self._sweep = asyncio.get_running_loop().call_later(pause, self._sweep_some)

    def _sweep_some(self) -> None:
        """Close those that are not to be kept any longer."""
        if not self._unseen:
            self._unseen, self._seen_bytes = list(self._stores), 0
        some = self._unseen[-_STEP:]
        del self._unseen[-_STEP:]
        now = time.monotonic()
        for topic in some:
            store = self._stores.get(topic)
            if store is None:
                continue
            if self._is_idle(topic, store, self.linger, now):
                self._close(topic)
                continue
            if store.subscribers:
                self._used[topic] = now + self._round  # in use until we look again
            store.log.expire()
            self._seen_bytes += store.log.size
        if not self._unseen:
            self._make_lighter(self._seen_bytes)
        self._sweep = None
        if self._stores:
            self._sweep_later()

    def _make_lighter(self, size: int) -> None:
        if size > self.max_total_bytes:
            for topic in self._idle(min(_GRACE, self.linger)):
                size -= self._stores[topic].log.size
                self._close(topic)
                if size <= self.max_total_bytes:
                    break

    def _close(self, topic: str) -> None:
        self._stores.pop(topic).close()
        del self._used[topic]
