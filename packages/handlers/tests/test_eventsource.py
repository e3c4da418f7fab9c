"""Server-sent events: who is let in, what the head says, and who goes."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import Any

import pytest
from tornado.web import RequestHandler

from waterspout_core import DataStore, QueueStore
from waterspout_handlers import Connections, EventSource
from waterspout_handlers._goodbye import RESTART


async def test_b19_b20_a_message_arrives_as_an_event_with_its_name_and_id_and_all_its_lines(
    serve: Any, channel_source: Any
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=news")
        store = source.open("news")
        await store.submit("tor\nfür uns", "goal")
        assert await peer.event() == ("tor\nfür uns", str(store.log.position), "goal")


async def test_b17_f57_the_head_keeps_caches_and_proxies_away(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events")
        headers = peer.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers
        assert headers["connection"] == "close"
        # At once, before there is any message: some of what stands in between waits for the first bytes of a body.
        assert 1000 <= peer.parser.reconnection_time <= 5000
        assert peer.parser.last_event_id == headers["last-event-id"] == str(store.log.position)


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
        outlet.end(RESTART)
        assert peer.parser.feed(await peer.rest()) == []


async def test_http_1_0_is_not_promised_that_the_connection_lives_on_behind_the_stream(serve: Any) -> None:
    async with serve(store=QueueStore()) as server:
        peer = await server.connect()
        response = await peer.request("/events", version="HTTP/1.0", headers={"Connection": "keep-alive"})
        # Without a length the end of the connection is the end of the body (RFC 9112, 6.3).
        assert response.headers.get("connection", "close").lower() == "close"


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("query", ["", "&format=ndjson"])
async def test_head_is_the_head_of_get_and_opens_nothing(
    serve: Any, channel_source: Any, query: str, version: str
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.connect()
        head = await peer.request(f"/events?channel=a{query}", method="HEAD", version=version)
        assert source.stores == {}
        get = await server.request(f"/events?channel=a{query}", version=version)
        assert (head.status, get.status) == (200, 200)
        # What is known of the stream when there is one, and what belongs to the message and not to the stream.
        others = {"date", "connection", "last-event-id", "transfer-encoding"}
        assert {name: get.headers[name] for name in get.headers.keys() - others} == {
            name: head.headers[name] for name in head.headers.keys() - others
        }
        assert "content-length" not in head.headers
        if version == "HTTP/1.1":  # the connection serves the next request
            assert (await peer.request("/events", method="HEAD")).status == 400


async def test_options_tells_what_may_be_done_and_opens_nothing(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.request("/events?channel=a", method="OPTIONS")
        assert (response.status, response.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
        assert "content-length" not in response.headers
        assert source.stores == {}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_other_methods_than_get_are_answered_405(serve: Any, channel_source: Any, method: str) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.request("/events?channel=a", method=method, body=b"")
        assert response.status == 405
        assert response.headers["content-type"].startswith("application/json")
        assert response.json == {"error": "Method Not Allowed"}
        assert response.headers["allow"] == "GET, HEAD, OPTIONS"
        assert source.stores == {}


async def test_f57_a_compressing_application_leaves_the_stream_alone(serve: Any) -> None:
    """What follows the head goes past Tornado's output transforms, so the head must not promise gzip."""
    store = QueueStore()
    async with serve(store=store, compress_response=True) as server:
        peer = await server.connect()
        response = await peer.request("/events", headers={"Accept-Encoding": "gzip"})
        assert response.headers.get("content-encoding", "identity") == "identity"
        await store.submit("plain")
        assert (await peer.event()).data == "plain"


async def test_b17_tornados_hooks_keep_working_and_each_request_is_logged_once(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = QueueStore()

    finished = []

    class Guarded(EventSource):
        def set_default_headers(self) -> None:
            self.set_header("X-Default", "yes")

        def get_current_user(self) -> str | None:
            return "Ada" if self.get_query_argument("key", "") == "secret" else None

        async def prepare(self) -> None:
            await asyncio.sleep(0)
            self.set_cookie("seen", "1")
            if not self.current_user:
                self.set_status(401)
                self.finish({"error": "who are you?"})

        def on_finish(self) -> None:
            finished.append(self.current_user)

    async with serve(routes=[("/guarded", Guarded, {"store": store})], store=store) as server:
        refused = await server.request("/guarded")
        assert (refused.status, refused.json) == (401, {"error": "who are you?"})
        assert not store.subscribers
        peer = await server.listen("/guarded?key=secret")
        assert peer.response.headers["x-default"] == "yes"
        assert peer.response.headers["set-cookie"].startswith("seen=1")
        await store.submit("hello")
        assert (await peer.event()).data == "hello"
        assert finished == [None, "Ada"]
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


# Who goes, and what goes wrong


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_b21_f52_an_idle_client_that_goes_is_noticed_at_once(serve: Any, until: Any, how: str) -> None:
    """Nothing is published meanwhile, and no heartbeat is due."""
    store = QueueStore()
    async with serve(store=store) as server:
        peer, other = await server.listen("/events"), await server.listen("/events")
        assert len(store.subscribers) == len(server.connections) == 2
        getattr(peer, how)()
        await until(lambda: len(store.subscribers) == len(server.connections) == 1)
        await store.submit("still there")
        assert (await other.event()).data == "still there"


async def test_b20_an_idle_stream_has_heartbeats_that_are_no_events(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store, door={"connections": Connections(heartbeat=0.05)}) as server:
        peer = await server.listen("/events")
        assert [await peer.chunk() for _ in range(3)] == [b":\n\n"] * 3
        await store.submit("between")
        assert (await peer.event()).data == "between"
        assert await peer.chunk() == b":\n\n"


async def test_b22_what_goes_wrong_before_the_stream_is_told_and_logged(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(QueueStore):
        async def ready(self) -> None:
            raise ZeroDivisionError("a bug")

    logged: list[logging.LogRecord] = []
    logger = logging.getLogger("tornado.application")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [handler := logging.Handler()])
    monkeypatch.setattr(handler, "emit", logged.append)
    store = Broken()
    async with serve(store=store) as server:
        response = await server.request("/events", headers={"Accept": "text/event-stream"})
        assert (response.status, response.json) == (500, {"error": "Internal Server Error"})
        assert not store.subscribers
    [record] = logged
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_what_becomes_of_a_slow_reader_is_said_by_the_route(serve: Any) -> None:
    store = QueueStore(max_messages=100)
    async with serve(store=store, send_buffer=4096, door={"when_behind": "latest"}) as server:
        slow = await server.listen("/events", receive_buffer=4096)
        for number in range(1000):
            store.submit(f"{number:>1000}")
            await asyncio.sleep(0)
        got: list[Any] = []
        while not got or int(got[-1].data) < 999:
            got.append(await slow.event())
        assert {event.type for event in got} == {"message"}  # with "gap" there were one
        assert len(got) < 100


# At most one sending in each period


async def test_b18_with_a_period_there_is_one_sending_in_each_and_a_queue_store_loses_nothing(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store, door={"period": 1.0}) as server:
        peers = [await server.listen("/events") for _ in range(3)]
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await store.submit("first")
        for peer in peers:  # at once: nothing was sent in this period
            assert (await peer.chunk()).startswith(b"data: first\n")
        assert loop.time() - begin < 1.0
        for number in range(4):
            await store.submit(str(number))
            await asyncio.sleep(0)
        for peer in peers:
            told = peer.parser.feed(await peer.chunk())
            assert [event.data for event in told] == ["0", "1", "2", "3"]
        assert loop.time() - begin >= 1.0


async def test_b18_with_a_period_a_data_store_sends_the_latest_value_only(serve: Any) -> None:
    store = DataStore("now")
    async with serve(store=store, door={"period": 0.1}) as server:
        peer = await server.listen("/events")
        assert (await peer.event()).data == "now"
        store.data = "first"
        assert (await peer.event()).data == "first"
        for number in range(4):
            store.data = number
            await asyncio.sleep(0)
        assert (await peer.event()).data == "3"


@pytest.mark.parametrize("period", [0, -1.0])
def test_b18_a_period_that_is_none_is_refused(period: float) -> None:
    with pytest.raises(ValueError, match="period"):
        object.__new__(EventSource).initialize(store=QueueStore(), period=period)


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
