"""Atomic pipelines: on the shared connection, and with WATCH on a leased one."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from waterspout_redis import (
    CallTimeout,
    Client,
    ConnectionLost,
    DedicatedClient,
    ExecAbortError,
    NoPermissionError,
    Pipeline,
    RedisError,
    ResponseError,
    UsageError,
    WatchError,
    WrongTypeError,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, run


def transaction(*commands: tuple[Any, ...]) -> Pipeline:
    pipeline = Pipeline(atomic=True)
    for command in commands:
        pipeline.stack_call(*command)
    return pipeline


async def is_out_of_transactions(client: Client) -> bool:
    """Whether the shared connection is in none, by what it answers and by what the server says of it."""
    info = await client.call("CLIENT", "INFO", decode="utf-8")
    # "x" would be a transaction; Valkey's "multi=" stays at 0 behind one.
    return " flags=N " in info and await client.call("PING") == b"PONG"


@pytest.mark.parametrize("protocol", [2, 3])
def test_among_hundreds_of_callers_nothing_comes_between_the_commands_of_a_transaction(
    redis_server: RunningServer, protocol: int
) -> None:
    async def main() -> None:
        async with Client(redis_server.url, protocol=protocol, max_in_flight=100) as client:
            seen: list[int] = []

            async def single(turns: int) -> None:
                seen.extend([await client.call("INCR", "n") for _ in range(turns)])

            async def atomic(turns: int) -> None:
                five = transaction(*[("INCR", "n")] * 5)
                for _ in range(turns):
                    values = await client.call(five)
                    assert values == list(range(values[0], values[0] + 5))
                    seen.extend(values)

            async with asyncio.TaskGroup() as group:
                for _ in range(300):
                    group.create_task(single(10))
                for _ in range(50):
                    group.create_task(atomic(10))
            assert sorted(seen) == list(range(1, 300 * 10 + 50 * 10 * 5 + 1))
            assert await is_out_of_transactions(client)

    run(main())


def test_a_refused_command_aborts_all_of_it_and_the_error_tells_why(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            with pytest.raises(ExecAbortError, match="wrong number of arguments for 'set'") as caught:
                await client.call(transaction(("SET", "k", 1), ("SET", "k")))
            assert not caught.value.maybe_executed
            with pytest.raises(ExecAbortError, match="unknown command 'NOSUCH'"):
                await client.call(transaction(("SET", "k", 1), ("NOSUCH",)))
            assert await client.call("EXISTS", "k") == 0
            assert await is_out_of_transactions(client)

    run(main())


def test_an_error_while_executing_is_an_element_and_the_rest_is_executed(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            replies = await client.call(
                transaction(("SET", "k", "v"), ("LPUSH", "k", "x"), ("GET", "k"), ("GET", "none")), decode="utf-8"
            )
            assert isinstance(replies[1], WrongTypeError)
            assert [replies[0], *replies[2:]] == ["OK", "v", None]

    run(main())


def test_an_empty_transaction_has_no_replies(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            assert await client.call(transaction()) == []
            async with client.lease() as leased:
                assert await leased.call(transaction()) == []
                # With a key watched, an empty one is a question.
                await leased.call("WATCH", "k")
                await client.call("SET", "k", 1)
                with pytest.raises(WatchError):
                    await leased.call(transaction())

    run(main())


@pytest.mark.parametrize("command", ["WATCH k", "MULTI", "EXEC", "DISCARD", "UNWATCH", "SELECT 1", "WAIT 0 0"])
def test_what_would_end_or_change_a_transaction_is_not_for_one(command: str) -> None:
    pipeline = transaction(("SET", "k", 1))
    with pytest.raises(UsageError):
        pipeline.stack_call(*command.split())
    assert len(pipeline) == 1


# WATCH


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_watched_key_that_somebody_changed_makes_it_a_watch_error(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with Client(redis_server.url, protocol=protocol) as client, client.lease() as leased:
            for foreign in (False, True):
                await leased.call("WATCH", "k")
                await leased.call("GET", "k")
                if foreign:
                    await client.call("SET", "k", "foreign")
                    with pytest.raises(WatchError) as caught:
                        await leased.call(transaction(("SET", "k", "mine")))
                    assert not caught.value.maybe_executed
                else:
                    assert await leased.call(transaction(("SET", "k", "mine"))) == [b"OK"]
            assert await client.call("GET", "k") == b"foreign"
            # It is over: what is watched no more spoils nothing.
            assert await leased.call(transaction(("SET", "k", "mine"))) == [b"OK"]

    run(main())


def test_an_optimistic_counter_loses_no_update(redis_server: RunningServer) -> None:
    async def main() -> None:
        conflicts = 0

        async with Client(redis_server.url, max_leases=8) as client:

            async def add_one(leased: DedicatedClient) -> bool:
                await leased.call("WATCH", "n")
                value = int(await leased.call("GET", "n") or 0)
                try:
                    await leased.call(transaction(("SET", "n", value + 1)))
                except WatchError:
                    return False
                return True

            async def worker() -> None:
                nonlocal conflicts
                for _ in range(10):
                    async with client.lease() as leased:
                        while not await add_one(leased):
                            conflicts += 1

            await asyncio.gather(*(worker() for _ in range(20)))
            assert await client.call("GET", "n") == b"200"
            assert conflicts

    run(main())


# Broken in the middle


def test_a_transaction_that_is_cancelled_at_any_time_leaves_the_shared_connection_out_of_it(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_in_flight=16) as client:
            chance = random.Random(5)
            loop = asyncio.get_running_loop()
            id = await client.call("CLIENT", "ID")
            cancelled, seconds = 500, 0.001
            while cancelled == 500:  # on a busy machine it takes longer until some are answered before that
                seconds *= 2
                calls: list[asyncio.Future[Any]] = []
                for number in range(500):
                    call = client.call(transaction(("INCR", "a"), ("INCR", "b")))
                    loop.call_later(chance.random() * seconds, call.cancel)
                    calls += (call, client.call("ECHO", number))
                    if chance.random() < 0.5:
                        await asyncio.sleep(0)
                await asyncio.wait(calls)
                assert [echo.result() for echo in calls[1::2]] == [b"%d" % number for number in range(500)]
                cancelled = sum(call.cancelled() for call in calls)
            assert 0 < cancelled < 500
            for call in calls[::2]:
                assert call.cancelled() or call.result()[0] == call.result()[1]
            assert await is_out_of_transactions(client)
            assert await client.call("CLIENT", "ID") == id
            assert await client.call("GET", "a") == await client.call("GET", "b")

    run(main())


def test_a_transaction_that_times_out_leaves_the_shared_connection_out_of_it(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, Client(proxy.url, timeout=0.1) as client:
            proxy.to_client.faults = Faults(black_hole=True)
            with pytest.raises(CallTimeout) as caught:
                await client.call(transaction(("INCR", "a"), ("INCR", "b")))
            assert caught.value.maybe_executed
            proxy.heal()
            assert await is_out_of_transactions(client)
            assert await client.call("MGET", "a", "b") == [b"1", b"1"]
            assert proxy.connections == 1

    run(main())


@pytest.mark.parametrize("way", ["to_server", "to_client"])
def test_a_transaction_cut_anywhere_is_executed_as_a_whole_or_not_at_all(redis_server: RunningServer, way: str) -> None:
    both = transaction(("INCR", "a"), ("INCR", "b"))
    length = (
        len(both.request().command) if way == "to_server" else len(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n:1\r\n")
    )

    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, Client(proxy.url) as client:
            for count in range(1, length, 3):
                await client.call("PING")
                getattr(proxy, way).cut_after(count, reset=bool(count % 2))
                lost, behind = client.call(both), client.call("ECHO", count)
                with pytest.raises(ConnectionLost) as caught:
                    await lost
                assert caught.value.maybe_executed
                # That commands were queued was no reply to them.
                assert caught.value.replies == []
                # It only reads, so it is sent again; and is not queued.
                assert await behind == b"%d" % count
                assert await is_out_of_transactions(client)
                a, b = await client.call("MGET", "a", "b")
                assert a == b
            assert a is None if way == "to_server" else int(a) > 1

    run(main())


@pytest.mark.parametrize("denied", ["multi", "exec"])
def test_a_user_who_may_not_begin_or_end_transactions_is_told_and_harms_nobody(
    fresh_redis_server: RunningServer, denied: str
) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "limited", "on", ">pw", "allkeys", "+@all", f"-{denied}")

    async def main() -> None:
        async with Client(fresh_redis_server.url, username="limited", password="pw") as client:
            before = client.call("INCR", "m")
            with pytest.raises(ResponseError) as caught:
                await client.call(transaction(("INCR", "n"), ("INCR", "n")))
            assert "permissions" in str(caught.value)
            if denied == "multi":
                # Without MULTI, each was executed by itself.
                assert isinstance(caught.value, NoPermissionError)
                assert caught.value.maybe_executed
                assert await client.call("GET", "n") == b"2"
            else:
                assert not caught.value.maybe_executed
                assert await client.call("EXISTS", "n") == 0
            assert await before == 1
            assert await is_out_of_transactions(client)

    run(main())


def out_of_memory(server: RunningServer) -> None:
    server.call("CONFIG", "SET", "maxmemory", 1)


def too_few_replicas(server: RunningServer) -> None:
    server.call("CONFIG", "SET", "min-replicas-to-write", 1)


@pytest.mark.parametrize("refuse", [out_of_memory, too_few_replicas], ids=lambda refuse: refuse.__name__)
def test_a_server_that_takes_no_writes_refuses_all_of_it_and_the_connection_stays_in_step(
    fresh_redis_server: RunningServer, refuse: Callable[[RunningServer], None]
) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            refuse(fresh_redis_server)
            with pytest.raises(RedisError, match=r"OOM|NOREPLICAS"):
                await client.call(transaction(("SET", "k", 1), ("SET", "l", 1)))
            assert await client.call("EXISTS", "k", "l") == 0
            assert await is_out_of_transactions(client)

    run(main())
