"""One connection to a server: a session on a transport, with its handshake and its health.

The owner writes packed commands and gets an end to every slot it gave: a reply, or an error when the connection
ends. It learns through `Owner` what the server says unasked, when there is room again, and that the end has come.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import Future
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

from ._encoding import Packed, Parts, pack
from ._errors import (
    AuthenticationError,
    ClosedError,
    ConnectError,
    ConnectionLost,
    ReadOnlyError,
    RedisError,
    ResponseError,
    UnknownProtocolError,
)
from ._options import ConnectionOptions
from ._session import PubSubMessage, Push, Session
from ._slots import Slot, fail

# As much as one read may bring. Larger reads make hiredis slower, not faster.
_READ_BUFFER: Final = 128 * 1024

_WRITE_HIGH_WATER: Final = 256 * 1024

# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL.
_OTHER_HOST: Final = (62, 64)

_PING: Final = pack(("PING",))


class Owner(Protocol):
    """Who a connection works for. None of these may raise."""

    def messages_received(self, messages: list[PubSubMessage], size: int) -> None:
        """Messages came; `size` is how many bytes the read had that brought them."""

    def push_received(self, push: Push) -> None:
        """The server said something else unasked."""

    def has_room(self) -> None:
        """Replies came in, or the socket takes data again."""

    def refused_to_write(self) -> None:
        """The server answered READONLY."""

    def connection_lost(self, error: RedisError) -> None:
        """The connection ended, and why. The owner sees to the slots that were not answered."""


class Connection(asyncio.BufferedProtocol):
    """Made by `Connection.open` only, which returns it when the handshake is done."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._session: Session[Slot] = Session(max_reply_bytes=options.max_reply_bytes)
        self._buffer = bytearray(_READ_BUFFER)
        # asyncio's TLS reads on into slices of it: those of a bytearray would be copies.
        self._view = memoryview(self._buffer)
        self._transport: asyncio.Transport | None = None
        self._owner: Owner | None = None
        self._error: RedisError | None = None
        self._released = self._loop.create_future()
        self._step = "connect"
        self._health_timer: asyncio.TimerHandle | None = None
        self._health_due = 0.0
        self._last_received = self._waiting_since = self._loop.time()
        self._reading = True
        self.sent = 0
        """How many replies were asked for, ever."""
        self.quiet_until = 0.0
        """The server may owe a reply until then (in the loop's time) without a sign of life: a command blocks."""
        self.pings = True
        """False where a PING of ours would become part of a transaction."""
        self.writable = True
        """False while the transport holds more than it should: write nothing then."""

    # Making one

    @classmethod
    async def open(cls, options: ConnectionOptions, owner: Owner) -> Connection:
        """Connect and shake hands, all of it within `connect_timeout`.

        Raises ConnectError, which names the step that failed; nothing stays open then.
        """
        connection = cls(options)
        try:
            async with asyncio.timeout(options.connect_timeout):
                await connection._connect()
                await connection._shake_hands()
            if connection._error is not None:
                raise connection._error
        except BaseException as error:
            connection.abort(ClosedError("the handshake was not finished"))
            if isinstance(error, TimeoutError) and not error.args:
                # A server without TLS may wait for the rest of what it takes for a command.
                doubt = "; is it a port for TLS?" if options.ssl_context and connection._step == "connect" else ""
                late = TimeoutError(f"timed out, connect_timeout is {options.connect_timeout:g} s{doubt}")
                raise ConnectError(options.address, connection._step, late) from error
            if isinstance(error, ssl.SSLError):
                connection._step = "TLS"
                _advise(error)
            if isinstance(error, Exception):
                raise ConnectError(options.address, connection._step, error) from error
            raise
        connection._owner = owner
        connection._look_again_at(connection._last_received + options.health_check_interval)
        return connection

    async def _connect(self) -> None:
        address, loop = self._options.address, self._loop
        if address.path is not None:
            await loop.create_unix_connection(lambda: self, address.path)
        else:
            await loop.create_connection(lambda: self, address.host, address.port, ssl=self._options.ssl_context)

    async def _shake_hands(self) -> None:
        """HELLO 3 with log-in and name, or what says the same to an older server; then the database."""
        options, address = self._options, self._options.address
        if options.protocol == 3:
            self._session.resp3 = await self._hello()
        if not self._session.resp3:
            if address.password is not None:
                user = () if address.username is None else (address.username,)
                await self._ask("AUTH", *user, address.password)
            if options.client_name is not None:
                await self._ask("CLIENT", "SETNAME", options.client_name)
        if address.db:
            await self._ask("SELECT", address.db)
        await self._introduce()

    async def _introduce(self) -> None:
        """Say which library this is. Servers before 7.2 do not know it, and nothing depends on it."""
        from . import __version__

        self._step = "CLIENT SETINFO"
        told = [self._loop.create_future(), self._loop.create_future()]
        name = pack(("CLIENT", "SETINFO", "LIB-NAME", "waterspout-redis"))
        self.write(name + pack(("CLIENT", "SETINFO", "LIB-VER", __version__)), told)
        first, second = await asyncio.gather(*told, return_exceptions=True)
        if isinstance(first, ResponseError) and isinstance(second, ConnectionLost):
            # That was no answer to the command: a full server tells why it hangs up to whatever comes first.
            raise first

    async def _hello(self) -> bool:
        options, address = self._options, self._options.address
        command: list[str] = ["HELLO", "3"]
        if address.password is not None:
            command += ["AUTH", address.username or "default", address.password]
        if options.client_name is not None:
            command += ["SETNAME", options.client_name]
        try:
            await self._ask(*command)
        except UnknownProtocolError:
            return False
        except ResponseError as error:
            if error.code == "ERR" and "unknown command" in str(error).lower():
                return False
            if error.code != "NOAUTH":
                raise
            if address.password is None:  # which the server tells in words about the protocol
                raise AuthenticationError("NOAUTH it wants a password: redis://:PASSWORD@HOST, or password=") from error
            # We did send the password. Valkey 9 says so of any command it does not know, before the log-in.
            return False
        return True

    async def _ask(self, *command: str | int) -> Any:
        self._step = "CLIENT SETNAME" if command[0] == "CLIENT" else str(command[0])
        future = self._loop.create_future()
        self.write(pack(command), (future,))
        return await future

    # Writing

    @property
    def in_flight(self) -> int:
        """How many replies are awaited."""
        return len(self._session)

    @property
    def answered(self) -> int:
        """How many replies came, ever."""
        return self.sent - len(self._session)

    def write(self, commands: Packed, slots: Sequence[Slot]) -> None:
        """Send packed commands; one reply goes to each of `slots`, in their order."""
        if self._error is not None:
            # It ended between two steps of the handshake.
            for slot in slots:
                fail(slot, self._error)
            return
        self._write(commands, len(slots))
        self._session.expect_all(slots)

    def write_subscribe(self, kind: bytes, names: Sequence[bytes], slot: Slot) -> None:
        """Send one command such as SUBSCRIBE; `slot` ends when the server has confirmed every name."""
        self._write(pack((kind.upper(), *names)), 1)
        self._session.expect_confirmations(slot, kind, names)

    def _write(self, commands: Packed, count: int) -> None:
        if not self._session:
            self._waiting_since = self._loop.time()
        self.sent += count
        assert self._transport is not None
        if isinstance(commands, Parts):
            for buffer in commands.buffers:
                self._transport.write(buffer)
        else:
            self._transport.write(commands)
        if self._transport.is_closing():
            # Nothing gets out any more: what is not written yet shall wait for another connection.
            self.writable = False

    def pause_reading(self) -> None:
        """Take nothing more from the socket: Redis keeps it, within its own limits."""
        if self._reading and self._transport is not None and self._error is None:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and self._transport is not None and self._error is None:
            self._reading = True
            self._last_received = self._loop.time()
            self._transport.resume_reading()

    # The end

    def abort(self, error: RedisError) -> None:
        """End it now: every slot is told, then the owner. Does nothing the second time."""
        self._end(error)
        if self._transport is not None:
            self._transport.abort()

    async def wait_released(self) -> None:
        """Return when the socket has been given back."""
        if self._transport is not None:
            await asyncio.shield(self._released)

    def _end(self, error: RedisError) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._health_timer is not None:
            self._health_timer.cancel()
        slots = self._session.abandon()
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.connection_lost(error)
            return
        for slot in slots:
            fail(slot, error)

    # Health

    def _look_again_at(self, when: float) -> None:
        self._health_due = when
        self._health_timer = self._loop.call_at(when, self._check_health)

    def _check_health(self) -> None:
        """Idle for an interval: PING. Something awaited, and not a byte for an interval: give it up."""
        now, interval = self._loop.time(), self._options.health_check_interval
        if now > self._health_due + interval / 2:
            # We were held up ourselves: what the server sent meanwhile may still lie in the socket.
            self._look_again_at(now + min(interval, 1.0))
            return
        if not self._reading:
            self._look_again_at(now + interval)
            return
        awaited = len(self._session) > 0
        since = max(self._last_received, self._waiting_since, self.quiet_until) if awaited else self._last_received
        if now < since + interval:
            # What blocks may be answered, and something else awaited, long before it has to be.
            self._look_again_at(min(since, now) + interval)
        elif awaited:
            silent = now - self._last_received
            self.abort(self.lost(f"the server has sent nothing for {silent:.1f} s"))
        else:
            if self.pings:
                self.write(_PING, (_Ignored(),))
            self._look_again_at(now + interval)

    def lost(self, why: str) -> ConnectionLost:
        """To `abort` it with."""
        return ConnectionLost(f"connection to {self._options.address} lost: {why}", maybe_executed=False)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass of it, but do the same.
        self._transport = cast(asyncio.Transport, transport)
        if self._error is not None:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(_WRITE_HIGH_WATER)
        _tune(transport.get_extra_info("socket"), self._options.keepalive)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        # asyncio would close the transport for an exception, and nobody would learn why.
        try:
            self._receive(nbytes)
        except Exception as error:
            self._loop.call_exception_handler({"message": "error in a Redis connection", "exception": error})
            self.abort(self.lost(f"internal error: {error!r}"))

    def _receive(self, nbytes: int) -> None:
        self._last_received = self._loop.time()
        session, owner = self._session, self._owner
        size = nbytes
        event: Any  # told apart by identity: this is the hot path
        data = self._buffer if nbytes == _READ_BUFFER else self._buffer[:nbytes]
        for event in session.receive(data):
            if event.__class__ is tuple:
                slot, reply = event
                if slot.__class__ is not Future:
                    slot.resolve(reply)
                elif not slot.done():
                    if isinstance(reply, ResponseError):
                        slot.set_exception(reply)
                    else:
                        slot.set_result(reply)
                if reply.__class__ is ReadOnlyError and owner is not None:
                    owner.refused_to_write()
            elif owner is None or self._error is not None:
                continue
            elif event.__class__ is list:
                owner.messages_received(event, size)
                size = 0
            else:
                owner.push_received(event)
        if session.failure is not None:
            self.abort(session.failure)
        elif owner is not None and self._error is None:
            owner.has_room()

    def eof_received(self) -> None:
        self._end(self.lost("the server closed it"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(self.lost(str(exc) or type(exc).__name__ if exc else "it was closed"))
        if not self._released.done():
            self._released.set_result(None)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._owner is not None:
            self._owner.has_room()


class _Ignored:
    """Waits for a reply that nobody needs: it came, that is all."""

    __slots__ = ()

    def resolve(self, reply: Any) -> None: ...

    def fail(self, error: RedisError) -> None: ...


def _advise(error: ssl.SSLError) -> None:
    """Say what to do about a certificate that is not trusted; that of another host is best left alone."""
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code not in _OTHER_HOST:
        error.strerror = f"{error.strerror}; give ssl= an SSLContext that trusts the server's certificate"


def _tune(sock: socket.socket | None, keepalive: float | None) -> None:
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive is None:
        return
    seconds = max(1, round(keepalive))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", seconds),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 2000 * seconds),
    ):
        # Not every system has each of them.
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
