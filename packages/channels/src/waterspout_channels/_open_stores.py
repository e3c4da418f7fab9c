"""The stores of the open channels: made when somebody wants them, and let go when nobody has for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from typing import Final

from waterspout_core import ChannelStore, PubSub, TooManyChannels

_GRACE: Final = 10.0
"""Seconds for which an opened store is nobody else's to close: whoever opened it is about to register."""

_SWEEP: Final = 5.0
"""Seconds in which all channels are looked at for what may be closed; less where `linger` is short."""

_STEP: Final = 1000
_STEP_PAUSE: Final = 0.1
"""Very many channels take longer: so many in a step, and so many seconds at least between two steps."""


class OpenStores(Collection[ChannelStore]):
    """The open channels' stores, the one opened last at the end.

    One that nobody reads is kept for `linger` seconds after it was last used. There are never more than `max_channels`,
    those that the program holds not counted; when all logs together exceed `max_total_bytes`, those unused for longest
    go first. `max_messages` and `max_bytes` bound each log.
    """

    def __init__(
        self,
        pubsub: PubSub,
        *,
        linger: float,
        max_channels: int,
        max_messages: int,
        max_bytes: int,
        max_total_bytes: int,
    ) -> None:
        if linger < 0 or max_channels < 0:
            raise ValueError(f"linger (seconds) and max_channels are 0 or more, not {linger!r} and {max_channels!r}")
        self.linger = linger
        self.max_channels = max_channels
        self.max_total_bytes = max_total_bytes
        self._pubsub = pubsub
        self._bounds = {"max_messages": max_messages, "max_bytes": max_bytes}
        self._stores: dict[str, ChannelStore] = {}  # by topic, the one opened last at the end
        self._used: dict[str, float] = {}  # when last, by topic; of those held: when somebody opened them
        self._held: set[str] = set()  # topics
        self._awaited: set[str] = set()  # topics that were opened, and had no subscriber yet when we looked
        self._sweep: asyncio.TimerHandle | None = None
        self._unseen: list[str] = []  # topics that this round has not come to
        self._seen_bytes = 0  # of the logs that it has seen
        self._round = 0.0  # seconds that it takes

    def __len__(self) -> int:
        return len(self._stores)

    def __iter__(self) -> Iterator[ChannelStore]:
        return iter(tuple(self._stores.values()))

    def __contains__(self, store: object) -> bool:
        return isinstance(store, ChannelStore) and self._stores.get(store.topic) is store

    def open(self, topic: str, channel: str) -> ChannelStore:
        """The store of `channel`, which the broker knows as `topic`. Raises `TooManyChannels`."""
        # Taken out and put in again: the order is that of opening, where the clock is too coarse to tell.
        store = self._stores.pop(topic, None)
        if store is None:
            if len(self._stores) - len(self._held) >= self.max_channels:
                self._make_room()
            store = self._new(topic, channel)
        self._stores[topic] = store
        self._used[topic] = time.monotonic()
        self._awaited.add(topic)
        return store

    def hold(self, topic: str, channel: str) -> ChannelStore:
        """The same for one that the program itself wants until it calls `release`: it is not counted."""
        store = self._stores.get(topic)
        if store is None:
            store = self._stores[topic] = self._new(topic, channel)
        self._held.add(topic)
        return store

    def release(self, topic: str) -> None:
        """The program does not want `topic` any more. It lingers, unless there is no room for that."""
        self._held.discard(topic)
        store, now = self._stores[topic], time.monotonic()
        opened, self._used[topic] = self._used.get(topic, -_GRACE), now
        no_room = not self.linger or len(self._stores) - len(self._held) > self.max_channels
        if no_room and not store.subscribers and now - opened >= _GRACE:
            self._close(topic)

    def close(self) -> None:
        """Close all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for topic in tuple(self._stores):
            self._close(topic)

    def _new(self, topic: str, channel: str) -> ChannelStore:
        store = ChannelStore(channel, self._pubsub, topic=topic, **self._bounds)
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
        if store.subscribers or topic in self._held:
            return False
        # Whoever waits for the broker to confirm, or for another channel, is about to register.
        awaited = topic in self._awaited or not store.subscribed
        return now - self._used[topic] >= (max(seconds, _GRACE) if awaited else seconds)

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
            if store.subscribers and topic not in self._held:
                self._used[topic] = now + self._round  # in use until we look again
                self._awaited.discard(topic)
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
        self._held.discard(topic)
        self._used.pop(topic, None)
        self._awaited.discard(topic)
