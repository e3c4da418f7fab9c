"""A client of the line server, on asyncio streams: it comes back by itself, and says what it could not get."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl as tls
import time
from collections.abc import Iterator
from typing import Final, Self
from weakref import WeakSet

from waterspout_core import Entry, Message, MiB, Payload, WaterspoutError, check_channel, from_id

from ._line_protocol import PORT, BadLine, LineReader, parse_message, publish_line, to_line

MAX_MESSAGE_LINE: Final = 16 * MiB
"""Bytes of a line that a server may send."""

PAUSES: Final = 0.1, 3.0
"""Seconds before the second attempt to connect, and before each after many; about half to all of it."""


class LineRefused(WaterspoutError):
    """The server has answered, and it is no; its words."""


class LineBroken(WaterspoutError, ConnectionError):
    """There was no answer; `maybe_done` is true if the command may have been carried out all the same."""

    def __init__(self, message: str, *, maybe_done: bool) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class LineClient:
    """Publishes to a `LineServer`, and reads its channels::

        async with LineClient("localhost") as client:
            await client.publish("news", "Hello")
            async for message in client.subscribe("news"):
                ...

    Entering it connects; raises OSError if nobody is there, and `LineRefused` for a bad `token`. From then on it
    connects again by itself. `ssl` is what asyncio takes: True, or a context. A command has `timeout` seconds. A server
    of which nothing was heard for `heartbeat` seconds is asked whether it is there.
    """

    def __init__(
        self,
        host: str,
        port: int = PORT,
        *,
        token: str | None = None,
        ssl: bool | tls.SSLContext | None = None,
        timeout: float = 10.0,
        heartbeat: float = 25.0,
    ) -> None:
        self.host = host
        self.port = port
        self.timeout = timeout
        self.heartbeat = heartbeat
        self._token = token
        self._tls = ssl or None
        self._closed = asyncio.Event()
        # Commands have a connection of their own: behind messages that nobody takes no answer would be seen.
        self._link: _Link | None = None
        self._turn = asyncio.Lock()
        self._subscriptions: WeakSet[LineSubscription] = WeakSet()

    async def publish(
        self, channel: str, data: Payload, event: str | None = None, *, key: str | None = None
    ) -> str | None:
        """Publish `data`; the id of the message, or None where the broker keeps none.

        With an idempotency `key` it is sent again when the connection breaks; without one `LineBroken` says whether it
        may have been published. Raises `BadChannel`, `BadMessage`, `LineRefused` and `LineBroken`.
        """
        line = publish_line(check_channel(channel), Message(data, event), key)
        return await self._command(line, f"CONFIRMED {channel}", again=key is not None) or None

    async def ping(self) -> float:
        """How long the server takes to answer, in seconds. Raises `LineRefused` and `LineBroken`."""
        begin = time.perf_counter()
        await self._command("PING", "PONG", again=True)
        return time.perf_counter() - begin

    def subscribe(self, channel: str, after: str | None = None) -> LineSubscription:
        """The messages of `channel` from now on, or after the id `after` ("earliest": all that is kept).

        Raises `BadChannel` and `BadPosition`.
        """
        if after is not None:
            from_id(after)
        subscription = LineSubscription(self, check_channel(channel), after)
        self._subscriptions.add(subscription)
        return subscription

    async def aclose(self) -> None:
        """Disconnect; its subscriptions end."""
        self._closed.set()
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()
        for subscription in tuple(self._subscriptions):
            await subscription.aclose()

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(self.timeout):
            self._link = await self._connect()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # For its subscriptions, too

    async def _connect(self) -> _Link:
        """One more connection, on which the token has been said. Raises OSError and `LineRefused`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, protocol = await loop.create_connection(
            lambda: _Protocol(reader), self.host, self.port, ssl=self._tls
        )
        link = _Link(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        try:
            if self._token is not None:
                await link.ask(f"AUTH {self._token}", "CONFIRMED")
            if self._closed.is_set():
                raise ConnectionAbortedError("this client is closed")
        except BaseException:
            link.close()
            raise
        return link

    async def _pause(self, seconds: float) -> None:
        """Return after so many seconds, or when the client is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def _command(self, line: str, expected: str, *, again: bool) -> str:
        maybe_done = False
        try:
            async with asyncio.timeout(self.timeout), self._turn:
                waits = pauses()
                while True:
                    if self._closed.is_set():
                        raise LineBroken("this client is closed", maybe_done=maybe_done)
                    before = maybe_done
                    try:
                        if self._link is None or self._link.over:
                            self._drop()
                            self._link = await self._connect()
                        maybe_done = True
                        return await self._link.ask(line, expected)
                    except LineRefused:
                        raise
                    except BaseException as error:
                        # Whatever it was, cancellation too: the answer to come would be taken for the next one's.
                        self._drop()
                        if isinstance(error, GoneAway):
                            maybe_done = before  # instead of an answer: the command was not carried out
                        elif not isinstance(error, OSError):
                            raise
                        if maybe_done and not again:
                            raise LineBroken(str(error), maybe_done=maybe_done) from error
                    await self._pause(next(waits))
        except TimeoutError:
            raise LineBroken(f"no answer in {self.timeout:g} s", maybe_done=maybe_done) from None

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


class LineSubscription:
    """The messages of a channel, each a `Message`, and a `Gap` where some were lost; made by `LineClient.subscribe`.

    It has a connection of its own, made when the first message is asked for, and made again when it breaks: it goes on
    behind what was taken last. What is not taken waits at the server. Raises `LineRefused`, at first; what has been
    allowed once is asked for again and again. Close it, use it in an ``async with``, or let it go.
    """

    def __init__(self, client: LineClient, channel: str, after: str | None) -> None:
        self.channel = channel
        self.position = after
        """Behind what was taken last: `subscribe(channel, after=…)` goes on from here. None before it is known."""
        self._client = client
        self._link: _Link | None = None
        self._confirmed = False
        self._over = False
        self._pauses = pauses()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        while not self._over:
            try:
                if self._link is None:
                    await self._begin()
                else:
                    return await self._next(self._link)
            except LineRefused:
                self._drop()
                raise
            except OSError:
                self._drop()
                if not self._over:
                    await self._client._pause(next(self._pauses))
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it; who waits for the next message gets none."""
        self._over = True
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._drop()

    async def _begin(self) -> None:
        after = f" FROM {self.position}" if self.position else ""
        async with asyncio.timeout(self._client.timeout):
            link = await self._client._connect()
            try:
                position = await link.ask(f"SUBSCRIBE {self.channel}{after}", f"CONFIRMED {self.channel}")
            except BaseException as error:
                link.close()
                if isinstance(error, LineRefused) and self._confirmed:
                    raise ConnectionRefusedError(str(error)) from error
                raise
        self._confirmed = True
        self.position = position or self.position
        self._link = link
        if self._over:
            self._drop()

    async def _next(self, link: _Link) -> Entry:
        while True:
            line = link.take()
            if line is None:
                line = await self._line(link)
            word, _, rest = line.partition(" ")
            if word not in ("MESSAGE", "PONG"):
                raise GoneAway(f"{word} {rest}")
            self._pauses = pauses()
            if word == "MESSAGE":
                try:
                    entry, self.position = parse_message(rest)
                except ValueError as error:
                    raise LineRefused(f"the server sends what is no message: {error}") from None
                return entry

    async def _line(self, link: _Link) -> str:
        try:
            async with asyncio.timeout(self._client.heartbeat):
                return await link.line()
        except TimeoutError:
            link.send("PING")
            async with asyncio.timeout(self._client.timeout):
                return await link.line()

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


class GoneAway(ConnectionError):
    """The server said that it will not do anything for us any more."""


class _Protocol(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        """The server has said its last word, and waits for ours: close, also while nobody reads."""
        super().eof_received()
        return False


class _Link:
    """One connection: lines out, lines in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lines = LineReader(MAX_MESSAGE_LINE)

    @property
    def over(self) -> bool:
        """Whether it is closed."""
        return self._writer.is_closing() or self._reader.at_eof()

    def send(self, line: str) -> None:
        self._writer.write(to_line(line))

    def take(self) -> str | None:
        """The next line, if it is here already. Raises `LineRefused` for what is none."""
        try:
            return self._lines.take()
        except BadLine as error:
            self.close()
            raise LineRefused(f"the server sends what is no line: {error}") from None

    async def line(self) -> str:
        """The next line. Raises OSError and `LineRefused`."""
        while (line := self.take()) is None:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            self._lines.receive(data)
        return line

    async def ask(self, command: str, expected: str) -> str:
        """What stands behind the `expected` words in the answer to `command`. Raises `LineRefused`, and OSError."""
        self.send(command)
        await self._writer.drain()
        answer = await self.line()
        if answer == expected or answer.startswith(f"{expected} "):
            return answer[len(expected) + 1 :]
        word, _, rest = answer.partition(" ")
        if word == "GOAWAY":
            raise GoneAway(rest)
        raise LineRefused(rest if word == "ERROR" else f"the server answered {answer!r:.80}")

    def close(self) -> None:
        """At once: all that matters has been answered."""
        self._writer.transport.abort()

    async def aclose(self) -> None:
        """The same, and let the loop see to it."""
        self.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def pauses() -> Iterator[float]:
    """How long to wait, in seconds, before each further attempt; never ends."""
    pause, most = PAUSES
    while True:
        yield pause * random.uniform(0.5, 1.0)  # all clients of a server lose it at the same time
        pause = min(pause * 2, most)
