"""What a store owes to those who publish to it and to those who read it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from .._errors import BadMessage, BadPosition
from .._message import Gap, Message
from .._position import EARLIEST, Position, new_epoch
from .._stores import BaseStore
from .contract import PAYLOADS, Contract, Noted, Reader, take, values
from .ledger import Ledger


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
                assert await anext(subscription, "nothing") == "nothing"

        self.run(use())

    def test_what_is_no_position_is_refused(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                with pytest.raises(BadPosition):
                    store.subscribe(after="tomorrow")

        self.run(use())


class StoreContract(AnyStoreContract):
    """Every message, in order, within a bound: for stores like `QueueStore` and `RedisStore`."""

    keeps = True
    """Whether what is kept is given to those who come later: `"earliest"` and `history`."""

    def test_a_burst_arrives_in_order_and_once(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as subscription:
                reader, numbers = Reader(store), list(range(1000))
                await asyncio.gather(*[store.submit(number) for number in numbers])
                assert values(await reader.until(1000)) == numbers
                assert values(await take(subscription, 1000)) == numbers

        self.run(use())

    def test_b8_a_late_subscriber_gets_what_comes_from_then_on(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as early:
                await store.submit("before")
                await take(early, 1)
                async with store.subscribe() as late:
                    await store.submit("after")
                    assert values(await take(late, 1)) == ["after"]
                    assert values(await take(early, 1)) == ["after"]

        self.run(use())

    def test_who_comes_back_goes_on_where_it_stopped(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                async with store.subscribe() as subscription:
                    for number in range(6):
                        await store.submit(number)
                    assert values(await take(subscription, 2)) == [0, 1]
                    position = subscription.position
                    assert position is not None
                    assert values(await take(subscription, 4)) == [2, 3, 4, 5]
                for after in (position, str(position), f"{new_epoch()}-7,{position}"):
                    async with store.subscribe(after=after) as again:
                        assert values(await take(again, 4)) == [2, 3, 4, 5]

        self.run(use())

    def test_nothing_is_missed_between_the_position_and_the_subscription(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as other:
                await store.submit("in the state already")
                await take(other, 1)
                position = await store.position()
                await store.submit("meanwhile")
                await take(other, 1)
                async with store.subscribe(after=position) as subscription:
                    assert values(await take(subscription, 1)) == ["meanwhile"]
                    assert subscription.position == await store.position()

        self.run(use())

    @pytest.mark.parametrize("beyond", [False, True], ids=["unknown epoch", "F37: above the top"])
    def test_f32_an_unknown_position_is_one_gap_and_then_the_live_messages(self, beyond: bool) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                ledger = Ledger()
                account = ledger.reader("it", "lost one")
                async with store.subscribe() as other:
                    for number in range(3):
                        await ledger.submit(store, "it", number)
                    await take(other, 3)
                top = await store.position()
                unknown = Position(top.epoch, top.offset + 5) if beyond else Position(new_epoch(), 3)
                async with store.subscribe(after=unknown) as subscription:
                    entries = [await anext(subscription)]
                    assert entries == [Gap()]
                    await ledger.submit(store, "it", "live")
                    while entries[-1] != Message("live"):
                        entries.append(await anext(subscription))
                assert sum(isinstance(entry, Gap) for entry in entries) == 1
                for entry in entries:
                    account.got(entry)
                ledger.check()

        self.run(use())

    def test_the_earliest_is_all_that_is_kept_without_a_gap(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as other:
                for number in range(3):
                    await store.submit(number)
                await take(other, 3)
                kept = [0, 1, 2, "live"] if self.keeps else ["live"]
                async with store.subscribe(after=EARLIEST) as subscription:
                    reading = asyncio.create_task(take(subscription, len(kept)))
                    await asyncio.sleep(0)
                    await store.submit("live")
                    assert values(await reading) == kept

        self.run(use())

    def test_the_history_is_the_newest_messages_with_their_positions(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as other:
                for number in range(5):
                    await store.submit(number)
                await take(other, 5)
                for limit in (0, 2, 5, 10):
                    found = await store.history(limit)
                    assert values([message for _, message in found]) == list(range(5))[5 - min(limit, 5) :] * self.keeps
                    for position, message in found:
                        async with store.subscribe(after=position) as subscription:
                            expected = list(range(message.data + 1, 5))
                            assert values(await take(subscription, len(expected))) == expected

        self.run(use())

    @pytest.mark.parametrize("bounds", [{"max_messages": 10}, {"max_bytes": 20_000}], ids=["messages", "bytes"])
    def test_f51_who_falls_behind_the_bound_is_told_exactly_what_is_lost(self, bounds: dict[str, int]) -> None:
        async def use() -> None:
            async with self.open_store(**bounds) as store, store.subscribe() as slow:
                fast, ledger = Reader(store), Ledger()
                account = ledger.reader("it", "slow one")
                for number in range(100):
                    await ledger.submit(store, "it", f"{number}".ljust(1000))
                await fast.until(100)
                # F50: what waits for the slow one is the store's log, which is bounded.
                assert len(store.log) <= bounds.get("max_messages", 100)
                assert store.log.size <= bounds.get("max_bytes", 10**9)
                while not account.entries or account.entries[-1][0] != fast.got[-1]:
                    account.got(await anext(slow), slow.position)
                ledger.check()
                first = account.entries[0][0]
                assert isinstance(first, Gap)
                assert first.missed == 101 - len(account.entries)

        self.run(use())

    def test_who_reads_at_once_misses_nothing_of_a_burst_beyond_the_bound(self) -> None:
        async def use() -> None:
            async with self.open_store(max_messages=50) as store:
                reader = Reader(store)
                await asyncio.gather(*[store.submit(number) for number in range(1000)])
                assert values(await reader.until(1000)) == list(range(1000))

        self.run(use())

    def test_f53_nobody_waits_for_one_that_does_not_read(self) -> None:
        async def use() -> None:
            async with self.open_store() as store, store.subscribe() as idle, store.subscribe() as stuck:
                reader = Reader(store)
                assert stuck.position == await store.position()
                for number in range(300):
                    await store.submit(number)
                assert values(await reader.until(300)) == list(range(300))
                assert values(await take(idle, 300)) == list(range(300))

        self.run(use())

    def test_readers_that_come_and_go_get_all_of_it_once(self) -> None:
        async def use() -> None:
            async with self.open_store() as store:
                ledger = Ledger()
                accounts = [ledger.reader("it", f"reader {number}") for number in range(5)]
                for account in accounts:
                    account.after = await store.position()

                async def come_and_go(steps: int) -> None:
                    account = accounts[steps - 1]
                    for _ in range(10):
                        following = asyncio.create_task(account.follow(store))
                        for _ in range(steps * 3):
                            await asyncio.sleep(0)
                        following.cancel()
                        await asyncio.wait((following,))
                    await account.follow(store)

                readers = [asyncio.create_task(come_and_go(steps)) for steps in range(1, 6)]
                for number in range(200):
                    await ledger.submit(store, "it", number)
                    await asyncio.sleep(0)  # in one process nothing would have to be waited for
                await ledger.settled()
                for reader in readers:
                    reader.cancel()
                await asyncio.wait(readers)
                assert not any(isinstance(entry, Gap) for account in accounts for entry, _ in account.entries)

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
