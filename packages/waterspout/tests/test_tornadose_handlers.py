"""The drop-in for tornadose's handlers, row by row (B15 to B26), over real sockets.

`EventSource` and `WebSocketSubscriber` as they are hand over to those of waterspout; subclasses live. Both have to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import re
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from tornado import gen
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.queues import Queue
from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketClientConnection, WebSocketHandler, websocket_connect

import waterspout_core
from waterspout.tornadose import handlers
from waterspout.tornadose.handlers import BaseHandler, EventSource, WebSocketSubscriber
from waterspout.tornadose.stores import BaseStore, DataStore, QueueStore, RedisStore
from waterspout_handlers import Connections, Outlet
from waterspout_redis.testing import RunningServer, eventually, run

DEADLINE: Final = 10.0


class LiveEventSource(EventSource):
    """Overrides nothing, and lives all the same."""


class LiveWebSocket(WebSocketSubscriber):
    """So does this."""


EVENT_SOURCES: Final = pytest.mark.parametrize("handler", [EventSource, LiveEventSource], ids=["as it is", "subclass"])
WEBSOCKETS: Final = pytest.mark.parametrize(
    "handler", [WebSocketSubscriber, LiveWebSocket], ids=["as it is", "subclass"]
)


class Custom(BaseStore):
    """A store as the documentation of tornadose tells to write one: it gives each message to each handler."""

    def initialize(self) -> None:
        self.by = "submit"

    def submit(self, message: Any) -> None:  # type: ignore[override]
        self.message = message
        self.publish()

    def publish(self) -> None:
        for subscriber in tuple(self.subscribers):
            getattr(subscriber, self.by)(self.message)


class Service:
    """A running server, and what is needed to talk to it."""

    def __init__(self, port: int, connections: Connections) -> None:
        self.port = port
        self.connections = connections
        self._clients: list[Stream | WebSocketClientConnection] = []

    async def request(self, method: str = "GET", *, receive_buffer: int | None = None, **headers: str) -> Stream:
        """A connection that has sent its request and got the head of the answer."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**20)
        fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        writer.write(f"{method} / HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{fields}\r\n".encode())
        self._clients.append(stream := Stream(reader, writer))
        await stream.begin()
        return stream

    async def websocket(self) -> WebSocketClientConnection:
        self._clients.append(client := await websocket_connect(f"ws://127.0.0.1:{self.port}/"))
        return client

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()


class Stream:
    """A client that reads server-sent events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.fields: list[tuple[str, str]] = []

    async def begin(self) -> None:
        async with asyncio.timeout(DEADLINE):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def chunk(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def text(self) -> str:
        """The next line; the stream's end is an empty one without its line feed."""
        while True:
            line, feed, _ = self._rest.partition("\n")
            if feed:
                self._rest = self._rest[len(line) + 1 :]
                return line
            chunk = await self.chunk()
            assert chunk, "the stream has ended"
            self._rest += chunk.decode()

    _rest = ""

    async def event(self) -> str:
        """The data of the next event that has any."""
        data: list[str] = []
        while True:
            line = await self.text()
            name, _, value = line.partition(":")
            self.fields.append((name, value.removeprefix(" ")))
            if name == "data":
                data.append(value.removeprefix(" "))
            if not line and data:
                return "\n".join(data)

    async def events(self, count: int) -> list[str]:
        return [await self.event() for _ in range(count)]

    async def rest(self) -> bytes:
        """All that comes until the answer is at its end."""
        rest = self._rest.encode()
        while chunk := await self.chunk():
            rest += chunk
        return rest

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Go without a word."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def serve(
    handler: type[RequestHandler], store: Any, *, connections: Connections | None = None, **arguments: Any
) -> AsyncIterator[Service]:
    connections = connections or Connections()
    application = Application([("/", handler, {"store": store, **arguments})], waterspout_connections=connections)
    server = HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    service = Service(sockets[0].getsockname()[1], connections)
    try:
        yield service
    finally:
        server.stop()
        service.close_clients()
        await server.close_all_connections()
        await eventually(lambda: not (store.subscribers or len(connections)))


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing goes wrong unseen; who provokes an error takes it out of the log."""
    yield
    gc.collect()  # futures whose exceptions nobody asked for
    seen = [*caplog.get_records("call"), *caplog.records]
    assert [
        record.getMessage() for record in seen if record.levelno >= logging.ERROR and record.name != "tornado.access"
    ] == []


async def received(connection: WebSocketClientConnection) -> Any:
    async with asyncio.timeout(DEADLINE):
        message = await connection.read_message()
    return None if message is None else json.loads(message)


# BaseHandler


class Poll(BaseHandler):
    """One message an answer."""

    async def get(self) -> None:
        self.write(await self.messages.get())


def test_b15_a_handler_is_registered_and_submit_fills_its_queue() -> None:
    made: list[Poll] = []

    class Known(Poll):
        def initialize(self, store: BaseStore) -> None:  # type: ignore[override]
            super().initialize(store)
            made.append(self)

    async def use() -> None:
        store = Custom()
        async with serve(Known, store) as service:
            asking = asyncio.create_task(service.request())
            await eventually(lambda: made)
            assert made[0].store is store
            assert store.subscribers == {made[0]}
            assert isinstance(made[0].messages, Queue)
            await made[0].submit("hello")
            stream = await asking
            assert await stream.reader.readexactly(5) == b"hello"
            assert store.subscribers == set()
            with pytest.raises(NotImplementedError, match="Known"):
                made[0].publish("x")
            await made[0].submit("too late")

    run(use())


def test_b15_what_is_no_store_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        for handler in (Poll, LiveEventSource, LiveWebSocket):
            with pytest.raises(AssertionError, match="no store"):
                handler.initialize(handler.__new__(handler, None, None, store=None), "store")  # type: ignore[arg-type]

    run(use())


@pytest.mark.parametrize("kind", [EventSource, LiveEventSource, WebSocketSubscriber, LiveWebSocket, Poll])
def test_b16_whoever_is_refused_is_not_registered(kind: type[RequestHandler]) -> None:
    async def use() -> None:
        store = QueueStore()
        async with serve(kind, store) as service:
            for method in ("POST", "HEAD", "DELETE"):
                stream = await service.request(method)
                assert (stream.status in (200, 405, 426), store.subscribers) == (True, set())

    run(use())


@pytest.mark.parametrize("base", [EventSource, WebSocketSubscriber, Poll])
def test_b16_who_prepares_is_not_registered_yet_and_who_is_refused_there_never(base: Any) -> None:
    seen: list[int] = []

    class Refusing(base):  # type: ignore[misc]
        async def prepare(self) -> None:
            seen.append(len(self.store.subscribers))
            raise HTTPError(403)

    async def use() -> None:
        store = QueueStore()
        async with serve(Refusing, store) as service:
            stream = await service.request()
            assert (stream.status, store.subscribers) == (403, set())

    run(use())
    assert seen == [1 if base is Poll else 0]


# EventSource


@EVENT_SOURCES
def test_b17_a_message_is_a_line_of_data_and_a_blank_one(
    handler: type[EventSource], caplog: pytest.LogCaptureFixture
) -> None:
    async def use() -> None:
        store = QueueStore()
        with caplog.at_level(logging.INFO, "tornado.access"):
            async with serve(handler, store) as service:
                stream = await service.request()
                assert stream.headers["content-type"].startswith("text/event-stream")
                assert "no-cache" in stream.headers["cache-control"]
                await eventually(lambda: store.subscribers)
                assert "200 GET / (127.0.0.1)" in caplog.text  # while it lasts
                store.submit("one")
                assert await stream.event() == "one"
                assert stream.fields[-1] == ("", "")
                store.submit("{} žluť %s")
                assert await stream.event() == "{} žluť %s"

    run(use())


@EVENT_SOURCES
def test_b18_with_a_period_there_is_rest_between_messages(handler: type[EventSource]) -> None:
    async def use() -> None:
        store = DataStore()
        async with serve(handler, store, period=0.5) as service:
            loop = asyncio.get_running_loop()
            stream = await service.request()
            await eventually(lambda: store.subscribers)
            store.submit(0)
            assert await stream.event() == "0"
            begun = loop.time()
            for number in range(1, 1000):
                store.submit(number)
                await asyncio.sleep(0)
            got = [await stream.event()]
            assert loop.time() - begun > 0.2
            while got[-1] != "999":
                got.append(await stream.event())
            assert len(got) <= 3

    run(use())


@EVENT_SOURCES
def test_b18_a_period_of_none_or_zero_is_none_and_it_is_a_number(handler: type[EventSource]) -> None:
    async def use() -> None:
        store = QueueStore()
        for period in (None, 0):
            async with serve(handler, store, period=period) as service:
                stream = await service.request()
                await eventually(lambda: store.subscribers)
                for message in "abc":
                    store.submit(message)
                assert await stream.events(3) == ["a", "b", "c"]
                stream.close()
                await eventually(lambda: not store.subscribers)
        with pytest.raises(AssertionError, match="seconds"):
            EventSource(None, None, store=store, period="often")  # type: ignore[arg-type]

    run(use())


@EVENT_SOURCES
def test_b19_each_line_of_a_message_is_a_line_of_data(handler: type[EventSource]) -> None:
    """F38: nothing in a message is taken for another field, or the end of it."""

    async def use() -> None:
        store = QueueStore()
        async with serve(handler, store) as service:
            stream = await service.request()
            await eventually(lambda: store.subscribers)
            for message in ("a\nb", "a\r\nb\rc", "\n", "x\n\nevent: forged", " a", ""):
                await store.submit(message)
                assert await stream.event() == re.sub("\r\n|\r", "\n", message)
            assert "event" not in {name for name, _ in stream.fields}

    run(use())


@EVENT_SOURCES
def test_b20_an_idle_connection_is_kept_alive_by_comments(handler: type[EventSource]) -> None:
    async def use() -> None:
        store = QueueStore()
        async with serve(handler, store, connections=Connections(heartbeat=0.05)) as service:
            stream = await service.request()
            while not (await stream.text()).startswith(":"):
                pass
            store.submit("a")
            assert await stream.event() == "a"

    run(use())


def test_b20_events_have_an_id_to_come_back_with() -> None:
    async def use() -> None:
        store = QueueStore()
        async with serve(EventSource, store) as service:
            stream = await service.request()
            await eventually(lambda: store.subscribers)
            store.submit("a")
            assert await stream.event() == "a"
            [*_, id] = [value for name, value in stream.fields if name == "id"]
            stream.close()
            store.submit("b")
            again = await service.request(Last_Event_ID=id)
            assert await again.event() == "b"

    run(use())


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("kind", [EventSource, LiveEventSource, Poll])
def test_b21_who_has_gone_is_forgotten_at_once(kind: type[RequestHandler], how: str) -> None:
    """F52: nothing has to be published for it."""

    async def use() -> None:
        store = QueueStore()
        async with serve(kind, store) as service:
            if kind is Poll:  # which sends nothing yet
                _, writer = await asyncio.open_connection("127.0.0.1", service.port)
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                stream = Stream(asyncio.StreamReader(), writer)
            else:
                stream = await service.request()
            await eventually(lambda: len(store.subscribers) == 1)
            getattr(stream, how)()
            await eventually(lambda: not store.subscribers)
            await eventually(lambda: len(service.connections) == 0)
            await eventually(lambda: len(asyncio.all_tasks()) == 1)

    run(use())


def test_b22_a_publish_that_fails_is_told_and_ends_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(EventSource):
        def publish(self, message: Any) -> None:
            raise ZeroDivisionError("publish failed")

    async def use() -> None:
        store = QueueStore()
        async with serve(Failing, store) as service:
            stream = await service.request()
            await eventually(lambda: store.subscribers)
            store.submit("a")
            await stream.rest()
            assert store.subscribers == set()

    run(use())
    assert "publish failed" in caplog.text
    caplog.clear()


# WebSocketSubscriber


@WEBSOCKETS
def test_b23_a_message_is_a_json_object_with_data(handler: type[WebSocketSubscriber]) -> None:
    async def use() -> None:
        store = QueueStore()
        async with serve(handler, store) as service:
            client = await service.websocket()
            await eventually(lambda: store.subscribers)
            for message in ("text", "žluť\n", 0, None, {"a": [1]}, "", True):
                store.submit(message)
                got = await received(client)
                assert got["data"] == message
                assert type(got["data"]) is type(message)
                assert got.keys() == ({"data"} if handler is LiveWebSocket else {"data", "id"})

    run(use())


@WEBSOCKETS
def test_b24_who_has_gone_is_forgotten_at_once(handler: type[WebSocketSubscriber]) -> None:
    async def use() -> None:
        store = QueueStore()
        async with serve(handler, store) as service:
            for leave in ("close", "cut"):
                client = await service.websocket()
                await eventually(lambda: len(store.subscribers) == 1)
                if leave == "close":
                    client.close(1000, "enough")
                    assert await received(client) is None
                    assert client.close_code == 1000
                else:
                    client.stream.close()
                await eventually(lambda: not store.subscribers)
                await eventually(lambda: len(service.connections) == 0)
            await eventually(lambda: len(asyncio.all_tasks()) == 1)

    run(use())


def plain(self: Any, store: BaseStore) -> Any:
    self.write_message("welcome")
    return WebSocketSubscriber.open(self)


@gen.coroutine
def forgetful(self: Any, store: BaseStore) -> Iterator[Any]:
    """Calls what it overrides and does not wait for it."""
    yield self.write_message("welcome")
    WebSocketSubscriber.open(self)


async def coroutine(self: Any, store: BaseStore) -> None:
    await self.write_message("welcome")
    await WebSocketSubscriber.open(self)  # type: ignore[misc]


@gen.coroutine
def loop_of_its_own(self: Any, store: BaseStore) -> Iterator[Any]:
    """As tornadose's own."""
    store.register(self)
    yield self.write_message("welcome")
    while not self.finished:
        message = yield self.messages.get()
        yield self.publish(message)


@pytest.mark.parametrize("way", [plain, forgetful, coroutine, loop_of_its_own])
def test_b24_open_holds_up_nothing(way: Any) -> None:
    told: list[Any] = []

    class Talking(WebSocketSubscriber):
        def open(self) -> Any:  # type: ignore[override]
            return way(self, self.store)

        def on_message(self, message: str | bytes) -> None:
            told.append(message)

        def on_close(self) -> None:  # and does not call what it overrides
            told.append((self.close_code, self.close_reason))

    async def use() -> None:
        store = QueueStore()
        async with serve(Talking, store) as service:
            client = await service.websocket()
            assert await client.read_message() == "welcome"
            store.submit("a")
            assert await received(client) == {"data": "a"}
            await client.write_message("hello")
            await eventually(lambda: told == ["hello"])
            client.close(1000, "bye")
            await eventually(lambda: not store.subscribers)
            await eventually(lambda: told == ["hello", (1000, "bye")])
            await eventually(lambda: len(asyncio.all_tasks()) == 1)

    run(use())


def test_b24_an_open_that_fails_is_told_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(WebSocketSubscriber):
        async def open(self) -> None:  # type: ignore[override]
            raise ZeroDivisionError("open failed")

    class Unwritable(WebSocketSubscriber):
        def publish(self, message: Any) -> None:
            raise ZeroDivisionError("publish failed")

    async def use() -> None:
        for kind in (Failing, Unwritable):
            store = QueueStore()
            async with serve(kind, store) as service:
                client = await service.websocket()
                store.submit("a")
                assert await received(client) is None
                assert client.close_code == 1011
                await eventually(lambda: not store.subscribers)  # noqa: B023  # it is awaited here

    run(use())
    assert "open failed" in caplog.text
    assert "publish failed" in caplog.text
    caplog.clear()


# Handlers and stores of one's own


class Shouting(EventSource):
    def publish(self, message: Any) -> Any:
        return super().publish(message.upper())


class Plain(EventSource):
    """Writes for itself, and does not wait."""

    def publish(self, message: Any) -> None:
        self.write(f"data: {message.upper()}\n\n")
        self.flush()


class Patient(EventSource):
    """Is a coroutine that takes its time."""

    async def publish(self, message: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.write(f"data: {message.upper()}\n\n")
        await self.flush()


class Choosy(EventSource):
    """Passes over what it does not like; as in tornadose 0.2, it publishes at once."""

    @gen.coroutine
    def submit(self, message: Any) -> Iterator[Any]:
        if message != "no":
            yield self.publish(message.upper())


class Quiet(EventSource):
    """Awaits nothing."""

    def submit(self, message: Any) -> Any:
        return None if message == "no" else super().submit(message.upper())


class Named(EventSource):
    def initialize(self, store: Any, name: str = "") -> None:  # type: ignore[override]
        super().initialize(store)
        self.name = name

    def publish(self, message: Any) -> Any:
        return super().publish(f"{self.name}{message}".upper())


class ByHand(Shouting):
    """Does not call what it overrides, as the documentation allows."""

    def initialize(self, store: Any) -> None:  # type: ignore[override]
        self.messages = Queue()
        self.store = store
        self.store.register(self)
        self.set_header("Content-Type", "text/event-stream")


class OfItsOwn(BaseHandler):
    async def get(self) -> None:
        await self.flush()
        while True:
            await self.publish(await self.messages.get())

    async def publish(self, message: Any) -> None:
        self.write(f"data: {message.upper()}\n\n")
        await self.flush()


OWN: Final = [Shouting, Plain, Patient, Choosy, Quiet, Named, ByHand, OfItsOwn]


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        *((kind, by) for kind in OWN for by in ("log", "submit")),
        *((kind, "publish") for kind in (Shouting, Plain, Named, ByHand)),
        *((kind, "core") for kind in OWN if kind is not ByHand),  # a store of waterspout_core only wakes
    ],
)
def test_b25_a_handler_of_ones_own_is_given_each_message_in_order(kind: Any, by: str) -> None:
    async def use() -> None:
        store: Any = {"log": QueueStore, "core": waterspout_core.QueueStore}.get(by, Custom)()
        if by == "publish":
            store.by = "publish"
        async with serve(kind, store) as service:
            stream = await service.request()
            await eventually(lambda: store.subscribers)
            assert isinstance(next(iter(store.subscribers)), kind)
            for number in range(20):
                store.submit(f"m{number}")
            assert await stream.events(20) == [f"M{number}" for number in range(20)]
            if kind in (Choosy, Quiet):
                store.submit("no")
                store.submit("yes")
                assert await stream.event() == "YES"
            stream.close()
            await eventually(lambda: not store.subscribers)
            store.submit("nobody is there")
            await eventually(lambda: len(asyncio.all_tasks()) == 1)

    run(use())


@pytest.mark.parametrize("by", ["submit", "publish"])
@pytest.mark.parametrize("kind", [EventSource, WebSocketSubscriber])
def test_b25_a_store_of_ones_own_delivers_to_the_handlers_as_they_are(kind: Any, by: str) -> None:
    async def use() -> None:
        store = Custom()
        store.by = by
        async with serve(kind, store) as service:
            if kind is EventSource:
                stream = await service.request()
                await eventually(lambda: store.subscribers)
                store.submit("a")
                assert await stream.event() == "a"
                stream.close()
            else:
                client = await service.websocket()
                await eventually(lambda: store.subscribers)
                store.submit("a")
                assert await received(client) == {"data": "a"}

    run(use())


@pytest.mark.parametrize("kind", [QueueStore, waterspout_core.QueueStore, Custom])
def test_b25_who_finishes_in_the_middle_is_given_no_more_and_is_forgotten(kind: Any) -> None:
    got: list[Any] = []
    made: list[weakref.ref[Any]] = []
    begun = asyncio.Event()

    class Once(Poll):
        def initialize(self, store: Any) -> None:
            super().initialize(store)
            made.append(weakref.ref(self))

        async def get(self) -> None:
            begun.set()
            await super().get()

        def submit(self, message: Any) -> None:
            got.append(message)
            self.finish(message)

    async def use() -> None:
        store = kind()
        async with serve(Once, store) as service:
            asking = asyncio.create_task(service.request())
            await begun.wait()
            for message in "ab":
                store.submit(message)
            stream = await asking
            assert await stream.reader.readexactly(1) == b"a"
            stream.close()
            assert (got, store.subscribers) == (["a"], set())
            store.submit("c")
            await eventually(lambda: len(asyncio.all_tasks()) == 1)
            gc.collect()
            assert made[0]() is None
            assert got == ["a"]

    run(use())


def test_b25_a_websocket_of_ones_own_from_both_halves() -> None:
    class Both(BaseHandler, WebSocketHandler):
        def open(self) -> None:  # type: ignore[override]
            self.set_nodelay(True)

        def submit(self, message: Any) -> Any:
            return self.write_message(message)

    async def use() -> None:
        store = QueueStore()
        async with serve(Both, store) as service:
            client = await service.websocket()
            store.submit("a")
            assert await client.read_message() == "a"
            client.close()
            await eventually(lambda: not store.subscribers)

    run(use())


@pytest.mark.parametrize("kind", [EventSource, LiveEventSource, WebSocketSubscriber, LiveWebSocket])
def test_b26_every_store_delivers_to_every_handler(kind: Any, redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore(port=redis_server.port) as in_redis:
            for store in (DataStore(), QueueStore(), in_redis):
                async with serve(kind, store) as service:
                    if issubclass(kind, EventSource):
                        stream = await service.request()
                        await eventually(lambda: store.subscribers)  # noqa: B023  # it is awaited here
                        store.submit("delivered")
                        assert await stream.event() == "delivered"
                        stream.close()
                    else:
                        client = await service.websocket()
                        await eventually(lambda: store.subscribers)  # noqa: B023
                        store.submit("delivered")
                        assert (await received(client))["data"] == "delivered"

    run(use())


# What they have of waterspout


def test_a_websocket_that_lives_is_pinged() -> None:
    ponged: list[bytes] = []

    class Ponged(WebSocketSubscriber):
        def on_pong(self, data: bytes) -> None:
            ponged.append(data)

    async def use() -> None:
        async with serve(Ponged, QueueStore(), connections=Connections(heartbeat=0.05)) as service:
            await service.websocket()
            await eventually(lambda: ponged)

    run(use())


@pytest.mark.parametrize("kind", [EventSource, WebSocketSubscriber])
def test_as_they_are_no_handler_lives(kind: Any) -> None:
    async def use() -> None:
        store = QueueStore()
        async with serve(kind, store) as service:
            if kind is EventSource:
                await service.request()
            else:
                await service.websocket()
            await eventually(lambda: store.subscribers)
            assert all(isinstance(subscriber, Outlet) for subscriber in store.subscribers)

    run(use())


def test_b9_nothing_is_kept_for_a_slow_client_but_its_place_in_the_log() -> None:
    """F53: and nobody waits for it."""

    async def use() -> None:
        store = QueueStore(max_messages=100)
        async with serve(LiveEventSource, store) as service:
            slow = await service.request(receive_buffer=4096)
            await eventually(lambda: store.subscribers)
            [handler] = store.subscribers
            quick = await service.request()
            await eventually(lambda: len(store.subscribers) == 2)
            for number in range(300):
                store.submit(f"{number} {'x' * 100_000}")
                assert (await quick.event()).startswith(f"{number} ")
            assert handler.messages.qsize() <= 1  # type: ignore[attr-defined]
            slow.reset()
            quick.close()
            await eventually(lambda: len(asyncio.all_tasks()) == 1)

    run(use())


def test_b9_who_is_too_far_behind_a_store_without_a_log_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        store = Custom()
        async with serve(LiveWebSocket, store) as service:
            slow = await service.websocket()
            await eventually(lambda: store.subscribers)
            for _ in range(handlers.MAX_MESSAGES + 2):  # one is under way
                store.submit("x")
            assert store.subscribers == set()
            while await slow.read_message() is not None:
                pass

    run(use())
    assert f"{handlers.MAX_MESSAGES} messages behind" in caplog.text


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("kind", [LiveEventSource, ByHand])
def test_a_stream_that_lives_comes_to_its_end_in_a_drain(kind: Any, busy: bool) -> None:
    begun, published = asyncio.Event(), asyncio.Event()

    class Busy(kind):  # type: ignore[misc]
        async def publish(self, message: Any) -> None:
            if message != "first":
                begun.set()
                await published.wait()
            await super().publish(message)

    async def use() -> None:
        store = QueueStore()
        async with serve(Busy, store) as service:
            stream = await service.request()
            await eventually(lambda: store.subscribers)
            store.submit("first")
            assert (await stream.event()).lower() == "first"
            if busy:
                store.submit("second")
                store.submit("third")
                await begun.wait()
            draining = asyncio.create_task(service.connections.drain(5))
            await asyncio.sleep(0)
            published.set()
            rest = (await stream.rest()).lower()
            assert re.search(rb"retry: \d{4}\n: the server is about to stop", rest)
            assert (b"second" in rest, b"third" in rest) == (busy, False)
            await draining
            assert (len(service.connections), store.subscribers) == (0, set())

    run(use())


@pytest.mark.parametrize("kind", [LiveEventSource, LiveWebSocket])
def test_handlers_that_live_are_counted_bounded_and_told_goodbye(kind: Any) -> None:
    async def use() -> None:
        store = QueueStore()
        connections = Connections(max_connections=1)
        async with serve(kind, store, connections=connections) as service:
            if kind is LiveEventSource:
                stream = await service.request()
                await eventually(lambda: len(connections) == 1)
                refused = await service.request()
                # Not 503: a browser's EventSource would not come back.
                assert refused.status == 200
                body = await refused.reader.readexactly(int(refused.headers["content-length"]))
                assert re.match(rb"retry: \d{4,5}\n: there are 1 connections", body)
                await connections.drain(5)
                assert b"retry: " in await stream.rest()
                stream.close()
                refused.close()
            else:
                client = await service.websocket()
                await eventually(lambda: len(connections) == 1)
                headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
                stream = await service.request(**headers, Sec_WebSocket_Key="x" * 16)
                assert (stream.status, int(stream.headers["retry-after"]) >= 5) == (503, True)
                stream.close()
                draining = asyncio.create_task(connections.drain(5))
                assert await received(client) is None
                assert client.close_code == 1012
                await draining
            assert (len(connections), connections.counts.refused) == (0, 1)
            assert store.subscribers == set()

    run(use())
