"""The manager: channels by name over one broker, with callbacks for their events, and stores for whoever reads them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Self
from weakref import WeakSet, WeakValueDictionary

from waterspout_core import (
    BadChannel,
    BrokerError,
    ChannelStore,
    MiB,
    Position,
    PubSub,
    check_channel,
    open_pubsub,
)

from ._channel import Callback, Channel
from ._dialect import Dialect
from ._listen import Listening
from ._locks import Lock
from ._open_stores import OpenStores
from ._presence import Presence
from ._status import Status, StatusListener, StatusType

_FAREWELL: Final = 1.0
"""Seconds to give back all that is locked, when they are closed."""


class Channels:
    """Many channels over one `PubSub`: callbacks for their events, and a *source* of stores for handlers.

    `pubsub` is a broker's URL (`memory://`, `redis://…`) or a `PubSub`. `namespace`, if there is one, stands before
    every channel's name at the broker and nowhere else. With a URL, the broker keeps the newest `history` messages of
    each channel for `retention` seconds, so that a reader may come back to any process; 0 turns that off.

    After `connect`, this node, by the name `node`, tells the others on the `status_channel` (by default ``server``)
    that it is `up`, that its link was restored (`reconnect`), and that it goes (`down`). A callback that fails is
    logged and counted; `on_error` says whether it is kept. `dialect` says how events travel.

    A channel that nobody reads is kept for `linger` seconds after it was last used, so that a subscriber whose
    connection broke finds what it missed. There are never more than `max_channels`, those with callbacks not counted: a
    new one takes the place of the one unused for longest, or is refused with `TooManyChannels`. `max_messages` and
    `max_bytes` bound each channel's log; when all logs together exceed `max_total_bytes`, those unused for longest
    go first.
    """

    statusType: Final = StatusType

    def __init__(
        self,
        pubsub: PubSub | str = "memory://",
        *,
        namespace: str | None = None,
        status_channel: str | None = None,
        logger: logging.Logger | None = None,
        on_error: Literal["keep", "remove"] = "keep",
        dialect: Dialect | None = None,
        node: str | None = None,
        history: int = 1_000,
        retention: float = 3600.0,
        linger: float = 60.0,
        max_channels: int = 10_000,
        max_messages: int = 1_000,
        max_bytes: int = 16 * MiB,
        max_total_bytes: int = 256 * MiB,
    ) -> None:
        if on_error not in ("keep", "remove"):
            raise ValueError(f"on_error is 'keep' or 'remove', not {on_error!r}")
        if isinstance(pubsub, str):
            pubsub = open_pubsub(pubsub, history=history, retention=retention)
        elif not isinstance(pubsub, PubSub):
            raise TypeError(f"Channels take a broker's URL or a PubSub, not {pubsub!r:.80}")
        if not isinstance(dialect, Dialect | None):
            raise TypeError(f"Channels take a Dialect, not {dialect!r:.80}")
        self.pubsub = pubsub
        self.dialect = Dialect() if dialect is None else dialect
        self.namespace = check_channel(namespace) if namespace else ""
        self.logger = logger or logging.getLogger("waterspout.channels")
        self.on_error = on_error
        self._stores = OpenStores(
            pubsub,
            linger=linger,
            max_channels=max_channels,
            max_messages=max_messages,
            max_bytes=max_bytes,
            max_total_bytes=max_total_bytes,
        )
        self.status_channel = Channel(self, self._name(status_channel or "server"))
        self._registered = {self.status_channel.name: self.status_channel}
        self._blank: WeakValueDictionary[str, Channel] = WeakValueDictionary()  # without callbacks yet
        self._unattached: dict[Channel, None] = {}  # registered before a loop ran
        self._listening: WeakSet[Listening] = WeakSet()
        self._locks: WeakSet[Lock] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()  # of callbacks that are awaited
        self._status = Status(self.logger)
        self._presence = Presence(self, self._status, node or secrets.token_hex(5))
        self._closed = False

    def __repr__(self) -> str:
        return f"Channels({self.pubsub!r}, namespace={self.namespace!r})"

    # The channels with callbacks

    def __len__(self) -> int:
        """How many channels are registered, the status channel among them."""
        return len(self._registered)

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(tuple(self._registered))

    def __contains__(self, channel: object) -> bool:
        try:
            return self._name(channel) in self._registered
        except BadChannel:
            return False

    @property
    def registered(self) -> Mapping[str, Channel]:
        """The channels with callbacks by name, the status channel among them."""
        return MappingProxyType(self._registered)

    def channel(self, name: str) -> Channel:
        """The channel `name`, to `fire` there. Before something is registered on it, it reads nothing, and is forgotten
        with the last reference to it. Raises `BadChannel`."""
        name = self._name(name)
        registered = self._registered.get(name)
        return self._blank.setdefault(name, Channel(self, name)) if registered is None else registered

    def register(self, channel: str, event: str, callback: Callback) -> Channel:
        """Call `callback(channel, event, data)` for each event of `channel` that matches the glob `event`, from now on.

        A plain function, to be called at any time: what is registered before a loop runs takes effect with `connect`.
        The same callback for the same glob is called once. A message without a name is the event `message`. Whoever
        registers `gap` itself, and no glob that would match it, is told where messages were lost, with their number
        or None as `missed`. Raises `BadChannel`, `TypeError`, and `BrokerError` after `aclose`.
        """
        self._check_open()
        registered = self.channel(channel)
        registered.add(event, callback)
        self._registered[registered.name] = registered
        self._blank.pop(registered.name, None)
        if not registered.attached:
            self._unattached[registered] = None
        self._attach()
        return registered

    def unregister(self, channel: str, event: str, callback: Callback) -> Channel | None:
        """Call it no more. Returns the channel, or None if this was not registered. With its last callback the channel
        is let go, and lingers like any other that nobody reads."""
        registered = self._registered.get(self._name(channel))
        if registered is None or not registered.remove(event, callback):
            return None
        self._let_go(registered)
        return registered

    def listen(self, channel: str, event: str = "*", *, after: Position | str | None = None) -> Listening:
        """The events of `channel` that match the glob `event`, from now on or after a position::

            async for item in channels.listen("news", "goal*"):
                match item:
                    case ChannelEvent(event=name, data=data): ...
                    case Gap(): ...

        Raises `BadChannel`, `TooManyChannels`, and `BrokerError` after `aclose`; and `BadPosition`, at the latest when
        the first event is asked for.
        """
        listening = Listening(lambda: self._open(channel), self.dialect, self.logger, event, after)
        self._listening.add(listening)
        return listening

    def prefixed(self, name: str) -> str:
        """The broker's name for `name`; one that has it already stays as it is."""
        return name if name.startswith(self.namespace) else self.namespace + name

    # As a source, and a sink

    @property
    def stores(self) -> Collection[ChannelStore]:
        """Those of the channels that are open in this process."""
        return self._stores

    def open(self, channel: str) -> ChannelStore:
        """The store of `channel`, subscribed at the broker (`await store.ready()` to have that confirmed).

        From `connect` on the status channel is refused, since this is what handlers open channels with: `register`
        there, or `listen`. Raises `BadChannel`, `TooManyChannels`, and `BrokerError` after `aclose`.
        """
        if self.status_channel.attached and self._name(channel) == self.status_channel.name:
            raise BadChannel(
                f"the channel {channel!r} is where the nodes tell of themselves, and is served to nobody else"
            )
        return self._open(channel)

    def publish(
        self, channel: str, event: str | None, data: Any = None, *, key: str | None = None
    ) -> asyncio.Future[Position | None]:
        """Publish `data` under the name `event`; the channel need not be open here.

        The Future gives its position, or None where the broker keeps no history. With an idempotency `key`, what was
        published with the same key in the last 5 minutes is not published again. Raises `BadChannel` and `BadMessage`
        at once, and `BrokerError` through the Future.
        """
        topic = self.prefixed(self._name(channel))
        if self._closed:
            refused: asyncio.Future[Position | None] = asyncio.get_running_loop().create_future()
            refused.set_exception(BrokerError("these channels are closed"))
            return refused
        answer = self.dialect.publish(self.pubsub, topic, event, data, key)
        # Asking here is less work than `ensure_future` does for what is a Future already.
        return answer if isinstance(answer, asyncio.Future) else asyncio.ensure_future(answer)

    def lock(
        self,
        name: str,
        timeout: float | None = None,
        blocking: bool | float = True,
        sleep: float = 0.2,
        *,
        renew: bool = True,
    ) -> Lock:
        """A lock that one at a time has of all who use this broker and namespace; see `Lock`. Raises `ValueError`, and
        `BrokerError` after `aclose`."""
        self._check_open()
        key = self.prefixed(name) if isinstance(name, str) and name else name
        lock = Lock(self.pubsub.leases, key, timeout, blocking, sleep, renew=renew)
        self._locks.add(lock)
        return lock

    # The link to the broker

    async def connect(self, timeout: float | None = 10.0) -> None:  # noqa: ASYNC109  # it says why not
        """Return when the broker has confirmed the status channel and all that was registered before.

        Raises `BrokerError` that says why it is not so after `timeout` seconds (None: wait for ever), or as soon as the
        broker has refused a channel. Either way it goes on trying, and all that is registered is restored after any
        break.
        """
        self._check_open()
        if not self.status_channel.attached:
            self._unattached[self.status_channel] = None
        self._attach()
        await self._presence.connect(timeout)

    @property
    def status(self) -> StatusType:
        """How the link to the broker is, for who has called `connect`."""
        return self._status.now

    @property
    def node(self) -> str:
        """The name of this node on the status channel."""
        return self._presence.node

    async def wait_for(self, status: StatusType) -> None:
        """Return when it is `status`. Raises `BrokerError` if they are closed before, and `TypeError`."""
        await self._status.wait_for(status)

    def watch(self) -> AsyncGenerator[StatusType, None]:
        """The status now, then each new one; ends with `closed`."""
        return self._status.watch()

    def add_status_listener(self, listener: StatusListener) -> None:
        """Call `listener(status)`, a plain function, with each new status. Twice is once. Raises `TypeError`."""
        self._status.add(listener)

    def remove_status_listener(self, listener: StatusListener) -> None:
        """Call it no more, known or not."""
        self._status.remove(listener)

    async def close(self) -> None:
        """`aclose`, by the name that it has in pulsar."""
        await self.aclose()

    async def aclose(self) -> None:
        """Tell the other nodes, close every channel, release what is locked, and close the broker's connections.
        Coroutine functions that are being awaited are cancelled."""
        await self._presence.close()
        self._closed = True
        self._unattached.clear()
        for channel in self._registered.values():
            channel.stop()
        for listening in tuple(self._listening):
            await listening.aclose()
        self._stores.close()
        # One of them may have called us.
        if tasks := self._tasks - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        with contextlib.suppress(TimeoutError):  # what cannot be given back ends by itself
            async with asyncio.timeout(_FAREWELL):
                await asyncio.gather(*(lock.aclose() for lock in tuple(self._locks)), return_exceptions=True)
        try:
            await self.dialect.release(self.pubsub)
        finally:
            self._status.change(StatusType.closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # For its parts

    def _open(self, channel: str) -> ChannelStore:
        self._check_open()
        name = self._name(channel)
        return self._stores.open(self.prefixed(name), name)

    def _forget(self, channel: Channel, event: str, callback: Callback) -> None:
        """A callback shall not be called any more."""
        if channel.remove(event, callback):
            self._let_go(channel)

    async def _ready(self) -> None:
        """Return when the broker has confirmed all that is registered now. Raises `BrokerError`."""
        for channel in tuple(self._registered.values()):
            try:
                if channel.attached:
                    await channel.ready()
            except BrokerError as error:
                raise BrokerError(f"{channel.name!r} is not subscribed: {error}", final=error.final) from error

    def _reopen(self) -> None:
        """The broker is back: ask it again for what it has refused."""
        for channel in self._registered.values():
            channel.reopen()

    def _let_go(self, channel: Channel) -> None:
        if not len(channel) and channel is not self.status_channel and self._registered.get(channel.name) is channel:
            del self._registered[channel.name]
            self._blank[channel.name] = channel  # who keeps it shall find it registered again
            self._unattached.pop(channel, None)
            if channel.attached:
                channel.detach()
                self._stores.release(self.prefixed(channel.name))

    def _attach(self) -> None:
        """Let those read that do not yet, if a loop runs."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        # Before the broker was there, there was nothing to be missed. Without a history one begins when it confirms.
        if self.pubsub.history is None:
            patient = self.status is not StatusType.disconnected
        else:  # nobody need have called `connect`
            new = self.status in (StatusType.initialised, StatusType.connecting)
            patient = new and self.pubsub.health.state not in ("connected", "deaf")
        unattached, self._unattached = self._unattached, {}
        for channel in unattached:
            channel.attach(self._stores.hold(self.prefixed(channel.name), channel.name), patient=patient)

    def _name(self, channel: object) -> str:
        """Its name here, without the namespace, unless that stands there twice: `prefixed` leads back from it."""
        whole = check_channel(channel)
        name = whole.removeprefix(self.namespace)
        if self.namespace and name.startswith(self.namespace):
            return whole
        return name or check_channel(name)  # the namespace alone is none

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError("these channels are closed")
