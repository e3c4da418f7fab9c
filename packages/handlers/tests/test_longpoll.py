"""Long-polling: what there is at once, what comes while waiting, nothing when the time is over, and nothing twice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from waterspout_core import DataStore, QueueStore
from waterspout_handlers import Connections
from waterspout_handlers._goodbye import RESTART
from waterspout_handlers._longpoll import LongPoll

KiB = 1024


def poll(**wired: Any) -> list[Any]:
    return [("/poll", LongPoll, wired)]


async def answer(peer: Any) -> list[Any]:
    """The messages of the answer whose head has been read, which has to be all that comes."""
    if peer.response.headers.get("transfer-encoding") == "chunked":
        body = await peer.chunk()
        assert await peer.rest() == b"0\r\n\r\n"
    else:
        body = await peer.rest()
    assert body.endswith(b"]}\n")
    told: dict[str, Any] = json.loads(body)
    assert list(told) == ["messages"]
    messages: list[Any] = told["messages"]
    return messages


async def ask(server: Any, query: str = "", **options: Any) -> Any:
    """A peer that has the head of the answer."""
    peer = await server.connect()
    response = await peer.request(f"/poll?timeout=60{query}", **options)
    assert response.status == 200, response
    return peer


async def test_a_poll_is_answered_as_soon_as_there_is_something(serve: Any) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:
        peers = [await ask(server) for _ in range(3)]
        assert len(store.subscribers) == 3
        store.submit({"x": 1}, "moved")
        store.submit("two\nlines")
        for peer in peers:
            assert await answer(peer) == [
                {"event": "moved", "data": {"x": 1}, "id": f"{store.log.epoch}-1"},
                {"data": "two\nlines", "id": f"{store.log.epoch}-2"},
            ]
        assert not store.subscribers
        assert len(server.connections) == 0


async def test_what_is_there_already_is_answered_at_once(serve: Any) -> None:
    store = QueueStore()
    first = await store.submit("a")
    await store.submit("b")
    async with serve(routes=poll(store=store)) as server:
        peer = await ask(server, f"&last_event_id={first}")
        assert [message["data"] for message in await answer(peer)] == ["b"]
        peer = await ask(server, headers={"Last-Event-ID": str(first)})
        assert [message["data"] for message in await answer(peer)] == ["b"]


async def test_the_head_comes_at_once_and_says_where_the_wait_begins(serve: Any) -> None:
    store = QueueStore()
    await store.submit("before")
    async with serve(routes=poll(store=store)) as server:
        peer = await ask(server)
        headers = peer.response.headers
        assert headers["last-event-id"] == str(store.log.position)
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["transfer-encoding"] == "chunked"
        assert headers["connection"] == "close"


async def test_at_the_end_of_the_time_there_are_no_messages(serve: Any) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        peer = await server.connect()
        assert (await peer.request("/poll?timeout=1")).status == 200
        assert await answer(peer) == []
        assert 1 <= loop.time() - begin < 5
        assert not store.subscribers
        # Whoever asks again with what the head said misses nothing.
        await store.submit("a")
        peer = await ask(server, f"&last_event_id={peer.response.headers['last-event-id']}")
        assert [message["data"] for message in await answer(peer)] == ["a"]


@pytest.mark.parametrize("asked", ["0", "61", "-1", "1.5", "nan", "x", "", "1e1", "%EF%BC%91", "0x10", "9" * 20])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_time_that_is_none_is_refused(serve: Any, asked: str, method: str) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:
        response = await server.request(f"/poll?timeout={asked}", method=method)
        assert response.status == 400
        if method == "GET":
            assert "1 to 60" in response.json["error"]
        assert not store.subscribers


async def test_who_asks_again_and_again_gets_every_message_once_and_in_order(serve: Any) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:

        async def follow() -> list[int]:
            seen: list[int] = []
            peer = await ask(server, "&last_event_id=earliest")
            while len(seen) < 300:
                messages = await answer(peer)
                seen += [message["data"] for message in messages]
                peer = await ask(server, f"&last_event_id={messages[-1]['id']}")
            return seen

        followers = [asyncio.ensure_future(follow()) for _ in range(3)]
        for number in range(300):
            store.submit(number)
            if number % 7 == 0:
                await asyncio.sleep(0.001)
        for follower in followers:
            assert await follower == list(range(300))


async def test_of_several_channels_one_id_carries_all_positions(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=poll(source=source), source=source) as server:
        both = "&channel=a&channel=b"
        peer = await ask(server, both)
        await source.open("a").submit("a1")
        [message] = await answer(peer)
        assert (message["channel"], message["data"]) == ("a", "a1")
        await source.open("b").submit("b1")
        await source.open("a").submit("a2")
        seen = []
        while len(seen) < 2:
            peer = await ask(server, f"{both}&last_event_id={message['id']}")
            seen += [message := each for each in await answer(peer)]
        assert sorted(each["data"] for each in seen) == ["a2", "b1"]
        waiting = await ask(server, f"{both}&last_event_id={message['id']}")
        await source.open("b").submit("b2")
        assert [each["data"] for each in await answer(waiting)] == ["b2"]


async def test_a_gap_is_one_of_the_messages(serve: Any) -> None:
    store = QueueStore(max_messages=1)
    first = await store.submit("a")
    for text in "bcd":
        store.submit(text)
    async with serve(routes=poll(store=store)) as server:
        gap, newest = await answer(await ask(server, f"&last_event_id={first}"))
        assert (gap["event"], gap["data"], newest["data"]) == ("gap", {"missed": 2}, "d")
        assert await answer(await ask(server, f"&last_event_id={gap['id']}")) == [newest]


async def test_a_data_store_answers_with_its_value_until_that_has_been_seen(serve: Any) -> None:
    store = DataStore("now")
    async with serve(routes=poll(store=store)) as server:
        [message] = await answer(await ask(server))
        assert message["data"] == "now"
        waiting = await ask(server, f"&last_event_id={message['id']}")
        store.data = "then"
        assert [each["data"] for each in await answer(waiting)] == ["then"]


@pytest.mark.parametrize("waits", [False, True])
async def test_an_answer_larger_than_all_buffers_arrives_whole_and_nothing_behind_it(
    serve: Any, until: Any, waits: bool
) -> None:
    store = QueueStore()
    texts = [f"{number:>1000}" for number in range(100)]
    async with serve(routes=poll(store=store), send_buffer=4 * KiB) as server:
        peer = await server.connect(receive_buffer=4 * KiB)
        if waits:
            await peer.request("/poll?timeout=60")
        for text in texts:
            store.submit(text)
        if not waits:
            await peer.request("/poll?timeout=60&last_event_id=earliest")
        store.submit("for the next one")
        messages = await answer(peer)
        got = [message["data"] for message in messages]
        assert got == texts[: len(got)] if not waits else got == [*texts, "for the next one"]
        assert len(got) == 100 + waits
        await until(lambda: not store.subscribers and len(server.connections) == 0)


async def test_the_time_is_for_waiting_and_not_for_reading_the_answer(serve: Any) -> None:
    store = QueueStore()
    texts = [f"{number:>1000}" for number in range(100)]
    async with serve(routes=poll(store=store), send_buffer=4 * KiB) as server:
        peers = [await server.connect(receive_buffer=4 * KiB) for _ in range(2)]
        await peers[0].request("/poll?timeout=1")
        for text in texts:
            store.submit(text)
        await peers[1].request("/poll?timeout=1&last_event_id=earliest")
        await asyncio.sleep(2.5)  # the time is over, and what is due by then has been done
        for peer in peers:
            assert [message["data"] for message in await answer(peer)] == texts


async def test_http_1_0_gets_an_answer_without_chunks(serve: Any) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:
        peer = await ask(server, version="HTTP/1.0", headers={"Connection": "keep-alive"})
        assert peer.response.headers["connection"] == "close"
        store.submit("a")
        assert [message["data"] for message in await answer(peer)] == ["a"]


async def test_an_answer_over_tls(serve: Any) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store), tls=True) as server:
        peer = await ask(server)
        for number in range(100):
            store.submit(number)
        assert [message["data"] for message in await answer(peer)] == list(range(100))


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_f52_who_goes_while_waiting_is_noticed_at_once(serve: Any, until: Any, how: str) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:
        peer = await ask(server)
        assert len(store.subscribers) == 1
        getattr(peer, how)()
        await until(lambda: not store.subscribers and len(server.connections) == 0)


async def test_head_opens_nothing(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=poll(source=source), source=source) as server:
        response = await server.request("/poll?channel=a", method="HEAD")
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        assert source.stores == {}


async def test_while_draining_who_waits_gets_no_messages_and_who_comes_is_told_when_to_come_back(serve: Any) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:
        peer = await ask(server)
        await server.connections.drain(grace=1.0)
        assert await answer(peer) == []
        response = await server.request("/poll")
        assert response.status == 503
        assert response.json == {"error": RESTART.reason}
        assert 5 <= int(response.headers["retry-after"]) <= 15


async def test_the_end_comes_behind_what_was_published_just_before_and_says_nothing_twice(serve: Any) -> None:
    store = QueueStore()
    async with serve(routes=poll(store=store)) as server:
        leaving, staying = await ask(server), await ask(server)
        outlet = next(iter(store.subscribers))
        store.submit("last words")
        outlet.end(RESTART)
        for peer in (leaving, staying):
            assert [message["data"] for message in await answer(peer)] == ["last words"]
        assert not store.subscribers


async def test_a_heartbeat_is_nothing_because_an_answer_is_one_object(serve: Any) -> None:
    store = QueueStore()
    door = {"store": store, "connections": Connections(heartbeat=0.02)}
    async with serve(routes=poll(**door)) as server:
        peer = await server.connect()
        await peer.request("/poll?timeout=1")
        assert await answer(peer) == []
