"""A client of one connection for one user: for blocking commands, WATCH, and all that leaves state on a connection."""

from __future__ import annotations

import math
import time
from asyncio import AbstractEventLoop, Future, get_running_loop
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any, Final, overload

from ._encoding import Argument, pack
from ._errors import CallTimeout, RedisError, UsageError
from ._hooks import Hooks
from ._lane import Lane
from ._options import ConnectionOptions, Limits
from ._pipeline import Pipeline
from ._routing import Effect, name_of, rule_for
from ._slots import CallSlot, DecodedCall, fail
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
        self._in_transaction = self._changed = False

    def _enter(self) -> Lane:
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
        return not (self._lane.busy or self._in_transaction or self._changed)

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
        lane = self._enter()
        assert self._loop is not None
        encoding = self._decode if decode is DEFAULT else decode
        future: Future[Any] = Future(loop=self._loop)
        slot: CallSlot
        if args and isinstance(args[0], Pipeline):
            pipeline = args[0]
            if not pipeline and not pipeline.atomic:
                future.set_result([])
                return future
            command, slot, name, blocks = (
                pipeline.packed(),
                pipeline.slot(future, encoding),
                "PIPELINE",
                pipeline.blocks,
            )
            for effect in (Effect.CLOSES,) if pipeline.atomic else pipeline.effects:
                self._note(effect)
        else:
            command, name, blocks = pack(args), name_of(args), 0.0
            slot = future if encoding is None else DecodedCall(future, encoding)
            rule = rule_for(args)
            if rule is not None:
                if rule.refusal is not None:
                    raise UsageError(f"{name} is not for call(): {rule.refusal}")
                self._note(rule.effect)
                if rule.blocks is not None:
                    blocks = rule.blocks(args)
        if blocks:
            lane.expect_silence(self._loop.time() + blocks)
        if self._timeout is not None and blocks < math.inf:
            seconds = blocks + self._timeout
            timer = self._loop.call_later(seconds, self._late, slot, seconds)
            future.add_done_callback(partial(_cancel, timer))
        turn = lane.turn or lane.begin_turn()
        turn.commands.append(command)
        turn.slots.append(slot)
        self._hooks.watch(future, name, self._loop)
        return future

    def _note(self, effect: Effect) -> None:
        if effect is Effect.OPENS:
            self._in_transaction = True
        elif effect is Effect.CLOSES:
            self._in_transaction = False
        elif effect is Effect.STAYS:
            self._changed = True

    def _late(self, slot: CallSlot, seconds: float) -> None:
        fail(slot, CallTimeout(seconds, maybe_executed=self.is_connected()))
        self.disconnect()

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
