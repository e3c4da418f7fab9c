"""Chaos: servers that die and come back, links that are killed, processes that end in the middle; and a ledger that
holds what was published against what everybody got."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from waterspout_core import BrokerError, Gap, Message, Position, RedisStore
from waterspout_core.testing import Account, Ledger
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run

QUICK: dict[str, Any] = {"health_check_interval": 0.3, "connect_timeout": 0.5}
"""Options with which a link in a black hole is soon given up."""


@pytest.fixture
def durable_server(redis_binary: ServerBinary) -> Iterator[RunningServer]:
    """A server that has everything again after a restart."""
    with RunningServer(redis_binary, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


class Readers:
    """Readers with an account each, which follow a store until they are told to stop."""

    def __init__(self, ledger: Ledger, channel: str = "news") -> None:
        self._ledger, self._channel = ledger, channel
        self._tasks: list[asyncio.Task[None]] = []
        self.accounts: list[Account] = []

    async def follow(self, *stores: RedisStore) -> None:
        for store in stores:
            account = self._ledger.reader(self._channel, f"reader {len(self.accounts)}", await store.position())
            self.accounts.append(account)
            self._tasks.append(asyncio.create_task(account.follow(store)))

    def gaps(self) -> list[Gap]:
        return [entry for account in self.accounts for entry, _ in account.entries if isinstance(entry, Gap)]

    async def __aenter__(self) -> Readers:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result


async def publish(ledger: Ledger, store: RedisStore, data: Any) -> bool:
    """Whether it was published, and the broker said so."""
    with contextlib.suppress(BrokerError):
        await ledger.submit(store, "news", data)
        return True
    return False


async def publish_at_last(ledger: Ledger, store: RedisStore, data: Any) -> None:
    """Again and again, until the broker says that it was published."""
    for _ in range(500):
        if await publish(ledger, store, data):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{data!r} cannot be published")


# Servers


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_server_that_comes_back_with_its_data_has_lost_nothing(durable_server: RunningServer, busy: bool) -> None:
    server = durable_server

    async def use() -> None:
        ledger = Ledger()
        async with (
            RedisStore("news", server.url) as here,
            RedisStore("news", server.url) as there,
            Readers(ledger) as readers,
        ):
            await readers.follow(here, there, here)
            for number in range(50):
                await publish(ledger, here, number)
            publishing = [asyncio.create_task(publish(ledger, there, f"while {n}")) for n in range(busy * 200)]
            await asyncio.sleep(0)
            server.kill()
            server.start()
            await asyncio.gather(*publishing)
            for number in range(50):
                await publish_at_last(ledger, there, f"again {number}")
            await ledger.settled()
            assert readers.gaps() == []

    run(use())


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_server_that_comes_back_empty_is_one_gap_for_everybody(fresh_redis_server: RunningServer, busy: bool) -> None:
    server = fresh_redis_server

    async def use() -> None:
        ledger = Ledger()
        async with (
            RedisStore("news", server.url) as here,
            RedisStore("news", server.url) as there,
            Readers(ledger) as readers,
        ):
            await readers.follow(here, there)
            for number in range(50):
                await publish(ledger, here, number)
            await ledger.settled()
            publishing = [asyncio.create_task(publish(ledger, there, f"while {n}")) for n in range(busy * 100)]
            await asyncio.sleep(0)
            server.kill()
            server.start()
            await asyncio.gather(*publishing)
            await publish_at_last(ledger, there, "new epoch")
            await ledger.settled()
            assert [gap.missed for gap in readers.gaps()] == [None, None]

    run(use())


def test_a_server_that_was_frozen_has_lost_nothing(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        ledger = Ledger()
        async with (
            RedisStore("news", server.url, **QUICK) as here,
            RedisStore("news", server.url) as there,
            Readers(ledger) as readers,
        ):
            await readers.follow(here, there)
            await publish(ledger, there, "before")
            server.suspend()
            await eventually(lambda: here.pubsub.health.state != "connected")
            server.resume()
            for number in range(20):
                await publish_at_last(ledger, there, number)
            await ledger.settled()
            assert readers.gaps() == []

    run(use())


# Links


def test_f9_a_listener_that_redis_ends_for_its_output_buffer_reads_on_from_the_history(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server
    server.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 65536 1")

    async def use() -> None:
        ledger = Ledger()
        async with (
            FaultProxy(server.port) as proxy,
            RedisStore("news", proxy.url) as slow,
            RedisStore("news", server.url) as there,
            Readers(ledger) as readers,
        ):
            await readers.follow(slow)
            text = "x" * 10_000
            proxy.to_client.faults = Faults(black_hole=True)  # nobody reads
            number = 0
            while server.call("PUBSUB", "NUMSUB", "news")[1] > 1:
                for _ in range(50):
                    await publish(ledger, there, f"{number} {text}")
                    number += 1
                assert number < 900, "the server has no limit"
            proxy.heal()
            await ledger.settled()
            assert readers.gaps() == []

    run(use())


def test_an_event_loop_that_stands_still_misses_nothing(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server
    server.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1")

    async def use() -> None:
        ledger = Ledger()
        async with RedisStore("news", server.url, history=2000) as store, Readers(ledger) as readers:
            await readers.follow(store)
            for number in range(1000):
                payload = f"{number} {'x' * 5000}"
                ledger.published(
                    "news", Message(payload), position(server.call("FCALL", "waterspout_publish", 1, "news", payload))
                )
            await ledger.settled()
            assert readers.gaps() == []

    run(use())


def position(reply: bytes) -> Position:
    epoch, _, offset = reply.decode().partition("-")
    return Position(epoch, int(offset))


# Processes

PUBLISHER = """
import asyncio, sys
from waterspout_core import RedisStore

async def main():
    async with RedisStore("news", sys.argv[1], history=100_000) as store:
        number = 0
        while True:
            batch = [store.submit(f"{sys.argv[2]} {number + at}") for at in range(20)]
            for at, answer in enumerate(batch):
                print(number + at, await answer, flush=True)
            number += 20

asyncio.run(main())
"""

SUBSCRIBER = """
import asyncio, sys
from waterspout_core import Message, RedisStore

async def main():
    async with RedisStore("news", sys.argv[1], history=100_000) as store:
        subscription = store.subscribe(after=sys.argv[2])
        async for entry in subscription:
            print(entry.text if isinstance(entry, Message) else entry, subscription.position, sep="@", flush=True)

asyncio.run(main())
"""


@contextlib.contextmanager
def program(source: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """A process that runs `source`, and the lines that it has printed so far; it is killed in the end."""
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.extend([line.decode().rstrip("\n")] if line.endswith(b"\n") else ())  # the last one may be cut

    with subprocess.Popen([sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE) as process:
        reading = threading.Thread(target=read)
        reading.start()
        try:
            yield process, lines
        finally:
            process.kill()
            reading.join()


def test_a_publisher_that_is_killed_in_the_middle_leaves_no_hole(redis_server: RunningServer) -> None:
    async def use() -> None:
        ledger = Ledger()
        async with RedisStore("news", redis_server.url, history=100_000) as here, Readers(ledger) as readers:
            start = await here.position()
            await readers.follow(here)
            with (
                program(PUBLISHER, redis_server.url, "a") as (first, first_lines),
                program(PUBLISHER, redis_server.url, "b") as (second, second_lines),
                program(SUBSCRIBER, redis_server.url, str(start)) as (_, received),
            ):
                await eventually(lambda: len(first_lines) > 500 and len(second_lines) > 500 and received, deadline=20)
                first.send_signal(signal.SIGKILL)
                await eventually(lambda: first.poll() is not None)
                before = len(second_lines)
                await eventually(lambda: len(second_lines) > before + 200)
                second.send_signal(signal.SIGKILL)
                await eventually(lambda: second.poll() is not None)
                last = await here.submit("end")
                await eventually(lambda: received[-1].startswith("end@"))
                # Of each publisher what is known, and the batch that was under way.
                for name, lines in (("a", first_lines), ("b", second_lines)):
                    for number in range(len(lines) + 40):
                        sent = ledger.published("news", Message(f"{name} {number}"))
                        if number < len(lines):
                            sent.position = Position(*split(lines[number].partition(" ")[2]))
                        else:
                            sent.sure = False
                ledger.published("news", Message("end"), last)
                other = ledger.reader("news", "subscriber of its own", start)
                for line in received:
                    text, _, place = line.rpartition("@")
                    other.got(Message(text), Position(*split(place)))
                await ledger.settled()
                assert readers.gaps() == []
                assert len(other.entries) == len(readers.accounts[0].entries) == last.offset  # type: ignore[union-attr]

    run(use(), deadline=60)


def split(text: str) -> tuple[str, int]:
    epoch, _, offset = text.partition("-")
    return epoch, int(offset)


# Everything at once


class Storm:
    """Nodes, readers that come and go, publishers of every kind, and what befalls them."""

    def __init__(self, server: RunningServer, seed: int) -> None:
        self._server, self._chance = server, random.Random(seed)
        self.ledger = Ledger()
        self._number = 0
        self._over = False

    def _data(self) -> str:
        self._number += 1
        return str(self._number)

    async def _publish(self, nodes: list[RedisStore]) -> None:
        chance = self._chance
        while not self._over:
            node = chance.choice(nodes)
            kind = chance.random()
            try:
                if kind < 0.4:
                    await self.ledger.submit(node, "news", self._data())
                elif kind < 0.6:
                    burst = [self.ledger.submit(node, "news", self._data()) for _ in range(chance.randrange(2, 60))]
                    await asyncio.gather(*burst, return_exceptions=True)
                elif kind < 0.8:
                    await self._publish_with_a_key(node)
                else:
                    data = self._data()
                    sent = self.ledger.published("news", Message(data))
                    sent.position = position(self._server.call("FCALL", "waterspout_publish", 1, "news", data))
            except BrokerError:
                pass  # the ledger has noted it
            await asyncio.sleep(chance.choice((0, 0, 0.002, 0.02)))

    async def _publish_with_a_key(self, node: RedisStore) -> None:
        data = self._data()
        sent = self.ledger.published("news", Message(data))
        answers = [node.submit(data, key=data) for _ in range(self._chance.randrange(1, 4))]
        sent.sure = False
        results = await asyncio.gather(*answers, return_exceptions=True)
        places = {result for result in results if isinstance(result, Position)}
        assert len(places) < 2, f"{data} was published twice: {places}"
        if places:
            sent.position, sent.sure = places.pop(), True
        for result in results:
            assert isinstance(result, Position | BrokerError), result

    async def _read(self, account: Account, nodes: list[RedisStore]) -> None:
        """Come and go, at one node or the other; in the end stay."""
        while not self._over:
            following = asyncio.create_task(account.follow(self._chance.choice(nodes)))
            await asyncio.wait((following,), timeout=self._chance.random() * 0.4)
            following.cancel()
            await asyncio.wait((following,))
            if not following.cancelled():
                following.result()
        await account.follow(self._chance.choice(nodes))

    async def _befall(self, proxy: FaultProxy) -> None:
        chance, call = self._chance, self._server.call
        while not self._over:
            match chance.randrange(10):
                case 0 | 1:
                    call("CLIENT", "KILL", "TYPE", "pubsub")
                case 2:
                    call("CLIENT", "KILL", "TYPE", "normal")
                case 3:
                    proxy.reset()
                case 4:
                    proxy.hang_up()
                case 5:
                    chance.choice((proxy.to_client, proxy.to_server)).cut_after(chance.randrange(1, 5000))
                case 6:
                    proxy.disturb(Faults(black_hole=True))
                    await asyncio.sleep(chance.random())
                    proxy.heal()
                case 7:
                    proxy.refuse()
                    proxy.hang_up()
                    await asyncio.sleep(chance.random() * 0.3)
                    proxy.heal()
                case 8:
                    self._server.kill()
                    self._server.start()
                case _:
                    proxy.to_client.faults = Faults(chunk_size=chance.randrange(1, 50), delay=chance.random() * 0.05)
            await asyncio.sleep(chance.random() * 0.15)

    async def rage(self, seconds: float) -> None:
        async with contextlib.AsyncExitStack() as stack:
            enter = stack.enter_async_context
            proxies = [await enter(FaultProxy(self._server.port)) for _ in range(2)]
            nodes = [await enter(RedisStore("news", proxy.url, history=20_000, **QUICK)) for proxy in proxies]
            nodes.append(await enter(RedisStore("news", self._server.url, history=20_000, **QUICK)))
            start = await nodes[0].position()
            accounts = [self.ledger.reader("news", f"reader {number}", start) for number in range(8)]
            readers = [asyncio.create_task(self._read(account, nodes)) for account in accounts]
            others = [asyncio.create_task(self._publish(nodes)) for _ in range(3)]
            others += [asyncio.create_task(self._befall(proxy)) for proxy in proxies]
            await asyncio.sleep(seconds)
            self._over = True
            await asyncio.gather(*others)
            for proxy in proxies:
                proxy.heal()
            await publish_at_last(self.ledger, nodes[2], "end")
            await self.ledger.settled(20)
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
            gaps = [entry for account in accounts for entry, _ in account.entries if isinstance(entry, Gap)]
            assert gaps == [], "everything was in the history"


def test_a_storm_of_faults_loses_nothing(durable_server: RunningServer) -> None:
    """STORM_SECONDS in the environment makes it longer, STORM_SEED has it again, nearly."""
    seed = int(os.environ.get("STORM_SEED", time.time_ns() % 1_000_000))
    seconds = float(os.environ.get("STORM_SECONDS", "3"))
    print(f"STORM_SEED={seed}")
    run(Storm(durable_server, seed).rage(seconds), deadline=seconds + 40)
