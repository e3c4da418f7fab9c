"""What is sent again, what is not, and what becomes of those who wait when connections break."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from waterspout_redis import (
    CallTimeout,
    Client,
    ConnectError,
    ConnectionLost,
    LinkState,
    MovedError,
    ReadOnlyError,
    RedisError,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run

BLACK_HOLE = Faults(black_hole=True)


def calls_of(server: RunningServer, command: str) -> int:
    """How often the server has executed it."""
    for line in server.call("INFO", "commandstats").decode().splitlines():
        if line.startswith(f"cmdstat_{command}:calls="):
            return int(line.partition("=")[2].partition(",")[0])
    return 0


def blocked(server: RunningServer) -> bool:
    return b"blocked_clients:0" not in server.call("INFO", "clients")


# F16: what may have been executed


@pytest.mark.parametrize("max_in_flight", [1, 4096])
def test_f16_a_write_is_never_sent_twice_however_often_its_connection_is_killed(
    redis_server: RunningServer, max_in_flight: int
) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_in_flight=max_in_flight) as client:
            answered: list[int] = []
            unknown = connected = 0
            stop = asyncio.get_running_loop().time() + 0.7

            async def writer() -> None:
                nonlocal unknown
                while asyncio.get_running_loop().time() < stop:
                    try:
                        answered.append(await client.call("INCR", "n"))
                    except ConnectionLost as lost:
                        unknown += lost.maybe_executed

            async def killer() -> None:
                nonlocal connected
                while True:
                    await eventually(client.is_connected)
                    connected += 1
                    redis_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    await asyncio.sleep(0.01)

            killing = asyncio.create_task(killer())
            await asyncio.gather(*(writer() for _ in range(50)))
            killing.cancel()
            executed = int(redis_server.call("GET", "n"))
            assert connected > 5
            assert unknown
            assert len(set(answered)) == len(answered)
            assert len(answered) <= executed <= len(answered) + unknown

    run(main())


@pytest.mark.parametrize("retry", [0, 1, 3])
def test_what_only_reads_is_repeated_so_often_and_no_more(fresh_redis_server: RunningServer, retry: int) -> None:
    fresh_redis_server.call("SET", "k", bytes(100))

    async def main() -> None:
        async with FaultProxy(fresh_redis_server.port) as proxy:

            def on_connection(lane: str, state: LinkState, error: Any) -> None:
                if state is LinkState.CONNECTED:
                    # In the middle of whatever is answered next.
                    proxy.to_client.cut_after(50)

            async with Client(proxy.url, retry=retry, on_connection=on_connection) as client:
                with pytest.raises(ConnectionLost):
                    await client.call("GET", "k")
                assert calls_of(fresh_redis_server, "get") == 1 + retry
                await eventually(lambda: not proxy.live)
                proxy.heal()
                with pytest.raises(ConnectionLost) as caught:
                    await client.call("GETDEL", "k")
                assert caught.value.maybe_executed
                assert calls_of(fresh_redis_server, "getdel") == 1

    run(main())


def test_what_was_never_written_waits_for_the_next_connection_in_order(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, Client(proxy.url, max_in_flight=2) as client:
            proxy.to_client.faults = BLACK_HOLE
            calls = [client.call("RPUSH", "l", number) for number in range(20)]
            await eventually(lambda: redis_server.call("LLEN", "l"))
            proxy.reset()
            proxy.heal()
            await asyncio.wait(calls)
            errors = [call.exception() for call in calls]
            lost = [error for error in errors if error is not None]
            assert 0 < len(lost) <= 2
            assert errors[: len(lost)] == lost
            assert all(isinstance(error, ConnectionLost) and error.maybe_executed for error in lost)
            assert await client.call("LRANGE", "l", 0, -1) == [b"%d" % number for number in range(20)]

    run(main())


def test_a_restart_is_bridged_where_retries_last_so_long(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, retry=20) as client:
            fresh_redis_server.stop()
            await eventually(lambda: not client.is_connected())
            calls = [client.call("INCR", "n") for _ in range(100)]
            blocking = client.call("BLPOP", "q", 5)
            await asyncio.wait([*calls, blocking], timeout=0.5)
            await asyncio.to_thread(fresh_redis_server.start)
            assert await asyncio.gather(*calls) == list(range(1, 101))
            fresh_redis_server.call("RPUSH", "q", "v")
            assert await blocking == [b"q", b"v"]

    run(main())


def test_a_server_that_stays_away_is_told_with_the_reason(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        fresh_redis_server.stop()
        async with asyncio.timeout(5):
            client = Client(fresh_redis_server.url, retry=1)
            call, other = client.call("INCR", "n"), client.call("INCR", "n")
            with pytest.raises(ConnectError) as caught:
                await call
            assert isinstance(caught.value.__cause__ or caught.value.cause, ConnectionRefusedError)
            assert not caught.value.maybe_executed
            with pytest.raises(ConnectError):
                await other
            await client.aclose()
            client = Client(fresh_redis_server.url, retry=1000, timeout=0.2)
            with pytest.raises(CallTimeout) as late:
                await client.call("INCR", "n")
            assert not late.value.maybe_executed
            assert isinstance(late.value.__cause__, ConnectError)
            await client.aclose()

    run(main())


# F2, F3, F6, F24: callers who go


def test_f2_cancelled_callers_end_no_connection_that_others_share(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            id = await client.call("CLIENT", "ID")
            for _ in range(20):
                calls = [client.call("ECHO", number) for number in range(100)]
                for _ in range(2):
                    await asyncio.sleep(0)
                for call in calls[::2]:
                    call.cancel()
                assert await asyncio.gather(*calls[1::2]) == [b"%d" % number for number in range(1, 100, 2)]
            assert await client.call("CLIENT", "ID") == id

    run(main())


def test_f3_cancelling_returns_at_once_though_the_server_is_suspended(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            async with client.lease():
                pass

            async def shared() -> None:
                await client.call("INCR", "n")

            async def blocking() -> None:
                await client.call("BLPOP", "q", 0)

            async def leased() -> None:
                async with client.lease() as leased:
                    await leased.call("WATCH", "k")

            async def bulk() -> None:
                await client.call("GET", "k", bulk=True)

            fresh_redis_server.suspend()
            tasks = [asyncio.create_task(main()) for main in (shared, blocking, leased, bulk)]
            for _ in range(100):
                await asyncio.sleep(0)
            begun = time.monotonic()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            assert time.monotonic() - begun < 0.1
            fresh_redis_server.resume()
            assert await client.call("PING") == b"PONG"

    run(main())


def test_f6_any_number_of_tasks_may_wait_on_one_connection_and_on_one_call(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            one = client.call("ECHO", "one")

            async def waiter(number: int) -> tuple[bytes, bytes]:
                return await client.call("ECHO", number), await one

            results = await asyncio.gather(*map(waiter, range(1000)))
            assert results == [(b"%d" % number, b"one") for number in range(1000)]

    run(main())


def test_f24_calls_that_timed_out_give_their_room_back_with_their_replies(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, Client(proxy.url, timeout=0.1, max_in_flight=20) as client:
            proxy.to_client.faults = BLACK_HOLE
            calls = [client.call("INCR", "n") for _ in range(8)]
            await asyncio.wait(calls)
            assert all(isinstance(call.exception(), CallTimeout) for call in calls)
            assert client.in_flight == 8
            proxy.heal()
            await eventually(lambda: client.in_flight == 0)
            assert client.in_flight_bytes == 0
            assert proxy.connections == 1

    run(main())


def test_f24_too_many_calls_that_timed_out_end_the_connection(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, timeout=0.1, max_in_flight=20) as client:
            id = await client.call("CLIENT", "ID")
            fresh_redis_server.suspend()
            calls = [client.call("INCR", "n") for _ in range(100)]
            await asyncio.wait(calls)
            errors = [call.exception() for call in calls]
            assert all(isinstance(error, CallTimeout) for error in errors)
            # What was not sent is told apart from what was.
            sent = [error for error in errors if isinstance(error, RedisError) and error.maybe_executed]
            assert 10 < len(sent) <= 20
            assert client.in_flight == client.in_flight_bytes == 0
            fresh_redis_server.resume()
            await eventually(lambda: fresh_redis_server.call("PING"))
            assert await client.call("CLIENT", "ID") != id
            assert await client.call("INCR", "n") <= len(sent) + 1

    run(main())


def test_f24_leases_whose_calls_timed_out_come_back(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, timeout=0.1, max_leases=3) as client:
            for _ in range(3):
                calls = [client.call("BLPOP", "q", 0.05) for _ in range(3)]
                await eventually(lambda: blocked(fresh_redis_server))
                fresh_redis_server.suspend()
                await asyncio.wait(calls)
                assert any(isinstance(call.exception(), CallTimeout) for call in calls)
                fresh_redis_server.resume()
            fresh_redis_server.call("RPUSH", "q", 1, 2, 3)
            assert len(await asyncio.gather(*(client.call("BLPOP", "q", 1) for _ in range(3)))) == 3

    run(main())


# F22: a master that is one no more


@pytest.fixture
def other_redis_server(redis_binary: ServerBinary) -> Iterator[RunningServer]:
    with RunningServer(redis_binary) as server:
        yield server


def demote(server: RunningServer) -> None:
    """Make it a replica. That its master cannot be reached does not matter: it takes no writes, and serves reads."""
    server.call("REPLICAOF", "127.0.0.1", 1)


def test_f22_a_master_that_became_a_replica_is_left_when_all_in_flight_is_answered(
    fresh_redis_server: RunningServer, other_redis_server: RunningServer
) -> None:
    async def main() -> None:
        async with FaultProxy(fresh_redis_server.port) as proxy, Client(proxy.url) as client:
            await client.call("SET", "k", "old")
            demote(fresh_redis_server)
            # Where the port leads now.
            proxy.target = ("127.0.0.1", other_redis_server.port)
            read, write, behind = client.call("GET", "k"), client.call("SET", "k", 1), client.call("ECHO", "behind")
            with pytest.raises(ReadOnlyError):
                await write
            assert [await read, await behind] == [b"old", b"behind"]
            assert await client.call("SET", "k", "mine") == b"OK"
            assert other_redis_server.call("GET", "k") == b"mine"
            assert proxy.connections == 2

    run(main())


def test_f22_what_waits_for_room_goes_to_the_new_master(
    fresh_redis_server: RunningServer, other_redis_server: RunningServer
) -> None:
    async def main() -> None:
        async with FaultProxy(fresh_redis_server.port) as proxy, Client(proxy.url, max_in_flight=10) as client:
            demote(fresh_redis_server)
            proxy.target = ("127.0.0.1", other_redis_server.port)
            calls = [client.call("INCR", "n") for _ in range(100)]
            await asyncio.wait(calls)
            refused = [call for call in calls if isinstance(call.exception(), ReadOnlyError)]
            assert 0 < len(refused) <= 10
            assert calls[: len(refused)] == refused
            assert [call.result() for call in calls[len(refused) :]] == list(range(1, 101 - len(refused)))

    run(main())


def test_f22_a_lease_to_a_replica_ends_and_the_next_one_goes_to_the_new_master(
    fresh_redis_server: RunningServer, other_redis_server: RunningServer
) -> None:
    async def main() -> None:
        async with FaultProxy(fresh_redis_server.port) as proxy, Client(proxy.url) as client:
            async with client.lease() as leased:
                demote(fresh_redis_server)
                proxy.target = ("127.0.0.1", other_redis_server.port)
                with pytest.raises(ReadOnlyError):
                    await leased.call("SET", "k", 1)
                with pytest.raises(ConnectionLost, match="replica"):
                    await leased.call("SET", "k", 1)
            async with client.lease() as leased:
                assert await leased.call("SET", "k", 2) == b"OK"

    run(main())


def test_f22_a_replica_that_is_written_to_again_and_again_is_not_hammered_with_connections(
    fresh_redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with FaultProxy(fresh_redis_server.port) as proxy, Client(proxy.url) as client:
            demote(fresh_redis_server)
            begun = time.monotonic()
            for _ in range(4):
                with pytest.raises(ReadOnlyError):
                    await client.call("SET", "k", 1)
            assert time.monotonic() - begun > 0.05 + 0.1 + 0.2

    run(main())


# F23: a cluster, as far as a client of one server goes


@pytest.fixture
def cluster(redis_binary: ServerBinary) -> Iterator[list[RunningServer]]:
    """Two nodes that know each other; the first has all slots but that of "k", which the second has."""
    with ExitStack() as stack:
        buses, nodes = [], []
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                buses.append(probe.getsockname()[1])
            options = ("--cluster-enabled", "yes", "--cluster-port", str(buses[-1]))
            nodes.append(stack.enter_context(RunningServer(redis_binary, *options)))
        here, there = nodes
        slot = here.call("CLUSTER", "KEYSLOT", "k")
        here.call("CLUSTER", "SET-CONFIG-EPOCH", 1)
        there.call("CLUSTER", "SET-CONFIG-EPOCH", 2)
        here.call("CLUSTER", "ADDSLOTSRANGE", 0, slot - 1, slot + 1, 16383)
        there.call("CLUSTER", "ADDSLOTS", slot)
        here.call("CLUSTER", "MEET", "127.0.0.1", there.port, buses[1])
        yield nodes


def test_f23_moved_is_an_error_with_slot_and_address_and_the_connection_stays(cluster: list[RunningServer]) -> None:
    here, there = cluster

    async def main() -> None:
        await eventually(lambda: all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in cluster))
        async with Client(here.url) as client:
            id = await client.call("CLIENT", "ID")
            for command in (("SET", "k", 1), ("GET", "k")):
                moved, other = client.call(*command), client.call("INCR", "other")
                with pytest.raises(MovedError) as caught:
                    await moved
                slot = here.call("CLUSTER", "KEYSLOT", "k")
                assert str(caught.value) == f"MOVED {slot} 127.0.0.1:{there.port}"
                assert caught.value.code == "MOVED"
                assert await other
            assert await client.call("CLIENT", "ID") == id
        async with Client(there.url) as client:
            assert await client.call("SET", "k", 1) == b"OK"

    run(main())
