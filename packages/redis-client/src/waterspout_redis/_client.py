"""The client: which connection each command takes. The connections themselves are lanes (`_lane`, `_dedicated`)."""

from __future__ import annotations

import asyncio
import warnings
from asyncio import AbstractEventLoop, Future, get_running_loop
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack, overload

from ._address import Address
from ._backoff import Backoff
from ._dedicated import DEFAULT, DedicatedClient, Default
from ._encoding import HUGE_VALUE, Argument, Packed, checked_encoding, pack_parts, pack_plain
from ._errors import ClosedError, ConnectError, UsageError
from ._hooks import Hooks, OnCommand, OnConnection
from ._lane import LONGEST_DELAY, Lane
from ._options import ConnectionKeywords, ConnectionOptions, Limits, MiB, check_options
from ._pipeline import Pipeline, pipeline_request
from ._pool import Pool
from ._request import Request, request_of
from ._routing import RULES, UNKNOWN, name_of
from ._slots import DecodedCall
from ._state import LinkState

BULK: Final = HUGE_VALUE
"""A command of more bytes than this goes by the bulk lane."""

# With nothing in flight the server is idle: it gets the first of many calls at once, and works on them while the others
# are still being made. 50 callers got a quarter more done so, where client and server had a core each.
_HEAD_START: Final = 16


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
    - ``keepalive``: after so long without traffic the operating system asks too; None: it does not.
    - ``max_in_flight`` commands and ``max_in_flight_bytes`` at most are written and not answered yet; the rest wait
      in order. A larger command or pipeline goes when nothing else is in flight.
    - ``retry``: for how many more attempts to connect a command waits, and how often one that only reads is sent
      again when its answer was lost. A command that may write is never sent twice. When that many attempts in a row
      have failed, a command waits for the next one only, at most a second; with 0 it does not even do that, and fails
      at once until it is time to try again.
    - ``max_leases``: how many connections there may be for blocking commands and `lease`.
    - ``max_reply_bytes``: a server that sends more for one reply is given up. 1 GiB is twice what Redis allows a value.
    - ``decode="utf-8"`` gives text instead of bytes.

    Three kinds of connections, made when needed, all by themselves, and again whenever they were lost, with a jittered
    exponential back-off:

    - the shared one, on which nearly all commands of all callers are pipelined;
    - one for bulk: commands of more than 256 KiB, and calls with ``bulk=True``, for whose reply is large. Between the
      two no order holds but that of awaiting;
    - leased ones: each command that blocks (BLPOP, XREAD BLOCK …) has one to itself until it is answered, with a
      deadline of its own block time and ``timeout`` on top. When its caller is cancelled the connection is closed,
      and the server may have popped an element for nobody: where that matters, use BLMOVE to a list of one's own.

    What was written when a connection broke gets `ConnectionLost` where it is not sent again, since nobody knows
    whether it was executed.

    ``on_connection(lane, state, error)`` is called for each change of a connection ("shared", "bulk", "leased"), and
    ``on_command(name, seconds, error)`` for each command that ended, however it ended.

    Raises TypeError for an option that there is not or a value of a wrong type, and BadAddress, ValueError or (for
    ``decode``) LookupError for a URL or options that make no sense.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        decode: str | None = None,
        timeout: float | None = 10.0,
        max_in_flight: int = 4096,
        max_in_flight_bytes: int = 16 * MiB,
        retry: int = 3,
        max_leases: int = 64,
        on_connection: OnConnection | None = None,
        on_command: OnCommand | None = None,
        **connection: Unpack[ConnectionKeywords],
    ) -> None:
        self._closed = True  # until it is made: __del__ looks
        self._loop: AbstractEventLoop | None = None
        self._shared: Lane | None = None
        self._bulk: Lane | None = None
        check_options(
            self,
            connection,
            url=url,
            decode=decode,
            timeout=timeout,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            retry=retry,
            max_leases=max_leases,
            on_connection=on_connection,
            on_command=on_command,
        )
        self._options = ConnectionOptions.parse(url, **connection)
        self._limits = Limits(timeout, max_in_flight, max_in_flight_bytes, retry)
        self._decode = decode
        self._hooks = Hooks(on_connection, on_command)
        self._watched = on_command is not None
        self._leases: Pool[DedicatedClient] = Pool(self._dedicated, max_leases, wait_timeout=timeout)
        self._closed = False

    def _dedicated(self) -> DedicatedClient:
        return DedicatedClient(self._options, self._limits, self._decode, self._hooks)

    def _lane(self, name: str) -> Lane:
        assert self._loop is not None
        lane = Lane(self._options, self._limits, self._loop, partial(self._hooks.connection, name))
        if self._closed:
            lane.lost = ClosedError()
        return lane

    def _move_to(self, loop: AbstractEventLoop) -> None:
        """Begin anew in this event loop; what belonged to another one died with it."""
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError("this client is in use in another running event loop: make one for each")
        self._loop = loop
        self._shared = self._lane("shared")
        self._bulk = None
        if not self._closed:
            self._leases.forget()

    @property
    def address(self) -> Address:
        """Where it connects to."""
        return self._options.address

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.is_connected() else "not connected"
        return f"<{type(self).__name__} {self.address} {state}>"

    def is_connected(self) -> bool:
        """Whether the shared connection is there, its handshake done."""
        return (
            self._shared is not None
            and self._shared.connection is not None
            and self._loop is not None
            and not self._loop.is_closed()
        )

    @property
    def in_flight(self) -> int:
        """How many commands were written to the shared connection and are not answered yet."""
        return 0 if self._shared is None else self._shared.in_flight

    @property
    def in_flight_bytes(self) -> int:
        """Their bytes, counted by whole pieces that were written at once."""
        return 0 if self._shared is None else self._shared.in_flight_bytes

    @property
    def waiting(self) -> int:
        """How many calls wait to be written to the shared connection. Nothing bounds them but `timeout`: who calls
        faster than Redis answers has to await."""
        return 0 if self._shared is None else self._shared.waiting

    # Calling

    @overload
    def call(
        self, pipeline: Pipeline, /, *, decode: str | Default | None = ..., bulk: bool = ...
    ) -> Future[list[Any]]: ...

    @overload
    def call(self, *args: Argument, decode: str | Default | None = ..., bulk: bool = ...) -> Future[Any]: ...

    def call(self, *args: Any, decode: str | Default | None = DEFAULT, bulk: bool = False) -> Future[Any]:
        """Send one command, or a `Pipeline`, and return the Future of its reply.

        Arguments are str, bytes, bytearray, memoryview, int and float. Replies are bytes, int, float, bool, None,
        list and dict as RESP has them; ``decode="utf-8"`` turns bytes into str, ``decode=None`` does not. A pipeline's
        replies are one list in order, with error replies as elements. ``bulk=True`` says that the reply is large.

        A plain function: what it is called with is taken at once and goes out with all else that is called in this
        turn of the event loop, whether its Future is awaited or not. Cancelling the Future, also by cancelling the
        task that awaits it, keeps a command from being sent if it was not yet, and else only drops its reply.

        Raises at once TypeError for an argument that Redis cannot take, LookupError for ``decode`` with no encoding of
        text, UsageError for a command that would disturb all others on the shared connection (WATCH, MULTI and SELECT
        among them: see `lease`), and RuntimeError outside of a running loop. The Future raises ResponseError or one of
        its kin, ConnectError, ConnectionLost, CallTimeout, ClosedError, PoolTimeout for a blocking command when no
        connection became free, or UnicodeError for a reply that is not in the encoding wanted.
        """
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        encoding = self._decode if decode is DEFAULT else checked_encoding(decode)
        if args and isinstance(args[0], Pipeline):
            return self._send(pipeline_request(args), encoding, bulk)
        command: Packed | None = pack_plain(args)
        if command is None:
            command = pack_parts(args)
        if RULES.get(args[0], UNKNOWN) is not None:
            return self._send(request_of(args), encoding, bulk)
        lane = self._shared if len(command) <= BULK and not bulk else self._bulk or self._make_bulk()
        future: Future[Any] = Future(loop=loop)
        turn = lane.turn or lane.begin_turn()  # type: ignore[union-attr]  # there is one for this loop
        turn.commands.append(command)
        turn.slots.append(future if encoding is None else DecodedCall(future, encoding))
        if len(turn.slots) == _HEAD_START and not lane.in_flight:  # type: ignore[union-attr]
            lane.head_start()  # type: ignore[union-attr]
        if self._watched:
            self._hooks.watch(future, name_of(args), loop)
        return future

    def _send(self, request: Request, encoding: str | None, bulk: bool) -> Future[Any]:
        """The same for what may have something special about it."""
        loop = get_running_loop()
        if request.effects:
            why = request.effects[0].value
            raise UsageError(f"{request.name} needs a connection of one's own, as it {why}: use client.lease()")
        future: Future[Any]
        if request.blocks > 0:
            future = loop.create_task(self._call_leased(request, encoding))
        else:
            future = Future(loop=loop)
            lane = self._shared if len(request.command) <= BULK and not bulk else self._bulk or self._make_bulk()
            assert lane is not None
            lane.send(request, future, encoding)
        self._hooks.watch(future, request.name, loop)
        return future

    def _make_bulk(self) -> Lane:
        self._bulk = self._lane("bulk")
        return self._bulk

    async def _call_leased(self, request: Request, encoding: str | None) -> Any:
        backoff = Backoff(LONGEST_DELAY)
        for left in reversed(range(self._limits.retry + 1)):
            try:
                async with self._leases.connected_client() as client:
                    return await client.send(request, encoding)
            except ConnectError:
                # Nothing was sent.
                if not left:
                    raise
                await asyncio.sleep(backoff.next_delay())
        raise AssertionError("not reached")

    def lease(self) -> AbstractAsyncContextManager[DedicatedClient]:
        """A connection of one's own, for WATCH and all that leaves state on a connection::

            async with client.lease() as leased:
                await leased.call("WATCH", "stock")
                left = int(await leased.call("GET", "stock"))
                transaction = Pipeline(atomic=True)
                transaction.stack_call("SET", "stock", left - 1)
                await leased.call(transaction)  # WatchError when somebody else changed it

        It waits in order where ``max_leases`` are in use, for ``timeout`` at most: PoolTimeout. Raises ConnectError and
        ClosedError. At the end the connection is kept for the next one, or closed if anything is left on it.
        """
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        return self._leases.connected_client()

    # The connections

    async def connect(self) -> None:
        """Connect now rather than at the first call. Raises ConnectError or ClosedError."""
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        assert self._shared is not None
        await self._shared.connect()

    def disconnect(self) -> None:
        """Drop all connections and all calls that wait, which raise ClosedError. The next call connects again."""
        if self._loop is None or self._loop.is_closed():
            return
        for lane in (self._shared, self._bulk):
            if lane is not None:
                lane.disconnect("the client was disconnected")
        self._leases.disconnect()

    async def aclose(self) -> None:
        """Disconnect for good and return when the sockets are given back. Later calls raise ClosedError."""
        self._closed = True
        lanes = [lane for lane in (self._shared, self._bulk) if lane is not None]
        mine = self._loop is get_running_loop()
        self._loop = self._shared = self._bulk = None
        if mine:
            for lane in lanes:
                await lane.aclose()
            await self._leases.aclose()
        else:
            # Their event loop is gone, and what they held with it.
            self._leases.forget()
        if lanes:
            self._hooks.connection("shared", LinkState.CLOSED, None)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Nothing is closed here: the loop may be gone, or be busy in another thread.
        lanes = (self._shared, self._bulk)
        if not self._closed and (len(self._leases) or any(lane is not None and lane.connection for lane in lanes)):
            warnings.warn(f"{self!r} was never closed: await its aclose()", ResourceWarning, source=self, stacklevel=2)
