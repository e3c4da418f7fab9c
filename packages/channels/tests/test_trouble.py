"""What goes wrong around callbacks, readers and locks, what becomes of the others then, and closing meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("waterspout_redis")

from waterspout_channels import Channel, ChannelEvent, Channels, Listening, StatusType
from waterspout_core import BadChannel, BrokerError
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually


class Noted:
    """A callback that notes the data that it is called with."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def __call__(self, channel: Channel, event: str, data: Any) -> None:
        self.data.append(data)


def timers() -> list[asyncio.TimerHandle]:
    """What the loop still has to do some time."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [timer for timer in scheduled if not timer.cancelled()]


def locked(server: RunningServer) -> list[bytes]:
    keys: list[bytes] = server.call("KEYS", "waterspout:lock:*")
    return keys


# Callbacks


async def test_d19_a_plain_callback_that_raises_cancelled_error_harms_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    async with Channels() as channels, asyncio.timeout(10):
        before, behind = Noted(), Noted()
        channels.register("match", "goal", before)
        match = channels.register("match", "goal", lambda channel, event, data: future.result())
        channels.register("match", "goal", behind)
        await channels.connect()
        for number in range(3):
            await channels.publish("match", "goal", number)
        await eventually(lambda: behind.data)
        assert before.data == behind.data == [0, 1, 2]
        assert match.failures == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3


async def test_a_callback_that_cannot_be_known_again_is_refused_and_leaves_nothing_behind() -> None:
    @dataclass
    class Callback:  # one that can be compared has no hash
        name: str

        def __call__(self, channel: Channel, event: str, data: Any) -> None: ...

    async with Channels() as channels:
        noted = Noted()
        match = channels.register("match", "goal", noted)
        with pytest.raises(TypeError, match="unhashable"):
            channels.register("match", "foul", Callback("a"))
        assert match.events == ("goal",)
        channels.unregister("match", "goal", noted)
        assert "match" not in channels


@pytest.mark.parametrize("namespace", ["aa", "ns:"])
async def test_d22_a_name_with_the_namespace_twice_is_the_same_for_all(
    namespace: str, redis_server: RunningServer
) -> None:
    status_channel = f"{namespace}{namespace}status"
    async with (
        Channels(redis_server.url, namespace=namespace, status_channel=status_channel) as channels,
        asyncio.timeout(10),
    ):
        noted, status = Noted(), Noted()
        match = channels.register(f"{namespace}{namespace}match", "goal", noted)
        channels.register(channels.status_channel.name, "up", status)
        await channels.connect()
        assert match.name in channels
        subscribed = {name.decode() for name in redis_server.call("PUBSUB", "CHANNELS")}
        assert subscribed == {channels.prefixed(name) for name in channels}
        await channels.publish(match.name, "goal", 1)
        await eventually(lambda: noted.data == [1] and status.data)
        assert channels.unregister(match.name, "goal", noted) is match
        for use in (channels.open, lambda name: channels.publish(name, "goal"), lambda name: channels.listen(name)):
            with pytest.raises(BadChannel):
                use(namespace)  # which is no name


# Readers


async def test_f31_who_listens_waits_for_a_broker_that_is_away_for_long(
    fresh_redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waterspout_channels._open_stores._GRACE", 0.2)
    server = fresh_redis_server
    server.stop()
    async with Channels(server.url, linger=0.2) as channels, asyncio.timeout(30):

        async def first(listening: Listening) -> Any:
            return await anext(listening)

        reading = asyncio.create_task(first(channels.listen("match")))
        await eventually(lambda: len(channels.stores))
        first_store = next(iter(channels.stores))
        await eventually(lambda: first_store not in channels.stores)  # it was let go
        server.start()
        while not reading.done():
            await channels.publish("match", "goal", 1)
            await asyncio.sleep(0.05)
        assert isinstance(await reading, ChannelEvent)


@pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])
async def test_f11_who_registers_in_a_break_that_nobody_has_noticed_yet_is_told_of_it(
    history: int, redis_server: RunningServer
) -> None:
    async with (
        FaultProxy(redis_server.port) as proxy,
        Channels(proxy.url, history=history) as channels,
        Channels(redis_server.url, history=history) as other,
        asyncio.timeout(30),
    ):
        noted, gaps = Noted(), Noted()
        await channels.connect()
        proxy.disturb(Faults(black_hole=True))
        channels.register("match", "goal", noted)
        match = channels.register("match", "gap", gaps)
        assert channels.status is StatusType.connected
        await other.publish("match", "goal", 1)
        await asyncio.sleep(1.1)  # a broker that tells within a second where the channel stands loses nothing
        proxy.reset()
        proxy.heal()
        await match.ready()
        await other.publish("match", "goal", 2)
        await eventually(lambda: noted.data == [2])
        assert gaps.data[:1] == [{"missed": None}]


@pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])
async def test_f11_what_is_refused_when_it_is_restored_is_asked_for_again(
    history: int, fresh_redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waterspout_core._redis._pubsub._RETRY", 0.2)
    server = fresh_redis_server
    server.call("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://me:secret@")
    async with (
        Channels(url, history=history) as channels,
        Channels(server.url, history=history) as other,
        asyncio.timeout(30),
    ):
        noted, gaps = Noted(), Noted()
        status: list[StatusType] = []
        channels.register("match", "goal", noted)
        channels.register("match", "gap", gaps)
        await channels.connect()
        channels.add_status_listener(status.append)
        server.call("ACL", "SETUSER", "me", "resetchannels", "&server", "&waterspout*")  # ends its connections
        await eventually(lambda: status == [StatusType.disconnected, StatusType.connected])
        await other.publish("match", "goal", 1)
        before = len(gaps.data)  # one of the break itself, where there is no history
        server.call("ACL", "SETUSER", "me", "allchannels")
        await eventually(lambda: server.call("PUBSUB", "NUMSUB", "match")[1] == 1)
        await other.publish("match", "goal", 2)
        await eventually(lambda: 2 in noted.data)
        assert noted.data == ([1, 2] if history else [2])
        assert gaps.data[before:] == ([] if history else [{"missed": None}])  # that is 1
    assert timers() == []


async def test_who_was_refused_the_status_channel_is_connected_when_it_is_allowed(
    fresh_redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waterspout_channels._presence._RETRY", 0.2)
    server = fresh_redis_server
    server.call("ACL", "SETUSER", "me", "on", ">secret", "~*", "+@all", "resetchannels", "&waterspout*")
    async with Channels(server.url.replace("redis://", "redis://me:secret@")) as channels, asyncio.timeout(20):
        status = Noted()
        channels.register("server", "up", status)
        with pytest.raises(BrokerError, match="NOPERM"):
            await channels.connect()
        server.call("ACL", "SETUSER", "me", "allchannels")
        await channels.wait_for(StatusType.connected)
        await eventually(lambda: status.data == [{"node": channels.node}])
    assert timers() == []


# Closing


async def test_d30_a_refused_channel_that_has_readers_leaves_no_timer(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server
    server.call("ACL", "SETUSER", "me", "on", ">secret", "~*", "+@all", "resetchannels", "&server", "&waterspout*")
    channels = Channels(server.url.replace("redis://", "redis://me:secret@"))
    channels.register("refused", "goal", Noted())
    with pytest.raises(BrokerError, match="'refused' is not subscribed: NOPERM"):
        await channels.connect()
    assert channels.status is StatusType.connected
    async with channels.open("refused-too").subscribe():
        await eventually(lambda: any("_open_again" in repr(timer) for timer in timers()))
        await channels.close()
        assert timers() == []


async def test_d32_who_closes_it_twice_at_once_has_said_goodbye_all_the_same(redis_server: RunningServer) -> None:
    async with Channels(redis_server.url) as other, asyncio.timeout(10):
        here, there = Noted(), Noted()
        await other.connect()
        other.register("server", "down", there)
        channels = Channels(redis_server.url, node="me")
        channels.register("server", "down", here)
        await channels.connect()
        await asyncio.gather(channels.close(), channels.close())
        await eventually(lambda: there.data)
        assert here.data == there.data == [{"node": "me"}]


async def test_d31_closing_gives_no_lock_to_those_who_wait(redis_server: RunningServer) -> None:
    for _ in range(5):
        channels = Channels(redis_server.url)
        held = [channels.lock(f"job{number}") for number in range(10)]
        await asyncio.gather(*(lock.acquire() for lock in held))
        waiting = [asyncio.create_task(channels.lock(lock.name, sleep=0.05).acquire()) for lock in held]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await channels.aclose()
            await asyncio.wait(waiting)
        assert all(isinstance(task.exception(), BrokerError) for task in waiting)
        assert locked(redis_server) == []


async def test_d31_a_claim_that_is_under_way_when_it_is_closed_is_taken_back(redis_server: RunningServer) -> None:
    async with FaultProxy(redis_server.port) as proxy, asyncio.timeout(10):
        channels = Channels(proxy.url)
        async with channels.lock("warm"):
            pass
        proxy.to_client.faults = Faults(delay=0.1)
        claiming = asyncio.create_task(channels.lock("job").acquire())
        await eventually(lambda: locked(redis_server))
        await channels.aclose()
        with pytest.raises(BrokerError, match="closed"):
            await claiming
        assert locked(redis_server) == []


async def test_d31_closing_does_not_wait_long_for_a_broker_that_does_not_answer(redis_server: RunningServer) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        channels = Channels(proxy.url)
        locks = [channels.lock(f"job{number}") for number in range(5)]
        await asyncio.gather(*(lock.acquire() for lock in locks))
        proxy.disturb(Faults(black_hole=True))
        began = time.monotonic()
        await channels.aclose()
        assert time.monotonic() - began < 3
        assert not any(lock.locked() for lock in locks)
        assert asyncio.all_tasks() - {asyncio.current_task()} <= proxy_tasks()


def proxy_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "proxy.py" in repr(task)}
