"""Who may read which channel, and who may publish to it: asked by every door, and of every message that names one."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import pytest
from tornado.web import RequestHandler

from waterspout_core import ChannelStore, MemoryPubSub, QueueStore
from waterspout_handlers import EventSource, LongPoll, PublishHandler, WebSocketSubscriber


class Members(RequestHandler):
    """Everyone may read what begins with `public`; a member has channels of their own, and publishes to these."""

    def get_current_user(self) -> str | None:
        return self.get_query_argument("user", None)

    def may_subscribe(self, channel: str) -> bool:
        return channel.startswith("public") or self.may_publish(channel)

    def may_publish(self, channel: str) -> bool:
        return self.current_user is not None and channel.startswith(f"{self.current_user}.")


class Events(Members, EventSource):
    pass


class Polls(Members, LongPoll):
    pass


class Sockets(Members, WebSocketSubscriber):
    pass


class Posts(Members, PublishHandler):
    pass


def doors(**wired: Any) -> list[Any]:
    return [
        ("/events", Events, wired),
        ("/poll", Polls, wired),
        ("/ws", Sockets, {**wired, "allow_publish": True}),
        ("/publish/(.+)" if "source" in wired else "/publish", Posts, wired),
    ]


class Namespace:
    """A source that knows each channel by two names, like Channels with a namespace."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.stores: dict[str, ChannelStore] = {}

    def open(self, channel: str) -> ChannelStore:
        self.opened.append(channel)
        name = channel.removeprefix("public:")
        return self.stores.setdefault(name, ChannelStore(name, MemoryPubSub()))


async def ask(peer: Any, **request: Any) -> Any:
    payload = json.dumps(request).encode()
    await peer.send_frame(0x81, payload)
    return (await peer.frame()).json


SUBSCRIBERS = pytest.mark.parametrize(
    "path", ["/events?", "/events?format=json&", "/events?format=ndjson&", "/poll?", "/ws?"]
)


@SUBSCRIBERS
async def test_who_may_not_read_a_channel_is_told_so_at_every_door(serve: Any, channel_source: Any, path: str) -> None:
    source = channel_source()

    async def get(query: str) -> Any:
        peer = await server.connect()
        return await (peer.upgrade(path + query) if path == "/ws?" else peer.request(path + query))

    async with serve(routes=doors(source=source), source=source) as server:
        for query in ("channel=anna.x", "channel=public&channel=anna.x", "channel=anna.x&user=bob"):
            response = await get(query)
            assert (response.status, response.json) == (403, {"error": "you may not subscribe to 'anna.x'"})
        assert not source.stores  # nobody's question makes a channel
        assert (await get("channel=public&channel=anna.x&user=anna")).status in (101, 200)
        assert source.subscribers() == 2


async def test_a_head_says_what_a_get_would(serve: Any, channel_source: Any) -> None:
    async with serve(routes=doors(source=channel_source())) as server:
        assert (await server.request("/events?channel=anna.x", method="HEAD")).status == 403
        assert (await server.request("/events?channel=public", method="HEAD")).status == 200


async def test_who_may_not_publish_to_a_channel_is_told_so(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=doors(source=source)) as server:
        response = await server.post("/publish/public", b"x")
        assert (response.status, response.json) == (403, {"error": "you may not publish to 'public'"})
        assert not source.stores
        assert (await server.post("/publish/anna.x?user=anna", b"x")).status == 200


@pytest.mark.parametrize("named", [False, True])
async def test_of_a_lone_store_it_is_the_name_that_is_asked_about(serve: Any, channel_source: Any, named: bool) -> None:
    store = channel_source().open("news") if named else QueueStore()
    asked: list[str] = []

    class Asked(EventSource):
        def may_subscribe(self, channel: str) -> bool:
            asked.append(channel)
            return False

    class AskedToPublish(PublishHandler):
        def may_publish(self, channel: str) -> bool:
            asked.append(channel)
            return False

    routes = [("/asked", Asked, {"store": store}), ("/publish", AskedToPublish, {"store": store})]
    async with serve(routes=routes, store=store) as server:
        response = await server.request("/asked?channel=other")
        there = "to 'news'" if named else "here"
        assert (response.status, response.json) == (403, {"error": f"you may not subscribe {there}"})
        response = await server.post("/publish", b"x")
        assert (response.status, response.json) == (403, {"error": f"you may not publish {there}"})
    assert asked == (["news", "news"] if named else ["", ""])


async def test_nobody_comes_in_by_another_name_of_a_channel(serve: Any) -> None:
    source = Namespace()
    async with serve(routes=doors(source=source)) as server:
        response = await server.request("/events?channel=public:anna.x")
        assert (response.status, response.json) == (403, {"error": "you may not subscribe to 'anna.x'"})
        peer = await server.websocket("/ws")
        assert await ask(peer, subscribe="public:anna.x") == {"error": "you may not subscribe to 'anna.x'"}
        assert not any(store.subscribers for store in source.stores.values())
        assert (await server.request("/events?channel=public:anna.x&user=anna")).status == 200
        # Who calls themselves so may publish to what begins so.
        refused = {"error": "you may not publish to 'anna.x'"}
        response = await server.post("/publish/public:anna.x?user=public:anna", b"x")
        assert (response.status, response.json) == (403, refused)
        peer = await server.websocket("/ws?user=public:anna")
        assert await ask(peer, publish="public:anna.x", data=1) == refused
        assert source.stores["anna.x"].log.top == 0


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_a_rule_that_would_have_to_be_waited_for_lets_nobody_in(serve: Any) -> None:
    class Later(EventSource):
        async def may_subscribe(self, channel: str) -> bool:  # type: ignore[override]
            return True

        def log_exception(self, kind: Any, error: Any, traceback: Any) -> None:
            logged.append(str(error))

    logged: list[str] = []
    store = QueueStore()
    async with serve(routes=[("/later", Later, {"store": store})]) as server:
        assert (await server.request("/later")).status == 500
        assert not store.subscribers
    assert logged == ["may_subscribe is a plain function: what has to be waited for is found out in `prepare`"]


# Messages of a WebSocket


async def test_the_messages_of_a_websocket_are_asked_about_like_its_address(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(routes=doors(source=source)) as server:
        peer = await server.websocket("/ws?user=anna")
        assert await ask(peer, subscribe="bob.x", ref=1) == {"error": "you may not subscribe to 'bob.x'", "ref": 1}
        assert await ask(peer, publish="public", data=1) == {"error": "you may not publish to 'public'"}
        assert not source.stores
        assert "needs a name" in (await ask(peer, subscribe=""))["error"]
        assert "white space" in (await ask(peer, publish="anna. x", data=1))["error"]
        assert (await ask(peer, subscribe="anna.x"))["subscribed"] == "anna.x"
        await peer.send_frame(0x81, b'{"publish":"anna.x","data":"mine"}')
        said = [(await peer.frame()).json for _ in range(2)]
        assert {"mine"} == {each["data"] for each in said if "data" in each}
        assert {"anna.x"} == {each["published"] for each in said if "published" in each}


async def test_a_lone_store_is_asked_about_by_messages_as_well(serve: Any, channel_source: Any) -> None:
    store = channel_source().open("public")
    async with serve(routes=doors(store=store), store=store) as server:
        peer = await server.websocket("/ws?user=anna")
        assert await ask(peer, publish="public", data=1) == {"error": "you may not publish to 'public'"}
        assert store.log.top == 0


async def test_what_a_client_says_before_it_goes_is_asked_about_as_well(
    serve: Any, channel_source: Any, until: Any
) -> None:
    """The handler has gone with the connection when the message is dealt with."""
    source = channel_source()
    asked = []

    class Asked(WebSocketSubscriber):
        async def on_message(self, message: str | bytes) -> None:
            answering = super().on_message(message)
            assert answering is not None
            await until(lambda: not len(server.connections))
            await answering

        def may_publish(self, channel: str) -> bool:
            asked.append(channel)
            return False

    routes = [("/asked", Asked, {"source": source, "allow_publish": True})]
    async with serve(routes=routes) as server:
        peer = await server.websocket("/asked?channel=a")
        await peer.send_frame(0x81, b'{"publish":"a","data":1}')
        await asyncio.sleep(0)
        await until(lambda: len(server.connections) == 1)
        (outlet,) = server.connections
        await until(lambda: outlet.busy)
        outlet.close()
        await until(lambda: bool(asked))
        await asyncio.sleep(0)
    assert asked == ["a"]
    assert source.open("a").log.top == 0


async def test_a_handler_that_is_to_be_asked_lives_as_long_as_its_connection(
    serve: Any, channel_source: Any, until: Any
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Asked(WebSocketSubscriber):
        def prepare(self) -> None:
            alive.add(self)

        def may_publish(self, channel: str) -> bool:
            return True

    source = channel_source()
    async with serve(routes=[("/asked", Asked, {"source": source})]) as server:
        peer = await server.websocket("/asked?channel=a")
        gc.collect()
        assert len(alive) == 1
        gc.disable()  # it has to go without the collector
        try:
            peer.close()
            await until(lambda: not len(server.connections))
            await until(lambda: not alive)
        finally:
            gc.enable()
