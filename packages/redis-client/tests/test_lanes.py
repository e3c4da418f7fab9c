"""Which connection a command takes: the shared one, one for bulk, or a leased one."""

import asyncio
import time
from typing import Any

import pytest

from waterspout_redis import (
    BULK,
    CallTimeout,
    Client,
    ClosedError,
    ConnectionLost,
    LinkState,
    Pipeline,
    PoolTimeout,
    UsageError,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


def blocked(server: RunningServer) -> int:
    """How many clients wait in a blocking command."""
    for line in server.call("INFO", "clients").splitlines():
        if line.startswith(b"blocked_clients:"):
            return int(line.partition(b":")[2])
    raise AssertionError("INFO does not tell")


def connections(server: RunningServer, name: str) -> list[str]:
    lines = server.call("CLIENT", "LIST").decode().splitlines()
    return [line for line in lines if f" name={name} " in line]


# Blocking commands

PUSH = ("RPUSH", "q", "v")
ZADD = ("ZADD", "z", 1, "m")
XADD = ("XADD", "s", "5-5", "f", "v")
ENTRY = {b"s": [[b"5-5", [b"f", b"v"]]]}

BLOCKING: list[tuple[tuple[Any, ...], tuple[Any, ...], Any]] = [
    (("BLPOP", "q", 0), PUSH, [b"q", b"v"]),
    (("BRPOP", "q", "0"), PUSH, [b"q", b"v"]),
    (("BLMOVE", "q", "d", "LEFT", "RIGHT", 0), PUSH, b"v"),
    (("BRPOPLPUSH", "q", "d", b"0"), PUSH, b"v"),
    (("BLMPOP", 0, 1, "q", "LEFT"), PUSH, [b"q", [b"v"]]),
    (("BZPOPMIN", "z", 0.0), ZADD, [b"z", b"m", 1.0]),
    (("BZPOPMAX", "z", 0), ZADD, [b"z", b"m", 1.0]),
    (("BZMPOP", 0, 1, "z", "MIN"), ZADD, [b"z", [[b"m", 1.0]]]),
    (("XREAD", "BLOCK", 0, "STREAMS", "s", "$"), XADD, ENTRY),
    (("XREADGROUP", "GROUP", "g", "c", "BLOCK", 0, "STREAMS", "s", ">"), XADD, ENTRY),
]


@pytest.mark.parametrize(("command", "wake", "reply"), BLOCKING, ids=[command[0] for command, _, _ in BLOCKING])
def test_f15_a_command_may_block_longer_than_the_timeout_and_holds_up_nobody(
    redis_server: RunningServer, command: tuple[Any, ...], wake: tuple[Any, ...], reply: Any
) -> None:
    redis_server.call("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")

    async def main() -> None:
        async with Client(redis_server.url, timeout=0.05, health_check_interval=0.05) as client:
            call = client.call(*command)
            await eventually(lambda: blocked(redis_server))
            loop = asyncio.get_running_loop()
            begun = loop.time()
            while loop.time() - begun < 0.1:
                assert await client.call("PING") == b"PONG"
            assert not call.done()
            redis_server.call(*wake)
            assert await call == reply

    run(main())


@pytest.mark.parametrize(
    "command",
    [
        ("BLPOP", "q", 0.4),
        ("BLMPOP", 0.4, 1, "q", "LEFT"),
        ("BZPOPMIN", "z", 0.4),
        ("XREAD", "BLOCK", 400, "STREAMS", "s", "0"),
    ],
    ids=lambda command: command[0],
)
def test_f15_a_block_that_ends_without_a_value_is_an_answer_though_the_server_was_silent_for_long(
    redis_server: RunningServer, command: tuple[Any, ...]
) -> None:
    async def main() -> None:
        async with Client(redis_server.url, timeout=0.3, health_check_interval=0.1) as client:
            begun = time.monotonic()
            assert await client.call(*command) is None
            assert 0.35 < time.monotonic() - begun < 0.7

    run(main())


def test_f15_the_deadline_is_the_block_time_and_the_timeout_on_top(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, timeout=0.2) as client:
            call = client.call("BLPOP", "q", 0.2)
            await eventually(lambda: blocked(fresh_redis_server))
            fresh_redis_server.suspend()
            begun = time.monotonic()
            with pytest.raises(CallTimeout) as caught:
                await call
            assert 0.3 < time.monotonic() - begun < 0.6
            assert caught.value.seconds == pytest.approx(0.4)
            assert caught.value.maybe_executed
            fresh_redis_server.resume()
            # Its connection is gone: what comes late is nobody's.
            fresh_redis_server.call("RPUSH", "q", "v")
            assert await client.call("BLPOP", "q", 1) == [b"q", b"v"]

    run(main())


def test_a_blocked_call_is_told_at_once_when_its_server_dies(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            call = client.call("BLPOP", "q", 0)
            await eventually(lambda: blocked(fresh_redis_server))
            fresh_redis_server.kill()
            with pytest.raises(ConnectionLost) as caught:
                await call
            assert caught.value.maybe_executed

    run(main(), deadline=5)


def test_f8_a_server_that_falls_silent_in_a_block_is_found(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with (
            FaultProxy(redis_server.port) as proxy,
            Client(proxy.url, timeout=None, health_check_interval=0.1) as client,
        ):
            call = client.call("BLPOP", "q", 0.2)
            await eventually(lambda: blocked(redis_server))
            proxy.disturb(Faults(black_hole=True))
            with pytest.raises(ConnectionLost, match="has sent nothing"):
                await call
            proxy.heal()

    run(main(), deadline=5)


def test_f8_after_an_endless_block_was_answered_its_connection_is_watched_over_again(
    fresh_redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, timeout=None, health_check_interval=0.1) as client:
            async with client.lease() as leased:
                fresh_redis_server.call("RPUSH", "q", "v")
                assert await leased.call("BLPOP", "q", 0) == [b"q", b"v"]
                fresh_redis_server.suspend()
                with pytest.raises(ConnectionLost, match="has sent nothing"):
                    await leased.call("PING")
            fresh_redis_server.resume()

    run(main(), deadline=5)


def test_a_pipeline_that_blocks_has_a_connection_to_itself(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, timeout=0.1, decode="utf-8") as client:
            pipeline = Pipeline()
            pipeline.stack_call("INCR", "n")
            pipeline.stack_call("BLPOP", "q", 0.2)
            pipeline.stack_call("BLPOP", "q", 0)
            pipeline.stack_call("INCR", "n")
            call = client.call(pipeline)
            await eventually(lambda: blocked(redis_server))
            assert await client.call("GET", "n") == "1"
            await asyncio.sleep(0.3)
            redis_server.call("RPUSH", "q", "v")
            assert await call == [1, None, ["q", "v"], 2]

    run(main())


def test_in_a_transaction_nothing_blocks_and_none_is_leased(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, client_name="one") as client:
            transaction = Pipeline(atomic=True)
            transaction.stack_call("BLPOP", "q", 0)
            assert await client.call(transaction) == [None]
            assert len(connections(redis_server, "one")) == 1

    run(main())


def test_what_does_not_block_is_not_leased(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, client_name="one") as client:
            assert await client.call("XREAD", "COUNT", 1, "STREAMS", "s", "0") is None
            assert len(connections(redis_server, "one")) == 1
            assert await client.call("XREAD", "BLOCK", 1, "STREAMS", "s", "0") is None
            assert len(connections(redis_server, "one")) == 2

    run(main())


# Leases are counted


def test_who_waits_for_a_lease_is_served_in_order(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_leases=1, client_name="few") as client:
            calls = [client.call("BLPOP", "q", 0) for _ in range(20)]
            await eventually(lambda: blocked(redis_server))
            assert blocked(redis_server) == 1
            redis_server.call("RPUSH", "q", *range(20))
            assert [value for _, value in await asyncio.gather(*calls)] == [b"%d" % turn for turn in range(20)]
            assert len(connections(redis_server, "few")) == 2

    run(main())


def test_who_waits_for_a_lease_too_long_is_told_that_nothing_was_sent(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_leases=2, timeout=0.2) as client:
            holders = [client.call("BLPOP", "q", 0) for _ in range(2)]
            await eventually(lambda: blocked(redis_server) == 2)
            late = client.call("BLPOP", "q", 0)
            with pytest.raises(PoolTimeout) as caught:
                await late
            assert not caught.value.maybe_executed
            assert (caught.value.size, caught.value.seconds) == (2, 0.2)
            with pytest.raises(PoolTimeout):
                async with client.lease():
                    pytest.fail("there were only two")
            assert await client.call("PING") == b"PONG"
            redis_server.call("RPUSH", "q", 1, 2, 3)
            await asyncio.gather(*holders)
            assert await client.call("BLPOP", "q", 0) == [b"q", b"3"]

    run(main())


def test_disconnecting_ends_blocked_calls_and_those_that_wait_for_a_lease(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_leases=1) as client:
            calls = [client.call("BLPOP", "q", 0) for _ in range(3)]
            await eventually(lambda: blocked(redis_server))
            client.disconnect()
            for call in calls:
                with pytest.raises(ClosedError):
                    await call
            redis_server.call("RPUSH", "q", "v")
            assert await client.call("BLPOP", "q", 0) == [b"q", b"v"]

    run(main(), deadline=5)


def test_closing_ends_blocked_calls_though_others_call_meanwhile(redis_server: RunningServer) -> None:
    async def main() -> None:
        client = Client(redis_server.url, max_leases=1, timeout=None, client_name="closing")
        await client.connect()
        calls = [client.call("BLPOP", "q", 0) for _ in range(3)]
        await eventually(lambda: blocked(redis_server))
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        calls.append(client.call("PING"))
        calls.append(client.call("BLPOP", "q", 0))
        await closing
        for call in calls:
            with pytest.raises(ClosedError):
                await call
        await eventually(lambda: not connections(redis_server, "closing"))

    run(main(), deadline=5)


def test_leases_that_were_idle_in_a_restart_are_made_anew(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        lost = 0

        def on_connection(lane: str, state: LinkState, error: Any) -> None:
            nonlocal lost
            lost += (lane, state) == ("leased", LinkState.DISCONNECTED)

        async with Client(fresh_redis_server.url, on_connection=on_connection) as client:
            await asyncio.gather(*(client.call("BLPOP", "q", 0.05) for _ in range(3)))
            fresh_redis_server.stop()
            fresh_redis_server.start()
            await eventually(lambda: lost == 3)
            fresh_redis_server.call("RPUSH", "q", 1, 2, 3)
            values = await asyncio.gather(*(client.call("BLPOP", "q", 1) for _ in range(3)))
            assert sorted(value for _, value in values) == [b"1", b"2", b"3"]

    run(main())


# F5: a cancelled BLPOP


def test_f5_a_blocked_call_that_is_cancelled_ends_its_connection_and_takes_nothing(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, client_name="gone", max_leases=1) as client:
            call = client.call("BLPOP", "q", 0)
            await eventually(lambda: blocked(redis_server))
            call.cancel()
            await asyncio.wait((call,))
            assert call.cancelled()
            await eventually(lambda: len(connections(redis_server, "gone")) == 1)
            redis_server.call("RPUSH", "q", "v")
            assert await client.call("LLEN", "q") == 1
            assert await client.call("BLPOP", "q", 0) == [b"q", b"v"]

    run(main())


def test_f5_a_call_that_is_cancelled_while_it_waits_for_a_lease_takes_none(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_leases=1) as client:
            first, second, third = (client.call("BLPOP", "q", 0) for _ in range(3))
            await eventually(lambda: blocked(redis_server))
            second.cancel()
            redis_server.call("RPUSH", "q", 1, 2)
            assert [await first, await third] == [[b"q", b"1"], [b"q", b"2"]]
            assert second.cancelled()

    run(main())


def test_f5_a_call_that_is_cancelled_while_it_connects_leaves_no_connection_and_no_task(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            client = Client(proxy.url, max_leases=1)
            proxy.disturb(Faults(black_hole=True))
            call = client.call("BLPOP", "q", 0)
            await eventually(lambda: proxy.connections)
            call.cancel()
            await asyncio.wait((call,))
            proxy.heal()
            await eventually(lambda: not proxy.live)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            redis_server.call("RPUSH", "q", "v")
            assert await client.call("BLPOP", "q", 0) == [b"q", b"v"]
            await client.aclose()

    run(main())


def test_f5_a_call_that_is_cancelled_in_its_first_turn_is_never_sent(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            redis_server.call("RPUSH", "q", "v")
            call = client.call("BLPOP", "q", 0)
            call.cancel()
            await asyncio.wait((call,))
            assert await client.call("LLEN", "q") == 1

    run(main())


# The bulk lane


def test_f25_a_large_reply_on_the_bulk_lane_does_not_hold_up_small_ones(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            value = bytes(32 * 1024 * 1024)
            await client.call("SET", "large", value)
            large = client.call("GET", "large", bulk=True)
            assert await client.call("PING") == b"PONG"
            assert not large.done()
            assert await large == value

    run(main())


def test_f25_large_commands_and_pipelines_go_by_the_bulk_lane_all_by_themselves(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, client_name="lanes") as client:
            shared = await client.call("CLIENT", "ID")
            await client.call("SET", "k", bytes(BULK // 2))
            assert len(connections(redis_server, "lanes")) == 1
            await client.call("SET", "k", bytes(BULK))
            assert len(connections(redis_server, "lanes")) == 2
            bulk = await client.call("CLIENT", "ID", bulk=True)
            for atomic in (False, True):
                pipeline = Pipeline(atomic=atomic)
                for _ in range(3):
                    pipeline.stack_call("SET", "k", bytes(BULK // 2))
                pipeline.stack_call("GET", "k")
                assert (await client.call(pipeline))[3] == bytes(BULK // 2)
                pipeline = Pipeline(atomic=atomic)
                pipeline.stack_call("ECHO", "small")
                assert await client.call(pipeline, bulk=True, decode="utf-8") == ["small"]
            assert len(connections(redis_server, "lanes")) == 2
            assert shared != bulk == await client.call("CLIENT", "ID", bulk=True)

    run(main())


def test_the_bulk_lane_is_made_anew_and_repeats_what_only_reads(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, Client(proxy.url) as client:
            value = bytes(1_000_000)
            await client.call("SET", "k", value)
            proxy.to_client.cut_after(300_000, reset=True)
            assert await client.call("GET", "k", bulk=True) == value
            assert proxy.connections == 3

    run(main())


# What is not for the shared connection


def one_by_one(*commands: list[str]) -> Pipeline:
    pipeline = Pipeline()
    for command in commands:
        pipeline.stack_call(*command)
    return pipeline


@pytest.mark.parametrize(
    "words",
    [
        "WATCH k",
        "unwatch",
        "MULTI",
        "EXEC",
        "DISCARD",
        "SELECT 1",
        "AUTH secret",
        "READONLY",
        "ASKING",
        "WAIT 0 1",
        "client tracking on",
        "SUBSCRIBE a",
        "UNSUBSCRIBE",
        "PSUBSCRIBE a*",
        "SSUBSCRIBE a",
        "MONITOR",
        "CLIENT REPLY OFF",
        "HELLO 2",
        "RESET",
        "QUIT",
        "SYNC",
    ],
)
def test_what_would_disturb_the_others_is_refused_at_once_and_nothing_is_sent(
    redis_server: RunningServer, words: str
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, Client(proxy.url) as client:
            before = proxy.to_server.bytes
            ping = client.call("PING")
            with pytest.raises(UsageError, match=words.split()[0].upper()):
                client.call(*words.split())
            with pytest.raises(UsageError):
                client.call(*words.encode().split())
            with pytest.raises(UsageError):
                client.call(one_by_one(words.split()))
            assert [await ping, await client.call("PING")] == [b"PONG", b"PONG"]
            assert proxy.to_server.bytes == before + 2 * len(b"*1\r\n$4\r\nPING\r\n")
            assert proxy.connections == 1

    run(main())


def test_what_is_wrong_with_the_encoding_of_one_call_is_no_harm_to_the_others(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            await client.call("SET", "k", b"\xff")
            pipeline = Pipeline()
            pipeline.stack_call("GET", "k")
            before = client.call("INCR", "n")
            wrong = client.call("GET", "k", decode="utf-8")
            for encoding in ("no-such", "hex"):
                with pytest.raises(LookupError):
                    client.call("GET", "k", decode=encoding)
                with pytest.raises(LookupError):
                    client.call(pipeline, decode=encoding)
            after = client.call("INCR", "n")
            with pytest.raises(UnicodeError):
                await wrong
            assert [await before, await after] == [1, 2]

    run(main())


def test_what_a_blocking_call_is_given_is_taken_at_once(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            key = bytearray(b"right")
            popped = client.call("BLPOP", key, 5)
            key[:] = b"wrong"
            pipeline = Pipeline()
            pipeline.stack_call("BLPOP", "pipelined", 5)
            pipelined = client.call(pipeline)
            pipeline.stack_call("PING")
            for name in ("right", "pipelined"):
                await client.call("RPUSH", name, "v")
            assert await popped == [b"right", b"v"]
            assert await pipelined == [[b"pipelined", b"v"]]

    run(main())
