"""The client: one shared connection, made when needed, on which every caller's commands are pipelined.

A command waits in one queue until it is written, connected or not; then its slot waits in the connection's session
for the reply. The queue is written once per turn of the event loop, so all that the callers of one turn asked for
goes out in one piece.
"""

from __future__ import annotations

import asyncio
import codecs
import warnings
from asyncio import AbstractEventLoop, Future, Task
from collections import deque
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Any, Final, Self, Unpack, overload

from ._address import Address
from ._backoff import Backoff
from ._connection import Connection
from ._encoding import Argument, pack
from ._errors import CallTimeout, ClosedError, ConnectError, RedisError
from ._options import ConnectionKeywords, ConnectionOptions
from ._pipeline import Pipeline
from ._session import PubSubMessage, Push
from ._slots import Call, PipelineCall, Slot

MiB: Final = 1024 * 1024

# What goes to the transport in one piece. It also bounds what a lost connection leaves in doubt.
_WRITE_SIZE: Final = 256 * 1024


class _Default(Enum):
    CLIENTS = "what the client was made with"


class Client:
    """A Redis or Valkey client for asyncio (and Tornado). Make it anywhere, also before a loop runs::

        client = Client("redis://localhost")
        await client.call("SET", "greeting", "hello")
        assert await client.call("GET", "greeting") == b"hello"

    Where to: a URL (``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, ``unix:///path``) or
    ``host``, ``port``, ``db``, ``username``, ``password``, ``unix_socket_path``, ``ssl`` (True or an SSLContext);
    an option wins over the URL. ``protocol=3`` speaks RESP3 and falls back to RESP2 on servers before Redis 6.
    ``client_name`` is what CLIENT LIST shows. Times are in seconds, sizes in bytes:

    - ``connect_timeout`` covers name lookup, TCP, TLS and log-in together.
    - ``timeout`` is how long a call may take from `call` to its reply; None is for ever.
    - ``health_check_interval``: a connection that is silent for so long is asked for a sign of life, and given up
      when none comes within as long again. A server that is kept busy longer by one command looks dead.
    - ``max_in_flight`` commands and ``max_in_flight_bytes`` at most are written and not answered yet; the rest wait
      in order. A larger command or pipeline goes when nothing else is in flight.
    - ``decode="utf-8"`` gives text instead of bytes.

    The connection is made by the first call and again whenever it was lost; attempts are spaced by a jittered
    exponential back-off. A command that was not written yet waits for the next connection; one that was written gets
    `ConnectionLost`, since nobody knows whether it was executed, and is never sent twice.

    Blocking commands (BLPOP, XREAD BLOCK …) and WATCH hold up or disturb all others on a shared connection: give
    them a client of their own.

    Raises BadAddress for a URL or options that make no sense.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        decode: str | None = None,
        timeout: float | None = 10.0,
        max_in_flight: int = 4096,
        max_in_flight_bytes: int = 16 * MiB,
        **connection: Unpack[ConnectionKeywords],
    ) -> None:
        self._closed = False
        self._connection: Connection | None = None
        self._options = ConnectionOptions.parse(url, **connection)
        if timeout is not None and timeout <= 0:
            raise ValueError("timeout must be above 0 seconds, or None")
        if max_in_flight < 1 or max_in_flight_bytes < 1:
            raise ValueError("max_in_flight and max_in_flight_bytes must be at least 1")
        if decode is not None:
            codecs.lookup(decode)
        self._decode = decode
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._backoff = Backoff()
        self._enter(None)

    def _enter(self, loop: AbstractEventLoop | None) -> None:
        """Begin anew in this event loop; what belonged to another one died with it."""
        self._loop = loop
        self._connection = None
        self._proven = False
        self._not_before = 0.0
        self._connecting: Task[None] | None = None
        self._connect_waiters: list[Future[None]] = []
        self._unwritten: deque[Call | PipelineCall] = deque()
        self._flush_scheduled = False
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._now = 0.0

    @property
    def address(self) -> Address:
        """Where it connects to."""
        return self._options.address

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.is_connected() else "not connected"
        return f"<{type(self).__name__} {self.address} {state}>"

    def is_connected(self) -> bool:
        """Whether there is a connection whose handshake is done."""
        return self._connection is not None and self._loop is not None and not self._loop.is_closed()

    # Calling

    @overload
    def call(self, pipeline: Pipeline, /, *, decode: str | _Default | None = ...) -> Future[list[Any]]: ...

    @overload
    def call(self, *args: Argument, decode: str | _Default | None = ...) -> Future[Any]: ...

    def call(self, *args: Any, decode: str | _Default | None = _Default.CLIENTS) -> Future[Any]:
        """Send one command, or a `Pipeline`, and return the Future of its reply.

        Arguments are str, bytes, bytearray, memoryview, int and float. Replies are bytes, int, float, bool, None,
        list and dict as RESP has them; ``decode="utf-8"`` turns bytes into str, ``decode=None`` does not. A pipeline's
        replies are one list in order, with error replies as elements.

        A plain function: what it is called with is taken at once and goes out with all else that is called in this
        turn of the event loop, whether its Future is awaited or not. Cancelling the Future, also by cancelling the
        task that awaits it, keeps a command from being sent if it was not yet, and else only drops its reply.

        Raises TypeError at once for an argument that Redis cannot take, and RuntimeError outside of a running loop.
        The Future raises ResponseError or one of its kin, ConnectError, ConnectionLost, CallTimeout, ClosedError, or
        UnicodeError for a reply that is not in the encoding wanted.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        encoding = self._decode if decode is _Default.CLIENTS else decode
        future: Future[Any] = loop.create_future()
        call: Call | PipelineCall
        if len(args) == 1 and isinstance(args[0], Pipeline):
            pipeline = args[0]
            if not pipeline:
                future.set_result([])
                return future
            call = PipelineCall(pipeline.packed(), len(pipeline), future, encoding)
        else:
            call = Call(pack(args), future, encoding)
        if self._closed:
            future.set_exception(ClosedError())
            return future
        if not self._flush_scheduled:
            self._begin_turn(loop)
        call.made_at = self._now
        self._unwritten.append(call)
        return future

    def _begin_turn(self, loop: AbstractEventLoop) -> None:
        """What is needed once for all calls of one turn of the loop: one look at the clock, one flush."""
        self._now = loop.time()
        self._flush_scheduled = True
        loop.call_soon(self._flush)
        if self._deadline_timer is None and self._timeout is not None:
            self._deadline_timer = loop.call_at(self._now + self._timeout, self._expire)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._write_waiting()

    def _write_waiting(self) -> None:
        """Write what may be written now: in order, in large pieces, within the bounds on what is in flight."""
        connection, unwritten = self._connection, self._unwritten
        if connection is None:
            if unwritten:
                self._start_connecting()
            return
        while unwritten and connection.writable:
            idle = not connection
            room = self._max_in_flight - len(connection)
            byte_room = min(self._max_in_flight_bytes - connection.in_flight_bytes, _WRITE_SIZE)
            commands: list[bytes] = []
            slots: list[Slot] = []
            while unwritten:
                call = unwritten[0]
                if not call.future.done():
                    room -= call.replies
                    byte_room -= len(call.command)
                    if (room < 0 or byte_room < 0) and (slots or not idle):
                        break
                    commands.append(call.command)
                    if call.replies == 1:
                        slots.append(call)
                    else:
                        slots += [call] * call.replies
                unwritten.popleft()
            if not slots:
                return
            connection.write(b"".join(commands), slots)

    def _expire(self) -> None:
        """Time out what is due. Calls are due in the order they were made, so one timer does for all."""
        assert self._timeout is not None
        assert self._loop is not None
        now = self._loop.time()
        due = now - self._timeout
        left: float | None = None
        self._deadline_timer = None
        for slot in () if self._connection is None else self._connection.awaited():
            if isinstance(slot, Call | PipelineCall) and not slot.future.done():
                if slot.made_at > due:
                    left = slot.made_at
                    break
                slot.fail(CallTimeout(self._timeout, maybe_executed=True))
        while self._unwritten and self._unwritten[0].made_at <= due:
            self._unwritten.popleft().fail(CallTimeout(self._timeout, maybe_executed=False))
        if left is None and self._unwritten:
            left = self._unwritten[0].made_at
        if left is not None:
            # Not for each call by its own: a hundredth of the time-out is precise enough.
            when = max(left + self._timeout, now + self._timeout / 100)
            self._deadline_timer = self._loop.call_at(when, self._expire)

    # The connection

    async def connect(self) -> None:
        """Connect now rather than at the first call. Raises ConnectError or ClosedError."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        if self._closed:
            raise ClosedError
        if self._connection is None:
            waiter: Future[None] = loop.create_future()
            self._connect_waiters.append(waiter)
            self._start_connecting()
            await waiter

    def disconnect(self) -> None:
        """Drop the connection and all calls that wait, which raise ClosedError. The next call connects again."""
        task, self._connecting = self._connecting, None
        connection, self._connection = self._connection, None
        if self._loop is None or self._loop.is_closed():
            return
        if task is not None:
            task.cancel()
        self._fail_waiting(lambda: ClosedError("the client was disconnected"))
        if connection is not None:
            connection.abort(ClosedError("the client was disconnected"))

    async def aclose(self) -> None:
        """Disconnect for good and return when the socket is given back. Later calls raise ClosedError."""
        self._closed = True
        task, connection = self._connecting, self._connection
        self.disconnect()
        if self._loop is not asyncio.get_running_loop():
            return
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if task is not None:
            await asyncio.wait((task,))
        if connection is not None:
            await connection.wait_released()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Nothing is closed here: the loop may be gone, or be busy in another thread.
        if not self._closed and self._connection is not None:
            warnings.warn(f"{self!r} was never closed: await its aclose()", ResourceWarning, source=self, stacklevel=2)

    def _move_to(self, loop: AbstractEventLoop) -> None:
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError("this client is in use in another running event loop: make one for each")
        self._enter(loop)

    def _start_connecting(self) -> None:
        """One attempt at a time, however many wait for it."""
        if self._connecting is None:
            assert self._loop is not None
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            delay = self._not_before - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            connection = await Connection.open(self._options, self)
        except ConnectError as error:
            self._not_before = loop.time() + self._backoff.next_delay()
            self._connecting = None
            address, step, cause = error.address, error.step, error.cause
            self._fail_waiting(lambda: ConnectError(address, step, cause))
            return
        except asyncio.CancelledError:
            # By disconnect(), which has cleaned up; or because the loop shuts down, and nobody would try again.
            if self._connecting is asyncio.current_task():
                self.disconnect()
            raise
        self._connecting = None
        self._connection = connection
        self._proven = False
        for waiter in self._connect_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._connect_waiters.clear()
        self._write_waiting()

    def _fail_waiting(self, error: Callable[[], RedisError]) -> None:
        """Nothing of what waits was sent: say so to each, with an error of its own."""
        calls, self._unwritten = self._unwritten, deque()
        waiters, self._connect_waiters = self._connect_waiters, []
        for call in calls:
            call.fail(error())
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error())

    # What the connection tells its owner

    def messages_received(self, messages: list[PubSubMessage], size: int) -> None:
        """Dropped: who wants messages uses a `PubSubClient`."""

    def push_received(self, push: Push) -> None:
        """Dropped: nothing was asked for that the server could push."""

    def has_room(self) -> None:
        self._proven = True
        if self._unwritten:
            self._write_waiting()

    def connection_lost(self, error: RedisError) -> None:
        self._connection = None
        if isinstance(error, ClosedError):
            return
        assert self._loop is not None
        if self._proven:
            self._backoff.reset()
        else:
            # The server took us only to send us away: that is no better than a refusal.
            self._not_before = self._loop.time() + self._backoff.next_delay()
        if self._unwritten:
            self._start_connecting()
