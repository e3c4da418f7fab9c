"""What a broker owes to the stores that it feeds: any node can serve any reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from .._channel_stores import ChannelStore
from .._errors import BadMessage
from .._message import Gap, Message
from .._position import EARLIEST
from .contract import PAYLOADS, BrokerContract, Listener, Reader, eventually, take, values
from .ledger import Ledger

with_and_without_history = pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])


class ChannelContract(BrokerContract):
    """Stores of one channel on several nodes, with history and without."""

    @asynccontextmanager
    async def node(self, channel: str, history: int) -> AsyncIterator[ChannelStore]:
        """The store of `channel` on a node of its own, for as long as the test has it."""
        async with self.open_pubsub(history=history) as pubsub, ChannelStore(channel, pubsub) as store:
            yield store

    @with_and_without_history
    def test_what_one_node_submits_all_of_them_get_in_the_same_order(self, history: int) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, history) as here, self.node(name, history) as there:
                readers = [Reader(here), Reader(there)]
                numbers = list(range(300))
                await asyncio.gather(*[(here, there)[number % 2].submit(number) for number in numbers])
                one, other = [values(await reader.until(300)) for reader in readers]
                assert one == other
                assert sorted(one) == numbers
                for parity in (0, 1):
                    assert [number for number in one if number % 2 == parity] == numbers[parity::2]

        self.run(use())

    @with_and_without_history
    def test_f39_payloads_and_events_arrive_on_other_nodes_as_they_were_given(self, history: int) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, history) as here, self.node(name, history) as there:
                reader = Reader(there)
                for payload in PAYLOADS:
                    await here.submit(payload)
                    await here.submit(payload, "goal")
                await here.submit((1, 2))
                expected = [Message(payload, event) for payload in PAYLOADS for event in (None, "goal")]
                assert await reader.until(len(expected) + 1) == [*expected, Message([1, 2])]

        self.run(use())

    @with_and_without_history
    def test_channels_do_not_mix(self, history: int) -> None:
        async def use() -> None:
            async with self.open_pubsub(history=history) as pubsub:
                names = [self.name() for _ in range(50)]
                stores = [ChannelStore(name, pubsub) for name in names]
                await asyncio.gather(*[store.ready() for store in stores])
                readers = [Reader(store) for store in stores]
                for number in range(3):
                    await asyncio.gather(*[store.submit(f"{number} {store.channel}") for store in stores])
                for name, reader in zip(names, readers, strict=True):
                    assert values(await reader.until(3)) == [f"{number} {name}" for number in range(3)]
                for store in stores:
                    await store.aclose()

        self.run(use())

    @with_and_without_history
    def test_b11_a_plain_publish_reaches_those_who_are_connected(self, history: int) -> None:
        async def use() -> None:
            name = self.name()
            async with (
                self.node(name, history) as here,
                self.node(name, history) as there,
                self.open_pubsub() as foreign,
                here.subscribe() as subscription,
            ):
                reader = Reader(there)
                await here.submit("one")
                assert await anext(subscription) == Message("one")
                assert await foreign.publish(name, "plain") >= 1
                assert await anext(subscription) == Message("plain")
                await there.submit("two")
                assert await anext(subscription) == Message("two")
                assert await reader.until(3) == [Message("one"), Message("plain"), Message("two")]
                await foreign.publish(name, b"\xff\x00")
                assert await anext(subscription) == Message(b"\xff\x00")

        self.run(use())

    def test_without_history_a_channel_carries_the_plain_message_for_any_program(self) -> None:
        async def use() -> None:
            name, client = self.name(), Listener()
            async with self.node(name, 0) as store, self.open_pubsub() as foreign:
                foreign.add_client(client)
                await foreign.subscribe(name)
                assert await store.submit("plain") is None or store.pubsub.history is None
                assert await client.until(1) == [(name, b"plain")]

        self.run(use())

    def test_an_idempotency_key_needs_a_history(self) -> None:
        async def use() -> None:
            async with self.node(self.name(), 0) as store:
                with pytest.raises(BadMessage):
                    await store.submit("x", key="k")

        self.run(use())

    @with_and_without_history
    def test_a_channel_is_given_back_with_its_last_store(self, history: int) -> None:
        async def use() -> None:
            async with self.open_pubsub(history=history) as pubsub, self.open_pubsub() as other:
                stores = [ChannelStore(self.name("a"), pubsub)]
                stores.append(ChannelStore(str(stores[0].channel), pubsub))
                await asyncio.gather(*[store.ready() for store in stores])
                name = stores[0].topic

                async def receivers() -> int:
                    return (await other.count(name))[name]

                async def nobody_is_left() -> bool:
                    return await receivers() == 0

                assert await receivers() == 1
                await stores[0].aclose()
                reader = Reader(stores[1])
                await stores[1].submit("still there")
                assert await reader.until(1) == [Message("still there")]
                await stores[1].aclose()
                await eventually(nobody_is_left)

        self.run(use())

    def test_a_cursor_from_one_node_resumes_on_any_other(self) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, 1000) as here:
                async with here.subscribe() as subscription:
                    for number in range(10):
                        await here.submit(number)
                    assert values(await take(subscription, 4)) == [0, 1, 2, 3]
                    cursor = str(subscription.position)
                async with self.node(name, 1000) as there, there.subscribe(after=cursor) as resumed:
                    assert values(await take(resumed, 6)) == [4, 5, 6, 7, 8, 9]
                    await here.submit("live")
                    assert await anext(resumed) == Message("live")
                    assert str(resumed.position) == str(await here.position())
            async with self.node(name, 1000) as later, later.subscribe(after=cursor) as resumed:
                assert values(await take(resumed, 7)) == [4, 5, 6, 7, 8, 9, "live"]

        self.run(use())

    def test_a_reader_of_a_virgin_channel_may_come_back_elsewhere(self) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, 1000) as here:
                position = await here.position()
            async with self.node(name, 1000) as elsewhere:
                await elsewhere.submit("first")
            async with self.node(name, 1000) as there, there.subscribe(after=position) as subscription:
                assert await anext(subscription) == Message("first")

        self.run(use())

    def test_submit_gives_the_position_that_readers_have(self) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, 1000) as here, self.node(name, 1000) as there, there.subscribe() as subscription:
                for number in range(5):
                    position = await (here, there)[number % 2].submit(number)
                    assert await anext(subscription) == Message(number)
                    assert subscription.position == position
                    assert await there.history(1) == [(position, Message(number))]

        self.run(use())

    def test_e11_the_same_key_is_published_once_by_whatever_node(self) -> None:
        async def use() -> None:
            name, other = self.name(), self.name()
            async with self.node(name, 1000) as here, self.node(name, 1000) as there:
                reader = Reader(there)
                first = await here.submit("a", key="k1")
                again = [await here.submit("a", key="k1"), await there.submit("changed", key="k1")]
                at_once = await asyncio.gather(here.submit("b", key="k2"), here.submit("b", key="k2"))
                await here.submit("end")
                assert again == [first, first]
                assert at_once[0] == at_once[1] != first
                assert values(await reader.until(3)) == ["a", "b", "end"]
                async with self.node(other, 1000) as elsewhere:
                    assert await elsewhere.submit("a", key="k1") != first  # another channel, another key

        self.run(use())

    def test_the_history_is_the_same_on_every_node(self) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, 1000) as here:
                for number in range(20):
                    await here.submit(number, "even" if number % 2 == 0 else None)
                async with self.node(name, 1000) as there:
                    for limit in (1, 5, 20, 100):
                        found = await there.history(limit)
                        assert found == (await here.history(limit))
                        assert values([message for _, message in found]) == list(range(20))[-limit:]
                    assert await there.history(0) == []

        self.run(use())

    def test_f61_no_more_is_kept_than_the_history_says(self) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, 5) as here:
                position = await here.position()
                for number in range(500):
                    await here.submit(number)
            async with self.node(name, 5) as there:
                assert [message.data for _, message in await there.history(100)] == [495, 496, 497, 498, 499]
                async with there.subscribe(after=EARLIEST) as subscription:
                    assert values(await take(subscription, 5)) == [495, 496, 497, 498, 499]
                async with there.subscribe(after=position) as subscription:
                    first, *others = await take(subscription, 6)
                    # As many as are missing: nothing was lost in silence.
                    if first == Gap(495):
                        assert values(others) == [495, 496, 497, 498, 499]
                    else:
                        assert values([first, *others]) == [0, 1, 2, 3, 4, 5]

        self.run(use())

    def test_f32_a_cursor_that_no_node_knows_is_one_gap(self) -> None:
        async def use() -> None:
            name = self.name()
            async with self.node(name, 1000) as here:
                await here.submit("old")
                async with self.node(name, 1000) as there, there.subscribe(after="f00ba47e11-3") as subscription:
                    assert await anext(subscription) == Gap()
                    await here.submit("live")
                    entries = [await anext(subscription)]
                    if entries == [Message("old")]:
                        entries = await take(subscription, 1)
                    assert entries == [Message("live")]

        self.run(use())

    def test_f30_readers_that_come_and_go_between_nodes_get_all_of_it_once(self) -> None:
        history = 10_000  # more than is published while a reader is away: nothing may be lost

        async def use() -> None:
            name, ledger = self.name(), Ledger()
            async with self.node(name, history) as a, self.node(name, history) as b:
                accounts = [ledger.reader(name, f"reader {number}", after=await a.position()) for number in range(6)]

                async def come_and_go(number: int) -> None:
                    account = accounts[number]
                    for times in range(8):
                        # The first of them goes before it gets anything.
                        enough = len(account.entries) + number * 20
                        # Every other time a node that has just come up, and has nothing yet.
                        async with self.node(name, history) as fresh:
                            store = (a, fresh, b, fresh)[(number + times) % 4]
                            following = asyncio.create_task(account.follow(store))
                            while len(account.entries) < enough:  # in the midst of it, at any place
                                assert not following.done(), following
                                await asyncio.sleep(0)
                            following.cancel()
                            await asyncio.wait((following,))

                rounds = [asyncio.create_task(come_and_go(number)) for number in range(6)]

                async def publish(store: ChannelStore, publisher: str) -> None:
                    burst = 0
                    while not all(one.done() for one in rounds):
                        burst += 1
                        texts = [f"{publisher} {burst} {number}" for number in range(10)]
                        await asyncio.gather(*[ledger.submit(store, name, text) for text in texts])
                        await asyncio.sleep(0.001)

                await asyncio.gather(publish(a, "a"), publish(b, "b"), *rounds)
                following = [asyncio.create_task(account.follow(b)) for account in accounts]
                await ledger.settled()
                for task in following:
                    task.cancel()
                await asyncio.wait(following)
                assert not any(isinstance(entry, Gap) for account in accounts for entry, _ in account.entries)

        self.run(use())

    @with_and_without_history
    def test_who_reads_before_the_node_is_connected_misses_nothing_in_silence(self, history: int) -> None:
        async def use() -> None:
            name, ledger = self.name(), Ledger()
            async with self.node(name, history) as here, self.open_pubsub(history=history) as pubsub:
                store = ChannelStore(name, pubsub)
                account = ledger.reader(name, "early one")
                async with store.subscribe() as subscription:
                    opening = asyncio.create_task(store.ready())
                    for number in range(20):
                        await ledger.submit(here, name, number)
                    await opening
                    await ledger.submit(here, name, "end")
                    while not account.entries or account.entries[-1][0] != Message("end"):
                        account.got(await anext(subscription))
                    ledger.check()
                await store.aclose()

        self.run(use())
