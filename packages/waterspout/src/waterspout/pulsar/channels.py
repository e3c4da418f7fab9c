"""A drop-in for pulsar's Channels: callbacks for the events of many channels, over one PubSub."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, overload

import waterspout_channels
import waterspout_core
from waterspout_channels import Callback, CallbackError, Channel, Dialect, StatusType
from waterspout_core import BrokerError, Message

from ._errors import ProtocolError, builtin_errors
from .locks import Lock
from .pubsub import MessageProtocol, PubSub, event_message

__all__ = ["CallbackError", "Channel", "Channels", "Json", "StatusType"]

_TIMEOUT: Final = 10.0
"""Seconds in which a server that answers must have confirmed the status channel."""


class Json:
    """A protocol: each message is one JSON text."""

    def encode(self, message: Any) -> str:
        """The text to publish for `message`. Raises TypeError or ValueError if JSON cannot carry it."""
        return json.dumps(message)

    def decode(self, payload: bytes | str) -> Any:
        """The value in `payload`. Raises `ProtocolError` if it is no JSON."""
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"invalid JSON: {error}") from None


class Channels:
    """Channels of one namespace, made by ``store.channels(protocol=Json())``.

    The names of channels are the same in upper and lower case, for `publish` too. `namespace`, else that of the store,
    stands before them at the server. An event travels as an object of ``event``, ``channel`` and ``data`` in the
    `protocol` of `pubsub`. Callbacks are `callback(channel, event, data)`, and coroutine functions are awaited, in
    order for each channel. One that fails is logged and removed; one that raises `CallbackError` just removed.

    The link heals by itself, with all that is registered; what is published meanwhile is lost, as in pulsar, of which
    a callback for the event ``gap`` is told. Raises AssertionError where `pubsub` has no protocol.
    """

    statusType: Final = StatusType

    def __init__(
        self,
        pubsub: PubSub,
        namespace: str | None = None,
        status_channel: str | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        protocol = pubsub.protocol
        if protocol is None:
            raise AssertionError("channels need a protocol that encodes events, such as Json()")
        self.pubsub = pubsub
        self.store = pubsub.store
        self.namespace = _namespace(namespace or self.store.urlparams.get("namespace", ""))
        self.logger = logger or self.store.logger
        self.connection_error = False
        """Whether the last publishing failed since the server was away."""
        dialect = _Pulsar(pubsub, protocol, self.namespace, self.logger)
        self._events = waterspout_channels.Channels(
            pubsub.lend(dialect),
            namespace=self.namespace,
            status_channel=(status_channel or "server").lower(),
            logger=self.logger,
            on_error="remove",
            dialect=dialect,
            max_channels=0,  # no lingering: who comes back has no place to go on from
        )
        self._events.add_status_listener(self._log_status)

    @property
    def dns(self) -> str:
        """The store's URL with this namespace, the password included."""
        return self.store.buildurl(**self._params)

    @property
    def dsn(self) -> str:
        """The same, by its proper name."""
        return self.dns

    def __repr__(self) -> str:
        return self.store.shown(**self._params)

    @property
    def _params(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    # The channels

    @property
    def channels(self) -> Mapping[str, Channel]:
        """The registered channels by name, the status channel among them."""
        return self._events.registered

    @property
    def status_channel(self) -> Channel:
        """The channel whose subscription shows that the link is there. Nothing is published there by itself."""
        return self._events.status_channel

    def __len__(self) -> int:
        return len(self.channels)

    def __iter__(self) -> Iterator[Channel]:
        return iter(tuple(self.channels.values()))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._events

    @overload
    def channel(self, name: str, create: Literal[True] = True) -> Channel: ...
    @overload
    def channel(self, name: str, create: bool) -> Channel | None: ...
    def channel(self, name: str, create: bool = True) -> Channel | None:
        """The channel `name`, made if need be; without `create` it is None where nothing is registered. With its first
        callback it is subscribed, and one of the `channels`. Raises `BadChannel`."""
        return self._events.channel(name.lower()) if create or name in self else None

    def prefixed(self, name: str) -> str:
        """The server's name for `name`; one that has it already stays as it is."""
        return self._events.prefixed(name)

    async def register(self, channel: str, event: str, callback: Callback) -> Channel:
        """Call `callback` for each event of `channel` that matches the glob `event`; twice is once.

        May come before `connect`. While connected, it returns when the server has confirmed the channel. Raises
        `BadChannel` for a name that cannot be used, `ResponseError` if the server refuses it, and `ConnectionError`
        after `close`.
        """
        with builtin_errors():
            registered = self._events.register(channel.lower(), event, callback)
            if self.status is StatusType.connected:
                await self._while_connected(registered.ready())
        return registered

    async def unregister(self, channel: str, event: str, callback: Callback) -> Channel | None:
        """Call it no more. Returns the channel, or None if it is not registered; it is unsubscribed with its last
        callback."""
        registered = self.channel(channel, create=False)
        if registered is not None:
            self._events.unregister(registered.name, event, callback)
        return registered

    async def publish(self, channel: str, event: str, data: Any = None) -> None:
        """Publish an event. Where the server is away that is logged, and the event is lost."""
        try:
            await self._events.publish(channel.lower(), event, data)
        except OSError as error:  # no connection, or no answer in time
            self.connection_error = True
            self.logger.critical("%s cannot publish on %r: %s", self, channel, error)
        else:
            if self.connection_error:
                self.connection_error = False
                self.logger.warning("%s can publish again", self)

    def lock(self, name: str, timeout: float | None = None, blocking: bool | float = True, sleep: float = 0.2) -> Lock:
        """A lock that all processes of this namespace share."""
        return Lock(self.pubsub.broker.leases, self.prefixed(name), timeout, blocking, sleep)

    # The link

    @property
    def status(self) -> StatusType:
        """How the link is, since `connect`."""
        return self._events.status

    async def connect(self, next_time: float | None = None) -> None:
        """Connect, and return when that has succeeded or failed, which `status` tells; then it is tried again in the
        background. Nothing happens where it is connected, or closed. `next_time` is pulsar's own business."""
        if self.status in (StatusType.initialised, StatusType.disconnected):
            try:
                await self.pubsub.reach()
                await self._events.connect(_TIMEOUT)
            except (OSError, BrokerError) as error:
                self.logger.critical("%s cannot connect: %s", self, error)
                if self.status is StatusType.initialised:
                    with suppress(BrokerError):
                        await self._events.connect(0)  # from now on it is tried by itself

    async def close(self) -> None:
        """Give up all subscriptions, and the PubSub. Closed Channels never come back; others on it go on."""
        await self._events.aclose()

    async def _while_connected(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait, but only until the link breaks."""
        over = asyncio.get_running_loop().create_future()

        def look(status: StatusType) -> None:
            if not over.done():
                over.set_result(None)

        self._events.add_status_listener(look)
        task = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait((task, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._events.remove_status_listener(look)
            over.cancel()
            task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()

    def _log_status(self, status: StatusType) -> None:
        if status is StatusType.connected:
            self.logger.warning("%s is ready and listens for events on %s", self, self.status_channel.name)
        elif status is StatusType.disconnected:
            self.logger.critical("%s is not connected, and tries again", self)


class _Pulsar(Dialect):
    """Pulsar's way of speaking, through a PubSub that others may stand on, too."""

    tells_others = False  # in pulsar nobody but its users publishes on the status channel

    def __init__(self, pubsub: PubSub, protocol: MessageProtocol, namespace: str, logger: logging.Logger) -> None:
        self._pubsub = pubsub
        self._protocol = protocol
        self._namespace = namespace
        self._logger = logger

    def event_of(self, message: Message) -> tuple[str, Any] | None:
        if message.event is not None:  # it comes from one of waterspout's own Channels
            return super().event_of(message)
        payload = message.data if isinstance(message.data, bytes) else message.text.encode()
        try:
            members = self._protocol.decode(payload)
        except ValueError as error:
            self._logger.warning("dropped a message that cannot be decoded: %s", error)
            return None
        event = members.get("event", "") if isinstance(members, Mapping) else None
        if not isinstance(event, str):
            self._logger.warning("dropped a message that is no event: %r", members)
            return None
        return event, members.get("data")

    async def publish(
        self, pubsub: waterspout_core.PubSub, topic: str, event: str | None, data: Any, key: str | None
    ) -> None:
        await self._pubsub.publish(topic, event_message(topic.removeprefix(self._namespace), event or "", data))

    async def release(self, pubsub: waterspout_core.PubSub) -> None:
        await self._pubsub.take_back(self)


def _namespace(name: str) -> str:
    """In lower case, with one `_` at its end."""
    name = name.lower()
    return name if not name or name.endswith("_") else f"{name}_"
