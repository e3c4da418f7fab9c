"""WebSockets against clients that do all the protocol allows, and what it does not, on real sockets (RFC 6455)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from waterspout_core import QueueStore
from waterspout_handlers import Connections, WebSocketSubscriber
from waterspout_handlers._goodbye import AGED

KEY = b"\x37\xfa\x21\x3d"


class Echo(WebSocketSubscriber):
    """Gives back each message, once."""

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message, binary=isinstance(message, bytes))


def masked(first: int, payload: bytes = b"", size: int | None = None) -> bytes:
    """A frame as a client sends it; it may lie about the size of its payload."""
    size = len(payload) if size is None else size
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    stream = KEY * (len(payload) // 4 + 1)
    return bytes([first]) + length + KEY + bytes(byte ^ key for byte, key in zip(payload, stream, strict=False))


def deflated(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.fixture
def echo(serve: Any) -> Callable[..., Any]:
    """`async with echo() as server`: one that gives back what it gets at `/echo`."""

    def echo(**options: Any) -> Any:
        store = QueueStore()
        return serve(routes=[("/echo", Echo, {"store": store})], store=store, **options)

    return echo


async def failure(peer: Any) -> int:
    """The code that the peer is closed with, when nothing else comes before and nothing after it."""
    frame = await peer.frame()
    assert await peer.rest() == b""
    return int(frame.close_code)


# Messages


@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 4096, 65535, 65536])
async def test_messages_of_every_size_come_whole(echo: Any, opcode: int, size: int) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x80 | opcode, b"*" * size))
        assert await peer.frame() == (0x80 | opcode, b"*" * size)


@pytest.mark.parametrize("piece", [1, 7, 997])
async def test_messages_come_whole_in_pieces_of_any_size(echo: Any, piece: int) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        data = b"".join(masked(0x81, b"*" * size) for size in (0, 1, 125, 126, 500))
        for start in range(0, len(data), piece):
            await peer.send(data[start : start + piece])
            await asyncio.sleep(0)
        assert [len((await peer.frame()).payload) for _ in range(5)] == [0, 1, 125, 126, 500]


async def test_a_thousand_messages_sent_at_once_come_in_order(echo: Any) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(b"".join(masked(0x81, b"%d" % number) for number in range(1000)))
        assert [(await peer.frame()).payload for _ in range(1000)] == [b"%d" % number for number in range(1000)]


@pytest.mark.parametrize("size", [0, 1, 2, 5])
async def test_fragments_are_put_together_with_control_frames_in_between(echo: Any, size: int) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        text = "Κόσμε ž 𝄞".encode()
        parts = [text[start : start + size] for start in range(0, len(text), size)] if size else [b"", text, b""]
        for number, part in enumerate(parts):
            await peer.send(masked(0x01 if number == 0 else 0x00, part))
            await peer.send(masked(0x8A, b"not asked for") + masked(0x89, b"%d" % number))
            assert await peer.frame() == (0x8A, b"%d" % number)
        await peer.send(masked(0x80))
        assert await peer.frame() == (0x81, text)


async def test_compressed_messages_are_read_and_answered_in_kind(echo: Any) -> None:
    async with echo() as server:
        peer = await server.connect()
        response = await peer.upgrade("/echo", **{"Sec-WebSocket-Extensions": "permessage-deflate"})
        assert response.headers["sec-websocket-extensions"].startswith("permessage-deflate; ")
        data = deflated(b"ab" * 500)
        await peer.send(masked(0x41, data[:3]) + masked(0x89, b"?") + masked(0x80, data[3:]) + masked(0x81, b"plain"))
        assert (await peer.frame()).first == 0x8A
        first, payload = await peer.frame()
        assert first == 0xC1
        assert zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff") == b"ab" * 500
        assert await peer.frame() == (0x81, b"plain")


# Pings


@pytest.mark.parametrize("payload", [b"", b"\x00\xff\xfe", b"p" * 125])
async def test_a_ping_is_answered_with_what_it_brought(echo: Any, payload: bytes) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x89, payload))
        assert await peer.frame() == (0x8A, payload)


async def test_pongs_that_nobody_asked_for_are_dropped(echo: Any) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(b"".join(masked(0x8A, b"%d" % number) for number in range(100)) + masked(0x89, b"end"))
        assert await peer.frame() == (0x8A, b"end")


# What breaks the protocol: a code, and the end


BROKEN = [
    *(pytest.param(masked(0x80 | op, b"x"), 1002, id=f"opcode {op}") for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *(pytest.param(masked(bits | 0x81, b"x"), 1002, id=f"bits {bits:#x}") for bits in range(0x10, 0x80, 0x10)),
    pytest.param(b"\x81\x05Hello", 1002, id="not masked"),
    pytest.param(masked(0x89, b"x" * 126), 1002, id="a ping of 126 bytes"),
    pytest.param(masked(0x09, b"x"), 1002, id="half a ping"),
    pytest.param(masked(0x08, b"\x03\xe8"), 1002, id="half a goodbye"),
    pytest.param(masked(0x80, b"x"), 1002, id="the end of nothing"),
    pytest.param(masked(0x01, b"x") + masked(0x81, b"y"), 1002, id="a message in a message"),
    pytest.param(b"\x81\xfe\x00\x05" + KEY, 1002, id="too long a length"),
    pytest.param(masked(0x81, b"\xff"), 1007, id="not UTF-8"),
    pytest.param(masked(0x81, b"\xed\xa0\x80"), 1007, id="a surrogate"),
    pytest.param(masked(0x01, "ž".encode()[:1]) + masked(0x80), 1007, id="half a character"),
    pytest.param(masked(0x01, b"\xce\xba\xe1\xbd\xb9\xf4\x90"), 1007, id="not UTF-8, in the first fragment"),
    pytest.param(masked(0x81, b"fine \xff", size=60000), 1007, id="not UTF-8, and the rest still to come"),
    pytest.param(masked(0x81, size=65537), 1009, id="too large"),
    pytest.param(masked(0x82, size=2**62), 1009, id="much too large"),
    pytest.param(masked(0x01, b"x" * 65536) + masked(0x80, b"x"), 1009, id="too large in all"),
    pytest.param(masked(0x88, b"\x03"), 1002, id="half a code"),
    pytest.param(masked(0x88, b"\x03\xe8" + b"x" * 124), 1002, id="too long a reason"),
    pytest.param(masked(0x88, b"\x03\xe8\xff"), 1007, id="a reason that is not UTF-8"),
]


@pytest.mark.parametrize(("data", "code"), BROKEN)
async def test_who_breaks_the_protocol_is_told_and_closed(
    serve: Any, echo: Any, until: Any, data: bytes, code: int
) -> None:
    async with echo() as server:
        for path in ("/echo", "/ws"):
            peer = await server.websocket(path)
            await peer.send(data)
            assert await failure(peer) == code
            peer.close()
        await until(lambda: not len(server.connections))


async def test_what_came_before_the_fault_is_answered(echo: Any) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x81, b"fine") + masked(0x89, b"?") + masked(0x83) + masked(0x81, b"not read"))
        assert await peer.frame() == (0x81, b"fine")
        assert await peer.frame() == (0x8A, b"?")
        assert await failure(peer) == 1002


async def test_a_client_in_the_middle_of_a_large_message_is_told_that_it_is_too_large(echo: Any) -> None:
    """What it has sent and nobody will read must not reset our goodbye away (RFC 6455, 7.1.1)."""
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x82, size=10_000_000))
        for _ in range(50):
            await peer.send(bytes(20_000))
        assert await failure(peer) == 1009


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        pytest.param(b"\xff\xff", 1007, id="nonsense"),
        pytest.param(deflated(bytes(10_000_000)), 1009, id="a bomb"),
        pytest.param(deflated(b"\xff"), 1007, id="not UTF-8"),
    ],
)
async def test_a_compressed_message_that_cannot_be_taken_closes(echo: Any, payload: bytes, code: int) -> None:
    async with echo() as server:
        peer = await server.connect()
        await peer.upgrade("/echo", **{"Sec-WebSocket-Extensions": "permessage-deflate"})
        await peer.send(masked(0xC1, payload))
        assert await failure(peer) == code


# Goodbye


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999])
async def test_a_code_that_may_be_is_given_back(echo: Any, code: int) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x88, code.to_bytes(2, "big") + b"reason"))
        assert await failure(peer) == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
async def test_a_code_that_may_not_be_is_1002(echo: Any, code: int) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x88, code.to_bytes(2, "big")))
        assert await failure(peer) == 1002


async def test_every_code_from_0_to_5000_is_judged_as_the_registry_says(echo: Any) -> None:
    good = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    async with echo() as server:
        for code in range(0, 5001, 37):
            peer = await server.websocket("/echo")
            await peer.send(masked(0x88, code.to_bytes(2, "big")))
            assert await failure(peer) == (code if code in good else 1002), code
            peer.close()


async def test_a_goodbye_without_a_code_is_answered_without_one(echo: Any) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x88))
        assert await peer.frame() == (0x88, b"")
        assert await peer.rest() == b""


async def test_nothing_is_read_behind_a_goodbye(echo: Any) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x88, b"\x03\xe8") + masked(0x81, b"more") + masked(0x89, b"more") + b"\xff\xff")
        assert await failure(peer) == 1000


async def test_a_message_that_is_not_finished_may_be_left_with_a_goodbye(echo: Any) -> None:
    async with echo() as server:
        peer = await server.websocket("/echo")
        await peer.send(masked(0x01, b"half of it") + masked(0x88, b"\x03\xe9"))
        assert await failure(peer) == 1001


async def test_no_message_comes_behind_our_answer_to_a_goodbye(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        await peer.send(masked(0x88, b"\x03\xe8"))
        await until(lambda: not store.subscribers)
        await store.submit("too late")
        assert await failure(peer) == 1000


async def test_both_may_say_goodbye_at_once(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        draining = asyncio.ensure_future(server.connections.drain(5))
        await peer.send(masked(0x88, b"\x03\xe8"))
        assert await failure(peer) in (1000, 1012)
        peer.close()
        await draining
        assert len(server.connections) == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_f55_a_drain_says_1012_and_waits_for_the_answer(serve: Any, tls: bool) -> None:
    async with serve(store=QueueStore(), tls=tls) as server:
        peer = await server.websocket("/ws")
        draining = asyncio.ensure_future(server.connections.drain(8))
        frame = await peer.frame()
        assert frame.close_code == 1012
        assert frame.payload[2:]
        assert not draining.done()
        await peer.send(masked(0x88, b"\x03\xf4"))
        assert await peer.rest() == b""
        peer.close()
        await draining
        assert len(server.connections) == 0


async def test_who_does_not_answer_our_goodbye_is_cut_off_in_the_end(serve: Any, until: Any) -> None:
    async with serve(store=QueueStore(), connections=Connections(heartbeat=0.25)) as server:
        peer = await server.websocket("/ws")
        (outlet,) = server.connections
        outlet.end(AGED)
        assert (await peer.frame()).close_code == 1012
        assert len(server.connections) == 1
        server.connections.expire_at(outlet, 0)  # its time to answer is over
        assert await peer.rest() == b""
        await until(lambda: not len(server.connections))


async def test_who_breaks_the_protocol_in_answer_to_our_goodbye_is_cut_off_at_once(serve: Any, until: Any) -> None:
    async with serve(store=QueueStore()) as server:
        peer = await server.websocket("/ws")
        (outlet,) = server.connections
        outlet.end(AGED)
        assert (await peer.frame()).close_code == 1012
        await peer.send(masked(0x81, b"not yet") + masked(0x83))
        assert await peer.rest() == b""
        await until(lambda: not len(server.connections))


@pytest.mark.parametrize("tls", [False, True])
async def test_who_breaks_the_protocol_and_stays_is_cut_off_in_the_end(serve: Any, until: Any, tls: bool) -> None:
    async with serve(store=QueueStore(), connections=Connections(heartbeat=0.25), tls=tls) as server:
        peer = await server.websocket("/ws")
        await peer.send(masked(0x83))
        assert await failure(peer) == 1002
        for outlet in server.connections:
            server.connections.expire_at(outlet, 0)
        await until(lambda: not len(server.connections))


# Who goes away


async def test_f52_half_a_frame_and_then_a_reset_leaves_nothing_behind(serve: Any, until: Any) -> None:
    store = QueueStore()
    whole = masked(0x01, b"first") + masked(0x89, b"?") + masked(0x80, b"x" * 200)
    async with serve(store=store) as server:
        for cut in range(0, len(whole), 9):
            peer = await server.websocket("/ws")
            assert len(store.subscribers) == 1
            await peer.send(whole[:cut])
            peer.reset()
            await until(lambda: not store.subscribers and not len(server.connections))
        assert all(stream.closed() for stream in server.streams)


async def test_f52_a_client_that_closes_without_a_word_is_gone_at_once(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.websocket("/ws")
        await peer.send(masked(0x01, b"half"))
        peer.close()
        await until(lambda: not store.subscribers and not len(server.connections))


async def test_what_nobody_answers_is_not_read_on_and_on(serve: Any, until: Any) -> None:
    """A client that asks, and never reads the answers, is not read any more when its socket is full (F50)."""
    store = QueueStore()
    async with serve(store=store, send_buffer=4096) as server:
        peer = await server.websocket("/ws", receive_buffer=4096)

        async def flood() -> None:
            while True:
                peer.writer.write(masked(0x89, b"x" * 125) * 1000)
                await peer.writer.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 0.5)
        (stream,) = server.streams
        assert len(stream._write_buffer) < 20_000
        store.submit("still here")  # and it hurts nobody else
        other = await server.websocket("/ws?last_event_id=earliest")
        assert (await other.frame()).json["data"] == "still here"
        peer.reset()
