"""Everything at once: thousands of callers who cancel and time out while the server kills every connection."""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from waterspout_redis import (
    BULK,
    CallTimeout,
    Client,
    ConnectError,
    ConnectionLost,
    Pipeline,
    PoolTimeout,
    WatchError,
)
from waterspout_redis.testing import RunningServer, eventually

CALLERS = 2000
SECONDS = 2.0
LEASES = 16

# To see one again: STORM_SEED=… pytest …
SEED = int(os.environ.get("STORM_SEED", random.SystemRandom().randrange(1_000_000)))


class Storm:
    """Callers of every kind. Each asks for what only it knows, and looks whether it is that what comes."""

    def __init__(self, client: Client, server: RunningServer, chance: random.Random) -> None:
        self.client, self.server, self.chance = client, server, chance
        self.outcomes: Counter[str] = Counter()
        self.tokens = 0
        self.kinds: list[Callable[[int, str], Awaitable[None]]] = [
            *[self.echo] * 12,
            *[self.count] * 4,
            *[self.bulk, self.large, self.pipeline, self.transaction] * 2,
            self.block,
            self.block_in_vain,
            self.lease,
        ]

    async def echo(self, caller: int, token: str) -> None:
        if self.chance.random() < 0.5:
            assert await self.client.call("ECHO", token, decode="utf-8") == token
        else:
            assert await self.client.call("ECHO", token) == token.encode()

    async def count(self, caller: int, token: str) -> None:
        """Each caller's own counter never goes back, nor is told twice."""
        value = await self.client.call("INCR", f"count:{caller}")
        assert value > self.counts[caller]
        self.counts[caller] = value

    async def bulk(self, caller: int, token: str) -> None:
        assert await self.client.call("ECHO", token, bulk=True) == token.encode()

    async def large(self, caller: int, token: str) -> None:
        if self.chance.random() < 0.05:
            value = token.encode().ljust(BULK, b".")
            assert await self.client.call("ECHO", value) == value

    async def pipeline(self, caller: int, token: str) -> None:
        pipeline = Pipeline(atomic=self.chance.random() < 0.5)
        for number in range(self.chance.randrange(1, 10)):
            pipeline.stack_call("ECHO", f"{token}:{number}")
        replies = await self.client.call(pipeline, decode="utf-8")
        assert replies == [f"{token}:{number}" for number in range(len(pipeline))]

    async def transaction(self, caller: int, token: str) -> None:
        pipeline = Pipeline(atomic=True)
        pipeline.stack_call("SET", "last", token)
        pipeline.stack_call("GET", "last")
        assert await self.client.call(pipeline) == [b"OK", token.encode()]

    async def block(self, caller: int, token: str) -> None:
        pipeline = Pipeline()
        pipeline.stack_call("RPUSH", f"queue:{token}", token)
        pipeline.stack_call("BLPOP", f"queue:{token}", 1)
        assert await self.client.call(pipeline, decode="utf-8") == [1, [f"queue:{token}", token]]

    async def block_in_vain(self, caller: int, token: str) -> None:
        assert await self.client.call("BLPOP", f"queue:{token}", 0.01) is None

    async def lease(self, caller: int, token: str) -> None:
        async with self.client.lease() as leased:
            await leased.call("WATCH", "last")
            pipeline = Pipeline(atomic=True)
            pipeline.stack_call("ECHO", token)
            try:
                assert await leased.call(pipeline) == [token.encode()]
            except WatchError:
                self.outcomes["watched"] += 1

    async def caller(self, number: int) -> None:
        chance = self.chance
        while not self.over:
            # They shall be many at a time, but not only wait for each other.
            await asyncio.sleep(chance.random() * 0.1 * self.calm)
            self.tokens += 1
            kind = chance.choice(self.kinds)
            patience = chance.random() * 0.05 if chance.random() < 0.2 else None
            try:
                async with asyncio.timeout(patience):
                    await kind(number, f"{number}:{self.tokens}")
                self.outcomes[kind.__name__] += 1
            except (CallTimeout, ConnectError, ConnectionLost, PoolTimeout) as error:
                self.outcomes[type(error).__name__] += 1
            except TimeoutError:
                self.outcomes["impatient"] += 1

    async def impatience(self, callers: list[asyncio.Task[None]]) -> None:
        """Some are cancelled for good, and others come in their place."""
        while True:
            await asyncio.sleep(0.002)
            place = self.chance.randrange(len(callers))
            callers[place].cancel()
            await asyncio.wait((callers[place],))
            if callers[place].cancelled():
                self.outcomes["cancelled"] += 1
            else:
                callers[place].result()
            callers[place] = asyncio.create_task(self.caller(place))

    async def trouble(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(0.01, 0.1) * self.calm)
            if self.chance.random() < 0.15:
                # Longer than the time-out of a call, so that some are late.
                self.server.call("CLIENT", "PAUSE", 200)
                await asyncio.sleep(0.2)
            self.server.call("CLIENT", "KILL", "TYPE", "normal")
            self.outcomes["killed"] += 1

    @property
    def calm(self) -> float:
        """A busy machine cannot connect between two kills, nor answer so many in time: for it the storm abates until
        everything has happened once."""
        return max(1.0, (time.monotonic() - self.began) / SECONDS) ** 2

    def missing(self) -> set[str]:
        """What has not happened yet."""
        outcomes = {kind.__name__ for kind in self.kinds} | {"killed", "cancelled", "impatient"}
        return {outcome for outcome in outcomes | {"CallTimeout", "ConnectionLost"} if not self.outcomes[outcome]}

    async def rage(self) -> None:
        self.counts = [0] * CALLERS
        self.over = False
        self.began = time.monotonic()
        callers = [asyncio.create_task(self.caller(number)) for number in range(CALLERS)]
        others = [asyncio.create_task(self.impatience(callers)), asyncio.create_task(self.trouble())]
        await asyncio.sleep(SECONDS)
        # On a busy machine it takes longer until everything has happened once.
        with contextlib.suppress(AssertionError):
            await eventually(lambda: not self.missing(), deadline=15)
        self.over = True
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        for task in others:
            assert task.cancelled(), task.exception()
        for outcome in await asyncio.gather(*callers, return_exceptions=True):
            if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                raise outcome


async def storm(server: RunningServer) -> None:
    options: dict[str, Any] = {"timeout": 0.15, "max_in_flight": 256, "max_leases": LEASES, "client_name": "storm"}
    async with asyncio.timeout(30), Client(server.url, **options) as client:
        storm = Storm(client, server, random.Random(SEED))
        await storm.rage()
        print(dict(storm.outcomes))
        assert storm.missing() == set()

        # And then all is as it was. A lane may still be connecting, for callers who are gone.
        await eventually(lambda: client.in_flight == 0 and asyncio.all_tasks() == {asyncio.current_task()})
        assert client.in_flight_bytes == 0
        calls = [client.call("ECHO", number) for number in range(100)]
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(100)]
        leases = [client.lease() for _ in range(LEASES)]
        for lease in leases:
            assert await (await lease.__aenter__()).call("PING") == b"PONG"
        for lease in leases:
            await lease.__aexit__(None, None, None)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await eventually(lambda: b" name=storm " not in server.call("CLIENT", "LIST"))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_in_a_storm_every_answer_is_the_callers_own_and_nothing_is_left_behind(
    redis_server: RunningServer, loop: str
) -> None:
    print(f"STORM_SEED={SEED}")
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(storm(redis_server))
