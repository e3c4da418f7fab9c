"""Publishing over HTTP: what becomes a message, and what is refused in which words."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any

import pytest

from waterspout_core import BrokerError, MemoryPubSub, Message, Position
from waterspout_handlers import PublishHandler


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


TEXT, JSON, NDJSON = "text/plain", "application/json", "application/x-ndjson"


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


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_than_post_are_answered_405(serve: Any, channel_source: Any, method: str) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.request("/channels/a", method=method, body=b"x")
        assert (response.status, response.json) == (405, {"error": "Method Not Allowed"})
        assert source.stores == {}


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
        assert await asyncio.to_thread(post) == (413, {"error": "a message has at most 1000 bytes"})


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
