"""The servers in Python that `fanout.py` compares: `fanout_servers.py NAME` is one, and obeys standard input.

All run on the same event loop (uvloop where it is installed), show no access log, and keep to their defaults: limits,
heartbeats and close detection are as a user gets them. A server prints its port. Then a line on standard input has it
do something:

    publish COUNT       publishes COUNT messages in one turn of the loop
    subscribers         answers how many subscribers there are

and the end of standard input is its end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

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
class Options:
    """What a server may be asked for beside its defaults."""

    heartbeat: float | None = None
    """Seconds between the heartbeats of Waterspout's."""
    broker: str = ""
    """The URL of the broker for those who have one."""
    history: int = 0
    """Messages that it keeps of each channel."""


Start = Callable[[socket.socket, Options], Awaitable[Running]]


async def bare_loop(listener: socket.socket, options: Options) -> Running:
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


async def waterspout_eventsource(listener: socket.socket, options: Options) -> Running:
    from waterspout_handlers import EventSource

    return waterspout(listener, EventSource, options)


async def waterspout_websocket(listener: socket.socket, options: Options) -> Running:
    from waterspout_handlers import WebSocketSubscriber

    return waterspout(listener, WebSocketSubscriber, options)


def waterspout(listener: socket.socket, handler: Any, options: Options) -> Running:
    from waterspout_core import QueueStore

    store = QueueStore()
    return Running(
        submit_to(store), store.subscribers, tornado_server(listener, handler, {"store": store}, **settings(options))
    )


async def waterspout_lines(listener: socket.socket, options: Options) -> Running:
    from waterspout_core import QueueStore
    from waterspout_handlers import LineServer

    store = QueueStore()
    server = LineServer(store=store, **settings(options))
    server.add_socket(listener)
    return Running(submit_to(store), store.subscribers, server)


async def waterspout_channels(listener: socket.socket, options: Options) -> Running:
    """Channels of a broker, as event streams. Who publishes is another process."""
    from waterspout_channels import Channels
    from waterspout_handlers import Connections, EventSource

    def publish(events: Sequence[Event]) -> None:
        raise NotImplementedError("the broker is the one to publish at")

    connections = Connections()
    source = Channels(options.broker, history=options.history)
    return Running(
        publish,
        connections,
        tornado_server(listener, EventSource, {"source": source}, waterspout_connections=connections),
    )


def submit_to(store: Any) -> Callable[[Sequence[Event]], None]:
    def publish(events: Sequence[Event]) -> None:
        for event in events:
            store.submit(event.text)

    return publish


def settings(options: Options) -> dict[str, Any]:
    """Without `options` nothing: all is as a user gets it."""
    if options.heartbeat is None:
        return {}
    from waterspout_handlers import Connections

    return {"connections": Connections(heartbeat=options.heartbeat)}


def tornado_server(listener: socket.socket, handler: Any, arguments: dict[str, Any], **settings: Any) -> object:
    from tornado.httpserver import HTTPServer
    from tornado.web import Application

    server = HTTPServer(Application([("/", handler, arguments)], **settings))
    server.add_socket(listener)
    return server


async def plain_tornado(listener: socket.socket, options: Options) -> Running:
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


async def tornadose(listener: socket.socket, options: Options) -> Running:
    from tornadose.handlers import EventSource  # type: ignore[import-untyped]
    from tornadose.stores import QueueStore  # type: ignore[import-untyped]

    class Subscriber(EventSource):  # type: ignore[misc]
        async def get(self) -> None:
            self.flush()  # or its head would wait for the first message
            await super().get()

    def publish(events: Sequence[Event]) -> None:
        for event in events:
            store.submit(event.text)

    store = QueueStore()
    return Running(publish, store.subscribers, tornado_server(listener, Subscriber, {"store": store}))


async def sse_starlette(listener: socket.socket, options: Options) -> Running:
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


async def aiohttp_sse(listener: socket.socket, options: Options) -> Running:
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


async def websockets_broadcast(listener: socket.socket, options: Options) -> Running:
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
    server = await serve(subscribe, sock=listener)
    return Running(publish, connections, server)


SERVERS: Final[dict[str, Start]] = {
    "floor": bare_loop,
    "eventsource": waterspout_eventsource,
    "websocket": waterspout_websocket,
    "lines": waterspout_lines,
    "channels": waterspout_channels,
    "tornado": plain_tornado,
    "tornadose": tornadose,
    "aiohttp-sse": aiohttp_sse,
    "sse-starlette": sse_starlette,
    "websockets": websockets_broadcast,
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


async def serve(start: Start, options: Options) -> None:
    """Run a server until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    server = await start(listener, options)
    numbers = itertools.count(1)

    def obey() -> None:
        # The load generator waits for what it asked for, so there is one whole line.
        match os.read(0, 4096).split():
            case [b"publish", count]:
                server.publish([Event(f"0123456789-{n}", payload(n)) for n in itertools.islice(numbers, int(count))])
            case [b"subscribers"]:
                print(len(server.subscribers), flush=True)
            case []:
                os._exit(0)  # at once: nobody waits for what the servers would do to end well
            case unknown:
                raise ValueError(f"there is no command {unknown}")

    asyncio.get_running_loop().add_reader(0, obey)
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SERVERS)
    parser.add_argument("--loop", choices=["auto", "asyncio"], default="auto")
    parser.add_argument("--heartbeat", type=float)
    parser.add_argument("--broker", default="")
    parser.add_argument("--history", type=int, default=0)
    asked = parser.parse_args()
    options = Options(asked.heartbeat, asked.broker, asked.history)
    with asyncio.Runner(loop_factory=new_loop if asked.loop == "auto" else None) as runner:
        runner.run(serve(SERVERS[asked.name], options))


if __name__ == "__main__":
    main()
