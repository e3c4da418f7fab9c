"""The drop-in for tornadis: its pool, row by row (A39 to A50), and how it lives with Tornado (A51)."""

import asyncio
import datetime
import gc
import logging
import socket
import subprocess
import sys
import textwrap
from asyncio import Future
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tornado.gen
import tornado.ioloop
import tornado.util

import waterspout_redis.tornadis as tornadis
from waterspout_redis.testing import RunningServer, eventually, run


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def pool_of(server: RunningServer, **options: Any) -> Iterator[tornadis.ClientPool]:
    pool = tornadis.ClientPool(port=server.port, **options)
    try:
        yield pool
    finally:
        pool.destroy()


async def take(pool: tornadis.ClientPool) -> tornadis.Client:
    client = await pool.get_connected_client()
    assert isinstance(client, tornadis.Client)
    assert client.is_connected()
    return client


def clients_at(server: RunningServer) -> int:
    """How many are connected, besides who asks."""
    return len(server.call("CLIENT", "LIST").splitlines()) - 1


def test_a39_a_pool_has_the_options_of_tornadis_as_attributes() -> None:
    pool = tornadis.ClientPool()
    assert (pool.max_size, pool.client_timeout, pool.autoclose, pool.client_kwargs) == (-1, -1, False, {})
    pool = tornadis.ClientPool(max_size=5, client_timeout=60, autoclose=True, host="cache", db=3)
    assert (pool.max_size, pool.client_timeout, pool.autoclose) == (5, 60, True)
    assert pool.client_kwargs == {"host": "cache", "db": 3}
    tornadis.ClientPool(autoclose=True)
    with pytest.raises(TypeError, match="hots"):
        tornadis.ClientPool(hots="cache")


def test_a40_the_client_that_is_idle_longest_is_taken_first(redis_server: RunningServer) -> None:
    async def main() -> None:
        with pool_of(redis_server) as pool:
            future = pool.get_connected_client()
            assert isinstance(future, Future)
            first, second = await future, await take(pool)
            assert first is not second
            assert isinstance(first, tornadis.Client)
            pool.release_client(second)
            pool.release_client(first)
            assert await take(pool) is second
            assert await take(pool) is first
            # One that has died meanwhile is passed over.
            pool.release_client(first)
            pool.release_client(second)
            redis_server.call("CLIENT", "KILL", "ID", await first.call("CLIENT", "ID"))
            await eventually(lambda: not first.is_connected())
            assert await take(pool) is second
            pool.release_client(second)

    run(main())


def test_a40_where_all_are_lent_one_waits_in_order(redis_server: RunningServer) -> None:
    async def main() -> None:
        with pool_of(redis_server, max_size=1) as pool:
            client = await take(pool)
            waiting = [pool.get_connected_client() for _ in range(3)]
            for place, waiter in enumerate(waiting):
                await asyncio.sleep(0)
                assert not any(later.done() for later in waiting[place:])
                pool.release_client(client)
                assert await waiter is client
            pool.release_client(client)

    run(main())


def test_a41_where_it_cannot_connect_the_result_is_a_client_error_and_no_place_is_lost(free_port: int) -> None:
    async def main() -> None:
        pool = tornadis.ClientPool(max_size=1, port=free_port)
        for _ in range(3):
            error = await pool.get_connected_client()
            assert isinstance(error, tornadis.ClientError)
            assert str(error) == f"can't connect to 127.0.0.1:{free_port}"
        # tornadis wanted it back.
        pool.release_client(error)
        assert isinstance(await pool.get_connected_client(), tornadis.ClientError)
        pool.destroy()

    run(main())


def test_a42_nobody_has_to_wait_for_a_client(redis_server: RunningServer) -> None:
    async def main() -> None:
        with pool_of(redis_server, max_size=1) as pool:
            client = pool.get_client_nowait()
            assert client is not None
            assert not client.is_connected()
            assert pool.get_client_nowait() is None
            assert await client.call("PING") == b"PONG"
            pool.release_client(client)
            assert pool.get_client_nowait() is client
            pool.release_client(client)

    run(main())


def test_a43_a_released_client_is_kept_unless_it_is_too_old_or_has_something_left_on_it(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        with pool_of(redis_server, max_size=1) as pool:
            client = await take(pool)
            # What it was called with is still done.
            client.async_call("SET", "k", "v")
            pool.release_client(client)
            assert client.is_connected()
            assert await take(pool) is client
            assert await client.call("GET", "k") == b"v"
            for command in (("SELECT", 3), ("WATCH", "k"), ("MULTI",)):
                await client.call(*command)
                pool.release_client(client)
                assert not client.is_connected()
                client = await take(pool)
            await client.call("MULTI")
            await client.call("EXEC")
            pool.release_client(client)
            assert client.is_connected()
        with pool_of(redis_server, client_timeout=0.05) as pool:
            client = await take(pool)
            await eventually(lambda: client.get_last_state_change_timedelta().total_seconds() > 0.05)
            pool.release_client(client)
            assert not client.is_connected()

    run(main())


def test_a44_the_time_out_of_a_client_is_counted_from_its_connecting(redis_server: RunningServer) -> None:
    async def main() -> None:
        with pool_of(redis_server, client_timeout=0.3) as pool:
            client = await take(pool)
            connected = asyncio.get_running_loop().time()
            # It is never idle for long, and too old all the same.
            while (again := await take_back(pool, client)) is client:
                assert asyncio.get_running_loop().time() < connected + 5
            assert asyncio.get_running_loop().time() >= connected + 0.29
            assert not client.is_connected()
            pool.release_client(again)

    async def take_back(pool: tornadis.ClientPool, client: tornadis.Client) -> tornadis.Client:
        pool.release_client(client)
        return await take(pool)

    run(main())


def test_a45_with_autoclose_old_clients_are_closed_by_themselves(redis_server: RunningServer) -> None:
    async def main() -> None:
        with pool_of(redis_server, client_timeout=0.1, autoclose=True) as pool:
            client = await take(pool)
            pool.release_client(client)
            await eventually(lambda: not client.is_connected())
        with pool_of(redis_server, client_timeout=0.1) as pool:
            client = await take(pool)
            pool.release_client(client)
            await asyncio.sleep(0.3)
            assert client.is_connected()

    run(main())


@pytest.mark.parametrize("style", ["yield", "await", "async with"])
def test_a46_a_client_is_released_at_the_end_of_a_with(redis_server: RunningServer, style: str) -> None:
    @tornado.gen.coroutine  # type: ignore[untyped-decorator,unused-ignore]
    def yielding(pool: tornadis.ClientPool, command: str) -> Any:
        with (yield pool.connected_client()) as client:
            reply = yield client.call(command)
            if isinstance(reply, tornadis.ClientError):
                raise reply
        return reply

    async def awaiting(pool: tornadis.ClientPool, command: str) -> Any:
        with await pool.connected_client() as client:
            reply = await client.call(command)
            if isinstance(reply, tornadis.ClientError):
                raise reply
        return reply

    async def native(pool: tornadis.ClientPool, command: str) -> Any:
        async with pool.connected_client() as client:
            reply = await client.call(command)
            if isinstance(reply, tornadis.ClientError):
                raise reply
        return reply

    async def main() -> None:
        use = {"yield": yielding, "await": awaiting, "async with": native}[style]
        with pool_of(redis_server, max_size=2) as pool:
            for _ in range(3):
                assert await asyncio.gather(*(use(pool, "PING") for _ in range(10))) == [b"PONG"] * 10
                with pytest.raises(tornadis.ClientError):
                    await use(pool, "NOSUCHCOMMAND")
            both = pool.get_client_nowait(), pool.get_client_nowait()
            for client in both:
                assert client is not None
                pool.release_client(client)

    run(main())


def test_a46_in_place_of_a_client_there_may_be_a_client_error(free_port: int) -> None:
    async def main() -> None:
        pool = tornadis.ClientPool(max_size=1, port=free_port)
        for _ in range(2):
            with await pool.connected_client() as client:
                assert isinstance(client, tornadis.ClientError)
            async with pool.connected_client() as client:
                assert isinstance(client, tornadis.ClientError)

    run(main())


def test_a47_preconnect_connects_as_many_as_are_wanted(redis_server: RunningServer, free_port: int) -> None:
    async def main() -> None:
        await eventually(lambda: clients_at(redis_server) == 0)
        for options, arguments, wanted in (
            ({"max_size": 3}, (), 3),
            ({"max_size": 3}, (2,), 2),
            ({"max_size": 3}, (5,), 3),
            ({}, (4,), 4),
        ):
            with pool_of(redis_server, **options) as pool:
                await pool.preconnect(*arguments)
                assert clients_at(redis_server) == wanted
            await eventually(lambda: clients_at(redis_server) == 0)
        with pytest.raises(tornadis.ClientError, match="size=-1 not allowed with pool max_size=-1"):
            await tornadis.ClientPool().preconnect()
        pool = tornadis.ClientPool(max_size=2, port=free_port)
        assert isinstance(await pool.preconnect(), tornadis.ClientError)

    run(main())


def test_a48_destroy_is_the_end_of_a_pool_and_of_all_its_clients(redis_server: RunningServer) -> None:
    async def main() -> None:
        pool = tornadis.ClientPool(max_size=2, port=redis_server.port, client_timeout=60, autoclose=True)
        idle, lent = await take(pool), await take(pool)
        waiting = pool.get_connected_client()
        await asyncio.sleep(0)
        pool.release_client(idle)
        assert await waiting is idle
        waiting = pool.get_connected_client()
        await asyncio.sleep(0)
        pool.destroy()
        assert isinstance(await waiting, tornadis.ClientError)
        assert await lent.call("PING") == b"PONG"
        for client in (idle, lent):
            pool.release_client(client)
            assert not client.is_connected()
        assert isinstance(await pool.get_connected_client(), tornadis.ClientError)
        assert pool.get_client_nowait() is None
        await eventually(lambda: clients_at(redis_server) == 0)
        pool.destroy()

    run(main())


def test_a49_a_client_that_is_released_twice_is_lent_once(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with pool_of(redis_server) as pool:
            client = await take(pool)
            pool.release_client(client)
            with caplog.at_level(logging.WARNING):
                pool.release_client(client)
                pool.release_client(tornadis.Client())
            assert caplog.text.count("was it released twice?") == 2
            assert await take(pool) is client
            other = await take(pool)
            assert other is not client
            pool.release_client(client)
            pool.release_client(other)
            with await pool.connected_client() as client:
                pool.release_client(client)
            assert caplog.text.count("was it released twice?") == 2

    run(main())


def test_a49_who_gives_up_waiting_swallows_no_client(redis_server: RunningServer) -> None:
    async def main() -> None:
        with pool_of(redis_server, max_size=1) as pool:
            client = await take(pool)
            for waiting in (pool.get_connected_client(), pool.connected_client()):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(waiting, 0.01)
            # Tornado's way leaves the Future waiting.
            with pytest.raises(tornado.util.TimeoutError):
                await tornado.gen.with_timeout(datetime.timedelta(seconds=0.01), pool.connected_client())
            gc.collect()
            pool.release_client(client)
            async with asyncio.timeout(5), pool.connected_client() as again:
                assert again is client

    run(main())


@pytest.mark.parametrize("turns", range(8))
def test_a49_cancelling_while_a_client_comes_loses_none(redis_server: RunningServer, turns: int) -> None:
    async def main() -> None:
        with pool_of(redis_server, max_size=1) as pool:
            client = await take(pool)

            async def use() -> None:
                async with pool.connected_client():
                    await asyncio.sleep(60)

            task = asyncio.ensure_future(use())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            pool.release_client(client)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            del task
            async with asyncio.timeout(5):
                pool.release_client(await take(pool))

    run(main())


def test_a50_an_option_that_tornadis_dropped_is_unknown() -> None:
    for kind in (tornadis.Client, tornadis.PubSubClient, tornadis.ClientPool):
        with pytest.raises(TypeError, match="return_connection_error"):
            kind(return_connection_error=True)


def run_program(text: str, port: int) -> str:
    """What it prints; it must not warn, and end well."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), str(port)],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout


def test_a51_a_client_made_at_import_time_works_in_coroutines_of_tornado(redis_server: RunningServer) -> None:
    program = """
        import asyncio, sys, tornado.gen, tornado.ioloop, tornado.locks
        import waterspout_redis.tornadis as tornadis

        client = tornadis.Client(port=int(sys.argv[1]), autoconnect=True)
        pubsub = tornadis.PubSubClient(port=int(sys.argv[1]))

        @tornado.gen.coroutine
        def main():
            yield client.call("SET", "k", "v")
            replies = yield [client.call("GET", "k"), client.call("GET", "missing")]
            yield pubsub.pubsub_subscribe("a")
            yield client.call("PUBLISH", "a", "x")
            message = yield pubsub.pubsub_pop_message()
            print(replies, message)
            done = tornado.locks.Event()
            client.async_call("PING", callback=lambda reply: (print(reply), done.set()))
            yield done.wait()
            client.disconnect()
            pubsub.disconnect()
            yield tornado.gen.sleep(0.05)

        asyncio.set_event_loop(asyncio.new_event_loop())
        tornado.ioloop.IOLoop.instance().run_sync(main)
    """
    assert run_program(program, redis_server.port) == "[b'v', None] [b'message', b'a', b'x']\nb'PONG'\n"


def test_a51_a_pool_may_be_used_before_the_loop_runs(redis_server: RunningServer) -> None:
    program = """
        import asyncio, sys, tornado.gen, tornado.ioloop
        import waterspout_redis.tornadis as tornadis

        @tornado.gen.coroutine
        def ping(pool, number):
            with (yield pool.connected_client()) as client:
                reply = yield client.call("ECHO", number)
                return int(reply)

        @tornado.gen.coroutine
        def main():
            print((yield [ping(pool, number) for number in range(10)]))
            pool.destroy()
            yield tornado.gen.moment

        asyncio.set_event_loop(asyncio.new_event_loop())
        pool = tornadis.ClientPool(max_size=2, port=int(sys.argv[1]))
        loop = tornado.ioloop.IOLoop.current()
        loop.add_future(main(), lambda future: loop.stop())
        loop.start()
        loop.close(all_fds=True)
    """
    assert run_program(program, redis_server.port) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"


def test_a51_a_client_and_a_pool_go_on_in_the_next_event_loop(redis_server: RunningServer) -> None:
    client = tornadis.Client(port=redis_server.port)
    pool = tornadis.ClientPool(max_size=1, port=redis_server.port)
    pubsub = tornadis.PubSubClient(port=redis_server.port)

    async def main() -> None:
        assert await client.call("PING") == b"PONG"
        with await pool.connected_client() as pooled:
            assert await pooled.call("PING") == b"PONG"
        await pool.get_connected_client()  # and never gives it back
        assert isinstance(await pubsub.pubsub_pop_message(), tornadis.ClientError)
        assert await pubsub.pubsub_subscribe("a") is True
        popping = [pubsub.pubsub_pop_message(), pubsub.pubsub_pop_message()]
        for data in (b"1", b"2"):
            await client.call("PUBLISH", "a", data)
        assert await asyncio.gather(*popping) == [[b"message", b"a", b"1"], [b"message", b"a", b"2"]]
        client.disconnect()
        pooled.disconnect()

    for _ in range(2):
        run(main())
