"""What a store owes that keeps every message within a bound."""

from __future__ import annotations

import asyncio

import pytest

from .._message import Gap, Message
from .._position import EARLIEST, Position, new_epoch
from .contract import Reader, take, values
from .contract_stores import AnyStoreContract
from .ledger import Ledger


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
                    await store.submit("live")
                    assert values(await take(subscription, len(kept))) == kept

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
