"""Stores: each keeps the log of one channel and wakes its subscribers when it has grown."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, Self

from ._log import ENTRY_COST, Log, MiB, WhenBehind
from ._message import Entry, Gap, Message, Payload
from ._position import Position
from ._subscription import Subscription

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

    __slots__ = ("_index", "_log")

    def __init__(self, log: Log, index: int) -> None:
        self._log, self._index = log, index

    @property
    def position(self) -> Position:
        """Made when it is asked for: most who publish leave it alone."""
        return self._log.position_at(self._index)

    def __await__(self) -> Generator[Any, None, Position]:
        yield from ()
        return self.position


class BaseStore:
    """What all stores share: a log, subscribers, and one flush per turn of the loop.

    Subclass it to make a store of your own: set up in `initialize`, and let `submit` `append` what is to be
    delivered. A store can be made at module level, before any loop runs. Use it from the loop's thread, and from any
    other one by `submit_threadsafe` only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.subscribers: set[Subscriber] = set()
        self._woken: set[Subscriber] = set()  # they, or who is woken for them
        self.log = self._make_log()
        self._loop: asyncio.AbstractEventLoop | None = None  # where it was used last
        self._flushing: asyncio.AbstractEventLoop | None = None  # where a flush is due in this turn
        # How far the log was, in entries and bytes, when the subscribers were woken last.
        self._flushed_top = self._flushed_written = 0
        self.initialize(*args, **kwargs)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Hook for subclasses: gets what the constructor was given."""

    def _make_log(self) -> Log:
        return Log()

    @property
    def channel(self) -> str | None:
        """The name by which subscribers know what they read, if it has one."""
        return self.log.channel

    def register(self, subscriber: Subscriber, *, by: Subscriber | None = None) -> None:
        """From the next flush on, `subscriber` is woken, or `by` for it: one call for a whole audience, until that
        deregisters itself. Twice is once."""
        self._enter_loop()
        self.subscribers.add(subscriber)
        self._woken.add(by or subscriber)

    def deregister(self, subscriber: Subscriber) -> None:
        """Forget `subscriber`, known or not."""
        self.subscribers.discard(subscriber)
        self._woken.discard(subscriber)

    # Publishing

    def submit(self, data: Payload, event: str | None = None) -> Awaitable[Position | None]:
        """Publish `data`. Await it for its position, or leave it alone: it is under way already."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does with submitted data")

    def submit_threadsafe(self, data: Payload, event: str | None = None) -> concurrent.futures.Future[Position | None]:
        """`submit` from another thread than the loop's. The Future gives its position, or raises what `submit` does.

        Raises RuntimeError if no loop serves the store: nobody has registered, waited or submitted there yet.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            raise RuntimeError(
                "no event loop serves this store yet: register a subscriber or await store.ready() in it"
            )

        async def submit() -> Position | None:
            return await self.submit(data, event)

        return asyncio.run_coroutine_threadsafe(submit(), loop)

    def append(self, entry: Entry) -> Submitted:
        """Put a `Message` or a `Gap` into the log, and see to it that the subscribers are woken soon, once for a whole
        burst. What it returns may be awaited for its position, and is what `submit` should return."""
        if not isinstance(entry, Message | Gap):
            raise TypeError(f"append takes a Message or a Gap, not {entry!r:.80}")
        index = self.log.append(entry)
        self.grown()
        return Submitted(self.log, index)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Put many entries into the log, like `append`."""
        for piece in pieces(self.log, entries):
            self.log.extend(piece)
            self.grown()

    def grown(self) -> None:
        """The log has grown: see to it that the subscribers are woken soon, once for a whole burst."""
        if not self.subscribers:
            return
        log = self.log
        # A burst of more than the log holds must not pass by those who keep up: they read in the middle of it.
        # Not so for the latest value: who wants no other is spared all in between.
        entries, size = log.top - self._flushed_top, log.written - self._flushed_written
        if (entries * 2 > log.max_messages or size * 2 > log.max_bytes) and log.when_behind == "gap":
            self._flush()
            return
        loop = asyncio.get_running_loop()
        # Not a flag: a loop that was closed in between has taken its callback with it.
        if self._flushing is not loop:
            self._flushing = loop
            loop.call_soon(self._flush)

    def publish(self) -> None:
        """Wake every subscriber now. Happens by itself after each burst of `append`."""
        for subscriber in tuple(self._woken):
            try:
                subscriber.wake(self)
            except Exception:
                logger.exception("a subscriber failed and is left out from now on: %r", subscriber)
                self.deregister(subscriber)

    # Reading

    def cursor(self, offsets: Mapping[str, int] | None = None) -> int:
        """Where a subscriber begins, by what is in this process: behind the newest message, or where `offsets` (by
        epoch) say it stopped."""
        return self.log.top if offsets is None else self.log.cursor(offsets)

    async def seek(self, offsets: Mapping[str, int] | None = None) -> int:
        """The cursor of a subscriber that begins, or that stopped at `offsets` (by epoch), when the store is ready and
        has fetched what the broker keeps and this process does not have yet."""
        await self.ready()
        return self.cursor(offsets)

    def subscribe(self, after: Position | str | None = None) -> Subscription:
        """What is published from now on, or after the position or id `after` ("earliest": all that is kept)::

            async with store.subscribe(after=id) as messages:
                async for message in messages:
                    ...

        Each is a `Message`, or a `Gap` where some were lost. Raises `BadPosition`.
        """
        return Subscription(self, after)

    async def position(self) -> Position:
        """Where the log ends now. Read it, then the state that the messages change, then `subscribe(after=position)`:
        nothing that happens in between is missed."""
        await self.ready()
        return self.log.position

    async def history(self, limit: int) -> list[tuple[Position, Message]]:
        """The newest `limit` messages that are kept, the oldest of them first, with their positions. Like `position` it
        waits for a broker that is away."""
        await self.ready()
        first, entries = self.log.newest(limit)
        placed = zip(self.log.positions(first, len(entries)), entries, strict=True)
        return [(position, entry) for position, entry in placed if isinstance(entry, Message)]

    # Its life

    async def ready(self) -> None:
        """Return when whatever is published from now on will reach the log."""
        self._enter_loop()

    async def aclose(self) -> None:
        """Release all that the store holds beside its log."""

    async def __aenter__(self) -> Self:
        await self.ready()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _enter_loop(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # made and filled before a loop runs
            return

    def _flush(self) -> None:
        self._flushing = None
        self._flushed_top, self._flushed_written = self.log.top, self.log.written
        self.publish()


def pieces(log: Log, entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """`entries` in pieces that `log` holds at least two of, so that who keeps up can read between them."""
    most, room = max(log.max_messages // 2, 1), log.max_bytes // 2
    begin = size = 0
    for place, entry in enumerate(entries):
        cost = entry.size + ENTRY_COST
        if place > begin and (place - begin == most or size + cost > room):
            yield entries[begin:place]
            begin, size = place, 0
        size += cost
    yield entries[begin:]


class DataStore(BaseStore):
    """The latest value only: a log of length one.

    Whoever comes, comes back, or was slow gets the current value at once and nothing older. Values set in one
    turn of the loop are conflated: only the last of them is sent.
    """

    def __init__(self, initial_data: Payload = None) -> None:
        super().__init__()
        self._data: Payload = None
        if initial_data is not None:
            self.set_data(initial_data)

    def _make_log(self) -> Log:
        return Log(max_messages=1, when_behind="latest")

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
        return self.append(message)

    def cursor(self, offsets: Mapping[str, int] | None = None) -> int:
        """Before the current value, unless `offsets` say it has been seen."""
        top = self.log.top
        seen = offsets is not None and offsets.get(self.log.epoch) == top
        return top if seen else max(top - 1, 0)


class QueueStore(BaseStore):
    """Every message, in order, within a bound: whoever keeps up or comes back in time misses nothing.

    Beyond `max_messages` or `max_bytes` the oldest give way, and a subscriber that had not read them is told so
    by one `Gap` (`when_behind="gap"`), or goes on with the newest (`"latest"`). Nothing is kept for any subscriber but
    its cursor.
    """

    def __init__(
        self, *, max_messages: int = 10_000, max_bytes: int = 16 * MiB, when_behind: WhenBehind = "gap"
    ) -> None:
        self._bounds = max_messages, max_bytes, when_behind
        super().__init__()

    def _make_log(self) -> Log:
        max_messages, max_bytes, when_behind = self._bounds
        return Log(max_messages=max_messages, max_bytes=max_bytes, when_behind=when_behind)

    def submit(self, data: Payload, event: str | None = None) -> Submitted:
        """Publish `data` as one message. Raises `BadMessage`."""
        return self.append(Message(data, event))
