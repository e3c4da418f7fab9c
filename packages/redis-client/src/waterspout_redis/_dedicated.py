"""A client of one connection for one user: for blocking commands, WATCH, and all that leaves state on a connection."""

from __future__ import annotations

import math
import time
from asyncio import AbstractEventLoop, Future, get_running_loop
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any, Final, Self, overload

from ._encoding import Argument, checked_encoding
from ._errors import CallTimeout, ExecAbortError, RedisError, UsageError, WatchError
from ._hooks import Hooks
from ._lane import Lane
from ._options import ConnectionOptions, Limits
from ._pipeline import Pipeline, pipeline_request
from ._request import Request, request_of
from ._routing import Effect
from ._slots import CallSlot, TransactionCall, fail
from ._state import LinkState


class Default(Enum):
    """Stands for what a client was made with, where None means something else."""

    CLIENTS = "what the client was made with"


DEFAULT: Final = Default.CLIENTS


class DedicatedClient:
    """What `Client.lease` and `ClientPool` lend. Every command is let in, but those that change what a reply is.

    It connects once: with its connection all that was set up on it is gone, so after a loss each call raises
    ConnectionLost. A command that blocks may take its own block time and ``timeout`` on top; one that is late ends
    the connection, since whatever comes then would be late too.
    """

    def __init__(
        self, options: ConnectionOptions, limits: Limits, decode: str | None = None, hooks: Hooks | None = None
    ) -> None:
        self._options, self._decode, self._hooks = options, decode, hooks or Hooks()
        self._timeout = limits.timeout
        # Deadlines differ from call to call here, and nothing is sent twice.
        self._limits = replace(limits, timeout=None, retry=0)
        self._loop: AbstractEventLoop | None = None
        self._lane: Lane | None = None
        self._connected_at: float | None = None
        # How many commands opened something (WATCH, MULTI), and how many of them are known to be closed again.
        self._opened = self._ended = 0
        self._changed = self._given_back = False

    def _enter(self) -> Lane:
        if self._given_back:
            raise UsageError("this client was given back, and its connection may be somebody else's: lease another one")
        loop = get_running_loop()
        if self._lane is None or loop is not self._loop:
            if self._lane is not None:
                raise RuntimeError("a dedicated client belongs to the event loop in which it was first used")
            self._loop = loop
            self._lane = Lane(self._options, self._limits, loop, self._state_changed, reconnect=False)
        return self._lane

    def _state_changed(self, state: LinkState, error: RedisError | None) -> None:
        self._connected_at = time.monotonic() if state is LinkState.CONNECTED else None
        self._hooks.connection("leased", state, error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._options.address} {'' if self.is_connected() else 'not '}connected>"

    # What a pool asks

    @property
    def connected_at(self) -> float | None:
        """When it was connected, by `time.monotonic`; None where it is not connected."""
        return self._connected_at

    @property
    def is_clean(self) -> bool:
        """Whether the next user would find nothing left on the connection: no reply to come, no key watched, no
        transaction begun, no other database or user."""
        if self._lane is None:
            return True
        return not (self._lane.busy or self._opened > self._ended or self._changed)

    def renewed(self) -> Self:
        """The same connection for its next user; this object, which the last one may still hold, is of no more use."""
        successor = type(self)(self._options, self._limits, self._decode, self._hooks)
        successor._timeout, successor._loop, successor._connected_at = self._timeout, self._loop, self._connected_at
        successor._lane, self._lane = self._lane, None
        if successor._lane is not None:
            successor._lane.on_state = successor._state_changed
        self._given_back, self._connected_at = True, None
        return successor

    def is_connected(self) -> bool:
        """Whether the connection is there, its handshake done."""
        return self._connected_at is not None

    # Calling

    @overload
    def call(self, pipeline: Pipeline, /, *, decode: str | Default | None = ...) -> Future[list[Any]]: ...

    @overload
    def call(self, *args: Argument, decode: str | Default | None = ...) -> Future[Any]: ...

    def call(self, *args: Any, decode: str | Default | None = DEFAULT) -> Future[Any]:
        """Send one command, or a `Pipeline`, and return the Future of its reply, like `Client.call`."""
        encoding = self._decode if decode is DEFAULT else checked_encoding(decode)
        is_pipeline = args and isinstance(args[0], Pipeline)
        request = pipeline_request(args) if is_pipeline else request_of(args)
        future = self.send(request, encoding)
        self._hooks.watch(future, request.name, future.get_loop())
        return future

    def send(self, request: Request, encoding: str | None) -> Future[Any]:
        """`call` without telling the hooks."""
        lane = self._enter()
        assert self._loop is not None
        future: Future[Any] = Future(loop=self._loop)
        for effect in request.effects:
            self._note(effect, future)
        if request.blocks:
            lane.expect_silence(self._loop.time() + request.blocks)
        slot = lane.send(request, future, encoding)
        if isinstance(slot, TransactionCall):
            self._note(Effect.CLOSES, future)
        if self._timeout is not None and request.blocks < math.inf:
            seconds = request.blocks + self._timeout
            timer = self._loop.call_later(seconds, self._late, slot, seconds)
            future.add_done_callback(partial(_cancel, timer))
        return future

    def _note(self, effect: Effect, future: Future[Any]) -> None:
        if effect is Effect.OPENS:
            self._opened += 1
            self._enter().allow_pings(False)
        elif effect is Effect.CLOSES:
            future.add_done_callback(partial(self._closes, self._opened))
        elif effect is Effect.STAYS:
            self._changed = True

    def _closes(self, opened: int, future: Future[Any]) -> None:
        """Only its reply tells that it did: it may not have been sent, or be refused, or queued (UNWATCH)."""
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, WatchError | ExecAbortError) or (
            error is None and future.result() not in (b"QUEUED", "QUEUED")
        ):
            self._ended = opened
            if opened == self._opened and self._lane is not None:
                self._lane.allow_pings(True)

    def _late(self, slot: CallSlot, seconds: float) -> None:
        if slot.done():
            # It was answered in this very turn of the loop.
            return
        connection = None if self._lane is None else self._lane.connection
        fail(slot, CallTimeout(seconds, maybe_executed=connection is not None))
        if connection is None:
            self.disconnect()
        else:
            connection.abort(connection.lost(f"a call was not answered within {seconds:g} s"))

    # The connection

    async def connect(self) -> None:
        """Connect if that was not done yet. Raises ConnectError, or ConnectionLost once it was lost."""
        await self._enter().connect()

    def disconnect(self) -> None:
        """Drop the connection for good, and all calls that wait, which raise ClosedError."""
        if self._lane is not None and self._loop is not None and not self._loop.is_closed():
            self._lane.disconnect("the client was disconnected")

    async def aclose(self) -> None:
        """Disconnect, and return when the socket is given back."""
        if self._lane is not None and self._loop is get_running_loop():
            await self._lane.aclose()


def _cancel(timer: Any, future: Future[Any]) -> None:
    timer.cancel()
