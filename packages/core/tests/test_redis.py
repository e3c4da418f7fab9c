"""The broker in Redis and the store it feeds, on every server found."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from waterspout_core import (
    BrokerError,
    ChannelStore,
    Envelope,
    Gap,
    Message,
    Position,
    PubSub,
    RedisStore,
    open_pubsub,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


class Client:
    """Notes what it is called with."""

    def __init__(self, pubsub: PubSub) -> None:
        self.got: list[tuple[str, Any]] = []
        pubsub.add_client(self)

    def __call__(self, channel: str, message: Any) -> None:
        self.got.append((channel, message))

    async def until(self, count: int) -> list[tuple[str, Any]]:
        await eventually(lambda: len(self.got) >= count)
        return self.got


class Reader:
    """A subscriber that notes what it reads."""

    def __init__(self, store: RedisStore) -> None:
        self.after = store.cursor()
        self.got: list[Any] = []
        store.register(self)

    def wake(self, store: Any) -> None:
        first, entries = store.log.read(self.after)
        self.after = first + len(entries) - 1
        self.got += [entry.data if isinstance(entry, Message) else entry for entry in entries]

    async def until(self, count: int) -> list[Any]:
        await eventually(lambda: len(self.got) >= count)
        return self.got


def test_a_server_is_valkey_too(redis_server: RunningServer) -> None:
    async def use() -> list[tuple[str, Any]]:
        async with open_pubsub(redis_server.url.replace("redis://", "valkey://")) as pubsub:
            client = Client(pubsub)
            await pubsub.subscribe("news")
            assert await pubsub.publish("news", "text") == 1
            return await client.until(1)

    assert run(use()) == [("news", b"text")]


@pytest.mark.parametrize("url", ["http://localhost", "redis:localhost", "localhost:6379", ""])
def test_what_is_no_server_is_refused_with_what_would_be_one(url: str) -> None:
    with pytest.raises(ValueError, match=r"no broker at .*redis://.*valkey://.*unix://"):
        open_pubsub(url)


def test_an_answer_that_does_not_come_in_time_is_an_error(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(redis_server.port) as proxy, open_pubsub(proxy.url, timeout=0.2) as pubsub:
            assert await pubsub.publish("chat", "nobody is here") == 0
            proxy.disturb(Faults(black_hole=True))
            with pytest.raises(BrokerError, match=r"0\.2 s"):
                await pubsub.publish("chat", "Hello")

    run(use())


def test_it_behaves_like_the_broker_in_process(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with open_pubsub(redis_server.url) as here, open_pubsub(redis_server.url) as there:
            client = Client(there)
            await asyncio.gather(here.subscribe("news.eu"), there.subscribe("news.eu"), there.psubscribe("news.*"))
            assert await here.publish("news.eu", "hello") == 3
            assert await client.until(2) == [("news.eu", b"hello")] * 2
            assert await here.count("news.eu", "other") == {"news.eu": 2, "other": 0}
            assert await here.count_patterns() == 1
            assert await here.channels("*.eu") == ["news.eu"]
            there.unsubscribe()
            await there.punsubscribe()
            assert await here.publish("news.eu", "again") == 1
        assert redis_server.call("PUBSUB", "CHANNELS") == []

    run(use())


def test_messages_arrive_as_they_were_given(redis_server: RunningServer) -> None:
    messages = [Message("grüße"), Message(b"\xff"), Message({"a": [0]}), Message(0), Message("", "empty")]

    async def use() -> list[Any]:
        async with open_pubsub(redis_server.url, protocol=Envelope()) as pubsub:
            client = Client(pubsub)
            await pubsub.subscribe("a")
            for message in messages:
                pubsub.publish("a", message)
            return [message for _, message in await client.until(len(messages))]

    assert run(use()) == messages


def test_after_a_break_everything_is_restored_and_every_client_told_of_a_gap(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with open_pubsub(redis_server.url) as pubsub:
            first, second = Client(pubsub), Client(pubsub)
            await asyncio.gather(pubsub.subscribe("a", "b"), pubsub.psubscribe("c*"))
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            for client in (first, second):
                assert sorted((await client.until(3))[:3]) == [("a", Gap()), ("b", Gap()), ("c*", Gap())]
            for channel in ("a", "b", "c1"):
                assert redis_server.call("PUBLISH", channel, "x") == 1
            assert (await first.until(6))[3:] == [("a", b"x"), ("b", b"x"), ("c1", b"x")]

    run(use())


def test_what_the_server_refuses_is_a_broker_error(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "default", "resetchannels", "&allowed*")

    async def use() -> None:
        async with open_pubsub(fresh_redis_server.url) as pubsub:
            await pubsub.subscribe("allowed")
            with pytest.raises(BrokerError, match="NOPERM") as refused:
                await pubsub.subscribe("forbidden")
            assert not refused.value.maybe_done
            with pytest.raises(BrokerError, match="NOPERM"):
                await pubsub.publish("forbidden", "x")
            assert await pubsub.publish("allowed", "x") == 1

    run(use())


def test_publishing_to_a_server_that_is_away_says_so(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.stop()

    async def use() -> None:
        async with open_pubsub(fresh_redis_server.url) as pubsub:
            with pytest.raises(BrokerError, match=str(fresh_redis_server.port)) as refused:
                await pubsub.publish("a", "x")
            assert not refused.value.maybe_done

    run(use())


def test_closing_while_the_server_is_away_leaves_nothing_behind(
    fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    fresh_redis_server.stop()

    async def use() -> None:
        pubsub = open_pubsub(fresh_redis_server.url)
        pubsub.start()
        waiting = asyncio.ensure_future(pubsub.subscribe("a"))
        pubsub.subscribe("b")  # nobody awaits this one
        await eventually(lambda: "trying again" in caplog.text)
        await pubsub.aclose()
        with pytest.raises(BrokerError):
            await waiting
        assert len(asyncio.all_tasks()) == 1

    with caplog.at_level(logging.WARNING):
        run(use())


def test_a_redis_store_is_fed_by_its_channel_from_anywhere(redis_server: RunningServer) -> None:
    store = RedisStore(channel="prices", url=redis_server.url)  # before any loop runs

    async def use() -> None:
        async with store:
            reader = Reader(store)
            assert await store.submit({"eur": 1.08}) == Position(store.log.epoch, 1)
            assert redis_server.call("PUBLISH", "prices", "from outside") == 1
            assert await reader.until(2) == [{"eur": 1.08}, "from outside"]
        assert redis_server.call("PUBLISH", "prices", "too late") == 0

    run(use())


def test_a_redis_store_tells_its_subscribers_of_a_break(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore(channel="prices", url=redis_server.url, history=0) as store:
            reader = Reader(store)
            await store.submit("before")
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            assert await reader.until(2) == ["before", Gap()]
            await store.submit("after")
            assert await reader.until(3) == ["before", Gap(), "after"]

    run(use())


def test_a_redis_store_publishes_by_itself_from_the_first_subscriber_on(redis_server: RunningServer) -> None:
    async def use() -> None:
        store = RedisStore("prices", redis_server.url)
        reader = Reader(store)
        await eventually(lambda: redis_server.call("PUBLISH", "prices", "x") == 1)
        # It came before Redis had confirmed, so it is told that it may have missed something.
        assert (await reader.until(2))[:2] in ([Gap(), "x"], ["x", Gap()])
        await store.aclose()

    run(use())


@pytest.mark.parametrize("history", [0, 100])
def test_f34_overlapping_subscriptions_deliver_to_a_store_once(redis_server: RunningServer, history: int) -> None:
    async def use() -> None:
        async with open_pubsub(redis_server.url, history=history) as pubsub:
            client = Client(pubsub)
            await asyncio.gather(pubsub.subscribe("news"), pubsub.psubscribe("n*", "*s"))
            async with ChannelStore("news", pubsub) as first, ChannelStore("news", pubsub) as second:
                assert first.log is second.log
                readers = [Reader(first), Reader(second)]
                for text in ("a", "b"):
                    await first.submit(text)
                assert [await reader.until(2) for reader in readers] == [["a", "b"]] * 2
                assert len(await client.until(6)) == 6  # once for each of its subscriptions, as Redis does it
                # What clients give up the stores keep, and the other way round.
                await asyncio.gather(pubsub.unsubscribe(), pubsub.punsubscribe())
                await second.submit("c")
                assert [await reader.until(3) for reader in readers] == [["a", "b", "c"]] * 2
            assert len(client.got) == 6
            await eventually(lambda: redis_server.call("PUBSUB", "NUMSUB", "news") == [b"news", 0])

    run(use())


def test_what_is_not_kept_does_not_push_out_what_is(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with RedisStore("news", redis_server.url, history=3) as here:
            kept = [(await here.submit(text), Message(text)) for text in "abcd"][1:]
            for number in range(5):
                redis_server.call("PUBLISH", "news", f"plain {number}")
            await eventually(lambda: here.log.top == 9)
            async with RedisStore("news", redis_server.url, history=3) as there:
                for store in (here, there):
                    assert await store.history(10) == kept
                    assert await store.history(2) == kept[1:]
                    assert await store.history(0) == []
                    async with store.subscribe(after="earliest") as messages:
                        assert [await anext(messages) for _ in kept] == [message for _, message in kept]

    run(use())


def test_who_subscribes_to_a_closed_store_is_told(redis_server: RunningServer) -> None:
    async def use() -> None:
        store = RedisStore("news", redis_server.url)
        async with store:
            pass
        with pytest.raises(BrokerError, match="closed"):
            await anext(store.subscribe())

    run(use())


def test_without_the_redis_client_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "waterspout_redis", None)
    for name in [name for name in sys.modules if name.startswith("waterspout_core._redis")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"waterspout-core\[redis\]"):
        open_pubsub("redis://localhost")
