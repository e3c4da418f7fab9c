"""The channels of which Redis keeps a history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from .._envelope import decoded
from .._errors import BrokerError
from .._feeds import RemoteBroker, RemoteFeed
from .._history import HIGHEST, History, Merge, Past
from .._log import LOST, Log
from .._message import Gap
from .._position import EARLIEST, Position
from ._history import top_in

if TYPE_CHECKING:
    from .._pubsub import PubSub
    from ._pubsub import RedisPubSub


_PROMPT: Final = 1.0
"""Seconds: who began to read at most so long before the server said where the channel stands has begun there."""


class HistoryFeed(RemoteFeed):
    """Redis keeps the newest messages: what this process has not heard it reads there, once for all subscribers.

    Where the channel stands is asked as soon as somebody wants it, and what comes until the server has confirmed is
    read as well. So who begins to read while there is a link begins at once.
    """

    __slots__ = ("_asked_at", "_asking", "_complete", "_follows", "_merge", "_reader", "_unborn", "_waited", "_wanted")

    def __init__(self, topic: str, log: Log, history: History) -> None:
        super().__init__(topic, log, history)
        self._merge = Merge(log)
        self._follows = False  # since it was attached it has come to the top once
        self._asked_at: float | None = None  # when the server was asked where it stands, if that is not answered
        self._unborn = False  # nobody had published on it then
        self._waited = False  # somebody reads already
        self._complete = False  # nothing older can be had
        self._reader: asyncio.Task[None] | None = None
        self._wanted = 0
        self._asking: asyncio.Task[Position | None] | None = None

    @property
    def begun(self) -> bool:
        return self._follows

    @property
    def covered(self) -> bool:
        return self._asked_at is not None or self._unborn or self._merge.begun

    @property
    def live(self) -> bool:
        """Whether the log has all that has come."""
        return self._merge.live

    @property
    def breaks(self) -> int:
        """How often something may have been missed."""
        return self._merge.breaks

    @property
    def position(self) -> Position | None:
        """Where the log stands in the channel, if it is known."""
        return self.log.position if self._merge.begun else None

    def read_early(self) -> None:
        super().read_early()
        self._waited = True

    def ask(self, meta: asyncio.Future[list[Any]]) -> None:
        """There is a link, it is not `covered`, and `meta` will tell where the channel stands now."""
        self._asked_at = asked = time.monotonic()
        meta.add_done_callback(lambda answer: self._stood_at(answer, asked))

    def overtaken(self) -> None:
        """What is published now may be there before the server is asked: it goes on a connection of its own."""
        if self._asked_at is not None:
            self._early = self._early or self._waited

    def confirmed(self, broker: RemoteBroker) -> None:
        _redis(broker).recover((self,))

    def take(self, payloads: Sequence[bytes], broker: RemoteBroker) -> None:
        was_live = self._merge.live
        self._merge.take(payloads, self.grown)
        if was_live and not self._merge.live:
            _redis(broker).recover((self,))

    def away(self) -> None:
        """The link has broken. Of a channel on which nobody had published nothing will tell whether the server lost
        what was published since."""
        if self._unborn:
            self._early = self._early or self._waited

    def broken(self) -> bool:
        self._merge.interrupt()
        return True

    # What the recovery tells

    @property
    def bare(self) -> bool:
        """Whether it has nothing yet from which another message of the same number could be told."""
        return not len(self.log)

    @property
    def last_size(self) -> int:
        """Bytes of the last message in the log."""
        _, entries = self.log.newest(1)
        return entries[0].size if entries else 0

    def stands_at(self, end: Past) -> bool:
        """The channel stands there. Whether there is nothing to be read."""
        self._be_born(end)
        if not self._merge.begun:
            self._merge.begin(end.position, self.grown, early=self._early)
            self._tell_ready()
        elif self._merge.stands_at(end):
            self._merge.recover(end, self.grown)
            self._tell_ready()
        return self._merge.live

    def lost_tail(self, past: Past) -> Position | None:
        return self._merge.lost_tail(past)

    def recover(self, past: Past) -> None:
        if self._be_born(past) and past.top:
            return  # which is not all of it
        self._merge.recover(past, self.grown, early=self._early)
        self._tell_ready()

    def give_up(self) -> None:
        """What is missing cannot be read."""
        if self._merge.begun:
            self._merge.give_up(self.grown)
            self._tell_ready()

    def _stopped(self) -> None:
        self._follows = self._unborn = False
        self._not_covered()
        self._merge.interrupt()

    def _tell_ready(self) -> None:
        self._follows, self._waited = True, False
        super()._tell_ready()

    # Where it stood at first

    def _stood_at(self, answer: asyncio.Future[list[Any]], asked: float) -> None:
        failed = answer.cancelled() or answer.exception() is not None  # which is looked at, whoever wants it
        if asked != self._asked_at:
            return  # it was stopped meanwhile
        late = time.monotonic() - asked > _PROMPT
        meta = None if failed else answer.result()[0]
        top = top_in(meta)
        if failed or late or (top is None and meta is not None):
            self._not_covered()
        self._asked_at = None
        if top is not None:
            self._merge.start(top, self.grown, early=self._early)
        elif not failed:
            self._unborn = meta is None

    def _be_born(self, past: Past) -> bool:
        """Now we know how it was numbered from the first message on."""
        if self._asked_at is not None:  # what was asked behind it is answered first
            self._not_covered()
        born, self._unborn = self._unborn and not self._merge.begun, False
        if born:
            self._merge.start(Position(past.epoch, 0), self.grown, early=self._early)
        return born

    def _not_covered(self) -> None:
        self._asked_at = None
        self._early = self._early or (self._waited and not self._merge.begun)

    # Older messages

    async def reach(self, offsets: Mapping[str, int], pubsub: PubSub) -> None:
        # Who has been where we are not may come from a process that has heard more than this one, until now.
        for _ in range(3):
            if self.log.cursor(offsets) != LOST:
                break
            if self._merge.live:
                asked_before = self._asking is not None
                known = await self._is_known(offsets, _redis(pubsub))
                if known is False and asked_before:
                    continue  # it may have been answered before that position was given
                if known is False:
                    break  # ids that somebody made up shall not hold up the channel
                if self._merge.live:
                    self._merge.interrupt()
                    _redis(pubsub).recover((self,))
            await asyncio.shield(self._wait())
        while (offset := self._lacking(offsets)) is not None:
            if self._reader is None:
                self._wanted = offset
                self._reader = asyncio.create_task(self._read_older(_redis(pubsub)))
                self._reader.add_done_callback(_retrieved)
            else:
                self._wanted = min(self._wanted, offset)
            # Shielded: one impatient reader must not take it from the others.
            await asyncio.shield(self._reader)

    async def _is_known(self, offsets: Mapping[str, int], pubsub: RedisPubSub) -> bool | None:
        """Whether the channel has been at `offsets`; None if nobody can say now. It is asked once for all who want to
        know."""
        if self._asking is None:
            self._asking = asyncio.create_task(pubsub.top(self.topic))
            self._asking.add_done_callback(self._asked)
        try:
            top = await asyncio.shield(self._asking)
        except BrokerError:
            return None
        return top is not None and offsets.get(top.epoch, HIGHEST) <= top.offset

    def _asked(self, answer: asyncio.Task[Position | None]) -> None:
        self._asking = None
        _retrieved(answer)

    def _lacking(self, offsets: Mapping[str, int]) -> int | None:
        """The offset behind which messages are wanted that the log does not hold, and Redis may."""
        oldest = self.log.position_at(self.log.start - 1)
        wanted = 0 if EARLIEST in offsets else offsets.get(oldest.epoch)
        if self._complete or wanted is None or wanted >= oldest.offset or oldest.epoch != self.log.epoch:
            return None
        assert self.history is not None
        full = len(self.log) >= self.history.messages
        return None if full else wanted

    async def _read_older(self, pubsub: RedisPubSub) -> None:
        try:
            await asyncio.sleep(0)  # all who ask in this turn are served by one answer
            wanted = self._wanted  # somebody may want more meanwhile
            past = await pubsub.read(self.topic, Position(self.log.epoch, wanted))
            oldest = self.log.position_at(self.log.start - 1)
            first = past.top - len(past.payloads) + 1
            older = past.payloads[: max(oldest.offset - first + 1, 0)]
            if past.epoch != oldest.epoch or past.top < oldest.offset:
                self._complete = True  # the recovery will see to that
                return
            entries = [decoded(payload) or Gap(1) for payload, _ in older]
            fitted = self.log.prepend(entries, [age for _, age in older])
            self._complete = first > wanted + 1 or fitted < len(older)
        finally:
            self._reader = None


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Whoever wanted to know what became of it may have gone."""
    if not task.cancelled():
        task.exception()


def _redis(broker: PubSub | RemoteBroker) -> RedisPubSub:
    """The one that made the feed."""
    return cast("RedisPubSub", broker)
