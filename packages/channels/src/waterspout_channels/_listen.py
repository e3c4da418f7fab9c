"""The plain way to read a channel: ``async for event in channels.listen("news", "goal*")``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from waterspout_core import BrokerError, ChannelStore, Gap, Position, Subscription, compile_glob

from ._dialect import Dialect


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """One event of a channel. `listen(…, after=position)` goes on behind it."""

    channel: str
    event: str
    data: Any
    position: Position | None


class Listening:
    """The events of a channel that match a pattern, and each `Gap`, for ever. Made by `Channels.listen`.

    Over a link that is up it begins at once, if the broker keeps a history or the channel is open already. Else it
    begins when the broker has confirmed the channel: in an ``async with`` when that is entered, or with the first event
    asked for. Only one task can wait for it at a time. What is not taken yet waits in the channel's log. Close it, use
    it in an ``async with``, or let it go.
    """

    def __init__(
        self,
        open_store: Callable[[], ChannelStore],
        dialect: Dialect,
        logger: logging.Logger,
        pattern: str,
        after: Position | str | None,
    ) -> None:
        self._open_store = open_store
        self._dialect = dialect
        self._logger = logger
        self._matches = compile_glob(pattern)
        self._after = after
        self._closed = False
        self._end: Position | None = None
        store = open_store()
        self._channel = str(store.channel)
        at_once = store.subscribed or (after is None and store.covered)
        self._entries: Subscription | None = store.subscribe(after) if at_once else None

    @property
    def position(self) -> Position | None:
        """Behind what was taken last; None before it is known."""
        return self._end if self._entries is None else self._entries.position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChannelEvent | Gap:
        entries = await self._begun()
        if entries is not None:
            async for entry in entries:
                if isinstance(entry, Gap):
                    return entry
                try:
                    told = self._dialect.event_of(entry)
                    if told is not None and self._matches(told[0]):
                        return ChannelEvent(self._channel, *told, entries.position)
                except Exception:  # what is behind it shall come all the same
                    self._logger.exception("a message on %r cannot be understood", self._channel)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it; who waits for the next event gets none."""
        self._closed = True
        # With a reference to it, whoever listens later would be given what was published since.
        entries, self._entries = self._entries, None
        if entries is not None:
            await entries.aclose()
            self._end = entries.position

    async def __aenter__(self) -> Self:
        await self._begun()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _begun(self) -> Subscription | None:
        """None when it is closed."""
        while self._entries is None and not self._closed:
            store = self._open_store()
            try:
                # Who reads before the broker has confirmed is told of a gap first.
                await store.ready()
            except BrokerError:
                # Else it was let go meanwhile, which is what becomes of a channel when the broker is away for long.
                if not self._closed and self._open_store() is store:
                    raise
            else:
                if not self._closed:
                    self._entries = store.subscribe(self._after)
        return self._entries
