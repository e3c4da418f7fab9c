"""The status of the link: its history, who waits for it, and what the nodes tell one another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from waterspout_channels import Channels, StatusType
from waterspout_core import BrokerError, Health, MemoryBroker, MemoryPubSub
from waterspout_core._feeds import PlainFeed, feed_log

INITIALISED, CONNECTING, CONNECTED, DISCONNECTED, CLOSED = StatusType


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # a callback has no event for us
            await asyncio.sleep(0.002)


class StatusContract:
    """What holds on every broker (E7)."""

    def open(self, **options: Any) -> Channels:
        """A node of its own on the test's broker."""
        raise NotImplementedError

    async def test_d15_d24_the_history_of_a_good_life(self) -> None:
        channels, told = self.open(), []
        channels.add_status_listener(told.append)
        channels.add_status_listener(told.append)
        assert channels.status is INITIALISED
        channels.register("match", "*", print)
        assert channels.status is INITIALISED
        await channels.connect()
        assert channels.status is CONNECTED
        await channels.connect()
        await asyncio.gather(*(channels.connect() for _ in range(3)))
        await channels.close()
        assert channels.status is CLOSED
        assert told == [CONNECTING, CONNECTED, CLOSED]

    async def test_d24_a_closed_one_never_comes_back(self) -> None:
        channels = self.open()
        await channels.connect()
        await channels.close()
        with pytest.raises(BrokerError, match="closed"):
            await channels.connect()
        assert channels.status is CLOSED
        unused = self.open()
        await unused.close()
        with pytest.raises(BrokerError, match="closed"):
            await unused.connect()

    async def test_d25_when_connected_all_that_was_registered_before_is_confirmed(self) -> None:
        async with self.open() as channels, self.open() as other:
            got = []
            for number in range(50):
                channels.register(f"c{number}", "*", lambda channel, event, data: got.append(channel.name))
            await channels.connect()
            assert sorted(await other.pubsub.channels()) == sorted(channels)
            for number in range(50):
                await other.publish(f"c{number}", "goal")
            await until(lambda: len(got) == 50)

    async def test_the_status_can_be_watched_and_waited_for(self) -> None:
        channels = self.open()

        async def watch() -> list[StatusType]:
            return [status async for status in channels.watch()]

        watching = asyncio.create_task(watch())
        waiting = asyncio.create_task(channels.wait_for(CONNECTED))
        await asyncio.sleep(0)
        await channels.wait_for(INITIALISED)
        assert not waiting.done()
        await channels.connect()
        await waiting
        in_vain = asyncio.create_task(channels.wait_for(DISCONNECTED))
        await asyncio.sleep(0)
        await channels.close()
        assert await watching == [INITIALISED, CONNECTING, CONNECTED, CLOSED]
        with pytest.raises(BrokerError, match="closed"):
            await in_vain
        await channels.wait_for(CLOSED)
        with pytest.raises(BrokerError, match="closed"):
            await channels.wait_for(CONNECTED)
        assert await watch() == [CLOSED]

    async def test_d32_nodes_tell_one_another_when_they_come_and_go(self) -> None:
        told: list[Any] = []
        async with self.open(node="here") as here:
            here.register("server", "*", lambda channel, event, data: told.append((event, data["node"])))
            await here.connect()
            await until(lambda: told == [("up", "here")])
            there = self.open(node="there")
            own: list[Any] = []
            there.register("server", "down", lambda channel, event, data: own.append((event, data)))
            await there.connect()
            await there.close()
            await until(lambda: len(told) == 3)
            assert told[1:] == [("up", "there"), ("down", "there")]
            assert own == [("down", {"node": "there"})]

    async def test_a_node_has_a_name_of_its_own_and_may_have_another_status_channel(self) -> None:
        async with self.open(status_channel="nodes", namespace="ns_") as channels, self.open() as other:
            told: list[Any] = []
            channels.register("nodes", "up", lambda channel, event, data: told.append(data))
            await channels.connect()
            assert await channels.pubsub.channels() == ["ns_nodes"]
            await until(lambda: told)
            assert told == [{"node": channels.node}]
            assert len({channels.node, other.node}) == 2

    async def test_who_only_opens_stores_tells_nobody_and_has_no_status(self) -> None:
        async with self.open() as channels:
            async with self.open() as source:
                heard: list[Any] = []
                channels.register("server", "*", lambda channel, event, data: heard.append((event, data)))
                await channels.connect()
                await source.open("match").ready()
                await source.publish("match", "goal")
                assert source.status is INITIALISED
            await channels.publish("server", "end")
            await until(lambda: len(heard) == 2)
            assert heard == [("up", {"node": channels.node}), ("end", None)]


class TestInProcess(StatusContract):
    @pytest.fixture(autouse=True)
    def _broker(self) -> None:
        self.broker = MemoryBroker()

    def open(self, **options: Any) -> Channels:
        return Channels(MemoryPubSub(self.broker), **options)


@pytest.mark.skipif(find_spec("waterspout_redis") is None, reason="needs waterspout-redis")
@pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])
class TestInRedis(StatusContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any, history: int) -> None:
        self.url, self.history = redis_server.url, history

    def open(self, **options: Any) -> Channels:
        return Channels(self.url, history=self.history, **options)


# A broker that is elsewhere, and does what it is told


class Elsewhere(MemoryPubSub):
    """Confirms when it is told to, breaks when it is told to, and says how it is."""

    def __init__(self) -> None:
        super().__init__()
        self.attached: dict[str, PlainFeed] = {}
        self.subscribed: set[str] = set()
        self.is_deaf: BrokerError | None = None
        self._state = "disconnected"
        self.add_client(lambda topic, payload: self.attached[topic].take([payload], self))

    def feed(self, topic: str, *, channel: str, max_messages: int, max_bytes: int) -> Any:
        return PlainFeed(topic, feed_log(None, channel, max_messages, max_bytes))

    def attach(self, feed: Any) -> None:
        self.attached[feed.topic] = feed

    def detach(self, feed: Any) -> None:
        del self.attached[feed.topic]
        self.unsubscribe(feed.topic)

    async def count(self, *channels: str) -> dict[str, int]:
        if self.is_deaf is not None:
            raise self.is_deaf
        return await super().count(*channels)

    def is_now(self, state: Any) -> None:
        self._state = state
        self._tell_health(Health(state, 0.0, 0.0))

    def confirm(self, *topics: str) -> None:
        for topic in topics or tuple(self.attached):
            self.subscribe(topic)
            self.attached[topic].confirmed(self)  # type: ignore[arg-type]

    def refuse(self, topic: str) -> None:
        self.attached[topic].refused(BrokerError("not for you"))

    def lose(self) -> None:
        self.unsubscribe()
        self.is_now("disconnected")

    def restore(self) -> None:
        for topic, feed in self.attached.items():
            self.subscribe(topic)
            feed.broken()
        self.is_now("connected")


async def test_f31_nobody_is_connected_before_the_broker_has_confirmed(clock: Any) -> None:
    broker, told = Elsewhere(), []
    async with Channels(broker) as channels:
        channels.add_status_listener(told.append)
        channels.register("match", "*", lambda channel, event, data: told.append(data))
        connecting = asyncio.ensure_future(channels.connect())
        await clock.turn()
        broker.is_now("connecting")
        await clock.turn()
        assert list(broker.attached) == ["match", "server"]  # what is confirmed last is waited for
        broker.confirm("match")
        await clock.turn()
        assert not connecting.done()
        assert told == [CONNECTING]
        broker.confirm("server")
        await connecting
        assert told == [CONNECTING, CONNECTED]


async def test_d26_connect_tells_why_not_and_goes_on_trying(clock: Any) -> None:
    broker, told = Elsewhere(), []
    broker.is_deaf = BrokerError("connection refused")
    async with Channels(broker) as channels:
        channels.add_status_listener(told.append)
        began = clock.now
        with pytest.raises(BrokerError, match="5 s: connection refused"):
            await channels.connect(5)
        assert clock.now - began == 5
        assert told == [CONNECTING, DISCONNECTED]
        broker.confirm()
        broker.is_now("connected")
        await clock.turn()
        assert told == [CONNECTING, DISCONNECTED, CONNECTED]


async def test_a_connect_that_waits_for_ever_does_and_can_be_given_up(clock: Any) -> None:
    broker = Elsewhere()
    async with Channels(broker) as channels:
        patient = asyncio.ensure_future(channels.connect(None))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await channels.connect(None)
        await clock.pass_by(3600)
        assert not patient.done()
        broker.confirm()
        broker.is_now("connected")
        await patient


async def test_who_is_refused_the_status_channel_is_told_so_and_tries_again_when_the_link_is_back(clock: Any) -> None:
    broker, told = Elsewhere(), []
    async with Channels(broker) as channels:
        channels.add_status_listener(told.append)
        got: list[Any] = []
        channels.register("match", "*", lambda channel, event, data: got.append(data))
        connecting = asyncio.ensure_future(channels.connect())
        await clock.turn()
        broker.refuse("match")
        broker.refuse("server")
        with pytest.raises(BrokerError, match="not for you"):
            await connecting
        assert (told, broker.attached) == ([CONNECTING, DISCONNECTED], {})
        again = asyncio.ensure_future(channels.connect())
        broker.is_now("connected")
        await clock.turn()
        broker.confirm()
        await again
        assert told == [CONNECTING, DISCONNECTED, CONNECTING, CONNECTED]
        await channels.publish("match", "goal", 1)
        await clock.turn()
        assert got == [1]


@pytest.mark.parametrize("how", ["disconnected", "deaf"])
async def test_d27_a_break_is_told_and_so_is_its_end(how: str, clock: Any) -> None:
    broker, told, heard = Elsewhere(), [], []
    async with Channels(broker, node="n") as channels:
        channels.add_status_listener(told.append)
        channels.register("server", "*", lambda channel, event, data: heard.append((event, data)))
        broker.is_now("connected")
        connecting = asyncio.ensure_future(channels.connect())
        await clock.turn()
        broker.confirm()
        await connecting
        for _ in range(2):
            broker.lose()
            broker.is_now(how)
            broker.is_now(how)
            await clock.turn()
            broker.restore()
            await clock.turn()
        assert told == [CONNECTING, CONNECTED, DISCONNECTED, CONNECTED, DISCONNECTED, CONNECTED]
        assert heard == [(event, {"node": "n"}) for event in ("up", "reconnect", "reconnect")]


async def test_a_break_in_the_middle_of_connecting_is_no_connection(clock: Any) -> None:
    broker, told = Elsewhere(), []
    async with Channels(broker) as channels:
        channels.add_status_listener(told.append)
        connecting = asyncio.ensure_future(channels.connect())
        await clock.turn()
        broker.confirm()
        broker.lose()
        await clock.turn()
        assert told == [CONNECTING, DISCONNECTED]
        assert not connecting.done()
        broker.restore()
        await connecting
        assert told == [CONNECTING, DISCONNECTED, CONNECTED]


async def test_who_registers_while_the_broker_is_away_is_told_that_something_was_missed(clock: Any) -> None:
    broker, gaps, late = Elsewhere(), [], []
    async with Channels(broker) as channels:
        channels.register("early", "gap", lambda channel, event, data: gaps.append(data))
        broker.is_now("connected")
        connecting = asyncio.ensure_future(channels.connect())
        await clock.turn()
        broker.confirm()
        await connecting
        await clock.turn()
        assert gaps == []  # before it was there, there was nothing to be missed
        broker.lose()
        channels.register("late", "gap", lambda channel, event, data: late.append(data))
        broker.confirm("late")
        broker.restore()
        await clock.turn()
        assert gaps == [{"missed": None}]
        assert late == [{"missed": None}] * 2  # until it was confirmed, and in the break


async def test_d28_close_while_it_is_away_leaves_nothing_behind(clock: Any) -> None:
    broker, told = Elsewhere(), []
    channels = Channels(broker)
    channels.add_status_listener(told.append)
    channels.register("match", "*", print)
    connecting = asyncio.ensure_future(channels.connect(None))
    await clock.turn()
    await channels.close()
    with pytest.raises(BrokerError, match="closed"):
        await connecting
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in scheduled if not timer.cancelled()] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert told == [CONNECTING, CLOSED]
    broker.is_now("connected")
    await clock.turn()
    assert channels.status is CLOSED


async def test_close_waits_a_moment_at_most_for_a_goodbye_that_never_comes_back(clock: Any) -> None:
    broker = Elsewhere()
    channels = Channels(broker)
    broker.is_now("connected")
    connecting = asyncio.ensure_future(channels.connect())
    await clock.turn()
    broker.confirm()
    await connecting
    broker.unsubscribe()
    began = clock.now
    await channels.close()
    assert clock.now - began == 1
    assert channels.status is CLOSED


async def test_when_somebody_else_closes_the_broker_that_is_the_end() -> None:
    channels = Channels()
    await channels.connect()
    await channels.pubsub.aclose()
    assert channels.status is CLOSED
    await channels.aclose()


async def test_a_failing_status_listener_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    told: list[StatusType] = []

    def failing(status: StatusType) -> None:
        raise RuntimeError("broken on purpose")

    async with Channels() as channels:
        channels.add_status_listener(failing)
        channels.add_status_listener(told.append)
        await channels.connect()
        channels.remove_status_listener(told.append)
        channels.remove_status_listener(print)
    assert told == [CONNECTING, CONNECTED]
    assert "broken on purpose" in caplog.text


async def test_the_other_nodes_are_told_or_a_warning_says_that_they_are_not(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(Channels):
        def publish(self, channel: str, event: str | None, data: Any = None, *, key: str | None = None) -> Any:
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(BrokerError("no"))
            return failed

    async with Mute() as channels:
        await channels.connect()
        await asyncio.sleep(0)
        assert "could not be told" in caplog.text
        assert channels.status is CONNECTED


def test_the_values_are_those_of_pulsar() -> None:
    assert {status.name: status.value for status in Channels.statusType} == {
        "initialised": 1,
        "connecting": 2,
        "connected": 3,
        "disconnected": 4,
        "closed": 5,
    }
