"""Clients that others have written read from a real server: over every transport the same messages, the same way to go
on after a cut, and the same word for what was lost (E1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import httpx
import pytest
from httpx_sse import aconnect_sse
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from integration.clients import DEADLINE, Proxy, publish, request
from integration.conftest import Serve, ServerProcess
from integration.readers import (
    CLIENTS,
    LISTEN,
    Chromium,
    Read,
    Received,
    Server,
    aiohttp_ndjson,
    curl,
    curl_ndjson,
    curl_sse,
    httpx_sse,
    inbox,
    tcp_lines,
    websockets,
)

T = TypeVar("T")

MAX_KEPT: Final = 1000
"""Messages that the server keeps of a channel in memory."""


Play = Callable[[Coroutine[Any, Any, None]], None]
"""Runs what a test has to await, for no longer than it may take."""


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def play(runner: asyncio.Runner) -> Play:
    async def limit(scene: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(2 * DEADLINE):
            await scene

    return lambda scene: runner.run(limit(scene))


@pytest.fixture(scope="module")
def chromium(runner: asyncio.Runner) -> Iterator[Chromium]:
    chromium = Chromium()
    yield chromium
    runner.run(chromium.aclose())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, chromium: Chromium) -> Iterator[Server]:
    process = ServerProcess(tmp_path_factory.mktemp("clients") / "server.log", "--tcp-port", "0")
    yield Server(process.url, tcp_port(process), chromium)
    assert process.stop() == 0
    assert "Traceback" not in process.output(), process.output()


def tcp_port(process: ServerProcess) -> int:
    """Where `process`, which was started with `--tcp-port 0`, reads lines."""
    return int(process.wait_for_output(r"tcp://\S+:(\d+)")[1])


each_client = pytest.mark.parametrize("client", CLIENTS)


async def take(stream: AsyncIterator[T], count: int) -> list[T]:
    """The next `count` items."""
    return [await anext(stream) for _ in range(count)]


VALUES: Final = [
    "text",
    "",
    0,
    None,
    False,
    [],
    {"a": {"b": [1.5, "ü€😀"]}},
    "two\r\nlines\rand\nmore\u2028",
    "x" * 5000,
]


@each_client
def test_e1_everything_arrives_in_order_and_a_cut_loses_and_repeats_nothing(
    server: Server, play: Play, client: str
) -> None:
    channels = [f"{client}.{name}" for name in "ab"]
    sent: dict[str, list[tuple[str | None, Any]]] = {name: [] for name in channels}

    async def say(*values: Any, event: str = "") -> int:
        """Publish `values` to both channels; how many messages that are."""
        for name in channels:
            await asyncio.to_thread(server.publish, name, list(values), event)
            sent[name] += [(event or None, value) for value in values]
        return len(channels) * len(values)

    async def scene() -> None:
        read, start = CLIENTS[client], server.position(*channels)
        got: list[Received] = []
        missing = await say(*VALUES)  # before it comes
        async with aclosing(read(server, channels, start)) as stream:
            got += await take(stream, missing)
            for number in range(5):  # while it is there
                got += await take(stream, await say({"number": number}, event="created"))
            missing = await say(*range(100))
            got += await take(stream, 70)  # and in the middle of this it is cut off
        missing += await say(*VALUES, *range(100)) - 70
        async with aclosing(read(server, channels, got[-1].id)) as stream:
            got += await take(stream, missing)
            got += await take(stream, await say("the end"))
        for name in channels:
            assert [(each.event, each.data) for each in got if each.channel == name] == sent[name]
        assert len({each.id for each in got}) == len(got)

    play(scene())


@pytest.fixture(scope="module")
def flooded(server: Server) -> str:
    """A channel of which the first hundred messages are gone."""
    server.publish("flooded", [*range(100)])
    server.publish("flooded", [*range(100, 100 + MAX_KEPT)])
    return "flooded"


@each_client
def test_e1_what_was_lost_is_one_gap_that_counts_it(server: Server, flooded: str, play: Play, client: str) -> None:
    epoch, _, top = server.position(flooded).partition("-")
    assert int(top) == 100 + MAX_KEPT

    async def scene() -> None:
        async with aclosing(CLIENTS[client](server, [flooded], f"{epoch}-10")) as stream:
            gap, *rest = await take(stream, 4)
        assert gap == Received(flooded, "gap", {"missed": 90}, f"{epoch}-100")
        assert rest == [Received(flooded, None, number, f"{epoch}-{number + 1}") for number in (100, 101, 102)]
        # What is behind the gap's own id is what comes next.
        async with aclosing(CLIENTS[client](server, [flooded], gap.id)) as stream:
            assert await take(stream, 3) == rest

    play(scene())


@each_client
def test_e1_a_position_nobody_knows_is_one_gap_and_then_all_that_is_kept(
    server: Server, play: Play, client: str
) -> None:
    channel = f"{client}.unknown"
    ids = [server.publish(channel, [number]) for number in range(3)]

    async def scene() -> None:
        async with aclosing(CLIENTS[client](server, [channel], "0123456789-7")) as stream:
            gap, *rest = await take(stream, 4)
        assert (gap.channel, gap.event, gap.data) == (channel, "gap", {"missed": None})
        assert rest == [Received(channel, None, number, id) for number, id in enumerate(ids)]

    play(scene())


def test_chromiums_eventsource_comes_back_by_itself_and_misses_nothing(server: Server, play: Play) -> None:
    async def scene(proxy: Proxy) -> None:
        channel = "chromium.back"
        async with server.chromium.page(proxy.url) as page:
            await page.evaluate(LISTEN, [f"{proxy.url}/events?channel={channel}", ["message", "gap", "open"]])
            async with aclosing(inbox(page)) as items:
                assert (await anext(items))[0] == "open"
                await asyncio.to_thread(publish, server.url, channel, "one\n two ")
                _, data, id = await anext(items)
                assert data == "one\n two "
                assert id == await asyncio.to_thread(server.position, channel)
                await asyncio.to_thread(proxy.cut)
                await asyncio.to_thread(server.publish, channel, [*range(10)])
                assert (await anext(items))[0] == "open"
                assert [data for _, data, _ in await take(items, 10)] == [*map(str, range(10))]

    with Proxy(("127.0.0.1", urlsplit(server.url).port or 0)) as proxy:
        play(scene(proxy))


def test_f56_chromiums_eventsource_outlives_a_restart(serve: Serve, chromium: Chromium, play: Play) -> None:
    process = serve()
    publish(process.url, "news", "before")

    async def scene() -> None:
        url = f"{process.url}/events?channel=news&last_event_id=earliest"
        async with chromium.page(process.url) as page, aclosing(inbox(page)) as items:
            await page.evaluate(LISTEN, [url, ["message", "gap"]])
            assert (await anext(items))[:2] == ["message", "before"]
            assert await asyncio.to_thread(process.stop) == 0
            process.start()
            await asyncio.to_thread(publish, process.url, "news", "after")
            assert [item[:2] for item in await take(items, 2)] == [["gap", '{"missed":null}'], ["message", "after"]]

    play(scene())


TEXTS: Final = [
    "two\nlines",
    "\r\n",
    " a\rb\r\nc ",
    "data: x\n\nid: forged",
    ": no comment",
    "{}",
    "\ufeffü€😀",
    "\n",
    "end",
]


def test_f38_event_streams_in_the_plain_format_are_read_as_they_were_meant(server: Server, play: Play) -> None:
    """Whatever a text holds, it is one event, whose lines end in LF (WHATWG HTML, "interpreting an event stream")."""
    url = server.address("/events", ["plain"], server.position("plain"))
    ids = [publish(server.url, "plain", text, event=f"event-{number}") for number, text in enumerate(TEXTS)]
    lines = [text.replace("\r\n", "\n").replace("\r", "\n") for text in TEXTS]
    expected = [(f"event-{number}", *each) for number, each in enumerate(zip(lines, ids, strict=True))]

    async def scene() -> None:
        async with httpx.AsyncClient(timeout=DEADLINE) as client, aconnect_sse(client, "GET", url) as source:
            greeting, *events = await take(source.aiter_sse(), 1 + len(TEXTS))
            assert greeting.data == "", "httpx-sse hands it out although it has no data"
            assert [(event.event, event.data, event.id) for event in events] == expected
        async with server.chromium.page(server.url) as page:
            await page.evaluate(LISTEN, [url, [event for event, _, _ in expected]])
            async with aclosing(inbox(page)) as items:
                assert [tuple(item) for item in await take(items, len(TEXTS))] == expected

    play(scene())


def test_f56_an_eventsource_that_finds_no_room_comes_again(serve: Serve, chromium: Chromium, play: Play) -> None:
    """One that gets an error for an answer is closed for ever (WHATWG HTML, "fail the connection")."""
    process = serve("--max-connections", "1")

    async def scene() -> None:
        publish(process.url, "full", "Hello")
        url = f"{process.url}/events?channel=full&last_event_id=earliest"
        async with chromium.page(process.url) as page, aclosing(inbox(page)) as items:
            async with curl(url) as first:
                await first.readline()
                await page.evaluate(LISTEN, [url, ["message", "error"]])
                assert (await anext(items))[0] == "error"
                assert await page.evaluate("source.readyState") == 0, "it is connecting, and not closed"
                assert request(url)[0] == 503, "a client of another kind is told so"
            while (item := await anext(items))[0] == "error":
                pass
            assert item[:2] == ["message", "Hello"]

    play(scene())


def test_every_websocket_client_hears_an_answer_to_its_goodbye(server: Server, play: Play) -> None:
    url = server.websocket(["news"], "earliest")

    async def scene() -> None:
        async with connect(url) as socket:
            await socket.close()
            assert socket.close_code == 1000
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as other:
            await other.close()
            assert other.close_code == 1000
        async with server.chromium.page(server.url) as page:
            closed = await page.evaluate(
                """(url) => new Promise((resolve) => {
                    const socket = new WebSocket(url);
                    socket.onopen = () => socket.close(1000);
                    socket.onclose = ({code, wasClean}) => resolve([code, wasClean]);
                })""",
                url,
            )
            assert closed == [1000, True]

    play(scene())


def test_e8_each_client_sees_an_orderly_end_when_the_server_stops(serve: Serve, chromium: Chromium, play: Play) -> None:
    process = serve("--tcp-port", "0")
    server = Server(process.url, tcp_port(process), chromium)
    publish(server.url, "news", "Hello")

    async def scene(read: Read) -> None:
        async with aclosing(read(server, ["news"], "earliest")) as stream:
            assert (await anext(stream)).data == "Hello"
            ready.append(read)
            if len(ready) == len(orderly) + len(told):
                process.process.terminate()
            rest = [message async for message in stream]
            assert rest == []

    async def closed(read: Read) -> None:
        with pytest.raises(ConnectionClosed) as end:
            await scene(read)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 1012
        assert end.value.rcvd.reason

    ready: list[Read] = []
    orderly: list[Read] = [httpx_sse, aiohttp_ndjson, tcp_lines, curl_sse, curl_ndjson]
    told = [websockets(compression=None), websockets(compression="deflate")]

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for read in orderly:
                group.create_task(scene(read))
            for read in told:
                group.create_task(closed(read))

    play(all_of_them())
    assert process.process.wait(DEADLINE) == 0
