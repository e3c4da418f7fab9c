"""The broker in this process, as Redis would behave."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from waterspout_core import Envelope, Health, MemoryBroker, MemoryPubSub, Message, open_pubsub


class Client:
    """Notes what it is called with."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self._some = asyncio.Event()

    def __call__(self, channel: str, message: Any) -> None:
        self.got.append((channel, message))
        self._some.set()

    async def until(self, count: int) -> list[tuple[str, Any]]:
        async with asyncio.timeout(5):
            while len(self.got) < count:
                self._some.clear()
                await self._some.wait()
        return self.got


def test_clients_get_what_is_subscribed_in_order() -> None:
    async def use() -> None:
        pubsub, client = MemoryPubSub(), Client()
        pubsub.add_client(client)
        await pubsub.subscribe("a", "b")
        assert [await pubsub.publish(name, name.upper()) for name in "abcab"] == [1, 1, 0, 1, 1]
        assert await client.until(4) == [("a", b"A"), ("b", b"B"), ("a", b"A"), ("b", b"B")]

    asyncio.run(use())


def test_a_pattern_brings_the_real_channel_and_each_matching_subscription_counts() -> None:
    async def use() -> None:
        pubsub, client = MemoryPubSub(), Client()
        pubsub.add_client(client)
        await pubsub.psubscribe("news.*", "*.eu")
        await pubsub.subscribe("news.eu")
        assert await pubsub.publish("news.eu", b"x") == 3
        assert await client.until(3) == [("news.eu", b"x")] * 3
        assert await pubsub.count_patterns() == 2

    asyncio.run(use())


def test_connections_on_one_broker_hear_one_another() -> None:
    async def use() -> None:
        broker, client = MemoryBroker(), Client()
        here, there = MemoryPubSub(broker), MemoryPubSub(broker)
        there.add_client(client)
        await asyncio.gather(here.subscribe("a"), there.subscribe("a"))
        assert await here.count("a", "b") == {"a": 2, "b": 0}
        assert await here.publish("a", b"hello") == 2
        assert await client.until(1) == [("a", b"hello")]
        await there.aclose()
        assert await here.count("a") == {"a": 1}
        assert await here.channels("[ab]") == ["a"]
        assert await here.channels("b") == []

    asyncio.run(use())


def test_unsubscribing_needs_no_awaiting_and_without_names_means_all() -> None:
    async def use() -> None:
        pubsub = MemoryPubSub()
        pubsub.subscribe("a", "b", "c")
        pubsub.unsubscribe("a", "unknown")
        assert await pubsub.channels() == ["b", "c"]
        pubsub.unsubscribe()
        assert await pubsub.channels() == []

    asyncio.run(use())


def test_a_client_that_publishes_while_it_is_told_does_not_overtake_itself() -> None:
    async def use() -> list[Any]:
        pubsub, client = MemoryPubSub(), Client()

        def answer(channel: str, message: bytes) -> None:
            if message == b"question":
                pubsub.publish("a", b"answer")

        pubsub.add_client(answer)
        pubsub.add_client(client)
        await pubsub.subscribe("a")
        pubsub.publish("a", b"question")
        pubsub.publish("a", b"remark")
        return [message for _, message in await client.until(3)]

    assert asyncio.run(use()) == [b"question", b"remark", b"answer"]


def test_a_failing_client_is_removed_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        pubsub, client = MemoryPubSub(), Client()

        def broken(channel: str, message: bytes) -> None:
            raise RuntimeError("broken on purpose")

        pubsub.add_client(broken)
        pubsub.add_client(client)
        await pubsub.subscribe("a")
        with caplog.at_level(logging.ERROR, "waterspout.core"):
            await pubsub.publish("a", b"1")
            await pubsub.publish("a", b"2")
            assert len(await client.until(2)) == 2
        assert broken not in pubsub
        assert client in pubsub
        assert caplog.text.count("RuntimeError: broken on purpose") == 1

    asyncio.run(use())


def test_a_payload_that_cannot_be_decoded_is_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        broker, client = MemoryBroker(), Client()
        raw, pubsub = MemoryPubSub(broker), MemoryPubSub(broker, protocol=Envelope())
        pubsub.add_client(client)
        await pubsub.subscribe("a")
        await raw.publish("a", b"\x1ebroken")
        await raw.publish("a", b"good")
        assert await client.until(1) == [("a", Message("good"))]
        assert "a broken envelope" in caplog.text

    asyncio.run(use())


def test_a_protocol_that_fails_does_not_make_deaf_for_what_comes_behind(caplog: pytest.LogCaptureFixture) -> None:
    class Careless(Envelope):
        def decode(self, payload: bytes) -> Message:
            return {b"good": Message("good")}[payload]

    async def use() -> None:
        pubsub = MemoryPubSub(protocol=Careless())
        client = Client()
        pubsub.add_client(client)
        await pubsub.subscribe("a")
        pubsub.publish("a", Message("bad"))
        pubsub.publish("a", Message("good"))
        assert await client.until(1) == [("a", Message("good"))]
        assert "its protocol failed" in caplog.text

    asyncio.run(use())


def test_a_url_opens_the_broker_it_names() -> None:
    assert isinstance(open_pubsub("memory://"), MemoryPubSub)
    with pytest.raises(ValueError, match="ftp"):
        open_pubsub("ftp://localhost")


def test_health_is_connected_until_it_is_closed_which_is_told_once() -> None:
    async def use() -> None:
        told: list[Health] = []
        pubsub = MemoryPubSub()
        pubsub.add_health_listener(told.append)
        await pubsub.subscribe("news")
        assert pubsub.health.state == "connected"
        await pubsub.aclose()
        await pubsub.aclose()
        assert pubsub.health.state == "closed"
        assert [health.state for health in told] == ["closed"]

    asyncio.run(use())
