"""The door for lines over TCP: a server that anything with a socket can speak to, `nc` among them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import inspect
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from waterspout_core import BadMessage, BaseStore, BrokerError, Source, from_id

from ._audience import Behind, Policy, position_of
from ._connections import Connections
from ._goodbye import Goodbye
from ._half_open import HalfOpenStream
from ._line_protocol import (
    MAX_LINE,
    MESSAGE_LINES,
    PLAIN_LINES,
    PORT,
    UNKNOWN,
    USAGE,
    Auth,
    BadCommand,
    BadLine,
    Help,
    LineReader,
    Ping,
    Publish,
    Quit,
    Subscribe,
    UnknownCommand,
    Unsubscribe,
    parse,
    to_line,
)
from ._outlet import Outlet
from ._publish import PUBLISH_TIMEOUT, submit_once
from ._readers import Readers
from ._requests import RequestError, check_alias, check_right, open_channel, seek

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds for a TLS handshake."""

BACKLOG: Final = 4096
"""Connections that may wait to be accepted: after a restart all clients come at once, and Tornado has room for 128."""

LINGER: Final = 1.0
"""Seconds for a client to close after our last line."""

PATIENCE: Final = 2
"""Heartbeats after which whoever has to say a token, and has not, is sent away."""

GUESSES: Final = 2
"""Wrong tokens after which they are sent away, too."""

GUESS: Final = 1.0
"""Seconds that a wrong token takes: nobody shall find out the right one by trying."""

Check: TypeAlias = Callable[[str], bool | Awaitable[bool]]

logger: Final = logging.getLogger("waterspout.handlers")


class LineServer(TCPServer):
    """Serves `store`, or the channels of `source`, to clients that speak lines of text::

        LineServer(source=channels).listen()

    `SUBSCRIBE` and `UNSUBSCRIBE` alone mean the `default_channel` (or the store, whose name that is if it has none).
    With a `token`, or with `auth`, a function that tells whether one is good, a client says `AUTH <token>` first.
    Clients may publish if `allow_publish` is set; what else they may is said by `may_subscribe` and `may_publish` of a
    subclass. A line has at most `max_line` bytes. `connections` is shared with other doors of the same server, so that
    they have their limits, and their end, together.
    """

    def __init__(
        self,
        store: BaseStore | None = None,
        source: Source | None = None,
        *,
        default_channel: str = "updates",
        token: str | None = None,
        auth: Check | None = None,
        allow_publish: bool = False,
        max_line: int = MAX_LINE,
        connections: Connections | None = None,
        when_behind: Policy | Behind = "gap",
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(ssl_options=ssl_options)
        if (store is None) == (source is None):
            raise TypeError("LineServer takes a store or a source, one of them")
        if token is not None and auth is not None:
            raise TypeError("LineServer takes a token or auth, one of them")
        if auth is not None and not callable(auth):
            raise TypeError("auth is a function that tells whether a token is good; token is one that is")
        if token is not None and not token:
            raise ValueError("the token is empty")
        self.store = store
        self.source = source
        self.default_channel = default_channel if store is None else store.channel or default_channel
        self.auth = auth if token is None else partial(_same, token)
        self.allow_publish = allow_publish
        self.max_line = max_line
        self.connections = Connections() if connections is None else connections
        self.behind = when_behind if isinstance(when_behind, Behind) else Behind(when_behind)
        self.readers = Readers(self)

    def listen(
        self,
        port: int = PORT,
        address: str | None = None,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        backlog: int = BACKLOG,
        flags: int | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Accept connections on `port` of `address` (of all addresses, if there is none). Raises `OSError`."""
        super().listen(port, address, family, backlog, flags, reuse_port)

    async def drain(self, grace: float = 10.0) -> None:
        """Accept nobody any more, say `GOAWAY`, and return when all have gone, after `grace` seconds at most."""
        self.stop()
        await self.connections.drain(grace)

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        if isinstance(stream, SSLIOStream):
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                    await stream.wait_for_handshake()
            except (OSError, StreamClosedError):
                stream.close()
                return
        else:
            stream = HalfOpenStream(stream.socket)
        # Of a Unix socket there is no address.
        LineOutlet(stream, self, address[0] if isinstance(address, tuple) else "").open({})

    def open_store(self, channel: str) -> BaseStore:
        """The store of `channel`; empty: of the default one. Raises `RequestError`."""
        name = channel or self.default_channel
        if self.source is not None:
            return open_channel(self.source, name)
        assert self.store is not None
        if name != self.default_channel:
            raise RequestError(404, f"there is only the channel {self.default_channel}, not {name}")
        return self.store

    def name_of(self, store: BaseStore) -> str:
        """What clients call `store`."""
        return store.channel or self.default_channel

    async def allows(self, token: str) -> bool:
        """Whether `token` is good."""
        if self.auth is None:
            return True
        good = self.auth(token)
        return await good if inspect.isawaitable(good) else good

    # For subclasses

    def may_subscribe(self, channel: str, token: str | None) -> bool:
        """Whether who has said `token` (None: nothing) may read `channel`."""
        return True

    def may_publish(self, channel: str, token: str | None) -> bool:
        """Whether who has said `token` may publish to `channel`, where anybody may."""
        return True


def _same(token: str, said: str) -> bool:
    return hmac.compare_digest(token.encode(), said.encode())


class LineOutlet(Outlet):
    """One client: it is sent messages, and asks for them, in lines. Its commands are carried out in order."""

    __slots__ = ("_deaf", "_goodbye", "_guesses", "_lines", "_patience", "_server", "_token", "_work")

    def __init__(self, stream: IOStream, server: LineServer, address: str) -> None:
        super().__init__(stream, PLAIN_LINES, server.connections, address=address, behind=server.behind)
        self._server = server
        self._lines = LineReader(server.max_line)
        self._work: asyncio.Task[None] | None = None  # only while commands are carried out
        self._patience = 0 if server.auth is None else PATIENCE
        """0 for who may do anything; else how many more heartbeats are waited for a token."""
        self._guesses = 0
        self._deaf = False  # nothing more is carried out
        self._token: str | None = None  # that was said, and was good
        self._goodbye: Goodbye | None = None  # to be said when the command that is being carried out is answered

    # Of the outlet

    def receive(self, data: bytes) -> None:
        if self._deaf:
            return
        self._lines.receive(data)
        self.busy = True
        self._work = asyncio.ensure_future(self._carry_out())

    def beat(self) -> None:
        if self._patience:
            self._patience -= 1
            if not self._patience:
                self._refuse("no AUTH was said")

    def end(self, goodbye: Goodbye) -> None:
        if self._work is not None and not self._deaf:
            # Its answer comes first: who is told to go takes what was not answered for not done, and asks elsewhere.
            self._deaf = True
            self._goodbye = goodbye
            self.connections.end_at(self, monotonic() + PUBLISH_TIMEOUT)
            return
        self._deaf = True
        super().end(goodbye)

    def finish(self) -> None:
        self._deaf = True
        super().finish()

    def ended(self) -> None:
        # To close with something unread would be a reset, which takes our last line away from the peer (RFC 1122,
        # 4.2.2.13). So only our direction is closed, and what comes is dropped until the peer closes as well.
        if self._stream.closed():
            self.close()
            return
        sock = self._stream.socket
        with contextlib.suppress(OSError, ValueError):  # it has done so already; or TLS, that it waits for the peer
            if isinstance(sock, ssl.SSLSocket):
                sock.unwrap()
        with contextlib.suppress(OSError):
            # It is the end of TLS here, too: what comes now is dropped as it is. To OpenSSL the peer's own goodbye
            # would be an error, and to Tornado a warning.
            sock.shutdown(socket.SHUT_WR)
        self.connections.expire_at(self, monotonic() + LINGER)
        self.listen()

    def left(self) -> None:
        for store in self.stores:
            self._server.readers.remove(store)

    # Commands

    async def _carry_out(self) -> None:
        """All that has been asked for so far, one after the other."""
        try:
            while not self._deaf and (line := self._lines.take()) is not None:
                try:
                    await self._do(line)
                except UnknownCommand:
                    self._reply(UNKNOWN)
                except (BadCommand, BadMessage, BrokerError) as error:
                    self._reply("ERROR", str(error))
                except RequestError as error:
                    self._reply("ERROR", error.explanation)
        except BadLine as error:
            self._refuse(str(error))
        except Exception:
            logger.exception("a command of %s failed", self.address)
            self._refuse("the server failed")
        finally:
            self.busy = False
            self._work = None
            if self._goodbye is not None:
                self.end(self._goodbye)
            self.listen()

    async def _do(self, line: str) -> None:
        command = parse(line)
        match command:
            case Ping(text):
                self._reply("PONG", text)
            case Help():
                self._reply("COMMANDS", " | ".join(USAGE.values()))
            case Quit():
                self._reply("BYE")
                self.finish()
            case Auth(token):
                await self._check(token)
            case _ if self._patience:
                raise BadCommand("say AUTH <token> first")
            case Subscribe():
                await self._subscribe(command)
            case Unsubscribe():
                self._unsubscribe(command)
            case Publish():
                await self._publish(command)

    async def _check(self, token: str) -> None:
        if not await self._server.allows(token):
            await asyncio.sleep(GUESS)
            self._guesses += 1
            if self._guesses < GUESSES:
                raise BadCommand("the token is not good")
            self._refuse("the token is not good")
            return
        self._patience = 0
        self._token = token
        self._reply("CONFIRMED")

    async def _subscribe(self, command: Subscribe) -> None:
        channel = command.channel
        store = self._find(channel)
        if store is not None:
            self._reply("ALREADY SUBSCRIBED", channel)
            if channel:
                self.speak(MESSAGE_LINES)
            return
        may = partial(self._server.may_subscribe, token=self._token)
        name = channel or self._server.default_channel
        check_right(may, "subscribe", name)
        if len(self.stores) >= self.connections.max_channels:
            raise BadCommand(f"at most {self.connections.max_channels} channels on one connection")
        store = self._server.open_store(channel)
        if store in self.stores:  # by another of its names
            raise BadCommand(f"ALREADY SUBSCRIBED {self._server.name_of(store)}")
        check_alias(may, "subscribe", name, store)
        cursors = await seek([store], None if command.after is None else from_id(command.after))
        if self._deaf:
            return
        self._reply("CONFIRMED", channel, channel and position_of(cursors))
        if self.closed:
            return
        self._server.readers.add(store)
        # Who names channels has to be told which one a message came from.
        self.follow(store, cursors[store], MESSAGE_LINES if channel else None)

    def _unsubscribe(self, command: Unsubscribe) -> None:
        channel = command.channel
        store = self._find(channel)
        if store is None:
            self._reply("ALREADY UNSUBSCRIBED", channel)
            return
        self.unfollow(store)
        self._server.readers.remove(store)
        self._reply("CONFIRMED", channel)

    async def _publish(self, command: Publish) -> None:
        if not self._server.allow_publish:
            raise BadCommand("nothing is published here")
        may = partial(self._server.may_publish, token=self._token)
        check_right(may, "publish", command.channel)
        store = self._server.open_store(command.channel)
        check_alias(may, "publish", command.channel, store)
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await store.ready()
                position = await submit_once(store, command.data, command.event, command.key)
        except TimeoutError:
            raise BadCommand(f"the broker has not answered in {PUBLISH_TIMEOUT:g} s") from None
        self._reply("CONFIRMED", command.channel, str(position or ""))

    def _find(self, channel: str) -> BaseStore | None:
        """The store that is read as `channel`."""
        name = channel or self._server.default_channel
        return next((store for store in self.stores if self._server.name_of(store) == name), None)

    def _reply(self, *words: str) -> None:
        self.say(to_line(*words))

    def _refuse(self, explanation: str) -> None:
        self._reply("ERROR", explanation)
        self.finish()
