"""Publishing over HTTP: what becomes a message, and what is refused in which words."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any

import pytest

from waterspout_core import BrokerError, ChannelStore, History, MemoryPubSub, Message, Position, QueueStore
from waterspout_handlers import PublishHandler

TEXT, JSON, NDJSON = "text/plain", "application/json", "application/x-ndjson"


class Listener:
    """Everything published on a channel, from now on."""

    def __init__(self, source: Any, channel: str) -> None:
        self.store = source.open(channel)

    def got(self) -> list[tuple[Any, str | None]]:
        _, entries = self.store.log.read(0)
        return [(entry.data, entry.event) for entry in entries]


async def test_text_is_one_message_and_the_answer_has_its_id(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        listener = Listener(source, "news")
        response = await server.post("/channels/news", "two\nlines, žluť".encode())
        assert response.status == 200
        assert response.headers["content-type"].startswith("application/json")
        assert response.json == {"channel": "news", "id": str(listener.store.log.position)}
        assert listener.got() == [("two\nlines, žluť", None)]


async def test_the_id_in_the_answer_is_the_id_that_subscribers_see(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=news")
        ids = [(await server.post("/channels/news", text)).json["id"] for text in (b"same", b"same", b"other")]
        assert [(event.data, event.id) for event in await peer.events(3)] == list(
            zip(["same", "same", "other"], ids, strict=True)
        )


@pytest.mark.parametrize("value", ["text", 0, 1.5, True, False, None, [], {}, {"a": [1, {"b": "ž\n"}]}, "", 10**30])
async def test_json_of_every_kind_is_published_as_it_is(serve: Any, channel_source: Any, value: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        body = json.dumps(value).encode()
        response = await server.post("/channels/a", body, "application/json; charset=utf-8")
        assert response.status == 200, response.body
        [(data, _)] = listener.got()
        assert data == value
        assert type(data) is type(value)


async def test_each_line_of_ndjson_is_one_message(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        response = await server.post("/channels/a", b'{"x":1}\r\n\n"two"\n3', "application/x-ndjson")
        assert response.json == {"channel": "a", "id": str(listener.store.log.position), "count": 3}
        assert [data for data, _ in listener.got()] == [{"x": 1}, "two", 3]


async def test_ndjson_of_one_line_still_tells_the_count(serve: Any) -> None:
    async with serve() as server:
        assert (await server.post("/channels/a", b"1", "application/x-ndjson")).json["count"] == 1


async def test_the_query_names_the_event(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        assert (await server.post("/channels/a?event=G%C3%B3l!", b"x")).status == 200
        assert (await server.post("/channels/a?event=", b"y")).status == 200
        assert listener.got() == [("x", "Gól!"), ("y", None)]


async def test_a_form_posted_by_curl_is_text(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        await server.post("/channels/a", b"a=1&b=%20", "application/x-www-form-urlencoded")
        assert listener.got() == [("a=1&b=%20", None)]


async def test_the_name_of_the_channel_is_taken_from_the_path_and_unquoted(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.post("/channels/r%C3%A1dio/1%2F2+3", b"x")
        assert response.json["channel"] == "rádio/1/2+3"
        assert list(source.stores) == ["rádio/1/2+3"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "words"),
    [
        pytest.param("a", b"", TEXT, "empty", id="empty"),
        pytest.param("a", b"", JSON, "empty", id="empty JSON"),
        pytest.param("a", b"\n \n", NDJSON, "empty", id="blank lines only"),
        pytest.param("a", b"\xff", TEXT, "UTF-8", id="bad UTF-8"),
        pytest.param("a", b'"\xc3"', JSON, "UTF-8", id="bad UTF-8 in JSON"),
        pytest.param("a", b"{", JSON, "not JSON", id="bad JSON"),
        pytest.param("a", b"1 2", JSON, "not JSON", id="two values"),
        pytest.param("a", b"NaN", JSON, "NaN", id="NaN"),
        pytest.param("a", b"[-Infinity]", JSON, "-Infinity", id="infinity"),
        pytest.param("a", b"1e999", JSON, "JSON", id="a number beyond all floats"),
        pytest.param("a", b"1" * 5000, JSON, "digits", id="a number of 5000 digits"),
        pytest.param("a", rb'"\ud800"', JSON, "Unicode", id="a lone surrogate"),
        pytest.param("a", rb'{"\udfff":1}', JSON, "Unicode", id="a lone surrogate in a key"),
        pytest.param("a", b"[" * 100_000 + b"]" * 100_000, JSON, "deep", id="deep nesting"),
        pytest.param("a", b'1\n"\\ud800"', NDJSON, "line 2", id="a bad line"),
        pytest.param("a", b"1\n2\nx", NDJSON, "line 3", id="the last line is bad"),
        pytest.param("a?event=gap", b"x", TEXT, "reserved", id="reserved event"),
        pytest.param("a?event=a%0Ab", b"x", TEXT, "event name", id="line feed in event"),
        pytest.param("a?event=" + "x" * 256, b"x", TEXT, "event name", id="long event"),
        pytest.param("a%20b", b"x", TEXT, "white space", id="space in channel"),
        pytest.param("a%0D%0A", b"x", TEXT, "control character", id="line end in channel"),
        pytest.param("x" * 256, b"x", TEXT, "255", id="long channel"),
    ],
)
async def test_a_bad_request_is_told_what_was_wrong_and_nothing_is_published(
    serve: Any, channel_source: Any, path: str, body: bytes, kind: str, words: str
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        response = await server.post(f"/channels/{path}", body, kind)
        assert response.status == 400
        assert words in response.json["error"]
        assert listener.got() == []


async def test_a_bad_line_is_named_as_an_editor_counts_it(serve: Any) -> None:
    async with serve() as server:
        response = await server.post("/channels/a", b"1\n\n\nbad\n", "application/x-ndjson")
        assert "line 4" in response.json["error"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_than_post_are_answered_405(serve: Any, channel_source: Any, method: str) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.request("/channels/a", method=method, body=b"x")
        assert (response.status, response.json) == (405, {"error": "Method Not Allowed"})
        assert source.stores == {}


# Keys


@pytest.fixture
def keeping(channel_source: Any) -> Any:
    """Makes a source whose broker keeps a history, without which there are no keys."""
    return lambda: channel_source(MemoryPubSub(history=History()))


@pytest.mark.parametrize("given", ["header", "quoted header", "query"])
async def test_what_was_published_with_a_key_is_not_published_again(serve: Any, keeping: Any, given: str) -> None:
    """E11: the answer is that of the first time."""
    source = keeping()

    async def post(key: str, body: bytes) -> Any:
        if given == "query":
            return await server.post(f"/channels/a?key={key}", body)
        value = key if given == "header" else f'"{key}";expires=never'
        return await server.post("/channels/a", body, **{"Idempotency-Key": value})

    async with serve(source=source) as server:
        listener = Listener(source, "a")
        answers = [(await post(*sent)).json for sent in [("k", b"x"), ("k", b"x"), ("other", b"y"), ("k", b"x")]]
        assert listener.got() == [("x", None), ("y", None)]
        assert answers[0] == answers[1] == answers[3] != answers[2]
        assert answers[0] == {"channel": "a", "id": f"{listener.store.log.epoch}-1"}


async def test_the_header_is_the_key_where_the_query_has_one_too(serve: Any, keeping: Any) -> None:
    source = keeping()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        for number in range(2):
            header = {"Idempotency-Key": "one"}
            assert (await server.post(f"/channels/a?key={number}", b"x", **header)).status == 200
        assert listener.got() == [("x", None)]


async def test_a_key_in_quotes_is_what_stands_between_them(serve: Any, keeping: Any) -> None:
    """RFC 8941, 3.3.3: a quote and a backslash are escaped."""
    source = keeping()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        await server.post("/channels/a", b"x", **{"Idempotency-Key": r'"a \"b\\"'})
        await server.post("/channels/a?key=a%20%22b%5C", b"x")
        assert listener.got() == [("x", None)]


async def test_the_same_key_on_another_channel_is_another_one(serve: Any, keeping: Any) -> None:
    source = keeping()
    async with serve(source=source) as server:
        listeners = Listener(source, "a"), Listener(source, "b")
        for channel in "ab":
            await server.post(f"/channels/{channel}?key=k", b"x")
        assert [listener.got() for listener in listeners] == [[("x", None)], [("x", None)]]


async def test_each_line_has_a_key_of_its_own_by_its_number(serve: Any, keeping: Any) -> None:
    source = keeping()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        first = await server.post("/channels/a?key=k", b"1\n\n3\n4", NDJSON)
        again = await server.post("/channels/a?key=k", b"1\n2\n3\n4", NDJSON)
        # Whoever was told that some were published goes on behind them; empty lines keep the numbers.
        rest = await server.post("/channels/a?key=k", b"\n\n\n4\n5", NDJSON)
        await server.post("/channels/a?key=k-5", b"5")
        assert [data for data, _ in listener.got()] == [1, 3, 4, 2, 5]
        epoch = listener.store.log.epoch
        assert [(answer.json["id"], answer.json["count"]) for answer in (first, again, rest)] == [
            *((f"{epoch}-3", 3), (f"{epoch}-3", 4), (f"{epoch}-5", 2)),
        ]


@pytest.mark.parametrize(
    ("key", "kind"),
    [("", TEXT), ("", NDJSON), ("x" * 256, TEXT), ("x" * 254, NDJSON), ("a%0Ab", TEXT), ("%7F", TEXT)],
    ids=["empty", "empty, lines", "too long", "too long with the number", "line feed", "control character"],
)
async def test_a_key_that_is_none_is_refused_and_nothing_is_published(
    serve: Any, keeping: Any, key: str, kind: str
) -> None:
    source = keeping()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        response = await server.post(f"/channels/a?key={key}", b"1", kind)
        assert response.status == 400
        assert "255 printable characters" in response.json["error"]
        assert listener.got() == []


async def test_no_line_is_published_if_the_key_is_too_long_for_the_last(serve: Any, keeping: Any) -> None:
    source = keeping()
    async with serve(source=source) as server:
        listener = Listener(source, "a")
        assert (await server.post(f"/channels/a?key={'x' * 253}", b"1\n" * 10, NDJSON)).status == 400
        assert listener.got() == []


async def test_a_store_of_ones_own_may_take_keys(serve: Any) -> None:
    keys: list[str | None] = []

    class Keyed(QueueStore):
        def submit(self, data: Any, event: str | None = None, *, key: str | None = None) -> Any:
            keys.append(key)
            return super().submit(data, event)

    store = Keyed()
    async with serve(routes=[("/publish", PublishHandler, {"store": store})], store=store) as server:
        assert (await server.post("/publish?key=k", b"x")).status == 200
        assert (await server.post("/publish", b"x")).status == 200
        assert (await server.post("/publish?key=a%7Fb", b"x")).status == 400
        assert keys == ["k", None]


async def test_the_longest_key_is_taken(serve: Any, keeping: Any) -> None:
    async with serve(source=keeping()) as server:
        assert (await server.post(f"/channels/a?key={'x' * 255}", b"1")).status == 200
        assert (await server.post(f"/channels/a?key={'x' * 253}", b"1\n2", NDJSON)).json["count"] == 2


@pytest.mark.parametrize(
    "store", [QueueStore(), ChannelStore("a", MemoryPubSub(history=None))], ids=["queue", "channel"]
)
async def test_a_store_that_does_not_know_what_it_published_takes_no_key(serve: Any, store: Any) -> None:
    async with serve(routes=[("/publish", PublishHandler, {"store": store})], store=store) as server:
        response = await server.post("/publish?key=k", b"x")
        assert response.status == 400
        assert "what was published before is not known" in response.json["error"]
        assert store.log.top == 0
        assert (await server.post("/publish", b"x")).status == 200
        if isinstance(store, ChannelStore):
            await store.aclose()


# Size


def limited(source: Any, size: int = 1000) -> list[Any]:
    return [(r"/channels/(.+)", PublishHandler, {"source": source, "max_body": size})]


async def test_a_body_of_just_the_allowed_size_is_published(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=limited(source), source=source) as server:
        assert (await server.post("/channels/a", b"x" * 1000)).status == 200


async def test_a_body_that_announces_too_much_is_refused(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=limited(source), source=source) as server:
        response = await server.post("/channels/a", b"x" * 1001)
        assert response.status == 413
        assert "1000 bytes" in response.json["error"]
        assert source.stores == {}


async def test_a_polite_client_is_refused_before_it_sends_too_much(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=limited(source), source=source) as server:
        peer = await server.connect()
        headers = {"Expect": "100-continue", "Content-Length": str(10**9)}
        assert (await peer.request("/channels/a", method="POST", headers=headers)).status == 413


async def test_a_chunked_body_that_grows_too_large_is_refused(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=limited(source), source=source) as server:
        peer = await server.connect()
        await peer.send(
            f"POST /channels/a HTTP/1.1\r\nHost: {server.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(300):
            await peer.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        await peer.send(b"0\r\n\r\n")
        response = await peer.read_response()
        assert response.status == 413
        assert "1000 bytes" in response.json["error"]
        # The body was read to its end, so the connection may be used again.
        assert (await peer.request("/channels/a", method="POST", body=b"small")).status == 200


async def test_a_chunked_body_within_the_limit_is_published(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=limited(source), source=source) as server:
        listener = Listener(source, "a")
        peer = await server.connect()
        await peer.send(
            f"POST /channels/a HTTP/1.1\r\nHost: {server.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"2\r\n\xc5\xbe\r\n1\r\n!\r\n0\r\n\r\n"
        )
        assert (await peer.read_response()).status == 200
        assert listener.got() == [("ž!", None)]


async def test_a_plain_client_that_sends_far_too_much_can_read_why_it_was_refused(
    serve: Any, channel_source: Any
) -> None:
    """A client that writes first and reads then: closing on it while it writes resets the answer away."""
    source = channel_source()

    def post() -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request("POST", "/channels/a", body=b"x" * 20_000_000)
            response = connection.getresponse()
            return response.status, json.load(response)
        finally:
            connection.close()

    async with serve(routes=limited(source), source=source) as server:
        assert await asyncio.to_thread(post) == (413, {"error": "a body has at most 1000 bytes"})


async def test_who_hangs_up_in_the_middle_publishes_nothing(serve: Any, channel_source: Any, until: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.connect()
        await peer.send(f"POST /channels/a HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 9\r\n\r\nhalf".encode())
        peer.close()
        await until(lambda: bool(server.streams) and server.streams[0].closed())
        assert source.stores == {}


# Origins


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
async def test_a_page_of_another_origin_may_not_publish(serve: Any, channel_source: Any, origin: str) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.post("/channels/a", b"x", Origin=origin)
        assert response.status == 403
        assert origin in response.json["error"]
        assert source.stores == {}


async def test_an_origin_that_is_no_url_is_another_origin(serve: Any) -> None:
    async with serve() as server:
        assert (await server.post("/channels/a", b"x", Origin="http://[bad")).status == 403


async def test_a_page_of_the_same_origin_may_publish(serve: Any) -> None:
    async with serve() as server:
        assert (await server.post("/channels/a", b"x", Origin=f"http://{server.host}")).status == 200


SITE = "https://shop.example"


@pytest.mark.parametrize("allowed", ["*", [SITE]], ids=["all", "listed"])
async def test_a_page_of_a_site_that_the_route_lists_may_publish(serve: Any, channel_source: Any, allowed: Any) -> None:
    source = channel_source()
    routes = [(r"/channels/(.+)", PublishHandler, {"source": source, "allow_origins": allowed})]
    async with serve(routes=routes, source=source) as server:
        listener = Listener(source, "a")
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
        preflight = await server.request("/channels/a", method="OPTIONS", headers={"Origin": SITE} | asked)
        assert preflight.status == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == "idempotency-key"
        published = await server.post("/channels/a", b"x", Origin=SITE)
        refused = await server.post("/channels/a", b"", Origin=SITE)
        for response in (preflight, published, refused):  # which a page may read only so
            assert response.headers["access-control-allow-origin"] == ("*" if allowed == "*" else SITE)
        assert (published.status, refused.status) == (200, 400)
        other = await server.post("/channels/a", b"y", Origin="https://evil.example")
        assert other.status == (200 if allowed == "*" else 403)
        assert ("access-control-allow-origin" in other.headers) is (allowed == "*")
        assert [data for data, _ in listener.got()] == (["x", "y"] if allowed == "*" else ["x"])


async def test_options_tells_the_methods_and_allows_nobody_by_itself(serve: Any) -> None:
    async with serve() as server:
        response = await server.request("/channels/a", method="OPTIONS", headers={"Origin": SITE})
        assert (response.status, response.headers["allow"]) == (204, "POST, OPTIONS")
        assert "access-control-allow-origin" not in response.headers


# Brokers in trouble


class Refusing(MemoryPubSub):
    """A broker that takes `takes` messages and then no more."""

    def __init__(self, takes: int = 0) -> None:
        super().__init__()
        self.takes = takes

    def submit(self, topic: str, message: Message, *, key: str | None = None) -> asyncio.Future[Position | None]:
        if self.takes:
            self.takes -= 1
            return super().submit(topic, message, key=key)
        refused: asyncio.Future[Position | None] = asyncio.get_running_loop().create_future()
        refused.set_exception(BrokerError("the broker is full"))
        return refused


async def test_a_broker_that_refuses_is_a_503_with_its_words(serve: Any, channel_source: Any) -> None:
    async with serve(source=channel_source(Refusing())) as server:
        response = await server.post("/channels/a", b"x")
        assert (response.status, response.json) == (503, {"error": "the broker is full", "published": 0})


async def test_a_broker_that_refuses_in_the_middle_tells_how_many_it_took(serve: Any, channel_source: Any) -> None:
    """Also, the other failures are not forgotten: asyncio would complain of each (see conftest.py)."""
    async with serve(source=channel_source(Refusing(takes=2))) as server:
        response = await server.post("/channels/a", b"1\n2\n3\n4\n5", "application/x-ndjson")
        assert (response.status, response.json) == (503, {"error": "the broker is full", "published": 2})


class Silent(MemoryPubSub):
    """A broker that never says anything."""

    def submit(self, topic: str, message: Message, *, key: str | None = None) -> asyncio.Future[Position | None]:
        return asyncio.get_running_loop().create_future()


async def test_a_silent_broker_is_given_up(serve: Any, channel_source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waterspout_handlers._publish.PUBLISH_TIMEOUT", 0.01)
    async with serve(source=channel_source(Silent())) as server:
        response = await server.post("/channels/a", b"x")
        assert response.status == 503
        assert "0.01 s" in response.json["error"]


async def test_more_messages_than_one_request_may_hold_are_refused_and_none_is_published(serve: Any) -> None:
    async with serve() as server:
        response = await server.post("/channels/a", b"1\n" * 10_001, "application/x-ndjson")
        assert response.status == 413
        assert "10000 messages" in response.json["error"]
        assert (await server.post("/channels/a", b"1")).json["id"].endswith("-1")
