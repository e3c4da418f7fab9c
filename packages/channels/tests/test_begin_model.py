"""Readers that begin at any moment while links break, and a ledger of what was published since."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("waterspout_redis")

from waterspout_channels import ChannelEvent, Channels, StatusType
from waterspout_core import BrokerError, Gap, Message, Position, open_pubsub
from waterspout_core.testing import Account, Ledger
from waterspout_redis.testing import FaultProxy, Faults, RunningServer

QUICK: dict[str, Any] = {"health_check_interval": 0.3, "connect_timeout": 0.5, "timeout": 3.0, "silence": 0.5}
"""Options with which a link in a black hole is soon given up."""


class Beginnings:
    """One node that publishes, registers and listens, and what befalls it."""

    def __init__(self, server: RunningServer, proxy: FaultProxy, channels: Channels, seed: int) -> None:
        self._server, self._proxy, self._channels, self._chance = server, proxy, channels, random.Random(seed)
        self.ledger = Ledger()
        self._names = ["popular"]
        self._positions: dict[str, Position] = {}  # the first of each channel that we know
        self._number = 0
        self._over = False
        self._tasks: list[asyncio.Task[Any]] = []

    def _later(self, coroutine: Any) -> None:
        self._tasks.append(asyncio.create_task(coroutine))

    async def _publish(self, name: str) -> bool:
        self._number += 1
        data = str(self._number)
        sent = self.ledger.published(name, Message(data, "goal"))
        answer = self._channels.publish(name, "goal", data)
        try:
            sent.position = await answer
        except BrokerError:
            sent.sure = False
            return False
        assert sent.position is not None
        self._positions.setdefault(name, sent.position)
        return True

    async def _publish_on(self) -> None:
        while not self._over:
            await self._publish(self._chance.choice(self._names))
            await asyncio.sleep(self._chance.choice((0, 0.002, 0.02)))

    async def _life(self, account: Account) -> None:
        """As long as one reads; some stay to the end."""
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.random())
            account.leave()
        else:
            await asyncio.Event().wait()

    async def _register(self, name: str) -> None:
        account = self.ledger.reader(name, f"{len(self._tasks)} registers")

        def goal(channel: Any, event: str, data: Any) -> None:
            account.got(Message(data, event))

        def gap(channel: Any, event: str, data: Any) -> None:
            account.got(Gap(data["missed"]))

        self._channels.register(name, "goal", goal)
        self._channels.register(name, "gap", gap)
        if self._chance.random() < 0.5:
            self._later(self._publish(name))
        with contextlib.suppress(asyncio.CancelledError):
            await self._life(account)
        self._channels.unregister(name, "goal", goal)
        self._channels.unregister(name, "gap", gap)

    async def _listen(self, name: str, after: Position | None) -> None:
        async with self._channels.listen(name, after=after) as events:
            account = self.ledger.reader(name, f"{len(self._tasks)} listens", after)
            living = asyncio.create_task(self._life(account))
            living.add_done_callback(lambda _: reading.cancel())

            async def read() -> None:
                async for event in events:
                    if isinstance(event, ChannelEvent):
                        account.got(Message(event.data, event.event), event.position)
                    else:
                        account.got(event, events.position)

            reading = asyncio.create_task(read())
            try:
                await asyncio.wait((reading,))
            finally:
                living.cancel()
                reading.cancel()
                await asyncio.wait((living, reading))

    def _begin(self) -> None:
        if self._chance.random() < 0.4:
            self._names.append(f"new{len(self._names)}")
        name = self._chance.choice(self._names[-8:])
        kind = self._chance.random()
        if kind < 0.6:
            self._later(self._register(name))
        else:
            self._later(self._listen(name, self._positions.get(name) if kind < 0.8 else None))

    async def _befall(self) -> None:
        chance, proxy, call = self._chance, self._proxy, self._server.call
        while not self._over:
            await asyncio.sleep(chance.random())
            match chance.randrange(7):
                case 0:
                    call("CLIENT", "KILL", "TYPE", "pubsub")
                case 1:
                    call("CLIENT", "KILL", "TYPE", "normal")
                case 2:
                    proxy.reset()
                case 3:
                    proxy.hang_up()
                case 4:
                    proxy.disturb(Faults(black_hole=True))
                    await asyncio.sleep(chance.random())
                    proxy.reset()
                case 5:
                    proxy.to_client.faults = Faults(black_hole=True)  # all is done and nothing answered
                    await asyncio.sleep(0.02)
                    proxy.reset()
                case _:
                    proxy.to_client.faults = Faults(hold_at=b"*3\r\n$9\r\nsubscribe")
                    await asyncio.sleep(chance.random() / 2)
            proxy.heal()

    async def rage(self, seconds: float) -> None:
        await self._channels.connect()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        others = [asyncio.create_task(self._publish_on()), asyncio.create_task(self._befall())]
        while loop.time() < end:
            self._begin()
            await asyncio.sleep(self._chance.choice((0, 0.01, 0.05)))
        self._over = True
        await asyncio.gather(*others)
        await self._channels.wait_for(StatusType.connected)
        for name in self._names:
            async with asyncio.timeout(20):
                while not await self._publish(name):
                    pass
        await self.ledger.settled(20)
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert not isinstance(result, Exception), result


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("ERROR", "waterspout")
    yield
    assert not caplog.records


@pytest.mark.usefixtures("complaints")
async def test_f30_whoever_begins_misses_nothing_that_is_published_then_or_is_told(
    fresh_redis_server: RunningServer,
) -> None:
    """STORM_SECONDS in the environment makes it longer, STORM_SEED has it again, nearly."""
    seed = int(os.environ.get("STORM_SEED", time.time_ns() % 1_000_000))
    seconds = float(os.environ.get("STORM_SECONDS", "3"))
    print(f"STORM_SEED={seed}")
    async with (
        asyncio.timeout(seconds + 60),
        FaultProxy(fresh_redis_server.port) as proxy,
        Channels(open_pubsub(proxy.url, history=20_000, **QUICK)) as channels,
    ):
        await Beginnings(fresh_redis_server, proxy, channels, seed).rage(seconds)
