"""Two processes with `Channels`, one Redis, and everything that can befall the links between them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pytest

from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run

pytestmark = pytest.mark.one_redis_server  # how the servers differ is tested in the core

NODE: Final = Path(__file__).parent / "node.py"
DEADLINE: Final = 20.0

CONNECTED: Final = ["connecting", "connected"]
HEALED: Final = [*CONNECTED, "disconnected", "connected"]


class Node:
    """Channels in a process of their own, which reach the server through a proxy of their own."""

    def __init__(self, name: str, proxy: FaultProxy, process: asyncio.subprocess.Process) -> None:
        self.name, self.proxy, self.process = name, proxy, process
        self.statuses: list[str] = []
        self.fired: list[tuple[str, str, str, Any]] = []  # label, channel, event, data
        self.callbacks: dict[str, tuple[str, str]] = {}  # what is registered by each label
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            told = json.loads(line)
            if "status" in told:
                self.statuses.append(told["status"])
            elif "fired" in told:
                label, channel, event, data = told["fired"]
                self.fired.append((label, channel, event, json.dumps(data)))
            else:
                self._answers.put_nowait(told)
        self._answers.put_nowait({"error": f"{self.name} has ended"})

    async def try_to(self, *command: Any) -> dict[str, Any]:
        """`{"answer": …}` or `{"error": …}`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            return await self._answers.get()

    async def ask(self, *command: Any) -> Any:
        """What it answers."""
        told = await self.try_to(*command)
        assert "error" not in told, f"{command}: {told['error']}"
        return told["answer"]

    async def connect(self) -> None:
        await self.ask("connect", DEADLINE)

    async def register(self, channel: str, event: str, label: str) -> None:
        self.callbacks[label] = channel, event
        await self.ask("register", channel, event, label)

    async def unregister(self, label: str) -> None:
        await self.ask("unregister", *self.callbacks.pop(label), label)

    @property
    def wanted(self) -> set[str]:
        """The channels that the server should say it has subscribed."""
        return {"server"} | {channel for channel, _ in self.callbacks.values()}

    def expected(self, channel: str, event: str) -> list[str]:
        """The labels of the callbacks that an event fires."""
        return sorted(
            label
            for label, (name, pattern) in self.callbacks.items()
            if name == channel and fnmatchcase(event, pattern)
        )

    def got(self, channel: str, event: str, data: Any) -> list[str]:
        """The labels of those that it has fired."""
        told = channel, event, json.dumps(data)
        return sorted(label for label, *what in self.fired if tuple(what) == told)

    async def has_got(self, channel: str, event: str, data: Any) -> None:
        """Wait until all callbacks have that should, and no others."""
        expected = self.expected(channel, event)
        await eventually(lambda: len(self.got(channel, event, data)) >= len(expected), deadline=DEADLINE)
        assert self.got(channel, event, data) == expected

    async def is_connected(self, times: int = 2) -> None:
        """Wait until it has connected so many times in all."""
        await eventually(lambda: self.statuses.count("connected") >= times, deadline=DEADLINE)

    async def is_down(self) -> None:
        """Wait until it has noticed."""
        await eventually(lambda: self.statuses[-1] == "disconnected", deadline=DEADLINE)

    async def close(self) -> None:
        """It leaves nothing behind."""
        assert await self.ask("close") == []
        assert self.statuses[-1] == "closed"

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@asynccontextmanager
async def node(name: str, server: RunningServer, *, connect: bool = True) -> AsyncIterator[Node]:
    async with FaultProxy(server.port) as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(NODE),
            proxy.url,
            name,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        started = Node(name, proxy, process)
        try:
            if connect:
                await started.connect()
            yield started
        finally:
            await started.end()


def subscribed(server: RunningServer) -> list[str]:
    """What the server says is subscribed."""
    return sorted(name.decode() for name in server.call("PUBSUB", "CHANNELS"))


class Pair:
    """Two nodes at one server, and the numbers that were published through them."""

    def __init__(self, server: RunningServer, *nodes: Node) -> None:
        self.server, self.nodes = server, nodes
        self.here, self.there = nodes
        self._number = 0

    async def settle(self) -> None:
        """Registrations to begin with, and events that fire them."""
        here, there = self.here, self.there
        await here.register("news", "*", "all")
        await here.register("news", "goal*", "async goals")
        await here.register("old", "*", "old")
        await there.register("news", "goal", "goal")
        await there.register("scores", "*", "scores")
        await there.register("fickle", "*", "fickle")
        await self.prove()

    async def change(self) -> None:
        """Other registrations, while there is no link."""
        here, there = self.here, self.there
        await here.unregister("old")
        await here.unregister("async goals")
        await here.register("late", "*", "late")
        await here.register("news", "goal-[ab]", "async late goals")
        await there.unregister("scores")
        await there.register("late", "goal*", "late too")
        for _ in range(2):
            await there.unregister("fickle")
            await there.register("fickle", "*", "fickle")

    async def prove(self) -> None:
        """What is subscribed is what is wanted, and every callback fires for what both publish."""
        wanted = sorted(self.here.wanted | self.there.wanted)
        await eventually(lambda: subscribed(self.server) == wanted, deadline=DEADLINE)
        for each in self.nodes:
            for channel in each.wanted:
                await each.ask("ready", channel)
        for channel in wanted:
            for publisher in self.nodes:
                for event in ("goal", "goal-a", "corner"):
                    await self.publish(publisher, channel, event)

    async def publish(self, publisher: Node, channel: str, event: str) -> None:
        """Publish a new number, and wait until it has fired what it should, and nothing else."""
        self._number += 1
        await publisher.ask("publish", channel, event, self._number)
        for each in self.nodes:
            await each.has_got(channel, event, self._number)

    async def close(self, *statuses: str) -> None:
        """Both end in order, with these statuses behind them, and nothing was fired twice."""
        for each in self.nodes:
            assert set(await each.ask("registered")) == each.wanted
            await each.close()
            assert each.statuses == [*statuses, "closed"]
            twice = [what for what, times in Counter(each.fired).items() if times > 1 and what[1] != "server"]
            assert twice == []
        await eventually(lambda: len(self.server.call("CLIENT", "LIST").splitlines()) == 1)
        assert subscribed(self.server) == []


@asynccontextmanager
async def pair(server: RunningServer) -> AsyncIterator[Pair]:
    async with node("here", server) as here, node("there", server) as there:
        yield Pair(server, here, there)


@pytest.fixture
def durable_server(redis_binary: ServerBinary) -> Iterator[RunningServer]:
    """A server that has everything again after a restart."""
    with RunningServer(redis_binary, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


# F11: what was subscribed is subscribed again


@pytest.mark.parametrize("data", ["with its data", "without its data"])
def test_f11_after_a_restart_of_the_server_all_is_as_it_was(
    data: str, durable_server: RunningServer, fresh_redis_server: RunningServer
) -> None:
    server = durable_server if data == "with its data" else fresh_redis_server

    async def use() -> None:
        async with pair(server) as both:
            await both.settle()
            for each in both.nodes:
                await each.register("news", "gap", f"{each.name} misses")
            server.kill()
            for each in both.nodes:
                await each.is_down()
            await both.change()
            server.start()
            for each in both.nodes:
                await each.is_connected()
            await both.prove()
            # A history that is gone may have had more in it: that is told, once.
            told = [what for each in both.nodes for what in each.fired if what[2] == "gap"]
            labels = [] if server is durable_server else ["here misses", "there misses"]
            assert sorted(label for label, *_ in told) == labels
            await both.close(*HEALED)

    run(use(), deadline=120)


def test_f11_killed_connections_are_made_anew(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with pair(server) as both:
            await both.settle()
            changing = asyncio.create_task(both.change())
            server.call("CLIENT", "KILL", "TYPE", "pubsub")
            server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await changing
            for each in both.nodes:
                await each.is_connected()
            await both.prove()
            await both.close(*HEALED)

    run(use(), deadline=120)


def test_f11_who_was_in_a_black_hole_misses_nothing_that_others_published(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with pair(server) as both:
            here, there = both.nodes
            await both.settle()
            here.proxy.disturb(Faults(black_hole=True))
            for number in range(-20, 0):
                await there.ask("publish", "news", "goal", number)
            await here.is_down()
            assert there.statuses == CONNECTED
            assert not [data for *_, data in here.fired if data == "-20"]
            here.proxy.heal()
            await here.is_connected()
            for number in range(-20, 0):
                for each in both.nodes:
                    await each.has_got("news", "goal", number)
            in_order = [json.loads(data) for label, *_, data in here.fired if label == "all"]
            assert [number for number in in_order if number < 0] == list(range(-20, 0))
            await both.prove()
            there.proxy.disturb(Faults(black_hole=True))
            here.proxy.disturb(Faults(black_hole=True))
            await both.change()
            for each in both.nodes:
                await each.is_down()
                each.proxy.heal()
            await here.is_connected(3)
            await there.is_connected(2)
            await both.prove()
            for each in both.nodes:
                await each.close()
            assert here.statuses == [*HEALED, "disconnected", "connected", "closed"]
            assert there.statuses == [*HEALED, "closed"]

    run(use(), deadline=120)


def test_f11_nodes_tell_one_another_that_they_come_come_back_and_go(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        async with node("here", fresh_redis_server) as here:
            await here.register("server", "*", "seen")

            async def seen(event: str, name: str) -> None:
                told = "seen", "server", event, json.dumps({"node": name})
                await eventually(lambda: told in here.fired, deadline=DEADLINE)

            async with node("there", fresh_redis_server) as there:
                await seen("up", "there")
                there.proxy.reset()
                await seen("reconnect", "there")
                here.proxy.reset()
                await seen("reconnect", "here")  # its own events are seen, too
                await there.close()
                await seen("down", "there")
            await here.close()
            await seen("down", "here")
            assert max(Counter(here.fired).values()) == 1
            assert here.statuses == [*HEALED, "closed"]

    run(use(), deadline=60)


# F12: a second break while the first one heals


def test_f12_breaks_in_the_middle_of_restoring_forget_nothing(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        async with pair(fresh_redis_server) as both:
            await both.settle()
            here, there = both.nodes
            before = here.proxy.connections
            here.proxy.to_client.faults = Faults(cut_at=b"subscribe")
            here.proxy.reset()
            await eventually(lambda: here.proxy.connections >= before + 3, deadline=DEADLINE)
            assert here.statuses == [*CONNECTED, "disconnected"], "what is not confirmed does not count"
            await both.change()
            await there.ask("publish", "news", "goal", -1)
            # Now some of the confirmations come through, and then no more.
            here.proxy.to_client.faults = Faults(cut_at=b"news")
            await eventually(lambda: here.proxy.connections >= before + 5, deadline=DEADLINE)
            assert here.statuses == [*CONNECTED, "disconnected"]
            here.proxy.heal()
            await here.is_connected()
            for each in both.nodes:
                await each.has_got("news", "goal", -1)
            await both.prove()
            for each in both.nodes:
                await each.close()
            assert here.statuses == [*HEALED, "closed"]
            assert there.statuses == [*CONNECTED, "closed"]

    run(use(), deadline=120)


# F13: one loop for the first connect and the later ones, whose back-off begins anew when it has worked


def test_f13_who_comes_before_the_server_is_told_so_and_connected_when_it_comes(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with node("here", server, connect=False) as here:
            server.kill()
            here.proxy.refuse()
            await here.register("news", "*", "all")
            told = await here.try_to("connect", 1)
            assert "Connect call failed" in told["error"], told
            assert await here.ask("status") == "disconnected"
            await here.register("late", "*", "late")
            server.start()
            here.proxy.heal()
            await here.is_connected(1)
            assert subscribed(server) == ["late", "news", "server"]
            await here.connect()  # it is, so this returns at once
            for channel in ("late", "news"):
                await here.ask("publish", channel, "goal", channel)
                await here.has_got(channel, "goal", channel)
            await here.close()
            assert here.statuses == ["connecting", "disconnected", "connected", "closed"]

    run(use(), deadline=60)


def test_f13_the_back_off_grows_until_a_subscription_is_confirmed_and_begins_anew_then(
    fresh_redis_server: RunningServer,
) -> None:
    async def use() -> None:
        async with node("here", fresh_redis_server) as here:
            proxy = here.proxy
            await here.register("news", "*", "all")
            await here.ask("ready", "news")
            before = proxy.connections
            began = time.monotonic()
            proxy.to_client.faults = Faults(cut_at=b"subscribe")  # connecting works, and subscribing does not
            proxy.reset()
            await eventually(lambda: proxy.connections >= before + 7, deadline=DEADLINE)
            # Six attempts of the link at least: 0.1 s doubled by each, and somewhere in the upper half.
            assert time.monotonic() - began > 0.05 * (2**5 - 1)
            proxy.heal()
            await here.is_connected(2)
            began = time.monotonic()
            proxy.reset()
            await here.is_connected(3)
            assert time.monotonic() - began < 2, "the next wait in that row would be 2.5 s at least"
            await here.close()

    run(use(), deadline=60)


# F31: nothing is confirmed before the server has confirmed it


def test_f31_connected_is_what_the_server_has_confirmed(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        async with node("here", fresh_redis_server, connect=False) as here:
            await here.register("news", "*", "all")
            here.proxy.to_client.faults = Faults(hold_at=b"subscribe")
            told = await here.try_to("connect", 0.3)
            assert "not confirmed" in told["error"], told
            # The server has, and we do not know.
            await eventually(lambda: subscribed(fresh_redis_server) == ["news", "server"], deadline=DEADLINE)
            assert "connected" not in here.statuses
            here.proxy.heal()
            await here.connect()
            # From here on nothing is missed.
            fresh_redis_server.call("PUBLISH", "news", "plain")
            await here.has_got("news", "message", "plain")
            await here.close()

    run(use(), deadline=60)


# F40: a node without subscriptions goes on


def test_f40_who_has_unregistered_all_can_register_again(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        async with node("connected", server) as here, node("not", server, connect=False) as there:
            for turn in range(3):
                for each in (here, there):
                    await each.register("news", "*", "all")
                    await each.ask("ready", "news")
                await here.ask("publish", "news", "goal", turn)
                for each in (here, there):
                    await each.has_got("news", "goal", turn)
                    await each.unregister("all")
                await eventually(lambda: subscribed(server) == ["server"], deadline=DEADLINE)
                # It is the last one of both, and the link of the one that has not connected has none at all.
                here.proxy.reset()
                there.proxy.reset()
                await here.is_connected(turn + 2)
            for each in (here, there):
                await each.close()

    run(use(), deadline=60)


@pytest.mark.parametrize("trouble", ["refused", "black hole", "unconfirmed"])
def test_f11_a_node_closes_in_any_trouble_and_leaves_nothing_behind(
    fresh_redis_server: RunningServer, trouble: str
) -> None:
    async def use() -> None:
        async with node("here", fresh_redis_server) as here:
            await here.register("news", "*", "all")
            await here.register("news", "*", "async all")
            proxy = here.proxy
            match trouble:
                case "refused":
                    proxy.refuse()
                    proxy.reset()
                case "black hole":
                    proxy.disturb(Faults(black_hole=True))
                case _:
                    proxy.to_client.faults = Faults(hold_at=b"subscribe")
                    proxy.reset()
            await here.is_down()
            began = time.monotonic()
            await here.close()
            assert time.monotonic() - began < 5
            assert here.statuses == [*CONNECTED, "disconnected", "closed"]
        await eventually(lambda: len(fresh_redis_server.call("CLIENT", "LIST").splitlines()) == 1)

    run(use(), deadline=60)
