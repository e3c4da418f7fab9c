"""Dialects: other ways for events to travel, in text and in bytes, and other ends for the broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import pytest

from waterspout_channels import Channel, ChannelEvent, Channels, Dialect, StatusType
from waterspout_core import BrokerError, Gap, History, MemoryBroker, MemoryPubSub, Message, Position, PubSub

history_or_not = pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])


class Pairs(Dialect):
    """An event is a JSON array of its name and its data; an array of nothing is no event."""

    def event_of(self, message: Message) -> tuple[str, Any] | None:
        pair = json.loads(message.text)
        return (pair[0], pair[1]) if pair else None

    def publish(
        self, pubsub: PubSub, topic: str, event: str | None, data: Any, key: str | None
    ) -> Awaitable[Position | None]:
        return pubsub.submit(topic, Message(json.dumps([event, data])), key=key)


class Packed(Dialect):
    """The same in bytes that are no UTF-8, and each node keeps its comings and goings for itself."""

    tells_others = False

    def event_of(self, message: Message) -> tuple[str, Any] | None:
        assert isinstance(message.data, bytes)
        event, data = json.loads(message.data[1:])
        return event, data

    async def publish(self, pubsub: PubSub, topic: str, event: str | None, data: Any, key: str | None) -> None:
        await pubsub.publish(topic, b"\xff" + json.dumps([event, data]).encode())


class Guest(Pairs):
    """The broker belongs to somebody else."""

    async def release(self, pubsub: PubSub) -> None:
        pass


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # a callback has no event for us
            await asyncio.sleep(0.002)


def noting(got: list[Any]) -> Callable[[Channel, str, Any], None]:
    return lambda channel, event, data: got.append((channel.name, event, data))


class DialectContract:
    """What holds on every broker."""

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        """A node of its own on the test's broker."""
        raise NotImplementedError

    @pytest.mark.parametrize(
        ("dialect", "payload"),
        [(Pairs(), b'["goal", {"minute": 27}]'), (Packed(), b'\xff["goal", {"minute": 27}]')],
        ids=["text", "bytes"],
    )
    async def test_programs_that_have_always_spoken_so_are_heard_and_hear(
        self, dialect: Dialect, payload: bytes
    ) -> None:
        async with self.open() as old, self.open(dialect=dialect, namespace="shop:") as new:
            heard: list[tuple[str, bytes]] = []
            fired: list[Any] = []
            old.pubsub.add_client(lambda channel, message: heard.append((channel, message)))
            await old.pubsub.subscribe("shop:match")
            new.register("match", "goal", noting(fired))
            await new.connect()
            async with asyncio.timeout(10), new.listen("match", "goal") as events:
                await old.pubsub.publish("shop:match", payload)
                await new.publish("match", "goal", {"minute": 27})
                listened = [await anext(events) for _ in range(2)]
            await until(lambda: len(heard) == len(fired) == 2)
            assert heard == [("shop:match", payload)] * 2
            assert fired == [("match", "goal", {"minute": 27})] * 2
            assert [(item.event, item.data) for item in listened if isinstance(item, ChannelEvent)] == [
                ("goal", {"minute": 27})
            ] * 2

    @history_or_not
    async def test_what_is_no_event_is_passed_over_and_what_cannot_be_understood_is_logged(
        self, history: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.open(history=history, dialect=Pairs()) as channels:
            fired: list[Any] = []
            channels.register("match", "*", noting(fired))
            await channels.connect()
            async with asyncio.timeout(10), channels.listen("match") as events:
                for payload in ("[]", "no JSON", '["no data"]', '[["no name"], 1]', '["goal", 1]'):
                    await channels.pubsub.publish("match", payload)
                event = await anext(events)
            await until(lambda: fired)
            assert fired == [("match", "goal", 1)]
            assert (event.event, event.data) == ("goal", 1)  # type: ignore[union-attr]
        assert caplog.text.count("a message on 'match' cannot be understood") == 6

    async def test_a_history_and_its_positions_and_keys_are_there_as_ever(self) -> None:
        async with (
            self.open(history=1000, dialect=Pairs()) as channels,
            self.open(history=1000, dialect=Pairs()) as late,
        ):
            first = await channels.publish("match", "goal", 1)
            assert await channels.publish("match", "goal", 2, key="k") == await channels.publish(
                "match", "x", 9, key="k"
            )
            async with asyncio.timeout(10), late.listen("match", after=first) as events:
                event = await anext(events)
                assert (event.event, event.data) == ("goal", 2)  # type: ignore[union-attr]

    async def test_nodes_tell_one_another_of_themselves_in_it(self) -> None:
        async with self.open(dialect=Pairs()) as here:
            told: list[Any] = []
            here.register("server", "*", noting(told))
            await here.connect()
            there = self.open(dialect=Pairs(), node="there")
            await there.connect()
            await there.aclose()
            wanted = [("server", event, {"node": node}) for event, node in [("up", here.node), ("up", "there")]]
            await until(lambda: len(told) == 3)
            assert told == [*wanted, ("server", "down", {"node": "there"})]

    async def test_nodes_that_tell_nobody_are_silent(self) -> None:
        async with self.open() as other:
            heard: list[Any] = []
            other.pubsub.add_client(lambda channel, message: heard.append((channel, message)))
            await other.pubsub.subscribe("server", "end")
            async with self.open(dialect=Packed()) as channels:
                await channels.connect()
            await other.pubsub.publish("end", "end")
            await until(lambda: heard)
            assert heard == [("end", b"end")]

    async def test_who_does_not_close_the_broker_leaves_it_to_others(self) -> None:
        async with self.open() as owner:
            got: list[Any] = []
            first, second = (Channels(owner.pubsub, dialect=Guest()) for _ in range(2))
            second.register("match", "*", noting(got))
            await first.connect()
            await second.connect()
            await first.aclose()
            assert (first.status.name, second.status.name) == ("closed", "connected")
            await second.publish("match", "goal", 1)
            await until(lambda: got)
            assert got == [("match", "goal", 1)]
            with pytest.raises(BrokerError, match="closed"):
                await first.publish("match", "goal", 2)
            await second.aclose()
            assert owner.pubsub.health.state == "connected"


class TestInProcess(DialectContract):
    @pytest.fixture(autouse=True)
    def _broker(self) -> None:
        self.broker = MemoryBroker()

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        return Channels(MemoryPubSub(self.broker, history=History(history) if history else None), **options)


@pytest.mark.skipif(find_spec("waterspout_redis") is None, reason="needs waterspout-redis")
class TestInRedis(DialectContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any) -> None:
        self.url = redis_server.url

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        return Channels(self.url, history=history, **options)


# In process alone


async def test_a_gap_is_a_gap_in_every_dialect() -> None:
    async with asyncio.timeout(10), Channels(history=0, dialect=Pairs(), max_messages=10) as channels:
        gaps: list[Any] = []
        begun, gate = asyncio.Event(), asyncio.Event()

        async def slow(channel: Channel, event: str, data: Any) -> None:
            begun.set()
            await gate.wait()

        channels.register("match", "goal", slow)
        channels.register("match", "gap", noting(gaps))
        async with channels.listen("match") as events:
            await channels.publish("match", "goal", 0)
            await begun.wait()
            for number in range(1, 31):
                await channels.publish("match", "goal", number)
            log = channels.open("match").log
            await until(lambda: len(log) == 10)
            assert await anext(events) == Gap(21)
        gate.set()
        await until(lambda: gaps)
        assert gaps == [("match", "gap", {"missed": 20})]


async def test_what_goes_wrong_in_a_coroutine_function_comes_through_the_future() -> None:
    async with Channels(dialect=Packed()) as channels:
        answer = channels.publish("match", "goal", {1, 2})
        with pytest.raises(TypeError, match="JSON"):
            await answer
        assert isinstance(answer, asyncio.Future)
        assert await channels.publish("match", "goal") is None


class Mute(Dialect):
    """It cannot say what the nodes tell one another."""

    async def publish(self, pubsub: PubSub, topic: str, event: str | None, data: Any, key: str | None) -> None:
        raise TypeError("only bytes")


class MuteAtOnce(Dialect):
    def publish(
        self, pubsub: PubSub, topic: str, event: str | None, data: Any, key: str | None
    ) -> Awaitable[Position | None]:
        raise TypeError("only bytes")


@pytest.mark.parametrize("dialect", [Mute, MuteAtOnce])
async def test_where_a_dialect_cannot_tell_the_other_nodes_that_is_logged_and_all_else_goes_on(
    dialect: type[Dialect], caplog: pytest.LogCaptureFixture
) -> None:
    broker = MemoryBroker()
    async with Channels(MemoryPubSub(broker)) as other:
        channels = Channels(MemoryPubSub(broker), dialect=dialect())
        await channels.connect()
        assert channels.status is StatusType.connected
        lock = channels.lock("report")
        assert await lock.acquire()
        await channels.aclose()
        assert channels.status is StatusType.closed
        assert await other.lock("report", blocking=False).acquire()
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "the other nodes could not be told of this one: only bytes",
        "the other nodes could not be told that this one goes: only bytes",
    ]


async def test_where_a_dialect_fails_to_release_the_broker_that_is_raised_and_they_are_closed() -> None:
    class Broken(Dialect):
        async def release(self, pubsub: PubSub) -> None:
            await pubsub.aclose()
            raise OSError("not today")

    channels = Channels(dialect=Broken())
    await channels.connect()
    with pytest.raises(OSError, match="not today"):
        await channels.aclose()
    assert channels.status is StatusType.closed


@pytest.mark.parametrize("dialect", [Pairs, "pairs", json])
def test_what_is_no_dialect_is_refused(dialect: Any) -> None:
    with pytest.raises(TypeError, match="Dialect"):
        Channels(dialect=dialect)
