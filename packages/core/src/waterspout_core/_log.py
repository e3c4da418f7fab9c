"""The idea itself: a channel is a log, and a reader is a cursor in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar

from ._message import Entry, Gap
from ._position import Position, new_epoch

MiB: Final = 1024 * 1024

WhenBehind: TypeAlias = Literal["gap", "latest"]

T = TypeVar("T")

Encode: TypeAlias = "Callable[[Log, int, list[Entry]], T]"
"""Makes what goes on the wire of entries that stand in a log from an offset on. Equal ones make equal things."""

LOST: Final = -1
"""The cursor of a reader whose position this log does not know."""

_RUN_MESSAGES: Final = 1000
_RUN_BYTES: Final = 128 * 1024  # about what a socket takes at once; a reader far behind goes on when that is out
_SHARED_RUNS: Final = 32  # readers that lag are at many places: forget theirs before they cost more than the log
_ENTRY_COST: Final = 64  # what an entry costs beside its text, so that empty messages are bounded as well


class Log:
    """A ring of the newest messages of a channel, bounded by `max_messages` and `max_bytes`.

    `channel` is the name that readers know it by, if it has one. Messages are counted from 1 under an `epoch`. A
    cursor is the offset of the last message read: an int, which the log never needs to visit. What a cursor missed
    because the ring has moved past it is told by one `Gap` in the place of the last message lost
    (`when_behind="gap"`), or passed over in favour of the newest message (`when_behind="latest"`). The newest
    message is always kept, however large.

    >>> from waterspout_core import Log, Message
    >>> log = Log(max_messages=2)
    >>> for text in ("a", "b", "c"):
    ...     offset = log.append(Message(text))
    >>> log.read(after=2)
    (3, [Message('c')])
    >>> log.read(after=0)
    (1, [Gap(missed=1), Message('b'), Message('c')])
    """

    __slots__ = (
        "_bytes",
        "_entries",
        "_head",
        "_shared",
        "_start",
        "channel",
        "epoch",
        "max_bytes",
        "max_messages",
        "top",
        "when_behind",
        "written",
    )

    def __init__(
        self,
        *,
        max_messages: int = 10_000,
        max_bytes: int = 16 * MiB,
        when_behind: WhenBehind = "gap",
        channel: str | None = None,
        epoch: str | None = None,
    ) -> None:
        if max_messages < 1 or max_bytes < 1:
            raise ValueError("a log holds at least one message and one byte")
        if when_behind not in ("gap", "latest"):
            raise ValueError(f"when_behind is 'gap' or 'latest', not {when_behind!r}")
        self.channel = channel
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.when_behind = when_behind
        self.epoch = epoch or new_epoch()
        # The ring: a list whose first `_head` places have been given up. They are cut off when they are half of
        # it, so appending and trimming are O(1) on average and reading anywhere is one slice.
        self._entries: list[Entry | None] = []
        self._head = 0
        self._start = 1  # offset of the oldest entry kept
        self.top = 0
        """The offset of the newest entry; 0 if there never was one. Every reader looks here on every flush."""
        self.written = 0
        """Bytes of all entries that there ever were."""
        self._bytes = 0
        self._shared: dict[tuple[Encode[Any], int], tuple[Any, int]] = {}

    def __len__(self) -> int:
        """How many entries are kept."""
        return len(self._entries) - self._head

    @property
    def size(self) -> int:
        """What is kept, in bytes."""
        return self._bytes

    @property
    def start(self) -> int:
        """The offset of the oldest entry kept; of the next one if none is."""
        return self._start

    @property
    def position(self) -> Position:
        """The place behind the newest entry."""
        return Position(self.epoch, self.top)

    def append(self, entry: Entry) -> int:
        """Add `entry` as the newest, give up what is beyond the bounds, and return its offset."""
        self._entries.append(entry)
        self.top += 1
        cost = _cost(entry)
        self._bytes += cost
        self.written += cost
        if self._shared:
            self._shared.clear()
        while (len(self) > self.max_messages or self._bytes > self.max_bytes) and len(self) > 1:
            self._drop_oldest()
        return self.top

    def cursor(self, offsets: Mapping[str, int]) -> int:
        """The cursor for a reader that comes back with `offsets` (by epoch); `LOST` if they are not of this log."""
        offset = offsets.get(self.epoch, LOST)
        # Above the top is not "in the future": the log has lost its tail, and what is counted next is another message.
        return offset if offset <= self.top else LOST

    def read(self, after: int) -> tuple[int, list[Entry]]:
        """What stands behind the cursor `after`: the offset of the first entry, and the entries in order.

        At most a run of some hundred messages: the new cursor is `offset + len(entries) - 1`, and a reader that
        is still below `top` reads again.
        """
        top = self.top
        if after >= top:
            return top + 1, []
        lost = after < self._start - 1
        if lost and self.when_behind == "latest":
            after = top - 1
        begin = self._head + max(after + 1, self._start) - self._start
        entries = self._run(begin)
        if not lost or self.when_behind == "latest":
            return max(after + 1, self._start), entries
        missed = None if after == LOST else self._start - 1 - after
        return self._start - 1, [Gap(missed), *entries]

    def encoded(self, encode: Encode[T], after: int) -> tuple[T, int]:
        """What `encode` makes of the run behind `after`, and the new cursor.

        Nearly all readers stand at the same place: what one of them had made here is shared by the others.
        """
        key = (encode, after)
        found = self._shared.get(key)
        if found is None:
            first, entries = self.read(after)
            if len(self._shared) >= _SHARED_RUNS:
                self._shared.clear()
            found = self._shared[key] = (encode(self, first, entries), first + len(entries) - 1)
        return found

    def _run(self, begin: int) -> list[Entry]:
        run: list[Entry] = []
        room = _RUN_BYTES
        for entry in self._entries[begin : begin + _RUN_MESSAGES]:
            assert entry is not None
            run.append(entry)
            room -= _cost(entry)
            if room <= 0:
                break
        return run

    def _drop_oldest(self) -> None:
        oldest = self._entries[self._head]
        assert oldest is not None
        self._bytes -= _cost(oldest)
        self._entries[self._head] = None
        self._head += 1
        self._start += 1
        if self._head > 16 and self._head * 2 > len(self._entries):
            del self._entries[: self._head]
            self._head = 0


def _cost(entry: Entry) -> int:
    return _ENTRY_COST if isinstance(entry, Gap) else entry.size + _ENTRY_COST
