"""Audiences: who shares bytes with whom, who falls out, and what becomes of those that do not keep up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tornado.iostream import IOStream

from waterspout_core import BaseStore, DataStore, Log, QueueStore
from waterspout_handlers import Behind, Connections, Outlet
from waterspout_handlers._formats import EVENT_STREAMS

DEADLINE = 10.0
PLAIN = EVENT_STREAMS[False, False]


class Ear:
    """The other end of an outlet: what it has heard, as data lines without ids."""

    def __init__(self, outlet: Outlet, sock: socket.socket) -> None:
        self.outlet = outlet
        self.pieces: list[bytes] = []
        self._sock = sock

    async def hear(self) -> bytes:
        """What comes next, as one piece if it was sent as one and is small."""
        async with asyncio.timeout(DEADLINE):
            piece = await asyncio.get_running_loop().sock_recv(self._sock, 65536)
        self.pieces.append(piece)
        return piece

    async def whole(self, count: int) -> bytes:
        """What holds the next `count` events."""
        while (whole := b"".join(self.pieces)).count(b"\n\n") < count:
            assert await self.hear(), "it has ended"
        return whole

    async def data(self, count: int) -> list[str]:
        """The data of the next `count` events."""
        whole = await self.whole(count)
        *events, rest = whole.split(b"\n\n")
        self.pieces = [b"\n\n".join([*events[count:], rest])]
        return [line[6:].decode() for event in events[:count] for line in event.split(b"\n") if line[:6] == b"data: "]

    async def rest(self) -> bytes:
        while await self.hear():
            pass
        return b"".join(self.pieces)


@contextlib.asynccontextmanager
async def listening(connections: Connections, **manner: Any) -> AsyncIterator[Callable[..., Ear]]:
    """`listen(store, …)` gives an outlet for them and the socket at its other end."""
    with contextlib.ExitStack() as stack:

        def listen(*stores: BaseStore, cursors: dict[BaseStore, int] | None = None, small: bool = False) -> Ear:
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            if small:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            theirs.setblocking(False)
            outlet = Outlet(IOStream(ours), PLAIN, connections, **manner)
            stack.callback(outlet.close)
            outlet.open(cursors or {store: store.cursor() for store in stores})
            return Ear(outlet, theirs)

        yield listen


def audiences(connections: Connections) -> int:
    return len(connections._audiences)


# Sharing


async def test_those_who_read_the_same_channels_share_bytes_and_ids() -> None:
    a, b = QueueStore(), QueueStore()
    connections = Connections()
    async with listening(connections) as listen:
        ears = [listen(a, b), listen(b, a), listen(a, b)]
        a.submit("one")
        b.submit("two")
        pieces = {await ear.whole(2) for ear in ears}
        assert len(pieces) == 1
        assert pieces.pop().count(b",") == 2  # each id has both positions


async def test_an_outlet_that_is_level_has_no_cursors_of_its_own_and_counts_as_a_subscriber() -> None:
    store = QueueStore()
    connections = Connections()
    async with listening(connections) as listen:
        ear = listen(store)
        assert ear.outlet._cursors is None
        assert store.subscribers == {ear.outlet}
        store.submit("one")
        assert await ear.data(1) == ["one"]
        assert ear.outlet.position == str(store.log.position)


async def test_an_audience_is_forgotten_with_its_last_outlet() -> None:
    store = QueueStore()
    connections = Connections()
    async with listening(connections) as listen:
        first, second = listen(store), listen(store)
        before = audiences(connections)
        first.outlet.close()
        assert audiences(connections) == before
        second.outlet.close()
        assert audiences(connections) == before - 1
        assert not store.subscribers
        assert not store._woken


async def test_who_comes_in_the_middle_of_a_burst_gets_its_own_part_once() -> None:
    store = QueueStore()
    async with listening(Connections()) as listen:
        early = listen(store)
        store.submit("one")
        late = listen(store)  # the flush for "one" is still due
        store.submit("two")
        assert await early.data(2) == ["one", "two"]
        assert await late.data(1) == ["two"]
        await store.submit("three")
        assert await early.data(1) == await late.data(1) == ["three"]


async def test_channels_may_come_and_go_on_one_connection() -> None:
    a, b = QueueStore(), QueueStore()
    async with listening(Connections()) as listen:
        ear = listen(a)
        await a.submit("a1")
        assert await ear.data(1) == ["a1"]
        await b.submit("b1")
        ear.outlet.follow(b, 0)
        assert await ear.data(1) == ["b1"]
        ear.outlet.unfollow(a)
        assert set(ear.outlet.stores) == {b}
        assert not a.subscribers
        await a.submit("a2")
        await b.submit("b2")
        assert await ear.data(1) == ["b2"]


async def test_a_store_that_walks_its_subscribers_by_itself_wakes_them_all() -> None:
    class Walking(QueueStore):
        def publish(self) -> None:
            for subscriber in tuple(self.subscribers):
                subscriber.wake(self)

    store = Walking()
    async with listening(Connections()) as listen:
        ears = [listen(store) for _ in range(3)]
        await store.submit("one")
        assert [await ear.data(1) for ear in ears] == [["one"]] * 3


# Falling out, and coming back


async def test_who_falls_behind_is_level_again_when_it_has_read_all(until: Any) -> None:
    store = QueueStore()
    connections = Connections()
    async with listening(connections) as listen:
        slow, quick = listen(store, small=True), listen(store)
        texts = [f"{number:>1000}" for number in range(60)]
        for text in texts:
            store.submit(text)
            await asyncio.sleep(0)
        assert slow.outlet._cursors is not None
        assert quick.outlet._cursors is None
        assert await quick.data(60) == texts
        assert await slow.data(60) == texts
        await until(lambda: slow.outlet._cursors is None)
        store.submit("more")
        assert await slow.data(1) == await quick.data(1) == ["more"]


async def test_e5_gap_tells_what_the_log_has_given_up_and_counts_it() -> None:
    store = QueueStore(max_messages=10)
    connections = Connections()
    async with listening(connections) as listen:
        slow = listen(store, small=True)
        for number in range(500):
            store.submit(f"{number:>1000}")
            await asyncio.sleep(0)
        heard = b""
        while b"499\n" not in heard:
            heard += await slow.hear()
        assert heard.count(b"event: gap") == connections.counts.gaps == 1
        assert connections.counts.skipped == 0


async def test_e5_latest_spares_a_slow_reader_all_but_the_newest() -> None:
    store = QueueStore()
    connections = Connections()
    async with listening(connections, behind=Behind("latest")) as listen:
        slow = listen(store, small=True)
        for number in range(500):
            store.submit(f"{number:>1000}")
            await asyncio.sleep(0)
        heard = b""
        while b"499\n" not in heard:
            heard += await slow.hear()
        seen = [int(line[6:]) for line in heard.split(b"\n") if line.startswith(b"data: ")]
        assert seen == sorted(set(seen))
        assert len(seen) + connections.counts.skipped == 500
        assert connections.counts.skipped > 300
        assert b"event: gap" not in heard


async def test_e5_a_store_may_have_the_policy_latest_for_all_its_readers() -> None:
    store = QueueStore(max_messages=10, when_behind="latest")
    connections = Connections()
    async with listening(connections) as listen:
        slow = listen(store, small=True)
        for number in range(500):
            store.submit(f"{number:>1000}")
            await asyncio.sleep(0)
        heard = b""
        while b"499\n" not in heard:
            heard += await slow.hear()
        assert heard.count(b"data: ") < 100
        assert b"event: gap" not in heard
        assert connections.counts.gaps == 0


async def test_e5_latest_is_not_for_those_who_only_come_back() -> None:
    store = QueueStore()
    for number in range(50):
        store.submit(str(number))
    async with listening(Connections(), behind=Behind("latest")) as listen:
        assert await listen(cursors={store: 0}).data(50) == [str(number) for number in range(50)]


@pytest.mark.parametrize("bound", [{"max_seconds": 0.05}, {"max_bytes": 50_000, "max_seconds": 1e9}])
async def test_e5_disconnect_cuts_off_who_is_too_far_behind(until: Any, bound: dict[str, float]) -> None:
    store = QueueStore()
    connections = Connections(heartbeat=0.5)
    async with listening(connections, behind=Behind("disconnect", **bound)) as listen:
        slow, quick = listen(store, small=True), listen(store)
        for number in range(200):
            store.submit(f"{number:>1000}")
            await asyncio.sleep(0)
        quick_heard = asyncio.ensure_future(quick.data(200))
        await until(lambda: slow.outlet.closed)
        assert connections.counts.too_slow == 1
        assert store.subscribers == {quick.outlet}
        assert len(await quick_heard) == 200


async def test_e5_who_is_behind_for_a_moment_is_not_cut_off(until: Any) -> None:
    store = QueueStore()
    connections = Connections(heartbeat=0.1)
    async with listening(connections, behind=Behind("disconnect", max_seconds=5, max_bytes=1 << 30)) as listen:
        slow = listen(store, small=True)
        for number in range(100):
            store.submit(f"{number:>1000}")
        assert len(await slow.data(100)) == 100
        await until(lambda: slow.outlet._cursors is None)
        assert not connections._behind
        assert connections.counts.too_slow == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "drop"},
        {"max_bytes": 0},
        {"max_seconds": 0},
        {"policy": "gap", "max_seconds": 3},
        {"policy": "latest", "max_bytes": 1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"behind|above 0|bounds of 'disconnect'"):
        Behind(**wrong)


async def test_f50_what_a_stalled_reader_costs_does_not_grow() -> None:
    store = QueueStore(max_messages=100)
    connections = Connections()
    async with listening(connections) as listen:
        slow = listen(store, small=True)
        sizes = set()
        for number in range(3000):
            store.submit(f"{number:>1000}")
            await asyncio.sleep(0)
            if number > 1000:
                sizes.add(len(slow.outlet._stream._write_buffer))
        assert len(sizes) == 1
        assert sizes.pop() < 256 * 1024
        assert len(store.log) == 100


# Periods


async def test_b18_with_a_period_there_is_one_writing_in_each_and_the_latest_of_a_data_store(until: Any) -> None:
    store = DataStore()
    async with listening(Connections(heartbeat=0), period=0.1) as listen:
        ears = [listen(store) for _ in range(3)]
        begin = time.monotonic()
        times = []
        for number in range(5):
            store.set_data(number * 10)  # goes out at once, or with the next writing
            await asyncio.sleep(0)
            store.set_data(number * 10 + 1)
            await asyncio.sleep(0)
            store.set_data(number * 10 + 2)
            heard = [await ear.hear() for ear in ears]
            while str(number * 10 + 2).encode() not in heard[0]:
                assert heard[0].count(b"data: ") == 1
                times.append(time.monotonic())
                heard = [await ear.hear() for ear in ears]
            times.append(time.monotonic())
            assert heard[0].count(b"data: ") == 1
            assert len(set(heard)) == 1
        assert len(times) <= (times[-1] - begin) / 0.1 + 2


async def test_b18_with_a_period_a_queue_store_sends_what_has_come_as_one_batch() -> None:
    store = QueueStore()
    async with listening(Connections(heartbeat=0), period=0.2) as listen:
        ear = listen(store)
        store.submit("first")
        assert (await ear.hear()).count(b"data: ") == 1
        for number in range(10):
            store.submit(str(number))
            await asyncio.sleep(0)
        assert (await ear.hear()).count(b"data: ") == 10


async def test_b18_who_comes_within_a_period_has_the_current_value_at_once_and_the_next_one_once() -> None:
    store = DataStore()
    async with listening(Connections(heartbeat=0), period=0.3) as listen:
        first = listen(store)
        store.set_data("a")
        assert await first.data(1) == ["a"]
        store.set_data("b")
        await asyncio.sleep(0)
        second = listen(store)
        assert await second.data(1) == ["b"]
        assert await first.data(1) == ["b"]
        store.set_data("c")
        assert await first.data(1) == await second.data(1) == ["c"]


async def test_a_period_leaves_no_timer_behind() -> None:
    store = QueueStore()
    connections = Connections()
    async with listening(connections, period=60.0) as listen:
        ear = listen(store)
        await store.submit("a")
        assert await ear.data(1) == ["a"]
        [audience] = [each for each in connections._audiences.values() if each.stores]
        pause = audience._pause
        assert pause is not None
        ear.outlet.close()
        assert pause.cancelled()


# Odd logs


async def test_a_log_that_time_has_emptied_wakes_nobody_for_nothing() -> None:
    class Forgetful(QueueStore):
        def _make_log(self) -> Log:
            return Log(max_age=0.01)

    store = Forgetful()
    async with listening(Connections()) as listen:
        ear = listen(store)
        await store.submit("a")
        assert await ear.data(1) == ["a"]
        await store.submit("b")
        assert await ear.data(1) == ["b"]
