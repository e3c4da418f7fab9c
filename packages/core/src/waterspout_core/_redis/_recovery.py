"""Brings channels to the top of their history: when they are opened, after a break, and where one is missing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from waterspout_redis import RedisError

from .._history import HIGHEST, Past
from .._log import MiB
from .._position import Position
from ._errors import is_final, translated_error
from ._feeds import HistoryFeed
from ._history import RedisHistory

logger: Final = logging.getLogger("waterspout.core")

GAP_DEADLINE: Final = 10.0
"""Seconds for which a hole may wait for the history to be read; then it is told as a gap."""

_TOPS: Final = 1000  # channels asked in one pipeline
_ENDS_BYTES: Final = 4 * MiB  # about, of their last messages
_READERS: Final = 32  # histories read at the same time
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 1.0


def is_running(task: asyncio.Task[None] | None) -> bool:
    """Whether there is one, and in this loop: what ran in another one has ended with that."""
    return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()


class Recovery:
    """One task for the whole process, and only while there is something to be done: first the tops of all channels in
    one pipeline, then the history of those that lack something."""

    def __init__(self, history: RedisHistory, is_connected: Callable[[], bool]) -> None:
        self._history, self._is_connected = history, is_connected
        self._behind: dict[HistoryFeed, float] = {}  # since when
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, feeds: Iterable[HistoryFeed]) -> None:
        """See to these."""
        if self._closed:
            return
        now = time.monotonic()
        for feed in feeds:
            self._behind.setdefault(feed, now)
        if not is_running(self._task):
            self._task = asyncio.create_task(self._run())

    def drop(self, feed: HistoryFeed) -> None:
        """Nobody wants it any more."""
        self._behind.pop(feed, None)

    async def aclose(self) -> None:
        """Stop for good."""
        self._closed = True
        self._behind.clear()
        if self._task is not None and is_running(self._task):
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        await self._load()
        delay = _FIRST_DELAY
        while self._behind:
            feeds = self._next()
            breaks = [feed.breaks for feed in feeds]
            try:
                ends = await self._ends(feeds)
            except RedisError as error:
                self._failed(feeds, error)
            else:
                missing = []
                for feed, before, end in zip(feeds, breaks, ends, strict=True):
                    # After another break it is asked once more: this was read before what came in between.
                    if feed not in self._behind or feed.breaks != before:
                        continue
                    if end is not None and feed.stands_at(end):
                        del self._behind[feed]
                    else:
                        missing.append(feed)
                if await self._read_all(missing):
                    delay = _FIRST_DELAY
                    continue
            # They go to the end of the line, so that one that cannot be read does not hold up the others.
            for feed in feeds:
                if (since := self._behind.pop(feed, None)) is not None:
                    self._behind[feed] = since
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)

    def _next(self) -> list[HistoryFeed]:
        """Some to ask about in one pipeline: all of them bare, or none, and as many as the answer may be large."""
        feeds: list[HistoryFeed] = []
        room = _ENDS_BYTES
        for feed in itertools.islice(self._behind, _TOPS):
            room -= feed.last_size
            if feeds and (room < 0 or feed.bare != feeds[0].bare):
                break
            feeds.append(feed)
        return feeds

    async def _ends(self, feeds: Sequence[HistoryFeed]) -> Sequence[Past | None]:
        topics = [feed.topic for feed in feeds]
        if not feeds[0].bare:
            return await self._history.ends(topics)
        return [None if top is None else Past(*top, []) for top in await self._history.tops(topics)]

    async def _load(self) -> None:
        """So that other programs find the functions as soon as we are there."""
        try:
            await self._history.load()
        except RedisError as error:
            logger.debug("the functions could not be loaded now: %s", error)

    async def _read_all(self, feeds: Sequence[HistoryFeed]) -> bool:
        """Whether it went well."""
        turn = iter(feeds)
        results = await asyncio.gather(*(self._read_in_turn(turn) for _ in range(min(_READERS, len(feeds)))))
        return all(results)

    async def _read_in_turn(self, feeds: Iterable[HistoryFeed]) -> bool:
        well = True
        for feed in feeds:
            try:
                await self._read(feed)
            except RedisError as error:
                well = False
                self._failed((feed,), error)
            except Exception:  # the other channels are not to wait for it
                logger.exception("the history of %r could not be taken", feed.topic)
                self._behind.pop(feed, None)
        return well

    async def _read(self, feed: HistoryFeed) -> None:
        known, before = feed.position, feed.breaks
        if known is not None and known.offset:
            # And the last one that we know, to see whether it is the same.
            known = known._replace(offset=known.offset - 1)
        past = await self._history.read(feed.topic, known)
        while (lost := feed.lost_tail(past)) is not None:
            logger.warning("%r has been at %s and is at %s: a failover?", feed.topic, lost, past.position)
            # However far it has come meanwhile: its numbers are given out a second time already.
            await self._history.renew(feed.topic, Position(past.epoch, HIGHEST))
            past = await self._history.read(feed.topic, known)
        if feed in self._behind and feed.breaks == before:
            feed.recover(past)
            if feed.live:
                del self._behind[feed]

    def _failed(self, feeds: Iterable[HistoryFeed], error: RedisError) -> None:
        now, given_up = time.monotonic(), 0
        for feed in feeds:
            since = self._behind.get(feed)
            if since is None:
                continue
            if feed.position is None:
                if is_final(error):
                    del self._behind[feed]
                    feed.refused(translated_error(error))
            # While the link is down nothing can be missed yet that would not have to be looked for later.
            elif is_final(error) or (now - since > GAP_DEADLINE and self._is_connected()):
                del self._behind[feed]
                feed.give_up()
                given_up += 1
        if given_up:
            logger.warning("the history of %d channels cannot be read, so a gap is told: %s", given_up, error)
