"""What the doors share: the channels a request asks for, and errors that say what was wrong."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.web import HTTPError

from waterspout_core import BrokerError, QueueStore, TooManyChannels
from waterspout_handlers import EventSource, JSONErrors, RequestError, SubscriberHandler


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
    class Full:
        def open(self, channel: str) -> Any:
            raise TooManyChannels(7)

    async with serve(source=Full()) as server:
        response = await server.request("/events?channel=a")
        assert response.status == 503
        assert "7 channels" in response.json["error"]
        assert (await server.post("/channels/a", b"x")).status == 503


async def test_a_broker_that_refuses_is_a_503_and_leaves_nobody_registered(serve: Any, channel_source: Any) -> None:
    class Refused(QueueStore):
        async def ready(self) -> None:
            raise BrokerError("no such thing here")

    source = channel_source()
    source.stores = {"a": Refused(), "b": Refused()}
    async with serve(source=source) as server:
        for response in (
            await server.request("/events?channel=a&channel=b"),
            await (await server.connect()).upgrade("/ws?channel=a&channel=b"),
        ):
            assert (response.status, response.json) == (503, {"error": "no such thing here"})
        assert source.subscribers() == 0


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
