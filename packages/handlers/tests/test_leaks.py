"""Leaks: what stays of ten thousand who came and went, and what is there for one who is there and idle."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import struct
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from waterspout_core import MiB, QueueStore
from waterspout_handlers import Connections, EventSource, LineServer, LongPoll, WebSocketSubscriber
from waterspout_handlers._goodbye import RESTART

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
"""What lets a client in at each door."""

AT_EACH_DOOR: Final = pytest.mark.parametrize("door", REQUESTS)

NONSENSE: Final = {"lines": b"\xff\xff\r\n"}
"""What does not; elsewhere it is a method that there is not."""

HANDSHAKE: Final = RequestHandler, HTTPServerRequest, HTTP1Connection, HTTP1ServerConnection
"""What is there for a request, and has to be gone when it is answered by a stream."""

EACH: Final = (
    "waterspout_handlers._outlet.Outlet",
    "tornado.iostream.IOStream",
    "tornado.iostream._StreamBuffer",
    "_asyncio.Future",  # the pending read
    "asyncio.events.Handle",  # by which the loop's selector knows the stream
)
"""What there is for each who is idle."""

EACH_AT: Final = {
    "websocket": ("waterspout_handlers._socket.Socket", "waterspout_handlers._dialogue.Dialogue"),
    "deflated": ("waterspout_handlers._socket.Socket", "waterspout_handlers._dialogue.Dialogue"),
    "lines": (
        "waterspout_handlers._lines.LineOutlet",
        "waterspout_handlers._line_protocol.LineReader",
        "waterspout_handlers._half_open.HalfOpenStream",  # in place of Tornado's
    ),
}


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
    for _ in range(100):
        store.submit("x" * 200)  # the log is full, and does not grow any more
    kept = {"store": store}
    routes = [("/events", EventSource, kept), ("/ws", WebSocketSubscriber, kept), ("/poll", LongPoll, kept)]
    http = HTTPServer(Application(routes, waterspout_connections=connections, log_function=lambda handler: None))
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
            if str(kind.__module__).lstrip("_").startswith(("waterspout", "tornado", "asyncio"))
            and kind is not asyncio.TimerHandle  # the loop forgets those that were cancelled when they are many
        }
    )


def handshakes() -> int:
    """How many objects there are that belong to a request."""
    gc.collect()
    return sum(issubclass(type(thing), HANDSHAKE) for thing in gc.get_objects())


def running() -> tuple[int, int, int]:
    """How many tasks there are, timers that will fire, and files that are open."""
    loop: Any = asyncio.get_running_loop()
    timers = sum(not timer.cancelled() for timer in loop._scheduled)
    return len(asyncio.all_tasks()), timers, len(os.listdir("/dev/fd"))


def resident() -> int:
    """Bytes of memory that the system has given us."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def come_and_go(hall: Hall, door: str, until: Any) -> None:
    """A hundred who are let in, are told something, and go in all ways; among them some who are not let in."""
    peers = [hall.connect(door) for _ in range(91)]
    strangers = [
        hall.connect(door, request) for request in (b"", b"GET", NONSENSE.get(door, b"X / HTTP/1.1\r\n\r\n")) * 3
    ]
    await until(lambda: len(hall.store.subscribers) == 91)
    for peer in peers[::3]:
        peer.send(b"\x81")  # the beginning of something
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
    await until(lambda: len(hall.connections) == 0 and not hall.store.subscribers)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what the process holds is read from /proc")
async def test_f52_nothing_stays_of_ten_thousand_who_came_and_went_but_what_stayed_of_the_first_thousand(
    until: Any,
) -> None:
    """A hundred at a time, at one door after the other."""
    doors = itertools.cycle(REQUESTS)
    async with open_hall() as hall:

        async def come(waves: int) -> tuple[tuple[Counter[str], tuple[int, int, int]], int, int]:
            for _ in range(waves):
                await come_and_go(hall, next(doors), until)
            await until(lambda: hall.connections._loop is None)  # its timer has seen that there is nobody
            return (things(), running()), sys.getallocatedblocks(), resident()

        before, blocks_before, resident_before = await come(10)
        after, blocks, resident_after = await come(90)
        assert after == before
        assert blocks - blocks_before < 2000  # the loop keeps some timers that were cancelled
        assert resident_after - resident_before < 4 * MiB
        assert hall.connections.counts.opened == hall.connections.counts.closed > 9000


@AT_EACH_DOOR
async def test_e1_who_is_idle_has_a_stream_an_outlet_and_a_pending_read_and_nothing_else(door: str, until: Any) -> None:
    async with open_hall() as hall:
        peers: list[socket.socket] = []

        async def fill(number: int) -> None:
            while len(peers) < number:
                peers.append(hall.connect(door))
                await asyncio.sleep(0)
            await until(lambda: len(hall.store.subscribers) == number and len(asyncio.all_tasks()) == 1)
            if door != "poll":
                hall.store.submit("x" * 200)  # idle is also who was told something
                await asyncio.sleep(0)

        with contextlib.ExitStack() as stack:
            requests = handshakes()  # of other tests, perhaps
            await fill(100)
            before, (_, timers, _) = things(), running()
            stack.callback(tracemalloc.stop)
            tracemalloc.start()
            await fill(300)
            after = things()
            size, _ = tracemalloc.get_traced_memory()
            assert running()[:2] == (1, timers)
            assert timers <= 2  # the one for all of them, and the deadline of this test
            assert set((after - before).items()) <= {(kind, 200) for kind in (*EACH, *EACH_AT.get(door, ()))}
            assert handshakes() == requests
            assert size / 200 < 5 * KiB
            for peer in peers:
                peer.close()
            await until(lambda: len(hall.connections) == 0)
