"""``async for event in channels.listen(…)``: which events, from where on, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from waterspout_channels import ChannelEvent, Channels
from waterspout_core import BadChannel, BadPosition, BrokerError, Gap, History, MemoryBroker, MemoryPubSub

history_or_not = pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.002)


class ListenContract:
    """What holds on every broker (E7)."""

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        """A node of its own on the test's broker."""
        raise NotImplementedError

    @history_or_not
    async def test_events_that_match_come_in_order_as_they_were_given(self, history: int) -> None:
        async with (
            asyncio.timeout(10),
            self.open(history=history) as here,
            self.open(history=history) as there,
            here.listen("news", "goal*") as events,
        ):
            for number in range(3):
                await there.publish("news", "card", number)
                await there.publish("news", "goal", {"n": number})
            await there.publish("news", "goals", None)
            got = [await anext(events) for _ in range(4)]
            assert [(item.channel, item.event, item.data) for item in got if isinstance(item, ChannelEvent)] == [
                *(("news", "goal", {"n": number}) for number in range(3)),
                ("news", "goals", None),
            ]
            assert got[-1].position == events.position  # type: ignore[union-attr]

    async def test_it_ends_the_loop_when_it_is_closed(self) -> None:
        async with self.open() as channels:
            got: list[Any] = []
            listening = channels.listen("news")

            async def take() -> None:
                async for event in listening:
                    got.append(event)  # noqa: PERF401  # as they come

            taking = asyncio.create_task(take())
            await until(lambda: listening.position is not None)
            await channels.publish("news", "goal", 1)
            await channels.publish("news", "goal", 2)
            await until(lambda: len(got) == 2)
            await listening.aclose()
            await taking
            assert [event.data for event in got] == [1, 2]
            assert [event async for event in listening] == []

    async def test_closing_the_channels_ends_it_too(self) -> None:
        channels = self.open()
        began, waiting = channels.listen("news"), channels.listen("other")
        await began.__aenter__()
        tasks = [asyncio.create_task(anext(each, None)) for each in (began, waiting)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await channels.aclose()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*tasks) == [None, None]
        with pytest.raises(BrokerError, match="closed"):
            channels.listen("news")

    @history_or_not
    async def test_it_goes_on_after_a_position(self, history: int) -> None:
        async with self.open(history=history) as channels:
            async with asyncio.timeout(10):
                async with channels.listen("news") as events:
                    for number in range(6):
                        await channels.publish("news", "goal", number)
                    for _ in range(3):
                        event = await anext(events)
                    assert isinstance(event, ChannelEvent)
                    assert event.data == 2
                async with channels.listen("news", after=event.position) as events:
                    rest = [await anext(events) for _ in range(3)]
                async with channels.listen("news", after=str(event.position)) as events:
                    assert [await anext(events) for _ in range(3)] == rest
            assert [item.data for item in rest if isinstance(item, ChannelEvent)] == [3, 4, 5]

    async def test_it_goes_on_on_another_node_and_the_earliest_is_what_is_kept(self) -> None:
        async with self.open(history=100) as here, self.open(history=100) as there, asyncio.timeout(10):
            for number in range(4):
                await here.publish("news", "goal", number)
            async with there.listen("news", after="earliest") as events:
                event = await anext(events)
                assert isinstance(event, ChannelEvent)
                assert event.data == 0
            async with here.listen("news", after=event.position) as events:
                assert [(await anext(events)).data for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]

    async def test_whoever_is_too_slow_is_told_of_a_gap_whatever_the_pattern(self) -> None:
        async with (
            asyncio.timeout(10),
            self.open(max_messages=10) as channels,
            channels.listen("news", "goal") as events,
        ):
            store = channels.open("news")
            for number in range(30):
                await channels.publish("news", "goal", number)
            await until(lambda: len(store.log) and store.log.newest(1)[1][0].data == 29)  # type: ignore[union-attr]
            assert await anext(events) == Gap(20)
            assert (await anext(events)).data == 20  # type: ignore[union-attr]


class TestInProcess(ListenContract):
    @pytest.fixture(autouse=True)
    def _broker(self) -> None:
        self.broker = MemoryBroker()

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        return Channels(MemoryPubSub(self.broker, history=History(history) if history else None), **options)


@pytest.mark.skipif(find_spec("waterspout_redis") is None, reason="needs waterspout-redis")
class TestInRedis(ListenContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any) -> None:
        self.url = redis_server.url

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        return Channels(self.url, history=history, **options)


async def test_a_channel_that_somebody_listens_to_is_not_let_go(clock: Any) -> None:
    async with Channels(linger=60) as channels:
        events = channels.listen("news")
        await clock.pass_by(3600)
        await channels.publish("news", "goal", 1)
        assert (await anext(events)).data == 1  # type: ignore[union-attr]
        del events
        await clock.pass_by(3600)
        assert len(channels.stores) == 0


async def test_an_open_channel_is_listened_to_from_the_call_on() -> None:
    async with Channels() as channels:
        events = channels.listen("news")
        await channels.publish("news", "goal", 1)
        event = await anext(events)
        assert event == ChannelEvent("news", "goal", 1, events.position)


async def test_what_cannot_be_listened_to_is_told_at_once() -> None:
    async with Channels() as channels:
        with pytest.raises(BadChannel):
            channels.listen("a b")
        with pytest.raises(BadPosition):
            channels.listen("news", after="nowhere")
