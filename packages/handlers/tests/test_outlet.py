"""The one way bytes leave: slow readers, gone readers, bursts, TLS, and the end."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from typing import Any

import pytest

from waterspout_core import QueueStore
from waterspout_handlers import EventSource, Outlet
from waterspout_handlers._goodbye import RESTART

KiB = 1024

DOORS = pytest.mark.parametrize("door", ["events", "websocket"])


async def let_in(server: Any, door: str, query: str = "", **options: Any) -> Any:
    """A peer at one of the doors, and a function to read the next thing it is sent as (event, data)."""
    if door == "websocket":
        return await server.websocket(f"/ws{query}", **options)
    return await server.listen(f"/events{query}", **options)


async def read(peer: Any, door: str) -> tuple[str, Any]:
    """The next event's name and data: a str, or what a gap tells."""
    if door == "websocket":
        told = (await peer.frame()).json
        return told.get("event", "message"), told["data"]
    event = await peer.event()
    return event.type, json.loads(event.data) if event.type == "gap" else event.data


# Bursts


@DOORS
async def test_many_messages_in_one_turn_are_one_send(serve: Any, door: str) -> None:
    store = QueueStore()
    async with serve(store=store, counting=True) as server:
        peer = await let_in(server, door)
        [stream] = server.streams
        before = stream.socket.sends
        for number in range(100):
            store.submit(str(number))
        assert [await read(peer, door) for _ in range(100)] == [("message", str(number)) for number in range(100)]
        assert stream.socket.sends - before == 1


@DOORS
async def test_no_message_waits_until_the_peer_has_acknowledged_the_one_before(serve: Any, door: str) -> None:
    """Nagle's algorithm (RFC 896) is for those who write in dribs and drabs."""
    async with serve(store=QueueStore()) as server:
        await let_in(server, door)
        [stream] = server.streams
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_many_messages_in_one_turn_are_one_chunk(serve: Any, channel_source: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events")
        for number in range(100):
            store.submit(str(number))
        assert (await peer.chunk()).count(b"\n\n") == 100


async def test_every_reader_is_sent_the_same_bytes(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peers = [await server.listen("/events") for _ in range(5)]
        store.submit("a")
        store.submit("b")
        assert len({await peer.chunk() for peer in peers}) == 1


async def test_a_long_history_arrives_complete_and_in_order(serve: Any) -> None:
    store = QueueStore(max_messages=5000)
    texts = [f"{number:>200}" for number in range(5000)]
    for text in texts:
        store.submit(text)
    async with serve(store=store) as server:
        peer = await server.listen(f"/events?last_event_id={store.log.epoch}-0")
        assert [event.data for event in await peer.events(5000)] == texts


# Slow readers


@DOORS
async def test_a_slow_reader_within_the_bound_gets_everything_in_order(serve: Any, door: str) -> None:
    store = QueueStore()
    texts = [f"{number:>1000}" for number in range(2000)]
    async with serve(store=store, send_buffer=4 * KiB) as server:
        slow = await let_in(server, door, receive_buffer=4 * KiB)
        for text in texts:
            store.submit(text)
            await asyncio.sleep(0)
        assert [await read(slow, door) for _ in texts] == [("message", text) for text in texts]


@DOORS
async def test_a_slow_reader_gets_a_gap_that_covers_exactly_what_is_missing(serve: Any, door: str) -> None:
    store = QueueStore(max_messages=50)
    texts = [f"{number:>1000}" for number in range(3000)]
    async with serve(store=store, send_buffer=4 * KiB) as server:
        slow = await let_in(server, door, receive_buffer=4 * KiB)
        fast = await let_in(server, door)
        for text in texts:
            store.submit(text)
            # Nobody waits for the slow one: the fast one has each message before the next is published.
            assert await read(fast, door) == ("message", text)

        got: list[str] = []
        place = gaps = 0
        while place < len(texts):
            event, data = await read(slow, door)
            if event == "gap":
                gaps += 1
                place += data["missed"]
            else:
                assert data == texts[place]
                got.append(data)
                place += 1
        assert place == len(texts)
        assert 1 <= gaps < 5
        # Little was kept for it: what the log keeps, one run, and what the kernel took.
        assert 50 <= len(got) < 400


async def test_what_is_kept_for_a_reader_that_stops_is_bounded(serve: Any, channel_source: Any) -> None:
    """Also for one of several channels, and of a log that is larger than what a stream may hold."""
    source = channel_source(max_messages=100_000)
    async with serve(source=source, send_buffer=4 * KiB) as server:
        await server.listen("/events?channel=a&channel=b", receive_buffer=4 * KiB)
        await server.listen("/events?channel=a", receive_buffer=4 * KiB)
        for number in range(5000):
            source.open("a").submit(f"{number:>1000}")
            await asyncio.sleep(0)
        buffers = [len(stream._write_buffer) for stream in server.streams]
        assert len(buffers) == 2
        assert min(buffers) > 0
        assert max(buffers) < 256 * KiB


@DOORS
async def test_a_slow_reader_of_several_channels_loses_nothing(serve: Any, channel_source: Any, door: str) -> None:
    source = channel_source(max_messages=10_000)
    async with serve(source=source, send_buffer=4 * KiB) as server:
        slow = await let_in(server, door, "?channel=a&channel=b", receive_buffer=4 * KiB)
        for number in range(1000):
            source.open("a").submit(f"a{number:>1000}")
            source.open("b").submit(f"b{number:>1000}")
            await asyncio.sleep(0)
        got = [await read(slow, door) for _ in range(2000)]
        for channel in "ab":
            assert [data for _, data in got if data[0] == channel] == [
                f"{channel}{number:>1000}" for number in range(1000)
            ]


async def test_a_slow_reader_that_is_cut_anywhere_resumes_without_loss_or_repetition(serve: Any) -> None:
    store = QueueStore()
    texts = [f"{number:>1000}" for number in range(300)]
    async with serve(store=store, send_buffer=4 * KiB) as server:
        slow = await server.listen("/events", receive_buffer=4 * KiB)
        for text in texts:
            store.submit(text)
        got = [event.data for event in await slow.events(7)]
        while len(got) < len(texts):
            last = slow.parser.last_event_id if not slow._events else None
            slow.reset()
            # The parser may have read further than what was asked for: a browser has seen that too.
            got += [event.data for event in slow._events]
            last = slow.parser.last_event_id if last is None else last
            slow = await server.listen("/events", last_event_id=last, receive_buffer=4 * KiB)
            got += [event.data for event in await slow.events(min(20, len(texts) - len(got)))]
        assert got == texts


@DOORS
async def test_a_message_larger_than_all_buffers_arrives_whole(serve: Any, door: str) -> None:
    store = QueueStore()
    texts = ["ž" * 1_000_000, "x" * 3_000_000, "small"]
    async with serve(store=store, send_buffer=4 * KiB) as server:
        peer = await let_in(server, door)
        for text in texts:
            store.submit(text)
        for text in texts:
            assert await read(peer, door) == ("message", text)


async def test_pongs_and_messages_to_a_slow_reader_do_not_mix(serve: Any) -> None:
    """Each frame is whole, and who does not read is not listened to: its pings wait, and nothing piles up for it."""
    store = QueueStore()
    async with serve(store=store, send_buffer=4 * KiB) as server:
        slow = await server.websocket("/ws", receive_buffer=4 * KiB)
        for number in range(200):
            store.submit(f"{number:>5000}")
            await slow.send_frame(0x89, str(number).encode())
        messages, pongs = [], []
        while len(messages) < 200:
            frame = await slow.frame()
            if frame.first == 0x8A:
                pongs.append(int(frame.payload))
            else:
                messages.append(int(frame.json["data"]))
        assert messages == list(range(200))
        assert pongs == sorted(pongs)
        assert pongs
        await slow.send_frame(0x89, b"still there?")
        while (frame := await slow.frame()).payload != b"still there?":
            assert frame.first == 0x8A


# Gone readers


@DOORS
@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_gone_peer_is_deregistered_at_once(serve: Any, until: Any, door: str, way: str) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        stays = await let_in(server, door)
        goes = await let_in(server, door)
        assert len(store.subscribers) == 2
        getattr(goes, way)()
        await until(lambda: len(store.subscribers) == 1)  # nothing was published meanwhile
        store.submit("hello")
        assert await read(stays, door) == ("message", "hello")


@DOORS
async def test_a_peer_that_goes_in_the_middle_of_its_backlog_is_deregistered(serve: Any, until: Any, door: str) -> None:
    store = QueueStore()
    async with serve(store=store, send_buffer=4 * KiB) as server:
        slow = await let_in(server, door, receive_buffer=4 * KiB)
        for number in range(1000):
            store.submit(f"{number:>1000}")
        await read(slow, door)
        slow.reset()
        await until(lambda: not store.subscribers)


async def test_a_peer_that_says_more_than_its_request_and_goes_is_deregistered(serve: Any, until: Any) -> None:
    """Nothing may follow the request for a stream, but that must not make the server blind for the end."""
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events")
        await peer.send(b"\r\n")
        store.submit("hello")
        assert (await peer.event()).data == "hello"
        peer.close()
        await until(lambda: not store.subscribers)


async def test_a_peer_that_goes_right_after_its_request_is_not_registered_for_ever(serve: Any, until: Any) -> None:
    store = QueueStore()
    answered = asyncio.Event()

    class GoneByNow(EventSource):
        """Its peers go before the head is on its way."""

        async def get(self, *args: str, **kwargs: str) -> None:
            await super().get(*args, **kwargs)
            answered.set()

        async def open_cursors(self) -> Any:
            cursors = await super().open_cursors()
            goes.reset()
            await until(self.request.connection.stream.closed)
            return cursors

    async with serve(routes=[("/gone", GoneByNow, {"store": store})], store=store) as server:
        goes = await server.connect()
        await goes.send(f"GET /gone HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        await until(answered.is_set)
        await until(lambda: not store.subscribers and not len(server.connections))


@DOORS
async def test_nothing_stays_of_those_that_came_and_went(serve: Any, until: Any, door: str) -> None:
    store = QueueStore()

    def outlets() -> int:
        gc.collect()
        return sum(isinstance(thing, Outlet) for thing in gc.get_objects())

    before = outlets()
    async with serve(store=store) as server:
        for turn in range(30):
            peer = await let_in(server, door)
            store.submit(str(turn))
            assert await read(peer, door) == ("message", str(turn))
            peer.reset() if turn % 2 else peer.close()
        await until(lambda: not store.subscribers)
        await until(lambda: outlets() == before)


async def test_one_who_goes_does_not_disturb_a_flush_to_the_others(serve: Any, until: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peers = [await server.listen("/events") for _ in range(10)]
        for peer in peers[::2]:
            peer.reset()
        for number in range(10):
            store.submit(str(number))
            await asyncio.sleep(0)
        for peer in peers[1::2]:
            assert [event.data for event in await peer.events(10)] == [str(number) for number in range(10)]
        await until(lambda: len(store.subscribers) == 5)


# TLS


@DOORS
async def test_tls_streams_work_for_the_quick_and_the_slow(serve: Any, until: Any, door: str) -> None:
    store = QueueStore()
    texts = [f"{number:>1000}" for number in range(1000)]
    async with serve(store=store, tls=True, send_buffer=4 * KiB) as server:
        quick = await let_in(server, door)
        slow = await let_in(server, door, receive_buffer=4 * KiB)
        for text in texts:
            store.submit(text)
        for peer in (quick, slow):
            assert [await read(peer, door) for _ in texts] == [("message", text) for text in texts]
        quick.close()
        await until(lambda: len(store.subscribers) == 1)


# The end


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_end_of_an_event_stream_is_the_last_chunk(serve: Any, tls: bool) -> None:
    store = QueueStore()
    async with serve(store=store, tls=tls) as server:
        peer = await server.listen("/events")
        store.submit("last")
        assert (await peer.event()).data == "last"
        [outlet] = store.subscribers
        outlet.end(RESTART)
        assert not store.subscribers
        assert peer.parser.feed(await peer.chunk()) == []
        assert 1000 <= peer.parser.reconnection_time <= 5000
        assert await peer.rest() == b"0\r\n\r\n"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_end_of_a_websocket_is_a_close_frame_with_service_restart(serve: Any, tls: bool) -> None:
    store = QueueStore()
    async with serve(store=store, tls=tls) as server:
        peer = await server.websocket("/ws")
        store.submit("last")
        assert (await peer.frame()).json["data"] == "last"
        [outlet] = store.subscribers
        outlet.end(RESTART)
        assert not store.subscribers
        assert (await peer.frame()).close_code == 1012
        assert await peer.rest() == b""


@DOORS
async def test_the_end_may_come_at_any_time_and_twice(serve: Any, door: str) -> None:
    store = QueueStore()
    async with serve(store=store, send_buffer=4 * KiB) as server:
        slow = await let_in(server, door, receive_buffer=4 * KiB)
        for number in range(1000):
            store.submit(f"{number:>1000}")
        await read(slow, door)
        for outlet in tuple(store.subscribers) * 2:
            outlet.end(RESTART)
        assert not store.subscribers
        store.submit("too late")
        # What was under way is sent whole, and the goodbye behind it.
        said = await slow.rest()
        assert said.endswith(b"0\r\n\r\n") if door == "events" else b"\x03\xf4" in said[-125:]


@DOORS
async def test_what_was_published_just_before_the_end_is_sent_before_the_goodbye(serve: Any, door: str) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await let_in(server, door)
        [outlet] = store.subscribers
        store.submit("last words")
        outlet.end(RESTART)
        assert await read(peer, door) == ("message", "last words")
