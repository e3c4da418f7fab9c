"""The drop-in for pulsar's lock, row D31: what is promised of contention is proved where the locks are made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from waterspout.pulsar import Channels, Json, LockError, RedisClient, RedisStore, create_store
from waterspout_redis.testing import RunningServer, eventually, run

both = pytest.mark.parametrize("kind", ["redis", "memory"])

SETNX = "return redis.call('setnx', KEYS[1], ARGV[1])"


def with_client(use: Callable[[RedisClient], Awaitable[None]], server: RunningServer) -> None:
    async def main() -> None:
        store = create_store(server.url)
        assert isinstance(store, RedisStore)
        try:
            await use(store.client())
        finally:
            await store.close()

    run(main())


def with_channels(use: Callable[[Channels], Awaitable[None]], server: RunningServer, kind: str) -> None:
    async def main() -> None:
        channels = create_store("memory://" if kind == "memory" else server.url).channels(Json(), namespace="ns")
        try:
            await use(channels)
        finally:
            await channels.close()

    run(main())


def test_d31_a_lock_is_a_key_of_its_name_while_it_is_held(redis_server: RunningServer) -> None:
    async def use(client: RedisClient) -> None:
        lock = client.lock("key")
        assert (lock.name, lock.locked()) == ("key", False)
        assert await lock.acquire() is True
        assert lock.locked()
        assert redis_server.call("KEYS", "*") == [b"key"]
        assert await lock.release() is True
        assert not lock.locked()
        assert redis_server.call("KEYS", "*") == []

    with_client(use, redis_server)


def test_d31_old_processes_and_new_ones_keep_one_another_out(redis_server: RunningServer) -> None:
    async def use(client: RedisClient) -> None:
        lock = client.lock("key", blocking=False)
        assert await client.eval(SETNX, ["key"], ["theirs"]) == 1  # as pulsar does it
        assert await lock.acquire() is False
        await client.delete("key")
        assert await lock.acquire() is True
        assert await client.eval(SETNX, ["key"], ["theirs"]) == 0
        await lock.release()

    with_client(use, redis_server)


@both
def test_d31_one_at_a_time_has_it(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        one, two = channels.lock("key", blocking=False), channels.lock("key", blocking=False)
        assert [await one.acquire(), await two.acquire()] == [True, False]
        assert await one.release() is True
        assert [await two.acquire(), await one.acquire()] == [True, False]
        assert await two.release() is True

    with_channels(use, redis_server, kind)


@both
def test_d31_the_name_of_a_lock_of_channels_is_prefixed(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        assert channels.lock("Key").name == channels.lock("ns_Key").name == "ns_Key"
        async with channels.lock("Key"):
            assert await channels.lock("ns_Key", blocking=False).acquire() is False
            if kind == "redis":
                assert redis_server.call("KEYS", "*") == [b"ns_Key"]

    with_channels(use, redis_server, kind)


def test_d31_a_timeout_frees_it(redis_server: RunningServer) -> None:
    async def use(client: RedisClient) -> None:
        lock = client.lock("key", timeout=9.5)
        assert await lock.acquire() is True
        assert 4000 < await client.pttl("key") <= 9500
        await lock.release()
        short = client.lock("key", timeout=0.1)
        assert await short.acquire() is True
        assert await client.lock("key", blocking=5, sleep=0.02).acquire() is True  # though nobody has released it
        assert not short.locked()
        with pytest.raises(LockError):
            await short.release()

    with_client(use, redis_server)


def test_d31_without_a_timeout_it_is_renewed_and_free_when_its_holder_has_died(redis_server: RunningServer) -> None:
    async def use(client: RedisClient) -> None:
        lock = client.lock("key")
        await lock.acquire()
        assert lock.renew
        assert 0 < await client.pttl("key") <= 30_000  # for ever in pulsar
        await lock.release()
        assert not client.lock("key", timeout=5).renew

    with_client(use, redis_server)


@both
def test_d31_blocking_for_some_seconds(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        one, two = channels.lock("key"), channels.lock("key", blocking=0.2)
        await one.acquire()
        begun = time.monotonic()
        assert await two.acquire() is False
        assert 0.2 <= time.monotonic() - begun < 5
        waiting = asyncio.create_task(channels.lock("key", blocking=20, sleep=0.01).acquire())
        await eventually(lambda: not waiting.done())
        await one.release()
        assert await waiting is True

    with_channels(use, redis_server, kind)


def test_d31_nobody_sleeps_for_longer_than_he_waits(redis_server: RunningServer) -> None:
    client = create_store(redis_server.url).client()
    assert client.lock("key", blocking=1, sleep=2).sleep == 1
    assert client.lock("key", blocking=True, sleep=0.5).sleep == 0.5
    assert client.lock("key", blocking=False, sleep=0.5).sleep == 0.5


def test_d31_releasing_a_lost_lock_is_an_error_and_it_is_let_go_all_the_same(redis_server: RunningServer) -> None:
    async def use(client: RedisClient) -> None:
        lock = client.lock("key")
        with pytest.raises(LockError):
            await lock.release()
        await lock.acquire()
        await client.set("key", "theirs")
        with pytest.raises(LockError):
            await lock.release()
        assert not lock.locked()
        assert await client.get("key") == b"theirs"
        await client.delete("key")
        assert await lock.acquire() is True
        await lock.release()

    with_client(use, redis_server)


@both
def test_d31_async_with_has_it_or_raises(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        other = channels.lock("key", blocking=False)
        async with channels.lock("key") as lock:
            assert lock.locked()
            assert await other.acquire() is False
            with pytest.raises(LockError):
                async with other:
                    raise AssertionError("not reached")
        assert not lock.locked()
        async with other:
            await other.release()  # pulsar does not mind

    with_channels(use, redis_server, kind)


@both
def test_d31_who_has_lost_it_learns_of_that_at_the_end_at_the_latest(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        with pytest.raises(LockError, match="lost"):
            async with channels.lock("key", timeout=0.05) as lock:
                await lock.lost.wait()

    with_channels(use, redis_server, kind)


def test_d31_a_server_that_is_away_is_a_connection_error(fresh_redis_server: RunningServer) -> None:
    async def use(client: RedisClient) -> None:
        fresh_redis_server.kill()
        with pytest.raises(ConnectionError):
            await client.lock("key", blocking=False).acquire()

    with_client(use, fresh_redis_server)
