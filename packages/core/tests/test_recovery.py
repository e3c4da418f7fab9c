"""Recovery of channels with a history: the races that lose, repeat or invent messages if they are run carelessly."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from waterspout_core import ChannelStore, Gap, Message, RedisStore, open_pubsub
from waterspout_core.testing import Ledger
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


def contents(store: ChannelStore) -> list[Any]:
    """What is in the log: texts, and gaps."""
    return [entry.text if isinstance(entry, Message) else entry for entry in store.log.newest(100_000)[1]]


def publish(server: RunningServer, text: str, channel: str = "news") -> str:
    """As another program does it."""
    return server.call("FCALL", "waterspout_publish", 1, channel, text).decode()


def calls(server: RunningServer, *commands: str) -> int:
    """How often these have been called."""
    stats = server.call("INFO", "commandstats").decode().splitlines()
    found = [line.partition(":calls=")[2].partition(",")[0] for line in stats if line.startswith("cmdstat_")]
    names = [line.partition(":")[0].removeprefix("cmdstat_") for line in stats if line.startswith("cmdstat_")]
    return sum(int(count) for name, count in zip(names, found, strict=True) if name in commands)


def receivers(server: RunningServer, channel: str = "news") -> int:
    count: int = server.call("PUBSUB", "NUMSUB", channel)[1]
    return count


def kill_links(server: RunningServer) -> None:
    server.call("CLIENT", "KILL", "TYPE", "pubsub")


# Breaks


def test_f30_what_is_published_during_a_break_is_read_from_the_history(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore("news", redis_server.url) as store:
            await store.submit("1")
            kill_links(redis_server)
            publish(redis_server, "2")
            publish(redis_server, "3")
            await eventually(lambda: contents(store) == ["1", "2", "3"])
            publish(redis_server, "4")
            await eventually(lambda: contents(store) == ["1", "2", "3", "4"])

    run(use())


def test_f12_what_was_asked_before_a_second_break_does_not_count(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as proxy, RedisStore("news", proxy.url) as store:
            await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            # The answer about the top is on its way for long; the second break and what comes in it are behind it.
            proxy.to_client.faults = Faults(hold_at=f"{store.log.epoch} 1".encode())
            before = calls(redis_server, "get")
            kill_links(redis_server)
            await eventually(lambda: calls(redis_server, "get") > before)
            kill_links(redis_server)
            publish(redis_server, "2")
            await eventually(lambda: receivers(redis_server) == 1 and store.pubsub.health.state == "connected")
            proxy.heal()
            await eventually(lambda: contents(store) == ["1", "2"])

    run(use())


def test_f12_links_killed_while_they_are_restored_lose_nothing(redis_server: RunningServer) -> None:
    async def use() -> None:
        ledger = Ledger()
        async with RedisStore("news", redis_server.url) as there, RedisStore("news", redis_server.url) as here:
            account = ledger.reader("news", "reader", await here.position())
            following = asyncio.create_task(account.follow(here))
            for number in range(40):
                kill_links(redis_server)
                await ledger.submit(there, "news", number)
                await asyncio.sleep(0.003 * (number % 10))
            await ledger.settled()
            assert not [entry for entry, _ in account.entries if isinstance(entry, Gap)]
            following.cancel()

    run(use())


def test_a_link_cut_at_any_byte_of_its_restoring_loses_nothing(redis_server: RunningServer) -> None:
    async def use() -> None:
        ledger = Ledger()
        async with (
            RedisStore("news", redis_server.url) as there,
            FaultProxy(redis_server.port) as proxy,
            RedisStore("news", proxy.url) as here,
        ):
            account = ledger.reader("news", "reader", await here.position())
            following = asyncio.create_task(account.follow(here))
            for cut in range(1, 400, 79):
                seen = proxy.connections
                (proxy.to_client, proxy.to_server)[cut % 2].cut_after(cut, reset=cut % 3 == 0)
                proxy.hang_up()
                await ledger.submit(there, "news", cut)
                await eventually(lambda seen=seen: proxy.connections > seen + 1)  # type: ignore[misc]
            proxy.heal()
            await ledger.settled()
            assert not [entry for entry, _ in account.entries if isinstance(entry, Gap)]
            following.cancel()

    run(use())


def test_a_black_hole_for_longer_than_the_deadline_loses_nothing(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with (
            FaultProxy(redis_server.port) as proxy,
            RedisStore("news", proxy.url, health_check_interval=0.2, connect_timeout=0.3) as store,
        ):
            await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            proxy.disturb(Faults(black_hole=True))
            await eventually(lambda: store.pubsub.health.state != "connected")  # F8
            publish(redis_server, "2")
            proxy.heal()
            await eventually(lambda: contents(store) == ["1", "2"])

    run(use())


def test_f11_every_channel_comes_back_and_the_tops_are_asked_in_one_pipeline(redis_server: RunningServer) -> None:
    count = 2000

    async def use() -> None:
        async with (
            open_pubsub(redis_server.url, history=100) as pubsub,
            open_pubsub(redis_server.url, history=100) as there,
        ):
            stores = [ChannelStore(f"c{number}", pubsub) for number in range(count)]
            await asyncio.gather(*(store.ready() for store in stores))
            await asyncio.gather(*(store.submit("1") for store in stores))
            await eventually(lambda: all(store.log.top == 1 for store in stores))
            redis_server.call("CONFIG", "RESETSTAT")
            kill_links(redis_server)
            missed = [there.submit(store.topic, Message("2")) for store in stores[::100]]
            await asyncio.gather(*missed)
            await eventually(lambda: all(contents(store) == ["1", "2"] for store in stores[::100]))
            await asyncio.gather(*(store.submit("3") for store in stores))
            await eventually(lambda: all(contents(store)[-1] == "3" for store in stores))
            for number, store in enumerate(stores):
                assert contents(store) == (["1", "2", "3"] if number % 100 == 0 else ["1", "3"])
            # Of each channel the top and the last message; and the functions call GET once for each message and each
            # history that is read, which are those of the channels that lack something.
            own = len(missed) + count + len(missed)
            assert calls(redis_server, "get") - own <= count * 1.2
            assert calls(redis_server, "xrevrange") - len(missed) * 2 <= count * 1.2
            published = len(missed) + count
            assert calls(redis_server, "fcall") - published <= len(missed) * 2
            for store in stores:
                store.close()

    run(use())


def test_f13_the_back_off_begins_anew_after_each_link_that_worked(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def use() -> None:
        async with RedisStore("news", redis_server.url) as store:
            for number in range(8):
                publish(redis_server, str(number))
                await eventually(lambda number=number: store.log.top == number + 1)  # type: ignore[misc]
                kill_links(redis_server)
                await eventually(lambda: store.pubsub.health.state != "connected")
                await eventually(lambda: store.pubsub.health.state == "connected", deadline=1.0)

    with caplog.at_level(logging.WARNING):
        run(use())
    assert caplog.text.count("trying again in 0.1 s") == 8


# Readers


def test_1000_subscribers_that_come_back_at_once_read_redis_a_handful_of_times(redis_server: RunningServer) -> None:
    async def come_back(store: RedisStore, position: Any, offset: int, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        async with store.subscribe(after=position) as subscription:
            for expected in range(offset + 1, 1001):
                entry = await anext(subscription)
                assert isinstance(entry, Message), f"{entry} for the reader behind {offset}, before {expected}"
                assert entry.data == expected

    async def use() -> None:
        async with RedisStore("news", redis_server.url) as store:
            first = await store.position()
            positions = [first, *await asyncio.gather(*(store.submit(number) for number in range(1, 1001)))]
        async with RedisStore("news", redis_server.url) as fresh:
            redis_server.call("CONFIG", "RESETSTAT")
            offsets = [(number * 7919) % 1000 for number in range(1000)]
            async with asyncio.TaskGroup() as group:
                for number, offset in enumerate(offsets):
                    group.create_task(come_back(fresh, positions[offset], offset, number % 20))
            assert calls(redis_server, "xrevrange") <= 20

    run(use())


def test_who_wants_older_messages_while_newer_ones_are_read_gets_them(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            async with RedisStore("news", redis_server.url) as store:
                positions = await asyncio.gather(*(store.submit(number) for number in range(1, 101)))
            async with (
                RedisStore("news", proxy.url) as fresh,
                fresh.subscribe(after=positions[79]) as newer,
                fresh.subscribe(after=positions[9]) as older,
            ):
                proxy.to_client.faults = Faults(delay=0.1)
                before = calls(redis_server, "xrevrange")
                first = asyncio.create_task(anext(newer))
                await eventually(lambda: calls(redis_server, "xrevrange") > before)
                assert await anext(older) == Message(11)
                assert await first == Message(81)

    run(use())


def test_who_comes_from_a_node_that_has_heard_more_waits_for_it(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with (
            FaultProxy(redis_server.port) as proxy,
            RedisStore("news", redis_server.url) as ahead,
            RedisStore("news", proxy.url) as behind,
        ):
            await ahead.submit("1")
            await eventually(lambda: behind.log.top == 1)
            proxy.to_client.faults = Faults(black_hole=True)
            position = await ahead.submit("2")
            async with behind.subscribe(after=position) as subscription:
                coming = asyncio.create_task(anext(subscription))
                await ahead.submit("3")
                proxy.heal()
                assert await coming == Message("3")
            assert contents(behind) == ["1", "2", "3"]

    run(use())


def test_who_comes_from_an_epoch_that_this_node_has_not_heard_of_waits_for_it(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with (
            FaultProxy(redis_server.port) as proxy,
            RedisStore("news", redis_server.url) as ahead,
            RedisStore("news", proxy.url) as behind,
        ):
            await ahead.submit("1")
            await eventually(lambda: behind.log.top == 1)
            proxy.to_client.faults = Faults(black_hole=True)
            redis_server.call("FLUSHALL")
            position = await ahead.submit("2")
            async with behind.subscribe(after=position) as subscription:
                coming = asyncio.create_task(anext(subscription))
                await ahead.submit("3")
                proxy.heal()
                assert await coming == Message("3")

    run(use())


def test_f40_a_store_that_comes_back_to_a_channel_is_ready_when_it_has_all_of_it(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with open_pubsub(redis_server.url, history=100) as pubsub:
            store = ChannelStore("news", pubsub)
            await store.ready()
            await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            store.close()
            await eventually(lambda: not receivers(redis_server))
            last = publish(redis_server, "2")
            await store.ready()
            assert str(await store.position()) == last
            assert [message.text for _, message in await store.history(10)] == ["1", "2"]
            async with store.subscribe() as subscription:
                publish(redis_server, "3")
                assert await anext(subscription) == Message("3")
            store.close()
            store.open()  # in one turn of the loop
            await store.ready()
            publish(redis_server, "4")
            await eventually(lambda: contents(store) == ["1", "2", "3", "4"])
            store.close()

    run(use())


def test_f31_nothing_is_ready_before_redis_has_confirmed(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as proxy, RedisStore("news", proxy.url, history=0) as plain:
            proxy.to_client.faults = Faults(hold_at=b"subscribe")
            other = ChannelStore("other", plain.pubsub)
            waiting = asyncio.create_task(other.ready())
            await eventually(lambda: receivers(redis_server, "other") == 1)
            assert not waiting.done()
            assert not other.subscribed
            proxy.heal()
            await waiting
            assert other.subscribed
            other.close()

    run(use())


@pytest.mark.parametrize("history", [10, 1000])
def test_f51_a_reader_beyond_the_log_is_told_exactly_how_many_it_missed(
    redis_server: RunningServer, history: int
) -> None:
    async def use() -> None:
        ledger = Ledger()
        bounds = {"history": history, "max_messages": 10}
        async with (
            RedisStore("news", redis_server.url) as there,
            RedisStore("news", redis_server.url, **bounds) as here,
        ):
            account = ledger.reader("news", "slow reader", await here.position())
            async with here.subscribe(after=account.after) as subscription:
                for number in range(2500):
                    ledger.published("news", Message(number))
                    there.submit(number)
                await eventually(lambda: here.log.position.offset == 2500)
                while subscription.position != here.log.position:
                    account.got(await anext(subscription), subscription.position)
            ledger.check()
            assert account.entries[0][0] == Gap(2500 - history)
            assert len(account.entries) == history + 1

    run(use())
