"""The watchdog: a link on which nothing comes is silent, which is no fault, or deaf, which is mended and told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from waterspout_core import Gap, Health, Message, PubSub, RedisStore, open_pubsub
from waterspout_core._redis import _watchdog
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run


@pytest.fixture
def two_servers(redis_binary: ServerBinary) -> Iterator[tuple[RunningServer, RunningServer]]:
    with RunningServer(redis_binary) as first, RunningServer(redis_binary) as second:
        yield first, second


@pytest.fixture(autouse=True)
def a_probe_is_soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watchdog, "_PROBE_TIMEOUT", 0.3)


def states(told: list[Health]) -> list[str]:
    return [health.state for health in told]


def probes(server: RunningServer) -> int:
    """How often something was published there that nobody else did."""
    stats = server.call("INFO", "commandstats").decode().partition("cmdstat_publish:calls=")[2]
    return int(stats.partition(",")[0] or 0)


def timers() -> list[Any]:
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if not handle.cancelled() and "Watchdog" in repr(handle)]


def test_f10_a_deaf_link_is_found_told_and_mended(two_servers: tuple[RunningServer, RunningServer]) -> None:
    old, new = two_servers

    async def use() -> None:
        told: list[Health] = []
        async with (
            FaultProxy(old.port) as proxy,
            RedisStore("news", proxy.url, silence=0.2, on_health=told.append) as store,
        ):
            await store.submit("1")
            await eventually(lambda: store.log.top == 1)
            # The name leads to another server now, and the old one answers as before.
            proxy.target = ("127.0.0.1", new.port)
            old.call("CLIENT", "KILL", "TYPE", "normal")
            position = await store.submit("2", key="k")  # sent again if that was too early
            assert position is not None
            assert position.epoch != store.log.epoch
            await eventually(lambda: store.log.position == position)
            assert store.log.newest(9)[1] == [Message("1"), Gap(), Message("2")]
            await eventually(lambda: states(told)[-2:] == ["deaf", "connected"])
            assert states(told).count("deaf") == 1
            assert old.call("PUBSUB", "CHANNELS") == []
            await store.submit("3")
            await eventually(lambda: store.log.newest(1)[1] == [Message("3")])

    run(use())


def test_f10_a_deaf_link_without_history_is_told_as_a_gap(two_servers: tuple[RunningServer, RunningServer]) -> None:
    old, new = two_servers

    async def use() -> None:
        got: list[Any] = []
        async with FaultProxy(old.port) as proxy, open_pubsub(proxy.url, silence=0.2) as pubsub:
            pubsub.add_client(lambda channel, message: got.append(message))
            await pubsub.subscribe("news")
            proxy.target = ("127.0.0.1", new.port)
            await pubsub.publish("news", "nobody hears it")
            await eventually(lambda: got == [Gap()])
            assert pubsub.health.state == "connected"
            await pubsub.publish("news", "heard")
            await eventually(lambda: got == [Gap(), b"heard"])

    run(use())


def test_f14_a_silent_link_is_tested_and_left_alone(redis_server: RunningServer) -> None:
    async def use() -> None:
        told: list[Health] = []
        async with (
            FaultProxy(redis_server.port) as proxy,
            RedisStore("news", proxy.url, silence=0.1, on_health=told.append),
        ):
            await eventually(lambda: states(told) == ["connecting", "connected"])
            before, connections = probes(redis_server), proxy.connections
            await eventually(lambda: probes(redis_server) >= before + 3)
            assert proxy.connections == connections
            assert states(told) == ["connecting", "connected"]

    run(use())


def test_f10_a_probe_whose_publisher_breaks_says_nothing_about_the_link(redis_server: RunningServer) -> None:
    async def use() -> None:
        told: list[Health] = []
        async with (
            FaultProxy(redis_server.port) as proxy,
            RedisStore("news", proxy.url, silence=0.2, on_health=told.append),
        ):
            for _ in range(3):
                proxy.to_server.faults = Faults(cut_at=b"*3\r\n$7\r\nPUBLISH")
                made = proxy.connections
                await eventually(lambda before=made: proxy.live == 1 or proxy.connections > before)
                proxy.heal()
                before = probes(redis_server)
                await eventually(lambda before=before: probes(redis_server) > before)
            assert states(told) == ["connecting", "connected"]

    run(use())


def test_f10_a_probe_of_a_link_that_was_made_anew_says_nothing_about_the_new_one(
    redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watchdog, "_PROBE_TIMEOUT", 5.0)

    async def use() -> None:
        told: list[Health] = []
        async with (
            FaultProxy(redis_server.port) as proxy,
            RedisStore("news", proxy.url, silence=0.2, on_health=told.append),
        ):
            published = probes(redis_server)
            proxy.to_server.faults = Faults(hold_at=b"*3\r\n$7\r\nPUBLISH")
            await eventually(lambda: len(redis_server.call("PUBSUB", "CHANNELS", "waterspout:probe:*")) == 1)
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda: states(told) == ["connecting", "connected", "disconnected", "connected"])
            proxy.heal()
            await eventually(lambda: probes(redis_server) > published + 1)  # the next one, too
            assert states(told)[-1] == "connected"
            assert "deaf" not in states(told)

    run(use())


def test_a_link_on_which_something_comes_is_not_tested(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore("news", redis_server.url, silence=0.5) as store:
            redis_server.call("CONFIG", "RESETSTAT")
            for _ in range(7):
                await store.submit("x")
                await asyncio.sleep(0.1)  # longer than the silence, in all
            assert store.pubsub.health.silent < 0.5
            # The functions publish as well; a probe would have been one more.
            assert probes(redis_server) <= 7

    run(use())


def test_f14_a_server_that_does_not_take_the_probe_says_nothing_about_the_link(
    fresh_redis_server: RunningServer,
) -> None:
    server = fresh_redis_server

    async def use() -> None:
        told: list[Health] = []
        async with RedisStore("news", server.url, silence=0.1, on_health=told.append) as store:
            server.call("CLIENT", "PAUSE", "700", "WRITE")
            await store.submit("x")  # once it goes on
            await eventually(lambda: store.log.top == 1)
            assert states(told) == ["connecting", "connected"]

    run(use())


def test_f10_without_the_right_to_probe_the_link_is_left_alone(
    fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "default", "resetchannels", "&news")

    async def use() -> None:
        async with RedisStore("news", fresh_redis_server.url, silence=0.1) as store:
            await eventually(lambda: "cannot be tested" in caplog.text)
            assert store.pubsub.health.state == "connected"
            await store.submit("x")
            await eventually(lambda: store.log.top == 1)

    with caplog.at_level(logging.WARNING):
        run(use())
    assert caplog.text.count("cannot be tested") == 1


def test_f9_health_tells_every_change_and_since_when(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server

    async def use() -> None:
        told: list[Health] = []
        pubsub = open_pubsub(server.url, on_health=told.append)
        assert pubsub.health.state == "disconnected"
        await pubsub.subscribe("news")
        await eventually(lambda: states(told) == ["connecting", "connected"])
        since = pubsub.health.seconds
        await eventually(lambda: pubsub.health.seconds > since)
        server.stop()
        await eventually(lambda: pubsub.health.state == "disconnected")
        assert pubsub.health.seconds < 5
        server.start()
        await eventually(lambda: pubsub.health.state == "connected")
        await pubsub.aclose()
        assert pubsub.health.state == told[-1].state == "closed"
        assert all(one != other for one, other in zip(states(told), states(told)[1:], strict=False))

    run(use())


def test_a_callback_that_fails_is_logged_and_harms_nothing(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(health: Health) -> None:
        raise RuntimeError("of the callback")

    async def use() -> None:
        async with RedisStore("news", redis_server.url, on_health=fail) as store:
            await store.submit("x")
            await eventually(lambda: store.log.top == 1)

    run(use())
    assert "of the callback" in caplog.text


def test_health_listeners_are_told_each_change_until_they_are_removed(
    fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    first: list[Health] = []
    second: list[Health] = []
    gone: list[Health] = []

    def fail(health: Health) -> None:
        raise RuntimeError("of the listener")

    async def use() -> None:
        pubsub = open_pubsub(fresh_redis_server.url, on_health=first.append)
        for listener in [fail, second.append, gone.append] * 2:  # twice is once
            pubsub.add_health_listener(listener)
        await pubsub.subscribe("news")
        await eventually(lambda: states(gone) == ["connecting", "connected"])
        pubsub.remove_health_listener(gone.append)
        pubsub.remove_health_listener(gone.append)
        fresh_redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: states(second)[2:] == ["disconnected", "connected"])
        await pubsub.aclose()
        assert states(first) == states(second) == [*states(gone), "disconnected", "connected", "closed"]

    run(use())
    assert len(gone) == 2
    assert caplog.text.count("a health listener of") == 5  # and it was called again


def test_nothing_is_watched_any_more_after_closing(redis_server: RunningServer) -> None:
    async def use() -> None:
        store = RedisStore("news", redis_server.url, silence=0.1)
        await store.ready()
        assert len(timers()) == 1
        await store.aclose()
        assert timers() == []
        store.open()
        store.close()
        assert timers() == []

    run(use())


@pytest.mark.parametrize("silence", [0, -1])
def test_a_silence_of_no_time_is_refused(silence: float) -> None:
    with pytest.raises(ValueError, match="silence"):
        open_pubsub("redis://127.0.0.1:1", silence=silence)


async def deaf(pubsub: PubSub) -> None:
    await eventually(lambda: pubsub.health.state == "deaf")


def test_a_link_stays_deaf_until_there_is_a_better_one(two_servers: tuple[RunningServer, RunningServer]) -> None:
    old, new = two_servers

    async def use() -> None:
        async with FaultProxy(old.port) as proxy, open_pubsub(proxy.url, silence=0.1, connect_timeout=0.2) as pubsub:
            await pubsub.subscribe("news")
            proxy.target = ("127.0.0.1", new.port)
            await pubsub.publish("news", "x")
            proxy.refuse()
            await deaf(pubsub)
            await eventually(lambda: pubsub.health.seconds > 0.3)
            assert pubsub.health.state == "deaf"
            proxy.disturb(Faults())
            proxy.heal()
            await eventually(lambda: pubsub.health.state == "connected")

    run(use())


def test_an_outage_is_one_however_often_it_is_tried_to_end_it(fresh_redis_server: RunningServer) -> None:
    told: list[Health] = []

    async def use() -> None:
        async with open_pubsub(fresh_redis_server.url, on_health=told.append) as pubsub:
            await pubsub.subscribe("a")
            fresh_redis_server.stop()
            await eventually(lambda: pubsub.health.state == "disconnected")
            await eventually(lambda: pubsub.health.seconds > 1.5)  # some attempts later
            fresh_redis_server.start()
            await eventually(lambda: pubsub.health.state == "connected")

    run(use())
    assert [health.state for health in told] == ["connecting", "connected", "disconnected", "connected", "closed"]
