"""Subscribing, on a connection of its own that heals."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Future, Task
from collections.abc import Callable
from typing import Any, Final, NoReturn

from .._errors import RedisError
from .._inbox import Gap
from .._options import ConnectionKeywords
from .._pubsub import PubSubClient as Subscriber
from .._state import LinkState
from ._client import Client
from ._errors import ClientError, ConnectionError

logger: Final = logging.getLogger("waterspout.redis")


class PubSubClient(Client):
    """A client that only subscribes; its options are those of `Client`.

    While it is subscribed it connects again after each break, with growing delays, and restores all subscriptions. Then
    one ConnectionError is popped in place of what may have been missed, and messages go on. With ``autoconnect=False``
    the first break ends it instead.
    """

    _link: _Link | None = None

    def call(self, *args: Any) -> NoReturn:
        """Raises ClientError."""
        raise ClientError("not allowed with PubSubClient object")

    def async_call(self, *args: Any, callback: Callable[[Any], object] | None = None) -> NoReturn:
        """Raises ClientError."""
        raise ClientError("not allowed with PubSubClient object")

    # Subscribing

    def pubsub_subscribe(self, *args: str | bytes | int) -> Future[bool]:
        """Subscribe to channels, besides those that are subscribed already. The Future tells whether the server has
        confirmed all of them; without a name, or a connection, it has not."""
        return self._settings.loop().create_task(self._subscribe(args, patterns=False))

    def pubsub_psubscribe(self, *args: str | bytes | int) -> Future[bool]:
        """Subscribe to patterns, otherwise like `pubsub_subscribe`."""
        return self._settings.loop().create_task(self._subscribe(args, patterns=True))

    def pubsub_unsubscribe(self, *args: str | bytes | int) -> Future[bool]:
        """Unsubscribe from channels, or from all of them without names. The Future tells whether that is done, which it
        is not without a connection."""
        return self._settings.loop().create_task(self._unsubscribe(args, patterns=False))

    def pubsub_punsubscribe(self, *args: str | bytes | int) -> Future[bool]:
        """Unsubscribe from patterns, otherwise like `pubsub_unsubscribe`."""
        return self._settings.loop().create_task(self._unsubscribe(args, patterns=True))

    async def _subscribe(self, args: tuple[str | bytes | int, ...], *, patterns: bool) -> bool:
        if not args:
            logger.warning("nothing to subscribe to: no names were given")
            return False
        link = await self._connected_link()
        if link is None or not await link.subscribe(_names(args), patterns=patterns):
            return False
        self.subscribed = True
        return True

    async def _unsubscribe(self, args: tuple[str | bytes | int, ...], *, patterns: bool) -> bool:
        link = await self._connected_link()
        if link is None or not await link.unsubscribe(_names(args), patterns=patterns):
            return False
        self.subscribed = bool(link.subscriber.channels or link.subscriber.patterns)
        return True

    # Receiving

    def pubsub_pop_message(self, deadline: float | None = None) -> Future[Any]:
        """The next message: ``[b"message", channel, data]`` or ``[b"pmessage", pattern, channel, data]``; None after
        ``deadline`` seconds; a ConnectionError, once, where something may have been missed; a ClientError while nothing
        is subscribed. Several that wait are served in order."""
        return self._settings.loop().create_task(self._pop(deadline))

    async def _pop(self, deadline: float | None) -> Any:
        link = self._enter_link()
        if link is None or not self.subscribed:
            return ClientError("you must subscribe before using pubsub_pop_message")
        try:
            async with asyncio.timeout(deadline), link.popping:
                item = await anext(link.subscriber)
        except TimeoutError:
            return None
        except StopAsyncIteration:
            return ConnectionError("closed connection")
        if isinstance(item, Gap):
            return ConnectionError(f"the connection was away for {item.seconds:.1f} s: messages may be missing")
        if item.pattern is None:
            return [b"message", item.channel, item.data]
        return [b"pmessage", item.pattern, item.channel, item.data]

    # The connection

    def _enter_link(self) -> _Link | None:
        """The link in this event loop, if there is one; what belonged to another loop died with it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._link, self.subscribed = loop, None, False
        return self._link

    async def _connect(self) -> bool:
        link = self._enter_link()
        if link is None:
            link = self._link = _Link(self._settings.keywords(self.password, self.db, protocol=3), self._link_changed)
        return await link.connected()

    async def _connected_link(self) -> _Link | None:
        if not (self.autoconnect or self.is_connected()):
            return None
        return self._link if await self._connect() else None

    def _link_changed(self, link: _Link, connected: bool) -> None:
        if link is not self._link:
            return
        self._changed_at = time.monotonic()
        if not connected and not (self.autoconnect and self.subscribed):
            # Nobody waits for it to come back.
            self.disconnect()

    def disconnect(self) -> None:
        """Drop the connection and all subscriptions at once. Who waits for a message gets a ConnectionError."""
        link, self._link = self._link, None
        self.subscribed = False
        self._changed_at = time.monotonic()
        if link is not None and self._loop is not None and not self._loop.is_closed():
            link.closing = self._loop.create_task(link.subscriber.aclose())

    def is_connected(self) -> bool:
        """Whether the connection is there, with all subscriptions."""
        link = self._link
        alive = self._loop is not None and not self._loop.is_closed()
        return link is not None and alive and link.subscriber.state is LinkState.CONNECTED


class _Link:
    """The life of a client from `connect` to `disconnect`."""

    def __init__(self, keywords: ConnectionKeywords, on_change: Callable[[_Link, bool], None]) -> None:
        self.subscriber = Subscriber(on_state=self._state_changed, **keywords)
        self.popping = asyncio.Lock()
        self.closing: Task[None] | None = None
        self._on_change = on_change
        self._change: Future[bool] = asyncio.get_running_loop().create_future()

    def _state_changed(self, state: LinkState, error: RedisError | None) -> None:
        if state is LinkState.CONNECTING:
            return
        connected = state is LinkState.CONNECTED
        change, self._change = self._change, asyncio.get_running_loop().create_future()
        change.set_result(connected)
        self._on_change(self, connected)

    async def connected(self) -> bool:
        """Whether it is connected, or the attempt that is under way succeeds."""
        if self.subscriber.state is LinkState.CONNECTED:
            return True
        self.subscriber.start()
        return await asyncio.shield(self._change)

    async def subscribe(self, names: list[str | bytes], *, patterns: bool) -> bool:
        """Whether all of `names` were confirmed. If not, none of them stays that was not there before."""
        subscriber, change = self.subscriber, self._change
        before = subscriber.patterns if patterns else subscriber.channels
        confirmed = (subscriber.psubscribe if patterns else subscriber.subscribe)(*names)
        await asyncio.wait((confirmed, change), return_when=asyncio.FIRST_COMPLETED)
        if confirmed.done() and confirmed.exception() is None:
            return True
        now = subscriber.patterns if patterns else subscriber.channels
        added = now.intersection(name.encode() if isinstance(name, str) else name for name in names) - before
        if added:
            (subscriber.punsubscribe if patterns else subscriber.unsubscribe)(*added)
        return False

    async def unsubscribe(self, names: list[str | bytes], *, patterns: bool) -> bool:
        """Whether they are unsubscribed; all of them without names."""
        try:
            await (self.subscriber.punsubscribe if patterns else self.subscriber.unsubscribe)(*names)
        except RedisError:
            return False
        return True


def _names(args: tuple[str | bytes | int, ...]) -> list[str | bytes]:
    return [arg if isinstance(arg, str | bytes) else str(arg) for arg in args]
