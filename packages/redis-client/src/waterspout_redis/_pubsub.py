"""Receiving published messages: what people use."""

from __future__ import annotations

import logging
import warnings
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Self, Unpack

from ._address import Address
from ._errors import ClosedError, RedisError
from ._inbox import Inbox
from ._link import Item, Link, PubSubState
from ._options import ConnectionKeywords, ConnectionOptions
from ._subscriptions import Subscriptions

logger: Final = logging.getLogger("waterspout.redis")

MiB: Final = 1024 * 1024


class PubSubClient:
    """Subscribes to channels and patterns, and gives what is published there, for ever::

        async with PubSubClient("redis://localhost") as pubsub:
            await pubsub.subscribe("news")
            async for item in pubsub:
                match item:
                    case PubSubMessage(channel, data):
                        print(channel, data)
                    case Gap():
                        print("something may have been missed")

    Make it anywhere, also before a loop runs; the options are those of `Client`. It connects with the first
    subscription, and again whenever the link broke, with a jittered exponential back-off, until it is closed. After
    each break all subscriptions are restored and confirmed, and then comes one `Gap`. It also comes when only names
    had been waiting meanwhile; it never comes before the first confirmed subscription.

    Iterate over single items or over `batches`; either takes from one and the same stream, and only one task can
    wait for it at a time.

    What was received and not taken yet is bounded by ``max_messages`` and ``max_bytes``. When it is full, nothing is
    dropped: reading from the socket stops until the listener has caught up with half. Redis then keeps the messages,
    up to its own ``client-output-buffer-limit pubsub``, ends the connection when that is reached, and a `Gap` tells.

    A link that is down is visible: `state`, `last_error`, the callback ``on_state(state, error)``, and the logger
    "waterspout.redis", which warns once for each outage.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        max_messages: int = 100_000,
        max_bytes: int = 32 * MiB,
        on_state: Callable[[PubSubState, RedisError | None], object] | None = None,
        **connection: Unpack[ConnectionKeywords],
    ) -> None:
        self._state = PubSubState.DISCONNECTED
        self._options = ConnectionOptions.parse(url, **connection)
        if max_messages < 1 or max_bytes < 1:
            raise ValueError("max_messages and max_bytes must be at least 1")
        self._last_error: RedisError | None = None
        self._on_state = on_state
        self._channels = Subscriptions(b"subscribe", b"unsubscribe")
        self._patterns = Subscriptions(b"psubscribe", b"punsubscribe")
        self._inbox: Inbox[Item] = Inbox(max_messages, max_bytes, lambda: self._link.resume())
        self._link = Link(self._options, self._channels, self._patterns, self._inbox.put, self._change_state)
        self._current: Iterator[Item] = iter(())

    def start(self) -> None:
        """Connect now rather than with the first subscription, so that trouble shows at once. Needs a running loop."""
        self._link.enter_loop()
        if self._state is not PubSubState.CLOSED:
            self._link.start()

    # What is desired

    def subscribe(self, *channels: str | bytes) -> Future[None]:
        """Subscribe to channels. The Future is done when the server has confirmed all of them, which, while it is
        away, is when it has come back.

        A plain function: the desired state is changed when it returns, and calls of one turn of the event loop go out
        as one command. The Future raises NoPermissionError (or another ResponseError) for a name that is refused,
        which is then not desired any more, and ClosedError. Unsubscribing from the name ends the wait.
        """
        return self._want(self._channels, channels)

    def psubscribe(self, *patterns: str | bytes) -> Future[None]:
        """Subscribe to all channels that match glob-style patterns, otherwise like `subscribe`."""
        return self._want(self._patterns, patterns)

    def unsubscribe(self, *channels: str | bytes) -> Future[None]:
        """Unsubscribe from channels, or from all of them without names. The Future is done when the server has
        confirmed; until then their messages may still come."""
        return self._unwant(self._channels, channels)

    def punsubscribe(self, *patterns: str | bytes) -> Future[None]:
        """Unsubscribe from patterns, or from all of them without names, otherwise like `unsubscribe`."""
        return self._unwant(self._patterns, patterns)

    @property
    def channels(self) -> frozenset[bytes]:
        """The channels that are desired, confirmed or not."""
        return frozenset(self._channels.desired)

    @property
    def patterns(self) -> frozenset[bytes]:
        """The patterns that are desired, confirmed or not."""
        return frozenset(self._patterns.desired)

    def _want(self, kind: Subscriptions, names: tuple[str | bytes, ...]) -> Future[None]:
        if not names:
            raise TypeError("at least one name is needed")
        wanted = _encoded(names)
        future: Future[None] = self._link.enter_loop().create_future()
        if self._state is PubSubState.CLOSED:
            future.set_exception(ClosedError())
            return future
        kind.want(wanted, future)
        self._link.start()
        self._link.flush_soon()
        return future

    def _unwant(self, kind: Subscriptions, names: tuple[str | bytes, ...]) -> Future[None]:
        unwanted = _encoded(names) if names else list(kind.desired)
        future: Future[None] = self._link.enter_loop().create_future()
        if self._state is PubSubState.CLOSED:
            future.set_result(None)
            return future
        kind.unwant(unwanted, future)
        self._link.flush_soon()
        return future

    # Listening

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        for item in self._current:
            return item
        self._current = iter(await self._next_batch())
        return next(self._current)

    def batches(self) -> AsyncIterator[list[Item]]:
        """The same stream in lists, each with all that one read from the socket brought: the fast way."""
        return _Batches(self._rest_or_next_batch)

    async def _rest_or_next_batch(self) -> list[Item]:
        return list(self._current) or await self._next_batch()

    async def _next_batch(self) -> list[Item]:
        self._link.enter_loop()
        if self._state is not PubSubState.CLOSED and (self._channels.desired or self._patterns.desired):
            # In a new event loop there is nobody yet to restore what was desired in the old one.
            self._link.start()
        batch = await self._inbox.get()
        if batch is None:
            raise StopAsyncIteration
        return batch

    # State

    @property
    def address(self) -> Address:
        """Where it connects to."""
        return self._options.address

    @property
    def state(self) -> PubSubState:
        """Of the link to the server, now."""
        return self._state

    @property
    def last_error(self) -> RedisError | None:
        """Why the link was down last, even if it is up again; None if it never was."""
        return self._last_error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} {self._state.value}>"

    def _change_state(self, state: PubSubState, error: RedisError | None) -> None:
        if error is not None:
            self._last_error = error
        if state is self._state or self._state is PubSubState.CLOSED:
            return
        self._state = state
        if self._on_state is not None:
            try:
                self._on_state(state, error)
            except Exception:
                logger.exception("error in the on_state callback of %r", self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close for good, and return when the socket is given back. Who waits for a confirmation gets ClosedError;
        the listener gets what was received, then its iteration ends."""
        self._change_state(PubSubState.CLOSED, None)
        await self._link.aclose()
        for kind in (self._channels, self._patterns):
            kind.close(ClosedError())
        self._inbox.close()

    def __del__(self) -> None:
        # Nothing is closed here: the loop may be gone, or be busy in another thread.
        link = getattr(self, "_link", None)
        if self._state is not PubSubState.CLOSED and link is not None and link.is_open:
            warnings.warn(f"{self!r} was never closed: await its aclose()", ResourceWarning, source=self, stacklevel=2)


class _Batches:
    def __init__(self, take: Callable[[], Coroutine[Any, Any, list[Item]]]) -> None:
        self._take = take

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Item]:
        return await self._take()


def _encoded(names: tuple[str | bytes, ...]) -> list[bytes]:
    encoded: list[bytes] = []
    for place, name in enumerate(names):
        if isinstance(name, str):
            encoded.append(str.encode(name))
        elif isinstance(name, bytes):
            encoded.append(name)
        else:
            raise TypeError(f"name {place} must be str or bytes, not {type(name).__name__}")
    return encoded
