"""When somebody begins to read: from the call on, over a link that is up, and with no gap where nothing was lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("waterspout_redis")

from waterspout_channels import Channel, ChannelEvent, Channels
from waterspout_core import BadChannel, BrokerError
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually


class Noted:
    """A callback that notes what it is called with."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def __call__(self, channel: Channel, event: str, data: Any) -> None:
        self.events.append((event, data))


@pytest.mark.parametrize("kept", [0, 3])
async def test_who_registers_while_connected_is_called_for_what_is_published_next(
    redis_server: RunningServer, kept: int
) -> None:
    async with asyncio.timeout(20), Channels(redis_server.url) as channels:
        for number in range(kept):
            await channels.publish("late", "before", number)
        await channels.connect()
        noted = Noted()
        channels.register("late", "*", noted)
        channels.register("late", "gap", noted)
        await channels.publish("late", "goal", 1)
        await eventually(lambda: noted.events)
        assert noted.events == [("goal", 1)]


async def test_who_listens_while_connected_hears_what_is_published_next(redis_server: RunningServer) -> None:
    async with asyncio.timeout(20), Channels(redis_server.url) as channels:
        await channels.connect()
        heard = channels.listen("late", "goal")
        await channels.publish("late", "goal", 1)
        event = await anext(heard)
        assert isinstance(event, ChannelEvent)
        assert event.data == 1
        await heard.aclose()


async def test_a_second_connect_waits_for_what_was_registered_since(redis_server: RunningServer) -> None:
    async with asyncio.timeout(20), Channels(redis_server.url, history=0) as channels:
        await channels.connect()
        noted = Noted()
        channels.register("late", "goal", noted)
        late = channels.open("late")
        assert not late.subscribed
        await channels.connect()
        assert late.subscribed
        await channels.publish("late", "goal", 1)
        await eventually(lambda: noted.events == [("goal", 1)])


async def test_a_second_connect_tells_why_what_was_registered_since_is_not_there(redis_server: RunningServer) -> None:
    async with FaultProxy(redis_server.port) as proxy, asyncio.timeout(20), Channels(proxy.url, history=0) as channels:
        await channels.connect()
        proxy.to_client.faults = Faults(hold_at=b"subscribe")
        channels.register("late", "goal", Noted())
        with pytest.raises(BrokerError, match=r"not confirmed within 0.2 s"):
            await channels.connect(0.2)
        proxy.heal()
        await channels.connect()


@pytest.mark.parametrize("connected", [False, True])
async def test_callbacks_of_a_channel_make_no_gap_for_its_other_readers(
    redis_server: RunningServer, connected: bool
) -> None:
    async with asyncio.timeout(20), Channels(redis_server.url) as there, Channels(redis_server.url) as here:
        for number in range(3):
            await there.publish("news", "told", number)
        if connected:
            await here.connect()
        noted = Noted()
        here.register("news", "*", noted)
        here.register("news", "gap", noted)
        await here.connect()
        await there.publish("news", "told", 3)
        await eventually(lambda: noted.events == [("told", 3)])
        async with here.listen("news", after="earliest") as events:
            got = [await anext(events) for _ in range(4)]
        assert [event.data for event in got if isinstance(event, ChannelEvent)] == list(range(4))


async def test_the_status_channel_is_not_for_handlers(redis_server: RunningServer) -> None:
    async with asyncio.timeout(20), Channels(redis_server.url, namespace="shop:") as channels:
        channels.open("server")  # as any other, as long as no node tells of itself there
        await channels.connect()
        for name in ("server", "shop:server"):
            with pytest.raises(BadChannel, match="where the nodes tell of themselves"):
                channels.open(name)
        async with channels.listen("server", "down") as events:
            await channels.publish("server", "down", {"node": "a test"})
            event = await anext(events)
        assert isinstance(event, ChannelEvent)
        assert event.data == {"node": "a test"}


@pytest.mark.parametrize("kept", [0, 3])
async def test_what_others_publish_before_the_server_has_confirmed_comes_too(
    redis_server: RunningServer, kept: int
) -> None:
    async with (
        FaultProxy(redis_server.port) as proxy,
        Channels(proxy.url) as channels,
        Channels(redis_server.url) as other,
        asyncio.timeout(20),
    ):
        for number in range(kept):
            await other.publish("late", "before", number)
        await channels.connect()
        proxy.to_client.faults = Faults(hold_at=b"subscribe")
        noted = Noted()
        late = channels.register("late", "*", noted)
        channels.register("late", "gap", noted)
        await channels.pubsub.count()  # what was asked before that is answered: where the channel stands
        await other.publish("late", "goal", 1)
        assert noted.events == []
        proxy.heal()
        await late.ready()
        await eventually(lambda: noted.events)
        assert noted.events == [("goal", 1)]
