"""Stores that a broker feeds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from waterspout_core import (
    BrokerError,
    ChannelStore,
    Envelope,
    Gap,
    MemoryBroker,
    MemoryPubSub,
    Message,
    Position,
)


def channel_store(broker: MemoryBroker, channel: str = "news") -> ChannelStore:
    pubsub = MemoryPubSub(broker, protocol=Envelope())
    store = ChannelStore(channel, pubsub)
    pubsub.add_client(lambda name, message: store.feed(message))
    return store


def test_what_one_process_submits_all_of_them_get(listen: Any) -> None:
    async def use() -> tuple[list[Any], list[Any]]:
        broker = MemoryBroker()
        here, there = channel_store(broker), channel_store(broker)
        await asyncio.gather(here.ready(), there.ready())
        readers = listen(here), listen(there)
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
    monkeypatch.setattr("waterspout_core._channel_stores.ECHO_TIMEOUT", 0.01)

    async def use() -> None:
        store = channel_store(MemoryBroker())
        await store.ready()
        store.pubsub._clients.clear()  # a link that has gone deaf: it is published, and nobody is told
        assert await asyncio.gather(*(store.submit(text) for text in "abc")) == [None] * 3
        store.pubsub.add_client(lambda name, message: store.feed(message))
        assert not store._echoes
        assert await store.submit("a") == Position(store.log.epoch, 1)

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


def test_who_registered_before_the_broker_confirmed_is_told_of_a_gap(listen: Any) -> None:
    async def use() -> list[Any]:
        pubsub = LatePubSub(protocol=Envelope())
        store = ChannelStore("news", pubsub)
        store.subscribe()
        reader = listen(store)
        pubsub.confirmation.set_result(None)
        return await reader.until(1)

    assert asyncio.run(use()) == [Gap()]


@pytest.mark.parametrize("pubsub", [MemoryPubSub, LatePubSub])
def test_who_registers_when_the_broker_has_confirmed_is_told_of_none(pubsub: type[MemoryPubSub], listen: Any) -> None:
    async def use() -> list[Any]:
        broker = pubsub(protocol=Envelope())
        store = ChannelStore("news", broker)
        broker.add_client(lambda name, message: store.feed(message))
        store.subscribe()
        if isinstance(broker, LatePubSub):
            broker.confirmation.set_result(None)
        await store.ready()
        reader = listen(store)
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


def test_a_closed_channel_store_has_left_the_broker() -> None:
    async def use() -> None:
        broker = MemoryBroker()
        async with channel_store(broker) as store:
            assert store.subscribed
            assert await store.pubsub.count("news") == {"news": 1}
        assert not store.subscribed
        assert not broker.channels

    asyncio.run(use())
