"""History: how much of a channel a broker keeps, and what it keeps and what comes live merged into one log.

Nothing here reads or writes anything but a log. Source of the order of things: subscribe, hold what comes, read, merge.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ._envelope import decoded
from ._log import Log
from ._message import Entry, Gap, Message
from ._position import Position
from ._segments import LOST
from ._stores import pieces

logger: Final = logging.getLogger("waterspout.core")

_PLACED: Final = re.compile(rb"\x1e([0-9a-f]{1,32})-([0-9]{1,18})\n").match

HIGHEST: Final = 10**18 - 1


@dataclass(frozen=True, slots=True)
class History:
    """What a broker keeps of each channel: the newest `messages`, none of them longer than `retention` seconds."""

    messages: int = 1000
    retention: float = 3600.0

    def __post_init__(self) -> None:
        if self.messages < 1:
            raise ValueError(f"a history keeps at least one message, not {self.messages}")
        if not 0 < self.retention <= 10 * 365 * 86400:
            raise ValueError(f"retention is a number of seconds, up to ten years, not {self.retention}")


@dataclass(frozen=True, slots=True)
class Past:
    """What a broker has of a channel: its last message is number `top` of `epoch`, and so is the last of `payloads`.

    They are without a hole, each with its age in seconds; a hole can only be before the first of them.
    """

    epoch: str
    top: int
    payloads: list[tuple[bytes, float]]

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.top)


class Merge:
    """What comes live and what is read of the history, merged into `log`: each message once and in order, or a `Gap`.

    It begins with `begin`, `start` or `recover`. While it is not `live`, because the log may lack what only the history
    has, what comes is held, and `recover` is waited for.
    """

    __slots__ = ("_heard", "_held", "_held_bytes", "_overrun", "_went_back", "begun", "breaks", "live", "log")

    def __init__(self, log: Log) -> None:
        self.log = log
        self.begun = False
        """Whether the log knows its place in the channel."""
        self.live = False
        self.breaks = 0
        """How often it was interrupted: what was read of the history before that may lack what came in the break."""
        self._heard = 0  # the highest number of this epoch that came live since the last break
        self._went_back = False  # a lower one came behind it: they are given out a second time
        self._held: list[bytes] | None = None  # most channels never need it
        self._held_bytes = 0
        self._overrun: list[bool] | None = None  # for each time that too much was held: whether it is in the history

    def begin(self, position: Position, grown: Callable[[], None], *, early: bool = False) -> None:
        """The channel stands at `position`, and what comes next is behind it. If somebody reads `early`, before that
        was known, it is told as a gap."""
        self.start(position, grown, early=early)
        self._go_on(grown)

    def start(self, position: Position, grown: Callable[[], None], *, early: bool = False) -> None:
        """The same where the channel stood at `position` a while ago: what came since is to be recovered."""
        self.begun = True
        self.log.begin(position)
        if early:
            self.log.append(Gap(), position)
            grown()

    def interrupt(self) -> None:
        """Something may be missing from now on."""
        self.live = False
        self.breaks += 1
        self._heard = 0

    def take(self, payloads: Sequence[bytes], grown: Callable[[], None]) -> None:
        """These came live. If one of them is not the next, it is not `live` any more. `grown` is called when the log
        has grown, more than once if need be (see `pieces`)."""
        if not self.live:
            self._hold(payloads)
            return
        run: list[Entry] = []
        offset = self.log.position.offset
        epoch = self.log.epoch.encode()
        for at, payload in enumerate(payloads):
            placed = _PLACED(payload)
            if placed is None:
                # Published without history: it has no place of its own, and nobody who comes back is given it.
                self._put(run, grown)
                run = []
                entry = decoded(payload)
                if entry is not None:
                    self.log.append(entry, self.log.position)
                    grown()
            elif placed[1] == epoch and self._heard < (number := int(placed[2])) <= offset + 1:
                self._heard = number
                if number > offset:  # else it was in the history that has been read
                    offset = number
                    run.append(decoded(payload[placed.end() :]) or Gap(1))
            else:
                # What comes live comes in order.
                self._went_back = self._went_back or (placed[1] == epoch and int(placed[2]) <= self._heard)
                self.live = False
                self._hold(payloads[at:])
                break
        self._put(run, grown)

    def lost_tail(self, past: Past) -> Position | None:
        """What the broker has forgotten though it is in the log: a failover to a replica that lagged behind, or back to
        an epoch that had ended. The numbers up to there are given out again, for other messages, so that there has
        to be a new epoch."""
        if past.epoch != self.log.epoch:
            had_before = self.log.cursor({past.epoch: HIGHEST}) != LOST
            return Position(past.epoch, past.top + 1) if had_before else None
        went_back = self._went_back or past.top < self.log.position.offset or self._differs(past)
        return self.log.position if self.begun and went_back else None

    def stands_at(self, end: Past) -> bool:
        """Whether the log has all of a channel that stands there."""
        same = self.begun and end.position == self.log.position
        return same and not self._went_back and not self._differs(end)

    def _differs(self, past: Past) -> bool:
        """Whether the last message of the log is another one in the history: then the tail was lost, and its numbers
        have been given out again before we asked."""
        log = self.log
        place = log.position.offset - past.top - 1  # in `payloads`, from their end
        first, entries = log.newest(1)
        if not entries or not -len(past.payloads) <= place < 0 or log.position_at(first - 1) == log.position:
            return False  # nobody can tell; or it is one that is not in the history
        theirs = decoded(past.payloads[place][0])
        return isinstance(entries[0], Message) and theirs is not None and theirs != entries[0]

    def recover(self, past: Past, grown: Callable[[], None], *, early: bool = False) -> None:
        """Fill in what was read of the history, then what was held."""
        if not self.begun:
            self.begin(past.position, grown, early=early)
            return
        known = self.log.position
        missing = past.top - known.offset if past.epoch == known.epoch else None
        payloads = past.payloads if missing is None else past.payloads[max(len(past.payloads) - missing, 0) :]
        if missing is None:
            self._heard, self._went_back = 0, False
        if missing is None or len(payloads) < missing:
            lost = None if missing is None else missing - len(payloads)
            self.log.append(Gap(lost), Position(past.epoch, past.top - len(payloads)))
            grown()
        for payload, age in payloads:
            self.log.append(decoded(payload) or Gap(1), age=age)
            grown()
        self._go_on(grown)

    def give_up(self, grown: Callable[[], None]) -> None:
        """The history cannot be read: a gap stands for what is missing, and what was held follows it."""
        position = self.log.position
        for payload in self._held or ():
            if placed := _PLACED(payload):
                before = Position(placed[1].decode(), int(placed[2]) - 1)
                if self.log.cursor(dict([before])) == LOST:  # else it went back
                    position = before
                break
        self.log.append(Gap(), position)
        self._heard = position.offset  # what was not heard until now is lost
        grown()
        self._overrun = None
        self._go_on(grown)

    def _go_on(self, grown: Callable[[], None]) -> None:
        """Take what was held. If some of that had to be dropped, the history has to be read once more."""
        if self._overrun:
            if not all(self._overrun):
                self.log.append(Gap(), self.log.position)
                grown()
            self._overrun = None
            return
        self.live = True
        held, self._held, self._held_bytes = self._held, None, 0
        while held:
            self.take(held, grown)
            if self.live:
                return
            # The history has been read after this one came, and does not have it: it is of an earlier life of the
            # channel, or nobody's.
            rest: list[bytes] = self._held or []
            self._held, self._held_bytes = None, 0
            logger.warning("dropped a message on %r whose position is not known: %r", self.log.channel, rest[0][:60])
            self.live, held = True, rest[1:]

    def _hold(self, payloads: Sequence[bytes]) -> None:
        if self._held is None:
            self._held = []
        self._held += payloads
        self._held_bytes += sum(map(len, payloads))
        if len(self._held) > self.log.max_messages or self._held_bytes > self.log.max_bytes:
            self._overrun = [*(self._overrun or ()), all(map(_PLACED, self._held))]
            self._held, self._held_bytes = None, 0

    def _put(self, run: list[Entry], grown: Callable[[], None]) -> None:
        if run:
            for piece in pieces(self.log, run):
                self.log.extend(piece)
                grown()
