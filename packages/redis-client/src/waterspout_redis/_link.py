"""Keeps a link to the server for as long as anybody wants to receive: connects, restores, and tells what was missed.

The desired state is the user's (`Subscriptions`); a supervisor task makes one connection after the other, and each
of them is asked for all that is desired before it counts.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from ._backoff import Backoff
from ._connection import Connection
from ._encoding import pack
from ._errors import CallTimeout, ClosedError, ConnectError, ConnectionLost, RedisError, ResponseError
from ._inbox import Gap, Item
from ._listeners import Listeners
from ._options import ConnectionOptions
from ._probe import Probes
from ._session import PubSubMessage, Push
from ._state import LinkState
from ._subscriptions import Command, Subscriptions

logger: Final = logging.getLogger("waterspout.redis")

_PING: Final = pack(("PING",))

# The codes with which a server refuses the names themselves. With any other it cannot do anything now: try later.
# CROSSSLOT refuses only their company: shard channels of several slots in one command.
_REFUSALS: Final = frozenset({"CROSSSLOT", "ERR", "MOVED", "NOPERM"})

# What came while subscriptions are being restored waits for the gap that it comes after, up to so many bytes.
_MAX_HELD: Final = 1024 * 1024


class Link:
    """One event loop's worth of connections, which ask for all `subscriptions` and give what comes to `listeners`."""

    def __init__(
        self,
        options: ConnectionOptions,
        subscriptions: Sequence[Subscriptions],
        listeners: Listeners,
        on_state: Callable[[LinkState, RedisError | None], None],
    ) -> None:
        self._options = options
        self._probes = Probes()
        self._users, self._all = subscriptions, (*subscriptions, self._probes.subscriptions)
        self._listeners, self._on_state = listeners, on_state
        self._backoff = Backoff()
        self._ever_confirmed = False
        self._away_since: float | None = None
        self._outage_told = False
        self._leave_loop()

    def _leave_loop(self) -> None:
        self._loop: AbstractEventLoop | None = None
        self._supervisor: Task[None] | None = None
        self._connection: Connection | None = None
        self._ended: Future[RedisError] | None = None
        self._flush_scheduled = False
        self._forget()

    def _forget(self) -> None:
        """Nothing of what this connection was asked for holds any more."""
        # What must be answered before the link counts as restored. If a gap is due then, messages are held until then.
        self._restoring: set[object] = set()
        self._gap_due = False
        self._held: list[tuple[list[Item], int]] = []
        self._held_bytes = 0
        self._stopped = False
        for kind in self._all:
            kind.link_lost()

    def enter_loop(self) -> AbstractEventLoop:
        """The running loop. In another one than before, begin anew: what belonged to that one died with it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and self._loop.is_running():
                raise RuntimeError("this client is in use in another running event loop: make one for each")
            self._leave_loop()
            self._loop = loop
        return loop

    def start(self) -> None:
        """Connect, and stay connected, if that was not begun yet."""
        loop = self.enter_loop()
        if self._supervisor is None:
            self._supervisor = loop.create_task(self._supervise())

    def flush_soon(self) -> None:
        """What is desired has changed: tell the server at the end of this turn of the loop."""
        loop = self.enter_loop()
        if not self._flush_scheduled:
            self._flush_scheduled = True
            loop.call_soon(self._flush)

    def stop_or_go_on_reading(self) -> None:
        """Stop while no listener has room. Not while users wait for a confirmation, though: it comes the same way,
        and who waits for it may be the one to make room."""
        stop = self._listeners.full and not (self._restoring or any(kind.awaits_answers for kind in self._users))
        if stop is self._stopped or self._connection is None:
            return
        self._stopped = stop
        if stop:
            self._connection.pause_reading()
        else:
            self._connection.resume_reading()

    async def aclose(self) -> None:
        """End it for good, and return when the socket is given back."""
        self.enter_loop()
        supervisor, connection = self._supervisor, self._connection
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait((supervisor,))
        if connection is not None:
            await connection.wait_released()
        for kind in self._all:
            kind.close(ClosedError)

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    async def probe(self, publish: Callable[[bytes], Awaitable[Any]], seconds: float) -> float:
        """See `PubSubClient.probe`; `publish` sends something to a channel."""
        loop = self.enter_loop()
        self.start()
        probe = self._probes.begin()
        self.flush_soon()
        deadline, publishing = asyncio.timeout(seconds), False
        try:
            async with deadline:
                await probe.confirmed
                began, publishing = loop.time(), True
                await publish(probe.channel)
                publishing = False
                if (error := await probe.token) is not None:
                    raise error
                return loop.time() - began
        except TimeoutError:
            if not deadline.expired():
                raise
            # Nothing is wrong with the link if the token was not published, or if it is we who do not read.
            if publishing or self._stopped:
                raise CallTimeout(seconds, maybe_executed=True) from None
            reason = f"{self._options.address} delivers nothing: no probe came back within {seconds:g} s"
            if self._connection is not None:
                self._connection.abort(ConnectionLost(reason, maybe_executed=False))
            raise ConnectionLost(reason, maybe_executed=False) from None
        finally:
            self._probes.finish(probe)
            self.flush_soon()

    # The life of the link

    async def _supervise(self) -> None:
        """One loop for the first connection and all later ones."""
        try:
            while True:
                try:
                    error = await self._live()
                except Exception as bug:
                    logger.exception("internal error in the link to %s", self._options.address)
                    error = ConnectionLost(f"internal error: {bug!r}", maybe_executed=False)
                    if self._connection is not None:
                        self._connection.abort(error)
                delay = self._backoff.next_delay()
                if not self._outage_told:
                    self._outage_told = True
                    logger.warning("%s; trying again in %.1f s, then less and less often", error, delay)
                self._on_state(LinkState.DISCONNECTED, error)
                await asyncio.sleep(delay)
        finally:
            # Closed, or the event loop shuts down: either way the socket is given back.
            self._supervisor = None
            if self._connection is not None:
                self._connection.abort(ClosedError())
            self._on_state(LinkState.DISCONNECTED, None)

    async def _live(self) -> RedisError:
        """One connection from its making to its end, and why it ended."""
        assert self._loop is not None
        self._on_state(LinkState.CONNECTING, None)
        if self._away_since is None:
            self._away_since = self._loop.time()
        self._ended = self._loop.create_future()
        try:
            self._connection = await Connection.open(self._options, self)
        except ConnectError as error:
            if error.hopeless:
                for kind in self._all:
                    kind.fail_requests(error.again)
            return error
        self._restore(self._connection)
        return await self._ended

    def _restore(self, connection: Connection) -> None:
        barrier = _Waiter(self._restored)
        self._restoring = {barrier}
        self._gap_due = self._ever_confirmed
        for kind in self._all:
            self._send(connection, kind, kind.commands())
        # With nothing to restore, this is what shows that the link works.
        connection.write(_PING, (barrier,))

    def _flush(self) -> None:
        self._flush_scheduled = False
        for kind in self._all:
            if self._connection is None:
                kind.settle_without_link()
            else:
                self._send(self._connection, kind, kind.commands())
        self.stop_or_go_on_reading()

    def _send(self, connection: Connection, kind: Subscriptions, commands: list[Command]) -> None:
        for command in commands:
            waiter = _Waiter(partial(self._answered, kind, command))
            if self._restoring:
                self._restoring.add(waiter)
            connection.write_subscribe(command.verb, command.names, waiter)

    def _answered(self, kind: Subscriptions, command: Command, waiter: _Waiter, reply: Any) -> None:
        connection = self._connection
        if connection is None:
            return
        if not isinstance(reply, ResponseError):
            self._ever_confirmed = self._ever_confirmed or kind in self._users
            kind.confirmed(command)
        elif reply.code in _REFUSALS:
            again = kind.refused(command, reply)
            if not again:
                logger.warning("%s refused %s: %s", self._options.address, command.verb.decode().upper(), reply)
            self._send(connection, kind, again)
        else:
            connection.abort(reply)
            return
        self._restored(waiter, reply)
        self.stop_or_go_on_reading()

    def _restored(self, waiter: _Waiter, reply: Any) -> None:
        """One more piece of the desired state is back; with the last one the link is."""
        if waiter not in self._restoring:
            return
        self._restoring.discard(waiter)
        if self._restoring:
            return
        assert self._loop is not None
        self._backoff.reset()
        seconds = 0.0 if self._away_since is None else self._loop.time() - self._away_since
        self._away_since = None
        if self._outage_told:
            self._outage_told = False
            logger.info("%s is back after %.1f s", self._options.address, seconds)
        if self._gap_due:
            self._gap_due = False
            self._deliver([Gap(seconds)], 0, keep=True)
        held, self._held = self._held, []
        for batch, size in held:
            self._deliver(batch, size)
        self._on_state(LinkState.CONNECTED, None)

    def _deliver(self, batch: list[Item], size: int, *, keep: bool = False) -> None:
        self._listeners.put(batch, size, keep=keep or self._stopped)
        self.stop_or_go_on_reading()

    # What the connection tells its owner

    def messages_received(self, messages: list[PubSubMessage], size: int) -> None:
        # Of a message that took several reads, only the last was counted.
        size = max(size, len(messages[0].data))
        if self._probes:
            messages = self._probes.without_tokens(messages)
        batch: list[Item] = messages  # type: ignore[assignment]  # handed over: nobody else keeps it
        if not batch:
            return
        if not self._gap_due:
            self._deliver(batch, size)
            return
        if self._held_bytes + size > _MAX_HELD:
            # The gap that will come first stands for the oldest of them, too.
            self._held.clear()
            self._held_bytes = 0
        self._held.append((batch, size))
        self._held_bytes += size

    def push_received(self, push: Push) -> None:
        if self._connection is None or not push.data:
            return
        if any(push.kind == kind.unsubscribe and kind.asked(push.data[0]) for kind in self._all):
            # Not what we want, and messages may be missing by now: a fresh connection puts both right.
            reason = f"{self._options.address} ended the subscription of {push.data[0]!r}"
            self._connection.abort(ConnectionLost(reason, maybe_executed=False))

    def refused_to_write(self) -> None:
        """Nothing is written here."""

    def has_room(self) -> None:
        """Subscribing is not bounded: each name is held in memory anyway."""

    def connection_lost(self, error: RedisError) -> None:
        assert self._loop is not None
        self._connection = None
        self._probes.link_lost(error)
        self._away_since = self._loop.time() if self._away_since is None else self._away_since
        self._forget()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)


class _Waiter:
    """Stands in line for a reply of the server. When the connection ends, `Link` hears of it as its owner."""

    __slots__ = ("_answered",)

    def __init__(self, answered: Callable[[_Waiter, Any], None]) -> None:
        self._answered = answered

    def resolve(self, reply: Any) -> None:
        self._answered(self, reply)

    def fail(self, error: RedisError) -> None: ...
