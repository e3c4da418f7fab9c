"""Recovery of channels with a history: the races that lose, repeat or invent messages if they are run carelessly."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from waterspout_core import BrokerError, ChannelStore, Gap, Message, RedisStore, open_pubsub
from waterspout_core._redis import _recovery
from waterspout_core._redis._history import RedisHistory
from waterspout_core.testing import Ledger
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run

META, LOG = "waterspout:meta:{news}", "waterspout:log:{news}"


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


class Past:
    """The keys of a channel as they were, to be brought back: what a failover to a replica that lagged does."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._dumps = {key: server.call("DUMP", key) for key in (META, LOG)}

    def restore(self) -> None:
        for key, dump in self._dumps.items():
            self._server.call("RESTORE", key, 0, dump, "REPLACE")


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
            for cut in range(1, 400, 57):
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
            # Of each channel the top; and the functions call GET once for each message and each history that is read.
            own = len(missed) + count + len(missed)
            assert calls(redis_server, "get") - own <= count * 1.2
            assert calls(redis_server, "xrevrange") <= len(missed) * 2
            for store in stores:
                store.close()

    run(use())


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


# The channel goes back


def test_f37_a_failover_that_lost_the_tail_begins_a_new_epoch(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore("news", redis_server.url) as here, RedisStore("news", redis_server.url) as there:
            await here.submit("1")
            past = Past(redis_server)
            seen = await here.submit("2")
            await eventually(lambda: here.log.top == there.log.top == 2)
            past.restore()
            kill_links(redis_server)
            await eventually(lambda: here.log.epoch == there.log.epoch != seen.epoch)
            assert (await here.submit("2'")) == (here.log.epoch, 1)
            for store in (here, there):
                await eventually(lambda store=store: contents(store)[-1] == "2'")  # type: ignore[misc]
                assert contents(store) == ["1", "2", Gap(), "2'"]
            async with RedisStore("news", redis_server.url) as fresh, fresh.subscribe(after=seen) as subscription:
                assert [await anext(subscription), await anext(subscription)] == [Gap(), Message("2'")]

    run(use())


def test_f37_numbers_that_are_given_out_again_are_noticed_without_any_break(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore("news", redis_server.url) as store:
            await store.submit("1")
            past = Past(redis_server)
            await store.submit("2")
            last = await store.submit("3")
            await eventually(lambda: store.log.top == 3)
            past.restore()
            # As far as it had been, and further: the top does not tell.
            for text in ("2'", "3'", "4'", "5'"):
                publish(redis_server, text)
            await eventually(lambda: store.log.epoch != last.epoch)
            await store.submit("new")
            await eventually(lambda: contents(store)[-1] == "new")
            assert contents(store) == ["1", "2", "3", Gap(), "new"]

    run(use())


@pytest.mark.parametrize("ended", [False, True], ids=["the same epoch", "an epoch that had ended"])
def test_f37_a_channel_that_went_back_is_renewed_however_fast_it_grows(
    redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    renew = RedisHistory.renew

    async def late(self: RedisHistory, topic: str, *lost: Any) -> None:
        """Between reading that it went back and renewing it, it grows beyond what had been seen."""
        publish(redis_server, "2'")
        publish(redis_server, "3'")
        await renew(self, topic, *lost)

    monkeypatch.setattr(RedisHistory, "renew", late)

    async def use() -> None:
        async with RedisStore("news", redis_server.url) as store:
            await store.submit("1")
            past = Past(redis_server)
            old = await store.submit("2")
            if ended:
                redis_server.call("DEL", META)
                await store.submit("other")
            await eventually(lambda: contents(store)[-1] == ("other" if ended else "2"))
            past.restore()
            kill_links(redis_server)
            await eventually(lambda: contents(store)[-1] == Gap())
            await store.submit("new")
            await eventually(lambda: contents(store)[-1] == "new")
            assert store.log.epoch != old.epoch
            assert "3'" not in contents(store)

    run(use())


def test_f37_a_replica_that_lagged_is_promoted_behind_the_same_address(redis_server: RunningServer) -> None:
    async def use(replica: RunningServer) -> None:
        async with FaultProxy(redis_server.port) as proxy, RedisStore("news", proxy.url) as store:
            await store.submit("1")
            redis_server.call("CONFIG", "SET", "repl-diskless-sync-delay", "0")
            replica.call("REPLICAOF", "127.0.0.1", redis_server.port)
            await eventually(lambda: replica.call("EXISTS", META))
            replica.call("REPLICAOF", "NO", "ONE")
            lost = await store.submit("2")
            await eventually(lambda: contents(store) == ["1", "2"])
            proxy.target = ("127.0.0.1", replica.port)
            proxy.reset()
            await eventually(lambda: store.log.epoch != lost.epoch)
            await store.submit("3")
            await eventually(lambda: contents(store)[-1] == "3")
            assert contents(store) == ["1", "2", Gap(), "3"]

    with RunningServer(redis_server.binary) as replica:
        run(use(replica))


def test_a_flushed_server_begins_a_new_epoch_and_says_so(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore("news", redis_server.url) as store:
            first = await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            redis_server.call("FLUSHALL")
            second = await store.submit("2")
            assert second.epoch != first.epoch
            await eventually(lambda: contents(store) == ["1", Gap(), "2"])

    run(use())


# History that cannot be read


def test_f36_a_hole_that_cannot_be_filled_is_told_after_its_deadline(
    fresh_redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fresh_redis_server
    monkeypatch.setattr(_recovery, "GAP_DEADLINE", 0.5)

    async def use() -> None:
        async with RedisStore("news", server.url) as store:
            await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            # -LOADING, -BUSY and the like may pass, so they are waited for. Here it is a master that is away.
            server.call("CONFIG", "SET", "replica-serve-stale-data", "no")
            server.call("REPLICAOF", "127.0.0.1", "1")
            kill_links(server)
            await eventually(lambda: contents(store) == ["1", Gap()])
            server.call("REPLICAOF", "NO", "ONE")
            await store.submit("2")
            await eventually(lambda: contents(store) == ["1", Gap(), "2"])

    run(use())


@pytest.mark.parametrize("command", ["xrevrange", "get", "fcall"])
def test_f36_a_history_that_must_not_be_read_is_told_at_once(fresh_redis_server: RunningServer, command: str) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with RedisStore("news", server.url) as store:
            await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            kill_links(server)
            publish(server, "2")
            # FCALL is done without, by EVALSHA.
            server.call("ACL", "SETUSER", "default", f"-{command}", *(["-evalsha", "-eval"] * (command == "fcall")))
            await eventually(lambda: contents(store) == ["1", Gap()])
            server.call("ACL", "SETUSER", "default", "+@all")
            await store.submit("3")
            await eventually(lambda: contents(store)[-1] == "3")
            assert contents(store) in (["1", Gap(), "3"], ["1", Gap(), "2", "3"])

    run(use())


def test_f36_what_went_back_and_cannot_be_read_is_told_too(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with FaultProxy(server.port) as proxy, RedisStore("news", proxy.url) as store:
            await store.submit("1")
            past = Past(server)
            await store.submit("2")
            await store.submit("3")
            await eventually(lambda: store.log.top == 3)
            past.restore()
            before = calls(server, "get")
            proxy.to_client.faults = Faults(hold_at=f"{store.log.epoch} 1".encode())
            kill_links(server)
            await eventually(lambda: calls(server, "get") > before)
            publish(server, "2'")  # is held, and of a number that was seen
            server.call("ACL", "SETUSER", "default", "-get")
            proxy.heal()
            await eventually(lambda: contents(store)[3:] == [Gap()])
            server.call("ACL", "SETUSER", "default", "+get")
            await store.submit("3'")
            await eventually(lambda: len(contents(store)) > 4)
            await store.submit("end")
            await eventually(lambda: contents(store)[-1] == "end")
            assert contents(store) in (["1", "2", "3", Gap(), Gap(), "end"], ["1", "2", "3", Gap(), Gap(), "3'", "end"])

    run(use())


def test_a_channel_with_broken_keys_does_not_hold_up_the_others(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with open_pubsub(redis_server.url, history=100) as pubsub:
            names = ["no string", "no meta", "no stream", "foreign entry", "sound"]
            stores = dict(zip(names, (ChannelStore(f"c{at}", pubsub) for at in range(len(names))), strict=True))
            await asyncio.gather(*(store.ready() for store in stores.values()))
            await asyncio.gather(*(store.submit("1") for store in stores.values()))
            await eventually(lambda: all(store.log.top == 1 for store in stores.values()))
            for key in ("waterspout:meta:{c0}", "waterspout:log:{c2}"):
                redis_server.call("DEL", key)
                redis_server.call("HSET", key, "a", "b")
            redis_server.call("SET", "waterspout:meta:{c1}", "hello 5")
            redis_server.call("XADD", "waterspout:log:{c3}", "*", "a", "b")
            kill_links(redis_server)
            publish(redis_server, "2", "c3")
            publish(redis_server, "2", "c4")
            redis_server.call("SET", "waterspout:meta:{c2}", f"{stores['no stream'].log.epoch} 2 0 1000 3600000")
            await eventually(lambda: contents(stores["sound"]) == ["1", "2"])
            await eventually(lambda: contents(stores["foreign entry"]) == ["1", "2"])
            for name in ("no string", "no meta", "no stream"):
                await eventually(lambda name=name: contents(stores[name]) == ["1", Gap()])  # type: ignore[misc]
            with pytest.raises(BrokerError):
                await stores["no string"].submit("2")
            redis_server.call("DEL", "waterspout:meta:{c0}")
            await stores["no string"].submit("2")
            await eventually(lambda: contents(stores["no string"]) == ["1", Gap(), Gap(), "2"])
            for store in stores.values():
                store.close()

    run(use())


@pytest.mark.parametrize("value", ["hello 5", "abc -1 0 0 0", "abc 1", ""])
def test_a_meta_key_that_holds_something_else_is_an_error(redis_server: RunningServer, value: str) -> None:
    async def use() -> None:
        redis_server.call("SET", META, value)
        store = RedisStore("news", redis_server.url)
        with pytest.raises(BrokerError):
            await store.ready()
        await store.aclose()

    run(use())


def test_a_server_without_memory_is_read_and_refuses_what_is_published(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with RedisStore("news", server.url) as store:
            await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            kill_links(server)
            publish(server, "2")
            server.call("CONFIG", "SET", "maxmemory", "1")
            await eventually(lambda: contents(store) == ["1", "2"])
            with pytest.raises(BrokerError, match="OOM") as refused:
                await store.submit("3")
            assert not refused.value.maybe_done
            server.call("CONFIG", "SET", "maxmemory", "0")
            await store.submit("4")
            await eventually(lambda: contents(store) == ["1", "2", "4"])

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
