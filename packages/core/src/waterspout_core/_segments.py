"""What binds a log to the outside: which position stands at each of its indexes, and which index at a position."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Mapping
from itertools import repeat
from operator import attrgetter
from typing import Final, NamedTuple

from ._position import NOWHERE, Position

LOST: Final = -(1 << 62)
"""The cursor of a reader whose position is not known here: far below every index."""


class Segment(NamedTuple):
    """Entries that are counted on in one epoch, up to the index `last`: their offsets are index + `shift`."""

    last: int
    epoch: str
    shift: int


_last: Final = attrgetter("last")


class Segments:
    """The segments of one log, of which the newest still grows.

    Most logs have one only. Another one begins where the count does not simply go on: behind messages that were
    lost, in a new epoch, at a message that has no number of its own.
    """

    __slots__ = ("_ended", "_shift", "epoch", "floor")

    def __init__(self, epoch: str, shift: int = 0) -> None:
        self.epoch = epoch
        """Of the newest segment."""
        self.floor = -shift
        """The lowest cursor that has a position: the place before message 1, or the first one that is remembered."""
        self._shift = shift
        self._ended: list[Segment] | None = None  # the oldest first; most logs never need it

    def turn(self, top: int, position: Position) -> None:
        """What comes behind the index `top` stands at `position`. Raises ValueError if the epoch was further before."""
        epoch, offset = position
        if epoch == self.epoch:
            if offset == top + self._shift + 1:
                return
            back = offset < top + self._shift
        else:
            back = any(ended.epoch == epoch and offset <= ended.last + ended.shift for ended in self._ended or ())
        if back:
            raise ValueError(f"{position} is not above what was counted before: to count again takes a new epoch")
        if self._ended is None:
            self._ended = []
        self._ended.append(Segment(top, self.epoch, self._shift))
        self.epoch = epoch
        self._shift = offset - top - 1

    def forget(self, start: int) -> None:
        """No index below `start` is kept any more; the place just before it still has its position."""
        if self._ended and self._ended[0].last < start - 1:
            gone = bisect_left(self._ended, start - 1, key=_last)
            self.floor = self._ended[gone - 1].last + 1
            del self._ended[:gone]

    def at(self, index: int) -> Position:
        """The position of `index`; `NOWHERE` if it is `LOST`, or so far behind that it is forgotten."""
        if index < self.floor:
            return NOWHERE
        if not self._ended:
            return Position(self.epoch, index + self._shift)
        _, epoch, shift = self._holding(index)
        return Position(epoch, index + shift)

    def run(self, first: int, count: int) -> list[Position]:
        """The positions of `count` indexes from `first` on, none of which is forgotten."""
        positions: list[Position] = []
        end = first + count
        while first < end:
            last, epoch, shift = self._holding(first)
            stop = min(last + 1, end)
            positions += map(Position, repeat(epoch), range(first + shift, stop + shift))
            first = stop
        return positions

    def find(self, offsets: Mapping[str, int], top: int) -> int:
        """The largest index up to `top` whose position is at or before that in `offsets` (by epoch), or `LOST`."""
        # Above the top is not "in the future": the tail has been lost, and what is counted next is another message.
        if offsets.get(self.epoch, LOST) > top + self._shift:
            return LOST
        segments: list[Segment] = [*(self._ended or ()), Segment(top, self.epoch, self._shift)]
        while segments:
            last, epoch, shift = segments.pop()
            index = offsets.get(epoch, LOST) - shift
            # Before the oldest segment's first entry were others of it, which are not kept.
            if epoch in offsets and (not segments or index > segments[-1].last):
                return min(index, last)
        return LOST

    def _holding(self, index: int) -> Segment:
        ended = self._ended
        if ended and index <= ended[-1].last:
            return ended[bisect_left(ended, index, key=_last)]
        return Segment(sys.maxsize, self.epoch, self._shift)
