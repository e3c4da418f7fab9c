"""WebSockets: the handshake, the frames, and what clients may and may not do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from waterspout_core import DataStore, QueueStore
from waterspout_handlers import WebSocketSubscriber


async def test_a_message_is_a_json_object_with_channel_data_and_id(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.websocket("/ws?channel=news")
        store = source.open("news")
        await store.submit({"x": "ž\n"})
        assert (await peer.frame()).json == {"channel": "news", "data": {"x": "ž\n"}, "id": str(store.log.position)}


async def test_a_named_event_has_its_name_and_a_lone_store_no_channel(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        await store.submit(0, "goal")
        assert (await peer.frame()).json == {"event": "goal", "data": 0, "id": str(store.log.position)}


async def test_the_current_value_of_a_data_store_comes_at_once(serve: Any) -> None:
    async with serve(store=DataStore("now")) as server:
        peer = await server.websocket("/ws")
        assert (await peer.frame()).json["data"] == "now"


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 1_000_000])
async def test_another_client_reads_frames_of_every_length(serve: Any, size: int) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        async with asyncio.timeout(10):
            client = await websocket_connect(f"ws://{server.host}/ws", max_message_size=2_000_000)
            around = len(json.dumps({"data": "", "id": f"{store.log.epoch}-1"}, separators=(",", ":")))
            await store.submit("x" * (size - around))
            await store.submit("next")
            message, following = await client.read_message(), await client.read_message()
        assert isinstance(message, str)
        assert len(message) == size
        assert json.loads(message)["data"] == "x" * (size - around)
        assert json.loads(following)["data"] == "next"
        client.close()
        async with asyncio.timeout(10):
            assert await client.read_message() is None


async def test_an_id_resumes_on_a_new_connection(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.websocket("/ws?channel=a&channel=b")
        for number in range(3):
            source.open("a").submit(f"a{number}")
            await source.open("b").submit(f"b{number}")
        messages = [(await peer.frame()).json for _ in range(6)]
        everything = sorted(message["data"] for message in messages)
        for cut, message in enumerate(messages, 1):
            again = await server.websocket(f"/ws?channel=a&channel=b&last_event_id={message['id']}")
            # Whatever it was sent too much would be there before the pong.
            rest = [(await again.frame()).json["data"] for _ in messages[cut:]]
            assert sorted([*(seen["data"] for seen in messages[:cut]), *rest]) == everything
            await again.send_frame(0x89, b"that is all")
            assert (await again.frame()).payload == b"that is all"


async def test_an_unknown_id_gets_one_gap_and_then_all_that_is_kept(serve: Any) -> None:
    store = QueueStore()
    await store.submit("kept")
    async with serve(store=store) as server:
        peer = await server.websocket("/ws?last_event_id=0123456789-7")
        gap, kept = (await peer.frame()).json, (await peer.frame()).json
        assert gap == {"event": "gap", "data": {"missed": None}, "id": f"{store.log.epoch}-0"}
        assert kept["data"] == "kept"


async def test_a_channel_named_twice_delivers_once(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.websocket("/ws?channel=a&channel=a")
        await source.open("a").submit("one")
        await source.open("a").submit("two")
        assert [(await peer.frame()).json["data"] for _ in range(2)] == ["one", "two"]


# Refusals


@pytest.mark.parametrize(
    ("path", "status"),
    [("/ws", 400), ("/ws?channel=", 400), ("/ws?channel=a%20b", 400), ("/ws?channel=a&last_event_id=x", 400)],
)
async def test_a_bad_request_is_refused_before_the_handshake(
    serve: Any, channel_source: Any, path: str, status: int
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await (await server.connect()).upgrade(path)
        assert response.status == status
        assert response.json["error"]
        assert source.subscribers() == 0


async def test_a_plain_request_is_told_to_upgrade(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await server.request("/ws?channel=a")
        assert response.status == 426
        assert "WebSocket" in response.json["error"]
        assert source.stores == {}


async def test_the_answer_426_names_the_protocol_to_upgrade_to(serve: Any) -> None:
    """A server must send Upgrade with 426 (RFC 9110, 15.5.22)."""
    async with serve(store=QueueStore()) as server:
        response = await server.request("/ws")
        assert response.headers.get("upgrade", "").lower() == "websocket"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
async def test_a_page_of_another_origin_is_refused(serve: Any, channel_source: Any, origin: str) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await (await server.connect()).upgrade("/ws?channel=a", Origin=origin)
        assert response.status == 403
        assert source.subscribers() == 0


async def test_a_page_of_the_same_origin_is_let_in(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await (await server.connect()).upgrade("/ws?channel=a", Origin=f"http://{server.host}")
        assert response.status == 101
        request = HTTPRequest(f"ws://{server.host}/ws?channel=a", headers={"Origin": f"http://{server.host}"})
        async with asyncio.timeout(10):
            client = await websocket_connect(request)
        client.close()


# What clients send


async def test_what_a_client_says_is_dropped_and_harms_nobody(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        await peer.send_frame(0x81, b"hello?")
        await peer.send_frame(0x82, b"\xff\x00")
        await peer.send_frame(0x89, b"ping")
        assert (await peer.frame()) == (0x8A, b"ping")
        store.submit("still here")
        assert (await peer.frame()).json["data"] == "still here"


async def test_a_close_frame_is_answered_and_the_peer_deregistered(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        await peer.send_frame(0x88, b"\x03\xe8")
        assert (await peer.frame()).close_code == 1000
        assert await peer.rest() == b""
        await until(lambda: not store.subscribers)


@pytest.mark.parametrize(
    ("first", "payload"),
    [
        pytest.param(0x83, b"", id="a reserved opcode"),
        pytest.param(0xC1, b"x", id="a reserved bit"),
        pytest.param(0x81, b"\xff", id="bad UTF-8"),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_thrown_out(
    serve: Any, until: Any, first: int, payload: bytes
) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        await peer.send_frame(first, payload)
        await until(lambda: not store.subscribers)
        await peer.rest()


async def test_an_oversized_message_of_a_client_throws_it_out(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store, websocket_max_message_size=10) as server:
        peer = await server.websocket("/ws")
        await peer.send_frame(0x81, b"x" * 11)
        assert (await peer.frame()).close_code == 1009
        await until(lambda: not store.subscribers)


async def test_no_message_follows_the_close_frame_of_a_handler(serve: Any, until: Any) -> None:
    """RFC 6455, 5.5.1: an application must not send any more data frames after sending a Close frame."""
    store = QueueStore()

    class Bouncer(WebSocketSubscriber):
        def on_message(self, message: str | bytes) -> None:
            self.close(4000, "out")

    async with serve(routes=[("/bouncer", Bouncer, {"store": store})], store=store) as server:
        peer = await server.websocket("/bouncer")
        await peer.send_frame(0x81, b"hello")
        assert (await peer.frame()).close_code == 4000
        store.submit("too late")
        await peer.send_frame(0x88, b"\x0f\xa0")  # the client agrees
        assert await peer.rest() == b""
        await until(lambda: not store.subscribers)


async def test_a_handler_may_greet_its_subscribers(serve: Any) -> None:
    store = QueueStore()

    class Polite(WebSocketSubscriber):
        def open(self, *args: str, **kwargs: str) -> None:
            self.write_message("welcome")
            super().open(*args, **kwargs)

    async with serve(routes=[("/polite", Polite, {"store": store})], store=store) as server:
        peer = await server.websocket("/polite")
        store.submit("first")
        assert (await peer.frame()).payload == b"welcome"
        assert (await peer.frame()).json["data"] == "first"
