"""Leases: the same contract in one process and on every server found (E7), and what only Redis has to do for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest

from waterspout_core import BrokerError, MemoryBroker, MemoryLeases, MemoryPubSub, PubSub, PubSubProtocol, open_pubsub
from waterspout_core.testing import LeaseContract
from waterspout_redis.testing import FaultProxy, RunningServer, ServerBinary, eventually, run


class TestInProcess(LeaseContract):
    @cached_property
    def broker(self) -> MemoryBroker:
        return MemoryBroker()

    def open_pubsub(self, *, protocol: PubSubProtocol | None = None, history: int = 0) -> PubSub:
        return MemoryPubSub(self.broker)


class TestInRedis(LeaseContract):
    url: str

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RunningServer) -> None:
        self.url = redis_server.url

    def open_pubsub(self, *, protocol: PubSubProtocol | None = None, history: int = 0) -> PubSub:
        return open_pubsub(self.url)


class TestInRedisAsScript(LeaseContract):
    """Where the server has no functions, or has them taken away."""

    url: str

    @pytest.fixture(autouse=True)
    def _server(self, redis_binary: ServerBinary) -> Iterator[None]:
        without = ("--rename-command", "FCALL", "", "--rename-command", "FUNCTION", "")
        with RunningServer(redis_binary, *without) as server:
            self.url = server.url
            yield

    def open_pubsub(self, *, protocol: PubSubProtocol | None = None, history: int = 0) -> PubSub:
        return open_pubsub(self.url)


def test_who_leaves_the_line_leaves_no_line_behind() -> None:
    async def main() -> None:
        leases = MemoryLeases()
        for number in range(100):
            assert await leases.claim(f"job{number}", "holder", 30.0)
            assert not await leases.claim(f"job{number}", "other", 30.0, wait=1.0)
            assert not await leases.release(f"job{number}", "other")
            assert await leases.release(f"job{number}", "holder")
        assert not leases._lines

    run(main())


def test_names_that_nobody_gives_back_take_no_room_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    leases, now = MemoryLeases(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def use() -> None:
        nonlocal now
        for number in range(10_000):
            now += 1.0
            assert await leases.claim(f"job {number}", "a", 10.0)

    asyncio.run(use())
    assert len(leases._held) <= 1_001


def test_nothing_is_left_in_redis_that_does_not_end_by_itself(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with open_pubsub(redis_server.url) as pubsub:
            await pubsub.leases.claim("job", "a", 20.0)
            await pubsub.leases.claim("job", "b", 20.0, wait=10.0)
            await pubsub.leases.claim("job", "c", 20.0, wait=0.05)  # does not cut short the place of another
            assert redis_server.call("GET", "job") == b"a"
            assert 19_000 < redis_server.call("PTTL", "job") <= 20_000
            assert redis_server.call("DBSIZE") == 2
            assert 9_000 < redis_server.call("PTTL", "waterspout:line:{job}") <= 10_000
            await pubsub.leases.release("job", "c")
            await pubsub.leases.release("job", "a")
            assert await pubsub.leases.claim("job", "b", 20.0, wait=10.0)
            assert redis_server.call("DBSIZE") == 1  # who has it waits no more
            assert await pubsub.leases.release("job", "b")
            assert redis_server.call("DBSIZE") == 0

    run(use())


OLDER = """#!lua name=waterspout
redis.register_function({
    function_name = 'waterspout_version', callback = function() return 1 end, flags = { 'no-writes' }
})"""


def test_functions_of_an_older_program_are_replaced(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with open_pubsub(redis_server.url) as pubsub:
            for _ in range(2):  # and when an older program has brought its own back
                redis_server.call("FUNCTION", "LOAD", "REPLACE", OLDER)
                claims = [pubsub.leases.claim("job", token, 0.05) for token in "abc"]
                assert sum(await asyncio.gather(*claims)) == 1
                assert redis_server.call("FCALL", "waterspout_version", 0) >= 2
                await eventually(lambda: redis_server.call("DBSIZE") == 0)

    run(use())


def test_a_server_without_memory_takes_back_and_prolongs_what_it_has_given(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with open_pubsub(server.url) as pubsub:
            await pubsub.leases.claim("job", "a", 20.0)
            server.call("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(BrokerError, match="OOM") as refused:
                await pubsub.leases.claim("other", "a", 20.0)
            assert not refused.value.final
            assert await pubsub.leases.renew("job", "a", 20.0)
            assert await pubsub.leases.release("job", "a")

    run(use())


def test_in_a_cluster_the_line_is_in_the_slot_of_its_lease(redis_binary: ServerBinary) -> None:
    with RunningServer(redis_binary, "--cluster-enabled", "yes") as server:
        server.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def use() -> None:
            await eventually(lambda: b"cluster_state:ok" in server.call("CLUSTER", "INFO"))
            async with open_pubsub(server.url) as pubsub:
                for name in ("job", "waterspout:lock:{shop:job}", "waterspout:lock:{a}b}", "a{b}c", "{"):
                    assert await pubsub.leases.claim(name, "a", 20.0)
                    assert not await pubsub.leases.claim(name, "b", 20.0, wait=20.0)
                    assert await pubsub.leases.release(name, "a")

        run(use())


def test_a_name_that_is_somebody_elses_key_is_refused_and_left_alone(redis_server: RunningServer) -> None:
    redis_server.call("RPUSH", "job", "x")

    async def use() -> None:
        async with open_pubsub(redis_server.url) as pubsub:
            calls: list[Any] = [
                pubsub.leases.claim("job", "a", 20.0),
                pubsub.leases.renew("job", "a", 20.0),
                pubsub.leases.release("job", "a"),
            ]
            for call in calls:
                with pytest.raises(BrokerError, match="WRONGTYPE") as refused:
                    await call
                assert refused.value.final

    run(use())
    assert redis_server.call("LRANGE", "job", 0, -1) == [b"x"]


def test_an_error_tells_whether_asking_again_can_help(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(fresh_redis_server.port) as proxy:
            pubsub = open_pubsub(proxy.url, connect_timeout=1.0)
            proxy.refuse()
            with pytest.raises(BrokerError) as away:
                await pubsub.leases.claim("job", "a", 20.0)
            assert not away.value.final
            proxy.heal()
            assert await pubsub.leases.claim("job", "a", 20.0)
            await pubsub.aclose()
            with pytest.raises(BrokerError) as closed:
                await pubsub.leases.release("job", "a")
            assert closed.value.final
        fresh_redis_server.call("CONFIG", "SET", "requirepass", "secret")
        async with open_pubsub(fresh_redis_server.url) as stranger:
            with pytest.raises(BrokerError) as locked_out:
                await stranger.leases.claim("job", "a", 20.0)
            assert locked_out.value.final

    run(use())
