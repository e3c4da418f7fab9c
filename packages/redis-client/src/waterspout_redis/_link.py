"""Keeps a link to the server for as long as anybody wants to receive: connects, restores, and tells what was missed.

The desired state is the user's (`Subscriptions`); a supervisor task makes one connection after the other, and each
of them is asked for all that is desired before it counts.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, TypeAlias

from ._backoff import Backoff
from ._connection import Connection
from ._encoding import pack
from ._errors import ClosedError, ConnectError, ConnectionLost, RedisError, ResponseError
from ._options import ConnectionOptions
from ._session import PubSubMessage, Push
from ._subscriptions import Command, Subscriptions

logger: Final = logging.getLogger("waterspout.redis")

_PING: Final = pack(("PING",))

# The codes with which a server refuses the names themselves. With any other it cannot do anything now: try later.
_REFUSALS: Final = frozenset({"ERR", "NOPERM"})


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages may have been lost: the link was away for `seconds`. It is back, with all that is desired; what is
    published from now on comes after this."""

    seconds: float


Item: TypeAlias = PubSubMessage | Gap


class PubSubState(Enum):
    """Of the link to the server."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    """Everything desired is subscribed and confirmed."""
    DISCONNECTED = "disconnected"
    """Nothing was asked for yet, or waiting to try again."""
    CLOSED = "closed"


class Link:
    """One event loop's worth of connections. `deliver` takes what was received, with its size in bytes, and returns
    whether there is room for more; `resume` is to be called when there is again."""

    def __init__(
        self,
        options: ConnectionOptions,
        channels: Subscriptions,
        patterns: Subscriptions,
        deliver: Callable[[list[Item], int], bool],
        on_state: Callable[[PubSubState, RedisError | None], None],
    ) -> None:
        self._options = options
        self._channels, self._patterns = channels, patterns
        self._deliver, self._on_state = deliver, on_state
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
        # What must be answered before the link counts as restored; messages are held back until then.
        self._restoring: set[object] = set()
        self._held: list[tuple[list[Item], int]] = []
        self._gap_due = False
        for kind in (self._channels, self._patterns):
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

    def resume(self) -> None:
        """There is room again: go on reading."""
        if self._connection is not None:
            self._connection.resume_reading()

    async def aclose(self) -> None:
        """End it, and return when the socket is given back."""
        self.enter_loop()
        supervisor, connection = self._supervisor, self._connection
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait((supervisor,))
        if connection is not None:
            await connection.wait_released()

    @property
    def is_open(self) -> bool:
        return self._connection is not None

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
                self._on_state(PubSubState.DISCONNECTED, error)
                await asyncio.sleep(delay)
        finally:
            # Closed, or the event loop shuts down: either way the socket is given back.
            self._supervisor = None
            if self._connection is not None:
                self._connection.abort(ClosedError())
            self._on_state(PubSubState.DISCONNECTED, None)

    async def _live(self) -> RedisError:
        """One connection from its making to its end, and why it ended."""
        assert self._loop is not None
        self._on_state(PubSubState.CONNECTING, None)
        if self._away_since is None:
            self._away_since = self._loop.time()
        self._ended = self._loop.create_future()
        try:
            self._connection = await Connection.open(self._options, self)
        except ConnectError as error:
            return error
        self._restore(self._connection)
        return await self._ended

    def _restore(self, connection: Connection) -> None:
        barrier = _Waiter(self._restored)
        self._restoring = {barrier}
        self._gap_due = self._ever_confirmed
        for kind in (self._channels, self._patterns):
            self._send(connection, kind, kind.commands())
        # With nothing to restore, this is what shows that the link works.
        connection.write(_PING, (barrier,))

    def _flush(self) -> None:
        self._flush_scheduled = False
        for kind in (self._channels, self._patterns):
            if self._connection is None:
                kind.settle_without_link()
            else:
                self._send(self._connection, kind, kind.commands())

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
            self._ever_confirmed = True
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
            self._put([Gap(seconds)], 0)
        held, self._held = self._held, []
        for batch, size in held:
            self._put(batch, size)
        self._on_state(PubSubState.CONNECTED, None)

    def _put(self, batch: list[Item], size: int) -> None:
        if not self._deliver(batch, size) and self._connection is not None:
            self._connection.pause_reading()

    # What the connection tells its owner

    def messages_received(self, messages: list[PubSubMessage], size: int) -> None:
        batch: list[Item] = messages  # type: ignore[assignment]  # handed over: nobody else keeps it
        if self._restoring:
            self._held.append((batch, size))
        else:
            self._put(batch, size)

    def push_received(self, push: Push) -> None:
        kind = {b"unsubscribe": self._channels, b"punsubscribe": self._patterns}.get(push.kind)
        if kind is not None and self._connection is not None and push.data and kind.asked(push.data[0]):
            # Not what we want, and messages may be missing by now: a fresh connection puts both right.
            reason = f"{self._options.address} ended the subscription of {push.data[0]!r}"
            self._connection.abort(ConnectionLost(reason, maybe_executed=False))

    def has_room(self) -> None:
        """Subscribing is not bounded: each name is held in memory anyway."""

    def connection_lost(self, error: RedisError) -> None:
        assert self._loop is not None
        self._connection = None
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
