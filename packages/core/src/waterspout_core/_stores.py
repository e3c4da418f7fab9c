"""Stores: each keeps the log of one channel and wakes its subscribers when it has grown."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Generator, Mapping
from typing import Any, Final, Protocol

from ._log import Log, MiB
from ._message import Entry, Message, Payload
from ._position import Position
from ._soon import Soon

logger: Final = logging.getLogger("waterspout.core")


class Subscriber(Protocol):
    """Whoever reads a store: a cursor, and a way to be told that there is more."""

    def wake(self, store: BaseStore) -> None:
        """The log of `store` has grown past your cursor: read on. Must neither block nor raise."""


class Source(Protocol):
    """Opens the store of a channel by its name."""

    def open(self, channel: str) -> BaseStore:
        """The store of `channel`; the same one for as long as it has subscribers. Raises `BadChannel`."""


class Submitted(Awaitable[Position]):
    """The position of a message that is in the log already; it may be awaited or left alone."""

    __slots__ = ("position",)

    def __init__(self, position: Position) -> None:
        self.position = position

    def __await__(self) -> Generator[Any, None, Position]:
        yield from ()
        return self.position


class BaseStore:
    """What all stores share: a log, subscribers, and one flush per turn of the loop.

    Subclass it to make a store of your own: set up in `initialize`, and let `submit` `append` what is to be
    delivered. A store can be made at module level, before any loop runs. Use it from the loop's thread only; from
    another thread, `loop.call_soon_threadsafe(store.submit, data)`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.subscribers: set[Subscriber] = set()
        self.log = Log()
        self._flush_soon = Soon()
        self._published = (0, 0)  # how far the log was, in entries and bytes, when the subscribers were woken last
        self.initialize(*args, **kwargs)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Hook for subclasses: gets what the constructor was given."""

    @property
    def channel(self) -> str | None:
        """The name by which subscribers know what they read, if it has one."""
        return self.log.channel

    def register(self, subscriber: Subscriber) -> None:
        """From the next flush on, `subscriber` is woken. Twice is once."""
        self.subscribers.add(subscriber)

    def deregister(self, subscriber: Subscriber) -> None:
        """Forget `subscriber`, known or not."""
        self.subscribers.discard(subscriber)

    def submit(self, data: Payload, event: str | None = None) -> Awaitable[Position | None]:
        """Publish `data`. Await it for its position, or leave it alone: it is under way already."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does with submitted data")

    async def ready(self) -> None:
        """Return when whatever is published from now on will reach the log."""

    async def aclose(self) -> None:
        """Release all that the store holds beside its log."""

    def cursor(self, offsets: Mapping[str, int] | None = None) -> int:
        """Where a subscriber begins: behind the newest message, or where `offsets` (by epoch) say it stopped."""
        return self.log.top if offsets is None else self.log.cursor(offsets)

    def append(self, entry: Entry) -> Position:
        """Put `entry` into the log and see to it that the subscribers are woken soon, once for a whole burst."""
        log = self.log
        offset = log.append(entry)
        if self.subscribers:
            entries, size = self._published
            # A burst of more than the log holds must not pass by those who keep up: they read in the middle of it.
            # Not so for the latest value: who wants no other is spared all in between.
            long = (offset - entries) * 2 > log.max_messages or (log.written - size) * 2 > log.max_bytes
            if long and log.when_behind == "gap":
                self._flush()
            else:
                self._flush_soon(self._flush)
        return Position(log.epoch, offset)

    def publish(self) -> None:
        """Wake every subscriber now. Happens by itself after each burst of `append`."""
        for subscriber in tuple(self.subscribers):
            try:
                subscriber.wake(self)
            except Exception:
                logger.exception("a subscriber failed and is left out from now on: %r", subscriber)
                self.deregister(subscriber)

    def _flush(self) -> None:
        self._published = (self.log.top, self.log.written)
        self.publish()

    async def __aenter__(self) -> BaseStore:
        await self.ready()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class DataStore(BaseStore):
    """The latest value only: a log of length one.

    Whoever comes, comes back, or was slow gets the current value at once and nothing older. Values set in one
    turn of the loop are conflated: only the last of them is sent.
    """

    def __init__(self, initial_data: Payload = None) -> None:
        super().__init__()
        self.log = Log(max_messages=1, when_behind="latest")
        self._data: Payload = None
        if initial_data is not None:
            self.set_data(initial_data)

    @property
    def data(self) -> Payload:
        """The current value; setting it publishes it."""
        return self._data

    @data.setter
    def data(self, value: Payload) -> None:
        self.submit(value)

    def set_data(self, value: Payload) -> None:
        """Set and publish the current value."""
        self.submit(value)

    def submit(self, data: Payload, event: str | None = None) -> Submitted:
        """Set and publish the current value. Raises `BadMessage`."""
        message = Message(data, event)
        self._data = data
        return Submitted(self.append(message))

    def cursor(self, offsets: Mapping[str, int] | None = None) -> int:
        """Before the current value, unless `offsets` say it has been seen."""
        top = self.log.top
        seen = offsets is not None and offsets.get(self.log.epoch) == top
        return top if seen else max(top - 1, 0)


class QueueStore(BaseStore):
    """Every message, in order, within a bound: whoever keeps up or comes back in time misses nothing.

    Beyond `max_messages` or `max_bytes` the oldest give way, and a subscriber that had not read them is told so
    by one `Gap`. Nothing is kept for any subscriber but its cursor.
    """

    def __init__(self, *, max_messages: int = 10_000, max_bytes: int = 16 * MiB) -> None:
        super().__init__()
        self.log = Log(max_messages=max_messages, max_bytes=max_bytes)

    def submit(self, data: Payload, event: str | None = None) -> Submitted:
        """Publish `data` as one message. Raises `BadMessage`."""
        return Submitted(self.append(Message(data, event)))
