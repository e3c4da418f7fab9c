"""A TCP proxy between a client and its server that breaks the network as real ones do, when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl as tls  # `ssl` is an option
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeAlias

_READ_SIZE: Final = 64 * 1024

# Reads that are on their way at most. Beyond that the sender feels that nothing gets through, as in a real network.
_PIECES_ON_THEIR_WAY: Final = 16

# Close with a RST, and drop what was not sent yet: linger, for 0 seconds.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

# When something came, and what: bytes, none of them at the end, or why it ended.
_Pieces: TypeAlias = asyncio.Queue[tuple[float, bytes | OSError]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with one way through a `FaultProxy`; by default nothing is."""

    chunk_size: int | None = None
    """So many bytes at most go out in one piece."""
    delay: float = 0.0
    """Seconds that everything takes."""
    bandwidth: float = math.inf
    """Bytes per second, of all connections together."""
    black_hole: bool = False
    """Nothing comes out, neither bytes nor the news of an end, until it is healed; then all of it does, as TCP would
    have sent it again."""
    hold_at: bytes = b""
    """Where this comes within one read the rest of its connection is in a black hole, itself included."""
    cut_at: bytes = b""
    """Where this comes within one read its connection ends, in order, before it."""


class FaultProxy:
    """Forwards connections from a free port of 127.0.0.1 to a server, in the event loop of the test::

        async with FaultProxy(server.port) as proxy, Client(proxy.url) as client:
            proxy.to_client.faults = Faults(chunk_size=1)
            ...
            proxy.disturb(Faults(black_hole=True))
            ...
            proxy.heal()

    Everything but its beginning and end is a plain function; faults hold for the connections that live and for those
    to come. ``target`` is where to, a port of 127.0.0.1 or (host, port); another one may be set, for the connections
    to come.

    With ``ssl``, the context of a TLS server, clients speak TLS, and the server need not. Faults then befall the
    encrypted bytes, as in a real network.
    """

    def __init__(self, target: int | tuple[str, int], *, ssl: tls.SSLContext | None = None) -> None:
        self.target = ("127.0.0.1", target) if isinstance(target, int) else target
        self.port = 0
        self.connections = 0
        """How many were accepted in all."""
        self.to_server = Way()
        self.to_client = Way()
        self._reserved: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._tunnels: set[_Tunnel] = set()
        self._tls_end = None if ssl is None else _TlsEnd(self, ssl)

    @property
    def url(self) -> str:
        return f"{'rediss' if self._tls_end else 'redis'}://127.0.0.1:{self.port}"

    @property
    def next_hop(self) -> tuple[str, int]:
        """Where a connection leads that is made now: to the server, or to where TLS ends."""
        return self._tls_end.address if self._tls_end else self.target

    @property
    def live(self) -> int:
        """How many connections there are."""
        return len(self._tunnels)

    async def __aenter__(self) -> Self:
        # Bound and never listening, it keeps the port while `refuse` holds.
        self._reserved = _bound(0)
        self.port = self._reserved.getsockname()[1]
        if self._tls_end:
            await self._tls_end.start()
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        tasks = [tunnel.task for tunnel in self._tunnels]
        self.hang_up()
        if tasks:
            await asyncio.wait(tasks)
        if self._tls_end:
            await self._tls_end.aclose()
        if self._reserved is not None:
            self._reserved.close()

    # Faults

    def disturb(self, faults: Faults) -> None:
        """The same faults for both ways; one of them is set by `to_server.faults` or `to_client.faults`."""
        self.to_server.faults = self.to_client.faults = faults

    def heal(self) -> None:
        """No faults any more, no cut to come, and new connections are accepted."""
        for way in (self.to_server, self.to_client):
            way.heal()
        self._listen()

    def refuse(self) -> None:
        """Refuse new connections, as a server that is not there; those that live stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def reset(self) -> None:
        """End every connection with a RST to both sides."""
        self._end_all(reset=True)

    def hang_up(self) -> None:
        """End every connection in order, with a FIN to both sides. What was on its way is lost."""
        self._end_all(reset=False)

    def _end_all(self, *, reset: bool) -> None:
        for tunnel in self._tunnels:
            tunnel.end(reset=reset)

    # Connections

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.setblocking(False)
            self._listener.listen(1024)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        # Whoever was there may have gone again.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            near, _ = self._listener.accept()
            self.connections += 1
            self._tunnels.add(_Tunnel(near, self, self._tunnels.discard))


class Way:
    """One of the two ways through a `FaultProxy`, for all connections."""

    def __init__(self) -> None:
        self.bytes = 0
        """How many came out in all."""
        self._faults = Faults()
        self._changed = asyncio.Event()
        self._left: int | None = None
        self._reset_at_cut = False
        # When the line has sent what it was given, on the clock of the loop.
        self._line_free_at = 0.0

    @property
    def faults(self) -> Faults:
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self._line_free_at = 0.0
        self._changed.set()
        self._changed = asyncio.Event()

    def cut_after(self, count: int, *, reset: bool = False) -> None:
        """Let `count` more bytes through, then end the connection that brought the last of them: in order, or with a
        RST. Only that one, once; with several connections their bytes are counted together."""
        self._left, self._reset_at_cut = count, reset

    def heal(self) -> None:
        self.faults = Faults()
        self._left = None

    async def open(self, came: float, piece: bytes = b"") -> None:
        """Return when `piece`, which came at that time by the clock of the loop, may go on."""
        loop = asyncio.get_running_loop()
        while True:
            seconds = max(came + self._faults.delay, self._line_free_at) - loop.time()
            hold_at = self._faults.hold_at
            if self._faults.black_hole or (hold_at and piece.startswith(hold_at)):
                await self._changed.wait()
            elif seconds <= 0:
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._changed.wait()

    async def forward(self, pieces: _Pieces, sink: socket.socket) -> None:
        """Bring pieces to `sink` up to their end. Raises OSError, or `_Cut`."""
        while True:
            came, piece = await pieces.get()
            if not piece:
                break
            while piece:
                if isinstance(piece, OSError):
                    await self.open(came)
                    raise piece
                await self.open(came, piece)
                if self._faults.cut_at and piece.startswith(self._faults.cut_at):
                    raise _Cut(reset=False)
                size = self._next_size(piece)
                await asyncio.get_running_loop().sock_sendall(sink, piece[:size])
                piece = piece[size:]
                self._sent(size)
                if self._faults.chunk_size is not None:
                    # A reader in this loop is woken in the next turn, behind us, and has read in the one after it:
                    # so each chunk is a read of its own.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
        await self.open(came)
        sink.shutdown(socket.SHUT_WR)

    def _next_size(self, piece: bytes) -> int:
        size = len(piece)
        for word in (self._faults.hold_at, self._faults.cut_at):
            if word and word in piece:
                # It does not stand at the beginning, or we would not be here.
                size = min(size, piece.index(word))
        if self._faults.chunk_size is not None:
            size = min(size, self._faults.chunk_size)
        if self._faults.bandwidth < math.inf:
            # A hundredth of a second's worth, so that a slow line drips rather than bursts.
            size = min(size, math.ceil(self._faults.bandwidth / 100))
        return size if self._left is None else min(size, self._left)

    def _sent(self, size: int) -> None:
        self.bytes += size
        now = asyncio.get_running_loop().time()
        self._line_free_at = max(now, self._line_free_at) + size / self._faults.bandwidth
        if self._left is not None:
            self._left -= size
            if not self._left:
                self._left = None
                raise _Cut(self._reset_at_cut)


class _Cut(Exception):
    """So many bytes were to come through, and no more."""

    def __init__(self, reset: bool) -> None:
        self.reset = reset


class _Tunnel:
    """One connection through the proxy. `near` is the client's side."""

    def __init__(self, near: socket.socket, proxy: FaultProxy, ended: Callable[[_Tunnel], None]) -> None:
        self._near = near
        self._far = socket.socket()
        self._proxy, self._ended = proxy, ended
        self._reset = False
        self._ways: list[asyncio.Task[None]] = []
        for side in (self._near, self._far):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.task = asyncio.get_running_loop().create_task(self._run())
        # Not in a `finally` of the task: cancelled before it began, it would never get there.
        self.task.add_done_callback(lambda task: self._close())

    def end(self, *, reset: bool) -> None:
        self._reset = reset
        if not reset:
            # The FIN goes out now: closing with bytes that nobody has read would make a RST of it.
            for side in (self._near, self._far):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
        # Not the task alone, which would tell them a turn later: what was held up is not to come out in between,
        # though all be healed by then.
        for task in (*self._ways, self.task):
            task.cancel()

    async def _run(self) -> None:
        loop, proxy = asyncio.get_running_loop(), self._proxy
        try:
            # To a server behind a black hole there is no connection, even if we have accepted it already.
            await proxy.to_server.open(loop.time())
            await loop.sock_connect(self._far, proxy.next_hop)
            async with asyncio.TaskGroup() as group:
                for way, source, sink in (
                    (proxy.to_server, self._near, self._far),
                    (proxy.to_client, self._far, self._near),
                ):
                    pieces: _Pieces = asyncio.Queue(_PIECES_ON_THEIR_WAY)
                    self._ways.append(group.create_task(_listen_to(source, pieces)))
                    self._ways.append(group.create_task(way.forward(pieces, sink)))
        except* _Cut as cuts:
            self._reset = any(isinstance(cut, _Cut) and cut.reset for cut in cuts.exceptions)
        except* OSError:
            # One side is gone with a RST: so the other one is told.
            self._reset = True

    def _close(self) -> None:
        for side in (self._near, self._far):
            if self._reset:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            side.close()
        self._ended(self)


async def _listen_to(source: socket.socket, pieces: _Pieces) -> None:
    loop = asyncio.get_running_loop()
    piece: bytes | OSError = b"-"
    while piece and isinstance(piece, bytes):
        try:
            piece = await loop.sock_recv(source, _READ_SIZE)
        except OSError as error:
            piece = error
        await pieces.put((loop.time(), piece))


class _TlsEnd:
    """Stands between the faults and the server: decrypts what comes, and encrypts what goes back."""

    def __init__(self, proxy: FaultProxy, context: tls.SSLContext) -> None:
        self._proxy, self._context = proxy, context
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()

    async def aclose(self) -> None:
        """Return when every connection has ended, after those who made them have."""
        self._server.close()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(*self._proxy.target)
            writers.append(server_writer)
            await asyncio.gather(_pipe(reader, server_writer), _pipe(server_reader, writer))
        for side in writers:
            # Not politely: nobody may be there to answer the end of TLS.
            side.transport.abort()
            with contextlib.suppress(OSError):
                await side.wait_closed()
        self._tasks.discard(task)


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while piece := await source.read(_READ_SIZE):
            sink.write(piece)
            await sink.drain()
    finally:
        # Which ends the pipe the other way as well.
        sink.close()


def _bound(port: int) -> socket.socket:
    """A socket bound to that port of 127.0.0.1, to which others like it may be bound as well."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
