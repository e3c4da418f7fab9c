"""Stores that a broker feeds: what one process publishes, all of them get."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import Any, Final

from ._brokers import open_pubsub
from ._envelope import Envelope
from ._errors import BrokerError
from ._log import Log, MiB
from ._message import Entry, Gap, Message, Payload, check_channel
from ._position import Position
from ._pubsub import PubSub
from ._stores import BaseStore, Subscriber

ECHO_TIMEOUT: Final = 1.0
"""Seconds in which what was published should have come back from the broker."""


class ChannelStore(BaseStore):
    """A log that is fed by one channel of a `PubSub`, and publishes to it.

    Whoever opened it (`Channels`, or `RedisStore` for its own channel) subscribes and calls `feed`.
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
        super().__init__()
        self.pubsub = pubsub
        self.topic = topic or channel  # the broker's name for the channel
        self.log = Log(max_messages=max_messages, max_bytes=max_bytes, channel=check_channel(channel))
        self._ready: asyncio.Future[None] | None = None
        self._registered_early = False
        self._echoes: dict[Message, deque[asyncio.Future[Position | None]]] = {}
        self._late_echoes: list[tuple[Message, asyncio.Future[Position | None]]] = []
        self._echo_timer: asyncio.TimerHandle | None = None

    @property
    def subscribed(self) -> bool:
        """Whether the broker has confirmed that it sends us the channel."""
        return self._ready is not None and self._ready.done() and not self._ready.cancelled()

    def register(self, subscriber: Subscriber) -> None:
        # Who comes before the broker has confirmed misses what is published until then, and will be told.
        self._registered_early |= not self.subscribed
        super().register(subscriber)

    def subscribe(self) -> asyncio.Future[None]:
        """Ask the broker for the channel; `ready` tells when it has agreed."""
        if self._ready is None:
            self._ready = asyncio.ensure_future(self.pubsub.subscribe(self.topic))
            self._ready.add_done_callback(self._confirmed)
        return self._ready

    async def ready(self) -> None:
        """Return when the broker has confirmed the subscription. Raises `BrokerError` if it refuses."""
        # Shielded: one impatient caller must not take the subscription from the others.
        ready = self.subscribe()
        try:
            await asyncio.shield(ready)
        except asyncio.CancelledError:
            # Theirs, or ours: the store was closed meanwhile, which is no reason to end whoever waits for it.
            if ready.cancelled() and not _being_cancelled():
                raise BrokerError(f"the channel {self.channel!r} was closed") from None
            raise

    def feed(self, entry: Entry) -> None:
        """A message has come from the broker, or the news that some may have been lost."""
        position = self.append(entry)
        if isinstance(entry, Gap):
            self._forget_echoes()
        elif self._echoes and entry in self._echoes:
            echo = self._echoes[entry][0]
            self._drop_echo(entry, echo)
            if not echo.done():
                echo.set_result(position)

    def submit(self, data: Payload, event: str | None = None) -> asyncio.Future[Position | None]:
        """Publish `data` through the broker.

        The Future gives the position under which the message came back to this process. It gives None where that
        cannot be known: the store is not subscribed, or the link broke in between. Raises `BadMessage` at
        once, and `BrokerError` through the Future.
        """
        message = Message(data, event)
        echo: asyncio.Future[Position | None] = asyncio.get_running_loop().create_future()
        expected = self.subscribed
        published = asyncio.ensure_future(self.pubsub.publish(self.topic, message))
        if expected:
            self._echoes.setdefault(message, deque()).append(echo)

        def answered(published: asyncio.Future[int]) -> None:
            error = published.exception()
            if error is None and expected and published.result() > 0:
                self._expect_soon(message, echo)  # it is on its way back to us
                return
            self._drop_echo(message, echo)
            if not echo.done():
                if error is None:
                    echo.set_result(None)
                else:
                    echo.set_exception(error)

        published.add_done_callback(answered)
        return echo

    def unsubscribe(self) -> None:
        """Give the channel back to the broker: nothing is fed any more."""
        self._forget_echoes()
        if self._ready is not None:
            self._ready.cancel()
            self._ready = None
            self.pubsub.unsubscribe(self.topic)

    async def aclose(self) -> None:
        """Give the channel back to the broker."""
        self.unsubscribe()

    def _confirmed(self, ready: asyncio.Future[None]) -> None:
        if ready.cancelled():
            return
        if ready.exception() is not None:
            self._ready = None  # the next one who asks tries again
        elif self._registered_early:
            self._registered_early = False
            self.append(Gap())

    def _drop_echo(self, message: Message, echo: asyncio.Future[Position | None]) -> None:
        """`echo`, if it still waits for `message` to come back, waits no more."""
        waiting = self._echoes.get(message, ())
        if echo in waiting:
            self._echoes[message].remove(echo)
            if not waiting:
                del self._echoes[message]

    def _expect_soon(self, message: Message, echo: asyncio.Future[Position | None]) -> None:
        """It has been published. If it does not come back, the link is down: then the position stays unknown."""
        if not echo.done():
            self._late_echoes.append((message, echo))
            if self._echo_timer is None:
                self._echo_timer = echo.get_loop().call_later(ECHO_TIMEOUT, self._give_up, 0)

    def _give_up(self, count: int) -> None:
        """The first `count` have waited for a whole time-out: one timer for all."""
        for message, echo in self._late_echoes[:count]:
            # However long the link stays down while publishing works, what waits for it does not pile up.
            self._drop_echo(message, echo)
            if not echo.done():
                echo.set_result(None)
        self._late_echoes = [late for late in self._late_echoes[count:] if not late[1].done()]
        self._echo_timer = None
        if self._late_echoes:
            loop = self._late_echoes[0][1].get_loop()
            self._echo_timer = loop.call_later(ECHO_TIMEOUT, self._give_up, len(self._late_echoes))

    def _forget_echoes(self) -> None:
        if self._echo_timer is not None:
            self._echo_timer.cancel()
            self._echo_timer = None
        self._late_echoes.clear()
        echoes, self._echoes = self._echoes, {}
        for echo in itertools.chain.from_iterable(echoes.values()):
            if not echo.done():
                echo.set_result(None)


class RedisStore(ChannelStore):
    """A log that is fed by the Redis channel `channel`: any process can serve any subscriber.

    `url` names the server (`redis://`, `rediss://`, `unix://`), `options` go to the Redis client. Any program
    can publish to the channel with plain `PUBLISH`.
    """

    def __init__(
        self,
        channel: str = "waterspout",
        url: str = "redis://localhost:6379",
        *,
        max_messages: int = 10_000,
        max_bytes: int = 16 * MiB,
        **options: Any,
    ) -> None:
        pubsub = open_pubsub(url, protocol=Envelope(), **options)
        super().__init__(channel, pubsub, max_messages=max_messages, max_bytes=max_bytes)
        pubsub.add_client(self._receive)

    def register(self, subscriber: Subscriber) -> None:
        super().register(subscriber)
        self.subscribe()

    async def aclose(self) -> None:
        await super().aclose()
        await self.pubsub.aclose()

    def _receive(self, topic: str, entry: Entry) -> None:
        if topic == self.topic:
            self.feed(entry)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
