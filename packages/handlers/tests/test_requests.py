"""What the doors share: the channels a request asks for, and errors that say what was wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tornado.web import HTTPError

from waterspout_core import BrokerError, QueueStore, TooManyChannels
from waterspout_handlers import (
    Connections,
    EventSource,
    JSONErrors,
    LongPoll,
    PublishHandler,
    RequestError,
    SubscriberHandler,
    WebSocketSubscriber,
)

EVENTS = {"Accept": "text/event-stream"}
"""What a browser's EventSource sends (WHATWG HTML, "EventSource constructor", step 9)."""


class Full:
    """A source that holds as many channels as it may."""

    def open(self, channel: str) -> Any:
        raise TooManyChannels(7)


class Refused(QueueStore):
    """A store whose broker refuses."""

    async def ready(self) -> None:
        raise BrokerError("no such thing\r\ndata: here")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        pytest.param("", "?channel=NAME", id="no channel"),
        pytest.param("?channel=", "needs a name", id="empty"),
        pytest.param("?channel=ok&channel=", "needs a name", id="one of them empty"),
        pytest.param("?channel=a%20b", "white space", id="space"),
        pytest.param("?channel=%20a", "white space", id="space in front"),
        pytest.param("?channel=a%00", "white space", id="NUL"),
        pytest.param("?channel=a%0Ab", "control character", id="line feed"),
        pytest.param("?channel=" + "%C5%BE" * 128, "256", id="too long in bytes"),
        pytest.param("?" + "&".join(f"channel={number}" for number in range(101)), "100 channels", id="too many"),
        pytest.param("?channel=ok&last_event_id=%20-1", "last_event_id", id="bad position"),
        pytest.param("?channel=ok&last_event_id=e-1,,e-2", "last_event_id", id="bad positions"),
        pytest.param("?channel=ok&last_event_id=" + "e-1," * 1100, "4096", id="too long an id"),
        pytest.param("?channel=ok&format=xml", "'xml'", id="format"),
    ],
)
async def test_a_bad_request_says_what_was_wrong_and_leaves_nobody_registered(
    serve: Any, channel_source: Any, query: str, words: str
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.request(f"/events{query}")
        assert response.status == 400
        assert response.headers["content-type"].startswith("application/json")
        assert words in response.json["error"]
        assert source.subscribers() == 0


@pytest.mark.parametrize("path", ["/events?channel=%FF", "/events?channel=a&last_event_id=%FF", "/channels/%FF"])
async def test_bad_unicode_in_the_url_is_told_as_such(serve: Any, path: str) -> None:
    async with serve() as server:
        method = "POST" if path.startswith("/channels") else "GET"
        response = await server.request(path, method=method, body=b"x")
        assert response.status == 400
        assert "unicode" in response.json["error"].lower()


async def test_a_path_that_leads_nowhere_is_404_in_json(serve: Any) -> None:
    async with serve() as server:
        response = await server.request("/nowhere?x")
        assert (response.status, response.json) == (404, {"error": "there is nothing at /nowhere"})


async def test_a_connection_may_ask_again_after_it_was_refused(serve: Any) -> None:
    async with serve(store=QueueStore()) as server:
        peer = await server.connect()
        assert (await peer.request("/events?last_event_id=x")).status == 400
        assert (await peer.request("/events")).status == 200


async def test_a_full_source_is_a_503(serve: Any) -> None:
    async with serve(source=Full()) as server:
        response = await server.request("/events?channel=a")
        assert response.status == 503
        assert "7 channels" in response.json["error"]
        assert 5 <= int(response.headers["retry-after"]) <= 15
        assert (await server.post("/channels/a", b"x")).status == 503


async def test_a_broker_that_refuses_is_a_503_and_leaves_nobody_registered(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    source.stores = {"a": Refused(), "b": Refused()}
    async with serve(source=source) as server:
        for response in (
            await server.request("/events?channel=a&channel=b"),
            await (await server.connect()).upgrade("/ws?channel=a&channel=b"),
        ):
            assert (response.status, response.json) == (503, {"error": "no such thing\r\ndata: here"})
        assert source.subscribers() == 0


async def test_there_are_as_many_channels_on_a_connection_as_the_limit_says(serve: Any) -> None:
    async with serve(door={"connections": Connections(max_channels=2)}) as server:
        assert (await server.request("/events?channel=a&channel=b&channel=a")).status == 200
        response = await server.request("/events?channel=a&channel=b&channel=c")
        assert (response.status, response.json) == (400, {"error": "at most 2 channels on one connection, not 3"})


# Who may not come now, but later


async def refusals(server: Any, event_parser: Any, path: str) -> list[float]:
    """The times, in seconds, after which those come back who ask for an event stream that there is not now."""
    times = []
    for _ in range(20):
        response = await server.request(path, headers=EVENTS)
        assert (response.status, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert response.headers["cache-control"] == "no-cache, no-transform"
        parser = event_parser()
        assert parser.feed(response.body) == []
        # An empty `id:` would make the browser forget where it was.
        assert b"\nid" not in response.body
        assert response.body.startswith(b": ")
        assert parser.reconnection_time is not None
        times.append(parser.reconnection_time / 1000)
    return times


async def test_f56_an_event_source_that_cannot_be_served_now_is_told_when_to_come_back(
    serve: Any, channel_source: Any, event_parser: Any
) -> None:
    """A browser never comes back from a 503."""
    refused = channel_source()
    refused.stores = {"a": Refused()}
    full = Connections(max_connections=1)
    draining = Connections()
    await draining.drain(0)
    routes = [
        ("/full-source", EventSource, {"source": Full()}),
        ("/refused", EventSource, {"source": refused}),
        ("/full", EventSource, {"store": QueueStore(), "connections": full}),
        ("/draining", EventSource, {"store": QueueStore(), "connections": draining}),
    ]
    async with serve(routes=routes) as server:
        await server.listen("/full")
        for path in ("/full-source?channel=a", "/refused?channel=a", "/full", "/draining"):
            times = await refusals(server, event_parser, path)
            assert min(times) >= 5
            assert max(times) <= 15
            assert max(times) - min(times) > 1  # F54: not all of them at one moment
            # Everyone else is told so in the way of HTTP.
            for headers in ({}, {"Accept": "application/json"}):
                response = await server.request(path, headers=headers)
                assert response.status == 503
                assert response.json["error"]
                assert 5 <= int(response.headers["retry-after"]) <= 15
        assert full.counts.refused == draining.counts.refused == 22
        assert not refused.subscribers()


async def test_connections_are_counted_by_the_address_they_come_from(serve: Any, until: Any) -> None:
    connections = Connections(max_per_address=1)
    async with serve(store=QueueStore(), door={"connections": connections}) as server:
        first = await server.listen("/events")
        response = await server.request("/events")
        assert (response.status, "from 127.0.0.1" in response.json["error"]) == (503, True)
        first.close()
        await until(lambda: len(connections) == 0)
        await server.listen("/events")


async def test_f56_who_was_refused_comes_in_by_the_same_connection_when_there_is_room(serve: Any, until: Any) -> None:
    store = QueueStore()
    connections = Connections(max_connections=1)
    async with serve(store=store, door={"connections": connections}) as server:
        first = await server.listen("/events")
        peer = await server.connect()
        assert (await peer.request("/events", headers=EVENTS)).body.startswith(b": there are 1 connections")
        first.close()
        await until(lambda: len(connections) == 0)
        assert (await peer.request("/events", headers=EVENTS)).headers["transfer-encoding"] == "chunked"
        peer.parser.feed(await peer.chunk())
        await store.submit("hello")
        assert (await peer.event()).data == "hello"


async def test_f56_who_was_about_to_come_in_when_the_draining_began_is_sent_away_in_good_order(
    serve: Any, hesitant_store: Any, until: Any
) -> None:
    async with serve(store=hesitant_store) as server:
        coming = [
            asyncio.ensure_future(server.request("/events", headers=EVENTS)),
            asyncio.ensure_future(server.request("/events?format=ndjson")),
        ]
        await until(lambda: len(hesitant_store.waiting) == 2)
        await server.connections.drain(0)
        for waiting in hesitant_store.waiting:
            waiting.set_result(None)
        browser, program = [await each for each in coming]
        assert (browser.status, browser.body.startswith(b": the server is about to stop")) == (200, True)
        assert (program.status, "retry-after" in program.headers) == (503, True)
        assert len(server.connections) == len(hesitant_store.subscribers) == 0


@pytest.mark.parametrize("path", ["/poll", "/events?format=ndjson", "/events"])
async def test_of_those_who_come_at_one_moment_no_more_are_let_in_than_there_is_room_for(
    serve: Any, hesitant_store: Any, until: Any, path: str
) -> None:
    """All of them are let pass, and then wait for the broker."""
    routes = [("/poll", LongPoll, {"store": hesitant_store})]
    async with serve(store=hesitant_store, routes=routes, connections=Connections(max_connections=2)) as server:
        coming = [asyncio.ensure_future(server.request(path)) for _ in range(6)]
        await until(lambda: len(hesitant_store.waiting) == 6)
        for waiting in hesitant_store.waiting:
            waiting.set_result(None)
        statuses = [(await each).status for each in coming]
        assert sorted(statuses) == [200] * 2 + [503] * 4
        assert (len(server.connections), len(hesitant_store.subscribers)) == (2, 2)
        assert server.connections.counts.refused == 4


async def test_f56_the_503_of_a_hook_is_told_in_the_same_way(serve: Any, event_parser: Any) -> None:
    class Closed(EventSource):
        def prepare(self) -> None:
            raise HTTPError(503)

    async with serve(routes=[("/closed", Closed, {"store": QueueStore()})]) as server:
        response = await server.request("/closed", headers=EVENTS)
        parser = event_parser()
        assert (response.status, parser.feed(response.body)) == (200, [])
        assert response.body.startswith(b": Service Unavailable\n")
        assert parser.reconnection_time >= 1000
        # A HEAD has no body that could say so.
        assert (await server.request("/closed")).status == 503
        assert (await server.request("/closed", method="HEAD", headers=EVENTS)).status == 503


async def test_f56_what_will_never_be_served_stops_an_event_source(serve: Any) -> None:
    async with serve() as server:
        for path in ("/events", "/events?channel=a%20b", "/events?channel=a&format=x", "/nowhere"):
            assert (await server.request(path, headers=EVENTS)).status in (400, 404)


# Pages of other sites

THERE = {"Origin": "https://there.example"}


@pytest.mark.parametrize("path", ["/events", "/events?format=ndjson", "/events?last_event_id=x", "/events?format=x"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_listed_origin_may_read_every_answer_and_no_other_may(serve: Any, path: str, method: str) -> None:
    door = {"allow_origins": ["https://there.example", "https://here.example"]}
    async with serve(store=QueueStore(), door=door) as server:
        headers = (await server.request(path, method=method, headers=THERE)).headers
        assert headers["access-control-allow-origin"] == "https://there.example"
        assert headers["access-control-allow-credentials"] == "true"
        assert "Last-Event-ID" in headers["access-control-expose-headers"]
        assert headers["vary"] == "Origin"
        for origin in ("https://other.example", "http://there.example", "https://there.example.org", "null", "x//["):
            headers = (await server.request(path, method=method, headers={"Origin": origin})).headers
            assert not [name for name in headers if name.startswith("access-control")]
            assert headers["vary"] == "Origin"


async def test_everyone_may_where_the_route_says_so_but_without_cookies(serve: Any) -> None:
    async with serve(store=QueueStore(), door={"allow_origins": "*"}) as server:
        for origin in ("https://there.example", "null"):
            headers = (await server.request("/events", headers={"Origin": origin})).headers
            assert headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in headers
            assert "vary" not in headers


async def test_nobody_is_allowed_who_is_not_named_and_this_sites_own_pages_need_it_not(serve: Any) -> None:
    async with serve(store=QueueStore()) as server:
        for origin in ("https://there.example", f"http://{server.host}", f"https://{server.host}"):
            response = await server.request("/events", headers={"Origin": origin})
            assert response.status == 200
            assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_browser_is_told_before_what_a_foreign_page_may_do(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    preflight = {
        **THERE,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization,last-event-id",
    }
    async with serve(source=source, door={"allow_origins": ["https://there.example"]}) as server:
        response = await server.request("/events?channel=a", method="OPTIONS", headers=preflight)
        assert response.status == 204
        assert response.headers["access-control-allow-origin"] == "https://there.example"
        assert response.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
        assert response.headers["access-control-allow-headers"] == "authorization,last-event-id"
        assert int(response.headers["access-control-max-age"]) > 0
        refused = await server.request(
            "/events?channel=a", method="OPTIONS", headers=preflight | {"Origin": "https://other.example"}
        )
        assert not [name for name in refused.headers if name.startswith("access-control")]
        assert source.stores == {}


async def test_who_may_come_can_be_decided_by_a_subclass(serve: Any) -> None:
    class Friendly(EventSource):
        def allows_origin(self, origin: str) -> bool:
            return origin.endswith(".example")

    async with serve(routes=[("/friendly", Friendly, {"store": QueueStore()})]) as server:
        for origin, allowed in (("https://a.example", True), ("https://a.test", False)):
            headers = (await server.request("/friendly", headers={"Origin": origin})).headers
            assert ("access-control-allow-origin" in headers) == allowed


async def test_facts_stand_beside_the_explanation(serve: Any) -> None:
    class Refusal(JSONErrors):
        def get(self) -> None:
            raise RequestError(409, "it is taken", by="somebody")

    class Plain(JSONErrors):
        def get(self) -> None:
            raise HTTPError(403)

    async with serve(routes=[("/refusal", Refusal), ("/plain", Plain)]) as server:
        response = await server.request("/refusal")
        assert (response.status, response.json) == (409, {"error": "it is taken", "by": "somebody"})
        assert (await server.request("/plain")).json == {"error": "Forbidden"}


async def test_a_status_of_ones_own_is_answered_in_json_as_well(serve: Any) -> None:
    class Odd(JSONErrors):
        def get(self) -> None:
            raise HTTPError(499, reason="Odd")

    async with serve(routes=[("/odd", Odd)]) as server:
        response = await server.request("/odd")
        assert response.status == 499
        assert response.json["error"]


@pytest.mark.parametrize("both", [False, True])
def test_a_handler_takes_a_store_or_a_source(both: bool) -> None:
    handler = object.__new__(EventSource)
    kept: Any = QueueStore() if both else None
    with pytest.raises(TypeError, match="EventSource is routed with"):
        SubscriberHandler.initialize(handler, store=kept, source=kept)


@pytest.mark.parametrize("wired", [{"store": "news"}, {"source": QueueStore()}])
def test_a_route_wired_with_something_else_says_what_it_takes(wired: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="EventSource takes a"):
        object.__new__(EventSource).initialize(**wired)


@pytest.mark.parametrize(
    ("door", "wrong", "words"),
    [
        (EventSource, {"stroe": 1}, "EventSource has no argument 'stroe'"),
        (EventSource, {"source": 1}, "EventSource is routed with"),
        (EventSource, {"period": -1}, "period is a number"),
        (LongPoll, {"when_behind": "foo"}, "'foo'"),
        (WebSocketSubscriber, {"allow_publsh": True}, "WebSocketSubscriber has no argument 'allow_publsh'"),
        (PublishHandler, {"connections": Connections()}, "PublishHandler has no argument 'connections'"),
    ],
)
async def test_a_route_with_wrong_arguments_is_a_500_in_json_and_the_log_says_why(
    serve: Any, door: type[JSONErrors], wrong: dict[str, Any], words: str
) -> None:
    logged: list[str] = []

    class Misrouted(door):  # type: ignore[valid-type,misc]
        def prepare(self) -> None:
            raise AssertionError("it is not ready")

        def log_exception(self, kind: Any, error: Any, traceback: Any) -> None:
            logged.append(str(error))

    Misrouted.__name__ = door.__name__
    async with serve(routes=[("/wrong", Misrouted, {"store": QueueStore(), **wrong})]) as server:
        for method, body in (("GET", None), ("POST", b"Hello")):
            response = await server.request("/wrong", method=method, body=body)
            assert (response.status, response.json) == (500, {"error": "Internal Server Error"})
    assert len(logged) == 2
    assert words in logged[0]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"allow_origins": "https://there.example"}, TypeError, "a list of origins"),
        ({"when_behind": "wait"}, ValueError, "wait"),
    ],
)
def test_arguments_of_a_route_that_mean_nothing_are_refused(
    wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    wired: Any = {"store": QueueStore(), "connections": Connections(), **wrong}
    with pytest.raises(error, match=words):
        object.__new__(EventSource).initialize(**wired)
