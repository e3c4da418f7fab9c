"""The ends: what happens around one who goes, whatever is under way, and that those who stay do not notice it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets

from waterspout_core import BaseStore, QueueStore
from waterspout_handlers import Behind, Connections, EventSource, LineServer, Outlet, WebSocketSubscriber
from waterspout_handlers._connections import MAX_CHANNELS
from waterspout_handlers._formats import EVENT_STREAMS, JSON_LINES

DEADLINE: Final = 10.0
CERTIFICATE: Final = Path(__file__).parent / "localhost.pem"

LARGE: Final = "x" * 20_000
"""More than the socket of a small outlet takes at once."""


class Parting(Outlet):
    """One that does something when it is closed, as the `on_close` of a handler may."""

    __slots__ = ("parting",)

    parting: Callable[[], object]

    def left(self) -> None:
        self.parting()


class Ear:
    """The other end of an outlet that speaks lines of JSON."""

    def __init__(self, outlet: Parting, stream: IOStream, sock: socket.socket) -> None:
        self.outlet = outlet
        self.stream = stream
        self.sock = sock
        self._heard = b""

    async def lines(self, count: int) -> list[Any]:
        """What the next `count` lines say."""
        async with asyncio.timeout(DEADLINE):
            while self._heard.count(b"\n") < count:
                piece = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
                assert piece, "it has ended"
                self._heard += piece
        *lines, self._heard = self._heard.split(b"\n", count)
        return [json.loads(line) for line in lines]

    async def data(self, count: int) -> list[Any]:
        return [line["data"] for line in await self.lines(count)]


def listen(stack: contextlib.ExitStack, connections: Connections, store: BaseStore | None = None, **manner: Any) -> Ear:
    """An outlet, of `store` if there is one, whose socket takes little at a time."""
    ours, theirs = socket.socketpair()
    stack.callback(theirs.close)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
    theirs.setblocking(False)
    stream = IOStream(ours)
    outlet = Parting(stream, manner.pop("format", JSON_LINES[False]), connections, **manner)
    outlet.parting = lambda: None
    stack.callback(outlet.close)
    if store is not None:
        outlet.open({store: store.cursor()})
    return Ear(outlet, stream, theirs)


@contextlib.asynccontextmanager
async def talking(server: LineServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to `server`, which has it until then."""
    [listener] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listener])
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            server.stop()
            for outlet in server.connections:
                outlet.close()
            await asyncio.sleep(0)


# In the middle of something


async def test_who_publishes_that_another_has_left_in_the_middle_of_a_sending_breaks_nobodys_bytes() -> None:
    store = QueueStore(max_messages=2)
    connections = Connections()
    with contextlib.ExitStack() as stack:
        gone, slow = (listen(stack, connections, store) for _ in range(2))
        gone.outlet.parting = lambda: [store.submit("left") for _ in range(3)]
        gone.stream.close()  # as the loop does that finds the peer gone; who reads from it is told in the next turn
        store.submit(LARGE)
        store.publish()
        assert await slow.data(4) == [LARGE, {"missed": 1}, "left", "left"]


async def test_who_sends_another_away_in_the_middle_of_a_sending_harms_none_of_the_rest() -> None:
    store = QueueStore()
    connections = Connections()
    with contextlib.ExitStack() as stack:
        gone, sent_away, stays = (listen(stack, connections, store) for _ in range(3))
        gone.outlet.parting = sent_away.outlet.close
        gone.stream.close()
        store.submit(LARGE)
        store.publish()
        assert not sent_away.outlet.closed  # it is in the middle of the walk, and has its turn in it
        store.submit("next")
        assert await stays.data(2) == [LARGE, "next"]
        assert sent_away.outlet.closed
        assert len(connections) == len(store.subscribers) == 1


async def test_who_comes_while_another_is_found_gone_misses_nothing() -> None:
    store = QueueStore()
    connections = Connections()
    with contextlib.ExitStack() as stack:
        gone, newcomer = listen(stack, connections, store), listen(stack, connections)
        gone.outlet.parting = lambda: store.submit("left")
        gone.stream.close()
        store.submit("first")
        newcomer.outlet.open({store: 0})
        assert await newcomer.data(2) == ["first", "left"]


async def test_a_broken_record_behind_a_good_one_ends_the_connection(serve: Any, until: Any) -> None:
    """OpenSSL refuses it while what came before it is being dealt with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context(cafile=str(CERTIFICATE)).wrap_bio(incoming, outgoing, server_hostname="localhost")
    async with serve(store=QueueStore(), tls=True) as server, asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        shaking = True
        while shaking:
            try:
                tls.do_handshake()
                shaking = False
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
        tls.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writer.write(outgoing.read())
        await until(lambda: len(server.connections) == 1)
        tls.write(b"anything")
        writer.write(outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: len(server.connections) == 0)
        writer.close()


async def test_a_peer_that_goes_while_it_is_told_what_a_get_would_say_is_no_error(serve: Any, until: Any) -> None:
    answered = asyncio.Event()

    class GoneByNow(EventSource):
        async def head(self, *args: str, **kwargs: str) -> None:
            goes.reset()
            await until(self.request.connection.stream.closed)
            await super().head(*args, **kwargs)
            answered.set()

    async with serve(routes=[("/gone", GoneByNow, {"store": QueueStore()})], store=QueueStore()) as server:
        goes = await server.connect()
        await goes.send(f"HEAD /gone HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await answered.wait()


# With a period


async def test_e5_who_has_read_all_and_only_waits_for_the_period_is_not_behind(until: Any) -> None:
    store = QueueStore()
    connections = Connections()
    with contextlib.ExitStack() as stack:
        slow = listen(stack, connections, store, behind=Behind("disconnect"), period=60.0)
        store.submit(LARGE)
        await until(lambda: connections._behind)
        store.submit("within the period")
        assert await slow.data(2) == [LARGE, "within the period"]
        await until(lambda: not slow.stream.writing())
        assert not connections._behind
        assert not slow.outlet.closed


def test_an_audience_with_a_period_goes_on_in_another_loop() -> None:
    store = QueueStore()
    connections = Connections()

    async def hear(stack: contextlib.ExitStack, text: str) -> Ear:
        ear = listen(stack, connections, store, period=0.01)
        store.submit(text)
        assert await ear.data(1) == [text]
        return ear

    first = asyncio.run(hear(contextlib.ExitStack(), "its loop is closed in the middle of a pause"))

    async def go_on() -> None:
        with contextlib.ExitStack() as stack:
            await hear(stack, "heard all the same")

    asyncio.run(go_on())
    for sock in first.stream.socket, first.sock:  # the loop that would close its stream is closed
        sock.close()


# Drains


async def test_f55_a_second_drain_cuts_short_the_first() -> None:
    store = QueueStore()
    connections = Connections()
    with contextlib.ExitStack() as stack:
        listen(stack, connections, store)  # it does not read its goodbye
        store.submit(LARGE)
        store.publish()
        begin = time.monotonic()
        first = asyncio.ensure_future(connections.drain(grace=5.0))
        await asyncio.sleep(0)
        await connections.drain(grace=0.05)
        await first
        assert time.monotonic() - begin < 2


async def test_e8_a_drain_is_over_when_all_have_gone_before_their_goodbyes() -> None:
    connections = Connections()
    with contextlib.ExitStack() as stack:
        ears = [listen(stack, connections, QueueStore()) for _ in range(300)]
        begin = time.monotonic()
        draining = asyncio.ensure_future(connections.drain(grace=30.0))  # a hundred a second
        await asyncio.sleep(0)
        for ear in ears:
            ear.outlet.close()
        await draining
        assert time.monotonic() - begin < 2


async def test_e8_a_drain_without_grace_says_goodbye_all_the_same() -> None:
    store = QueueStore()
    connections = Connections()
    with contextlib.ExitStack() as stack:
        ears = [listen(stack, connections, store, format=EVENT_STREAMS[False, True]) for _ in range(100)]
        begin = time.monotonic()
        await connections.drain(grace=0.0)
        assert time.monotonic() - begin < 1.5
        assert all(ear.outlet.closed for ear in ears)
        assert all(ear.sock.recv(4096).endswith(b"0\r\n\r\n") for ear in ears)


async def test_e8_what_a_line_asked_for_before_a_drain_is_answered_before_the_goodbye(
    hesitant_store: Any, until: Any
) -> None:
    """Who is told to go takes what was not answered for not done, and publishes it once more elsewhere."""
    server = LineServer(hesitant_store, allow_publish=True)
    async with talking(server) as (reader, writer):
        writer.write(b"PUBLISH updates once\r\nPUBLISH updates never\r\n")
        await until(lambda: hesitant_store.waiting)
        draining = asyncio.ensure_future(server.drain(grace=5.0))
        await until(lambda: server.connections.draining)
        hesitant_store.waiting[0].set_result(None)
        answer, goodbye, rest = (await reader.read()).split(b"\r\n")
        assert answer.startswith(b"CONFIRMED updates ")
        assert goodbye.startswith(b"GOAWAY ")
        assert rest == b""
        writer.close()
        await draining
        assert hesitant_store.log.top == 1


async def test_e8_what_a_websocket_asked_for_before_a_drain_is_answered_before_the_goodbye(
    serve: Any, hesitant_store: Any, until: Any
) -> None:
    hesitant_store.log.channel = "news"
    route = ("/publish", WebSocketSubscriber, {"store": hesitant_store, "allow_publish": True})
    async with serve(routes=[route], store=QueueStore()) as server:
        opening = asyncio.ensure_future(server.websocket("/publish"))
        await until(lambda: hesitant_store.waiting)
        hesitant_store.waiting[0].set_result(None)
        peer = await opening
        await peer.send_frame(0x81, b'{"publish":"news","data":"once"}')
        await peer.send_frame(0x81, b'{"publish":"news","data":"never"}')
        await until(lambda: len(hesitant_store.waiting) == 2)
        draining = asyncio.ensure_future(server.connections.drain(grace=5.0))
        await until(lambda: server.connections.draining)
        hesitant_store.waiting[1].set_result(None)
        frames = [await peer.frame() for _ in range(3)]  # one of them is the message, to who publishes reads it as well
        *told, goodbye = frames
        assert "news" in [frame.json.get("published") for frame in told]
        assert goodbye.close_code == 1012
        await peer.send_frame(0x88, goodbye.payload[:2])
        peer.close()
        await draining
        assert hesitant_store.log.top == 1


async def test_f55_a_drain_does_not_wait_longer_for_an_answer_than_its_grace(hesitant_store: Any, until: Any) -> None:
    server = LineServer(hesitant_store, allow_publish=True)
    async with talking(server) as (reader, writer):
        writer.write(b"PUBLISH updates x\r\n")
        await until(lambda: hesitant_store.waiting)
        begin = time.monotonic()
        await server.drain(grace=0.2)
        assert time.monotonic() - begin < 1.5
        assert await reader.read() == b""
        hesitant_store.waiting[0].set_result(None)


# Who is not what it says


async def test_f34_a_subscription_by_another_name_of_a_channel_is_told_so(serve: Any, channel_source: Any) -> None:
    """Else its cursor would be set anew: messages come twice, or not at all."""

    class Namespace(channel_source):  # type: ignore[misc]
        def open(self, channel: str) -> Any:
            return super().open(channel.removeprefix("ns:"))

    source = Namespace()
    async with serve(source=source) as server:
        peer = await server.websocket("/ws?channel=news")
        source.open("news").submit("once")
        assert (await peer.frame()).json["data"] == "once"
        await peer.send_frame(0x81, b'{"subscribe":"ns:news","last_event_id":"earliest"}')
        assert (await peer.frame()).json == {"error": "you have subscribed to 'news' already"}
        source.open("news").submit("next")
        assert (await peer.frame()).json["data"] == "next"
    lines = LineServer(source=source)
    async with talking(lines) as (reader, writer):
        writer.write(b"SUBSCRIBE news\r\nSUBSCRIBE ns:news FROM earliest\r\nUNSUBSCRIBE news\r\nQUIT\r\n")
        answers = (await reader.read()).split(b"\r\n")
        assert answers[0].startswith(b"CONFIRMED news ")
        assert answers[1:] == [b"ERROR ALREADY SUBSCRIBED news", b"CONFIRMED news", b"BYE", b""]
        assert not lines.readers._numbers


async def test_who_guesses_tokens_is_held_up_and_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waterspout_handlers._lines.GUESS", 0.2)
    server = LineServer(QueueStore(), token="secret")
    async with talking(server) as (reader, writer):
        begin = time.monotonic()
        writer.write(b"AUTH guess\r\n" * 300 + b"AUTH secret\r\n")
        assert await reader.read() == b"ERROR the token is not good\r\n" * 2
        assert time.monotonic() - begin > 0.35


async def test_e2_as_many_channels_as_there_may_be_can_be_resumed(serve: Any, channel_source: Any) -> None:
    with pytest.raises(ValueError, match=f"^max_channels is at most {MAX_CHANNELS},"):
        Connections(max_channels=MAX_CHANNELS + 1)
    source = channel_source()
    path = "/events?" + "&".join(f"channel=c{number}" for number in range(MAX_CHANNELS))
    async with serve(source=source, connections=Connections(max_channels=MAX_CHANNELS)) as server:
        goes = await server.listen(path)
        where = goes.response.headers["last-event-id"]
        goes.close()
        for store in source.stores.values():
            store.submit("missed")
        comes_back = await server.listen(path, last_event_id=where)
        assert {event.data for event in await comes_back.events(MAX_CHANNELS)} == {"missed"}
