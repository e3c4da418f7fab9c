"""The link to Redis breaks in many ways, and heals: what is subscribed then is what is wanted, and callbacks fire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("waterspout_redis")

from waterspout_channels import Channel, Channels, StatusType
from waterspout_core import BrokerError
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually

CONNECTING, CONNECTED, DISCONNECTED, CLOSED = list(StatusType)[1:]

with_and_without_history = pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])


class Noted:
    """A callback that notes the data that it is called with."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def __call__(self, channel: Channel, event: str, data: Any) -> None:
        self.data.append(data)


@asynccontextmanager
async def connected(url: str, history: int, **options: Any) -> AsyncIterator[tuple[Channels, list[StatusType]]]:
    """Channels that are connected, and what their status has been since."""
    async with asyncio.timeout(60), Channels(url, history=history, **options) as channels:
        told: list[StatusType] = []
        await channels.connect()
        channels.add_status_listener(told.append)
        yield channels, told


def subscribed(server: RunningServer) -> list[str]:
    return sorted(name.decode() for name in server.call("PUBSUB", "CHANNELS"))


async def wanted(server: RunningServer, channels: Channels) -> None:
    """Return when the server says that what is wanted is subscribed, and nothing else."""
    await eventually(lambda: subscribed(server) == sorted(map(channels.prefixed, channels)))


@with_and_without_history
async def test_f11_d27_after_a_break_all_that_is_registered_is_there_again_and_nobody_is_called_twice(
    history: int, fresh_redis_server: RunningServer
) -> None:
    server = fresh_redis_server
    async with connected(server.url, history) as (channels, told):
        noted, gaps, status = Noted(), Noted(), Noted()
        for name in ("a", "b", "c"):
            channels.register(name, "goal", noted)
        channels.register("a", "gap", gaps)
        channels.register("server", "reconnect", status)
        await wanted(server, channels)
        await channels.publish("a", "goal", "before")
        await eventually(lambda: noted.data == ["before"])
        server.call("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: told == [DISCONNECTED, CONNECTED])
        await wanted(server, channels)
        for number, name in enumerate("abcabc"):
            await channels.publish(name, "goal", number)
        await eventually(lambda: len(noted.data) == 7)
        await eventually(lambda: status.data)
        assert sorted(noted.data[1:]) == list(range(6))  # in order in each channel
        assert gaps.data == ([] if history else [{"missed": None}])
        assert status.data == [{"node": channels.node}]


async def test_f11_with_a_history_nothing_that_was_published_meanwhile_is_lost(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server
    async with (
        FaultProxy(server.port) as proxy,
        connected(proxy.url, 1000) as (channels, told),
        Channels(server.url, history=1000) as other,
    ):
        noted = Noted()
        await channels.register("match", "goal", noted).ready()
        for number in range(30):
            await other.publish("match", "goal", number)
            if number in (10, 20):
                server.call("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: len(noted.data) == 30)
        assert noted.data == list(range(30))
        await eventually(lambda: told[-1:] == [CONNECTED])


@with_and_without_history
async def test_f11_a_server_that_was_restarted_is_asked_for_all_again(
    history: int, fresh_redis_server: RunningServer
) -> None:
    server = fresh_redis_server
    async with connected(server.url, history) as (channels, told):
        kept, given_up, new, gaps = Noted(), Noted(), Noted(), Noted()
        for number in range(20):
            channels.register(f"kept{number}", "goal", kept)
            await channels.register(f"kept{number}", "gap", gaps).ready()
            channels.register(f"given-up{number}", "goal", given_up)
        await wanted(server, channels)
        server.stop()
        await channels.wait_for(DISCONNECTED)
        # The desired state is changed while nobody is there to be asked for it.
        for number in range(20):
            channels.register(f"new{number}", "goal", new)
            channels.unregister(f"given-up{number}", "goal", given_up)
        with pytest.raises(BrokerError):
            await channels.connect(0.2)
        server.start()
        await channels.connect(30)
        assert set(told) == {DISCONNECTED, CONNECTING, CONNECTED}
        await eventually(lambda: len(gaps.data) == 20)  # it has lost its data, and is told so
        for number in range(20):
            await channels.register(f"new{number}", "goal", new).ready()
            for name in ("kept", "given-up", "new"):
                await channels.publish(f"{name}{number}", "goal", number)
        await eventually(lambda: len(kept.data) == len(new.data) == 20)
        assert (sorted(kept.data), given_up.data, sorted(new.data)) == (list(range(20)), [], list(range(20)))
        assert gaps.data == [{"missed": None}] * 20


async def test_f12_a_second_break_while_all_is_being_restored_takes_nothing_away(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server
    async with connected(server.url, 0, linger=0.2) as (channels, _):
        noted = Noted()
        for number in range(3000):
            channels.register(f"c{number}", "goal", noted)
        await wanted(server, channels)
        for round_ in range(10):
            server.call("CLIENT", "KILL", "TYPE", "pubsub")
            channels.register(f"new{round_}", "goal", noted)
            channels.unregister(f"c{round_}", "goal", noted)
            # Sooner or later within the restoring.
            await eventually(lambda: len(server.call("PUBSUB", "CHANNELS")) > round_ * 300)  # noqa: B023
        await channels.wait_for(CONNECTED)
        await wanted(server, channels)
        assert len(channels) == 3001
        await channels.publish("c2999", "goal", 1)
        await channels.publish("new9", "goal", 2)
        await channels.publish("c0", "goal", 3)
        await eventually(lambda: len(noted.data) == 2)
        assert sorted(noted.data) == [1, 2]


async def test_f13_d26_the_first_connect_is_tried_like_all_later_ones(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server
    server.stop()
    async with Channels(server.url) as channels:
        told: list[StatusType] = []
        channels.add_status_listener(told.append)
        noted, up = Noted(), Noted()
        channels.register("match", "goal", noted)
        channels.register("server", "up", up)
        with pytest.raises(BrokerError, match=r"within 1 s: .*[Cc]onnect"):
            await channels.connect(1)
        assert told[0] is CONNECTING
        assert channels.status is DISCONNECTED
        server.start()
        async with asyncio.timeout(20):
            await channels.wait_for(CONNECTED)
        await wanted(server, channels)
        await channels.publish("match", "goal", 1)
        await eventually(lambda: (noted.data, up.data) == ([1], [{"node": channels.node}]))


async def test_f13_the_back_off_begins_anew_after_each_confirmed_subscribe(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server
    async with connected(server.url, 0) as (_, told):
        loop = asyncio.get_running_loop()
        took = []
        for _ in range(6):
            began, before = loop.time(), len(told)
            server.call("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda: told[before:] == [DISCONNECTED, CONNECTED])  # noqa: B023
            took.append(loop.time() - began)
        assert max(took) < 2, "the sixth in a row would be 1.6 s at least, and the sum of all over 3"
        assert sum(took) < 3


async def test_f31_connect_waits_for_a_server_that_does_not_answer_yet(fresh_redis_server: RunningServer) -> None:
    async with FaultProxy(fresh_redis_server.port) as proxy, Channels(proxy.url) as channels, asyncio.timeout(30):
        proxy.disturb(Faults(black_hole=True))
        connecting = asyncio.create_task(channels.connect(None))
        await eventually(lambda: proxy.connections)
        assert channels.status is CONNECTING
        assert not connecting.done()
        proxy.heal()
        await connecting
        await wanted(fresh_redis_server, channels)


async def test_d23_publishing_while_the_broker_is_away_tells_so(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server
    async with connected(server.url, 0) as (channels, _):
        noted = Noted()
        await channels.register("match", "goal", noted).ready()
        server.stop()
        with pytest.raises(BrokerError):
            await channels.publish("match", "goal", 1)
        await channels.wait_for(DISCONNECTED)
        server.start()
        await channels.wait_for(CONNECTED)
        await channels.publish("match", "goal", 2)
        await eventually(lambda: noted.data)
        assert noted.data == [2]


async def test_a_password_that_is_wrong_is_told_at_once_and_all_is_well_when_it_has_become_right(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server
    server.call("ACL", "SETUSER", "me", "on", ">right", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://me:wrong@")
    async with Channels(url) as channels, asyncio.timeout(30):
        noted = Noted()
        channels.register("match", "goal", noted)
        with pytest.raises(BrokerError, match=r"(?i)password|WRONGPASS|AUTH"):
            await channels.connect()
        assert channels.status is DISCONNECTED
        server.call("ACL", "SETUSER", "me", ">wrong")
        await channels.wait_for(CONNECTED)
        await channels.publish("match", "goal", 1)
        await eventually(lambda: noted.data)


@with_and_without_history
async def test_d28_d30_close_while_the_broker_is_away_leaves_nothing_behind(
    history: int, fresh_redis_server: RunningServer
) -> None:
    server = fresh_redis_server
    channels = Channels(server.url, history=history)
    channels.register("match", "goal", Noted())
    await channels.connect()
    server.stop()
    await channels.wait_for(DISCONNECTED)
    async with asyncio.timeout(5):
        await channels.close()
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in scheduled if not timer.cancelled()] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    server.start()
    await asyncio.sleep(0.3)  # it would have come back by now
    assert subscribed(server) == []
    assert channels.status is CLOSED


@with_and_without_history
async def test_d30_close_leaves_no_subscription_and_no_connection(
    history: int, fresh_redis_server: RunningServer
) -> None:
    server = fresh_redis_server
    channels = Channels(server.url, history=history)
    for number in range(100):
        channels.register(f"c{number}", "goal", Noted())
    await channels.connect()
    assert len(subscribed(server)) == 101
    await channels.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await eventually(lambda: subscribed(server) == [])
    await eventually(lambda: b"name=waterspout" not in server.call("CLIENT", "LIST"))
