"""WebSockets: the handshake, the frames, what clients may ask for, and the hooks of handlers."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, websocket_connect

from waterspout_core import DataStore, QueueStore, Submitted
from waterspout_handlers import Connections, WebSocketSubscriber
from waterspout_handlers._goodbye import AGED
from waterspout_handlers._socket import Socket


async def ask(peer: Any, **request: Any) -> Any:
    """The answer to `request`, which is the next thing that comes."""
    await send_text(peer, json.dumps(request))
    return (await peer.frame()).json


async def send_text(peer: Any, text: str) -> None:
    payload = text.encode()
    head = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    await peer.send(b"\x81" + head + bytes(4) + payload)  # a mask of zeros


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
    [("/ws?channel=", 400), ("/ws?channel=a%20b", 400), ("/ws?channel=a&last_event_id=x", 400)],
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


# The handshake


async def test_the_key_is_answered_as_in_the_example(serve: Any) -> None:
    """RFC 6455, 1.3."""
    async with serve(store=QueueStore()) as server:
        response = await (await server.connect()).upgrade("/ws", **{"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
        assert response.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert response.headers["upgrade"] == "websocket"
        assert response.headers["connection"] == "Upgrade"
        assert "content-length" not in response.headers


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Sec-WebSocket-Version", "8", 426),
        ("Sec-WebSocket-Version", "", 426),
        ("Sec-WebSocket-Key", "", 400),
        ("Sec-WebSocket-Key", "c2hvcnQ=", 400),
        ("Connection", "keep-alive", 400),
        ("Upgrade", "h2c", 426),
        ("Sec-WebSocket-Extensions", "permessage-deflate; =", 400),
    ],
)
async def test_a_bad_handshake_is_refused(
    serve: Any, channel_source: Any, header: str, value: str, status: int
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        response = await (await server.connect()).upgrade("/ws?channel=a", **{header: value})
        assert response.status == status
        assert response.json["error"]
        assert source.stores == {}
        if status == 426:
            assert response.headers["sec-websocket-version"] == "13"


async def test_a_handshake_in_http_1_0_is_refused(serve: Any) -> None:
    async with serve(store=QueueStore()) as server:
        peer = await server.connect()
        response = await peer.request("/ws", version="HTTP/1.0", headers={"Upgrade": "websocket"})
        assert response.status == 426


async def test_browsers_name_several_options_of_a_connection(serve: Any) -> None:
    async with serve(store=QueueStore()) as server:
        response = await (await server.connect()).upgrade("/ws", Connection="keep-alive, Upgrade", Upgrade="WebSocket")
        assert response.status == 101


async def test_a_subprotocol_is_selected_by_the_handler(serve: Any) -> None:
    offers: list[list[str]] = []

    class Choosy(WebSocketSubscriber):
        def select_subprotocol(self, subprotocols: list[str]) -> str | None:
            offers.append(subprotocols)
            return subprotocols[-1] if subprotocols else None

    async with serve(routes=[("/choosy", Choosy, {"store": QueueStore()})], store=QueueStore()) as server:
        response = await (await server.connect()).upgrade("/choosy", **{"Sec-WebSocket-Protocol": "a, b"})
        assert response.headers["sec-websocket-protocol"] == "b"
        response = await (await server.connect()).upgrade("/choosy")
        assert "sec-websocket-protocol" not in response.headers
        response = await (await server.connect()).upgrade("/ws", **{"Sec-WebSocket-Protocol": "a, b"})
        assert "sec-websocket-protocol" not in response.headers
    assert offers == [["a", "b"], []]


@pytest.mark.parametrize("allowed", ["*", ["https://friend.example"]])
async def test_pages_of_other_origins_are_let_in_where_the_route_says_so(serve: Any, allowed: Any) -> None:
    async with serve(store=QueueStore(), door={"allow_origins": allowed}) as server:
        response = await (await server.connect()).upgrade("/ws", Origin="https://friend.example")
        assert response.status == 101
        response = await (await server.connect()).upgrade("/ws", Origin="https://evil.example")
        assert response.status == (101 if allowed == "*" else 403)


async def test_a_handler_may_decide_about_origins(serve: Any) -> None:
    class Trusting(WebSocketSubscriber):
        def check_origin(self, origin: str) -> bool:
            return origin.endswith(".friend.example")

    async with serve(routes=[("/trusting", Trusting, {"store": QueueStore()})], store=QueueStore()) as server:
        for origin, status in (("https://a.friend.example", 101), ("https://evil.example", 403)):
            assert (await (await server.connect()).upgrade("/trusting", Origin=origin)).status == status


async def test_messages_are_compressed_where_both_can_and_may(serve: Any) -> None:
    store = QueueStore()
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    routes = [("/plain", WebSocketSubscriber, {"store": store, "compress": False})]
    async with serve(routes=routes, store=store) as server:
        compressed, plain, old = [await server.connect() for _ in range(3)]
        response = await compressed.upgrade("/ws", **offer)
        answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        assert response.headers["sec-websocket-extensions"] == answer
        assert "sec-websocket-extensions" not in (await plain.upgrade("/plain", **offer)).headers
        assert "sec-websocket-extensions" not in (await old.upgrade("/ws")).headers
        store.submit("x" * 1000)
        assert (await compressed.frame()).first == 0xC1
        assert (await plain.frame()).json == (await old.frame()).json


async def test_another_client_reads_compressed_messages(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server, asyncio.timeout(10):
        client = await websocket_connect(f"ws://{server.host}/ws", compression_options={})
        for size in (10, 300, 100_000):
            store.submit("x" * size)
            message = await client.read_message()
            assert json.loads(message or "")["data"] == "x" * size
        await client.write_message(json.dumps({"subscribe": "x" * 1000}))
        assert json.loads(await client.read_message() or "")["error"]
        client.close()
        assert await client.read_message() is None
        assert client.close_code is None


async def test_what_comes_with_the_handshake_is_read(serve: Any, channel_source: Any) -> None:
    async with serve(source=channel_source()) as server:
        peer = await server.connect()
        head = "".join(
            f"{name}: {value}\r\n"
            for name, value in {
                "Host": server.host,
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }.items()
        )
        await peer.send(f"GET /ws HTTP/1.1\r\n{head}\r\n".encode() + b"\x89\x81\0\0\0\0?\x81\x82\0\0\0\0{}")
        assert (await peer.read_response()).status == 101
        assert await peer.frame() == (0x8A, b"?")
        assert (await peer.frame()).json["error"]


@pytest.mark.parametrize("compress_response", [False, True])
async def test_a_handshake_is_in_the_access_log_once(serve: Any, until: Any, compress_response: bool) -> None:
    logged: list[tuple[int, str]] = []

    def log(handler: Any) -> None:
        logged.append((handler.get_status(), handler.request.uri))

    async with serve(store=QueueStore(), log_function=log, compress_response=compress_response) as server:
        peer = await server.websocket("/ws")
        assert logged == [(101, "/ws")]
        await peer.send_frame(0x88, b"\x03\xe8")
        await peer.rest()
        peer.close()
        await until(lambda: not len(server.connections))
    assert logged == [(101, "/ws")]


async def test_the_hooks_of_a_request_work(serve: Any) -> None:
    finished = []

    class Guarded(WebSocketSubscriber):
        def set_default_headers(self) -> None:
            self.set_header("X-Served-By", "guard")

        def get_current_user(self) -> str | None:
            return self.get_argument("user", None)

        def prepare(self) -> None:
            if self.current_user is None:
                raise HTTPError(401)

        def on_finish(self) -> None:
            finished.append(self.get_status())

    async with serve(routes=[("/guarded", Guarded, {"store": QueueStore()})], store=QueueStore()) as server:
        assert (await (await server.connect()).upgrade("/guarded")).status == 401
        response = await (await server.connect()).upgrade("/guarded?user=me")
        assert response.status == 101
        assert response.headers["x-served-by"] == "guard"
    assert finished == [401, 101]


async def test_no_more_than_may_be_are_let_in(serve: Any) -> None:
    async with serve(store=QueueStore(), connections=Connections(max_connections=1)) as server:
        await server.websocket("/ws")
        response = await (await server.connect()).upgrade("/ws")
        assert response.status == 503
        assert int(response.headers["retry-after"]) >= 1
        assert server.connections.counts.refused == 1


async def test_a_handler_without_hooks_lives_for_the_handshake_only(serve: Any, until: Any) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Silent(WebSocketSubscriber):
        def prepare(self) -> None:
            alive.add(self)

    class Attentive(Silent):
        def on_pong(self, data: bytes) -> None:
            pass

    store = QueueStore()
    async with serve(routes=[("/s", Silent, {"store": store}), ("/a", Attentive, {"store": store})], store=store) as s:
        gc.disable()  # not when the collector comes by
        try:
            silent = await s.websocket("/s")
            await until(lambda: not alive)
            assert len(store.subscribers) == 1
            attentive = await s.websocket("/a")
            assert len(alive) == 1
            attentive.close()
            await until(lambda: len(store.subscribers) == 1)
            silent.close()
        finally:
            gc.enable()
        gc.collect()
        await until(lambda: not alive)


# Who is there


async def test_who_answers_a_ping_stays(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store, connections=Connections(heartbeat=0)) as server:
        peer = await server.websocket("/ws")
        (outlet,) = server.connections
        for _ in range(5):
            outlet.beat()
            assert await peer.frame() == (0x89, b"")
            await peer.send_frame(0x8A, b"")
            await peer.send_frame(0x89, b"heard")
            assert await peer.frame() == (0x8A, b"heard")
        assert len(store.subscribers) == 1
        assert server.connections.counts.silent == 0


async def test_who_is_not_heard_of_for_a_heartbeat_is_closed_with_1011(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store, connections=Connections(heartbeat=0.05)) as server:
        peer = await server.websocket("/ws")
        assert await peer.frame() == (0x89, b"")
        frame = await peer.frame()
        assert frame.close_code == 1011
        assert frame.payload[2:]
        assert server.connections.counts.silent == 1
        await until(lambda: not store.subscribers)


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each heartbeat."""
    seen: list[int] = []
    beat = Socket.beat

    def counted(self: Socket) -> None:
        seen.append(1)
        beat(self)

    monkeypatch.setattr(Socket, "beat", counted)
    return seen


async def test_who_cannot_be_heard_since_we_do_not_listen_is_not_silent(
    serve: Any, hesitant_store: Any, until: Any, beats: list[int]
) -> None:
    class Slow:
        def open(self, channel: str) -> Any:
            return hesitant_store

    async with serve(source=Slow(), connections=Connections(heartbeat=0.02)) as server:
        peer = await server.websocket("/ws")
        await send_text(peer, '{"subscribe":"a"}')
        await until(lambda: hesitant_store.waiting)
        beats.clear()
        await until(lambda: len(beats) > 5)
        assert server.connections.counts.silent == 0
        hesitant_store.waiting[0].set_result(None)
        frame = await peer.frame()
        while frame.first == 0x89:
            frame = await peer.frame()
        assert frame.json["subscribed"] == "a"


async def test_f53_who_reads_slowly_is_not_silent(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store, send_buffer=4096, connections=Connections(heartbeat=0)) as server:
        peer = await server.websocket("/ws", receive_buffer=4096)
        (outlet,) = server.connections
        outlet.beat()
        await store.submit("x" * 1_000_000)
        await until(lambda: server.streams[0].writing())
        for _ in range(3):
            outlet.beat()
        assert await peer.frame() == (0x89, b"")
        assert len((await peer.frame()).json["data"]) == 1_000_000
        await until(lambda: not server.streams[0].writing())
        outlet.beat()
        assert await peer.frame() == (0x89, b"")


async def test_who_is_about_to_go_is_not_silent(serve: Any) -> None:
    async with serve(store=QueueStore(), connections=Connections(heartbeat=0)) as server:
        peer = await server.websocket("/ws")
        (outlet,) = server.connections
        outlet.end(AGED)
        for _ in range(3):
            outlet.beat()
        assert (await peer.frame()).close_code == 1012
        assert server.connections.counts.silent == 0


# Hooks of handlers


@pytest.fixture
def hooked(serve: Any) -> Callable[..., Any]:
    """`async with hooked(Handler) as server`: routed at `/hooked/ARGUMENT` with a store, as `/ws` is."""

    def hooked(handler: type[WebSocketSubscriber], **options: Any) -> Any:
        store = options.pop("store", None) or QueueStore()
        return serve(routes=[(r"/hooked/(?P<name>\w+)", handler, {"store": store})], store=store, **options)

    return hooked


async def test_no_message_follows_the_close_frame_of_a_handler(serve: Any, until: Any) -> None:
    """RFC 6455, 5.5.1: an application must not send any more data frames after sending a Close frame."""
    store = QueueStore()

    seen = []

    class Bouncer(WebSocketSubscriber):
        def on_message(self, message: str | bytes) -> None:
            seen.append(message)
            self.close(4000, "out")

    async with serve(routes=[("/bouncer", Bouncer, {"store": store})], store=store) as server:
        peer = await server.websocket("/bouncer")
        await peer.send(b"\x81\x85\0\0\0\0hello" * 2)
        assert (await peer.frame()).close_code == 4000
        assert seen == ["hello"]
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


async def test_messages_of_both_sides_wait_until_a_handler_is_open(hooked: Any, until: Any) -> None:
    opened = asyncio.Event()
    seen: list[str | bytes] = []

    class Slow(WebSocketSubscriber):
        async def open(self, *args: str, **kwargs: str) -> None:
            seen.append(kwargs["name"])
            await opened.wait()
            await self.write_message("welcome")

        def on_message(self, message: str | bytes) -> None:
            seen.append(message)

    store = DataStore("now")
    async with hooked(Slow, store=store) as server:
        peer = await server.websocket("/hooked/Ann")
        await send_text(peer, "hello")
        assert seen == ["Ann"]
        opened.set()
        assert (await peer.frame()).payload == b"welcome"
        assert (await peer.frame()).json["data"] == "now"
        await until(lambda: seen == ["Ann", "hello"])


async def test_a_handler_that_waits_gets_one_message_at_a_time(hooked: Any) -> None:
    class Slow(WebSocketSubscriber):
        busy = False

        async def on_message(self, message: str | bytes) -> None:
            assert not self.busy
            self.busy = True
            await asyncio.sleep(0.001)
            self.busy = False
            await self.write_message(message)

    async with hooked(Slow) as server:
        peer = await server.websocket("/hooked/x")
        for number in range(20):
            await send_text(peer, str(number))
        assert [(await peer.frame()).payload for _ in range(20)] == [b"%d" % number for number in range(20)]


async def test_a_handler_may_leave_to_ours_what_are_requests(serve: Any, channel_source: Any) -> None:
    class Talkative(WebSocketSubscriber):
        def on_message(self, message: str | bytes) -> Awaitable[None] | None:
            if message == "hello":
                self.write_message({"hello": "you"})
                return None
            return super().on_message(message)

    source = channel_source()
    async with serve(routes=[("/talk", Talkative, {"source": source})], source=source) as server:
        peer = await server.websocket("/talk")
        await send_text(peer, "hello")
        assert (await peer.frame()).json == {"hello": "you"}
        assert (await ask(peer, subscribe="news"))["subscribed"] == "news"
        await peer.send_frame(0x82, b"?")
        assert (await peer.frame()).close_code == 1003


async def test_a_handler_hears_of_pings_and_pongs_and_of_the_end(hooked: Any, until: Any) -> None:
    heard: list[Any] = []

    class Curious(WebSocketSubscriber):
        def open(self, *args: str, **kwargs: str) -> None:
            self.ping("how are you?")

        async def on_ping(self, data: bytes) -> None:
            heard.append(("ping", data))

        def on_pong(self, data: bytes) -> None:
            heard.append(("pong", data))

        def on_close(self) -> None:
            heard.append((self.close_code, self.close_reason))

    async with hooked(Curious) as server:
        peer = await server.websocket("/hooked/x")
        assert await peer.frame() == (0x89, b"how are you?")
        await peer.send_frame(0x8A, b"how are you?")
        await peer.send_frame(0x89, b"and you?")
        assert await peer.frame() == (0x8A, b"and you?")
        await peer.send_frame(0x88, b"\x0f\xa0bye")
        assert (await peer.frame()).close_code == 4000
        peer.close()
        await until(lambda: len(heard) == 3)
        assert heard == [("pong", b"how are you?"), ("ping", b"and you?"), (4000, "bye")]


async def test_a_handler_hears_of_a_client_that_is_gone_once(hooked: Any, until: Any) -> None:
    heard: list[Any] = []

    class Curious(WebSocketSubscriber):
        def on_close(self) -> None:
            heard.append((self.close_code, self.close_reason))
            with pytest.raises(WebSocketClosedError):
                self.write_message("too late")
            with pytest.raises(WebSocketClosedError):
                self.ping()
            self.close()

    async with hooked(Curious) as server:
        peer = await server.websocket("/hooked/x")
        peer.reset()
        await until(lambda: heard)
    assert heard == [(None, None)]


async def test_a_goodbye_without_a_code_leaves_a_handler_without_one(hooked: Any, until: Any) -> None:
    heard: list[Any] = []

    class Curious(WebSocketSubscriber):
        def on_close(self) -> None:
            heard.append((self.close_code, self.close_reason))

    async with hooked(Curious) as server:
        peer = await server.websocket("/hooked/x")
        await peer.send_frame(0x88, b"")
        assert await peer.frame() == (0x88, b"")
        peer.close()
        await until(lambda: heard == [(None, None)])


async def test_a_handler_writes_text_bytes_and_objects(hooked: Any) -> None:
    class Writer(WebSocketSubscriber):
        async def on_message(self, message: str | bytes) -> None:
            await self.write_message("ž")
            await self.write_message(b"\xff\x00", binary=True)
            await self.write_message({"a": 1})
            self.write_message(b"x" * 70000)
            self.close()

    async with hooked(Writer) as server:
        peer = await server.websocket("/hooked/x")
        await send_text(peer, "go")
        assert await peer.frame() == (0x81, "ž".encode())
        assert await peer.frame() == (0x82, b"\xff\x00")
        assert (await peer.frame()).json == {"a": 1}
        assert await peer.frame() == (0x81, b"x" * 70000)
        assert await peer.frame() == (0x88, b"")


async def test_whoever_waits_for_what_it_writes_waits_for_the_client(hooked: Any, until: Any) -> None:
    written = []

    class Flood(WebSocketSubscriber):
        async def on_message(self, message: str | bytes) -> None:
            try:
                while True:
                    await self.write_message(b"x" * 100_000)
                    written.append(len(written))
                    assert len(written) < 1000
            except WebSocketClosedError:
                written.append(-1)

    async with hooked(Flood, send_buffer=4096) as server:
        peer = await server.websocket("/hooked/x", receive_buffer=4096)
        await send_text(peer, "go")
        assert len((await peer.frame()).payload) == 100_000
        assert len(written) < 10
        peer.reset()
        await until(lambda: written[-1:] == [-1])


async def test_a_page_of_a_template_may_be_sent_by_a_handler_that_stays(hooked: Any, tmp_path: Any) -> None:
    (tmp_path / "page.html").write_text("hello {{ name }}")

    class Pages(WebSocketSubscriber):
        def on_message(self, message: str | bytes) -> None:
            self.write_message(self.render_string("page.html", name=message))

    async with hooked(Pages, template_path=str(tmp_path)) as server:
        peer = await server.websocket("/hooked/x")
        await send_text(peer, "Ann")
        assert (await peer.frame()).payload == b"hello Ann"


@pytest.mark.parametrize(
    ("hook", "later"),
    [
        *((hook, later) for hook in ("open", "on_message", "on_ping", "on_pong") for later in (False, True)),
        ("on_close", False),
    ],
)
async def test_a_hook_that_fails_is_logged_and_ends_its_connection_only(
    hooked: Any, until: Any, hook: str, later: bool
) -> None:
    logged = []

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    async def fail_later(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    def log_exception(self: Any, typ: Any, value: Any, traceback: Any) -> None:
        logged.append(typ)

    members = {hook: fail_later if later else fail, "log_exception": log_exception}
    store = QueueStore()
    async with hooked(type("Failing", (WebSocketSubscriber,), members), store=store) as server:
        other = await server.websocket("/ws")
        peer = await server.websocket("/hooked/x")
        for first in (0x89, 0x8A, 0x81):
            await peer.send_frame(first, b"")
        if hook == "on_close":
            peer.close()
        else:
            frame = await peer.frame()
            while frame.first == 0x8A:
                frame = await peer.frame()
            assert frame.close_code == 1011
        await until(lambda: len(store.subscribers) == 1)
        await until(lambda: logged == [ZeroDivisionError])
        await store.submit("still here")
        assert (await other.frame()).json["data"] == "still here"


async def test_a_code_that_may_not_be_sent_is_refused_where_it_is_said(hooked: Any) -> None:
    refused = []

    class Wrong(WebSocketSubscriber):
        def on_message(self, message: str | bytes) -> None:
            for code in (1004, 1006, 5000):
                try:
                    self.close(code)
                except ValueError:
                    refused.append(code)
            self.write_message("still open")

    async with hooked(Wrong) as server:
        peer = await server.websocket("/hooked/x")
        await send_text(peer, "go")
        assert (await peer.frame()).payload == b"still open"
    assert refused == [1004, 1006, 5000]


async def test_a_subscriber_of_tornadose_works_as_it_did(serve: Any) -> None:
    """B23: a handler of one's own, over a store of one's own."""

    class Log(QueueStore):
        def submit(self, data: Any, event: str | None = None) -> Submitted:
            return super().submit(str(data).upper(), event)

    class Chat(WebSocketSubscriber):
        def initialize(self, store: Any) -> None:  # type: ignore[override]
            super().initialize(store=store)

        def on_message(self, message: str | bytes) -> None:
            assert self.store is not None
            self.store.submit(message)

    store = Log()
    async with serve(routes=[("/chat", Chat, {"store": store})], store=store) as server:
        peers = [await server.websocket("/chat") for _ in range(3)]
        await send_text(peers[0], "hello")
        assert [(await peer.frame()).json["data"] for peer in peers] == ["HELLO"] * 3
