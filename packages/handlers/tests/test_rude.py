"""Rude peers at all doors: nothing is left of them, nothing grows, and nothing of it is an error of the server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.netutil import bind_sockets

from waterspout_handlers import Connections, EventSource, LineServer, LongPoll, WebSocketSubscriber

KiB: Final = 1024
DEADLINE: Final = 30.0
CERTIFICATE: Final = Path(__file__).parent / "localhost.pem"

PATHS: Final = (
    "/events",
    "/events?channel=a",
    "/events?channel=a&channel=b&format=json",
    "/events?channel=a&format=ndjson",
    "/events?channel=a&last_event_id=0-1",
    f"/events?channel={'x' * 300}",
    "/events?channel=%ff",
    "/latest?channel=a",
    "/period?channel=a&channel=c",
    "/poll?channel=a&timeout=1",
    "/poll?channel=b&last_event_id=earliest",
    "/channels/a",
    "/nowhere",
    "/ws",
)

FIELDS: Final = {
    "Last-Event-ID": ["earliest", "0-1", "nonsense", "", "a" * 5000],
    "Accept": ["text/event-stream", "application/x-ndjson", "*/*"],
    "Origin": ["null", "http://x", "http://evil", "http://[", "HTTP://X"],
    "Connection": ["close", "keep-alive", "Upgrade"],
    "If-None-Match": ["*"],
    "Content-Type": ["text/plain", "application/json", "application/x-ndjson"],
    "Idempotency-Key": ["", "k", '"k"', "x" * 300],
}

BODIES: Final = [b"", b"hello", b"\xff", b'{"a":1}', b"x" * 5000]

MESSAGES: Final[list[Any]] = [
    *({verb: channel} for verb in ("subscribe", "unsubscribe") for channel in ("a", "b", "", 1, None, "x y")),
    {"subscribe": "c", "last_event_id": "earliest"},
    {"subscribe": "c", "last_event_id": "?"},
    {"subscribe": "c", "last_event_id": 3},
    {"publish": "a", "data": "x"},
    {"publish": "b", "data": "x" * 3000},
    {"publish": "a", "data": 1, "key": "\ud800"},
    {"publish": "a", "data": {"b": "\ud800"}},
    {"ref": "\ud800", "subscribe": "a"},
    [],
    "x",
]

LINES: Final = [
    *(f"{verb} {channel}\n".encode() for verb in ("SUBSCRIBE", "UNSUBSCRIBE") for channel in ("a", "b", "x", "")),
    b"SUBSCRIBE\n",
    b"SUBSCRIBE c FROM earliest\r\n",
    b"PUBLISH a hello\n",
    b"PUBLISH {\n",
    b'PUBLISH {"channel":"a","data":' + b"[" * 3000 + b"}\n",
    b"PING\n" * 1000,
    b"X\n" * 3000,
    b"AUTH x\n",
    b"GET / HTTP/1.1\n",
    b"y" * 70_000,
    b"half",
    b"QUIT\n",
]


def frame(first: int, payload: bytes) -> bytes:
    """A WebSocket frame of less than 64 KiB, masked with zeros."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    return bytes([first]) + size + bytes(4) + payload


FRAMES: Final = [
    *(frame(0x81, json.dumps(message).encode()) for message in MESSAGES),
    frame(0x81, b"\xff"),
    frame(0x81, b"x" * 60_000),
    frame(0x81, b"x" * 60_000)[:50],
    frame(0x82, b"bytes"),
    frame(0x01, b'{"sub'),
    frame(0x80, b'scribe":"a"}'),
    frame(0xC1, b"\0\1\2 this was never deflated"),
    frame(0x89, b"p") * 300,
    frame(0x8A, b""),
    frame(0x88, b""),
    frame(0x88, b"\x03\xe8bye"),
    b"\xff" * 30,
]

UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}


class Chatty(WebSocketSubscriber):
    """Tells the others who comes and goes."""

    def open(self, *args: str, **kwargs: str) -> None:
        self.source.open("a").submit("came")

    def on_close(self) -> None:
        self.source.open("a").submit("left")


class Rude:
    """A peer that says what it likes, hardly listens, and goes how and when it likes."""

    def __init__(self, seed: int, port: int, door: str, tls: ssl.SSLContext | None) -> None:
        self._random = random.Random(seed)
        self._port = port
        self._door = door
        self._tls = tls

    async def come_and_go(self) -> None:
        sock = socket.socket()
        if self._often(0.5):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * KiB)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        if self._tls is not None and self._often(0.1):
            sock.send(self._random.choice([b"hello\n", b"\x16\x03\x01\x00\xff", b"\0"]))
            sock.close()
            return
        name = None if self._tls is None else "localhost"
        reader, writer = await asyncio.open_connection(sock=sock, ssl=self._tls, server_hostname=name)
        with contextlib.suppress(OSError):
            for data in self._lines() if self._door == "lines" else self._requests():
                writer.write(data)
                if self._often(0.4):
                    await asyncio.sleep(self._random.choice([0, 0.002, 0.02]))
            await self._listen(reader, self._random.choice([0.001, 0.02, 0.2]))
            if self._often(0.3) and writer.can_write_eof():
                writer.write_eof()
                await self._listen(reader, 0.01)
        if self._often(0.5):
            with contextlib.suppress(OSError):  # it is closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # with a reset
        writer.transport.abort()

    async def _listen(self, reader: asyncio.StreamReader, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await reader.read(self._random.choice([10, 65536])):
                    pass

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _lines(self) -> Iterator[bytes]:
        for _ in range(self._random.randrange(8)):
            yield self._random.choice(LINES)

    def _requests(self) -> Iterator[bytes]:
        for _ in range(self._random.choice([1, 1, 2, 3])):
            path = self._random.choice(PATHS)
            request = self._handshake(path) if path == "/ws" and self._often(0.9) else self._request(path)
            if self._often(0.1):
                request = request[: self._random.randrange(len(request))]
            yield request
            if b"websocket" in request:
                for _ in range(self._random.randrange(8)):
                    yield self._random.choice(FRAMES)

    def _handshake(self, path: str) -> bytes:
        fields = dict(UPGRADE)
        if self._often(0.5):
            fields["Sec-WebSocket-Extensions"] = "permessage-deflate"
        channels = self._random.choice(["", "?channel=a", "?channel=b&channel=c"])
        return self._head("GET", path + channels, "HTTP/1.1", fields)

    def _request(self, path: str) -> bytes:
        fields = {name: self._random.choice(values) for name, values in FIELDS.items() if self._often(0.2)}
        method = self._random.choice([*["GET"] * 8, "HEAD", "OPTIONS", "POST", "DELETE"])
        body = b""
        if method in ("POST", "DELETE") or self._often(0.1):
            body = self._random.choice(BODIES)
            fields["Content-Length"] = str(len(body) + self._random.choice([0, 0, 0, 5]))
        version = self._random.choice([*["HTTP/1.1"] * 5, "HTTP/1.0", "HTTP/1.0", "HTTP/2.0"])
        return self._head(method, path, version, fields) + body

    def _head(self, method: str, path: str, version: str, fields: dict[str, str]) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in {"Host": "x", **fields}.items()]
        return f"{method} {path} {version}\r\n{''.join(lines)}\r\n".encode()


@contextlib.contextmanager
def serving_lines(server: LineServer) -> Iterator[int]:
    """The port at which `server` can be spoken to."""
    [listener] = bind_sockets(0, "127.0.0.1")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KiB)
    server.add_sockets([listener])
    try:
        yield listener.getsockname()[1]
    finally:
        server.stop()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("handler", [WebSocketSubscriber, Chatty])
async def test_f52_nothing_is_left_of_rude_peers(
    serve: Any, channel_source: Any, handler: type[WebSocketSubscriber], tls: bool, until: Any
) -> None:
    source, connections = channel_source(max_messages=100), Connections(heartbeat=0.3, max_per_address=30, max_age=1.0)
    wired = {"source": source}
    routes = [
        ("/period", EventSource, wired | {"period": 0.02}),
        ("/latest", EventSource, wired | {"when_behind": "latest"}),
        ("/poll", LongPoll, wired),
        ("/ws", handler, wired | {"allow_publish": True}),
    ]
    ours = theirs = None
    if tls:
        ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ours.load_cert_chain(CERTIFICATE)
        theirs = ssl.create_default_context(cafile=str(CERTIFICATE))
    lines = LineServer(source=source, allow_publish=True, connections=connections, ssl_options=ours)
    choose = random.Random(5)

    async def publish() -> None:
        while True:
            source.open(choose.choice("abc")).submit("x" * choose.choice([1, 100, 5000, 50_000]))
            await asyncio.sleep(choose.choice([0, 0.001, 0.005]))

    async with (
        asyncio.timeout(DEADLINE),
        serve(
            routes=routes,
            source=source,
            connections=connections,
            tls=tls,
            send_buffer=4 * KiB,
            log_function=lambda handler: None,
        ) as server,
    ):
        with serving_lines(lines) as port:
            publishing = asyncio.ensure_future(publish())
            ports = {"http": server.port, "lines": port}
            for wave in range(3):
                doors = choose.choices([*ports], k=40)
                peers = [Rude(100 * wave + number, ports[door], door, theirs) for number, door in enumerate(doors)]
                await asyncio.gather(*(peer.come_and_go() for peer in peers))
            publishing.cancel()
            await until(lambda: len(connections) == 0)
    assert connections.counts.opened == connections.counts.closed > 20
    assert not connections._addresses
    assert not connections._deadlines
    assert not connections._behind
    assert not any(audience._members for audience in connections._audiences.values())
    assert not lines.readers._numbers
    assert not any(store.subscribers or store._woken for store in source.stores.values())


async def test_f50_of_what_one_sends_behind_its_request_nothing_is_kept(serve: Any, channel_source: Any) -> None:
    async with serve(source=channel_source()) as server:
        peer = await server.listen("/events?channel=a")
        [stream] = server.streams
        for _ in range(200):
            await peer.send(bytes(64 * KiB))
            assert stream._read_buffer_size + len(stream._write_buffer) < 100 * KiB
        assert len(server.connections) == 1


async def test_f50_who_pings_and_does_not_read_the_pongs_is_not_read_from(
    serve: Any, channel_source: Any, until: Any
) -> None:
    async with serve(source=channel_source(), send_buffer=4 * KiB) as server:
        peer = await server.websocket("/ws?channel=a", receive_buffer=4 * KiB)
        [stream] = server.streams
        peer.writer.write(frame(0x89, bytes(125)) * 50_000)
        await until(stream.writing)
        for _ in range(200):
            await asyncio.sleep(0)
            assert stream._read_buffer_size + len(stream._write_buffer) < 100 * KiB
        assert peer.writer.transport.get_write_buffer_size() > 100 * KiB
        peer.reset()
