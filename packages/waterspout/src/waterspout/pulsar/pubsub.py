"""A drop-in for pulsar's PubSub: clients that are called with whatever comes on what is subscribed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakSet

import waterspout_core
from waterspout_core import Gap, Health
from waterspout_redis import ResponseError

from ._errors import builtin_errors

if TYPE_CHECKING:
    from .stores import Store

__all__ = ["Event", "MessageProtocol", "PubSub", "PubSubClient"]

logger: Final = logging.getLogger("waterspout.pulsar")


class PubSubClient(Protocol):
    """What `PubSub.add_client` takes."""

    def __call__(self, channel: str, message: Any) -> object:
        """This `message` has come on `channel`."""


class MessageProtocol(Protocol):
    """How messages look on the way: `encode` before publishing, `decode` after receiving."""

    def encode(self, message: Any) -> str | bytes:
        """What to publish for `message`."""

    def decode(self, payload: bytes) -> Any:
        """The message in `payload`. Raises `ProtocolError` if there is none."""


class Event:
    """Something that may happen to `owner` many times: who has bound is called with it."""

    def __init__(self, name: str, owner: object) -> None:
        self.name = name
        self._owner = owner
        self._handlers: list[Callable[..., object]] = []

    def handlers(self) -> list[Callable[..., object]]:
        """Those who have bound."""
        return self._handlers

    def bind(self, callback: Callable[..., object]) -> None:
        """Call `callback(owner)` from now on."""
        self._handlers.append(callback)

    def unbind(self, callback: Callable[..., object]) -> int:
        """Call `callback` no more; how many times it had been bound."""
        kept = [handler for handler in self._handlers if handler != callback]
        removed = len(self._handlers) - len(kept)
        self._handlers = kept
        return removed

    def fire(self) -> None:
        """It has happened."""
        for handler in tuple(self._handlers):
            try:
                handler(self._owner)
            except Exception:
                logger.exception("%r failed, which is bound to the event %r", handler, self.name)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """A protocol as pulsar has it, whose `encode` may give text."""

    protocol: MessageProtocol

    def encode(self, message: Any) -> bytes:
        encoded = self.protocol.encode(message)
        return encoded.encode() if isinstance(encoded, str) else encoded

    def decode(self, payload: bytes) -> Any:
        return self.protocol.decode(payload)


class PubSub:
    """Publishes to `store`, and calls its clients, `client(channel, message)`, with what comes from there.

    With a `protocol` messages are what its `decode` makes of the bytes; where that raises `ProtocolError` it is logged
    and the message is dropped. What is subscribed stays so: after a break it is restored by itself, and the event
    ``connection_lost`` has told of it. What is published to nobody meanwhile is lost, as in pulsar.
    """

    def __init__(self, store: Store, protocol: MessageProtocol | None = None) -> None:
        self.store = store
        self.protocol = protocol
        self.name = type(self).__name__
        self._clients: dict[PubSubClient, None] = {}
        self._events: dict[str, Event] = {}
        self._broker: waterspout_core.PubSub | None = None
        self._lent: WeakSet[object] = WeakSet()  # for Channels that are not closed yet
        self._up = False

    def __repr__(self) -> str:
        return f"{self.name}({self.store})"

    @property
    def broker(self) -> waterspout_core.PubSub:
        """The PubSub of the core that does the work; after `close` it is another one."""
        if self._broker is None:
            self._broker = self.store.broker(None if self.protocol is None else _Encoding(self.protocol))
            self._broker.add_client(self._broadcast)
            self._broker.add_health_listener(self._health_changed)
        return self._broker

    def lend(self, user: object) -> waterspout_core.PubSub:
        """The same for `user`, whose Channels stand on it until he gives it back."""
        self._lent.add(user)
        return self.broker

    async def take_back(self, user: object) -> None:
        """They are closed, and with them this PubSub, unless others stand on it."""
        self._lent.discard(user)
        await self.close()

    @property
    def push_connection(self) -> waterspout_core.PubSub | None:
        """What receives, or None while nothing does."""
        return self._broker if self._up else None

    def event(self, name: str) -> Event:
        """The event `name`; the one that happens is ``connection_lost``."""
        return self._events.setdefault(name, Event(name, self))

    # Its clients

    def add_client(self, client: PubSubClient) -> None:
        """From now on call `client(channel, message)`. Twice is once; one that fails is removed."""
        self._clients[client] = None

    def remove_client(self, client: PubSubClient) -> None:
        """Call `client` no more, known or not."""
        self._clients.pop(client, None)

    def __contains__(self, client: object) -> bool:
        return client in self._clients

    def _broadcast(self, channel: str, message: Any) -> None:
        if isinstance(message, Gap):  # for which pulsar's clients have no word
            return
        for client in tuple(self._clients):
            try:
                client(channel, message)
            except OSError:  # of whoever it writes to, who has gone
                self.remove_client(client)
            except Exception:
                logger.exception("a client of the PubSub failed and is removed: %r", client)
                self.remove_client(client)

    # Subscribing

    async def subscribe(self, channel: str, *channels: str) -> None:
        """Receive channels; the server has confirmed it. Raises `ConnectionError` if it is away, and goes on trying."""
        await self._confirmed(self.broker.subscribe(channel, *channels))

    async def psubscribe(self, pattern: str, *patterns: str) -> None:
        """Receive every channel that matches a glob pattern; clients are told the channel's name."""
        await self._confirmed(self.broker.psubscribe(pattern, *patterns))

    def unsubscribe(self, *channels: str) -> None:
        """Receive `channels` no more; without names, none. Takes effect at once, there is nothing to await."""
        if self._broker is not None:
            self._broker.unsubscribe(*channels)

    def punsubscribe(self, *patterns: str) -> None:
        """Receive `patterns` no more; without any, none."""
        if self._broker is not None:
            self._broker.punsubscribe(*patterns)

    async def _confirmed(self, answer: Awaitable[None]) -> None:
        asked = asyncio.ensure_future(answer)
        if not self._up:
            await self._tried(asked)
        with builtin_errors():
            await asked
        self._up = True

    async def _tried(self, asked: asyncio.Future[None]) -> None:
        """Return when the server has answered, or at least would."""
        trying = asyncio.ensure_future(self.reach())
        try:
            await asyncio.wait((asked, trying), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                await trying
        except BaseException:
            asked.cancel()  # of the waiting only: what was asked for stays so
            raise
        finally:
            trying.cancel()
            await asyncio.gather(trying, return_exceptions=True)

    # Publishing

    async def publish(self, channel: str, message: Any) -> int:
        """How many have received `message`. Raises `ConnectionError`, `TimeoutError`, `ResponseError`."""
        if self.protocol is None and not isinstance(message, str | bytes | bytearray | memoryview):
            message = str(message)
        with builtin_errors():
            return await self.broker.publish(channel, message)

    async def publish_event(self, channel: str, event: str, message: Any = None) -> int:
        """The same for an object of `event`, ``channel``, and the `message` as its ``data``, which is left out if it
        is None. Raises AssertionError without a protocol."""
        if self.protocol is None:
            raise AssertionError("an event needs a protocol that encodes it, such as Json()")
        return await self.publish(channel, event_message(channel, event, message))

    # What the server knows

    async def reach(self) -> None:
        """Return if the server answers. Raises `ConnectionError` or `TimeoutError`: a link goes on trying without a
        word, but what is asked on the other connection tells what is wrong."""
        with suppress(ResponseError):  # whatever it says, it is there
            await self.count()

    async def count(self, *channels: str) -> dict[bytes, int]:
        """How many connections have subscribed to each of `channels`."""
        with builtin_errors():
            return {name.encode(): number for name, number in (await self.broker.count(*channels)).items()}

    async def count_patterns(self) -> int:
        """How many patterns are subscribed, by all connections."""
        with builtin_errors():
            return await self.broker.count_patterns()

    async def channels(self, pattern: str | None = None) -> list[bytes]:
        """The active channels that match `pattern`, or all."""
        with builtin_errors():
            return [name.encode() for name in await self.broker.channels(pattern or "*")]

    # Its life

    async def close(self) -> None:
        """Give up all subscriptions and the connections. Whoever subscribes again connects again. Channels that stand
        on it go on, as in pulsar, with a connection until they are closed, too."""
        broker = self._broker
        if broker is not None and self._lent:
            broker.unsubscribe()
            broker.punsubscribe()
        elif broker is not None:
            self._broker = None
            await broker.aclose()

    def _health_changed(self, health: Health) -> None:
        was_up, self._up = self._up, health.state == "connected"
        if was_up and not self._up:
            self.event("connection_lost").fire()


def event_message(channel: str, event: str, data: Any) -> dict[str, Any]:
    """An event as it travels."""
    message = {"event": event, "channel": channel}
    return message if data is None else {**message, "data": data}
