"""Lines of JSON for programs: who gets them, what a line is, and how they end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from waterspout_core import QueueStore
from waterspout_handlers import Connections
from waterspout_handlers._goodbye import RESTART

KiB = 1024
NDJSON = "application/x-ndjson"


async def listen(server: Any, path: str = "/events", accept: str = NDJSON, **options: Any) -> Any:
    """A peer that is let in, behind the blank line that every stream begins with."""
    peer = await server.connect(**options)
    response = await peer.request(path, headers={"Accept": accept})
    assert (response.status, response.headers["content-type"]) == (200, NDJSON)
    assert await peer.chunk() == b"\n"
    return peer


async def lines(peer: Any, count: int) -> list[Any]:
    """The next `count` lines that are not blank, in as many chunks as they take."""
    found: list[Any] = []
    while len(found) < count:
        chunk = await peer.chunk()
        assert chunk.endswith(b"\n"), "a chunk ends in the middle of a line"
        found += [json.loads(line) for line in chunk.split(b"\n") if line]
    return found


@pytest.mark.parametrize(
    ("accept", "query", "expected"),
    [
        (NDJSON, "", NDJSON),
        ("text/html, Application/X-NDJSON ; q=0.9", "", NDJSON),
        ("*/*", "?format=ndjson", NDJSON),
        ("text/event-stream", "?format=ndjson", NDJSON),
        ("text/event-stream", "", "text/event-stream"),
        ("text/event-stream, application/x-ndjson", "", "text/event-stream"),
        ("*/*", "", "text/event-stream"),
        ("application/x-ndjson-not", "", "text/event-stream"),
        (NDJSON, "?format=json", "text/event-stream"),
        (NDJSON, "?format=text", "text/event-stream"),
    ],
)
async def test_lines_are_for_those_who_ask_for_them(serve: Any, accept: str, query: str, expected: str) -> None:
    async with serve(store=QueueStore()) as server:
        response = await server.request(f"/events{query}", headers={"Accept": accept})
        assert (response.status, response.headers["content-type"].split(";")[0]) == (200, expected)


async def test_each_message_is_one_line_with_all_there_is_to_say(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await listen(server, "/events?channel=news")
        store = source.open("news")
        await store.submit("two\r\nlines \u2028 \x85")
        await store.submit({"x": [1, None]}, "moved")
        epoch = store.log.epoch
        assert await lines(peer, 2) == [
            {"channel": "news", "data": "two\r\nlines \u2028 \x85", "id": f"{epoch}-1"},
            {"channel": "news", "event": "moved", "data": {"x": [1, None]}, "id": f"{epoch}-2"},
        ]


async def test_f57_the_head_keeps_caches_and_proxies_away_and_says_where_the_stream_begins(serve: Any) -> None:
    store = QueueStore()
    await store.submit("before")
    async with serve(store=store) as server:
        headers = (await listen(server)).response.headers
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["last-event-id"] == str(store.log.position)


async def test_one_id_carries_the_positions_of_several_channels(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await listen(server, "/events?channel=a&channel=b")
        for number in range(3):
            await source.open("a").submit(f"a{number}")
            await source.open("b").submit(f"b{number}")
        told = await lines(peer, 6)
        for cut, last in enumerate(told):
            again = await listen(server, f"/events?channel=a&channel=b&last_event_id={last['id']}")
            if told[cut + 1 :]:
                missed = await lines(again, 5 - cut)
                assert sorted(each["data"] for each in missed) == sorted(each["data"] for each in told[cut + 1 :])
            again.close()


async def test_an_idle_stream_has_blank_lines(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store, door={"connections": Connections(heartbeat=0.05)}) as server:
        peer = await listen(server)
        assert [await peer.chunk() for _ in range(2)] == [b"\n"] * 2
        await store.submit("x")
        assert [line["data"] for line in await lines(peer, 1)] == ["x"]


async def test_an_orderly_end_is_the_last_chunk_and_nothing_else(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await listen(server)
        [outlet] = store.subscribers
        store.submit("last")
        outlet.end(RESTART)
        assert [line["data"] for line in await lines(peer, 1)] == ["last"]
        assert await peer.rest() == b"0\r\n\r\n"


async def test_http_1_0_gets_lines_without_chunks(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.connect()
        response = await peer.request("/events?format=ndjson", version="HTTP/1.0")
        assert "transfer-encoding" not in response.headers
        [outlet] = store.subscribers
        store.submit("a")
        outlet.end(RESTART)
        blank, line, end = (await peer.rest()).split(b"\n")
        assert (blank, json.loads(line)["data"], end) == (b"", "a", b"")


async def test_a_slow_reader_gets_every_line_whole_and_in_order(serve: Any) -> None:
    store = QueueStore()
    texts = [f"{number:>1000}" for number in range(500)]
    async with serve(store=store, send_buffer=4 * KiB) as server:
        peer = await listen(server, receive_buffer=4 * KiB)
        for text in texts:
            store.submit(text)
        assert [line["data"] for line in await lines(peer, 500)] == texts


async def test_a_refusal_is_a_503_for_programs(serve: Any) -> None:
    async with serve(store=QueueStore(), door={"connections": Connections(max_connections=1)}) as server:
        await listen(server)
        response = await server.request("/events", headers={"Accept": NDJSON})
        assert response.status == 503
        assert "1 connections" in response.json["error"]
        assert 5 <= int(response.headers["retry-after"]) <= 15
