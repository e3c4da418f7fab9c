"""Stores that a broker feeds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from waterspout_core import (
    EARLIEST,
    BadMessage,
    BrokerError,
    ChannelStore,
    Gap,
    History,
    MemoryBroker,
    MemoryPubSub,
    Message,
    open_pubsub,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


def channel_store(broker: MemoryBroker, channel: str = "news", history: History | None = None) -> ChannelStore:
    return ChannelStore(channel, MemoryPubSub(broker, history=history))


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

    asyncio.run(use())


def test_without_a_history_what_nobody_hears_has_no_position() -> None:
    async def use() -> None:
        pubsub = MemoryPubSub()
        assert await pubsub.submit("news", Message("into the void")) is None
        assert await ChannelStore("news", pubsub).submit("heard") is not None

    asyncio.run(use())


def test_with_a_history_what_was_published_before_the_first_store_is_in_it(listen: Any) -> None:
    async def use() -> None:
        broker = MemoryBroker()
        positions = [await MemoryPubSub(broker, history=History()).submit("ns:news", Message(text)) for text in "abc"]
        async with ChannelStore("news", MemoryPubSub(broker, history=History()), topic="ns:news") as store:
            assert store.channel == "news"
            reader = listen(store, {positions[0].epoch: 1})  # type: ignore[union-attr]
            assert await reader.until(2) == ["b", "c"]
            assert await store.history(2) == list(zip(positions[1:], map(Message, "bc"), strict=True))

    asyncio.run(use())


def test_the_log_of_a_channel_that_nobody_reads_is_kept_for_the_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("waterspout_core._memory.time.monotonic", lambda: now)

    async def use() -> None:
        nonlocal now
        broker, history = MemoryBroker(), History(10, 60.0)
        async with channel_store(broker, history=history) as store:
            await store.submit("a")
            epoch = store.log.epoch
        del store
        now += 59
        async with channel_store(broker, history=history) as store:
            assert store.log.epoch == epoch
        del store
        now += 61
        async with channel_store(broker, "another", history):
            pass  # whoever is let go next takes those with it whose time is over
        async with channel_store(broker, history=history) as store:
            assert store.log.epoch != epoch

    asyncio.run(use())


def test_the_logs_that_nobody_reads_are_bounded_in_bytes_and_the_oldest_go_first() -> None:
    async def use() -> None:
        broker = MemoryBroker(max_total_bytes=5000)
        pubsub = MemoryPubSub(broker, history=History())
        for channel in "abc":
            await pubsub.submit(channel, Message("x" * 2000))
        assert list(broker.feeds) == ["b", "c"]
        await pubsub.submit("b", Message("again"))
        await pubsub.submit("d", Message("x" * 2000))
        assert list(broker.feeds) == ["b", "d"]

    asyncio.run(use())


def test_the_same_key_is_published_once_on_a_channel() -> None:
    async def use() -> None:
        broker = MemoryBroker()
        async with channel_store(broker, history=History()) as here:
            first = await here.submit("a", key="k")
            assert await channel_store(broker, history=History()).submit("a again", key="k") == first
            assert await here.submit("b", key="l") != first
            assert await channel_store(broker, "other", History()).submit("a", key="k") != first
            assert [message.text for _, message in await here.history(10)] == ["a", "b"]

    asyncio.run(use())


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", 5])
def test_a_bad_key_is_refused(key: Any) -> None:
    async def use() -> None:
        with pytest.raises(BadMessage, match="idempotency key"):
            await channel_store(MemoryBroker(), history=History()).submit("a", key=key)

    asyncio.run(use())


def test_a_key_without_a_history_is_refused() -> None:
    async def use() -> None:
        with pytest.raises(BadMessage, match="needs a history"):
            await channel_store(MemoryBroker()).submit("a", key="k")

    asyncio.run(use())


# A server that is far away: it confirms when the test says so.


@pytest.mark.parametrize("history", [0, 10])
def test_f31_who_registered_before_the_broker_confirmed_is_told_of_a_gap(
    redis_server: RunningServer, listen: Any, history: int
) -> None:
    async def use() -> list[Any]:
        async with FaultProxy(redis_server.port) as far, open_pubsub(far.url, history=history) as pubsub:
            store = ChannelStore("news", pubsub)
            far.disturb(Faults(black_hole=True))
            store.open()
            reader = listen(store)
            assert not store.subscribed
            far.heal()
            await store.ready()
            store.submit("first")
            return await reader.until(2)

    assert run(use()) == [Gap(), "first"]


@pytest.mark.parametrize("kept", [0, 2])
def test_f31_who_registers_over_a_link_that_is_up_misses_nothing_from_then_on(
    redis_server: RunningServer, listen: Any, kept: int
) -> None:
    async def use() -> list[Any]:
        async with FaultProxy(redis_server.port) as far, open_pubsub(far.url, history=10) as pubsub:
            for text in "ab"[:kept]:
                await pubsub.submit("news", Message(text))
            await ChannelStore("other", pubsub).ready()
            far.to_client.faults = Faults(hold_at=b"subscribe")
            store = ChannelStore("news", pubsub)
            store.open()
            assert store.covered
            reader = listen(store)
            await store.submit("first")
            assert not store.subscribed
            far.heal()
            await store.ready()
            store.submit("second")
            await reader.until(2)
            # Who comes by a position finds no gap either, where nothing was lost.
            _, entries = store.log.read(await store.seek({EARLIEST: 0}))
            assert entries == [*map(Message, "ab"[:kept]), Message("first"), Message("second")]
            return reader.got

    assert run(use()) == ["first", "second"]


def test_f31_who_registers_over_a_link_that_breaks_then_is_told_of_a_gap(
    redis_server: RunningServer, listen: Any
) -> None:
    async def use() -> list[Any]:
        async with FaultProxy(redis_server.port) as far, open_pubsub(far.url, history=10) as pubsub:
            await ChannelStore("other", pubsub).ready()
            far.disturb(Faults(black_hole=True))
            store = ChannelStore("news", pubsub)
            store.open()
            reader = listen(store)
            await asyncio.sleep(1.1)  # which nobody calls at once any more
            far.heal()
            await store.ready()
            store.submit("first")
            return await reader.until(2)

    assert run(use()) == [Gap(), "first"]


def test_who_asks_for_the_earliest_while_the_broker_is_away_is_told_that_there_may_be_more(
    fresh_redis_server: RunningServer,
) -> None:
    async def use() -> None:
        async with open_pubsub(fresh_redis_server.url, history=10) as pubsub:
            for text in "ab":
                await pubsub.submit("news", Message(text))
            store = ChannelStore("news", pubsub)
            await store.ready()
            await store.submit("c")
            await asyncio.to_thread(fresh_redis_server.kill)
            _, entries = store.log.read(await store.seek({EARLIEST: 0}))
            assert entries == [Gap(), Message("c")]

    run(use())


@pytest.mark.parametrize("history", [0, 10])
def test_f31_who_registers_when_the_broker_has_confirmed_is_told_of_none(
    redis_server: RunningServer, listen: Any, history: int
) -> None:
    async def use() -> list[Any]:
        async with open_pubsub(redis_server.url, history=history) as pubsub:
            store = ChannelStore("news", pubsub)
            await store.ready()
            assert redis_server.call("PUBSUB", "NUMSUB", "news") == [b"news", 1]
            reader = listen(store)
            store.submit("first")
            return await reader.until(1)

    assert run(use()) == ["first"]


@pytest.mark.parametrize("history", [0, 10])
def test_who_reads_already_when_the_broker_refuses_is_served_as_soon_as_it_does_not(
    fresh_redis_server: RunningServer,
    listen: Any,
    history: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("waterspout_core._channel_stores._RETRY", 0.05)
    fresh_redis_server.call("ACL", "SETUSER", "default", "resetchannels", "&other")

    async def use() -> list[Any]:
        async with open_pubsub(fresh_redis_server.url, history=history) as pubsub:
            store = ChannelStore("news", pubsub)
            reader = listen(store)
            with pytest.raises(BrokerError, match="NOPERM"):
                await store.ready()
            fresh_redis_server.call("ACL", "SETUSER", "default", "allchannels")
            await eventually(lambda: store.subscribed)
            store.submit("first")
            return await reader.until(2)

    assert run(use()) == [Gap(), "first"]
    assert "was refused, trying again" in caplog.text


def test_who_waits_for_a_store_that_is_closed_is_told(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as far, open_pubsub(far.url) as pubsub:
            far.disturb(Faults(black_hole=True))
            store = ChannelStore("news", pubsub)
            waiting = asyncio.ensure_future(store.ready())
            await asyncio.sleep(0)
            store.close()
            with pytest.raises(BrokerError, match="closed"):
                await waiting

    run(use())


def test_who_stops_waiting_for_a_store_is_cancelled_and_the_others_go_on_waiting(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as far, open_pubsub(far.url) as pubsub:
            far.disturb(Faults(black_hole=True))
            store = ChannelStore("news", pubsub)
            impatient, patient = (asyncio.ensure_future(store.ready()) for _ in range(2))
            await asyncio.sleep(0)
            impatient.cancel()
            with pytest.raises(asyncio.CancelledError):
                await impatient
            assert not store.subscribed
            far.heal()
            await patient
            assert store.subscribed

    run(use())


def test_a_closed_channel_store_has_left_the_broker() -> None:
    async def use() -> None:
        broker = MemoryBroker()
        async with channel_store(broker) as store:
            assert store.subscribed
            assert await store.pubsub.count("news") == {"news": 1}
        assert not store.subscribed
        assert not broker.channels

    asyncio.run(use())


def test_clients_are_not_told_what_only_stores_have_subscribed_and_unsubscribe_nothing_of_theirs() -> None:
    async def use() -> None:
        pubsub = MemoryPubSub()
        got: list[Any] = []
        pubsub.add_client(lambda channel, payload: got.append((channel, payload)))
        async with ChannelStore("a", pubsub) as store:
            await store.submit("for the store")
            await pubsub.subscribe("a")
            await store.submit("for both")
            pubsub.unsubscribe()
            await store.submit("for the store again")
            await asyncio.sleep(0.01)
            assert store.log.top == 3
            assert await pubsub.count("a") == {"a": 1}
        assert got == []  # too late: it was unsubscribed before it was told
        assert await pubsub.channels() == []

    asyncio.run(use())


def test_who_publishes_when_it_is_woken_does_not_take_the_position_of_who_woke_it() -> None:
    class Echo:
        def wake(self, store: Any) -> None:
            if store.log.top == 1:
                store.submit("echo")

    async def use() -> None:
        store = ChannelStore("a", MemoryPubSub(), max_messages=1)  # so small that each message wakes at once
        await store.ready()
        store.register(Echo())
        position = await store.submit("first")
        assert position is not None
        assert position.offset == 1

    asyncio.run(use())
