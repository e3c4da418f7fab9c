"""Where a reader begins, and how it goes on where it stopped: at every door the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from waterspout_core import QueueStore
from waterspout_handlers._longpoll import LongPoll

Told = list[tuple[str, Any]]


class Reader:
    """Reads a store by one of the doors, and comes back with the last id it has, as often as the test wants."""

    def __init__(self, server: Any, door: str) -> None:
        self.server = server
        self.door = door
        self.id = ""
        self._peer: Any = None
        self._waiting: list[Any] = []

    async def come(self) -> None:
        """Connect, with the last id if there is one."""
        self._waiting.clear()
        query = f"&last_event_id={self.id}" if self.id else ""
        if self.door == "websocket":
            self._peer = await self.server.connect()
            response = await self._peer.upgrade(f"/ws?{query}")
        else:
            path = {"events": "/events?format=json", "ndjson": "/events?format=ndjson", "poll": "/poll?timeout=60"}
            self._peer = await self.server.connect()
            response = await self._peer.request(path[self.door] + query)
        # A position that nobody knows is told by a gap, and not here.
        self.id = response.headers.get("last-event-id", self.id)

    async def read(self, count: int) -> Told:
        """The next messages, as names of events and data."""
        return [await self._next() for _ in range(count)]

    def leave(self) -> None:
        """Go, whatever is on the way."""
        self._peer.reset()

    async def _next(self) -> tuple[str, Any]:
        while not self._waiting:
            self._waiting += await self._more()
        message = self._waiting.pop(0)
        self.id = message["id"]
        return message.get("event", "message"), message["data"]

    async def _more(self) -> list[Any]:
        if self.door == "websocket":
            return [(await self._peer.frame()).json]
        if self.door == "events":
            event = await self._peer.event()
            return [json.loads(event.data) | {"id": event.id}]
        body = await self._peer.chunk()
        if self.door == "ndjson":
            return [json.loads(line) for line in body.splitlines() if line]
        assert await self._peer.rest() == b"0\r\n\r\n"
        messages: list[Any] = json.loads(body)["messages"]
        self.id = messages[-1]["id"]
        await self.come()
        return messages


@pytest.mark.parametrize("door", ["events", "ndjson", "poll", "websocket"])
async def test_e1_at_every_door_a_reader_goes_on_where_it_stopped_and_is_told_of_gaps(serve: Any, door: str) -> None:
    store = QueueStore(max_messages=4)
    await store.submit("before")
    async with serve(routes=[("/poll", LongPoll, {"store": store})], store=store) as server:
        reader = Reader(server, door)
        await reader.come()
        await store.submit({"n": 1}, "goal")
        assert await reader.read(1) == [("goal", {"n": 1})]
        reader.leave()
        for number in (2, 3, 4):
            await store.submit(number)
        await reader.come()
        assert await reader.read(2) == [("message", 2), ("message", 3)]
        await store.submit(5)
        assert await reader.read(2) == [("message", 4), ("message", 5)]
        reader.leave()
        for number in range(6, 12):
            await store.submit(number)
        await reader.come()
        expected = [("gap", {"missed": 2}), *(("message", number) for number in range(8, 12))]
        assert await reader.read(5) == expected
        reader.leave()
        reader.id = "0123456789-1"
        await reader.come()
        assert await reader.read(2) == [("gap", {"missed": None}), ("message", 8)]
        reader.leave()
        reader.id = "earliest"
        await reader.come()
        assert await reader.read(1) == [("message", 8)]
        reader.leave()


@pytest.mark.parametrize("door", ["events", "ndjson", "poll", "websocket"])
async def test_e1_who_was_cut_off_before_the_first_message_has_an_id_to_come_back_with(serve: Any, door: str) -> None:
    store = QueueStore()
    await store.submit("before")
    async with serve(routes=[("/poll", LongPoll, {"store": store})], store=store) as server:
        reader = Reader(server, door)
        await reader.come()
        reader.leave()
        await store.submit("meanwhile")
        await reader.come()
        assert await reader.read(1) == [("message", "meanwhile")]
        reader.leave()


@pytest.mark.parametrize("way", ["header", "query"])
async def test_a_reader_goes_on_behind_the_last_event_it_saw(serve: Any, way: str) -> None:
    store = QueueStore()
    positions = [await store.submit(text) for text in "abcd"]
    async with serve(store=store) as server:
        if way == "header":
            peer = await server.listen("/events", last_event_id=str(positions[1]))
        else:
            peer = await server.listen(f"/events?last_event_id={positions[1]}")
        assert await peer.events(2) == [("c", str(positions[2]), "message"), ("d", str(positions[3]), "message")]
        await store.submit("e")
        assert (await peer.event()).data == "e"


async def test_the_header_is_newer_than_the_url(serve: Any) -> None:
    store = QueueStore()
    positions = [await store.submit(text) for text in "abc"]
    async with serve(store=store) as server:
        peer = await server.listen(f"/events?last_event_id={positions[0]}", last_event_id=str(positions[1]))
        assert (await peer.event()).data == "c"


async def test_an_unknown_position_gets_one_gap_and_then_all_that_is_kept(serve: Any) -> None:
    store = QueueStore(max_messages=3)
    for text in "abcde":
        store.submit(text)
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id="0123456789-7")
        gap, *kept = await peer.events(4)
        assert (gap.type, gap.data) == ("gap", '{"missed":null}')
        assert [event.data for event in kept] == ["c", "d", "e"]
        # The gap has a position of its own: who is cut right behind it misses nothing of what is kept.
        again = await server.listen("/events", last_event_id=gap.id)
        assert await again.events(3) == kept


async def test_an_unknown_position_of_an_empty_log_gets_its_gap_at_once(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id="0123456789-7")
        assert await peer.event() == ('{"missed":null}', f"{store.log.epoch}-0", "gap")
        await store.submit("a")
        assert (await peer.event()).data == "a"


@pytest.mark.parametrize("way", ["header", "query"])
async def test_earliest_begins_with_all_that_is_kept_and_no_gap(serve: Any, way: str) -> None:
    store = QueueStore(max_messages=3)
    for text in "abcde":
        store.submit(text)
    async with serve(store=store) as server:
        if way == "header":
            peer = await server.listen("/events", last_event_id="earliest")
        else:
            peer = await server.listen("/events?last_event_id=earliest")
        assert [(event.type, event.data) for event in await peer.events(3)] == [("message", text) for text in "cde"]
        # It need not ask for the earliest again: cut here, it goes on here.
        again = await server.listen("/events", last_event_id=peer.parser.last_event_id)
        store.submit("f")
        assert (await again.event()).data == "f"


async def test_earliest_of_an_empty_log_begins_with_what_comes(serve: Any) -> None:
    store = QueueStore()
    async with serve(store=store) as server:
        peer = await server.listen("/events?last_event_id=earliest")
        store.submit("first")
        assert (await peer.event()).data == "first"


async def test_a_position_above_the_top_gets_a_gap(serve: Any) -> None:
    store = QueueStore()
    await store.submit("a")
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id=f"{store.log.epoch}-2")
        gap, kept = await peer.events(2)
        assert (gap.type, gap.data, kept.data) == ("gap", '{"missed":null}', "a")


async def test_a_gap_tells_how_many_messages_have_fallen_off(serve: Any) -> None:
    store = QueueStore(max_messages=2)
    seen = await store.submit("seen")
    for text in "abcde":
        store.submit(text)
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id=str(seen))
        gap, *kept = await peer.events(3)
        assert (gap.type, gap.data) == ("gap", '{"missed":3}')
        assert [event.data for event in kept] == ["d", "e"]


@pytest.mark.parametrize("bad", ["nonsense", "é", "x-", "-1", "a-1,", "a" * 5000])
async def test_a_bad_header_is_an_unknown_position_because_a_browser_gives_up_for_ever(serve: Any, bad: str) -> None:
    store = QueueStore()
    await store.submit("a")
    async with serve(store=store) as server:
        peer = await server.listen("/events", last_event_id=bad)
        gap, kept = await peer.events(2)
        assert (gap.type, kept.data) == ("gap", "a")


async def test_e2_one_id_carries_the_positions_of_several_channels(serve: Any, channel_source: Any) -> None:
    """Cut behind every single event, also in the middle of a batch, and resumed: nothing lost, nothing repeated."""
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=a&channel=b&channel=c")
        for batch in range(3):
            for number in range(3):
                source.open("a").submit(f"a{batch}{number}")
                await source.open("b").submit(f"b{batch}{number}")
            await source.open("c").submit(f"c{batch}")
        events = await peer.events(21)
        for cut in range(21):
            again = await server.listen("/events?channel=a&channel=b&channel=c", last_event_id=events[cut].id)
            marker = f"end of {cut}"
            await source.open("c").submit(marker, "marker")
            missed: list[Any] = []
            while not missed or missed[-1].data != marker:
                missed += await again.events(1)
            got = [event.data for event in (*events[: cut + 1], *missed) if event.type == "message"]
            assert sorted(got) == sorted(event.data for event in events)
            for channel in "abc":
                of_channel = [data for data in got if data.startswith(channel)]
                assert of_channel == sorted(of_channel)
            again.close()


async def test_positions_need_no_order_and_channels_may_come_and_go(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=a&channel=b")
        await source.open("a").submit("a1")
        await source.open("b").submit("b1")
        last = (await peer.events(2))[1].id
        await source.open("a").submit("a2")
        await source.open("b").submit("b2")
        turned = ",".join(reversed(last.split(",")))
        both = await server.listen("/events?channel=b&channel=a", last_event_id=turned)
        assert sorted(event.data for event in await both.events(2)) == ["a2", "b2"]
        fewer = await server.listen("/events?channel=b", last_event_id=last)
        assert (await fewer.event()).data == "b2"
        more = await server.listen("/events?channel=a&channel=new", last_event_id=last)
        # Nobody can tell whether this reader has ever seen anything of the new channel.
        assert sorted((event.type, event.data) for event in await more.events(2)) == [
            ("gap", '{"missed":null}'),
            ("message", "a2"),
        ]


async def test_of_several_channels_only_the_lost_one_has_a_gap_and_a_cut_before_it_does_not_hide_it(
    serve: Any, channel_source: Any
) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        await source.open("a").ready()
        await source.open("b").ready()
        for text in ("a1", "a2"):
            await source.open("a").submit(text)
        await source.open("b").submit("b1")
        known = f"{source.open('a').log.epoch}-1,0123456789-4"
        peer = await server.listen("/events?channel=a&channel=b", last_event_id=known)
        a2, gap, b1 = await peer.events(3)
        assert [a2.data, gap.type, b1.data] == ["a2", "gap", "b1"]
        # The first event came before the gap was told: resumed from it, the gap is still there.
        again = await server.listen("/events?channel=a&channel=b", last_event_id=a2.id)
        assert [(event.type, event.data) for event in await again.events(2)] == [
            ("gap", '{"missed":null}'),
            ("message", "b1"),
        ]


async def test_a_channel_named_twice_delivers_once(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    async with serve(source=source) as server:
        peer = await server.listen("/events?channel=a&channel=a&channel=b&channel=a")
        for text in ("one", "two"):
            await source.open("a").submit(text)
        assert [event.data for event in await peer.events(2)] == ["one", "two"]
        assert len(source.open("a").subscribers) == 1


async def test_a_hundred_channels_resume_from_one_header(serve: Any, channel_source: Any) -> None:
    source = channel_source()
    names = [f"{'long' * 50}-{number}" for number in range(100)]
    path = "/events?" + "&".join(f"channel={name}" for name in names)
    async with serve(source=source) as server:
        peer = await server.listen(path)
        for name in names:
            await source.open(name).submit(name)
        last = (await peer.events(100))[-1].id
        for name in names:
            await source.open(name).submit(f"{name} again")
        again = await server.listen(path, last_event_id=last)
        assert {event.data for event in await again.events(100)} == {f"{name} again" for name in names}
