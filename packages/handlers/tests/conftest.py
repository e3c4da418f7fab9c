"""A real server, peers on raw sockets, and readers of the wire formats that know nothing of the code under test."""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import gc
import inspect
import json
import logging
import os
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application

from waterspout_core import ChannelStore, MemoryPubSub, PubSub, QueueStore
from waterspout_handlers import Connections, EventSource, NotFound, PublishHandler, WebSocketSubscriber

DEADLINE: Final = 10.0
"""Seconds for anything that has to happen."""

CERTIFICATE: Final = Path(__file__).parent / "localhost.pem"
"""Key and self-signed certificate for localhost, valid until 2126, of no use but here."""


class Errors(logging.Handler):
    """What was logged as an error: uncaught exceptions in handlers, callbacks, and futures that nobody asked."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "tornado.access":
            self.seen.append(f"{record.name}: {record.getMessage()}")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutine functions in a loop of their own, and let nothing go wrong unseen."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    errors = Errors()
    logging.getLogger().addHandler(errors)
    try:
        asyncio.run(pyfuncitem.obj(**arguments))
        gc.collect()  # exceptions that nobody has asked for are told now
    finally:
        logging.getLogger().removeHandler(errors)
    assert errors.seen == []
    return True


class Event(NamedTuple):
    """One event as a browser would dispatch it."""

    data: str
    id: str
    type: str = "message"


class EventParser:
    """Bytes in, events out, by the rules of WHATWG HTML, "Interpreting an event stream"."""

    def __init__(self) -> None:
        self.reconnection_time: int | None = None
        self.last_event_id = ""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []
        self._after_cr = False
        self._data: list[str] = []
        self._type = ""

    def feed(self, data: bytes) -> list[Event]:
        text = self._decoder.decode(data)
        if text and self._after_cr:
            text, self._after_cr = text.removeprefix("\n"), False
        if text:
            self._after_cr = text.endswith("\r")
        events = []
        *ended, begun = re.split("\r\n|\r|\n", text)
        for piece in ended:
            line = "".join([*self._line, piece])
            self._line.clear()
            if line:
                self._field(line)
                continue
            if self._data:
                events.append(Event("\n".join(self._data), self.last_event_id, self._type or "message"))
            self._data, self._type = [], ""
        self._line.append(begun)
        return events

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self.last_event_id = value
        elif name == "retry" and value.isdecimal() and value.isascii():
            self.reconnection_time = int(value)


class Response(NamedTuple):
    """The status line and the headers of a response, and its body if it has a length."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Frame(NamedTuple):
    """One WebSocket frame as it came (RFC 6455, 5.2)."""

    first: int
    payload: bytes

    @property
    def json(self) -> Any:
        assert self.first == 0x81, f"no text frame, but {self.first:#x}"
        return json.loads(self.payload)

    @property
    def close_code(self) -> int:
        assert self.first == 0x88, f"no close frame, but {self.first:#x}"
        return struct.unpack("!H", self.payload[:2])[0]


class Peer:
    """The other end of a connection; every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader = reader
        self.writer = writer
        self.host = host
        self.parser = EventParser()
        self.response: Response | None = None
        self._events: list[Event] = []

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            self.writer.write(data)
            await self.writer.drain()

    async def request(
        self,
        path: str,
        *,
        method: str = "GET",
        version: str = "HTTP/1.1",
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send a request, and read the response: its head only, if that does not tell the length of a body."""
        fields = {"Host": self.host, **(headers or {})}
        if body is not None:
            fields.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.send(f"{method} {path} {version}\r\n{head}\r\n".encode() + (body or b""))
        return await self.read_response(without_body=method == "HEAD")

    async def read_response(self, *, without_body: bool = False) -> Response:
        async with asyncio.timeout(DEADLINE):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            got = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            version, code, _ = status.split(" ", 2)
            size = 0 if without_body else int(got.get("content-length", "0"))
            self.response = Response(version, int(code), got, await self.reader.readexactly(size))
        return self.response

    async def chunk(self) -> bytes:
        """The payload of the next HTTP chunk; empty for the last one."""
        async with asyncio.timeout(DEADLINE):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            payload = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        return payload

    async def events(self, count: int) -> list[Event]:
        """The next `count` events of the stream that was asked for."""
        assert self.response is not None
        chunked = self.response.headers.get("transfer-encoding") == "chunked"
        while len(self._events) < count:
            if chunked:
                data = await self.chunk()
            else:
                async with asyncio.timeout(DEADLINE):
                    data = await self.reader.read(65536)
            assert data, f"the stream has ended after {self._events}"
            self._events += self.parser.feed(data)
        events, self._events = self._events[:count], self._events[count:]
        return events

    async def event(self) -> Event:
        return (await self.events(1))[0]

    async def upgrade(self, path: str, **headers: str) -> Response:
        """Ask for a WebSocket."""
        wanted = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        return await self.request(path, headers=wanted | headers)

    async def frame(self) -> Frame:
        async with asyncio.timeout(DEADLINE):
            first, size = await self.reader.readexactly(2)
            assert not size & 0x80, "a server must not mask"
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                assert size >= 126, "not the shortest form of the length"
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
                assert size >= 65536, "not the shortest form of the length"
            return Frame(first, await self.reader.readexactly(size))

    async def send_frame(self, first: int, payload: bytes) -> None:
        """Send a short frame, masked as a client has to."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        await self.send(bytes([first, 0x80 | len(payload)]) + mask + masked)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    def close(self) -> None:
        """Go, with FIN."""
        self.writer.close()

    def reset(self) -> None:
        """Go, with RST."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class ChannelSource:
    """A source of stores over one in-process broker: the smallest that does."""

    def __init__(self, pubsub: PubSub | None = None, **bounds: int) -> None:
        self.pubsub = pubsub or MemoryPubSub()
        self.stores: dict[str, ChannelStore] = {}
        self._bounds = bounds

    def open(self, channel: str) -> ChannelStore:
        if channel not in self.stores:
            self.stores[channel] = ChannelStore(channel, self.pubsub, **self._bounds)
        return self.stores[channel]

    def subscribers(self) -> int:
        return sum(len(store.subscribers) for store in self.stores.values())


class HesitantStore(QueueStore):
    """A store that becomes ready, or refuses, for each who asks when the test says so."""

    def initialize(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    async def ready(self) -> None:
        self.waiting.append(asyncio.get_running_loop().create_future())
        await self.waiting[-1]


class CountingSocket:
    """A socket that counts how often it is asked to send."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.sends = 0

    def send(self, data: Any) -> int:
        self.sends += 1
        return self._sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class RecordingServer(HTTPServer):
    """A server that knows the streams of all its connections, detached ones too."""

    counting = False

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self.streams: list[IOStream] = []

    def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        if self.counting:
            stream.socket = CountingSocket(stream.socket)
        self.streams.append(stream)
        super().handle_stream(stream, address)


class Server:
    """A running server, and what is needed to talk to it."""

    def __init__(self, port: int, streams: list[IOStream], connections: Connections, *, tls: bool) -> None:
        self.port = port
        self.streams = streams
        self.connections = connections
        self.host = f"127.0.0.1:{port}"
        self._tls = ssl.create_default_context(cafile=str(CERTIFICATE)) if tls else None
        self._peers: list[Peer] = []

    async def connect(self, *, receive_buffer: int | None = None) -> Peer:
        """A new connection; a small `receive_buffer`, in bytes, makes a peer that has to read to get on."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        limit = 2**16 if receive_buffer is None else receive_buffer
        async with asyncio.timeout(DEADLINE):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            name = "localhost" if self._tls else None
            reader, writer = await asyncio.open_connection(sock=sock, ssl=self._tls, server_hostname=name, limit=limit)
        self._peers.append(Peer(reader, writer, self.host))
        return self._peers[-1]

    async def request(self, path: str, **options: Any) -> Response:
        """A request on a connection of its own."""
        return await (await self.connect()).request(path, **options)

    async def post(self, path: str, body: bytes, content_type: str = "text/plain", **headers: str) -> Response:
        return await self.request(path, method="POST", body=body, headers={"Content-Type": content_type} | headers)

    async def listen(self, path: str, *, last_event_id: str | None = None, **options: Any) -> Peer:
        """A peer that has been let in to an event stream, after its `retry:`."""
        peer = await self.connect(**options)
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        response = await peer.request(path, headers=headers)
        assert response.status == 200, response
        peer.parser.feed(await peer.chunk())
        assert peer.parser.reconnection_time is not None
        return peer

    async def websocket(self, path: str, **options: Any) -> Peer:
        """A peer that has been let in to a WebSocket."""
        peer = await self.connect(**options)
        response = await peer.upgrade(path)
        assert response.status == 101, response
        return peer

    def close_peers(self) -> None:
        for peer in self._peers:
            peer.close()


@contextlib.asynccontextmanager
async def run_server(
    routes: list[Any],
    *,
    tls: bool = False,
    send_buffer: int | None = None,
    counting: bool = False,
    connections: Connections | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE)
    if connections is None:  # an empty one is false
        # The first heartbeats come at any time, which is no surprise to a client, but to a test that counts bytes.
        connections = Connections(heartbeat=0)
    application = Application(routes, default_handler_class=NotFound, waterspout_connections=connections, **settings)
    http = RecordingServer(application, ssl_options=context)
    http.counting = counting
    sockets = bind_sockets(0, "127.0.0.1")
    for sock in sockets if send_buffer is not None else ():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # every accepted one inherits it
    http.add_sockets(sockets)
    server = Server(sockets[0].getsockname()[1], http.streams, connections, tls=tls)
    try:
        yield server
    finally:
        http.stop()
        server.close_peers()
        await http.close_all_connections()
        for outlet in connections:
            outlet.close()
        for stream in http.streams:
            stream.close()
        await asyncio.sleep(0)  # the close callbacks


SUBSCRIBERS: Final = {"/events": EventSource, "/ws": WebSocketSubscriber}


@pytest.fixture
def serve() -> Callable[..., contextlib.AbstractAsyncContextManager[Server]]:
    """`async with serve(store=store) as server`, or `source=source`: `/events`, `/ws` and `/channels/NAME` over it.

    `routes` come before these, `door` are arguments of the subscribers' ones; `tls`, `send_buffer` and Tornado's
    settings may follow.
    """

    def serve(
        *,
        routes: list[Any] | None = None,
        store: Any = None,
        source: Any = None,
        door: dict[str, Any] | None = None,
        **options: Any,
    ) -> contextlib.AbstractAsyncContextManager[Server]:
        kept = {"store": store} if store is not None else {"source": source or ChannelSource()}
        doors: list[Any] = [(path, handler, kept | (door or {})) for path, handler in SUBSCRIBERS.items()]
        if store is None:
            doors.append((r"/channels/(.+)", PublishHandler, kept))
        return run_server([*(routes or []), *doors], **options)

    return serve


@pytest.fixture
def channel_source() -> type[ChannelSource]:
    return ChannelSource


@pytest.fixture
def hesitant_store() -> HesitantStore:
    return HesitantStore()


@pytest.fixture(scope="session")
def event_parser() -> type[EventParser]:
    return EventParser


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Any]:
    """`await until(condition)`: let the loop turn until it holds."""

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110  # conditions of all kinds, few of which could set an Event
                await asyncio.sleep(0.001)

    return until
