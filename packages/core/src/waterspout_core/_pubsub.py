"""The interface to a broker: subscribe, publish, and clients that are called with what comes."""

from __future__ import annotations

import abc
import logging
import time
from asyncio import Future
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, Self, TypeAlias

from ._envelope import Envelope
from ._errors import BadMessage
from ._feeds import Feed
from ._history import History
from ._leases import Leases
from ._message import MAX_CHANNEL_BYTES, Gap, Message, check_event
from ._position import Position

logger: Final = logging.getLogger("waterspout.core")

PubSubClient: TypeAlias = Callable[[str, Any], object]
"""Called with the name of a channel and what came on it: a message, or a `Gap` where some may have been lost."""


HealthState: TypeAlias = Literal["connecting", "connected", "disconnected", "deaf", "closed"]
"""Of the link to the broker; deaf: it seemed connected, but what was published did not come."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the link to the broker is: in `state` for so many `seconds`, and for so many `silent` nothing was heard.

    Being silent is no fault: a link on which nothing comes is tested by publishing to oneself.
    """

    state: HealthState
    seconds: float
    silent: float


HealthListener: TypeAlias = Callable[[Health], object]
"""Called with each change of a `PubSub`'s health."""


class PubSubProtocol(Protocol):
    """How messages look on the way: `encode` before publishing, `decode` after receiving."""

    def encode(self, message: Any) -> bytes:
        """The bytes to publish for `message`."""

    def decode(self, payload: bytes) -> Any:
        """The message in `payload`. Raises `ValueError` if there is none."""


class PubSub(abc.ABC):
    """A connection to a broker, shared by any number of clients.

    Clients get everything that is subscribed, each message once for every subscription it matches, as Redis does
    it. With a `protocol` they get decoded messages, else the raw bytes. Stores have feeds of their own, which
    no client sees and no `unsubscribe` ends.
    """

    def __init__(self, protocol: PubSubProtocol | None = None, history: History | None = None) -> None:
        self.protocol = protocol
        self.history = history
        """What is kept of the channels that stores are fed by; None: nothing."""
        self._clients: dict[PubSubClient, None] = {}
        self._health_listeners: dict[HealthListener, None] = {}
        self._state: HealthState = "connected"
        self._since = time.monotonic()

    @property
    def health(self) -> Health:
        """How the link to the broker is, now; without one it is connected until it is closed."""
        return Health(self._state, time.monotonic() - self._since, 0.0)

    def add_health_listener(self, listener: HealthListener) -> None:
        """From now on call `listener(health)` with each change of its state. Twice is once."""
        self._health_listeners[listener] = None

    def remove_health_listener(self, listener: HealthListener) -> None:
        """Call `listener` no more, known or not."""
        self._health_listeners.pop(listener, None)

    def add_client(self, client: PubSubClient) -> None:
        """From now on call `client(channel, message)`. Twice is once."""
        self._clients[client] = None

    def remove_client(self, client: PubSubClient) -> None:
        """Call `client` no more, known or not."""
        self._clients.pop(client, None)

    def __contains__(self, client: object) -> bool:
        return client in self._clients

    def start(self) -> None:  # noqa: B027  # a hook: a broker in this process has nothing to connect to
        """Begin to connect now, where there is something to connect to, rather than when it is first needed."""

    # Subscribing takes effect at once and needs no awaiting; awaiting it waits for the broker's confirmation.

    @abc.abstractmethod
    def subscribe(self, *channels: str) -> Awaitable[None]:
        """Receive `channels`. Awaited: the broker has confirmed it. Raises `BrokerError` if it refuses."""

    @abc.abstractmethod
    def psubscribe(self, *patterns: str) -> Awaitable[None]:
        """Receive every channel that matches one of the glob `patterns`; clients are told the channel's name."""

    @abc.abstractmethod
    def unsubscribe(self, *channels: str) -> Awaitable[None]:
        """Receive `channels` no more; without names, none."""

    @abc.abstractmethod
    def punsubscribe(self, *patterns: str) -> Awaitable[None]:
        """Receive `patterns` no more; without any, none."""

    @abc.abstractmethod
    def publish(self, channel: str, message: Any) -> Awaitable[int]:
        """Publish `message`. Awaited: how many connections to the broker received it. Raises `BrokerError`."""

    @abc.abstractmethod
    async def count(self, *channels: str) -> dict[str, int]:
        """How many connections to the broker have subscribed to each of `channels`."""

    @abc.abstractmethod
    async def count_patterns(self) -> int:
        """How many patterns are subscribed at the broker, by all its connections."""

    @abc.abstractmethod
    async def channels(self, pattern: str = "*") -> list[str]:
        """The names of the broker's active channels that match `pattern`."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Give up all subscriptions and every connection; nothing comes any more."""

    async def close(self) -> None:
        """`aclose`, by the name that it has in pulsar."""
        await self.aclose()

    # What stores stand on

    @abc.abstractmethod
    def feed(self, topic: str, *, channel: str, max_messages: int, max_bytes: int) -> Feed:
        """The feed of `topic`: one for all stores; its log calls the channel `channel` and has these bounds."""

    @abc.abstractmethod
    def submit(self, topic: str, message: Message, *, key: str | None = None) -> Future[Position | None]:
        """Publish `message` into the log of `topic`. The Future gives its position there, or None where no history is
        kept; what was published with the same idempotency `key` in the last 5 minutes is not published again.

        Raises `BrokerError` through the Future, and `BadMessage` for a key where no history is kept.
        """

    # What locks stand on

    @property
    @abc.abstractmethod
    def leases(self) -> Leases:
        """Who holds which name at the broker."""

    def publish_event(self, channel: str, event: str, data: Any = None) -> Awaitable[int]:
        """Publish `data` under the name `event`: with `Envelope()` as the protocol a `Message`, with any other an
        object of `event`, `channel` and `data`. Raises `BadMessage`, and `ValueError` without a protocol."""
        if self.protocol is None:
            raise ValueError("an event needs a protocol that encodes it, such as JSONProtocol()")
        check_event(event)
        if isinstance(self.protocol, Envelope):
            return self.publish(channel, Message(data, event))
        return self.publish(channel, {"event": event, "channel": channel, "data": data})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _encode(self, message: Any) -> bytes:
        if self.protocol is not None:
            return self.protocol.encode(message)
        return message.encode() if isinstance(message, str) else bytes(memoryview(message))

    def _broadcast(self, channel: str, payload: bytes) -> None:
        if self.protocol is None:
            self._tell(channel, payload)
            return
        try:
            message = self.protocol.decode(payload)
        except ValueError as error:
            logger.warning("dropped a message on %r that cannot be decoded: %s", channel, error)
            return
        except Exception:  # a protocol's own mistake must not make us deaf for what comes behind
            logger.exception("dropped a message on %r: its protocol failed", channel)
            return
        self._tell(channel, message)

    def _tell_health(self, health: Health) -> None:
        for listener in tuple(self._health_listeners):
            try:
                listener(health)
            except Exception:
                logger.exception("a health listener of %r failed: %r", self, listener)

    def _tell(self, channel: str, message: Any | Gap) -> None:
        for client in tuple(self._clients):
            try:
                client(channel, message)
            except OSError:  # of whoever it writes to, who has gone
                self.remove_client(client)
            except Exception:
                logger.exception("a client of the PubSub failed and is removed: %r", client)
                self.remove_client(client)


def check_key(key: object, history: History | None) -> None:
    """Raises `BadMessage` unless `key` is None or may be an idempotency key where `history` is kept."""
    if key is None:
        return
    if history is None:
        raise BadMessage("an idempotency key needs a history: what was published before is not known without one")
    if not isinstance(key, str) or not key or len(key) > MAX_CHANNEL_BYTES or not key.isprintable():
        raise BadMessage(f"an idempotency key is 1 to {MAX_CHANNEL_BYTES} printable characters, not {key!r:.80}")
