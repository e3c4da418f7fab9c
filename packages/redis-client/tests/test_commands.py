"""The typed commands against real servers, and beside redis-py itself."""

import asyncio
import enum
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions as theirs

import waterspout_redis as ours
from waterspout_redis import Client
from waterspout_redis._options import ConnectionKeywords
from waterspout_redis.commands import ClientKeywords, Redis
from waterspout_redis.testing import RunningServer, eventually, run

Command = Callable[[Any], Awaitable[Any]]


def both_ways(pipe: Any) -> Any:
    pipe.set("p", 1).incr("p").zadd("pz", {"a": 1}).zrange("pz", 0, -1, withscores=True).hgetall("h").mget([])
    return pipe.config_get("maxmemory").execute()


async def scanned(scan: Any) -> list[Any]:
    return sorted([item async for item in scan])


# In order: later ones find what earlier ones have left.
COMMANDS: list[Command] = [
    lambda r: r.ping(),
    lambda r: r.echo("é"),
    lambda r: r.set("k", "v"),
    lambda r: r.set("k", "w", nx=True),
    lambda r: r.set("k", "w", get=True),
    lambda r: r.set("t", 1, ex=timedelta(seconds=100)),
    lambda r: r.get("k"),
    lambda r: r.get("missing"),
    lambda r: r.getset("k", b"x"),
    lambda r: r.getrange("k", 0, -1),
    lambda r: r.append("k", "yz"),
    lambda r: r.strlen("k"),
    lambda r: r.setnx("k", 1),
    lambda r: r.setex("t", 100, 1),
    lambda r: r.ttl("t"),
    lambda r: r.expire("k", 100),
    lambda r: r.persist("k"),
    lambda r: r.exists("k", "t", "missing"),
    lambda r: r.type("k"),
    lambda r: r.mset({"m1": 1, "m2": 2.5}),
    lambda r: r.mget("m1", "m2", "missing"),
    lambda r: r.mget([]),
    lambda r: r.incr("m1"),
    lambda r: r.incrbyfloat("m2", 0.25),
    lambda r: r.lpush("k", 1),
    lambda r: r.copy("k", "k2"),
    lambda r: r.rename("k2", "k3"),
    lambda r: r.touch("k3"),
    lambda r: r.object("encoding", "m1"),
    lambda r: r.setbit("bits", 3, True + 0),
    lambda r: r.bitcount("bits"),
    lambda r: r.bitfield("bits").set("u8", 0, 7).get("u8", 0).execute(),
    lambda r: r.hset("h", mapping={"a": 1, "é": "ü"}),
    lambda r: r.hset("h", "b", 2),
    lambda r: r.hgetall("h"),
    lambda r: r.hgetall("missing"),
    lambda r: r.hmget("h", "a", "missing"),
    lambda r: r.hget("h", "é"),
    lambda r: r.hexists("h", "a"),
    lambda r: r.hincrbyfloat("h", "a", 1.5),
    lambda r: r.hkeys("h"),
    lambda r: r.hrandfield("h", 5, withvalues=True),
    lambda r: r.hscan("h"),
    lambda r: r.hdel("h", "b"),
    lambda r: r.rpush("l", "a", "b", "c"),
    lambda r: r.lrange("l", 0, -1),
    lambda r: r.lpos("l", "b"),
    lambda r: r.lset("l", 0, "z"),
    lambda r: r.ltrim("l", 0, 1),
    lambda r: r.lmove("l", "l2"),
    lambda r: r.lpop("l", 2),
    lambda r: r.blpop("l2", timeout=1),
    lambda r: r.blpop(["l2"], timeout=0.01),
    lambda r: r.lmpop(2, "l", "l2", direction="LEFT"),
    lambda r: r.sadd("s", "a", "b"),
    lambda r: r.smembers("s"),
    lambda r: r.smismember("s", "a", "z"),
    lambda r: r.sismember("s", "a"),
    lambda r: r.sinter("s", "s"),
    lambda r: r.sdiff("s", "missing"),
    lambda r: r.smove("s", "s2", "a"),
    lambda r: r.spop("s2"),
    lambda r: r.zadd("z", {"a": 1, "b": 2.5, "c": 3}),
    lambda r: r.zadd("z", {"a": 1}, incr=True),
    lambda r: r.zincrby("z", 0.5, "a"),
    lambda r: r.zscore("z", "a"),
    lambda r: r.zscore("z", "missing"),
    lambda r: r.zmscore("z", ["a", "missing"]),
    lambda r: r.zrank("z", "b", withscore=True),
    lambda r: r.zrange("z", 0, -1),
    lambda r: r.zrange("z", 0, -1, withscores=True),
    lambda r: r.zrange("z", 0, -1, withscores=True, score_cast_func=int),
    lambda r: r.zrevrange("z", 0, -1, withscores=True),
    lambda r: r.zrangebyscore("z", "(1", "+inf", withscores=True),
    lambda r: r.zrangestore("z2", "z", 0, 1),
    lambda r: r.zunion(["z", "z2"], withscores=True),
    lambda r: r.zdiff(["z", "z2"], withscores=True),
    lambda r: r.zrandmember("z", 3, withscores=True),
    lambda r: r.zscan("z"),
    lambda r: r.zpopmin("z"),
    lambda r: r.zpopmax("z", 2),
    lambda r: r.bzpopmin("z2", timeout=1),
    lambda r: r.bzmpop(0.01, 1, ["missing"], min=True),
    lambda r: r.zmpop(1, ["z2"], max=True),
    lambda r: r.xadd("x", {"f": "v"}, id="1-1"),
    lambda r: r.xadd("x", {"f": "w"}, id="1-2", maxlen=10, approximate=False),
    lambda r: r.xrange("x"),
    lambda r: r.xrevrange("x", count=1),
    lambda r: r.xread({"x": 0}),
    lambda r: r.xread({"x": "$"}, block=10),
    lambda r: r.xgroup_create("x", "g", id="0"),
    lambda r: r.xgroup_create("x", "g", id="0"),
    lambda r: r.xreadgroup("g", "c", {"x": ">"}, count=1),
    lambda r: r.xpending("x", "g"),
    lambda r: r.xack("x", "g", "1-1"),
    lambda r: r.xautoclaim("x", "g", "c2", 0),
    lambda r: r.xinfo_groups("x"),
    lambda r: r.xinfo_stream("x"),
    lambda r: r.xlen("x"),
    lambda r: r.pfadd("hll", "a", "b"),
    lambda r: r.pfcount("hll"),
    lambda r: r.geoadd("g", (13.361389, 38.115556, "Palermo", 15.087269, 37.502669, "Catania")),
    lambda r: r.geodist("g", "Palermo", "Catania", unit="km"),
    lambda r: r.geopos("g", "Palermo", "missing"),
    lambda r: r.geosearch("g", longitude=15, latitude=37, radius=200, unit="km", withdist=True, withcoord=True),
    lambda r: r.sort("l3", alpha=True),
    lambda r: r.lcs("k", "k3", idx=True, minmatchlen=1, withmatchlen=True),
    lambda r: r.dump("m1"),
    lambda r: r.eval("return {KEYS[1], ARGV[1], 3}", 1, "key", "value"),
    lambda r: r.evalsha("0" * 40, 0),
    lambda r: r.script_exists("0" * 40),
    lambda r: r.script_load("return 1"),
    lambda r: r.function_load("#!lua name=lib\nredis.register_function('f', function(k, a) return a[1] end)", True),
    lambda r: r.fcall("f", 0, "x"),
    lambda r: r.function_list(),
    lambda r: r.config_get("maxmemory*"),
    lambda r: r.config_set("maxmemory", 0),
    lambda r: r.command_getkeys("MSET", "a", 1, "b", 2),
    lambda r: r.execute_command("COMMAND INFO", "get"),
    lambda r: r.acl_setuser("u", enabled=True, passwords=["+p"], categories=["+@all"], keys=["*"]),
    lambda r: r.acl_getuser("u"),
    lambda r: r.acl_whoami(),
    lambda r: r.acl_deluser("u"),
    lambda r: r.client_getname(),
    lambda r: r.publish("nobody", "listens"),
    lambda r: r.pubsub_numsub("nobody"),
    lambda r: r.slowlog_reset(),
    lambda r: r.latency_latest(),
    lambda r: r.memory_usage("missing"),
    lambda r: r.dbsize(),
    lambda r: r.delete("x", "missing"),
    lambda r: r.unlink("h2"),
    lambda r: r.scan(match="nothing*"),
    lambda r: scanned(r.scan_iter(match="m?")),
    lambda r: scanned(r.hscan_iter("h")),
    lambda r: scanned(r.zscan_iter("z")),
    lambda r: r.execute_command("CONFIG GET", "maxmemory"),
    lambda r: r.execute_command("config", "get", "maxmemory"),
    lambda r: r.execute_command("nosuchcommand"),
    lambda r: both_ways(r.pipeline(transaction=False)),
    lambda r: both_ways(r.pipeline(transaction=True)),
    lambda r: r.json().get("missing"),
    lambda r: r.vset().vadd("v", [1.0, 2.0], "e"),
    lambda r: r.vset().vemb("v", "e"),
    lambda r: r.flushdb(),
]


def exact(value: Any) -> Any:
    """`value` so that only what is equal *and* of equal types is equal: 1 is not True here, nor a list a tuple."""
    if isinstance(value, dict):
        return type(value), {key: exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [exact(item) for item in value]
    return type(value), value


async def outcomes(r: Any) -> list[Any]:
    found = []
    for command in COMMANDS:
        try:
            found.append(exact(await command(r)))
        except theirs.RedisError as error:
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == theirs.__name__)
            # redis-py leaves the code out where it knows it.
            found.append((kind, str(error).removeprefix("ERR ").removeprefix("NOSCRIPT ")))
    return found


# redis-py deprecates commands that servers still have.
@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "unified"])
@pytest.mark.parametrize("decode", [None, "utf-8"])
@pytest.mark.parametrize("protocol", [None, 2, 3])
def test_every_command_gives_what_redis_py_gives(
    redis_server: RunningServer, protocol: Any, decode: str | None, legacy: bool
) -> None:
    asked = {} if protocol is None else {"protocol": protocol}

    async def main() -> None:
        decoded = decode is not None
        found = []
        for r in (
            redis.asyncio.Redis.from_url(redis_server.url, decode_responses=decoded, legacy_responses=legacy, **asked),
            Redis(redis_server.url, decode=decode, legacy_responses=legacy, **asked),
        ):
            for leftovers in ("FUNCTION", "SCRIPT"):
                redis_server.call(leftovers, "FLUSH")
            async with r:
                found.append(await outcomes(r))
        for place, (expected, got) in enumerate(zip(*found, strict=True)):
            assert got == expected, f"COMMANDS[{place}]"

    run(main())


# Iterators, scripts, locks


def test_a_scan_finds_every_key(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url, decode="utf-8") as r:
            keys = {f"key:{number}" for number in range(500)}
            await r.mset(dict.fromkeys(keys, 1))
            assert {key async for key in r.scan_iter("key:*", count=50)} == keys
            await r.hset("hash", mapping={str(number): number for number in range(1000)})
            assert {field: int(value) async for field, value in r.hscan_iter("hash")} == {
                str(number): number for number in range(1000)
            }
            await r.sadd("set", *range(1000))
            assert {int(member) async for member in r.sscan_iter("set")} == set(range(1000))

    run(main())


def test_a_script_is_loaded_where_the_server_does_not_know_it(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            add = r.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
            assert await add(keys=["n"], args=[2]) == 2
            await r.script_flush()
            assert await add(keys=["n"], args=[3]) == 5

    run(main())


@pytest.mark.parametrize("transaction", [False, True])
def test_a_pipeline_loads_the_scripts_it_runs(redis_server: RunningServer, transaction: bool) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            await r.script_flush()
            add = r.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
            for expected in (2, 4):
                async with r.pipeline(transaction=transaction) as pipe:
                    await add(keys=["n"], args=[2], client=pipe)
                    pipe.get("n")
                    assert await pipe.execute() == [expected, str(expected).encode()]
                    assert not pipe.scripts

    run(main())


def test_a_lock_has_one_holder_at_a_time(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            holders = 0
            turns = []

            async def worker(name: int) -> None:
                nonlocal holders
                async with r.lock("lock", timeout=20, sleep=0.001):
                    holders += 1
                    assert holders == 1
                    await r.incr("turns")
                    turns.append(name)
                    assert holders == 1
                    holders -= 1

            await asyncio.gather(*map(worker, range(20)))
            assert sorted(turns) == list(range(20))
            assert await r.get("turns") == b"20"
            assert not await r.exists("lock")

    run(main())


def test_a_lock_that_is_held_is_not_got(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r, Redis(redis_server.url) as other:
            async with r.lock("lock") as held:
                assert await held.owned()
                assert not await other.lock("lock").acquire(blocking=False)
                with pytest.raises(theirs.LockError):
                    async with other.lock("lock", blocking_timeout=0.02, sleep=0.01):
                        pass
            assert await other.lock("lock").acquire(blocking=False)

    run(main())


def test_a_lock_is_released_and_extended_also_after_its_scripts_were_flushed(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            lock = r.lock("lock", timeout=20)
            await lock.acquire()
            await r.script_flush()
            assert await lock.extend(20)
            await r.script_flush()
            assert await lock.reacquire()
            await r.script_flush()
            await lock.release()
            assert not await r.exists("lock")

    run(main())


def test_a_lock_that_was_lost_says_so(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            lock = r.lock("lock")
            await lock.acquire()
            await r.delete("lock")
            with pytest.raises(theirs.LockNotOwnedError):
                await lock.release()

    run(main())


def test_a_blocking_command_does_not_hold_up_others(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            waiting = asyncio.ensure_future(r.blpop(["queue"], timeout=20))
            await eventually(lambda: b"cmd=blpop" in redis_server.call("CLIENT", "LIST"))
            assert await asyncio.wait_for(r.ping(), 5)
            await r.rpush("queue", "job")
            assert await waiting == (b"queue", b"job")

    run(main())


# Pipelines


@pytest.mark.parametrize("transaction", [False, True])
def test_a_pipeline_gives_what_each_command_would(redis_server: RunningServer, transaction: bool) -> None:
    async def main() -> None:
        async with Redis(redis_server.url, decode="utf-8") as r, r.pipeline(transaction=transaction) as pipe:
            pipe.set("k", "v").hset("h", mapping={"a": 1}).mget([]).smembers("s").dump("k").config_get("maxmemory")
            assert len(pipe) == 6
            ok, added, nothing, members, dump, config = await pipe.execute()
            assert (ok, added, nothing, members, config) == (True, 1, [], set(), {"maxmemory": "0"})
            assert isinstance(dump, bytes)
            assert len(pipe) == 0
            assert await pipe.execute() == []
            assert await pipe.get("k").execute() == ["v"]

    run(main())


def test_a_transaction_is_sent_in_one_piece(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            others = [asyncio.ensure_future(r.incr("n")) for _ in range(5)]
            both = await r.pipeline().incr("n").incr("n").execute()
            assert both[1] == both[0] + 1
            assert sorted([*await asyncio.gather(*others), *both]) == list(range(1, 8))

    run(main())


@pytest.mark.parametrize("transaction", [False, True])
def test_a_failed_command_of_a_pipeline_is_raised_with_its_place(
    redis_server: RunningServer, transaction: bool
) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            pipe = r.pipeline(transaction=transaction).set("k", "v").lpush("k", 1).set("k", "w")
            with pytest.raises(theirs.ResponseError, match="WRONGTYPE") as caught:
                await pipe.execute()
            assert isinstance(caught.value, ours.WrongTypeError)
            assert caught.value.__notes__ == ["command 2 of the pipeline: 'LPUSH'"]
            assert await r.get("k") == b"w"

            pipe = r.pipeline(transaction=transaction).set("k", "v").lpush("k", 1).get("k")
            first, error, last = await pipe.execute(raise_on_error=False)
            assert (first, last) == (True, b"v")
            assert isinstance(error, ours.WrongTypeError)
            assert isinstance(error, theirs.ResponseError)

    run(main())


def test_a_transaction_with_a_refused_command_is_not_executed(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            pipe = r.pipeline().set("k", "v").execute_command("NOSUCHCOMMAND")
            with pytest.raises(theirs.ExecAbortError) as caught:
                await pipe.execute()
            assert isinstance(caught.value, ours.ExecAbortError)
            assert not await r.exists("k")

    run(main())


def test_a_watched_key_that_was_not_changed_lets_the_transaction_through(redis_server: RunningServer) -> None:
    names: list[str] = []

    async def main() -> None:
        async with Redis(redis_server.url, on_command=lambda name, seconds, error: names.append(name)) as r:
            await r.set("n", 5)
            async with r.pipeline() as pipe:
                await pipe.watch("n", "other")
                n = int(await pipe.get("n"))
                pipe.multi()
                pipe.set("n", n * 2).get("n")
                assert await pipe.execute() == [True, b"10"]
                assert not pipe.watching

    run(main())
    assert names == ["SET", "WATCH", "GET", "TRANSACTION"]


def test_a_watched_key_that_was_changed_stops_the_transaction(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            async with r.pipeline() as pipe:
                await pipe.watch("n")
                await r.set("n", 1)
                pipe.multi()
                pipe.set("n", 2)
                with pytest.raises(theirs.WatchError) as caught:
                    await pipe.execute()
                assert isinstance(caught.value, ours.WatchError)
            assert await r.get("n") == b"1"

    run(main())


def test_a_transaction_that_only_reads_is_checked_too(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r, r.pipeline() as pipe:
            await pipe.watch("n")
            assert await pipe.execute() == []
            await pipe.watch("n")
            await pipe.get("n")
            await r.set("n", 1)
            with pytest.raises(theirs.WatchError):
                await pipe.execute()

    run(main())


def test_what_is_unwatched_may_change(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r, r.pipeline() as pipe:
            await pipe.watch("n")
            await pipe.unwatch()
            await r.set("n", 1)
            assert await pipe.incr("n").execute() == [2]

    run(main())


def test_a_client_that_was_leased_has_its_connection_to_itself(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            async with client.lease() as leased:
                r = Redis(leased)
                await r.set("n", 1)
                assert await r.wait(0, 10) == 0
                assert await r.select(1)
                assert not await r.exists("n")
                async with r.pipeline() as pipe:
                    await pipe.watch("n")
                    pipe.multi()
                    assert await pipe.incr("n").execute() == [1]
                    await pipe.watch("n")
                # The watch ended with the pipeline.
                await r.incr("n")
                assert await r.pipeline().incr("n").execute() == [3]
                await r.aclose()
            assert await Redis(client).get("n") == b"1"

    run(main())


def test_a_watch_leaves_nothing_behind_when_the_pipeline_is_left(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            connections = set()
            for _ in range(3):
                async with r.pipeline() as pipe:
                    await pipe.watch("n")
                    connections.add(await pipe.client_id())
            assert len(connections) == 1
            await r.set("n", 1)
            async with r.pipeline() as pipe:
                await pipe.watch("other")
                pipe.multi()
                assert await pipe.incr("n").execute() == [2]

    run(main())


def test_a_watch_whose_connection_is_lost_says_so_and_another_one_is_made(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            async with r.pipeline() as pipe:
                await pipe.watch("n")
                await r.client_kill_filter(_id=await pipe.client_id())
                with pytest.raises(theirs.ConnectionError) as caught:
                    await pipe.get("n")
                assert isinstance(caught.value, ours.ConnectionLost)
            async with r.pipeline() as pipe:
                await pipe.watch("n")
                assert await pipe.get("n") is None

    run(main())


def test_a_watch_waits_for_a_connection_no_longer_than_the_timeout(redis_server: RunningServer) -> None:
    async def main() -> None:
        r = Redis(redis_server.url, max_leases=1, timeout=0.1)
        async with r, r.pipeline() as first, r.pipeline() as second:
            await first.watch("n")
            with pytest.raises(theirs.MaxConnectionsError) as caught:
                await second.watch("n")
            assert isinstance(caught.value, ours.PoolTimeout)
            assert not second.watching
            await first.unwatch()
            await second.watch("n")

    run(main())


def test_transaction_tries_again_until_nothing_came_between(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:

            async def increment(pipe: Any) -> int:
                n = int(await pipe.get("n") or 0)
                pipe.multi()
                pipe.set("n", n + 1)
                return n + 1

            results = await asyncio.gather(*(r.transaction(increment, "n", value_from_callable=True) for _ in range(5)))
            assert sorted(results) == [1, 2, 3, 4, 5]
            assert await r.get("n") == b"5"

    run(main())


# Arguments and errors


class Number(enum.IntEnum):
    ONE = 1


class Half(float):
    """As numpy's scalars are."""


@pytest.mark.parametrize("value", [True, None, Number.ONE, Half(0.5), [1], ...], ids=repr)
def test_a_wrong_argument_is_refused_before_anything_is_sent(redis_server: RunningServer, value: Any) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            with pytest.raises(TypeError, match="argument 2 of 'SET'") as caught:
                await r.set("k", value)
            assert isinstance(caught.value, theirs.DataError)
            with pytest.raises(theirs.DataError, match="argument 2 of 'SET'") as caught_too:
                await r.pipeline().set("fine", 1).set("k", value).execute()
            assert isinstance(caught_too.value, TypeError)
            assert await r.exists("k", "fine") == 0

    run(main())


def test_a_command_takes_all_that_a_call_takes(redis_server: RunningServer) -> None:
    class Word(str, enum.Enum):  # noqa: UP042  # older than StrEnum, and common
        HELLO = "hello"

    async def main() -> None:
        async with Redis(redis_server.url) as r:
            for value, held in (
                (b"a", b"a"),
                (bytearray(b"a"), b"a"),
                (memoryview(b"abc")[::2], b"ac"),
                ("é", "é".encode()),
                (Word.HELLO, b"hello"),
                (1, b"1"),
                (1.5, b"1.5"),
                (-1e300, b"-1e+300"),
            ):
                await r.set("k", value)
                assert await r.get("k") == held

    run(main())


def test_an_error_is_of_both_families(fresh_redis_server: RunningServer) -> None:
    url = fresh_redis_server.url

    async def main() -> None:
        async with Redis(url) as r:
            for command, our_kind, their_kind in (
                (("NOSUCHCOMMAND",), ours.ResponseError, theirs.ResponseError),
                (("EVALSHA", "0" * 40, 0), ours.NoScriptError, theirs.NoScriptError),
                (("EVAL", "return redis.error_reply('OOM no')", 0), ours.OutOfMemoryError, theirs.OutOfMemoryError),
                (("EVAL", "return redis.error_reply('READONLY no')", 0), ours.ReadOnlyError, theirs.ReadOnlyError),
                (("EVAL", "return redis.error_reply('MOVED 1 h:1')", 0), ours.MovedError, theirs.ResponseError),
                (("EVAL", "return redis.error_reply('LOADING so')", 0), ours.LoadingError, theirs.BusyLoadingError),
                (("SELECT", 1), ours.UsageError, theirs.RedisError),
            ):
                with pytest.raises(our_kind) as caught:
                    await r.execute_command(*command)
                assert isinstance(caught.value, their_kind)
                assert type(caught.value).__name__ == our_kind.__name__
                assert caught.value.status_code is None
                assert repr(caught.value).startswith(our_kind.__name__)
        with pytest.raises(theirs.ConnectionError) as closed:
            await r.ping()
        assert isinstance(closed.value, ours.ClosedError)

        async with Redis(url, timeout=0.05) as r:
            fresh_redis_server.suspend()
            with pytest.raises(theirs.TimeoutError) as late:
                await r.ping()
            fresh_redis_server.resume()
            assert isinstance(late.value, ours.CallTimeout)
            assert late.value.maybe_executed

        fresh_redis_server.kill()
        r = Redis(url)
        with pytest.raises(theirs.ConnectionError) as refused:
            await r.ping()
        assert isinstance(refused.value, ours.ConnectError)
        assert refused.value.step == "connect"
        with pytest.raises(theirs.ConnectionError):
            await r.initialize()
        await r.aclose()

    run(main())


def test_a_server_is_shut_down_by_its_command(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(fresh_redis_server.url) as r:
            # The server's only answer is to end the connection.
            assert await r.shutdown(nosave=True) is None  # type: ignore[func-returns-value]
            with pytest.raises(ours.ConnectError):
                await r.ping()

    run(main())


# Its life, and what is not there

module_level = Redis("redis://127.0.0.1:1")


def test_it_may_be_made_before_a_loop_runs() -> None:
    async def main() -> None:
        with pytest.raises(ours.ConnectError):
            await module_level.ping()

    run(main())


def test_a_client_that_was_given_stays_open(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, decode="utf-8") as client:
            async with Redis(client) as r:
                await r.set("k", "é")
                assert await r.get("k") == "é"
            assert await client.call("GET", "k") == "é"
            with pytest.raises(TypeError, match="decode"):
                Redis(client, decode="latin-1")
            await r.aclose(close_connection_pool=True)
            with pytest.raises(ours.ClosedError):
                await client.call("PING")

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_replies_over_a_client_that_was_given_have_the_shapes_of_redis_py(
    redis_server: RunningServer, protocol: int
) -> None:
    async def main() -> None:
        async with Client(redis_server.url, protocol=protocol) as client:
            r = Redis(client)
            await r.hset("h", "field", 1)
            assert await r.hgetall("h") == {b"field": b"1"}
            await r.zadd("z", {"a": 1})
            assert await r.zrange("z", 0, -1, withscores=True) == [(b"a", 1.0)]

    run(main())


def test_redis_py_s_decode_responses_is_understood(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url, decode_responses=True) as r:
            await r.set("k", "é")
            assert await r.get("k") == "é"
        async with Redis.from_url(redis_server.url, decode_responses=False) as r:
            assert await r.get("k") == "é".encode()
        async with Redis.from_url(redis_server.url, decode_responses=True) as r:
            assert await r.get("k") == "é"

    run(main())


def test_how_to_decode_is_said_once() -> None:
    with pytest.raises(TypeError, match="give either decode or decode_responses"):
        Redis(decode="latin-1", decode_responses=True)
    with pytest.raises(TypeError, match="made without decode: make it with"):
        Redis(Client(), decode_responses=True)


def test_it_takes_every_option_of_a_client() -> None:
    options = set(inspect.signature(Client).parameters) - {"url", "connection"} | set(
        ConnectionKeywords.__annotations__
    )
    assert set(ClientKeywords.__annotations__) == options


def test_a_client_of_its_own_is_closed_with_it(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis.from_url(redis_server.url, client_name="mine") as r:
            assert b" name=mine " in redis_server.call("CLIENT", "LIST")
        await eventually(lambda: b" name=mine " not in redis_server.call("CLIENT", "LIST"))
        with pytest.raises(ours.ClosedError):
            await r.ping()

    run(main())


def test_it_is_taken_where_redis_py_s_own_is_wanted(redis_server: RunningServer) -> None:
    r = Redis(redis_server.url)
    assert isinstance(r, redis.asyncio.Redis)
    assert isinstance(r.pipeline(), redis.asyncio.client.Pipeline)


def test_a_reply_may_be_given_a_callback_of_one_s_own(redis_server: RunningServer) -> None:
    async def shout(reply: bytes, **options: Any) -> str:
        return reply.decode().upper()

    async def main() -> None:
        async with Redis(redis_server.url) as r:
            r.set_response_callback("GET", shout)
            await r.set("k", "v")
            assert await r.get("k") == "V"
            assert await r.pipeline().get("k").execute() == ["V"]

    run(main())


def test_what_needs_a_connection_of_redis_py_says_what_to_take_instead(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Redis(redis_server.url) as r:
            with pytest.raises(NotImplementedError, match="PubSubClient"):
                r.pubsub()
            with pytest.raises(NotImplementedError, match="lease"):
                r.client()
            with pytest.raises(NotImplementedError, match=r"redis\.asyncio\.Redis"):
                async with r.monitor():
                    pass

    run(main())


def test_without_redis_py_the_error_names_the_extra() -> None:
    program = """
        import sys
        import waterspout_redis
        assert "redis" not in sys.modules
        sys.modules["redis"] = None
        try:
            from waterspout_redis.commands import Redis
        except ImportError as error:
            assert 'pip install "waterspout-redis[commands]"' in str(error)
            assert 'pip install "redis>=8.1,<9"' in str(error)
        else:
            raise AssertionError("it was imported")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
