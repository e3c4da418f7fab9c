"""The client of the line server: it loses nothing, repeats nothing, and tells what it could not get."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.netutil import bind_sockets

from waterspout_core import BadChannel, BadMessage, BadPosition, Gap, History, MemoryPubSub, Message, QueueStore
from waterspout_handlers import Connections, LineClient, LineServer
from waterspout_handlers._line_client import LineBroken, LineRefused

DEADLINE: Final = 10.0
CERTIFICATE: Final = Path(__file__).parent / "localhost.pem"


class Running:
    """A line server that can go away, and come back on the same port."""

    def __init__(self, make: Callable[[], LineServer]) -> None:
        self._make = make
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = self._make()
        sockets = bind_sockets(self.port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self.server.add_sockets(sockets)

    def cut(self) -> None:
        """All connections break."""
        for outlet in self.server.connections:
            outlet.close()

    def stop(self) -> None:
        self.server.stop()
        self.cut()


@contextlib.asynccontextmanager
async def serving(store: Any = None, source: Any = None, **options: Any) -> AsyncIterator[Running]:
    running = Running(lambda: LineServer(store, source, **{"allow_publish": True, **options}))
    try:
        yield running
    finally:
        running.stop()
        for _ in range(3):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that knows what it will say to each line, whatever that is, and then closes."""
    heard: list[bytes] = []
    left = iter(answers)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            answer = next(left, b"")
            if not answer:
                break
            writer.write(answer)

    async with talking(talk) as port:
        yield port, heard


@contextlib.asynccontextmanager
async def talking(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[int]:
    """A server that talks like this; its port."""
    tasks = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE)


@pytest.fixture
def source(channel_source: Any) -> Any:
    return channel_source(MemoryPubSub(history=History(1000)))


async def take(messages: Any, count: int) -> list[Any]:
    async with asyncio.timeout(DEADLINE):
        return [await anext(messages) for _ in range(count)]


# What it does


async def test_what_is_published_is_received_with_all_that_belongs_to_it(source: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        messages = client.subscribe("news", after="earliest")
        sent = [
            ("two\r\nlines \\ 🌊", None),
            ({"a": [1, None]}, "goal"),
            ("", None),
            (None, None),
            ("x" * 60_000, None),
        ]
        ids = [await client.publish("news", data, event) for data, event in sent]
        for (data, event), id in zip(sent, ids, strict=True):
            [message] = await take(messages, 1)
            assert message == Message(data, event)
            assert messages.position == id
        assert await client.ping() < DEADLINE


async def test_each_subscription_stands_where_it_wants_to(source: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        ids = [await client.publish("a", str(number)) for number in range(5)]
        await client.publish("b", "of another channel")
        assert [message.data for message in await take(client.subscribe("a", after=ids[1]), 3)] == ["2", "3", "4"]
        assert [message.data for message in await take(client.subscribe("a", after="earliest"), 2)] == ["0", "1"]
        assert [message.data for message in await take(client.subscribe("b", after="earliest"), 1)] == [
            "of another channel"
        ]


async def test_a_subscription_that_is_not_read_holds_up_neither_commands_nor_others(source: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        stopped, read = client.subscribe("a", after="earliest"), client.subscribe("a", after="earliest")
        await client.publish("a", "first")
        assert (await take(stopped, 1)) == (await take(read, 1)) == [Message("first")]
        for number in range(300):
            await client.publish("a", f"{number} " + "x" * 10_000)
            [message] = await take(read, 1)
            assert message.data.startswith(f"{number} ")
        assert [message.data.split()[0] for message in await take(stopped, 300)] == [str(n) for n in range(300)]


async def test_it_goes_over_tls_and_says_its_token(source: Any) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with serving(source=source, ssl_options=context, token="secret") as running:
        async with LineClient("localhost", running.port, token="secret", ssl=trusting) as client:
            await client.publish("a", "over TLS")
            messages = client.subscribe("a", after="earliest")
            assert await take(messages, 1) == [Message("over TLS")]
            running.cut()
            await client.publish("a", "again", key="k")
            assert await take(messages, 1) == [Message("again")]
        with pytest.raises(LineRefused, match="the token is not good"):
            async with LineClient("localhost", running.port, token="wrong", ssl=trusting):
                pass


# Breaks


async def test_it_resumes_after_breaks_and_loses_and_repeats_nothing(source: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        messages = client.subscribe("a", after="earliest")
        store = source.open("a")

        async def publish() -> None:
            for number in range(300):
                store.submit(str(number))
                if number % 60 == 30:
                    running.cut()
                await asyncio.sleep(0.001)

        publishing = asyncio.ensure_future(publish())
        assert [message.data for message in await take(messages, 300)] == [str(number) for number in range(300)]
        await publishing


async def test_it_misses_nothing_when_it_is_cut_off_before_the_first_message(source: Any, until: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        messages = client.subscribe("a")
        waiting = asyncio.ensure_future(take(messages, 1))
        await until(lambda: messages.position)
        running.cut()
        source.open("a").submit("while it was away")
        assert await waiting == [Message("while it was away")]


async def test_it_waits_for_a_server_that_is_away_and_comes_back_to_another_one(source: Any, until: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        messages = client.subscribe("a")
        waiting = asyncio.ensure_future(take(messages, 2))
        await until(lambda: source.subscribers() == 1)
        running.stop()
        await source.open("a").submit("1")
        publishing = asyncio.ensure_future(client.publish("a", "2", key="k"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert not publishing.done()
        running.start()
        assert await waiting == [Message("1"), Message("2")]
        assert await publishing == str(source.open("a").log.position)


async def test_a_gap_is_told_in_the_place_of_what_was_lost(until: Any) -> None:
    store = QueueStore(max_messages=3)
    async with serving(store) as running, LineClient("127.0.0.1", running.port) as client:
        messages = client.subscribe("updates")
        waiting = asyncio.ensure_future(take(messages, 1))
        await until(lambda: store.subscribers)
        store.submit("0")
        assert await waiting == [Message("0")]
        running.cut()
        for number in range(1, 6):
            store.submit(str(number))
        assert await take(messages, 4) == [Gap(2), Message("3"), Message("4"), Message("5")]
        # Another log: nobody knows how many.
        elsewhere = client.subscribe("updates", after="f00ba47e11-7")
        assert await take(elsewhere, 2) == [Gap(None), Message("3")]


async def test_it_goes_when_it_is_told_to_and_comes_back(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waterspout_handlers._lines.LINGER", 30.0)
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        messages = client.subscribe("a", after="earliest")
        await client.publish("a", "1")
        await take(messages, 1)
        waiting = asyncio.ensure_future(take(messages, 1))
        begin = time.monotonic()
        await running.server.drain(grace=5.0)
        assert time.monotonic() - begin < 3.0, "it closes by itself, so nobody has to wait for it"
        running.start()
        assert await client.publish("a", "2")
        assert await waiting == [Message("2")]


async def test_a_server_that_says_nothing_is_asked_and_then_left() -> None:
    """A peer that was powered off sends no FIN."""
    confirmed, message = b"CONFIRMED a e-1\r\n", b'MESSAGE {"channel":"a","data":"back","id":"e-2"}\r\n'
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.startswith(b"SUBSCRIBE"):
                writer.write(confirmed + (message if heard else b""))
            heard.append(line)

    async with talking(talk) as port, LineClient("127.0.0.1", port, timeout=0.1, heartbeat=0.1) as client:
        assert await take(client.subscribe("a"), 1) == [Message("back")]
    assert heard == [b"SUBSCRIBE a\r\n", b"PING\r\n", b"SUBSCRIBE a FROM e-1\r\n"]


async def test_what_was_confirmed_once_is_asked_for_again_when_it_is_refused_for_now() -> None:
    confirmed, message = b"CONFIRMED a e-1\r\n", b'MESSAGE {"channel":"a","data":"back","id":"e-2"}\r\n'
    answers = confirmed + b"GOAWAY for now\r\n", b"ERROR the broker is away\r\n", confirmed + message
    async with answering(*answers) as (port, heard), LineClient("127.0.0.1", port) as client:
        assert await take(client.subscribe("a"), 1) == [Message("back")]
        assert heard == [b"SUBSCRIBE a\r\n", b"SUBSCRIBE a FROM e-1\r\n", b"SUBSCRIBE a FROM e-1\r\n"]


async def test_what_the_server_does_not_know_it_is_asked_for_again_until_the_gap_is_told() -> None:
    gap = b'MESSAGE {"channel":"a","event":"gap","data":{"missed":null},"id":"e-9"}\r\n'
    answers = b"CONFIRMED a\r\nGOAWAY too early\r\n", b"CONFIRMED a\r\n" + gap
    async with answering(*answers) as (port, heard), LineClient("127.0.0.1", port) as client:
        messages = client.subscribe("a", after="f00-7")
        assert await take(messages, 1) == [Gap(None)]
        assert messages.position == "e-9"
        assert heard == [b"SUBSCRIBE a FROM f00-7\r\n"] * 2


async def test_a_server_that_answers_is_not_left(source: Any) -> None:
    async with (
        serving(source=source) as running,
        LineClient("127.0.0.1", running.port, timeout=2.0, heartbeat=0.02) as client,
    ):
        messages = client.subscribe("a")
        waiting = asyncio.ensure_future(take(messages, 1))
        await asyncio.sleep(0.3)
        opened = running.server.connections.counts.opened
        assert opened == 2
        await client.publish("a", "x")
        assert await waiting == [Message("x")]


# What it says when it cannot


async def test_nobody_there_is_told_at_once() -> None:
    async with answering() as (port, _):
        pass
    with pytest.raises(ConnectionRefusedError):
        async with LineClient("127.0.0.1", port):
            pass


async def test_what_the_server_refuses_is_told_in_its_words(source: Any) -> None:
    store = QueueStore()
    async with serving(store, allow_publish=False) as running, LineClient("127.0.0.1", running.port) as client:
        with pytest.raises(LineRefused, match="nothing is published here"):
            await client.publish("updates", "x")
        with pytest.raises(LineRefused, match="only the channel updates"):
            await anext(client.subscribe("news"))
        assert await client.ping() < DEADLINE
        assert running.server.connections.counts.opened == 2, "the connection is as good as before"
    async with serving(source=source, token="secret") as running, LineClient("127.0.0.1", running.port) as client:
        with pytest.raises(LineRefused, match="AUTH"):
            await client.publish("a", "x")


async def test_what_cannot_be_sent_is_told_without_asking_the_server() -> None:
    async with answering() as (port, heard):
        async with LineClient("127.0.0.1", port) as client:
            with pytest.raises(BadChannel):
                await client.publish("two words", "x")
            with pytest.raises(BadMessage):
                await client.publish("a", object())
            with pytest.raises(BadMessage, match="reserved"):
                await client.publish("a", "x", "gap")
            with pytest.raises(BadChannel):
                client.subscribe("two\r\nlines")
            with pytest.raises(BadPosition):
                client.subscribe("a", after="yesterday")
        assert heard == []


async def test_a_message_too_long_for_the_server_is_told(source: Any) -> None:
    async with serving(source=source, max_line=1000) as running, LineClient("127.0.0.1", running.port) as client:
        with pytest.raises(LineRefused, match="at most 1000 bytes"):
            await client.publish("a", "x" * 1_000_000)
        assert await client.publish("a", "short", key="k")


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_may_have_been_published_is_sent_again_only_with_a_key(key: str | None) -> None:
    async with answering(b"", b"CONFIRMED a e-1\r\n") as (port, heard), LineClient("127.0.0.1", port) as client:
        if key is None:
            with pytest.raises(LineBroken) as caught:
                await client.publish("a", "x", key=key)
            assert caught.value.maybe_done
            assert len(heard) == 1
        else:
            assert await client.publish("a", "x", key=key) == "e-1"
            assert heard[0] == heard[1]


async def test_what_was_not_carried_out_is_sent_again_without_a_key_too() -> None:
    answers = b"GOAWAY later\r\n", b"CONFIRMED a e-1\r\n"
    async with answering(*answers) as (port, heard), LineClient("127.0.0.1", port) as client:
        assert await client.publish("a", "x") == "e-1"
        assert len(heard) == 2


async def test_a_server_that_stays_away_is_given_up_after_the_timeout() -> None:
    async with serving(QueueStore()) as running, LineClient("127.0.0.1", running.port, timeout=0.3) as client:
        await client.ping()
        running.stop()
        with pytest.raises(LineBroken, match=r"no answer in 0\.3 s") as caught:
            await client.publish("a", "x", key="k")
        assert isinstance(caught.value, ConnectionError)


async def test_the_answer_to_a_cancelled_command_is_not_taken_for_the_next_ones(
    hesitant_store: Any, until: Any
) -> None:
    async with serving(hesitant_store) as running, LineClient("127.0.0.1", running.port) as client:
        publishing = asyncio.ensure_future(client.publish("updates", "x"))
        await until(lambda: hesitant_store.waiting)
        publishing.cancel()
        await asyncio.wait([publishing])
        hesitant_store.waiting[0].set_result(None)
        assert await client.ping() < DEADLINE
        again = asyncio.ensure_future(client.publish("updates", "y"))
        await until(lambda: len(hesitant_store.waiting) == 2)
        hesitant_store.waiting[1].set_result(None)
        assert await again == str(hesitant_store.log.position)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n", b"UNKNOWN COMMAND\r\n", b"\xff\r\n", b"CONFIRMED another e-1\r\n"]
)
async def test_a_server_of_another_kind_is_refused(answer: bytes) -> None:
    async with answering(answer, answer) as (port, _), LineClient("127.0.0.1", port) as client:
        with pytest.raises(LineRefused):
            await client.publish("a", "x")
        with pytest.raises(LineRefused):
            await anext(client.subscribe("a"))


async def test_a_line_that_never_ends_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waterspout_handlers._line_client.MAX_MESSAGE_LINE", 100)
    async with answering(b"x" * 200, b"PONG\r\n") as (port, _), LineClient("127.0.0.1", port) as client:
        with pytest.raises(LineRefused, match="at most 100 bytes"):
            await client.ping()
        assert await client.ping() < DEADLINE


async def test_what_is_no_message_is_told_and_not_passed_over() -> None:
    async with (
        answering(b"CONFIRMED a e-1\r\nMESSAGE nonsense\r\n") as (port, _),
        LineClient("127.0.0.1", port) as client,
    ):
        with pytest.raises(LineRefused, match="what is no message"):
            await anext(client.subscribe("a"))


async def test_commands_of_many_tasks_are_answered_each_its_own(source: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        ids = await asyncio.gather(*(client.publish("a", number) for number in range(100)))
        messages = await take(client.subscribe("a", after="earliest"), 100)
        offsets = [int(str(id).rpartition("-")[2]) for id in ids]
        assert sorted(offsets) == list(range(1, 101))
        assert [messages[offset - 1].data for offset in offsets] == list(range(100))


# Its end


async def test_closing_the_client_ends_its_subscriptions(source: Any, until: Any) -> None:
    async with serving(source=source) as running:
        async with LineClient("127.0.0.1", running.port) as client:

            async def read() -> list[Any]:
                return [message async for message in client.subscribe("a")]

            reading = asyncio.ensure_future(read())
            await until(lambda: source.subscribers() == 1)
        async with asyncio.timeout(DEADLINE):
            assert await reading == []
        await until(lambda: len(running.server.connections) == 0)


async def test_a_client_that_is_closed_while_its_server_is_away_ends_at_once(
    source: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waterspout_handlers._line_client.PAUSES", (60.0, 60.0))
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        waiting = asyncio.ensure_future(anext(client.subscribe("a"), None))
        await until(lambda: source.subscribers() == 1)
        running.stop()
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await client.aclose()
        async with asyncio.timeout(DEADLINE):
            assert await waiting is None
        with pytest.raises(LineBroken, match="closed"):
            await client.publish("a", "x")


async def test_a_subscription_ends_alone_when_it_is_closed_or_let_go(source: Any, until: Any) -> None:
    async with serving(source=source) as running, LineClient("127.0.0.1", running.port) as client:
        for number in range(3):
            await client.publish("a", number)
        async for message in client.subscribe("a", after="earliest"):
            assert message == Message(0)
            break
        gc.collect()
        await until(lambda: source.subscribers() == 0)
        async with client.subscribe("a", after="earliest") as messages:
            await take(messages, 2)
            assert source.subscribers() == 1
        await until(lambda: source.subscribers() == 0)
        assert await anext(messages, None) is None
        assert await client.ping() < DEADLINE


async def test_a_client_that_is_closed_while_it_connects_leaves_nothing_behind(until: Any) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hesitate(token: str) -> bool:
        asked.set()
        return await answer.wait()

    async with serving(QueueStore(), auth=hesitate) as running:
        client = LineClient("127.0.0.1", running.port, token="secret")
        publishing = asyncio.ensure_future(client.publish("updates", "x"))
        await asyncio.wait_for(asked.wait(), DEADLINE)
        await client.aclose()
        answer.set()
        with pytest.raises(LineBroken, match="closed") as caught:
            await publishing
        assert not caught.value.maybe_done
        await until(lambda: len(running.server.connections) == 0)


async def test_a_subscription_that_is_closed_before_it_is_confirmed_leaves_nothing_behind(
    hesitant_store: Any, until: Any
) -> None:
    async with serving(hesitant_store) as running, LineClient("127.0.0.1", running.port) as client:
        messages = client.subscribe("updates")
        waiting = asyncio.ensure_future(anext(messages, None))
        await until(lambda: hesitant_store.waiting)
        await messages.aclose()
        hesitant_store.waiting[0].set_result(None)
        assert await waiting is None
        await until(lambda: not hesitant_store.subscribers)
        await until(lambda: len(running.server.connections) == 1)


async def test_who_is_refused_for_now_comes_again(source: Any, until: Any) -> None:
    connections = Connections(max_connections=2)
    async with serving(source=source, connections=connections) as running:
        other = LineClient("127.0.0.1", running.port)
        async with LineClient("127.0.0.1", running.port) as client:
            async with other:
                waiting = asyncio.ensure_future(take(client.subscribe("a", after="earliest"), 1))
                await until(lambda: connections.counts.refused)
            await client.publish("a", "x")
            assert await waiting == [Message("x")]
