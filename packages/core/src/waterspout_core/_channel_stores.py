"""Stores that a broker feeds: what one process publishes, all of them get."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from ._brokers import open_pubsub
from ._errors import BrokerError
from ._log import LOST, Log, MiB
from ._message import Message, Payload, check_channel
from ._position import EARLIEST, Position
from ._pubsub import PubSub
from ._stores import BaseStore, Subscriber

logger: Final = logging.getLogger("waterspout.core")

_RETRY: Final = 5.0
"""Seconds after which a broker that has refused a channel is asked again, for those who wait for it."""


class ChannelStore(BaseStore):
    """A log that is fed by one channel of a `PubSub`, and publishes to it.

    It receives from `open` (or the first `await ready()`) until `close`. Stores of the same channel and `PubSub` share
    one log, whose bounds are those of the first. `topic` is the broker's name for the channel, if it has
    another one there. Raises `BadChannel`.
    """

    def __init__(
        self,
        channel: str,
        pubsub: PubSub,
        *,
        topic: str | None = None,
        max_messages: int = 10_000,
        max_bytes: int = 16 * MiB,
    ) -> None:
        self.pubsub = pubsub
        self.topic = topic or channel
        self._joined = False
        self._opening: asyncio.Future[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._feed = pubsub.feed(
            self.topic, channel=check_channel(channel), max_messages=max_messages, max_bytes=max_bytes
        )
        super().__init__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.channel!r} of {self.pubsub!r}>"

    def _make_log(self) -> Log:
        return self._feed.log

    @property
    def subscribed(self) -> bool:
        """Whether the broker has confirmed that it sends us the channel."""
        return self._joined and self._opening is None and self._feed.begun

    @property
    def covered(self) -> bool:
        """Whether what is published from now on comes, or is told as a gap: the broker has confirmed it, or keeps it
        from where the channel stood when it was asked for."""
        return self._joined and self._feed.covered

    def register(self, subscriber: Subscriber, *, by: Subscriber | None = None, patient: bool = False) -> None:
        """See `BaseStore.register`. Who comes before the channel is `covered` misses what is published until the broker
        has confirmed, and is told of that by a gap, unless all who do so are `patient`."""
        if not self.subscribed and not patient:
            self._feed.read_early()
        super().register(subscriber, by=by)

    def open(self) -> None:
        """Ask the broker for the channel; `ready` tells when it has agreed."""
        self._enter_loop()
        if not self._joined:
            self._joined = True
            opening = self._feed.join(self, self.pubsub)
            if not opening.done():
                self._opening = opening
                opening.add_done_callback(self._opened)

    async def ready(self) -> None:
        """Return when the broker has confirmed the subscription. Raises `BrokerError` if it refuses."""
        self.open()
        opening = self._opening
        if opening is None:
            return
        # Shielded: one impatient caller must not take the subscription from the others.
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Theirs, or ours: the store was closed meanwhile, which is no reason to end whoever waits for it.
            if opening.cancelled() and not _being_cancelled():
                raise BrokerError(f"the channel {self.channel!r} was closed") from None
            raise

    async def seek(self, offsets: Mapping[str, int] | None = None) -> int:
        await self.ready()
        if offsets is not None:
            try:
                await self._feed.reach(offsets, self.pubsub)
                if self.cursor(offsets) == LOST:
                    # It will be told of a gap, and then get all that is kept, wherever it comes.
                    await self._feed.reach({EARLIEST: 0}, self.pubsub)
            except BrokerError as error:
                logger.warning("the history of %r cannot be read, so a gap is told: %s", self.channel, error)
                if EARLIEST in offsets:
                    return LOST  # what there is may not be all that is kept
        return self.cursor(offsets)

    def cursor(self, offsets: Mapping[str, int] | None = None) -> int:
        if offsets is not None and EARLIEST in offsets:
            return self._feed.earliest()
        return super().cursor(offsets)

    async def history(self, limit: int) -> list[tuple[Position, Message]]:
        await self.ready()
        await self._feed.reach({EARLIEST: 0}, self.pubsub)
        log = self.log
        before = self._feed.earliest(limit)
        _, entries = log.newest(log.top - before)
        places = pairwise(log.positions(before, len(entries) + 1))
        return [
            (place, entry)
            for (last, place), entry in zip(places, entries, strict=True)
            if isinstance(entry, Message) and place != last  # else it has no place of its own, and is not kept
        ]

    def submit(
        self, data: Payload, event: str | None = None, *, key: str | None = None
    ) -> asyncio.Future[Position | None]:
        """Publish `data` through the broker.

        The Future gives its position, or None where the broker keeps no history. With an idempotency `key`, what was
        published with the same key in the last 5 minutes is not published again, and its position is given. Raises
        `BadMessage` at once, and `BrokerError` through the Future.
        """
        self._enter_loop()
        return self.pubsub.submit(self.topic, Message(data, event), key=key)

    def close(self) -> None:
        """Give the channel back to the broker: nothing is fed any more."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._joined:
            self._joined = False
            opening, self._opening = self._opening, None
            if opening is not None and not opening.get_loop().is_closed():
                opening.cancel()
            self._feed.leave(self, self.pubsub)

    async def aclose(self) -> None:
        """Give the channel back to the broker."""
        self.close()

    def _enter_loop(self) -> None:
        before = self._loop
        super()._enter_loop()
        if self._joined and before is not self._loop:
            # What was asked for in another loop ended with it.
            self._opening = None
            self.close()
            self.open()

    def _opened(self, opening: asyncio.Future[None]) -> None:
        if opening is not self._opening:
            return  # closed meanwhile
        self._opening = None
        if not opening.cancelled() and (error := opening.exception()) is not None:
            self.close()  # the next one who asks tries again
            if self.subscribers:
                # Who was let in before the broker answered would wait for ever.
                logger.warning("the channel %r was refused, trying again in %g s: %s", self.channel, _RETRY, error)
                self._retry = opening.get_loop().call_later(_RETRY, self._open_again)

    def _open_again(self) -> None:
        if self.subscribers:
            self.open()


class RedisStore(ChannelStore):
    """A log that is fed by the Redis channel `channel`: any process can serve any subscriber.

    `url` names the server (`redis://`, `rediss://`, `unix://`), `options` go to the Redis client. Redis keeps the
    newest `history` messages for `retention` seconds, so that a subscriber may come back to any process; 0 turns that
    off. Any program can publish to the channel with plain `PUBLISH`, for those who are connected, or into the history
    with the function `waterspout_publish`.
    """

    def __init__(
        self,
        channel: str = "waterspout",
        url: str = "redis://localhost:6379",
        *,
        history: int = 1000,
        retention: float = 3600.0,
        max_messages: int = 10_000,
        max_bytes: int = 16 * MiB,
        **options: Any,
    ) -> None:
        pubsub = open_pubsub(url, history=history, retention=retention, **options)
        super().__init__(channel, pubsub, max_messages=max_messages, max_bytes=max_bytes)

    def register(self, subscriber: Subscriber, *, by: Subscriber | None = None, patient: bool = False) -> None:
        self.open()
        super().register(subscriber, by=by, patient=patient)

    async def aclose(self) -> None:
        await super().aclose()
        await self.pubsub.aclose()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
