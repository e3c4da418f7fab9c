"""What every store owes to those who publish to it and to those who read it, and the stores of one value."""

from __future__ import annotations

import asyncio
import logging

import pytest

from .._errors import BadMessage, BadPosition
from .._message import Message
from .._position import EARLIEST, Position, new_epoch
from .._stores import BaseStore
from .contract import PAYLOADS, Contract, Noted, Reader


class AnyStoreContract(Contract):
    """What all stores have in common; `StoreContract` and `DataStoreContract` add what is kept."""

    def open_store(self, **bounds: int) -> BaseStore:
        """Make the store to be tested: a new one, on a channel of its own, that keeps no more than `bounds` (of
        `max_messages` and `max_bytes`) say. The tests call `ready` and `aclose`; each call may be out of any loop."""
        raise NotImplementedError

    reopens = True
    """Whether a store that was closed may be opened again."""

    def test_what_is_submitted_reaches_every_subscriber(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                readers = [Reader(store) for _ in range(3)]
                async with store.subscribe() as subscription:
                    for number, text in enumerate("abc", 1):
                        await store.submit(text)
                        assert await anext(subscription) == Message(text)
                        for reader in readers:
                            assert (await reader.until(number))[number - 1 :] == [Message(text)]

        self.run(use())

    def test_f39_payloads_arrive_as_they_were_given(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as subscription:
                for payload in PAYLOADS:
                    await store.submit(payload)
                    entry = await anext(subscription)
                    assert isinstance(entry, Message)
                    assert (type(entry.data), entry.data, entry.event) == (type(payload), payload, None)

        self.run(use())

    def test_an_event_keeps_its_name(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as subscription:
                for payload in ("text", b"\xff", 0, None):
                    await store.submit(payload, "góal")
                    assert await anext(subscription) == Message(payload, "góal")
                await store.submit("text", event="goal")
                assert await anext(subscription) == Message("text", "goal")

        self.run(use())

    def test_what_cannot_be_delivered_is_refused_at_once_and_leaves_no_trace(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as subscription:
                for payload, event in (({1, 2}, None), (float("nan"), None), ("text", "two\nlines"), ("text", "gap")):
                    with pytest.raises(BadMessage):
                        store.submit(payload, event)
                await store.submit("good")
                assert await anext(subscription) == Message("good")

        self.run(use())

    def test_registering_twice_is_once_and_who_is_deregistered_is_left_alone(self) -> None:
        class Counter(Noted):
            def wake(self, store: BaseStore) -> None:
                self.note("woken")

        async def use() -> None:
            async with self.open_store() as store:
                counter, reader = Counter(), Reader(store)
                store.register(counter)
                store.register(counter)
                await store.submit("a")
                await reader.until(1)
                assert await counter.until(1) == ["woken"]
                store.deregister(counter)
                store.deregister(counter)
                await store.submit("b")
                await reader.until(2)
                assert counter.got == ["woken"]

        self.run(use())

    def test_a_subscriber_that_fails_is_left_out_and_harms_no_other(self, caplog: pytest.LogCaptureFixture) -> None:
        class Failing:
            calls = 0

            def wake(self, store: BaseStore) -> None:
                self.calls += 1
                raise RuntimeError("broken on purpose")

        async def use() -> None:
            async with self.open_store() as store:
                failing, readers = Failing(), [Reader(store) for _ in range(5)]
                store.register(failing)
                with caplog.at_level(logging.ERROR):
                    for number in (1, 2):
                        await store.submit("a")
                        for reader in readers:
                            await reader.until(number)
                assert failing.calls == 1
                assert "broken on purpose" in caplog.text

        self.run(use())

    def test_b3_a_store_is_made_before_any_loop_runs_and_serves_one_after_another(self) -> None:
        store = self.open_store()
        with pytest.raises(RuntimeError):
            store.submit_threadsafe("no loop serves it yet")

        async def use(text: str) -> None:
            async with store:
                reader = Reader(store)
                await store.submit(text)
                assert (await reader.until(1))[-1] == Message(text)
                store.deregister(reader)

        self.run(use("first loop"))
        if self.reopens:
            self.run(use("second loop"))

    def test_another_thread_submits_by_submit_threadsafe(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as subscription:

                def elsewhere(text: str) -> Position | None:
                    return store.submit_threadsafe(text, "goal").result(10)

                assert isinstance(await asyncio.to_thread(elsewhere, "a"), Position | None)
                assert await anext(subscription) == Message("a", "goal")

                def in_vain() -> None:
                    with pytest.raises(BadMessage):
                        store.submit_threadsafe({1, 2}).result(10)

                await asyncio.to_thread(in_vain)

        self.run(use())

    def test_a_closed_store_leaves_no_task_behind(self) -> None:
        async def use() -> None:
            before = asyncio.all_tasks()
            async with self.open_store() as store, store.subscribe() as subscription:
                await store.submit("a")
                await anext(subscription)
            assert asyncio.all_tasks() == before
            await store.aclose()  # twice is once

        self.run(use())

    def test_closing_a_subscription_ends_it_for_who_waits(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                subscription = store.subscribe()

                async def read() -> list[object]:
                    return [entry async for entry in subscription]

                waiting = asyncio.create_task(read())
                await asyncio.sleep(0)
                await subscription.aclose()
                assert await waiting == []
                assert not store.subscribers
                assert await anext(subscription, "nothing") == "nothing"

        self.run(use())

    def test_what_is_no_position_is_refused(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                with pytest.raises(BadPosition):
                    store.subscribe(after="tomorrow")

        self.run(use())


class DataStoreContract(AnyStoreContract):
    """The latest value, and nothing else: for stores like `DataStore`."""

    def test_a_late_subscriber_gets_the_current_value_at_once(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                for number in range(5):
                    await store.submit(number)
                for after in (None, EARLIEST, Position(new_epoch(), 3)):
                    async with store.subscribe(after=after) as subscription:
                        assert await anext(subscription) == Message(4)

        self.run(use())

    def test_who_has_seen_the_current_value_gets_the_next_one(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                await store.submit("seen")
                async with store.subscribe(after=await store.position()) as subscription:
                    await store.submit("new")
                    assert await anext(subscription) == Message("new")

        self.run(use())

    def test_b5_values_that_follow_at_once_are_one(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                reader = Reader(store)
                await asyncio.gather(*[store.submit(number) for number in range(3)])
                await reader.until(1)
                await store.submit("end")
                while reader.got[-1] != Message("end"):
                    await reader.until(len(reader.got) + 1)
                assert reader.got == [Message(2), Message("end")]

        self.run(use())

    def test_f50_who_is_slow_gets_the_latest_value_and_no_gap(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as slow:
                await store.submit("first")
                assert await anext(slow) == Message("first")
                reader = Reader(store)
                for number in range(100):
                    await store.submit(number)
                while not reader.got or reader.got[-1] != Message(99):
                    await reader.until(len(reader.got) + 1)
                assert len(store.log) == 1
                assert await anext(slow) == Message(99)
                assert [message for _, message in await store.history(10)] == [Message(99)]

        self.run(use())
