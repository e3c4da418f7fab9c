"""The servers that `fanout.py` compares; run as `fanout_servers.py NAME`, one is a process and obeys standard input.

All run on the same event loop (uvloop where it is installed), write no access log, and give each message an id.
A server prints its port. Then a line on standard input has it do something:

    publish COUNT       publishes COUNT messages in one turn of the loop
    subscribers         answers how many subscribers there are
    cpu                 answers the CPU time of the process, user and system, in ns

and the end of standard input is its end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence, Sized
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, Literal, NamedTuple

PAYLOAD_BYTES: Final = 100
BACKLOG: Final = 1024


class Event(NamedTuple):
    """A message as the servers of the others publish it; Waterspout gives its own ids, of the same length."""

    id: str
    text: str


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    publish: Callable[[Sequence[Event]], None]
    subscribers: Sized
    owner: object = None
    """What has to live as long as the server."""


@dataclass(frozen=True)
class Peer:
    """One of those that are compared. `needs` are the distributions it is made of, `start` imports them."""

    title: str
    protocol: Literal["SSE", "WebSocket"]
    needs: tuple[str, ...]
    start: Callable[[socket.socket], Awaitable[Running]]

    def versions(self) -> dict[str, str]:
        """What is installed of `needs`. Raises `PackageNotFoundError`, named by what is missing."""
        return {name: metadata.version(name) for name in self.needs}


async def bare_loop(listener: socket.socket) -> Running:
    """The floor: no server at all, the bytes of an event stream sent to each socket in turn."""
    sockets: list[socket.socket] = []

    def accept() -> None:
        connection, _ = listener.accept()
        connection.setblocking(True)
        connection.recv(65536)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets.append(connection)

    def publish(events: Sequence[Event]) -> None:
        run = "".join(map(event_stream, events)).encode()
        chunk = b"%x\r\n%b\r\n" % (len(run), run)
        for connection in sockets:
            connection.send(chunk)

    asyncio.get_running_loop().add_reader(listener, accept)
    return Running(publish, sockets)


async def waterspout_eventsource(listener: socket.socket) -> Running:
    from waterspout_handlers import EventSource

    return waterspout(listener, EventSource)


async def waterspout_websocket(listener: socket.socket) -> Running:
    from waterspout_handlers import WebSocketSubscriber

    return waterspout(listener, WebSocketSubscriber)


def waterspout(listener: socket.socket, handler: Any) -> Running:
    from waterspout_core import QueueStore

    store = QueueStore()

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            store.submit(event.text)

    return Running(publish, store.subscribers, tornado_server(listener, handler, {"store": store}))


def tornado_server(listener: socket.socket, handler: Any, arguments: dict[str, Any]) -> object:
    from tornado.httpserver import HTTPServer
    from tornado.web import Application

    server = HTTPServer(Application([("/", handler, arguments)]))
    server.add_socket(listener)
    return server


async def plain_tornado(listener: socket.socket) -> Running:
    """What one writes with Tornado alone: the handler of each subscriber stays, writes and flushes."""
    from tornado.web import RequestHandler

    class Plain(RequestHandler):
        async def get(self) -> None:
            self.closed = asyncio.Event()
            self.set_header("Content-Type", "text/event-stream")
            self.set_header("Cache-Control", "no-cache")
            handlers.add(self)
            await self.flush()
            await self.closed.wait()

        def on_connection_close(self) -> None:
            handlers.discard(self)
            self.closed.set()

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            data = event_stream(event).encode()
            for handler in handlers:
                handler.write(data)
                handler.flush()

    handlers: set[Plain] = set()
    return Running(publish, handlers, tornado_server(listener, Plain, {}))


async def sse_starlette(listener: socket.socket) -> Running:
    import uvicorn
    from sse_starlette import EventSourceResponse, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import Route

    async def subscribe(request: Request) -> EventSourceResponse:
        return EventSourceResponse(stream())

    async def stream() -> Any:
        queue: asyncio.Queue[ServerSentEvent] = asyncio.Queue()
        queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            queues.discard(queue)

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            shared = ServerSentEvent(event.text, id=event.id)
            for queue in queues:
                queue.put_nowait(shared)

    queues: set[asyncio.Queue[ServerSentEvent]] = set()
    app = Starlette(routes=[Route("/", subscribe)])
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off"))
    return Running(publish, queues, asyncio.create_task(server.serve([listener])))


async def aiohttp_sse(listener: socket.socket) -> Running:
    from aiohttp import web
    from aiohttp_sse import EventSourceResponse, sse_response

    async def subscribe(request: web.Request) -> EventSourceResponse:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        async with sse_response(request) as response:
            queues.add(queue)
            try:
                while response.is_connected():
                    event = await queue.get()
                    await response.send(event.text, id=event.id)
            finally:
                queues.discard(queue)
        return response

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            for queue in queues:
                queue.put_nowait(event)

    queues: set[asyncio.Queue[Event]] = set()
    app = web.Application()
    app.router.add_get("/", subscribe)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return Running(publish, queues, runner)


async def websockets_broadcast(listener: socket.socket) -> Running:
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    async def subscribe(connection: ServerConnection) -> None:
        connections.add(connection)
        try:
            await connection.wait_closed()
        finally:
            connections.discard(connection)

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            broadcast(connections, json.dumps({"data": event.text, "id": event.id}, separators=(",", ":")))

    connections: set[ServerConnection] = set()
    # Without its pings, which the load generator would have to answer: that is in its favour.
    server = await serve(subscribe, sock=listener, ping_interval=None)
    return Running(publish, connections, server)


OURS: Final = ("tornado", "waterspout-core", "waterspout-handlers")

PEERS: Final = {
    "floor": Peer("a bare loop of `socket.send`", "SSE", (), bare_loop),
    "eventsource": Peer("Waterspout `EventSource`", "SSE", OURS, waterspout_eventsource),
    "tornado": Peer("Tornado `write` + `flush`", "SSE", ("tornado",), plain_tornado),
    "aiohttp-sse": Peer("aiohttp-sse", "SSE", ("aiohttp", "aiohttp-sse"), aiohttp_sse),
    "sse-starlette": Peer(
        "sse-starlette on uvicorn", "SSE", ("httptools", "sse-starlette", "starlette", "uvicorn"), sse_starlette
    ),
    "websocket": Peer("Waterspout `WebSocketSubscriber`", "WebSocket", OURS, waterspout_websocket),
    "websockets": Peer("websockets `broadcast`", "WebSocket", ("websockets",), websockets_broadcast),
}


def event_stream(event: Event) -> str:
    return f"data: {event.text}\nid: {event.id}\n\n"


def payload(number: int) -> str:
    """`PAYLOAD_BYTES` of text that tell the message's number and when it was published."""
    return f"[{number:08} {time.monotonic_ns():019} ".ljust(PAYLOAD_BYTES - 1, ".") + "]"


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def serve(peer: Peer) -> None:
    """Run `peer` until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    server = await peer.start(listener)
    numbers = itertools.count(1)

    def obey() -> None:
        # The load generator waits for what it asked for, so there is one whole line.
        match os.read(0, 4096).split():
            case [b"publish", count]:
                server.publish([Event(f"0123456789-{n}", payload(n)) for n in itertools.islice(numbers, int(count))])
            case [b"subscribers"]:
                print(len(server.subscribers), flush=True)
            case [b"cpu"]:
                print(time.process_time_ns(), flush=True)
            case []:
                os._exit(0)  # at once: nobody waits for what the servers would do to end well
            case unknown:
                raise ValueError(f"there is no command {unknown}")

    asyncio.get_running_loop().add_reader(0, obey)
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(PEERS[sys.argv[1]]))
