"""The line server: every conversation that it can have, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.netutil import bind_sockets

from waterspout_core import BaseStore, DataStore, History, MemoryPubSub, QueueStore
from waterspout_handlers import Behind, Connections, LineClient, LineServer
from waterspout_handlers._lines import LineOutlet

DEADLINE: Final = 10.0
CERTIFICATE: Final = Path(__file__).parent / "localhost.pem"
KiB: Final = 1024


class Console:
    """The other end, which knows no more of the protocol than that there are lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            self.writer.write(data)
            await self.writer.drain()

    async def line(self) -> str:
        begun = b""
        async with asyncio.timeout(DEADLINE):
            while not begun.endswith(b"\r\n"):
                try:
                    begun += await self.reader.readuntil(b"\r\n")
                except asyncio.LimitOverrunError as longer:
                    begun += await self.reader.readexactly(longer.consumed)
        return begun.decode().removesuffix("\r\n")

    async def lines(self, count: int) -> list[str]:
        return [await self.line() for _ in range(count)]

    async def ask(self, line: str) -> str:
        await self.send(line.encode() + b"\r\n")
        return await self.line()

    async def message(self) -> dict[str, Any]:
        word, _, rest = (await self.line()).partition(" ")
        assert word == "MESSAGE"
        return json.loads(rest)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    def reset(self) -> None:
        """Go, with RST."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Running:
    """A line server on a free port."""

    def __init__(self, server: LineServer, port: int, tls: ssl.SSLContext | None) -> None:
        self.server = server
        self.port = port
        self.tls = tls
        self.consoles: list[Console] = []

    async def connect(self, *, receive_buffer: int | None = None) -> Console:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        async with asyncio.timeout(DEADLINE):
            try:
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            except OSError:
                sock.close()
                raise
            console = Console(
                *await asyncio.open_connection(
                    sock=sock,
                    ssl=self.tls,
                    server_hostname="localhost" if self.tls else None,
                    limit=2**20 if receive_buffer is None else receive_buffer,
                )
            )
        self.consoles.append(console)
        return console


@contextlib.asynccontextmanager
async def serving(
    store: BaseStore | None = None,
    source: Any = None,
    *,
    kind: type[LineServer] = LineServer,
    tls: bool = False,
    send_buffer: int | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    client = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE)
        client = ssl.create_default_context(cafile=str(CERTIFICATE))
        options["ssl_options"] = context
    server = kind(store, source, **{"allow_publish": True, **options})
    sockets = bind_sockets(0, "127.0.0.1")
    for sock in sockets if send_buffer is not None else ():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server.add_sockets(sockets)
    running = Running(server, sockets[0].getsockname()[1], client)
    try:
        yield running
    finally:
        server.stop()
        for console in running.consoles:
            console.writer.transport.abort()
        for outlet in server.connections:
            outlet.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


# The article


def test_c1_the_port_is_5567() -> None:
    assert inspect.signature(LineServer.listen).parameters["port"].default == 5567
    assert inspect.signature(LineClient).parameters["port"].default == 5567


async def test_c1_what_a_client_says_comes_back_with_its_line_end() -> None:
    """The echo of the first article is `PING` now."""
    async with serving(QueueStore()) as running:
        console = await running.connect()
        await console.send(b"PING hello\r\nPING \\ gr\xc3\xbc\xc3\x9fe\nPING\r\n")
        await console.send(b"QUIT\r\n")
        assert await console.rest() == b"PONG hello\r\nPONG \\ gr\xc3\xbc\xc3\x9fe\r\nPONG\r\nBYE\r\n"


async def test_c2_the_server_keeps_one_outlet_for_a_connection_until_it_ends(until: Any) -> None:
    async with serving(QueueStore()) as running:
        first, second = await running.connect(), await running.connect()
        await first.ask("PING")
        await second.ask("PING")
        outlets = list(running.server.connections)
        assert [type(outlet) for outlet in outlets] == [LineOutlet, LineOutlet]
        first.writer.close()
        await until(lambda: len(running.server.connections) == 1)
        assert [outlet.closed for outlet in outlets].count(True) == 1
        second.reset()
        await until(lambda: len(running.server.connections) == 0)


async def test_c3_the_subscription_of_the_default_channel_is_logged_once(
    channel_source: Any, caplog: pytest.LogCaptureFixture, until: Any
) -> None:
    caplog.set_level(logging.INFO, "waterspout.handlers")
    source = channel_source()
    async with serving(source=source) as running:
        consoles = [await running.connect() for _ in range(3)]
        for console in consoles:
            assert await console.ask("SUBSCRIBE") == "CONFIRMED"
        assert [name for name, store in source.stores.items() if store.subscribed] == ["updates"]
        assert caplog.messages == ['Subscribed to "updates"']
        assert await consoles[0].ask("UNSUBSCRIBE") == "CONFIRMED"
        consoles[1].reset()
        consoles[2].writer.close()
        await until(lambda: source.subscribers() == 0)
        assert caplog.messages == ['Subscribed to "updates"', 'Unsubscribed from "updates"']


async def test_c4_a_message_goes_to_all_as_a_line_and_an_empty_one_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "waterspout.handlers")
    store = QueueStore()
    async with serving(store) as running:
        consoles = [await running.connect() for _ in range(3)]
        for console in consoles:
            await console.ask("SUBSCRIBE")
        store.submit("first")
        store.submit("")
        await asyncio.sleep(0)
        store.submit("")
        await asyncio.sleep(0)
        store.submit("grüße")
        for console in consoles:
            await console.send(b"QUIT\n")
            assert await console.rest() == "first\r\ngrüße\r\nBYE\r\n".encode()
    assert "Message in updates: first" in caplog.messages
    assert "Message in updates: grüße" in caplog.messages
    assert not store.subscribers


async def test_c5_a_client_that_has_gone_is_closed_quietly(caplog: pytest.LogCaptureFixture, until: Any) -> None:
    store = QueueStore()
    async with serving(store) as running:
        gone, there = await running.connect(), await running.connect()
        for console in (gone, there):
            await console.ask("SUBSCRIBE")
        gone.reset()
        for _ in range(3):
            store.submit("news")
            await asyncio.sleep(0)
        assert await there.lines(3) == ["news"] * 3
        await until(lambda: len(store.subscribers) == 1)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_c7_f53_f50_a_client_that_does_not_read_holds_up_nobody_and_nothing_grows(until: Any) -> None:
    store = QueueStore(max_messages=100)
    async with serving(store, send_buffer=4 * KiB) as running:
        stopped = await running.connect(receive_buffer=4 * KiB)
        reading = await running.connect()
        for console in (stopped, reading):
            assert await console.ask("SUBSCRIBE") == "CONFIRMED"
        text = "x" * 10_000
        for number in range(1000):
            store.submit(f"{number} {text}")
            assert (await reading.line()).startswith(f"{number} ")
        held = max(len(outlet._stream._write_buffer) for outlet in running.server.connections)
        assert held < 2 * len(text) * 100, "the stream holds one run at most, the log the rest"
        # It is told what it missed when it reads on, and is level again.
        expected = missed = 0
        while expected < 1000:
            word, count = (await stopped.line()).split()
            if word == "GAP":
                missed += int(count)
                expected += int(count)
            else:
                assert int(word) == expected
                expected += 1
        assert missed > 500
        assert running.server.connections.counts.gaps >= 1


async def test_c8_when_it_stops_all_are_told_and_nothing_is_left() -> None:
    store = QueueStore()
    async with serving(store) as running:
        consoles = [await running.connect() for _ in range(5)]
        for console in consoles:
            await console.ask("SUBSCRIBE")
        store.submit("last")
        async with asyncio.timeout(DEADLINE):
            draining = asyncio.ensure_future(running.server.drain(grace=5.0))
            for console in consoles:
                said = await console.rest()
                assert said.startswith(b"last\r\nGOAWAY ")
                assert said.endswith(b"\r\n")
                console.writer.close()
            await draining
        assert not store.subscribers
        assert len(running.server.connections) == 0
        with pytest.raises(OSError):  # noqa: PT011  # nobody listens any more
            await running.connect()


async def test_c9_the_conversation_of_the_article_byte_for_byte() -> None:
    store = QueueStore()
    async with serving(store) as running:
        console = await running.connect()
        store.submit("nobody asked for this")
        for said, answer in [
            ("UNSUBSCRIBE", "ALREADY UNSUBSCRIBED"),
            ("SUBSCRIBE", "CONFIRMED"),
            ("SUBSCRIBE", "ALREADY SUBSCRIBED"),
            ("HELLO", "UNKNOWN COMMAND"),
            ("", "UNKNOWN COMMAND"),
            ("UNSUBSCRIBE", "CONFIRMED"),
            ("UNSUBSCRIBE", "ALREADY UNSUBSCRIBED"),
            ("SUBSCRIBE", "CONFIRMED"),
        ]:
            await console.send(f"{said}\r\n".encode())
            async with asyncio.timeout(DEADLINE):
                assert await console.reader.readexactly(len(answer) + 2) == f"{answer}\r\n".encode()
        store.submit("news")
        assert await console.line() == "news"


async def test_c10_only_who_has_subscribed_is_sent_messages_and_commands_are_written_large(
    channel_source: Any,
) -> None:
    source = channel_source()
    async with serving(source=source, default_channel="home") as running:
        reader, other = await running.connect(), await running.connect()
        assert await reader.ask("SUBSCRIBE") == "CONFIRMED"
        assert await other.ask("subscribe") == "UNKNOWN COMMAND"
        await source.open("home").submit("for those who asked")
        assert await reader.line() == "for those who asked"
        assert await other.ask("PING") == "PONG"


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("line", "said"),
    [(b"\xff\r\n", b"UTF-8"), (b"x" * 100_000, b"at most 65536 bytes"), (b"GET / HTTP/1.1\r\n", b"not HTTP")],
)
async def test_c11_f62_what_is_no_line_is_told_and_the_connection_closed(
    line: bytes, said: bytes, tls: bool, until: Any
) -> None:
    store = QueueStore()
    async with serving(store, tls=tls) as running:
        console = await running.connect()
        await console.ask("SUBSCRIBE")
        await console.send(b"PING\r\n" + line)
        answer = await console.rest()
        assert answer.startswith(b"PONG\r\nERROR ")
        assert said in answer
        assert answer.count(b"\r\n") == 2
        console.writer.close()
        await until(lambda: len(running.server.connections) == 0)
        assert not store.subscribers


async def test_f62_who_never_ends_a_line_hears_why_although_it_goes_on_writing(until: Any) -> None:
    """To close while something is unread would be a reset, and take the explanation away."""
    async with serving(QueueStore(), max_line=1000) as running:
        console = await running.connect()

        async def write_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await console.send(b"x" * 10_000)

        writing = asyncio.ensure_future(write_on())
        assert await console.line() == "ERROR a line has at most 1000 bytes"
        assert await console.rest() == b""
        writing.cancel()
        await asyncio.wait([writing])
        console.writer.transport.abort()
        await until(lambda: len(running.server.connections) == 0)


# Channels


async def test_channels_are_named_and_each_message_says_which_one_it_is_from(channel_source: Any) -> None:
    source = channel_source()
    async with serving(source=source) as running:
        console = await running.connect()
        for channel in ("a", "b"):
            word, named, position = (await console.ask(f"SUBSCRIBE {channel}")).split()
            assert (word, named) == ("CONFIRMED", channel)
            assert position == str(source.open(channel).log.position)
        assert await console.ask("SUBSCRIBE b") == "ALREADY SUBSCRIBED b"
        await source.open("a").submit("two\nlines")
        first = await console.message()
        await source.open("b").submit([1], "goal")
        second = await console.message()
        assert first | {"id": ""} == {"channel": "a", "data": "two\nlines", "id": ""}
        assert second | {"id": ""} == {"channel": "b", "event": "goal", "data": [1], "id": ""}
        assert set(second["id"].split(",")) == {str(source.open(name).log.position) for name in "ab"}
        assert await console.ask("UNSUBSCRIBE a") == "CONFIRMED a"
        assert await console.ask("UNSUBSCRIBE a") == "ALREADY UNSUBSCRIBED a"
        assert await console.ask("UNSUBSCRIBE c") == "ALREADY UNSUBSCRIBED c"
        await source.open("a").submit("not any more")
        await source.open("b").submit("still")
        assert (await console.message())["data"] == "still"
        assert sorted(source.stores) == ["a", "b"], "to ask whether one is subscribed opens nothing"


async def test_from_the_first_named_channel_on_all_messages_are_objects(channel_source: Any) -> None:
    source = channel_source()
    async with serving(source=source) as running:
        console = await running.connect()
        await console.ask("SUBSCRIBE")
        await source.open("updates").submit("plain")
        assert await console.line() == "plain"
        assert await console.ask("SUBSCRIBE updates") == "ALREADY SUBSCRIBED updates"
        await source.open("updates").submit("whole")
        message = await console.message()
        assert (message["channel"], message["data"]) == ("updates", "whole")


async def test_a_reader_goes_on_behind_an_id_and_misses_nothing(channel_source: Any) -> None:
    source = channel_source()
    async with serving(source=source) as running:
        console = await running.connect()
        await console.ask("SUBSCRIBE a")
        await console.ask("SUBSCRIBE b")
        await source.open("a").submit("a1")
        await source.open("b").submit("b1")
        await console.message()
        id = (await console.message())["id"]
        console.reset()
        for name in ("a2", "b2", "a3"):
            await source.open(name[0]).submit(name)
        console = await running.connect()
        await console.send(f"SUBSCRIBE a FROM {id}\nSUBSCRIBE b FROM {id}\n".encode())
        got = []
        while len(got) < 3:
            word, _, rest = (await console.line()).partition(" ")
            if word == "MESSAGE":
                got.append(json.loads(rest)["data"])
            else:
                assert word == "CONFIRMED"
        assert sorted(got) == ["a2", "a3", "b2"]
        assert got.index("a2") < got.index("a3")


async def test_a_reader_may_begin_with_all_that_is_kept(channel_source: Any) -> None:
    source = channel_source(MemoryPubSub(history=History(100)))
    async with serving(source=source) as running:
        for text in ("1", "2"):
            await source.open("a").ready()
            await source.open("a").submit(text)
        console = await running.connect()
        await console.ask("SUBSCRIBE a FROM earliest")
        assert [(await console.message())["data"] for _ in range(2)] == ["1", "2"]


async def test_what_is_not_kept_any_more_is_told_as_a_gap() -> None:
    store = QueueStore(max_messages=2)
    async with serving(store) as running:
        before = store.log.position
        for number in range(5):
            store.submit(str(number))
        console = await running.connect()
        assert (await console.ask(f"SUBSCRIBE updates FROM {before}")).startswith("CONFIRMED updates")
        gap = await console.message()
        assert (gap["event"], gap["data"]) == ("gap", {"missed": 3})
        assert [(await console.message())["data"] for _ in range(2)] == ["3", "4"]
        # A position of some other log: nobody can say how many, and there is no place to tell.
        console = await running.connect()
        assert await console.ask("SUBSCRIBE updates FROM nowhere-7") == "CONFIRMED updates"
        assert (await console.message())["data"] == {"missed": None}


async def test_the_confirmation_stands_before_the_first_message() -> None:
    store = DataStore("now")
    async with serving(store) as running:
        console = await running.connect()
        await console.send(b"SUBSCRIBE\r\n")
        assert await console.lines(2) == ["CONFIRMED", "now"]


async def test_a_store_has_one_channel_only() -> None:
    async with serving(QueueStore(), default_channel="prices") as running:
        console = await running.connect()
        assert await console.ask("SUBSCRIBE news") == "ERROR there is only the channel prices, not news"
        assert (await console.ask("SUBSCRIBE prices")).startswith("CONFIRMED prices ")
        assert await console.ask("UNSUBSCRIBE") == "CONFIRMED", "it is the default one"


async def test_the_number_of_channels_on_a_connection_is_bounded(channel_source: Any) -> None:
    async with serving(source=channel_source(), connections=Connections(max_channels=2)) as running:
        console = await running.connect()
        for name in ("a", "b"):
            assert (await console.ask(f"SUBSCRIBE {name}")).startswith("CONFIRMED")
        assert await console.ask("SUBSCRIBE c") == "ERROR at most 2 channels on one connection"
        assert await console.ask("SUBSCRIBE b") == "ALREADY SUBSCRIBED b"
        await console.ask("UNSUBSCRIBE a")
        assert (await console.ask("SUBSCRIBE c")).startswith("CONFIRMED")


async def test_a_store_that_hesitates_holds_up_the_commands_behind_it_and_nobody_else(
    hesitant_store: Any, until: Any
) -> None:
    async with serving(hesitant_store) as running:
        console, other = await running.connect(), await running.connect()
        await console.send(b"SUBSCRIBE\r\nUNSUBSCRIBE\r\nPING 1\r\n")
        await until(lambda: hesitant_store.waiting)
        assert await other.ask("PING 2") == "PONG 2"
        hesitant_store.submit("too early")
        hesitant_store.waiting[0].set_result(None)
        assert await console.lines(3) == ["CONFIRMED", "CONFIRMED", "PONG 1"]


async def test_who_goes_while_it_is_being_subscribed_leaves_nothing_behind(hesitant_store: Any, until: Any) -> None:
    async with serving(hesitant_store) as running:
        console = await running.connect()
        await console.send(b"SUBSCRIBE\r\n")
        await until(lambda: hesitant_store.waiting)
        console.reset()
        [outlet] = running.server.connections
        outlet.close()
        hesitant_store.waiting[0].set_result(None)
        await asyncio.sleep(0.01)
        assert not hesitant_store.subscribers
        assert not running.server.readers._numbers


# Publishing


async def test_what_is_published_reaches_who_reads(channel_source: Any) -> None:
    source = channel_source()
    async with serving(source=source) as running:
        reader, writer = await running.connect(), await running.connect()
        await reader.ask("SUBSCRIBE news")
        answer = await writer.ask(r"PUBLISH news two\nlines \\ one")
        assert answer == f"CONFIRMED news {source.open('news').log.position}"
        assert (await reader.message())["data"] == "two\nlines \\ one"
        await writer.ask('PUBLISH {"channel":"news","data":{"a":[1]},"event":"goal"}')
        message = await reader.message()
        assert (message["event"], message["data"]) == ("goal", {"a": [1]})


async def test_who_reads_and_publishes_is_answered_in_order(channel_source: Any) -> None:
    async with serving(source=channel_source()) as running:
        console = await running.connect()
        await console.send(b"SUBSCRIBE a\n" + b"".join(b"PUBLISH a %d\n" % number for number in range(500)))
        lines = await console.lines(1001)
        told = [json.loads(line[8:])["data"] for line in lines if line.startswith("MESSAGE")]
        confirmed = [int(line.rpartition("-")[2]) for line in lines[1:] if line.startswith("CONFIRMED")]
        assert told == [str(number) for number in range(500)]
        assert confirmed == list(range(1, 501))


async def test_what_was_said_before_the_peer_closed_is_done(channel_source: Any, until: Any) -> None:
    """As `printf … | nc` does."""
    source = channel_source()
    store = source.open("a")
    await store.ready()
    async with serving(source=source) as running:
        console = await running.connect()
        await console.send(b"".join(b"PUBLISH a %d\r\n" % number for number in range(2000)) + b"PUBLISH a not all of i")
        console.writer.write_eof()
        await until(lambda: store.log.top == 2000)
        await until(lambda: len(running.server.connections) == 0)
        assert store.log.top == 2000


class Slow(QueueStore):
    """Takes so many seconds to publish, as a broker does."""

    seconds = 0.05

    def submit(self, data: Any, event: str | None = None) -> Any:
        async def later() -> Any:
            await asyncio.sleep(self.seconds)
            return await super(Slow, self).submit(data, event)

        return asyncio.ensure_future(later())


@pytest.mark.parametrize("store", [QueueStore, Slow])
async def test_who_closes_his_direction_when_all_is_said_is_answered_all_the_same(store: Any) -> None:
    """As `nc -N` does, and reads on. It may take its time before it says anything."""
    async with serving(store()) as running:
        for _ in range(20):
            console = await running.connect()
            assert await console.ask("PING") == "PONG"  # so the server waits for more when that comes
            console.writer.write(b"PUBLISH updates by hand\nPING\n")  # both before the loop has another turn
            console.writer.write_eof()
            answers = (await console.rest()).decode().splitlines()
            assert [line.split()[0] for line in answers] == ["CONFIRMED", "PONG"]
        assert running.server.store is not None
        assert running.server.store.log.top == 20


async def test_an_end_that_has_to_wait_for_an_answer_keeps_nobody_busy() -> None:
    store = Slow()
    store.seconds = 0.5
    async with serving(store) as running:
        console = await running.connect()
        assert await console.ask("PING") == "PONG"
        await console.send(b"PUBLISH updates by hand\n")
        console.writer.write_eof()
        spent = time.process_time()
        assert (await console.rest()).startswith(b"CONFIRMED")
        assert time.process_time() - spent < 0.25  # who is told of it again and again works all the time


async def test_a_key_is_published_once(channel_source: Any) -> None:
    source = channel_source(MemoryPubSub(history=History(100)))
    async with serving(source=source) as running:
        console = await running.connect()
        line = 'PUBLISH {"channel":"a","data":1,"key":"k"}'
        assert await console.ask(line) == await console.ask(line)
        assert source.open("a").log.top == 1


async def test_a_store_that_takes_no_keys_says_so() -> None:
    store = QueueStore()
    async with serving(store) as running:
        console = await running.connect()
        answer = await console.ask('PUBLISH {"channel":"updates","data":1,"key":"k"}')
        assert answer.startswith("ERROR ")
        assert "key" in answer
        assert store.log.top == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('PUBLISH {"channel":"updates","data":1,"event":"gap"}', "reserved"),
        ('PUBLISH {"channel":"updates","data":"\\ud800"}', "not valid Unicode"),
        ("PUBLISH news x", "only the channel updates"),
        ("PUBLISH updates", "PUBLISH"),
        ("SUBSCRIBE a b c", "SUBSCRIBE"),
        ("SUBSCRIBE updates FROM yesterday", "yesterday"),
    ],
)
async def test_what_cannot_be_done_says_why_and_the_connection_stays(line: str, said: str) -> None:
    store = QueueStore()
    async with serving(store) as running:
        console = await running.connect()
        answer = await console.ask(line)
        assert answer.startswith("ERROR ")
        assert said in answer
        assert await console.ask("PING") == "PONG"
        assert store.log.top == 0


async def test_where_nothing_may_be_published_nothing_is() -> None:
    store = QueueStore()
    assert LineServer(store).allow_publish is False  # as at the other doors
    async with serving(store, allow_publish=False) as running:
        console = await running.connect()
        assert (await console.ask("PUBLISH updates x")).startswith("ERROR ")
        assert store.log.top == 0


async def test_a_store_that_fails_is_logged_and_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(QueueStore):
        async def ready(self) -> None:
            raise ZeroDivisionError

    caplog.set_level(logging.CRITICAL + 1)
    logged: list[str] = []
    logger = logging.getLogger("waterspout.handlers")
    logger.addFilter(lambda record: logged.append(record.getMessage()) or False)  # type: ignore[func-returns-value]
    try:
        async with serving(Broken()) as running:
            console = await running.connect()
            await console.send(b"SUBSCRIBE\r\n")
            assert await console.rest() == b"ERROR the server failed\r\n"
    finally:
        logger.filters.clear()


# Tokens


async def good_later(token: str) -> bool:
    await asyncio.sleep(0)
    return token == "grüße"


@pytest.mark.parametrize(
    "wanted",
    [{"token": "grüße"}, {"auth": lambda token: token == "grüße"}, {"auth": good_later}],
    ids=["a token", "a function", "a coroutine function"],
)
async def test_where_a_token_is_wanted_nothing_is_done_without(wanted: Any) -> None:
    store = QueueStore()
    async with serving(store, **wanted) as running:
        console = await running.connect()
        for command in ("SUBSCRIBE", "SUBSCRIBE updates", "UNSUBSCRIBE", "PUBLISH updates x"):
            assert await console.ask(command) == "ERROR say AUTH <token> first"
        assert await console.ask("PING") == "PONG"
        assert await console.ask("HELLO") == "UNKNOWN COMMAND"
        assert await console.ask("AUTH grusse") == "ERROR the token is not good"
        assert await console.ask("SUBSCRIBE") == "ERROR say AUTH <token> first"
        assert await console.ask("AUTH grüße") == "CONFIRMED"
        assert await console.ask("SUBSCRIBE") == "CONFIRMED"
        store.submit("x")
        assert await console.line() == "x"


async def test_who_does_not_say_its_token_in_time_is_sent_away() -> None:
    async with serving(QueueStore(), token="secret", connections=Connections(heartbeat=0.1)) as running:
        good, silent = await running.connect(), await running.connect()
        assert await good.ask("AUTH secret") == "CONFIRMED"
        assert await silent.rest() == b"ERROR no AUTH was said\r\n"
        assert await good.ask("PING") == "PONG"


async def test_what_who_says_a_token_may_do_is_asked_for_each_channel(channel_source: Any) -> None:
    class Guarded(LineServer):
        def may_subscribe(self, channel: str, token: str | None) -> bool:
            return channel == "public" or self.may_publish(channel, token)

        def may_publish(self, channel: str, token: str | None) -> bool:
            return channel == f"of-{token}"

    source = channel_source()
    async with serving(source=source, kind=Guarded, default_channel="public") as running:
        console = await running.connect()
        assert await console.ask("SUBSCRIBE of-anna") == "ERROR you may not subscribe to 'of-anna'"
        assert await console.ask("PUBLISH of-anna x") == "ERROR you may not publish to 'of-anna'"
        assert not source.stores
        assert await console.ask("SUBSCRIBE") == "CONFIRMED"
        assert await console.ask("PUBLISH public x") == "ERROR you may not publish to 'public'"
        assert await console.ask("AUTH anna") == "CONFIRMED"
        assert await console.ask("SUBSCRIBE of-bob") == "ERROR you may not subscribe to 'of-bob'"
        assert (await console.ask("SUBSCRIBE of-anna")).startswith("CONFIRMED of-anna ")
        await console.send(b"PUBLISH of-anna x\r\n")
        assert {(await console.line()).split()[0] for _ in range(2)} == {"CONFIRMED", "MESSAGE"}


async def test_a_token_that_is_not_good_is_not_asked_about() -> None:
    asked = []

    class Guarded(LineServer):
        def may_subscribe(self, channel: str, token: str | None) -> bool:
            asked.append((channel, token))
            return False

    async with serving(QueueStore(), kind=Guarded, token="anna") as running:
        console = await running.connect()
        assert await console.ask("AUTH anna") == "CONFIRMED"
        assert await console.ask("AUTH root") == "ERROR the token is not good"
        assert await console.ask("SUBSCRIBE") == "ERROR you may not subscribe to 'updates'"
    assert asked == [("updates", "anna")]


async def test_nobody_reads_a_channel_by_another_of_its_names(channel_source: Any) -> None:
    class Guarded(LineServer):
        def may_subscribe(self, channel: str, token: str | None) -> bool:
            return channel != "secret"

        may_publish = may_subscribe

    class Namespace:
        def open(self, channel: str) -> BaseStore:
            store: BaseStore = source.open(channel.removeprefix("ns:"))
            return store

    source = channel_source()
    async with serving(source=Namespace(), kind=Guarded) as running:
        console = await running.connect()
        assert await console.ask("SUBSCRIBE ns:secret") == "ERROR you may not subscribe to 'secret'"
        assert await console.ask("PUBLISH ns:secret x") == "ERROR you may not publish to 'secret'"
        assert source.subscribers() == source.open("secret").log.top == 0
        assert not running.server.readers._numbers


async def test_help_tells_the_commands_on_one_line_to_whoever_asks() -> None:
    async with serving(QueueStore(), token="secret") as running:
        console = await running.connect()
        answer = await console.ask("HELP")
        assert answer.startswith("COMMANDS SUBSCRIBE [<channel> [FROM <id>]] | UNSUBSCRIBE [<channel>] | ")
        assert await console.ask("help") == "UNKNOWN COMMAND"


async def test_where_no_token_is_wanted_any_is_good() -> None:
    async with serving(QueueStore()) as running:
        console = await running.connect()
        assert await console.ask("AUTH anything") == "CONFIRMED"


# Connections


async def test_one_connection_too_many_is_told_to_come_back_later() -> None:
    async with serving(QueueStore(), connections=Connections(max_connections=1)) as running:
        first = await running.connect()
        assert await first.ask("PING") == "PONG"
        second = await running.connect()
        await second.send(b"SUBSCRIBE\r\n")
        assert (await second.rest()).startswith(b"GOAWAY there are too many connections")
        assert running.server.connections.counts.refused == 1
        assert await first.ask("PING") == "PONG"


async def test_an_old_connection_is_told_to_come_back() -> None:
    async with serving(QueueStore(), connections=Connections(max_age=0.1)) as running:
        console = await running.connect()
        assert (await console.rest()).startswith(b"GOAWAY this connection is old enough")


async def test_after_goaway_nothing_is_carried_out(channel_source: Any, until: Any) -> None:
    source = channel_source()
    async with serving(source=source) as running:
        console = await running.connect()
        await console.ask("PING")
        draining = asyncio.ensure_future(running.server.drain(grace=5.0))
        assert (await console.line()).startswith("GOAWAY")
        await console.send(b"PUBLISH a x\r\n")
        assert await console.rest() == b""
        console.writer.close()
        await draining
        assert source.stores == {}


async def test_what_stands_behind_quit_is_not_carried_out(channel_source: Any) -> None:
    source = channel_source()
    async with serving(source=source) as running:
        console = await running.connect()
        await console.send(b"QUIT\r\nPUBLISH a x\r\n")
        assert await console.rest() == b"BYE\r\n"
        assert source.stores == {}


@pytest.mark.parametrize("tls", [False, True])
async def test_who_does_not_close_when_all_is_said_is_not_waited_for_long(tls: bool) -> None:
    async with serving(QueueStore(), tls=tls) as running:
        console = await running.connect()
        await console.ask("PING")
        begin = time.monotonic()
        await running.server.drain(grace=30.0)
        assert time.monotonic() - begin < 4.0
        assert (await console.rest()).startswith(b"GOAWAY")


async def test_who_says_goodbye_by_tls_when_all_is_said_is_nothing_to_warn_of(
    until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(QueueStore(), tls=True) as running:
        console = await running.connect()
        assert await console.ask("QUIT") == "BYE"
        assert await console.rest() == b""  # asyncio has answered it in kind
        await until(lambda: len(running.server.connections) == 0)
    assert caplog.messages == []


async def test_while_idle_there_is_no_task_for_a_client() -> None:
    store = QueueStore()
    async with serving(store) as running:
        for _ in range(20):
            assert await (await running.connect()).ask("SUBSCRIBE") == "CONFIRMED"
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        store.submit("x")
        for console in running.consoles:
            assert await console.line() == "x"
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_has_come_and_gone_leaves_no_object_behind(until: Any) -> None:
    store = QueueStore()
    async with serving(store) as running:
        for _ in range(50):
            console = await running.connect()
            await console.ask("SUBSCRIBE")
            console.reset()
        await until(lambda: len(running.server.connections) == 0)
        running.consoles.clear()
        await asyncio.sleep(0.01)
        gc.collect()
        assert [found for found in gc.get_objects() if isinstance(found, LineOutlet)] == []
        assert not store.subscribers


async def test_a_client_that_reads_nothing_is_not_listened_to_either() -> None:
    """What it asks for waits in its own socket and not with us."""
    async with serving(QueueStore(), send_buffer=4 * KiB) as running:
        console = await running.connect(receive_buffer=4 * KiB)
        await console.ask("PING")

        async def ask_on() -> None:
            while True:
                console.writer.write(b"\n" * 4 * KiB)
                await console.writer.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask_on(), 0.5)
        [outlet] = running.server.connections
        assert len(outlet._stream._write_buffer) < 1024 * KiB
        assert len(outlet._lines._buffer) < 128 * KiB


@pytest.mark.parametrize("policy", ["latest", "disconnect"])
async def test_a_slow_client_is_treated_as_the_policy_says(policy: Any, until: Any) -> None:
    store = QueueStore(max_messages=1000)
    behind = Behind(policy, max_bytes=100 * KiB) if policy == "disconnect" else Behind(policy)
    async with serving(
        store, send_buffer=4 * KiB, when_behind=behind, connections=Connections(heartbeat=0.1)
    ) as running:
        console = await running.connect(receive_buffer=4 * KiB)
        await console.ask("SUBSCRIBE")
        for number in range(200):
            store.submit(f"{number} " + "x" * 10_000)
            await asyncio.sleep(0)
        if policy == "latest":
            numbers = []
            while 199 not in numbers:
                numbers.append(int((await console.line()).split()[0]))
            assert len(numbers) < 100
            assert numbers == sorted(numbers)
        else:
            await until(lambda: len(running.server.connections) == 0)
            assert running.server.connections.counts.too_slow == 1


# TLS


async def test_everything_goes_over_tls_as_well(channel_source: Any) -> None:
    source = channel_source()
    async with serving(source=source, tls=True) as running:
        console = await running.connect()
        await console.ask("SUBSCRIBE a")
        text = "x" * 60_000
        for number in range(20):
            await console.send(f"PUBLISH a {number} {text}\n".encode())
        got = []
        while len(got) < 20:
            word, _, rest = (await console.line()).partition(" ")
            if word == "MESSAGE":
                got.append(json.loads(rest)["data"])
        assert got == [f"{number} {text}" for number in range(20)]
        await console.send(b"QUIT\n")
        assert (await console.rest()).endswith(b"BYE\r\n")


async def test_who_does_not_shake_hands_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, until: Any) -> None:
    monkeypatch.setattr("waterspout_handlers._lines.HANDSHAKE_TIMEOUT", 0.1)
    async with serving(QueueStore(), tls=True) as running:
        running.tls, tls = None, running.tls
        mute = await running.connect()
        assert await mute.rest() == b""
        running.tls = tls
        assert await (await running.connect()).ask("PING") == "PONG"
        assert len(running.server.connections) == 1


# Wiring


def test_a_server_takes_a_store_or_a_source() -> None:
    with pytest.raises(TypeError, match="one of them"):
        LineServer()
    with pytest.raises(TypeError, match="one of them"):
        LineServer(QueueStore(), object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a token or auth, one of them"):
        LineServer(QueueStore(), token="secret", auth=good_later)
    with pytest.raises(TypeError, match="auth is a function"):
        LineServer(QueueStore(), auth="secret")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the token is empty"):
        LineServer(QueueStore(), token="")
