"""The idea itself: a channel is a log, and a reader is a cursor in it."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias, TypeVar

from ._message import Entry, Gap
from ._position import EARLIEST, Position, new_epoch
from ._segments import LOST as LOST
from ._segments import Segments

MiB: Final = 1024 * 1024

WhenBehind: TypeAlias = Literal["gap", "latest"]

T = TypeVar("T")

Encode: TypeAlias = "Callable[[Log, int, list[Entry]], T]"
"""Makes what goes on the wire of entries that stand in a log from an index on. Equal ones make equal things."""

_RUN_MESSAGES: Final = 1000
_RUN_BYTES: Final = 128 * 1024  # about what a socket takes at once; a reader far behind goes on when that is out
_SHARED_RUNS: Final = 32  # readers that lag are at many places: forget theirs before they cost more than the log
ENTRY_COST: Final = 64  # what an entry costs beside its text, so that empty messages are bounded as well
_GONE: Final = Gap()  # stands in the ring where an entry has been given up

_size: Final = attrgetter("size")


class Log:
    """A ring of the newest messages of a channel, bounded by `max_messages`, `max_bytes` and `max_age` (seconds).

    `channel` is the name that readers know it by, if it has one. A cursor is the index of the last entry read: an int
    that the log never needs to visit, and that means nothing outside this process. What leaves the process is a
    `Position`: an epoch, and an offset that is counted from 1 in it. In a log that counts by itself index and offset
    are the same.

    What a cursor missed because the ring has moved past it is told by one `Gap` in the place of the last message lost
    (`when_behind="gap"`), or passed over in favour of the newest message (`when_behind="latest"`). However large,
    the newest message is kept until it is too old.

    >>> from waterspout_core import Log, Message
    >>> log = Log(max_messages=2)
    >>> for text in ("a", "b", "c"):
    ...     index = log.append(Message(text))
    >>> log.read(after=2)
    (3, [Message('c')])
    >>> log.read(after=0)
    (1, [Gap(missed=1), Message('b'), Message('c')])
    """

    __slots__ = (
        "_bytes",
        "_clock",
        "_countable",
        "_entries",
        "_gaps",
        "_head",
        "_segments",
        "_shared",
        "_times",
        "channel",
        "max_age",
        "max_bytes",
        "max_messages",
        "start",
        "top",
        "when_behind",
        "written",
    )

    def __init__(
        self,
        *,
        max_messages: int = 10_000,
        max_bytes: int = 16 * MiB,
        max_age: float | None = None,
        when_behind: WhenBehind = "gap",
        channel: str | None = None,
        epoch: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_messages < 1 or max_bytes < 1:
            raise ValueError("a log holds at least one message and one byte")
        if max_age is not None and not max_age > 0:
            raise ValueError(f"max_age is a number of seconds above 0, not {max_age!r}")
        if when_behind not in ("gap", "latest"):
            raise ValueError(f"when_behind is 'gap' or 'latest', not {when_behind!r}")
        self.channel = channel
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.when_behind = when_behind
        self.top = 0
        """The index of the newest entry; 0 if there never was one. Every reader looks here on every flush."""
        self.start = 1
        """The index of the oldest entry kept; of the next one if none is."""
        self.written = 0
        """Bytes of all entries that were ever appended."""
        # The ring: a list whose first `_head` places have been given up. They are cut off when they are half of
        # it, so appending and trimming are O(1) on average and reading anywhere is one slice.
        self._entries: list[Entry] = []
        self._head = 0
        self._bytes = 0
        self._clock = clock
        # What most of 100,000 idle logs never need is made when it is needed.
        self._times: array[float] | None = None  # when each place of the ring was written, by the clock
        self._gaps: list[int] | None = None  # where those gaps stand that are entries themselves
        self._shared: dict[tuple[Encode[Any], int], tuple[Any, int]] | None = None
        self._segments = Segments(epoch or new_epoch())
        self._countable = 0  # the lowest cursor from which nothing was lost but messages that can be counted

    def __len__(self) -> int:
        """How many entries are kept."""
        return self.top + 1 - self.start

    @property
    def size(self) -> int:
        """What is kept, in bytes."""
        return self._bytes

    @property
    def epoch(self) -> str:
        """The epoch in which it counts now."""
        return self._segments.epoch

    @property
    def position(self) -> Position:
        """The place behind the newest entry."""
        return self._segments.at(self.top)

    # Writing

    def begin(self, position: Position) -> None:
        """What comes next stands behind `position`. Raises RuntimeError if there are, or were, entries."""
        if self.top or len(self):
            raise RuntimeError("a log that has begun goes on where it is")
        self._segments = Segments(*position)
        self._countable = self._segments.floor

    def append(self, entry: Entry, position: Position | None = None, age: float = 0.0) -> int:
        """Add `entry`, `age` seconds old, as the newest, give up what is beyond the bounds, and return its index.

        Without a `position` it is counted on. With one, it stands there: a `Gap` where the last of the messages stood
        that it tells of, a message that nobody numbered where the one before it stands. What was lost before
        `entry` is told by a `Gap` only if the caller has appended one. Raises ValueError if `position` is below
        one that the log has had in the same epoch.
        """
        size = entry.size  # first, so that what is no entry changes nothing
        if position is not None:
            self._segments.turn(self.top, position)
        self._entries.append(entry)
        if isinstance(entry, Gap):
            self._note_gaps((entry,), self.top + 1)
        return self._grow(1, size, age)

    def extend(self, entries: Sequence[Entry], age: float = 0.0) -> int:
        """Add many entries, all `age` seconds old and counted on; return the index of the newest."""
        size = sum(map(_size, entries))
        self._entries += entries
        if Gap in map(type, entries):
            self._note_gaps(entries, self.top + 1)
        return self._grow(len(entries), size, age)

    def prepend(self, entries: Sequence[Entry], ages: Sequence[float]) -> int:
        """Put back older messages, of which the newest stands at `position_at(start - 1)` and the others before it.

        As many of the newest of them are taken as the bounds allow, but none where there was a gap, for the gap told of
        them. `ages` are in seconds. Returns how many.
        """
        most = min(self.max_messages - len(self), self.start - 1 - max(self._countable, self._segments.floor))
        room = self.max_bytes - self._bytes
        size = number = 0
        for entry, age in zip(reversed(entries), reversed(ages), strict=True):
            cost = entry.size + ENTRY_COST
            if number == most or size + cost > room or (self.max_age is not None and age > self.max_age):
                break
            number += 1
            size += cost
        newest = slice(len(entries) - number, None)
        self._entries[: self._head] = entries[newest]
        self._note_gaps(entries[newest], self.start - number)
        if self.max_age is not None:
            times = self._times = self._times or array("d")
            now = self._clock()
            times[: self._head] = array("d", [now - age for age in ages[newest]])
        self._head = 0
        self.start -= number
        self._bytes += size
        self._shared = None
        return number

    def expire(self) -> None:
        """Give up what is older than `max_age`. Happens by itself at each `append`, `cursor` and `newest`."""
        if self._times:
            self._trim(self._clock())

    # Positions

    def position_at(self, cursor: int) -> Position:
        """The place behind `cursor`, for a reader that goes away; `NOWHERE` if it is `LOST` or forgotten."""
        return self._segments.at(cursor)

    def positions(self, first: int, count: int) -> list[Position]:
        """The places behind `count` entries from the index `first` on, as they were `read`."""
        return self._segments.run(first, count)

    def cursor(self, offsets: Mapping[str, int]) -> int:
        """The cursor for a reader that comes back with `offsets` (by epoch), or asks for the `EARLIEST`.

        It is below `start - 1` by as many as were given up behind it, and `LOST` if the offsets are not of this log.
        """
        self.expire()
        return self.start - 1 if EARLIEST in offsets else self._segments.find(offsets, self.top)

    # Reading

    def read(self, after: int) -> tuple[int, list[Entry]]:
        """What stands behind the cursor `after`: the index of the first entry, and the entries in order.

        At most a run of some hundred messages: the new cursor is `first + len(entries) - 1`, and a reader that
        is still below `top` reads again.
        """
        top, edge = self.top, self.start - 1
        if after >= top:
            return top + 1, []
        if after >= edge:
            return after + 1, self._run(after + 1)
        if self.when_behind == "latest":
            newest = max(top, self.start)  # of a log that time has emptied: none
            return newest, self._run(newest)
        return edge, [Gap(edge - after if after >= self._countable else None), *self._run(self.start)]

    def encoded(self, encode: Encode[T], after: int) -> tuple[T, int]:
        """What `encode` makes of the run behind `after`, and the new cursor.

        Nearly all readers stand at the same place: what one of them had made here is shared by the others.
        """
        if self._shared is None:
            self._shared = {}
        key = (encode, after)
        found = self._shared.get(key)
        if found is None:
            first, entries = self.read(after)
            if len(self._shared) >= _SHARED_RUNS:
                self._shared.clear()
            found = self._shared[key] = (encode(self, first, entries), first + len(entries) - 1)
        return found

    def newest(self, count: int) -> tuple[int, list[Entry]]:
        """The newest `count` entries that are kept: the index of the first of them, and all of them in order."""
        self.expire()
        first = max(self.top + 1 - max(count, 0), self.start)
        return first, self._entries[self._head + first - self.start :]

    def _run(self, first: int) -> list[Entry]:
        begin = self._head + first - self.start
        run = self._entries[begin : begin + _RUN_MESSAGES]
        room = _RUN_BYTES
        for number, entry in enumerate(run, 1):
            room -= entry.size + ENTRY_COST
            if room <= 0:
                del run[number:]
                break
        return run

    def _note_gaps(self, entries: Sequence[Entry], first: int) -> None:
        if self._gaps is None:
            self._gaps = []
        at = bisect_left(self._gaps, first)
        self._gaps[at:at] = [index for index, entry in enumerate(entries, first) if isinstance(entry, Gap)]

    def _grow(self, number: int, size: int, age: float) -> int:
        """`number` entries of `size` bytes stand in the ring: count them, and give up what they displace."""
        size += number * ENTRY_COST
        self.top += number
        self.written += size
        self._bytes += size
        self._shared = None
        if self.max_age is not None:
            if self._times is None:
                self._times = array("d")
            now = self._clock()
            self._times.extend([now - age] * number)
            self._trim(now)
        elif self._bytes > self.max_bytes or self.top - self.start >= self.max_messages:
            self._trim()
        return self.top

    def _trim(self, now: float = 0.0) -> None:
        """Give up the oldest until what is left is within the bounds."""
        entries, times, size = self._entries, self._times, self._bytes
        end = len(entries)
        beyond = end - self.max_messages  # the places below are too many
        oldest = now - (self.max_age or 0.0)
        head = self._head
        while head < end and (
            head < beyond
            or (size > self.max_bytes and head < end - 1)  # the newest is kept however large
            or (times is not None and times[head] < oldest)
        ):
            size -= entries[head].size + ENTRY_COST
            entries[head] = _GONE
            head += 1
        if head == self._head:
            return
        self.start += head - self._head
        self._head = head
        self._bytes = size
        self._shared = None
        self._segments.forget(self.start)
        if self._gaps and self._gaps[0] < self.start:
            gone = bisect_left(self._gaps, self.start)
            self._countable = self._gaps[gone - 1]
            del self._gaps[:gone]
        if head > 16 and head * 2 > end:
            del entries[:head]
            if times is not None:
                del times[:head]
            self._head = 0
