"""Locks with real contention: several processes, which are killed and suspended, and a Redis that goes and comes back.

Who has the lock takes the next number of a counter, on a Redis that nobody disturbs, and notes under it for how long it
held the lock, by the clock that all processes of a computer share. So no two may ever overlap.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from waterspout_channels import Channels
from waterspout_core import BrokerError, open_pubsub
from waterspout_redis import Client
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run

pytestmark = pytest.mark.one_redis_server  # how the servers differ is tested in the core

# What one process does; see `Worker`.


async def work(channels: Channels, notes: Client, who: str, lasts: float, hold: float) -> None:
    """Take the lock, hold it for `hold` seconds or until it is lost, and give it back; for ever."""
    while True:
        lock = channels.lock("job", lasts, sleep=0.05)
        try:
            await lock.acquire()
        except BrokerError as error:
            await notes.call("RPUSH", "errors", f"{who}: {error}")
            continue
        number = await notes.call("INCR", "counter")
        section: dict[str, Any] = {"who": who, "begin": time.monotonic(), "outcome": ""}
        while True:
            now = time.monotonic()
            if not lock.locked():
                break
            section["end"] = now  # for we held it then
            await notes.call("HSET", "sections", number, json.dumps(section))
            if now >= section["begin"] + hold:
                break
            await asyncio.sleep(0.005)
        try:
            await lock.release()
            section["outcome"] = "released"
        except Exception as error:
            section["outcome"] = type(error).__name__
        if "end" in section:
            await notes.call("HSET", "sections", number, json.dumps(section))


async def work_together(url: str, notes_url: str, who: str, lasts: str, hold: str, tasks: str) -> None:
    async with Client(notes_url) as notes:
        channels = Channels(open_pubsub(url, connect_timeout=0.5), namespace="shop:")
        await asyncio.gather(*(work(channels, notes, who, float(lasts), float(hold)) for _ in range(int(tasks))))


# The tests


class Worker:
    """A process of `tasks` tasks that want the lock again and again, and keep it for `hold` seconds each time."""

    def __init__(self, log: Path, url: str, notes: RunningServer, who: str, **options: float) -> None:
        numbers = {"timeout": 1.0, "hold": 0.01, "tasks": 1, **options}
        self.who = who
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__, url, notes.url, who, *map(str, numbers.values())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._log = log

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def output(self) -> str:
        return self._log.read_text(errors="replace")


class Race:
    """The workers of a test, and what they have noted."""

    def __init__(self, folder: Path, notes: RunningServer) -> None:
        self._folder, self.notes = folder, notes
        self.workers: list[Worker] = []

    def start(self, url: str, **options: float) -> Worker:
        who = f"worker {len(self.workers)}"
        worker = Worker(self._folder / f"{who}.log", url, self.notes, who, **options)
        self.workers.append(worker)
        return worker

    def sections(self, worker: Worker | None = None) -> list[dict[str, Any]]:
        """What each holder noted (or `worker`), in the order of their numbers."""
        assert [worker.output() for worker in self.workers] == [""] * len(self.workers)
        noted = self.notes.call("HGETALL", "sections")
        numbered = sorted((int(number), json.loads(text)) for number, text in zip(noted[::2], noted[1::2], strict=True))
        return [section for _, section in numbered if worker is None or section["who"] == worker.who]

    def holds(self, worker: Worker) -> bool:
        """Whether it is at it."""
        return any(not section["outcome"] for section in self.sections(worker))

    def check(self) -> None:
        """There were never two holders."""
        sections = self.sections()
        for one, following in pairwise(sections):
            assert one["begin"] <= one["end"] <= following["begin"], (one, following)
        assert self.notes.call("LRANGE", "errors", 0, -1) == []


@pytest.fixture
def race(tmp_path: Path, redis_server: RunningServer) -> Iterator[Race]:
    race = Race(tmp_path, redis_server)
    yield race
    for worker in race.workers:
        worker.kill()
    race.check()


@pytest.fixture
def lasting_server(redis_binary: ServerBinary) -> Iterator[RunningServer]:
    """A server whose data outlive its process: all that it has answered is in its file."""
    with RunningServer(redis_binary, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


def test_d31_many_processes_have_it_one_at_a_time_and_take_turns(race: Race, redis_server: RunningServer) -> None:
    # One of them has more who want it than all others together.
    workers = [race.start(redis_server.url, tasks=tasks) for tasks in (8, 1, 1, 1)]

    async def use() -> None:
        await eventually(lambda: all(map(race.sections, workers)), deadline=20)
        begun = len(race.sections())
        await eventually(lambda: len(race.sections()) >= begun + 80, deadline=25)
        shares = Counter(section["who"] for section in race.sections()[begun : begun + 80])
        assert min(shares.values()) >= 15, shares
        assert len(shares) == 4

    run(use(), deadline=60)


def test_d31_a_holder_that_is_killed_frees_it_with_its_timeout(race: Race, redis_server: RunningServer) -> None:
    async def use() -> None:
        holder = race.start(redis_server.url, hold=1000, timeout=1.5)
        await eventually(lambda: race.holds(holder))
        other = race.start(redis_server.url, hold=0.2)
        await eventually(lambda: race.sections(holder)[0]["end"] - race.sections(holder)[0]["begin"] > 3)  # renewed
        assert race.sections(other) == []
        holder.kill()
        await eventually(lambda: race.sections(other))
        waited = race.sections(other)[0]["begin"] - race.sections(holder)[0]["end"]
        assert 0.9 <= waited <= 1.5 + 3  # between two and three thirds of it, and what this computer needs

    run(use())


def test_d31_a_waiter_that_is_killed_holds_nobody_up(race: Race, redis_server: RunningServer) -> None:
    line = "waterspout:line:waterspout:lock:{shop:job}"

    async def use() -> None:
        async with Channels(redis_server.url, namespace="shop:") as channels:
            async with channels.lock("job"):
                first = race.start(redis_server.url, hold=1000)
                await eventually(lambda: redis_server.call("HLEN", line) == 1)
                second = race.start(redis_server.url)
                await eventually(lambda: redis_server.call("HLEN", line) == 2)
                first.kill()
            released = time.monotonic()
            await eventually(lambda: race.sections(second))
            assert race.sections(second)[0]["begin"] - released < 1.2 + 3
            assert race.sections(first) == []

    run(use())


def test_d31_a_holder_that_is_suspended_beyond_its_timeout_finds_it_lost(
    race: Race, redis_server: RunningServer
) -> None:
    async def use() -> None:
        holder = race.start(redis_server.url, hold=1000)
        await eventually(lambda: race.holds(holder))
        other = race.start(redis_server.url, hold=0.2)
        holder.signal(signal.SIGSTOP)
        await eventually(lambda: race.sections(other))
        held_until = race.sections(holder)[0]["end"]
        holder.signal(signal.SIGCONT)
        await eventually(lambda: race.sections(holder)[0]["outcome"] == "LockError")
        assert race.sections(holder)[0]["end"] == held_until
        await eventually(lambda: len(race.sections(holder)) == 2)  # and it gets it again in its turn

    run(use())


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_d31_a_restart_of_redis_with_its_data_changes_nothing(
    race: Race, lasting_server: RunningServer, how: str
) -> None:
    async def use() -> None:
        holder = race.start(lasting_server.url, hold=6, timeout=4)
        await eventually(lambda: race.holds(holder))
        other = race.start(lasting_server.url)
        for _ in range(2):
            await asyncio.to_thread(getattr(lasting_server, how))
            await asyncio.to_thread(lasting_server.start)
        await eventually(lambda: race.sections(other))
        await eventually(lambda: race.sections(holder)[0]["outcome"] == "released")
        assert race.sections(holder)[0]["end"] - race.sections(holder)[0]["begin"] >= 6

    run(use())


def test_d31_a_redis_that_has_lost_its_data_is_found_out(race: Race, fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        holder = race.start(fresh_redis_server.url, hold=1000, timeout=3)
        await eventually(lambda: race.holds(holder))
        fresh_redis_server.stop()
        fresh_redis_server.start()
        back = time.monotonic()
        await eventually(lambda: race.sections(holder)[0]["outcome"] == "LockError")
        assert race.sections(holder)[0]["end"] - back < 3  # a renewal, and not the end of the lease

    run(use())


def test_d31_while_redis_is_away_for_long_it_is_lost_and_then_had_again(
    race: Race, lasting_server: RunningServer
) -> None:
    async def use() -> None:
        holder = race.start(lasting_server.url, hold=1000)
        await eventually(lambda: race.holds(holder))
        lasting_server.stop()
        gone = time.monotonic()
        await eventually(lambda: race.sections(holder)[0]["outcome"])
        assert 0.2 <= race.sections(holder)[0]["end"] - gone <= 1.05
        other = race.start(lasting_server.url, hold=1000)
        await asyncio.to_thread(lasting_server.start)
        await eventually(lambda: race.holds(holder) or race.holds(other))

    run(use())


def test_d31_a_holder_in_a_black_hole_gives_up_before_others_begin(race: Race, redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            holder = race.start(proxy.url, hold=1000)
            await eventually(lambda: race.holds(holder))
            other = race.start(redis_server.url, hold=0.05)
            proxy.disturb(Faults(black_hole=True))
            await eventually(lambda: len(race.sections(other)) > 10)
            assert race.sections(holder)[0]["outcome"]
            proxy.heal()  # and what it has said there is heard now
            await eventually(lambda: len(race.sections(holder)) > 1)

    run(use())


def test_d31_whatever_happens_there_are_never_two(
    race: Race, lasting_server: RunningServer, redis_binary: ServerBinary
) -> None:
    dice = random.Random(31)
    workers = [race.start(lasting_server.url, timeout=0.6, tasks=tasks, hold=0.05) for tasks in (3, 1, 1, 1)]

    async def suspend() -> None:
        worker = dice.choice(workers)
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(dice.uniform(0.1, 1.5))
        worker.signal(signal.SIGCONT)

    async def kill() -> None:
        worker = workers.pop(0)
        worker.kill()
        workers.append(race.start(lasting_server.url, timeout=0.6, hold=0.05))

    async def pause() -> None:
        lasting_server.suspend()
        await asyncio.sleep(dice.uniform(0.1, 1.0))
        lasting_server.resume()

    async def restart() -> None:
        await asyncio.to_thread(lasting_server.kill)
        await asyncio.sleep(dice.uniform(0.0, 1.0))
        await asyncio.to_thread(lasting_server.start)

    async def use() -> None:
        await eventually(lambda: all(map(race.sections, workers)), deadline=20)
        faults: list[Callable[[], Any]] = [suspend, kill, pause, restart] * 3
        dice.shuffle(faults)
        for fault in faults:
            await fault()
            await asyncio.sleep(0.3)
        counts = {worker.who: len(race.sections(worker)) for worker in workers}
        await eventually(lambda: all(len(race.sections(worker)) > counts[worker.who] + 2 for worker in workers))

    run(use(), deadline=90)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # a lock that is lost is no news here
    asyncio.run(work_together(*sys.argv[1:]))
