"""The interface to a broker: subscribe, publish, and clients that are called with what comes."""

from __future__ import annotations

import abc
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

from ._message import Gap

logger: Final = logging.getLogger("waterspout.core")

PubSubClient: TypeAlias = Callable[[str, Any], object]
"""Called with the name of a channel and what came on it: a message, or a `Gap` where some may have been lost."""


class PubSubProtocol(Protocol):
    """How messages look on the way: `encode` before publishing, `decode` after receiving."""

    def encode(self, message: Any) -> bytes:
        """The bytes to publish for `message`."""

    def decode(self, payload: bytes) -> Any:
        """The message in `payload`. Raises `ValueError` if there is none."""


class PubSub(abc.ABC):
    """A connection to a broker, shared by any number of clients.

    Clients get everything that is subscribed, each message once for every subscription it matches, as Redis does
    it. With a `protocol` they get decoded messages, else the raw bytes.
    """

    def __init__(self, protocol: PubSubProtocol | None = None) -> None:
        self.protocol = protocol
        self._clients: dict[PubSubClient, None] = {}

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

    async def __aenter__(self) -> PubSub:
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

    def _tell(self, channel: str, message: Any | Gap) -> None:
        for client in tuple(self._clients):
            try:
                client(channel, message)
            except Exception:
                logger.exception("a client of the PubSub failed and is removed: %r", client)
                self.remove_client(client)
