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
    DataStore,
    Message,
    Position,
    QueueStore,
    Submitted,
)


def test_stores_are_made_before_any_loop_runs(listen: Any) -> None:
    stores = [DataStore("first"), QueueStore()]
    stores[1].submit("early")

    async def use() -> list[list[Any]]:
        readers = [listen(stores[0]), listen(stores[1], {stores[1].log.epoch: 0})]
        return [await reader.until(1) for reader in readers]

    assert asyncio.run(use()) == [["first"], ["early"]]
    assert asyncio.run(use()) == [["first"], ["early"]]


def test_a_store_is_served_by_one_loop_after_another(listen: Any) -> None:
    store = QueueStore()

    async def leave_a_flush_behind() -> None:
        listen(store)
        store.submit("a")

    async def use() -> list[Any]:
        reader = listen(store)
        store.submit("b")
        return await reader.until(1)

    asyncio.run(leave_a_flush_behind())
    assert asyncio.run(use()) == ["b"]


def test_a_data_store_sends_only_the_last_of_a_burst(listen: Any) -> None:
    async def use() -> list[Any]:
        store = DataStore()
        reader = listen(store)
        store.set_data("a")
        store.submit("b")
        store.data = "c"
        assert store.data == "c"
        await reader.until(1)
        return reader.got

    assert asyncio.run(use()) == ["c"]


def test_a_late_subscriber_of_a_data_store_gets_the_current_value(listen: Any) -> None:
    async def use() -> list[Any]:
        store = DataStore()
        for number in range(5):
            store.set_data(number)
        return await listen(store).until(1)

    assert asyncio.run(use()) == [4]


def test_a_subscriber_that_has_seen_the_current_value_does_not_get_it_again(listen: Any) -> None:
    async def use() -> tuple[list[Any], list[Any]]:
        store = DataStore("seen")
        seen = listen(store, {store.log.epoch: 1})
        elsewhere = listen(store, {"another": 1})
        await elsewhere.until(1)
        return seen.got, elsewhere.got

    assert asyncio.run(use()) == ([], ["seen"])


def test_a_queue_store_misses_nothing_and_wakes_once_for_a_burst(listen: Any) -> None:
    async def use() -> None:
        store = QueueStore()
        reader = listen(store)
        for number in range(100):
            store.submit(number)
        assert await reader.until(100) == list(range(100))
        assert reader.woken == 1

    asyncio.run(use())


@pytest.mark.parametrize("bounds", [{"max_messages": 100}, {"max_bytes": 10_000}, {"max_messages": 1}])
def test_a_burst_longer_than_the_log_does_not_pass_by_who_keeps_up(bounds: dict[str, int], listen: Any) -> None:
    async def use() -> None:
        store = QueueStore(**bounds)
        reader = listen(store)
        for number in range(5000):
            store.submit(number)
        assert await reader.until(5000) == list(range(5000))
        assert reader.woken <= 5000
        assert len(store.log) < 5000

    asyncio.run(use())


def test_a_long_burst_of_values_is_one_value_all_the_same(listen: Any) -> None:
    async def use() -> None:
        store = DataStore()
        reader = listen(store)
        for number in range(5000):
            store.set_data(number)
        assert await reader.until(1) == [4999]
        assert reader.woken == 1

    asyncio.run(use())


def test_a_subscriber_of_a_queue_store_begins_now_or_where_it_stopped(listen: Any) -> None:
    async def use() -> tuple[list[Any], list[Any]]:
        store = QueueStore()
        for number in range(3):
            await store.submit(number)
        new, back = listen(store), listen(store, {store.log.epoch: 1})
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


def test_registering_twice_is_once_and_deregistering_a_stranger_is_harmless(listen: Any) -> None:
    async def use() -> None:
        store = QueueStore()
        reader = listen(store)
        store.register(reader)
        store.submit("a")
        assert await reader.until(1) == ["a"]
        store.deregister(reader)
        store.deregister(reader)
        store.submit("b")
        watcher = listen(store, {store.log.epoch: 1})
        await watcher.until(1)
        assert reader.got == ["a"]

    asyncio.run(use())


def test_a_failing_subscriber_harms_no_other(caplog: pytest.LogCaptureFixture, listen: Any) -> None:
    class Failing:
        def wake(self, store: BaseStore) -> None:
            raise RuntimeError("broken on purpose")

    async def use() -> None:
        store = QueueStore()
        readers = [listen(store) for _ in range(5)]
        failing = Failing()
        store.register(failing)
        with caplog.at_level(logging.ERROR, "waterspout.core"):
            store.submit("a")
            for reader in readers:
                assert await reader.until(1) == ["a"]
        assert failing not in store.subscribers
        assert "broken on purpose" in caplog.text

    asyncio.run(use())


def test_a_store_of_ones_own_says_what_submit_does(listen: Any) -> None:
    class Shouting(BaseStore):
        def initialize(self, mark: str) -> None:
            self.mark = mark

        def submit(self, data: str, event: str | None = None) -> Awaitable[Position | None]:
            self.append(Message(data.upper() + self.mark, event))
            return asyncio.sleep(0)  # type: ignore[return-value]

    async def use() -> list[Any]:
        store = Shouting("!")
        reader = listen(store)
        await store.submit("a")
        return await reader.until(1)

    assert asyncio.run(use()) == ["A!"]
    with pytest.raises(NotImplementedError, match="BaseStore"):
        BaseStore().submit("a")


def test_a_store_that_nobody_holds_any_more_is_gone_at_once_with_its_log(listen: Any) -> None:
    async def use() -> None:
        store = QueueStore()
        listen(store)
        await store.submit("x" * 1000)
        await asyncio.sleep(0)
        for reader in tuple(store.subscribers):
            store.deregister(reader)
        del reader
        gone = weakref.ref(store)
        del store
        assert gone() is None  # not when the garbage collector comes by, which counts objects and not bytes

    gc.disable()
    try:
        asyncio.run(use())
    finally:
        gc.enable()


def test_a_store_of_ones_own_returns_what_append_gives() -> None:
    class Shouting(BaseStore):
        def submit(self, data: Any, event: str | None = None) -> Submitted:
            return self.append(Message(data.upper(), event))

    async def use() -> None:
        async with Shouting() as store, store.subscribe() as messages:
            position = await store.submit("goal")
            assert position == Position(store.log.epoch, 1)
            assert await anext(messages) == Message("GOAL")
            assert await asyncio.to_thread(lambda: store.submit_threadsafe("again").result(5)) == store.log.position

    asyncio.run(use())


def test_what_is_no_entry_is_not_appended() -> None:
    store = QueueStore()
    with pytest.raises(TypeError, match="a Message or a Gap, not 'raw'"):
        store.append("raw")  # type: ignore[arg-type]
    assert store.log.top == 0


def test_a_subscription_that_was_closed_in_the_middle_knows_where_it_was() -> None:
    async def use() -> None:
        store = QueueStore()
        subscription = store.subscribe()
        for text in "abcd":
            store.submit(text)
        assert [await anext(subscription), await anext(subscription)] == [Message("a"), Message("b")]
        await subscription.aclose()
        assert subscription.position == Position(store.log.epoch, 2)
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
        again = store.subscribe(after=subscription.position)
        assert await anext(again) == Message("c")

    asyncio.run(use())
