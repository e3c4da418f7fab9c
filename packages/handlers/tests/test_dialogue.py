"""What the clients of a WebSocket may ask for by messages, and what is answered."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from waterspout_core import BrokerError, History, MemoryPubSub, QueueStore, Submitted
from waterspout_handlers import Connections


async def ask(peer: Any, **request: Any) -> Any:
    """The answer to `request`, which is the next thing that comes."""
    await send_text(peer, json.dumps(request))
    return (await peer.frame()).json


async def send_text(peer: Any, text: str) -> None:
    payload = text.encode()
    head = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    await peer.send(b"\x81" + head + bytes(4) + payload)  # a mask of zeros


async def test_a_client_subscribes_and_unsubscribes_by_messages(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.websocket("/ws")
        answer = await ask(peer, subscribe="news")
        assert answer == {"subscribed": "news", "id": str(source.open("news").log.position)}
        await source.open("news").submit("one")
        assert (await peer.frame()).json["data"] == "one"
        assert await ask(peer, unsubscribe="news", ref=7) == {"unsubscribed": "news", "ref": 7}
        await source.open("news").submit("two")
        assert await ask(peer, subscribe="other", ref="x") == {
            "subscribed": "other",
            "id": str(source.open("other").log.position),
            "ref": "x",
        }
        assert source.subscribers() == 1


async def test_the_id_of_an_answer_and_of_each_message_carries_all_channels(serve: Any, channel_source: Any) -> None:
    """E2."""
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.websocket("/ws?channel=a")
        await source.open("a").submit("a1")
        await peer.frame()
        answer = await ask(peer, subscribe="b")
        a, b = source.open("a").log, source.open("b").log
        assert answer["id"] == f"{a.position},{b.position}"
        await source.open("b").submit("b1")
        message = (await peer.frame()).json
        assert sorted(message["id"].split(",")) == sorted([str(a.position), str(b.position)])
        await source.open("a").submit("a2")
        await source.open("b").submit("b2")
        again = await server.websocket(f"/ws?channel=a&channel=b&last_event_id={message['id']}")
        assert sorted([(await again.frame()).json["data"], (await again.frame()).json["data"]]) == ["a2", "b2"]


async def test_a_subscription_resumes_behind_an_id_and_its_answer_comes_first(serve: Any, channel_source: Any) -> None:
    source = channel_source(MemoryPubSub(history=History()))
    async with serve(source=source) as server:
        positions = [str(await source.open("news").submit(number)) for number in range(5)]
        peer = await server.websocket("/ws")
        assert await ask(peer, subscribe="news", last_event_id=positions[2]) == {
            "subscribed": "news",
            "id": positions[2],
        }
        assert [(await peer.frame()).json["data"] for _ in range(2)] == [3, 4]
        other = await server.websocket("/ws")
        await ask(other, subscribe="news", last_event_id="earliest")
        assert [(await other.frame()).json["data"] for _ in range(5)] == [0, 1, 2, 3, 4]
        # As in the address, an empty one is none.
        new = await server.websocket("/ws")
        assert (await ask(new, subscribe="news", last_event_id=""))["id"] == positions[4]
        unknown = await server.websocket("/ws")
        await ask(unknown, subscribe="news", last_event_id="0123456789-7")
        assert (await unknown.frame()).json["event"] == "gap"


async def test_a_client_publishes_where_it_may(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source, door={"allow_publish": True}) as server:
        reader = await server.websocket("/ws?channel=news")
        peer = await server.websocket("/ws")
        answer = await ask(peer, publish="news", data={"x": [1, None]}, event="goal", ref="r")
        assert answer == {"published": "news", "id": str(source.open("news").log.position), "ref": "r"}
        message = (await reader.frame()).json
        assert (message["data"], message["event"], message["id"]) == ({"x": [1, None]}, "goal", answer["id"])
        assert "published" in await ask(peer, publish="news", data=None)


async def test_what_was_published_with_a_key_is_not_published_again(serve: Any, channel_source: Any) -> None:
    source = channel_source(MemoryPubSub(history=History()))
    async with serve(source=source, door={"allow_publish": True}) as server:
        peer = await server.websocket("/ws")
        first = await ask(peer, publish="news", data=1, key="k")
        assert await ask(peer, publish="news", data=1, key="k") == first
        assert (await ask(peer, publish="news", data=1, key="l"))["id"] != first["id"]


async def test_a_lone_store_is_published_to_by_its_name(serve: Any, channel_source: Any) -> None:
    store = channel_source().open("news")
    async with serve(store=store, door={"allow_publish": True}) as server:
        peer = await server.websocket("/ws")
        assert "no channel" in (await ask(peer, publish="other", data=1))["error"]
        await send_text(peer, '{"publish":"news","data":1}')
        said = [(await peer.frame()).json for _ in range(2)]
        assert {"published": "news", "id": str(store.log.position)} in said


WRONG = [
    ("hello?", "not JSON"),
    ("", "not JSON"),
    ("[1]", "JSON object"),
    ('"subscribe"', "JSON object"),
    ("{}", "one of subscribe, unsubscribe, publish"),
    ('{"subscribe": "a", "publish": "a"}', "one of"),
    ('{"subscribe": 7}', "subscribe names one channel, a text, not 7"),
    ('{"subscribe": null}', "subscribe names one channel"),
    ('{"subscribe": ["a", "b"]}', "subscribe names one channel, a text, not ['a', 'b']"),
    ('{"publish": ["a"], "data": 1}', "publish names one channel"),
    ('{"subscribe": ""}', "needs a name"),
    ('{"subscribe": "a b"}', "white space"),
    ('{"subscribe": "\\ud800"}', "Unicode"),
    ('{"subscribe": "a", "last_event_id": 7}', "last_event_id is a text"),
    ('{"subscribe": "a", "last_event_id": "x"}', "bad last_event_id"),
    ('{"subscribe": "a", "last_event": "x"}', "'last_event'"),
    ('{"subscribe": "already"}', "already"),
    ('{"unsubscribe": "a"}', "not subscribed"),
    ('{"unsubscribe": {"a": []}}', "unsubscribe names one channel"),
    ('{"publish": "a"}', "data is missing"),
    ('{"publish": "a", "data": NaN}', "not JSON"),
    ('{"publish": "a", "data": 1e999}', "JSON"),
    ('{"publish": "a", "data": "\\ud800"}', "Unicode"),
    ('{"publish": "a", "data": 1, "event": 7}', "event is a text"),
    ('{"publish": "a", "data": 1, "event": "gap"}', "gap"),
    ('{"publish": "a", "data": 1, "key": ["k"]}', "key is a text"),
    ('{"publish": "a", "data": 1, "key": "k"}', "history"),
    ('{"subscribe": "a", "ref": {}}', "ref is a text"),
    ('{"subscribe": "a", "ref": 1e999}', "ref is a text"),
    ("[" * 60000, "nested too deeply"),
    ("1" * 5000, "not JSON"),
]


@pytest.mark.parametrize(("text", "explanation"), WRONG, ids=[text[:40] for text, _ in WRONG])
async def test_what_is_no_request_is_answered_with_what_is_wrong(
    serve: Any, channel_source: Any, text: str, explanation: str
) -> None:
    source = channel_source()
    async with serve(source=source, door={"allow_publish": True}) as server:
        peer = await server.websocket("/ws?channel=already")
        await send_text(peer, text)
        answer = (await peer.frame()).json
        assert list(answer) == ["error"]
        assert explanation in answer["error"]
        assert source.subscribers() == 1
        await source.open("already").submit("still here")
        assert (await peer.frame()).json["data"] == "still here"


async def test_an_error_repeats_the_ref_of_its_request(serve: Any, channel_source: Any) -> None:
    async with serve(source=channel_source()) as server:
        peer = await server.websocket("/ws")
        answer = await ask(peer, unsubscribe="news", ref="\ud800\u017e")
        assert answer["ref"] == "\ud800\u017e"
        assert answer["error"]


async def test_nobody_may_do_what_the_route_does_not_allow(serve: Any, channel_source: Any) -> None:
    async with serve(source=channel_source(), door={"allow_subscribe": False}) as server:
        assert (await (await server.connect()).upgrade("/ws")).status == 400
        peer = await server.websocket("/ws?channel=a")
        for request in ({"subscribe": "b"}, {"unsubscribe": "a"}, {"publish": "a", "data": 1}):
            assert list(await ask(peer, **request)) == ["error"]
    async with serve(store=QueueStore()) as server:
        peer = await server.websocket("/ws")
        assert list(await ask(peer, subscribe="b")) == ["error"]


async def test_a_connection_reads_as_many_channels_as_it_may(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source, connections=Connections(max_channels=2)) as server:
        peer = await server.websocket("/ws?channel=a")
        assert "subscribed" in await ask(peer, subscribe="b")
        assert "at most 2" in (await ask(peer, subscribe="c"))["error"]
        assert "unsubscribed" in await ask(peer, unsubscribe="a")
        assert "subscribed" in await ask(peer, subscribe="c")
        assert source.subscribers() == 2


async def test_a_binary_message_closes_with_1003(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        await peer.send_frame(0x82, b"\xff\x00")
        assert (await peer.frame()).close_code == 1003
        await peer.send_frame(0x88, b"\x03\xeb")
        assert await peer.rest() == b""
        await until(lambda: not store.subscribers)


async def test_requests_are_answered_in_order_and_nothing_is_read_meanwhile(
    serve: Any, hesitant_store: Any, until: Any
) -> None:
    class Slow:
        def open(self, channel: str) -> Any:
            return hesitant_store

    async with serve(source=Slow(), door={"allow_publish": True}) as server:
        peer = await server.websocket("/ws")
        await send_text(peer, '{"publish":"a","data":1,"ref":1}')
        await until(lambda: len(hesitant_store.waiting) == 1)
        await send_text(peer, '{"publish":"b","data":2,"ref":2}')
        await send_text(peer, '{"nonsense":0,"ref":3}')
        for number in (1, 2):
            await until(lambda number=number: len(hesitant_store.waiting) == number)
            (stream,) = server.streams
            assert not stream.reading()
            hesitant_store.waiting[-1].set_result(None)
            assert (await peer.frame()).json["ref"] == number
        assert (await peer.frame()).json["ref"] == 3
        await peer.send_frame(0x89, b"?")
        assert (await peer.frame()).payload == b"?"


async def test_a_client_that_goes_while_its_request_is_under_way_leaves_nothing_behind(
    serve: Any, hesitant_store: Any, until: Any
) -> None:
    class Slow:
        def open(self, channel: str) -> Any:
            return hesitant_store

    async with serve(source=Slow()) as server:
        peer = await server.websocket("/ws")
        await send_text(peer, '{"subscribe":"a"}')
        await until(lambda: len(hesitant_store.waiting) == 1)
        peer.reset()
        hesitant_store.waiting[0].set_result(None)
        await until(lambda: not len(server.connections) and not hesitant_store.subscribers)


async def test_a_broker_that_cannot_is_an_error_and_no_end(serve: Any) -> None:
    class Away(QueueStore):
        def submit(self, data: Any, event: str | None = None) -> Submitted:
            raise BrokerError("the broker is away")

    class Source:
        def open(self, channel: str) -> Any:
            return Away()

    async with serve(source=Source(), door={"allow_publish": True}) as server:
        peer = await server.websocket("/ws")
        assert await ask(peer, publish="a", data=1) == {"error": "the broker is away"}


async def test_a_store_that_fails_ends_the_connection_with_1011(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(QueueStore):
        def submit(self, data: Any, event: str | None = None) -> Submitted:
            raise ZeroDivisionError

    class Source:
        def open(self, channel: str) -> Any:
            return Broken()

    monkeypatch.setattr(logging.getLogger("waterspout.handlers"), "propagate", False)
    async with serve(source=Source(), door={"allow_publish": True}) as server:
        peer = await server.websocket("/ws")
        await send_text(peer, '{"publish":"a","data":1}')
        assert (await peer.frame()).close_code == 1011
