"""Server-sent events: who is let in, where a stream begins, and how it is resumed."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import Any

import pytest
from tornado.web import RequestHandler

from waterspout_core import DataStore, QueueStore
from waterspout_handlers import EventSource


async def test_a_message_arrives_as_an_event_with_channel_name_and_id(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=news")
        store = source.open("news")
        await store.submit("tor\nfür uns", "goal")
        assert await peer.event() == ("tor\nfür uns", str(store.log.position), "goal")


async def test_the_head_keeps_caches_and_proxies_away(serve: Any) -> None:
    async with serve(store=QueueStore()) as server:
        peer = await server.listen("/events")
        headers = peer.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers
        assert 1000 <= peer.parser.reconnection_time <= 3000


async def test_a_newcomer_gets_what_is_published_from_now_on(serve: Any) -> None:
    store = QueueStore()
    await store.submit("before")
    async with serve(store=store) as server:
        peer = await server.listen("/events")
        await store.submit("after")
        assert (await peer.event()).data == "after"


async def test_a_newcomer_to_a_data_store_gets_the_current_value_at_once(serve: Any) -> None:
    store = DataStore("now")
    async with serve(store=store) as server:
        peer = await server.listen("/events")
        first = await peer.event()
        assert first.data == "now"
        store.data = "never seen: conflated"
        store.data = {"then": 1}
        assert (await peer.event()).data == '{"then":1}'
        # Whoever has seen the current value waits for the next one.
        again = await server.listen("/events", last_event_id=str(store.log.position))
        store.data = "later"
        assert (await again.event()).data == "later"


async def test_falsy_payloads_are_delivered_as_they_are(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events")
        for payload in ("", 0, False, None, [], {}):
            store.submit(payload)
        assert [event.data for event in await peer.events(6)] == ["", "0", "false", "null", "[]", "{}"]


async def test_the_data_is_the_whole_message_where_that_is_asked_for(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=a&format=json")
        await source.open("a").submit({"x": 1}, "moved")
        event = await peer.event()
        assert json.loads(event.data) == {"channel": "a", "event": "moved", "data": {"x": 1}}
        assert event.type == "moved"


# Resuming


@pytest.mark.parametrize("way", ["header", "query"])
async def test_a_reader_goes_on_behind_the_last_event_it_saw(serve: Any, way: str) -> None:
    store = QueueStore()
    positions = [await store.submit(text) for text in "abcd"]
    async with serve(store=store) as server:
        if way == "header":
            peer = await server.listen("/events", last_event_id=str(positions[1]))
        else:
            peer = await server.listen(f"/events?last_event_id={positions[1]}")
        assert await peer.events(2) == [("c", str(positions[2]), "message"), ("d", str(positions[3]), "message")]
        await store.submit("e")
        assert (await peer.event()).data == "e"


async def test_the_header_is_newer_than_the_url(serve: Any) -> None:
    store = QueueStore()
    positions = [await store.submit(text) for text in "abc"]
    async with serve(store=store) as server:
        peer = await server.listen(f"/events?last_event_id={positions[0]}", last_event_id=str(positions[1]))
        assert (await peer.event()).data == "c"


async def test_an_unknown_position_gets_one_gap_and_then_all_that_is_kept(serve: Any) -> None:
    store = QueueStore(max_messages=3)
    for text in "abcde":
        store.submit(text)
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id="0123456789-7")
        gap, *kept = await peer.events(4)
        assert (gap.type, gap.data) == ("gap", '{"missed":null}')
        assert [event.data for event in kept] == ["c", "d", "e"]
        # The gap has a position of its own: who is cut right behind it misses nothing of what is kept.
        again = await server.listen("/events", last_event_id=gap.id)
        assert await again.events(3) == kept


async def test_an_unknown_position_of_an_empty_log_gets_its_gap_at_once(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id="0123456789-7")
        assert await peer.event() == ('{"missed":null}', f"{store.log.epoch}-0", "gap")
        await store.submit("a")
        assert (await peer.event()).data == "a"


@pytest.mark.parametrize("way", ["header", "query"])
async def test_earliest_begins_with_all_that_is_kept_and_no_gap(serve: Any, way: str) -> None:
    store = QueueStore(max_messages=3)
    for text in "abcde":
        store.submit(text)
    async with serve(store=store) as server:
        if way == "header":
            peer = await server.listen("/events", last_event_id="earliest")
        else:
            peer = await server.listen("/events?last_event_id=earliest")
        assert [(event.type, event.data) for event in await peer.events(3)] == [("message", text) for text in "cde"]
        # It need not ask for the earliest again: cut here, it goes on here.
        again = await server.listen("/events", last_event_id=peer.parser.last_event_id)
        store.submit("f")
        assert (await again.event()).data == "f"


async def test_earliest_of_an_empty_log_begins_with_what_comes(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events?last_event_id=earliest")
        store.submit("first")
        assert (await peer.event()).data == "first"


async def test_a_position_above_the_top_gets_a_gap(serve: Any) -> None:
    store = QueueStore()
    await store.submit("a")
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id=f"{store.log.epoch}-2")
        gap, kept = await peer.events(2)
        assert (gap.type, gap.data, kept.data) == ("gap", '{"missed":null}', "a")


async def test_a_gap_tells_how_many_messages_have_fallen_off(serve: Any) -> None:
    store = QueueStore(max_messages=2)
    seen = await store.submit("seen")
    for text in "abcde":
        store.submit(text)
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id=str(seen))
        gap, *kept = await peer.events(3)
        assert (gap.type, gap.data) == ("gap", '{"missed":3}')
        assert [event.data for event in kept] == ["d", "e"]


@pytest.mark.parametrize("bad", ["nonsense", "é", "x-", "-1", "a-1,", "a" * 5000])
async def test_a_bad_header_is_an_unknown_position_because_a_browser_gives_up_for_ever(serve: Any, bad: str) -> None:
    store = QueueStore()
    await store.submit("a")
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id=bad)
        gap, kept = await peer.events(2)
        assert (gap.type, kept.data) == ("gap", "a")


async def test_one_id_carries_the_positions_of_several_channels(serve: Any, channel_source: Any) -> None:
    """Cut behind every single event, also in the middle of a batch, and resumed: nothing lost, nothing repeated."""
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=a&channel=b&channel=c")
        for batch in range(3):
            for number in range(3):
                source.open("a").submit(f"a{batch}{number}")
                await source.open("b").submit(f"b{batch}{number}")
            await source.open("c").submit(f"c{batch}")
        events = await peer.events(21)
        for cut in range(21):
            again = await server.listen("/events?channel=a&channel=b&channel=c", last_event_id=events[cut].id)
            marker = f"end of {cut}"
            await source.open("c").submit(marker, "marker")
            missed: list[Any] = []
            while not missed or missed[-1].data != marker:
                missed += await again.events(1)
            got = [event.data for event in (*events[: cut + 1], *missed) if event.type == "message"]
            assert sorted(got) == sorted(event.data for event in events)
            for channel in "abc":
                of_channel = [data for data in got if data.startswith(channel)]
                assert of_channel == sorted(of_channel)
            again.close()


async def test_positions_need_no_order_and_channels_may_come_and_go(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=a&channel=b")
        await source.open("a").submit("a1")
        await source.open("b").submit("b1")
        last = (await peer.events(2))[1].id
        await source.open("a").submit("a2")
        await source.open("b").submit("b2")
        turned = ",".join(reversed(last.split(",")))
        both = await server.listen("/events?channel=b&channel=a", last_event_id=turned)
        assert sorted(event.data for event in await both.events(2)) == ["a2", "b2"]
        fewer = await server.listen("/events?channel=b", last_event_id=last)
        assert (await fewer.event()).data == "b2"
        more = await server.listen("/events?channel=a&channel=new", last_event_id=last)
        # Nobody can tell whether this reader has ever seen anything of the new channel.
        assert sorted((event.type, event.data) for event in await more.events(2)) == [
            ("gap", '{"missed":null}'),
            ("message", "a2"),
        ]


async def test_of_several_channels_only_the_lost_one_has_a_gap_and_a_cut_before_it_does_not_hide_it(
    serve: Any, channel_source: Any
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        await source.open("a").ready()
        await source.open("b").ready()
        for text in ("a1", "a2"):
            await source.open("a").submit(text)
        await source.open("b").submit("b1")
        known = f"{source.open('a').log.epoch}-1,0123456789-4"
        peer = await server.listen("/events?channel=a&channel=b", last_event_id=known)
        a2, gap, b1 = await peer.events(3)
        assert [a2.data, gap.type, b1.data] == ["a2", "gap", "b1"]
        # The first event came before the gap was told: resumed from it, the gap is still there.
        again = await server.listen("/events?channel=a&channel=b", last_event_id=a2.id)
        assert [(event.type, event.data) for event in await again.events(2)] == [
            ("gap", '{"missed":null}'),
            ("message", "b1"),
        ]


async def test_a_channel_named_twice_delivers_once(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=a&channel=a&channel=b&channel=a")
        for text in ("one", "two"):
            await source.open("a").submit(text)
        assert [event.data for event in await peer.events(2)] == ["one", "two"]
        assert len(source.open("a").subscribers) == 1


async def test_a_hundred_channels_resume_from_one_header(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    names = [f"{'long' * 50}-{number}" for number in range(100)]
    path = "/events?" + "&".join(f"channel={name}" for name in names)
    async with serve(source=source) as server:
        peer = await server.listen(path)
        for name in names:
            await source.open(name).submit(name)
        last = (await peer.events(100))[-1].id
        for name in names:
            await source.open(name).submit(f"{name} again")
        again = await server.listen(path, last_event_id=last)
        assert {event.data for event in await again.events(100)} == {f"{name} again" for name in names}


async def test_channels_may_be_named_by_the_path(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=[(r"/live/([^/]+)", EventSource, {"source": source})], source=source) as server:
        peer = await server.listen("/live/caf%C3%A9")
        await source.open("café").submit("hello")
        assert (await peer.event()).data == "hello"


# Other clients than browsers


async def test_http_1_0_gets_a_stream_without_chunks(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.connect()
        response = await peer.request("/events", version="HTTP/1.0")
        assert response.status == 200
        assert "transfer-encoding" not in response.headers
        assert (await peer.reader.readuntil(b"\n\n")).startswith(b"retry: ")
        await store.submit("a\nb")
        assert await peer.event() == ("a\nb", str(store.log.position), "message")
        [outlet] = store.subscribers
        outlet.end()
        assert await peer.rest() == b""


async def test_http_1_0_is_not_promised_that_the_connection_lives_on_behind_the_stream(serve: Any) -> None:
    async with serve(store=QueueStore()) as server:
        peer = await server.connect()
        response = await peer.request("/events", version="HTTP/1.0", headers={"Connection": "keep-alive"})
        # Without a length the end of the connection is the end of the body (RFC 9112, 6.3).
        assert response.headers.get("connection", "close").lower() == "close"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"])
async def test_other_methods_than_get_are_answered_405(serve: Any, channel_source: Any, method: str) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.request("/events?channel=a", method=method, body=b"")
        assert response.status == 405
        assert response.headers["content-type"].startswith("application/json")
        if method != "HEAD":
            assert response.json == {"error": "Method Not Allowed"}
        assert source.stores == {}


async def test_a_compressing_application_leaves_the_stream_alone(serve: Any) -> None:
    """What follows the head goes past Tornado's output transforms, so the head must not promise gzip."""
    store = QueueStore()
    async with serve(store=store, compress_response=True) as server:
        peer = await server.connect()
        response = await peer.request("/events", headers={"Accept-Encoding": "gzip"})
        assert response.headers.get("content-encoding", "identity") == "identity"
        await store.submit("plain")
        assert (await peer.event()).data == "plain"


async def test_tornados_hooks_and_access_log_keep_working(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = QueueStore()

    class Guarded(EventSource):
        def set_default_headers(self) -> None:
            self.set_header("X-Default", "yes")

        async def prepare(self) -> None:
            await asyncio.sleep(0)
            self.set_cookie("seen", "1")
            if self.get_query_argument("key", "") != "secret":
                self.set_status(401)
                self.finish({"error": "who are you?"})

    async with serve(routes=[("/guarded", Guarded, {"store": store})], store=store) as server:
        refused = await server.request("/guarded")
        assert (refused.status, refused.json) == (401, {"error": "who are you?"})
        assert not store.subscribers
        peer = await server.listen("/guarded?key=secret")
        assert peer.response.headers["x-default"] == "yes"
        assert peer.response.headers["set-cookie"].startswith("seen=1")
        await store.submit("hello")
        assert (await peer.event()).data == "hello"
    lines = [record.getMessage() for record in caplog.records if record.name == "tornado.access"]
    assert [line.split(" (")[0] for line in lines] == ["401 GET /guarded", "200 GET /guarded?key=secret"]


async def test_the_handler_is_let_go_after_the_handshake(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        await server.listen("/events")

        def nobody_left() -> bool:
            gc.collect()
            return not any(isinstance(thing, RequestHandler) for thing in gc.get_objects())

        await until(nobody_left)
        assert len(store.subscribers) == 1


# Brokers that hesitate


async def test_nobody_is_let_in_before_the_broker_has_confirmed(serve: Any, hesitant_store: Any, until: Any) -> None:
    async with serve(store=hesitant_store) as server:
        coming = asyncio.ensure_future(server.listen("/events"))
        await until(lambda: bool(hesitant_store.waiting))
        assert not coming.done()
        assert not hesitant_store.subscribers
        hesitant_store.submit("before")
        hesitant_store.waiting[0].set_result(None)
        peer = await coming
        hesitant_store.submit("first")
        assert (await peer.event()).data == "first"


async def test_a_silent_broker_holds_nobody_up_for_ever(
    serve: Any, hesitant_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waterspout_handlers._requests.READY_TIMEOUT", 0.01)
    seen = hesitant_store.submit("seen").position
    hesitant_store.submit("kept")
    async with serve(store=hesitant_store) as server:
        newcomer = await server.listen("/events")
        back = await server.listen("/events", last_event_id=str(seen))
        hesitant_store.submit("first")
        assert (await newcomer.event()).data == "first"
        assert [event.data for event in await back.events(2)] == ["kept", "first"]


async def test_who_leaves_while_the_broker_hesitates_is_not_registered_later(
    serve: Any, hesitant_store: Any, until: Any
) -> None:
    async with serve(store=hesitant_store) as server:
        gone = await server.connect()
        await gone.send(f"GET /events HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        await until(lambda: bool(hesitant_store.waiting))
        gone.reset()
        # The server has seen it when it has also seen and answered what came after it.
        assert (await server.request("/nowhere")).status == 404
        coming = asyncio.ensure_future(server.listen("/events"))
        await until(lambda: len(hesitant_store.waiting) == 2)
        for waiting in hesitant_store.waiting:
            waiting.set_result(None)
        peer = await coming
        await until(lambda: len(hesitant_store.subscribers) == 1)
        hesitant_store.submit("x")
        assert (await peer.event()).data == "x"
        assert len(hesitant_store.subscribers) == 1
