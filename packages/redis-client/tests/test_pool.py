"""Pools: `ClientPool`, and the one behind `Client.lease`."""

import asyncio
import gc
import socket
import time
import types
import warnings
from asyncio import CancelledError, Future
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

from waterspout_redis import (
    Client,
    ClientPool,
    ClosedError,
    ConnectError,
    ConnectionLost,
    DedicatedClient,
    Pipeline,
    PoolTimeout,
    UsageError,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port whose listener takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def connections(server: RunningServer, name: str) -> list[str]:
    lines = server.call("CLIENT", "LIST").decode().splitlines()
    return [line for line in lines if f" name={name} " in line]


# Lending


def test_a_client_that_is_given_back_is_lent_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url, max_size=2, client_name="pool") as pool:
            async with pool.connected_client() as first:
                id = await first.call("CLIENT", "ID")
                assert len(pool) == 1
            async with pool.connected_client() as again, pool.connected_client() as other:
                assert await again.call("CLIENT", "ID") == id != await other.call("CLIENT", "ID")
                assert pool.get_client_nowait() is None
            assert len(pool) == 2
        assert len(pool) == 0
        await eventually(lambda: not connections(redis_server, "pool"))

    run(main())


def test_clients_that_wait_are_lent_in_the_order_in_which_they_were_asked_for(redis_server: RunningServer) -> None:
    async def main() -> None:
        served: list[int] = []
        async with ClientPool(redis_server.url, max_size=2) as pool:
            await pool.preconnect()

            async def user(number: int) -> None:
                async with pool.connected_client() as client:
                    served.append(number)
                    await client.call("PING")
                    assert len(pool) <= 2

            await asyncio.gather(*map(user, range(200)))
        assert served == list(range(200))

    run(main())


def test_f4_who_waits_too_long_is_told_and_leaves_nothing_behind(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url, max_size=1, wait_timeout=0.01) as pool:
            async with pool.connected_client() as client:
                id = await client.call("CLIENT", "ID")
                gc.collect()
                before = sum(isinstance(thing, Future) for thing in gc.get_objects())
                for _ in range(30):
                    with pytest.raises(PoolTimeout):
                        await pool.get_connected_client()
                gc.collect()
                assert sum(isinstance(thing, Future) for thing in gc.get_objects()) < before + 5
            async with pool.connected_client() as again:
                assert await again.call("CLIENT", "ID") == id

    run(main())


@pytest.mark.parametrize("released", [-0.01, 0.01], ids=["just before", "just after"])
def test_f4_a_client_given_back_in_the_moment_of_giving_up_is_not_lost(
    redis_server: RunningServer, released: float
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ClientPool(redis_server.url, max_size=1, wait_timeout=0.1) as pool:
            held = await pool.get_connected_client()
            id = await held.call("CLIENT", "ID")
            waiters = [asyncio.create_task(pool.get_connected_client()) for _ in range(2)]
            due = loop.time() + 0.1
            await asyncio.sleep(0)
            loop.call_at(due + released, pool.release_client, held)
            # Both are due when the loop looks next.
            loop.call_later(0.05, time.sleep, 0.1)
            done, _ = await asyncio.wait(waiters)
            for waiter in done:
                if waiter.exception() is None:
                    pool.release_client(waiter.result())
                else:
                    assert isinstance(waiter.exception(), PoolTimeout)
            async with pool.connected_client() as again:
                assert await again.call("CLIENT", "ID") == id
                assert len(pool) == 1

    run(main())


def test_f4_a_client_that_could_not_connect_takes_up_no_room(free_port: int) -> None:
    async def main() -> None:
        async with ClientPool(port=free_port, max_size=1, wait_timeout=1) as pool:
            for _ in range(3):
                with pytest.raises(ConnectError):
                    await pool.get_connected_client()
                assert len(pool) == 0
            results = await asyncio.gather(*(pool.get_connected_client() for _ in range(5)), return_exceptions=True)
            assert [type(result) for result in results] == [ConnectError] * 5
            with pytest.raises(ConnectError):
                await pool.preconnect()
            assert len(pool) == 0

    run(main())


def test_f21_a_lease_from_a_server_that_says_nothing_ends_in_time(deaf_port: int) -> None:
    async def main() -> None:
        async with ClientPool(port=deaf_port, max_size=1, connect_timeout=0.1) as pool:
            client = Client(port=deaf_port, max_leases=1, connect_timeout=0.1)
            for lease in (pool.connected_client, client.lease):
                begun = time.monotonic()
                with pytest.raises(ConnectError) as caught:
                    async with lease():
                        pytest.fail("nobody answered")
                assert caught.value.step == "HELLO"
                assert 0.05 < time.monotonic() - begun < 1
            await client.aclose()

    run(main())


def test_f4_a_client_is_released_once(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url) as pool, ClientPool(redis_server.url) as other:
            client = await pool.get_connected_client()
            with pytest.raises(UsageError):
                other.release_client(client)
            pool.release_client(client)
            with pytest.raises(UsageError, match="twice"):
                pool.release_client(client)
            assert len(pool) == 1
            first, second = await pool.get_connected_client(), await pool.get_connected_client()
            assert first is not second
            async with pool.connected_client() as early:
                pool.release_client(early)

    run(main())


# F4: cancelled anywhere


@types.coroutine
def cancelled_at(suspension: int, main: Coroutine[Any, Any, Any]) -> Generator[Any, None, bool]:
    """Await `main`, but cancel it in the moment in which its n-th wait is over. Whether it came as far as that."""
    for _ in range(suspension):
        try:
            waits_for = main.send(None)
        except StopIteration:
            return False
        yield waits_for
    try:
        main.throw(CancelledError())
    except CancelledError:
        return True
    raise AssertionError("it would not be cancelled")


async def cancelled_in(suspension: int, main: Coroutine[Any, Any, Any]) -> bool:
    """The same, but cancelled while it waits."""
    waits = 0

    @types.coroutine
    def counted() -> Generator[Any, None, None]:
        nonlocal waits
        while True:
            try:
                waits_for = main.send(None)
            except StopIteration:
                return
            waits += 1
            if waits == suspension:
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                yield waits_for
            except CancelledError as error:
                main.throw(error)
                raise AssertionError("it would not be cancelled") from None

    async def wrapped() -> None:
        await counted()

    task = asyncio.create_task(wrapped())
    await asyncio.wait((task,))
    return task.cancelled() or task.result() is not None


@pytest.mark.parametrize("cancel", [cancelled_at, cancelled_in])
@pytest.mark.parametrize("state", ["new", "idle", "lent"])
def test_f4_cancelled_at_any_await_a_lease_is_given_back(
    redis_server: RunningServer, state: str, cancel: Callable[[int, Coroutine[Any, Any, Any]], Awaitable[bool]]
) -> None:
    async def main() -> None:
        async def use(client: Client, turn: int) -> None:
            async with client.lease() as leased:
                assert await leased.call("ECHO", turn) == b"%d" % turn
                await leased.call("WATCH", "k")
                pipeline = Pipeline(atomic=True)
                pipeline.stack_call("ECHO", turn)
                assert await leased.call(pipeline) == [b"%d" % turn]

        for turn in range(1, 30):
            client = Client(redis_server.url, max_leases=1, timeout=5)
            if state != "new":
                await use(client, turn)
            if state == "lent":
                async with client.lease():
                    cancelling = asyncio.create_task(wait_for(cancel(turn, use(client, turn))))
                    await asyncio.sleep(0)
                more = await cancelling
            else:
                more = await cancel(turn, use(client, turn))
            await use(client, turn)
            await client.aclose()
            if not more:
                assert turn > 3
                return
        pytest.fail("it has no end")

    async def wait_for(main: Awaitable[bool]) -> bool:
        return await main

    run(main())


def test_f4_tasks_cancelled_at_random_leave_every_lease_to_others(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_leases=3, timeout=5) as client:

            async def use(number: int) -> None:
                async with client.lease() as leased:
                    assert await leased.call("ECHO", number) == b"%d" % number

            tasks = [asyncio.create_task(use(number)) for number in range(300)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                for task in tasks[::7]:
                    task.cancel()
                del tasks[::7]
            for task in tasks:
                task.result()
            async with client.lease(), client.lease(), client.lease():
                pass

    run(main())


# What is left on a connection


async def watch(client: DedicatedClient) -> None:
    await client.call("WATCH", "k")


async def watch_in_a_pipeline(client: DedicatedClient) -> None:
    pipeline = Pipeline()
    pipeline.stack_call("WATCH", "k")
    pipeline.stack_call("GET", "k")
    await client.call(pipeline)


async def multi(client: DedicatedClient) -> None:
    await client.call("MULTI")
    await client.call("SET", "k", 1)


async def unwatch_that_was_only_queued(client: DedicatedClient) -> None:
    await client.call("MULTI")
    await client.call("UNWATCH")


async def exec_that_was_never_sent(client: DedicatedClient) -> None:
    await client.call("MULTI")
    client.call("EXEC").cancel()
    await asyncio.sleep(0)


async def transaction_that_was_never_sent(client: DedicatedClient) -> None:
    await client.call("WATCH", "k")
    pipeline = Pipeline(atomic=True)
    pipeline.stack_call("SET", "k", 1)
    client.call(pipeline).cancel()
    await asyncio.sleep(0)


async def discard_without_multi(client: DedicatedClient) -> None:
    await client.call("WATCH", "k")
    await asyncio.wait((client.call("DISCARD"),))


async def watch_behind_an_exec(client: DedicatedClient) -> None:
    await client.call("MULTI")
    client.call("EXEC")
    await client.call("WATCH", "k")


async def select(client: DedicatedClient) -> None:
    await client.call("SELECT", 3)


async def other_user(client: DedicatedClient) -> None:
    await asyncio.wait((client.call("AUTH", "default", "whatever"),))


async def a_reply_to_come(client: DedicatedClient) -> None:
    client.call("ECHO", "yours")


async def a_blocked_command(client: DedicatedClient) -> None:
    call = client.call("BLPOP", "q", 0)
    await asyncio.sleep(0)
    call.cancel()


LEFT = [
    watch,
    watch_in_a_pipeline,
    multi,
    unwatch_that_was_only_queued,
    exec_that_was_never_sent,
    transaction_that_was_never_sent,
    discard_without_multi,
    watch_behind_an_exec,
    select,
    other_user,
    a_reply_to_come,
    a_blocked_command,
]


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
def test_a_connection_on_which_something_is_left_is_not_lent_again(
    redis_server: RunningServer, leave: Callable[[DedicatedClient], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url, max_size=1, client_name="left") as pool:
            async with pool.connected_client() as first:
                id = await first.call("CLIENT", "ID")
                assert first.is_clean
                await leave(first)
                assert not first.is_clean
            async with pool.connected_client() as second:
                assert await second.call("CLIENT", "ID") != id
                assert await second.call("PING") == b"PONG"
                pipeline = Pipeline(atomic=True)
                pipeline.stack_call("GET", "k")
                redis_server.call("SET", "k", "foreign")
                assert await second.call(pipeline) == [b"foreign"]
                await eventually(lambda: len(connections(redis_server, "left")) == 1)
                assert " db=0 " in connections(redis_server, "left")[0]

    run(main())


def test_a_connection_whose_transaction_has_ended_is_lent_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url, max_size=1) as pool:
            transaction, broken = Pipeline(atomic=True), Pipeline(atomic=True)
            transaction.stack_call("GET", "k")
            broken.stack_call("GET")
            ids = set()
            for ends in (transaction, broken, "EXEC", "DISCARD", "UNWATCH", "conflict"):
                async with pool.connected_client() as client:
                    ids.add(await client.call("CLIENT", "ID"))
                    await client.call("WATCH", "k")
                    if ends in ("EXEC", "DISCARD"):
                        await client.call("MULTI")
                    if ends == "conflict":
                        redis_server.call("SET", "k", 1)
                        ends = transaction
                    await asyncio.wait((client.call(ends),))
                    assert client.is_clean
            assert len(ids) == 1

    run(main())


def test_a_transaction_that_takes_its_time_gets_no_health_check_among_its_commands(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with (
            ClientPool(redis_server.url, health_check_interval=0.05) as pool,
            pool.connected_client() as client,
        ):
            await client.call("WATCH", "other")
            await client.call("MULTI")
            await client.call("INCR", "n")
            await asyncio.sleep(0.3)
            assert await client.call("EXEC") == [1]

    run(main())


def test_a_dedicated_client_whose_connection_was_lost_stays_lost(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url, max_size=1) as pool:
            async with pool.connected_client() as client:
                await client.call("SELECT", 5)
                redis_server.call("CLIENT", "KILL", "ID", await client.call("CLIENT", "ID"))
                await eventually(lambda: not client.is_connected())
                for _ in range(2):
                    with pytest.raises(ConnectionLost) as caught:
                        await client.call("SET", "k", "in the wrong database")
                    assert not caught.value.maybe_executed
            async with pool.connected_client() as client:
                assert await client.call("EXISTS", "k") == 0

    run(main())


# Their age, and their end


def test_a_client_that_is_too_old_is_not_lent_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url, max_size=1, client_timeout=0.2, client_name="old") as pool:
            async with pool.connected_client() as client:
                first = await client.call("CLIENT", "ID")
            async with pool.connected_client() as client:
                assert await client.call("CLIENT", "ID") == first
            await asyncio.sleep(0.2)
            # Nobody asks, so nobody closes it.
            assert len(pool) == 1
            async with pool.connected_client() as client:
                assert await client.call("CLIENT", "ID") != first
            assert len(connections(redis_server, "old")) == 1

    run(main())


def test_with_autoclose_old_clients_are_closed_though_nobody_asks(redis_server: RunningServer) -> None:
    async def main() -> None:
        name = "autoclosed"
        async with ClientPool(redis_server.url, client_timeout=0.1, autoclose=True, client_name=name) as pool:
            await pool.preconnect(5)
            assert len(connections(redis_server, name)) == len(pool) == 5
            await eventually(lambda: not connections(redis_server, name))
            assert len(pool) == 0
            await pool.preconnect(2)
            assert len(pool) == 2
            await eventually(lambda: not len(pool))

    run(main())


def test_preconnecting_fills_the_pool_and_never_overfills_it(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with ClientPool(redis_server.url, max_size=4, client_name="ready") as pool:
            await pool.preconnect(2)
            assert len(connections(redis_server, "ready")) == len(pool) == 2
            filling = asyncio.create_task(pool.preconnect())
            users = [asyncio.create_task(pool.get_connected_client()) for _ in range(8)]
            for user in users:
                client = await user
                assert len(pool) <= 4
                assert len(connections(redis_server, "ready")) <= 4
                pool.release_client(client)
            await filling
            await pool.preconnect(100)
            assert len(pool) == 4
        async with ClientPool(redis_server.url) as endless:
            with pytest.raises(UsageError):
                await endless.preconnect()

    run(main())


def test_preconnecting_that_is_cancelled_leaves_nothing_lent(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, ClientPool(proxy.url, max_size=3, wait_timeout=5) as pool:
            proxy.disturb(Faults(black_hole=True))
            filling = asyncio.create_task(pool.preconnect())
            await eventually(lambda: proxy.connections == 3)
            filling.cancel()
            await asyncio.wait((filling,))
            assert len(pool) == 0
            proxy.heal()
            async with pool.connected_client(), pool.connected_client(), pool.connected_client() as client:
                assert await client.call("PING") == b"PONG"

    run(main())


def test_a_destroyed_pool_closes_what_is_idle_now_and_what_is_lent_when_it_is_released(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        pool = ClientPool(redis_server.url, max_size=3, client_name="destroyed")
        await pool.preconnect()
        lent = [await pool.get_connected_client() for _ in range(2)]
        third = await pool.get_connected_client()
        waiter = asyncio.create_task(pool.get_connected_client())
        await asyncio.sleep(0)
        pool.release_client(third)
        pool.release_client(await waiter)
        blocked = [asyncio.create_task(pool.get_connected_client()) for _ in range(2)]
        await asyncio.sleep(0)
        pool.destroy()
        lent.append(await blocked[0])
        with pytest.raises(ClosedError):
            await blocked[1]
        with pytest.raises(ClosedError):
            await pool.get_connected_client()
        with pytest.raises(ClosedError):
            pool.get_client_nowait()
        await eventually(lambda: len(connections(redis_server, "destroyed")) == 3)
        for client in lent:
            assert await client.call("PING") == b"PONG"
            pool.release_client(client)
        await eventually(lambda: not connections(redis_server, "destroyed"))
        assert len(pool) == 0
        pool.destroy()

    run(main())


def test_a_closed_pool_takes_back_what_is_lent_too(redis_server: RunningServer) -> None:
    async def main() -> None:
        pool = ClientPool(redis_server.url, client_name="closed")
        client = await pool.get_connected_client()
        call = client.call("BLPOP", "q", 0)
        await asyncio.sleep(0)
        await pool.aclose()
        with pytest.raises(ClosedError) as caught:
            await call
        assert caught.value.maybe_executed
        pool.release_client(client)
        assert len(pool) == 0
        await eventually(lambda: not connections(redis_server, "closed"))

    run(main())


def test_a_pool_serves_one_event_loop_after_the_other(redis_server: RunningServer) -> None:
    pool = ClientPool(redis_server.url, max_size=1, wait_timeout=1)

    async def use() -> bytes:
        async with pool.connected_client() as client:
            reply: bytes = await client.call("PING")
            return reply

    async def keep() -> None:
        await pool.get_connected_client()

    # The sockets that were left open in the event loops before.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        assert run(use()) == b"PONG"
        assert run(use()) == b"PONG"
        # What was lent in an event loop that is gone is nobody's any more.
        run(keep())
        assert run(use()) == b"PONG"
        run(pool.aclose())
        gc.collect()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_size": 0}, "room for one"),
        ({"client_timeout": 0}, "above 0 seconds"),
        ({"client_timeout": -1}, "above 0 seconds"),
        ({"autoclose": True}, "needs a client_timeout"),
    ],
    ids=str,
)
def test_options_of_a_pool_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ClientPool(**options)
