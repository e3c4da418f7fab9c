"""Leaks: what stays of ten thousand who came and went, and what is there for one who is there and idle."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from waterspout_core import QueueStore
from waterspout_handlers import Connections, EventSource, LongPoll, Outlet, WebSocketSubscriber
from waterspout_handlers._goodbye import RESTART
from waterspout_handlers._lines import LineServer

KiB: Final = 1024
DEADLINE: Final = 100.0

_UPGRADE: Final = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def get(path: str, fields: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode()


REQUESTS: Final = {
    "events": get("/events"),
    "ndjson": get("/events?format=ndjson"),
    "websocket": get("/ws", _UPGRADE),
    "deflated": get("/ws", _UPGRADE + "Sec-WebSocket-Extensions: permessage-deflate\r\n"),
    "lines": b"SUBSCRIBE updates\r\n",
    "poll": get("/poll"),
}
AT_EACH_DOOR: Final = pytest.mark.parametrize("door", REQUESTS)
"""What lets a client in at each door."""

NONSENSE: Final = {"lines": b"\xff\xff\r\n"}
"""What does not; elsewhere it is a method that there is not."""


class Hall:
    """A server with all doors over one store."""

    def __init__(self, connections: Connections, store: QueueStore, ports: tuple[int, int]) -> None:
        self.connections = connections
        self.store = store
        self.ports = ports

    def connect(self, door: str, request: bytes | None = None) -> socket.socket:
        """A client that has asked to be let in. It does not wait: the system accepts it for us."""
        sock = socket.create_connection(("127.0.0.1", self.ports[door == "lines"]))
        sock.sendall(REQUESTS[door] if request is None else request)
        return sock


@contextlib.asynccontextmanager
async def open_hall() -> AsyncIterator[Hall]:
    connections, store = Connections(), QueueStore(max_messages=100)
    kept = {"store": store}
    routes = [("/events", EventSource, kept), ("/ws", WebSocketSubscriber, kept), ("/poll", LongPoll, kept)]
    http = HTTPServer(Application(routes, connections=connections, log_function=lambda handler: None))
    servers = http, LineServer(store, connections=connections)
    ports = []
    for server in servers:
        [listener] = bind_sockets(0, "127.0.0.1", backlog=1024)
        server.add_sockets([listener])
        ports.append(listener.getsockname()[1])
    try:
        async with asyncio.timeout(DEADLINE):
            yield Hall(connections, store, (ports[0], ports[1]))
    finally:
        for server in servers:
            server.stop()
        await http.close_all_connections()
        for outlet in connections:
            outlet.close()
        await asyncio.sleep(0)  # the close callbacks


def things() -> Counter[str]:
    """How many objects there are of the types of ours, Tornado's and asyncio's."""
    gc.collect()
    types = Counter(map(type, gc.get_objects()))
    return Counter(
        {
            f"{kind.__module__}.{kind.__qualname__}": count
            for kind, count in types.items()
            if kind.__module__.lstrip("_").startswith(("waterspout", "tornado", "asyncio", "ssl"))
        }
    )


def running() -> tuple[int, int, int]:
    """How many tasks there are, timers that will fire, and files that are open."""
    loop: Any = asyncio.get_running_loop()
    timers = sum(not timer.cancelled() for timer in loop._scheduled)
    return len(asyncio.all_tasks()), timers, len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes of memory that the system has given us."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def come_and_go(hall: Hall, door: str, until: Any) -> None:
    """A hundred who are let in, are told something, and go in all ways; among them some who are not let in."""
    peers = [hall.connect(door) for _ in range(90)]
    strangers = [
        hall.connect(door, request) for request in (b"", b"GET", NONSENSE.get(door, b"X / HTTP/1.1\r\n\r\n")) * 3
    ]
    await until(lambda: len(hall.store.subscribers) == 90)
    for number, peer in enumerate((*peers[:40], *strangers)):
        if number % 2:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    hall.store.submit("x" * 200)
    for outlet in list(hall.store.subscribers)[:10]:
        outlet.end(RESTART)
    await asyncio.sleep(0)
    for outlet in list(hall.store.subscribers)[:10]:
        outlet.close()
    for peer in peers[40:]:
        peer.close()
    await until(lambda: not hall.connections and not hall.store.subscribers)
