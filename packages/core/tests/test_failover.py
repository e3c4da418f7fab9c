"""Channels of which the server has forgotten something (F37), or of which the history cannot be read (F36)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from waterspout_core import BrokerError, ChannelStore, Gap, Message, RedisStore, open_pubsub
from waterspout_core._redis import _recovery
from waterspout_core._redis._history import RedisHistory
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


@pytest.mark.parametrize("further", [0, 3], ids=["as far as it had been", "further"])
def test_f37_numbers_that_were_given_out_again_while_we_were_away_are_noticed(
    redis_server: RunningServer, further: int
) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as proxy, RedisStore("news", proxy.url) as store:
            await store.submit("1")
            past = Past(redis_server)
            await store.submit("2")
            last = await store.submit("3")
            await eventually(lambda: store.log.top == 3)
            proxy.refuse()
            proxy.hang_up()
            past.restore()
            for number in range(2, 4 + further):
                publish(redis_server, f"{number}'")
            proxy.heal()
            await eventually(lambda: store.log.epoch != last.epoch)
            await store.submit("new")
            await eventually(lambda: contents(store)[-1] == "new")
            assert contents(store) == ["1", "2", "3", Gap(), "new"]

    run(use())


def test_a_break_in_which_nothing_happened_is_not_noticed_whatever_came_last(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as proxy, RedisStore("news", proxy.url) as store:
            sent: list[Any] = [{"a": 1.5}, b"\xff\x00", "\x1etext", 0, "x", "x"]
            for number, data in enumerate(sent):
                await store.submit(data, event="e" if number % 2 else None)
                if number == 4:
                    redis_server.call("PUBLISH", "news", "without history")
                await eventually(lambda number=number: store.log.top > number)  # type: ignore[misc]
                epoch = store.log.epoch
                proxy.hang_up()
                await eventually(lambda: store.pubsub.health.state != "connected")
                await store.submit("meanwhile")
                await eventually(lambda: contents(store)[-1] == "meanwhile")
                assert store.log.epoch == epoch
            assert Gap() not in contents(store)

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
            kill_links(redis_server)
            publish(redis_server, "2", "c3")
            redis_server.call("XADD", "waterspout:log:{c3}", "*", "a", "b")
            publish(redis_server, "2", "c4")
            redis_server.call("SET", "waterspout:meta:{c2}", f"{stores['no stream'].log.epoch} 2 0 1000 3600000")
            await eventually(lambda: contents(stores["sound"]) == ["1", "2"])
            await eventually(lambda: contents(stores["foreign entry"]) == ["1", Gap(1)])
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
