"""Receiving published messages: what people use."""

from __future__ import annotations

import logging
import warnings
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from ._address import Address
from ._errors import ClosedError, RedisError
from ._inbox import Item
from ._link import Link
from ._listeners import Listener, Listeners
from ._options import ConnectionKeywords, ConnectionOptions, check_options
from ._state import LinkState
from ._subscriptions import Subscriptions

if TYPE_CHECKING:
    from ._client import Client

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
    had been waiting meanwhile; it never comes before the first confirmed subscription. What the first of the restored
    subscriptions bring while others are still being restored follows it, the newest 1 MiB of that at most.

    Iterate over single items or over `batches`; either takes from one and the same stream, and only one task can
    wait for it at a time. For more, `listen` makes one listener each.

    What was received and not taken yet is bounded by ``max_messages`` and ``max_bytes``, for each listener. When it
    is full, nothing is dropped: reading from the socket stops until the listener has caught up with half. Redis then
    keeps the messages, up to its own ``client-output-buffer-limit pubsub``, ends the connection when that is reached,
    and a `Gap` tells. Reading goes on, though, for other listeners who have room, and for a confirmation that somebody
    waits for: what then does not fit into a full listener is lost to it, and a `Gap` stands in its place.

    A link that is down is visible: `state`, `last_error`, the callback ``on_state(state, error)``, and the logger
    "waterspout.redis", which warns once for each outage.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        max_messages: int = 100_000,
        max_bytes: int = 32 * MiB,
        on_state: Callable[[LinkState, RedisError | None], object] | None = None,
        **connection: Unpack[ConnectionKeywords],
    ) -> None:
        self._state = LinkState.DISCONNECTED
        check_options(self, connection, url=url, max_messages=max_messages, max_bytes=max_bytes, on_state=on_state)
        self._options = ConnectionOptions.parse(url, **connection)
        if max_messages < 1 or max_bytes < 1:
            raise ValueError("max_messages and max_bytes must be at least 1")
        self._last_error: RedisError | None = None
        self._on_state = on_state
        self._channels = Subscriptions(b"subscribe", b"unsubscribe")
        self._patterns = Subscriptions(b"psubscribe", b"punsubscribe")
        self._shard_channels = Subscriptions(b"ssubscribe", b"sunsubscribe")
        self._kinds = (self._channels, self._patterns, self._shard_channels)
        self._listeners = Listeners(max_messages, max_bytes, lambda: self._link.stop_or_go_on_reading())
        self._link = Link(self._options, self._kinds, self._listeners, self._change_state)
        # Gathers what comes before anybody listens, for the first who does.
        self._unclaimed: Listener | None = Listener(self._listeners, self._begin)
        self._own: Listener | None = None

    def start(self) -> None:
        """Connect now rather than with the first subscription, so that trouble shows at once. Needs a running loop."""
        self._link.enter_loop()
        if self._state is not LinkState.CLOSED:
            self._link.start()

    # What is desired

    def subscribe(self, *channels: str | bytes) -> Future[None]:
        """Subscribe to channels. The Future is done when the server has confirmed all of them, which, while it is
        away, is when it has come back.

        A plain function: the desired state is changed when it returns, and calls of one turn of the event loop go out
        as one command. The Future raises NoPermissionError (or another ResponseError) for a name that is refused,
        which is then not desired any more, and ClosedError. Where nobody can connect like this, with a wrong password,
        database or certificate, it raises ConnectError, and the name stays desired, as it does for a server that is
        away: for that the Future waits without end. Unsubscribing from the name ends the wait.
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

    def ssubscribe(self, *channels: str | bytes) -> Future[None]:
        """Subscribe to shard channels, to which SPUBLISH publishes (Redis 7 and later), otherwise like `subscribe`.

        In a cluster each lives on the node of its slot. Any other refuses it with MovedError, whose text tells where.
        When it moves away later, the link is made anew: a `Gap` comes, the refusal is logged, and it is not desired any
        more, unless the name leads to the right node by then.
        """
        return self._want(self._shard_channels, channels)

    def sunsubscribe(self, *channels: str | bytes) -> Future[None]:
        """Unsubscribe from shard channels, or from all of them without names, otherwise like `unsubscribe`."""
        return self._unwant(self._shard_channels, channels)

    @property
    def channels(self) -> frozenset[bytes]:
        """The channels that are desired, confirmed or not."""
        return frozenset(self._channels.desired)

    @property
    def patterns(self) -> frozenset[bytes]:
        """The patterns that are desired, confirmed or not."""
        return frozenset(self._patterns.desired)

    @property
    def shard_channels(self) -> frozenset[bytes]:
        """The shard channels that are desired, confirmed or not."""
        return frozenset(self._shard_channels.desired)

    def _want(self, kind: Subscriptions, names: tuple[str | bytes, ...]) -> Future[None]:
        if not names:
            raise TypeError("at least one name is needed")
        wanted = _encoded(names)
        future: Future[None] = self._link.enter_loop().create_future()
        if self._state is LinkState.CLOSED:
            future.set_exception(ClosedError())
            return future
        kind.want(wanted, future)
        self._link.start()
        self._link.flush_soon()
        return future

    def _unwant(self, kind: Subscriptions, names: tuple[str | bytes, ...]) -> Future[None]:
        unwanted = _encoded(names) if names else list(kind.desired)
        future: Future[None] = self._link.enter_loop().create_future()
        if self._state is LinkState.CLOSED:
            future.set_result(None)
            return future
        kind.unwant(unwanted, future)
        self._link.flush_soon()
        return future

    # Listening

    def listen(self) -> Listener:
        """One more listener, to whom every message and every `Gap` comes, as to all others.

        The first gets what was received before anybody listened; each other one what comes from now on.
        """
        listener, self._unclaimed = self._unclaimed, None
        return listener or Listener(self._listeners, self._begin)

    def __aiter__(self) -> Listener:
        return self._own_listener()

    def __anext__(self) -> Coroutine[Any, Any, Item]:
        return self._own_listener().__anext__()

    def batches(self) -> AsyncIterator[list[Item]]:
        """The same stream in lists, each with all that one read from the socket brought: the fast way."""
        return self._own_listener().batches()

    def _own_listener(self) -> Listener:
        if self._own is None:
            self._own = self.listen()
        return self._own

    def _begin(self) -> None:
        """Somebody waits for messages. In a new event loop there is nobody yet to restore what was desired in the
        old one."""
        self._link.enter_loop()
        if self._state is not LinkState.CLOSED and any(kind.desired for kind in self._kinds):
            self._link.start()

    async def probe(
        self,
        client: Client,
        *,
        timeout: float = 5.0,  # noqa: ASYNC109  # one around it would not drop the link
    ) -> float:
        """Publish a token through `client` and return after how many seconds it came back here.

        This finds a link that answers and yet delivers nothing, such as one to a node that others no longer publish
        to after a failover: `client` has a connection of its own, made to where the name leads now. No listener sees
        the token. Its channel begins with ``waterspout:probe:``; an ACL must allow that.

        Raises ConnectionLost if the token did not come back within `timeout` seconds; the link is dropped then, to be
        made anew. It is kept where nothing is known of it: with CallTimeout, if `client` did not answer in time or
        nothing is read because listeners are full, and with any other error of `client` or of the subscription.
        """
        if self._state is LinkState.CLOSED:
            raise ClosedError
        return await self._link.probe(lambda channel: client.call("PUBLISH", channel, b""), timeout)

    # State

    @property
    def address(self) -> Address:
        """Where it connects to."""
        return self._options.address

    @property
    def state(self) -> LinkState:
        """Of the link to the server, now."""
        return self._state

    @property
    def last_error(self) -> RedisError | None:
        """Why the link was down last, even if it is up again; None if it never was."""
        return self._last_error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} {self._state.value}>"

    def _change_state(self, state: LinkState, error: RedisError | None) -> None:
        if error is not None:
            self._last_error = error
        if state is self._state or self._state is LinkState.CLOSED:
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
        listeners get what was received, then their iteration ends."""
        self._change_state(LinkState.CLOSED, None)
        await self._link.aclose()
        self._listeners.close()

    def __del__(self) -> None:
        # Nothing is closed here: the loop may be gone, or be busy in another thread.
        link = getattr(self, "_link", None)
        if self._state is not LinkState.CLOSED and link is not None and link.is_open:
            warnings.warn(f"{self!r} was never closed: await its aclose()", ResourceWarning, source=self, stacklevel=2)


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
