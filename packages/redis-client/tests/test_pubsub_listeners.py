"""Several listeners on one link, and what happens where one of them is full."""

import asyncio
import itertools
from typing import Any

import pytest

from waterspout_redis import Client, Gap, LinkState, PubSubClient, PubSubMessage
from waterspout_redis.testing import RunningServer, eventually, run


async def publish(server: RunningServer, numbers: range, padding: bytes = b"") -> None:
    async with Client(server.url) as client:
        await asyncio.gather(*(client.call("PUBLISH", "a", b"%d:%s" % (number, padding)) for number in numbers))


def number_of(item: Any) -> int:
    return int(item.data.split(b":")[0])


async def take_until(listener: Any, last: int) -> list[Any]:
    """The numbers of the messages up to `last`; gaps are there as they are."""
    items: list[Any] = []
    async with asyncio.timeout(10):
        while not items or items[-1] != last:
            item = await anext(listener)
            items.append(item if isinstance(item, Gap) else number_of(item))
    return items


@pytest.mark.parametrize("protocol", [2, 3])
def test_every_listener_gets_every_message_and_every_gap(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub:
            listeners = [pubsub.listen() for _ in range(3)]
            await pubsub.subscribe("a")
            await publish(redis_server, range(100))
            for listener in listeners:
                assert await take_until(listener, 99) == list(range(100))
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            for listener in listeners:
                assert isinstance(await anext(listener), Gap)
            await publish(redis_server, range(10))
            for listener in listeners:
                assert await take_until(listener, 9) == list(range(10))

    run(main())


def test_the_first_listener_gets_what_came_before_it_the_others_what_comes_after(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            await pubsub.subscribe("a")
            await publish(redis_server, range(3))
            assert redis_server.call("PUBLISH", "a", "3") == 1
            # When this is confirmed, all of the above is here.
            await pubsub.subscribe("b")
            first, second = pubsub.listen(), pubsub.listen()
            await publish(redis_server, range(4, 5))
            assert await take_until(first, 4) == [0, 1, 2, 3, 4]
            assert await take_until(second, 4) == [4]

    run(main())


def test_the_client_itself_is_one_of_the_listeners(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            await pubsub.subscribe("a")
            itself, other = aiter(pubsub), pubsub.listen()
            await publish(redis_server, range(3))
            assert await take_until(itself, 2) == await take_until(other, 2) == [0, 1, 2]
            await publish(redis_server, range(3, 4))
            assert number_of(await anext(pubsub)) == 3
            assert [number_of(item) async for item in _one_batch(other)] == [3]

    async def _one_batch(listener: Any) -> Any:
        for item in await anext(listener.batches()):
            yield item

    run(main())


def test_one_listener_may_change_its_batch_without_harm_to_the_others(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            first, second, third = pubsub.listen(), pubsub.listen(), pubsub.listen()
            await pubsub.subscribe("a")
            redis_server.call("PUBLISH", "a", "1")
            for listener in (second, first, third):
                batch = await anext(listener.batches())
                assert batch == [PubSubMessage(b"a", b"1")]
                batch.clear()

    run(main())


def test_a_full_listener_holds_up_nobody_and_is_told_where_it_lost_something(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=100) as pubsub:
            fast, slow = pubsub.listen(), pubsub.listen()
            await pubsub.subscribe("a")
            taking = asyncio.create_task(take_until(fast, 19_999))
            await publish(redis_server, range(20_000))
            taken = await taking
            numbers = [number for number in taken if not isinstance(number, Gap)]
            # The fast one has lost nothing but where it was full itself, and it was told so.
            assert len(taken) - len(numbers) == sum(b != a + 1 for a, b in itertools.pairwise(numbers))
            kept: list[int] = []
            async with asyncio.timeout(10):
                async for item in slow:
                    if isinstance(item, Gap):
                        break
                    kept.append(number_of(item))
            assert item == Gap(0.0)
            assert kept == list(range(len(kept)))
            assert 100 <= len(kept) < 20_000
            # It has room again: it gets what comes now, and no second gap.
            await publish(redis_server, range(20_000, 20_010))
            assert await take_until(slow, 20_009) == list(range(20_000, 20_010))
            # Until it loses again.
            taking = asyncio.create_task(take_until(fast, 39_999))
            await publish(redis_server, range(20_010, 40_000))
            await taking
            async with asyncio.timeout(10):
                while await anext(slow) != Gap(0.0):
                    pass

    run(main())


def test_when_all_listeners_are_full_reading_stops_and_nothing_is_lost(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=100) as pubsub:
            first, second = pubsub.listen(), pubsub.listen()
            await pubsub.subscribe("a")
            await publish(redis_server, range(20_000), b"x" * 1000)
            # 20 MB do not fit: the most is still in the sockets, or with the server. One read holds up to 128 KiB.
            assert max(inbox._messages for inbox in pubsub._listeners._inboxes) < 400

            taken: list[int] = []
            async with asyncio.timeout(10):
                while not taken or taken[-1] != 19_999:
                    for batch in (await anext(first.batches()), await anext(second.batches())):
                        assert all(isinstance(item, PubSubMessage) for item in batch)
                    taken += [number_of(item) for item in batch]
            assert taken == list(range(20_000))

    run(main())


def test_a_listener_that_is_closed_gets_what_it_has_and_keeps_nobody_waiting(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=10) as pubsub:
            with pubsub.listen() as leaving:
                await pubsub.subscribe("a")
                await publish(redis_server, range(1000))
                await eventually(lambda: pubsub._link._stopped)
            # Nobody listens now, so nothing is kept, and nothing stopped.
            assert not pubsub._link._stopped
            await publish(redis_server, range(1000, 1001))
            kept = [number_of(item) async for item in leaving]
            assert kept == list(range(len(kept)))
            assert len(kept) >= 10
            await pubsub.subscribe("b")
            staying = pubsub.listen()
            await publish(redis_server, range(2000, 2003))
            assert await take_until(staying, 2002) == [2000, 2001, 2002]
            leaving.close()

    run(main())


def test_a_new_listener_is_not_held_up_by_full_ones(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=10) as pubsub:
            await pubsub.subscribe("a")
            full = pubsub.listen()
            await publish(redis_server, range(20_000), b"x" * 1000)
            await eventually(lambda: full._inbox.full)
            new = pubsub.listen()
            taking = asyncio.create_task(take_until(new, 20_000))
            await publish(redis_server, range(20_000, 20_001))
            assert (await taking)[-1] == 20_000

    run(main())


def test_what_one_read_brings_in_several_lots_is_kept_where_the_first_fills_the_listener(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=1) as pubsub:
            await pubsub.subscribe("a")
            # Until then reading goes on for what restores the link, though nobody has room.
            await eventually(lambda: pubsub.state is LinkState.CONNECTED)
            # So it is where a PONG stands between two messages.
            for number in range(3):
                pubsub._link.messages_received([PubSubMessage(b"a", b"%d" % number)], 100)
            assert await take_until(pubsub, 2) == [0, 1, 2]

    run(main())


def test_closing_the_client_ends_every_listener(redis_server: RunningServer) -> None:
    async def main() -> None:
        pubsub = PubSubClient(redis_server.url)
        listeners = [pubsub.listen(), pubsub.listen()]
        await pubsub.subscribe("a")
        waiting = [asyncio.create_task(anext(aiter(listener), "ended")) for listener in listeners]
        await asyncio.sleep(0)
        await pubsub.aclose()
        assert await asyncio.gather(*waiting) == ["ended", "ended"]
        assert [item async for item in pubsub.listen()] == []

    run(main())


def test_a_listener_that_fails_ends_neither_the_link_nor_the_others(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            failing, other = pubsub.listen(), pubsub.listen()

            async def fail() -> None:
                async for _ in failing:
                    raise ValueError("from the listener")

            task = asyncio.create_task(fail())
            await pubsub.subscribe("a")
            await publish(redis_server, range(2))
            with pytest.raises(ValueError, match="from the listener"):
                await task
            assert await take_until(other, 1) == [0, 1]
            assert pubsub.last_error is None

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_confirmation_comes_though_its_waiter_is_the_one_who_should_make_room(
    redis_server: RunningServer, protocol: int
) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=10, protocol=protocol) as pubsub:
            await pubsub.subscribe("a")
            await publish(redis_server, range(20_000), b"x" * 1000)
            async with asyncio.timeout(10):
                await pubsub.subscribe("b")
                await pubsub.unsubscribe("b")
            # What did not fit is told of; then all goes on.
            await publish(redis_server, range(20_000, 20_001))
            items = await take_until(pubsub, 20_000)
            assert items.count(Gap(0.0)) == 1
            kept = items.index(Gap(0.0))
            assert items[:kept] == list(range(kept))
            assert kept < 20_000

    run(main())


def test_an_outage_behind_a_full_listener_is_told_with_its_length(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=10) as pubsub:
            await pubsub.subscribe("a")
            await publish(redis_server, range(10))
            await eventually(lambda: pubsub._link._stopped)
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            # Only who reads learns of it.
            await pubsub.subscribe("b")
            items = await take_until(pubsub, 9)
            assert items == list(range(10))
            gap = await anext(pubsub)
            assert isinstance(gap, Gap)
            assert gap.seconds > 0

    run(main())


def test_large_messages_count_with_their_whole_size(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_bytes=10_000_000) as pubsub:
            await pubsub.subscribe("a")
            # 24 MB: of the rest the server keeps no more than it may, which is 32 MB.
            await publish(redis_server, range(12), b"x" * 2_000_000)
            await eventually(lambda: pubsub._listeners.full)
            assert pubsub._listeners._inboxes[0]._messages == 5
            assert await take_until(pubsub, 11) == list(range(12))

    run(main())
