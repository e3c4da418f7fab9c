"""The typed commands as a user writes them, for mypy alone: strict, and without a word of it ignored."""

from collections.abc import AsyncIterator
from typing import assert_type

import redis.asyncio

from waterspout_redis import Client
from waterspout_redis.commands import Pipeline, Redis


async def sessions(r: Redis) -> AsyncIterator[bytes | str]:
    async for key in r.scan_iter("session:*", count=100):
        yield key


async def redis_py_user(r: redis.asyncio.Redis) -> int:
    return await r.incr("visits")


async def main() -> None:
    async with Redis("redis://localhost", decode="utf-8", protocol=3, timeout=5.0, retry=0) as r:
        assert_type(r, Redis)
        assert_type(await r.set("greeting", "hello", ex=60), bool | bytes | str | None)
        assert_type(await r.get("greeting"), bytes | str | None)
        assert_type(await r.hset("user:1", mapping={"name": "Ada", "visits": 1}), int)
        assert_type(await r.exists("a", b"b"), int)
        assert_type(await r.zadd("scores", {"ada": 1.5}, nx=True), int | float | None)
        print([key async for key in sessions(r)], await redis_py_user(r))

        double = r.register_script("return ARGV[1] * 2")
        print(await double(args=[21]))

        async with r.lock("door", timeout=5, blocking_timeout=1) as lock:
            await lock.extend(5)

        async with r.pipeline(transaction=True) as pipe:
            assert_type(pipe, Pipeline)
            await pipe.watch("stock")
            left = int(await pipe.get("stock") or 0)
            pipe.multi()
            pipe.set("stock", left - 1)
            print(await pipe.execute())

    async with Client("redis://localhost") as client:
        r = Redis(client, legacy_responses=False)
        async with client.lease() as leased:
            assert_type(await Redis(leased).select(1), bool)
