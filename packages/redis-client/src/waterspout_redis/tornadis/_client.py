"""One connection that takes every command, and whose errors are results."""

from __future__ import annotations

import logging
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from .._backoff import Backoff
from .._encoding import pack
from .._errors import ConnectError, RedisError
from .._lane import Lane
from .._options import ConnectionOptions, Limits
from .._routing import Effect, name_of, rule_for
from .._slots import PipelineCall
from .._state import LinkState
from ._errors import ClientError, ConnectionError, TornadisException, as_result, no_reply
from ._pipeline import Pipeline
from ._settings import Settings
from ._write_buffer import WriteBuffer

logger: Final = logging.getLogger("waterspout.redis")

# Nothing is ever sent twice: who has a connection of his own may have state on it.
_LIMITS: Final = Limits(timeout=None, retry=0)


class _NoBackoff(Backoff):
    """It connects when it is called, never by itself: then the caller wants to know now."""

    def next_delay(self) -> float:
        return 0.0


class Client:
    """A client of one connection, made with the first call (and again after it was lost) if ``autoconnect`` is True.

    ``password`` and ``db`` are for every connection; the other options are those of `Settings`. Raises TypeError or
    ValueError for options that make no sense.
    """

    def __init__(
        self, autoconnect: bool = True, password: str | None = None, db: int = 0, **connection_kwargs: Any
    ) -> None:
        self.autoconnect, self.password, self.db = autoconnect, password, db
        self.connection_kwargs = connection_kwargs
        self.subscribed = False
        self._settings = Settings(**connection_kwargs)
        self._options = ConnectionOptions.parse(None, **self._settings.keywords(password, db, protocol=2))
        self._lane: Lane | None = None
        self._loop: AbstractEventLoop | None = None
        self._connected_at: float | None = None
        self._changed_at = time.monotonic()
        self._quiet_until = 0.0
        self._in_transaction = self._altered = False

    def _enter(self) -> Lane:
        loop = self._settings.loop()
        if self._lane is None or loop is not self._loop:
            if self._loop is not None and self._loop.is_running():
                raise RuntimeError("this client is in use in another running event loop: make one for each")
            self._loop, self._connected_at = loop, None
            self._lane = Lane(self._options, _LIMITS, loop, self._state_changed, backoff=_NoBackoff())
        return self._lane

    def _state_changed(self, state: LinkState, error: RedisError | None) -> None:
        was_connected = self._connected_at is not None
        self._changed_at = time.monotonic()
        self._connected_at = self._changed_at if state is LinkState.CONNECTED else None
        if error is not None:
            logger.warning("%s", error)
        if state is LinkState.DISCONNECTED:
            self._in_transaction = self._altered = False
        if was_connected and self._lane is not None:
            # Nothing that was called for this connection goes to the next one: it may be the rest of a transaction.
            self._lane.disconnect("closed connection")

    # Calling

    def call(self, *args: Any) -> Future[Any]:
        """Send one command, or one `Pipeline`, and return the Future of its reply, or of the list of its replies.

        Arguments are str (sent as UTF-8), bytes, int and `WriteBuffer`. Raises TypeError at once for another. All
        other errors are results: ConnectionError and ClientError. A pipeline that was cut half-way gives its replies,
        and ConnectionError in place of those that are missing.
        """
        pipeline = args[0] if args and isinstance(args[0], Pipeline) else None
        commands = [_arguments(command) for command in ([args] if pipeline is None else pipeline.pipelined_args)]
        packed = b"".join(map(pack, commands))
        lane = self._enter()
        assert self._loop is not None
        future: Future[Any] = self._loop.create_future()
        if (refusal := self._refusal(commands)) is not None:
            future.set_result(refusal)
            return future
        blocks = sum(map(self._note, commands))
        if blocks and not self._settings.read_timeout > 0:
            now = self._loop.time()
            self._quiet_until = blocks + (max(now, self._quiet_until) if lane.busy else now)
            lane.expect_silence(self._quiet_until)
        turn = lane.turn or lane.begin_turn()
        turn.commands.append(packed)
        turn.slots.append(_Call(1, future, None) if pipeline is None else _PipelinedCalls(len(commands), future, None))
        return future

    def async_call(self, *args: Any, callback: Callable[[Any], object] | None = None) -> None:
        """Like `call`, but the result goes to `callback`, which is called once, or nowhere."""
        future = self.call(*args)
        if callback is not None:
            future.add_done_callback(lambda future: callback(future.result()))

    def _refusal(self, commands: list[tuple[Any, ...]]) -> TornadisException | None:
        """Why these are not sent."""
        if not commands:
            return ClientError("empty pipeline")
        if not self.autoconnect and not self.is_connected():
            return ConnectionError("you are not connected and autoconnect=False")
        for command in commands:
            rule = rule_for(command)
            # QUIT is answered like any other command, and then the connection is lost like any other.
            if rule is not None and rule.refusal is not None and name_of(command) != "QUIT":
                return ClientError(f"{name_of(command)} is not for a Client: {rule.refusal}")
        return None

    def _note(self, command: tuple[Any, ...]) -> float:
        """What it leaves on the connection is kept in mind; returned is for how many seconds it may block."""
        rule = rule_for(command)
        if rule is None:
            return 0.0
        if rule.effect is Effect.OPENS:
            self._in_transaction = True
        elif rule.effect is Effect.CLOSES:
            self._in_transaction = False
        elif rule.effect is Effect.STAYS:
            self._altered = True
        return rule.blocks(command) if rule.blocks is not None else 0.0

    # The connection

    def connect(self) -> Future[bool]:
        """Connect and log in, if that was not done yet. The Future tells whether it is connected then; the reason why
        not is logged."""
        return self._settings.loop().create_task(self._connect())

    async def _connect(self) -> bool:
        try:
            await self._enter().connect()
        except RedisError:
            return False
        return True

    def disconnect(self) -> None:
        """Drop the connection at once. Every call that waits gets a ConnectionError."""
        if self._lane is not None and self._loop is not None and not self._loop.is_closed():
            self._lane.disconnect("closed connection")

    def is_connected(self) -> bool:
        """Whether the connection is there, its log-in done."""
        return self._connected_at is not None and self._loop is not None and not self._loop.is_closed()

    @property
    def title(self) -> str:
        """Where to: "host:port", or the path of the unix socket."""
        return self._settings.title

    def get_last_state_change_timedelta(self) -> timedelta:
        """How long it has been connected, or not connected, or connecting."""
        return timedelta(seconds=time.monotonic() - self._changed_at)

    # What a pool asks

    @property
    def connected_at(self) -> float | None:
        """When it was connected, by `time.monotonic`; None where it is not connected."""
        return self._connected_at if self.is_connected() else None

    @property
    def is_clean(self) -> bool:
        """Whether the next user would find no key watched, no transaction begun, no other database or user."""
        return not (self._in_transaction or self._altered)


class _Call(PipelineCall):
    """One command; its Future never raises."""

    __slots__ = ()

    def _finish(self, future: Future[Any], results: list[Any]) -> None:
        future.set_result(as_result(results[0]))

    def fail(self, error: RedisError) -> None:
        if not self._future.done():
            self._future.set_result(no_reply(error))


class _PipelinedCalls(PipelineCall):
    """Several commands; their Future never raises."""

    __slots__ = ()

    def _finish(self, future: Future[Any], results: list[Any]) -> None:
        future.set_result(as_result(results))

    def fail(self, error: RedisError) -> None:
        if self._future.done():
            return
        if isinstance(error, ConnectError):
            self._future.set_result(no_reply(error))
        else:
            missing = self.replies - len(self._results)
            self._future.set_result([*as_result(self._results), *(no_reply(error) for _ in range(missing))])


def _arguments(command: tuple[Any, ...]) -> tuple[str | bytes | int, ...]:
    return tuple(map(_argument, command))


def _argument(value: Any) -> str | bytes | int:
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, int):
        # A bool becomes 0 or 1, a member of an IntEnum its number.
        return int(value)
    if isinstance(value, WriteBuffer):
        return bytes(value)
    raise TypeError(f"don't know what to do with {type(value)}")
