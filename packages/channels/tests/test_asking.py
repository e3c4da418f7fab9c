"""Asking where a channel stands: what comes between the question, the answer, and the confirmation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("waterspout_redis")

from waterspout_channels import Channel, Channels, StatusType
from waterspout_core import BrokerError
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually


class Noted:
    """A callback that notes the data that it is called with, and gaps as None."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def __call__(self, channel: Channel, event: str, data: Any) -> None:
        self.data.append(None if event == "gap" else data)

    def register(self, channels: Channels, name: str) -> Channel:
        channels.register(name, "goal", self)
        return channels.register(name, "gap", self)


@pytest.mark.parametrize("kept", [0, 3], ids=["new", "known"])
async def test_f30_where_it_stands_is_not_asked_again_behind_what_was_published_since(
    kept: int, redis_server: RunningServer
) -> None:
    """The connection breaks when all is executed and nothing answered."""
    async with (
        FaultProxy(redis_server.port) as proxy,
        Channels(redis_server.url) as other,
        Channels(proxy.url) as channels,
        asyncio.timeout(20),
    ):
        for number in range(kept):
            await other.publish("match", "goal", number)
        await channels.connect()
        proxy.to_client.faults = Faults(black_hole=True)
        noted = Noted()
        match = noted.register(channels, "match")
        published = channels.publish("match", "goal", "after")
        await eventually(lambda: redis_server.call("XLEN", "waterspout:log:{match}") == kept + 1)
        proxy.reset()
        proxy.heal()
        with pytest.raises(BrokerError):
            await published  # it may have been done, and was
        await match.ready()
        await other.publish("match", "goal", "end")
        await eventually(lambda: "end" in noted.data)
        assert noted.data in (["after", "end"], [None, "end"])


async def test_f30_what_overtakes_the_question_is_not_lost_in_silence(redis_server: RunningServer) -> None:
    """Large messages go on a connection of their own."""
    async with FaultProxy(redis_server.port) as proxy, Channels(proxy.url) as channels, asyncio.timeout(20):
        await channels.connect()
        await channels.publish("other", "goal", "x" * 300_000)  # both connections are there
        await channels.publish("match", "goal", "before")
        # A question that is slow on its way: the shared connection is made anew, the other one is there.
        client = channels.pubsub._client  # type: ignore[attr-defined]
        client._shared.connection.abort(client._shared.connection.lost("a test"))
        noted = Noted()
        match = noted.register(channels, "match")
        await channels.publish("match", "goal", "y" * 300_000)
        await match.ready()
        await channels.publish("match", "goal", "end")
        await eventually(lambda: "end" in noted.data)
        assert noted.data in (["y" * 300_000, "end"], [None, "end"])


async def test_f30_many_messages_that_overtake_the_question_are_not_lost_in_silence(
    redis_server: RunningServer,
) -> None:
    async with FaultProxy(redis_server.port) as proxy, Channels(proxy.url) as channels, asyncio.timeout(20):
        await channels.connect()
        await channels.publish("other", "goal", "x" * 300_000)  # both connections are there
        await channels.publish("match", "goal", "before")
        client = channels.pubsub._client  # type: ignore[attr-defined]
        client._shared.connection.abort(client._shared.connection.lost("a test"))
        noted = Noted()
        match = noted.register(channels, "match")
        first = channels.publish("match", "goal", 1)
        await asyncio.gather(first, *(channels.publish(f"c{n}", "goal", "x" * 10_000) for n in range(70)))
        await match.ready()
        await channels.publish("match", "goal", "end")
        await eventually(lambda: "end" in noted.data)
        assert noted.data in ([1, "end"], [None, "end"])


async def test_f30_who_is_told_late_where_it_stands_misses_nothing_of_ones_own(redis_server: RunningServer) -> None:
    async with FaultProxy(redis_server.port) as proxy, Channels(proxy.url) as channels, asyncio.timeout(20):
        await channels.connect()
        await channels.publish("match", "goal", 0)
        proxy.to_client.faults = Faults(delay=1.2)
        noted = Noted()
        noted.register(channels, "match")
        await channels.publish("match", "goal", 1)
        proxy.heal()
        await eventually(lambda: 1 in noted.data)
        assert noted.data == [None, 1]


async def test_who_registers_on_a_channel_that_was_refused_is_heard_when_it_is_allowed(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server
    server.call("ACL", "SETUSER", "me", "on", ">secret", "~*", "+@all", "resetchannels", "&server", "&waterspout*")
    async with (
        Channels(server.url.replace("redis://", "redis://me:secret@")) as channels,
        Channels(server.url) as other,
        asyncio.timeout(20),
    ):
        await channels.connect()
        with pytest.raises(BrokerError, match="NOPERM"):
            await channels.open("match").ready()
        server.call("ACL", "SETUSER", "me", "allchannels")
        noted = Noted()
        noted.register(channels, "match")
        for _ in range(100):
            await other.publish("match", "goal", 1)
            await asyncio.sleep(0.01)
            if noted.data:
                break
        assert noted.data


async def test_f37_a_channel_of_which_nothing_was_known_when_its_server_lost_all_is_a_gap(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server
    async with FaultProxy(server.port) as proxy, Channels(proxy.url) as channels, asyncio.timeout(20):
        await channels.connect()
        proxy.to_client.faults = Faults(hold_at=b"*3\r\n$9\r\nsubscribe")
        noted = Noted()
        match = noted.register(channels, "match")
        await channels.publish("match", "goal", "lost")
        async with Channels(server.url) as other:
            proxy.refuse()
            proxy.hang_up()
            server.call("FLUSHALL")
            await other.publish("match", "goal", "kept")
            proxy.heal()
            await match.ready()
            await other.publish("match", "goal", "end")
            await eventually(lambda: "end" in noted.data)
        assert noted.data == [None, "kept", "end"]


async def test_f31_who_never_called_connect_is_told_of_a_break_too(redis_server: RunningServer) -> None:
    async with (
        FaultProxy(redis_server.port) as proxy,
        Channels(proxy.url) as channels,
        Channels(redis_server.url) as other,
        asyncio.timeout(30),
    ):
        await channels.register("first", "goal", Noted()).ready()  # the link is up
        proxy.disturb(Faults(black_hole=True))
        noted = Noted()
        match = noted.register(channels, "match")
        assert channels.status is StatusType.initialised
        await asyncio.sleep(0.2)
        await other.publish("match", "goal", 1)
        await asyncio.sleep(1.1)  # a broker that tells within a second where the channel stands loses nothing
        proxy.reset()
        proxy.heal()
        await match.ready()
        await other.publish("match", "goal", 2)
        await eventually(lambda: 2 in noted.data)
        assert noted.data == [None, 2]


async def test_who_listens_again_gets_nothing_of_the_time_between(
    redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waterspout_channels._open_stores._GRACE", 0.05)
    async with (
        Channels(redis_server.url, linger=0.05) as channels,
        Channels(redis_server.url) as other,
        asyncio.timeout(20),
    ):
        await channels.connect()
        before = channels.listen("match")
        await other.publish("match", "goal", 0)
        await anext(before)
        await before.aclose()
        await eventually(lambda: "match" not in [store.channel for store in channels.stores])
        await other.publish("match", "goal", 1)
        again = channels.listen("match")
        await channels.publish("match", "goal", 2)
        event = await anext(again)
        assert event.data == 2  # type: ignore[union-attr]
        assert before.position is not None
        await again.aclose()
