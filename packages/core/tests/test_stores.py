"""Stores: what a late, a slow and a punctual subscriber get."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable
from typing import Any

import pytest

from waterspout_core import (
    BadMessage,
    BaseStore,
    BrokerError,
    ChannelStore,
    DataStore,
    Envelope,
    Gap,
    MemoryBroker,
    MemoryPubSub,
    Message,
    Position,
    QueueStore,
)


class Reader:
    """A subscriber that notes what it reads, and how often it was woken."""

    def __init__(self, store: BaseStore, offsets: dict[str, int] | None = None) -> None:
        self.after = store.cursor(offsets)
        self.got: list[Any] = []
        self.woken = 0
        self.some = asyncio.Event()
        store.register(self)
        self.wake(store)
        self.woken = 0

    def wake(self, store: BaseStore) -> None:
        self.woken += 1
        first, entries = store.log.read(self.after)
        self.after = first + len(entries) - 1
        self.got += [entry.data if isinstance(entry, Message) else entry for entry in entries]
        self.some.set()

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(5):
            while len(self.got) < count:
                self.some.clear()
                await self.some.wait()
        return self.got


def test_stores_are_made_before_any_loop_runs() -> None:
    stores = [DataStore("first"), QueueStore()]
    stores[1].submit("early")

    async def use() -> list[list[Any]]:
        readers = [Reader(stores[0]), Reader(stores[1], {stores[1].log.epoch: 0})]
        return [await reader.until(1) for reader in readers]

    assert asyncio.run(use()) == [["first"], ["early"]]
    assert asyncio.run(use()) == [["first"], ["early"]]


def test_a_store_is_served_by_one_loop_after_another() -> None:
    store = QueueStore()

    async def leave_a_flush_behind() -> None:
        Reader(store)
        store.submit("a")

    async def use() -> list[Any]:
        reader = Reader(store)
        store.submit("b")
        return await reader.until(1)

    asyncio.run(leave_a_flush_behind())
    assert asyncio.run(use()) == ["b"]


def test_a_data_store_sends_only_the_last_of_a_burst() -> None:
    async def use() -> list[Any]:
        store = DataStore()
        reader = Reader(store)
        store.set_data("a")
        store.submit("b")
        store.data = "c"
        assert store.data == "c"
        await reader.until(1)
        return reader.got

    assert asyncio.run(use()) == ["c"]


def test_a_late_subscriber_of_a_data_store_gets_the_current_value() -> None:
    async def use() -> list[Any]:
        store = DataStore()
        for number in range(5):
            store.set_data(number)
        return await Reader(store).until(1)

    assert asyncio.run(use()) == [4]


def test_a_subscriber_that_has_seen_the_current_value_does_not_get_it_again() -> None:
    async def use() -> tuple[list[Any], list[Any]]:
        store = DataStore("seen")
        seen = Reader(store, {store.log.epoch: 1})
        elsewhere = Reader(store, {"another": 1})
        await elsewhere.until(1)
        return seen.got, elsewhere.got

    assert asyncio.run(use()) == ([], ["seen"])


def test_a_queue_store_misses_nothing_and_wakes_once_for_a_burst() -> None:
    async def use() -> None:
        store = QueueStore()
        reader = Reader(store)
        for number in range(100):
            store.submit(number)
        assert await reader.until(100) == list(range(100))
        assert reader.woken == 1

    asyncio.run(use())


@pytest.mark.parametrize("bounds", [{"max_messages": 100}, {"max_bytes": 10_000}, {"max_messages": 1}])
def test_a_burst_longer_than_the_log_does_not_pass_by_who_keeps_up(bounds: dict[str, int]) -> None:
    async def use() -> None:
        store = QueueStore(**bounds)
        reader = Reader(store)
        for number in range(5000):
            store.submit(number)
        assert await reader.until(5000) == list(range(5000))
        assert reader.woken <= 5000
        assert len(store.log) < 5000

    asyncio.run(use())


def test_a_long_burst_of_values_is_one_value_all_the_same() -> None:
    async def use() -> None:
        store = DataStore()
        reader = Reader(store)
        for number in range(5000):
            store.set_data(number)
        assert await reader.until(1) == [4999]
        assert reader.woken == 1

    asyncio.run(use())


def test_a_subscriber_of_a_queue_store_begins_now_or_where_it_stopped() -> None:
    async def use() -> tuple[list[Any], list[Any]]:
        store = QueueStore()
        for number in range(3):
            await store.submit(number)
        new, back = Reader(store), Reader(store, {store.log.epoch: 1})
        store.submit(3)
        await asyncio.gather(new.until(1), back.until(3))
        return new.got, back.got

    assert asyncio.run(use()) == ([3], [1, 2, 3])


def test_submit_tells_the_position() -> None:
    async def use() -> None:
        store = QueueStore()
        assert await store.submit("a") == Position(store.log.epoch, 1)
        assert await store.submit("b") == Position(store.log.epoch, 2)

    asyncio.run(use())


def test_a_payload_that_cannot_be_carried_leaves_the_store_as_it_was() -> None:
    store = DataStore("good")
    with pytest.raises(BadMessage):
        store.set_data({1, 2})
    assert store.data == "good"


def test_registering_twice_is_once_and_deregistering_a_stranger_is_harmless() -> None:
    async def use() -> None:
        store = QueueStore()
        reader = Reader(store)
        store.register(reader)
        store.submit("a")
        assert await reader.until(1) == ["a"]
        store.deregister(reader)
        store.deregister(reader)
        store.submit("b")
        watcher = Reader(store, {store.log.epoch: 1})
        await watcher.until(1)
        assert reader.got == ["a"]

    asyncio.run(use())


def test_a_failing_subscriber_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def wake(self, store: BaseStore) -> None:
            raise RuntimeError("broken on purpose")

    async def use() -> None:
        store = QueueStore()
        readers = [Reader(store) for _ in range(5)]
        failing = Failing()
        store.register(failing)
        with caplog.at_level(logging.ERROR, "waterspout.core"):
            store.submit("a")
            for reader in readers:
                assert await reader.until(1) == ["a"]
        assert failing not in store.subscribers
        assert "broken on purpose" in caplog.text

    asyncio.run(use())


def test_a_store_of_ones_own_says_what_submit_does() -> None:
    class Shouting(BaseStore):
        def initialize(self, mark: str) -> None:
            self.mark = mark

        def submit(self, data: str, event: str | None = None) -> Awaitable[Position | None]:
            self.append(Message(data.upper() + self.mark, event))
            return asyncio.sleep(0)  # type: ignore[return-value]

    async def use() -> list[Any]:
        store = Shouting("!")
        reader = Reader(store)
        await store.submit("a")
        return await reader.until(1)

    assert asyncio.run(use()) == ["A!"]
    with pytest.raises(NotImplementedError, match="BaseStore"):
        BaseStore().submit("a")


def channel_store(broker: MemoryBroker, channel: str = "news") -> ChannelStore:
    pubsub = MemoryPubSub(broker, protocol=Envelope())
    store = ChannelStore(channel, pubsub)
    pubsub.add_client(lambda name, message: store.feed(message))
    return store


def test_what_one_process_submits_all_of_them_get() -> None:
    async def use() -> tuple[list[Any], list[Any]]:
        broker = MemoryBroker()
        here, there = channel_store(broker), channel_store(broker)
        await asyncio.gather(here.ready(), there.ready())
        readers = Reader(here), Reader(there)
        here.submit({"n": 1})
        there.submit(b"\xff")
        return await readers[0].until(2), await readers[1].until(2)

    assert asyncio.run(use()) == ([{"n": 1}, b"\xff"], [{"n": 1}, b"\xff"])


def test_a_submission_through_a_broker_tells_its_own_position() -> None:
    async def use() -> None:
        broker = MemoryBroker()
        here, there = channel_store(broker), channel_store(broker)
        await asyncio.gather(here.ready(), there.ready())
        waiting = [store.submit(text) for text in ("a", "b", "a") for store in (there, here)]
        positions = await asyncio.gather(*waiting)
        for store, own in ((there, positions[0::2]), (here, positions[1::2])):
            assert [store.log.read(p.offset - 1)[1][0] for p in own if p] == [Message(t) for t in "aba"]
            assert len(set(own)) == 3
            assert not store._echoes

    asyncio.run(use())


def test_a_submission_that_nobody_hears_has_no_position() -> None:
    async def use() -> None:
        store = channel_store(MemoryBroker())
        assert await store.submit("into the void") is None
        await store.ready()
        store.pubsub.unsubscribe("news")
        assert await store.submit("again") is None
        assert not store._echoes

    asyncio.run(use())


def test_a_submission_whose_echo_was_lost_has_no_position() -> None:
    async def use() -> None:
        store = channel_store(MemoryBroker())
        await store.ready()
        waiting = store.submit("a")
        store.feed(Gap())
        assert await waiting is None

    asyncio.run(use())


def test_a_submission_that_does_not_come_back_in_time_has_no_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waterspout_core._stores.ECHO_TIMEOUT", 0.01)

    async def use() -> None:
        store = channel_store(MemoryBroker())
        await store.ready()
        store.pubsub._clients.clear()  # a link that has gone deaf: it is published, and nobody is told
        assert await asyncio.gather(*(store.submit(text) for text in "abc")) == [None] * 3
        store.pubsub.add_client(lambda name, message: store.feed(message))
        assert await store.submit("d") == Position(store.log.epoch, 1)

    asyncio.run(use())


def test_a_cancelled_publisher_does_not_disturb_the_next() -> None:
    async def use() -> None:
        store = channel_store(MemoryBroker())
        await store.ready()
        first, second = store.submit("a"), store.submit("a")
        first.cancel()
        assert await second == Position(store.log.epoch, 2)
        assert not store._echoes

    asyncio.run(use())


class LatePubSub(MemoryPubSub):
    """A broker far away: it confirms when the test says so."""

    def subscribe(self, *channels: str) -> asyncio.Future[None]:
        super().subscribe(*channels)
        self.confirmation: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return self.confirmation


def test_who_registered_before_the_broker_confirmed_is_told_of_a_gap() -> None:
    async def use() -> list[Any]:
        pubsub = LatePubSub(protocol=Envelope())
        store = ChannelStore("news", pubsub)
        store.subscribe()
        reader = Reader(store)
        pubsub.confirmation.set_result(None)
        return await reader.until(1)

    assert asyncio.run(use()) == [Gap()]


@pytest.mark.parametrize("pubsub", [MemoryPubSub, LatePubSub])
def test_who_registers_when_the_broker_has_confirmed_is_told_of_none(pubsub: type[MemoryPubSub]) -> None:
    async def use() -> list[Any]:
        broker = pubsub(protocol=Envelope())
        store = ChannelStore("news", broker)
        broker.add_client(lambda name, message: store.feed(message))
        store.subscribe()
        if isinstance(broker, LatePubSub):
            broker.confirmation.set_result(None)
        await store.ready()
        reader = Reader(store)
        store.submit("first")
        return await reader.until(1)

    assert asyncio.run(use()) == ["first"]


def test_who_waits_for_a_store_that_is_closed_is_told() -> None:
    async def use() -> None:
        store = ChannelStore("news", LatePubSub(protocol=Envelope()))
        waiting = asyncio.ensure_future(store.ready())
        await asyncio.sleep(0)
        store.unsubscribe()
        with pytest.raises(BrokerError, match="closed"):
            await waiting

    asyncio.run(use())


def test_who_stops_waiting_for_a_store_is_cancelled_and_the_others_go_on_waiting() -> None:
    async def use() -> None:
        pubsub = LatePubSub(protocol=Envelope())
        store = ChannelStore("news", pubsub)
        impatient, patient = (asyncio.ensure_future(store.ready()) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        pubsub.confirmation.set_result(None)
        await patient
        assert store.subscribed

    asyncio.run(use())


def test_a_store_that_nobody_holds_any_more_is_gone_at_once_with_its_log() -> None:
    async def use() -> None:
        store = QueueStore()
        Reader(store)
        await store.submit("x" * 1000)
        await asyncio.sleep(0)
        store.subscribers.clear()
        gone = weakref.ref(store)
        del store
        assert gone() is None  # not when the garbage collector comes by, which counts objects and not bytes

    gc.disable()
    try:
        asyncio.run(use())
    finally:
        gc.enable()


def test_a_closed_channel_store_has_left_the_broker() -> None:
    async def use() -> None:
        broker = MemoryBroker()
        async with channel_store(broker) as store:
            assert store.subscribed
            assert await store.pubsub.count("news") == {"news": 1}
        assert not store.subscribed
        assert not broker.channels

    asyncio.run(use())
