"""The drop-in for pulsar's PubSub, row by row (D4 to D12), in this process and against real servers."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from waterspout.pulsar import Json, ProtocolError, PubSub, ResponseError, create_store
from waterspout_redis.testing import FaultProxy, RunningServer, eventually, run

both = pytest.mark.parametrize("kind", ["redis", "memory"])


class Listener:
    """A client that notes what it is called with."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []

    def __call__(self, channel: str, message: Any) -> None:
        self.got.append((channel, message))

    async def until(self, *wanted: tuple[str, Any]) -> None:
        await eventually(lambda: len(self.got) >= len(wanted))
        assert self.got == list(wanted)


def with_pubsub(
    use: Callable[[PubSub], Awaitable[None]], server: RunningServer, kind: str = "redis", protocol: Any = None
) -> None:
    async def main() -> None:
        pubsub = create_store("memory://" if kind == "memory" else server.url).pubsub(protocol=protocol)
        try:
            await use(pubsub)
        finally:
            await pubsub.close()

    run(main())


def pubsub_connections(server: RunningServer) -> int:
    return len(server.call("CLIENT", "LIST", "TYPE", "pubsub").decode().splitlines())


# D4: clients


@both
def test_d4_every_client_is_called_with_the_channel_and_the_message(redis_server: RunningServer, kind: str) -> None:
    async def use(pubsub: PubSub) -> None:
        one, two = Listener(), Listener()
        pubsub.add_client(one)
        pubsub.add_client(one)
        pubsub.add_client(two)
        assert one in pubsub
        await pubsub.subscribe("chat")
        await pubsub.publish("chat", "Hello")
        await one.until(("chat", b"Hello"))
        await two.until(("chat", b"Hello"))
        pubsub.remove_client(one)
        pubsub.remove_client(one)
        assert one not in pubsub
        await pubsub.publish("chat", "again")
        await two.until(("chat", b"Hello"), ("chat", b"again"))
        assert len(one.got) == 1

    with_pubsub(use, redis_server, kind)


# D5: clients that fail


@both
def test_d5_a_client_that_fails_is_removed_and_the_others_are_called(
    redis_server: RunningServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(channel: str, message: Any) -> None:
        raise BrokenPipeError("the other end has gone")

    def broken(channel: str, message: Any) -> None:
        raise KeyError("a mistake")

    async def use(pubsub: PubSub) -> None:
        listener = Listener()
        for client in (gone, broken, listener):
            pubsub.add_client(client)
        await pubsub.subscribe("chat")
        await pubsub.publish("chat", "Hello")
        await listener.until(("chat", b"Hello"))
        assert [client in pubsub for client in (gone, broken, listener)] == [False, False, True]

    with caplog.at_level(logging.DEBUG, "waterspout"):
        with_pubsub(use, redis_server, kind)
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == 1  # of the mistake, with its traceback, and none of who has gone
    assert errors[0].exc_info is not None
    assert isinstance(errors[0].exc_info[1], KeyError)


# D6: protocols


class Shout:
    """A protocol as pulsar's programs write them: `encode` gives text."""

    def encode(self, message: str) -> str:
        return message.upper()

    def decode(self, payload: bytes) -> str:
        if not payload.isupper():
            raise ProtocolError("nobody has shouted")
        return payload.decode()


@both
def test_d6_a_protocol_encodes_and_decodes(redis_server: RunningServer, kind: str) -> None:
    for protocol, message, received in (
        (None, "Hello", b"Hello"),
        (None, 5, b"5"),
        (Shout(), "Hello", "HELLO"),
        (Json(), {"a": 0}, {"a": 0}),
    ):

        async def use(pubsub: PubSub, message: Any = message, received: Any = received) -> None:
            pubsub.add_client(listener := Listener())
            await pubsub.subscribe("chat")
            await pubsub.publish("chat", message)
            await listener.until(("chat", received))

        with_pubsub(use, redis_server, kind, protocol)


@pytest.mark.parametrize("protocol", [Json(), Shout()], ids=["Json", "a protocol of one's own"])
def test_d6_what_cannot_be_decoded_is_logged_and_dropped_and_nothing_else_is_lost(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture, protocol: Any
) -> None:
    async def use(pubsub: PubSub) -> None:
        pubsub.add_client(listener := Listener())
        await pubsub.subscribe("chat")
        redis_server.call("PUBLISH", "chat", "{no message")
        redis_server.call("PUBLISH", "chat", b"\xff")
        await pubsub.publish("chat", "HELLO")
        await listener.until(("chat", "HELLO"))
        assert pubsub.push_connection is not None

    with caplog.at_level(logging.WARNING):
        with_pubsub(use, redis_server, protocol=protocol)
    assert len([record for record in caplog.records if "'chat'" in record.getMessage()]) == 2


# D7: subscribing


@both
def test_d7_subscribing_is_awaited_and_confirmed(redis_server: RunningServer, kind: str) -> None:
    async def use(pubsub: PubSub) -> None:
        assert pubsub.push_connection is None
        subscribe: Callable[..., Any] = pubsub.subscribe
        psubscribe: Callable[..., Any] = pubsub.psubscribe
        answers = [await subscribe("one"), await subscribe("two", "three"), await psubscribe("f*", "g*")]
        assert answers == [None, None, None]
        assert await pubsub.count("one", "two", "three", "four") == {b"one": 1, b"two": 1, b"three": 1, b"four": 0}
        assert await pubsub.count_patterns() == 2
        assert pubsub.push_connection is not None

    with_pubsub(use, redis_server, kind)


def test_d7_one_connection_is_made_at_the_first_use(redis_server: RunningServer) -> None:
    async def use(pubsub: PubSub) -> None:
        before = pubsub_connections(redis_server)
        await asyncio.gather(*(pubsub.subscribe(f"channel-{number}") for number in range(20)))
        await pubsub.psubscribe("f*")
        assert (before, pubsub_connections(redis_server)) == (0, 1)

    with_pubsub(use, redis_server)


def test_d7_subscribing_at_a_server_that_is_away_is_a_connection_error_and_is_done_when_it_is_back(
    fresh_redis_server: RunningServer,
) -> None:
    async def use(pubsub: PubSub) -> None:
        fresh_redis_server.kill()
        pubsub.add_client(listener := Listener())
        asked = ((pubsub.subscribe, "news"), (pubsub.psubscribe, "ch?t"))
        for subscribe, name in (*asked, *asked):  # also while it is known to be away
            with pytest.raises(ConnectionRefusedError, match="cannot connect"):
                await subscribe(name)
        fresh_redis_server.start()
        await eventually(lambda: pubsub.push_connection)
        await pubsub.publish("chat", "Hello")
        await pubsub.publish("news", "Hello")
        await listener.until(("chat", b"Hello"), ("news", b"Hello"))

    with_pubsub(use, fresh_redis_server)


def test_d7_subscribing_needs_no_leave_to_ask_anything_else(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">pass", "&*", "+@all", "-pubsub")

    async def main() -> None:
        store = create_store(f"redis://app:pass@127.0.0.1:{fresh_redis_server.port}", username="app")
        pubsub = store.pubsub()
        pubsub.add_client(listener := Listener())
        await pubsub.subscribe("chat")
        await pubsub.publish("chat", "Hello")
        await listener.until(("chat", b"Hello"))
        with pytest.raises(ResponseError, match="NOPERM"):
            await pubsub.count("chat")
        await pubsub.close()

    run(main())


# D8: unsubscribing


@both
def test_d8_unsubscribing_is_a_plain_function(redis_server: RunningServer, kind: str) -> None:
    async def use(pubsub: PubSub) -> None:
        unsubscribe: Callable[..., Any] = pubsub.unsubscribe
        punsubscribe: Callable[..., Any] = pubsub.punsubscribe
        nothing = [unsubscribe("one"), punsubscribe()]
        await pubsub.subscribe("one", "two", "three")
        await pubsub.psubscribe("f*", "g*")
        nothing += [unsubscribe("one"), punsubscribe("f*")]
        await until_counted(pubsub, {b"one": 0, b"two": 1, b"three": 1}, 1)
        nothing += [unsubscribe(), punsubscribe()]
        await until_counted(pubsub, {b"one": 0, b"two": 0, b"three": 0}, 0)
        assert nothing == [None] * 6

    with_pubsub(use, redis_server, kind)


async def until_counted(pubsub: PubSub, channels: dict[bytes, int], patterns: int) -> None:
    async with asyncio.timeout(10):
        while (  # noqa: ASYNC110  # the server is asked again and again
            await pubsub.count(*(name.decode() for name in channels)) != channels
            or await pubsub.count_patterns() != patterns
        ):
            await asyncio.sleep(0)


# D9: patterns


@both
def test_d9_a_pattern_gives_the_channel_itself(redis_server: RunningServer, kind: str) -> None:
    async def use(pubsub: PubSub) -> None:
        pubsub.add_client(listener := Listener())
        await pubsub.psubscribe("f*")
        assert await pubsub.publish("foo", "hello foo") == 1
        await pubsub.publish("bar", "hello bar")
        await pubsub.publish("fun", "hello fun")
        await listener.until(("foo", b"hello foo"), ("fun", b"hello fun"))

    with_pubsub(use, redis_server, kind)


# D10: publishing


@both
def test_d10_publish_tells_how_many_received_it(redis_server: RunningServer, kind: str) -> None:
    async def use(pubsub: PubSub) -> None:
        assert await pubsub.publish("chat", "nobody is here") == 0
        others = [pubsub.store.pubsub() for _ in range(2)]
        for other in others:
            other.add_client(Listener())
            await other.subscribe("chat")
        assert await pubsub.publish("chat", "Hello") == 2
        for other in others:
            await other.close()

    with_pubsub(use, redis_server, kind)


def test_d10_an_event_travels_as_pulsar_writes_it(redis_server: RunningServer) -> None:
    async def use(pubsub: PubSub) -> None:
        raw = pubsub.store.pubsub()
        raw.add_client(listener := Listener())
        await raw.subscribe("chat")
        payloads: list[Any] = ["Hello", None, 0, "", {}]
        for data in payloads:
            assert await pubsub.publish_event("chat", "room1", data) == 1
        await eventually(lambda: len(listener.got) == 5)
        plain = {"event": "room1", "channel": "chat"}
        assert [json.loads(message) for _, message in listener.got] == [
            {**plain, "data": "Hello"},
            plain,
            {**plain, "data": 0},  # which pulsar has lost, see D20
            {**plain, "data": ""},
            {**plain, "data": {}},
        ]
        await raw.close()

    with_pubsub(use, redis_server, protocol=Json())


@both
def test_d10_an_event_needs_a_protocol(redis_server: RunningServer, kind: str) -> None:
    async def use(pubsub: PubSub) -> None:
        with pytest.raises(AssertionError, match="protocol"):
            await pubsub.publish_event("chat", "room1", "Hello")

    with_pubsub(use, redis_server, kind)


def test_d10_publishing_to_a_server_that_is_away_is_a_connection_error(fresh_redis_server: RunningServer) -> None:
    async def use(pubsub: PubSub) -> None:
        fresh_redis_server.kill()
        with pytest.raises(ConnectionRefusedError):
            await pubsub.publish("chat", "Hello")
        for ask in (pubsub.count("chat"), pubsub.count_patterns(), pubsub.channels()):
            with pytest.raises(ConnectionError):
                await ask

    with_pubsub(use, fresh_redis_server)


# D11: what the server knows


@both
def test_d11_counts_and_channels_are_told_in_bytes(redis_server: RunningServer, kind: str) -> None:
    async def use(pubsub: PubSub) -> None:
        await pubsub.subscribe("base_a", "base_b", "other", "é")
        await pubsub.psubscribe("b*")
        assert sorted(await pubsub.channels("base_*")) == [b"base_a", b"base_b"]
        assert sorted(await pubsub.channels()) == sorted([b"base_a", b"base_b", b"other", "é".encode()])
        assert await pubsub.count("base_a", "é", "none") == {b"base_a": 1, "é".encode(): 1, b"none": 0}
        assert await pubsub.count_patterns() == 1
        assert await pubsub.count() == {}

    with_pubsub(use, redis_server, kind)


# D12: closing, and breaks


@both
def test_d12_close_gives_up_every_subscription_and_tells_of_the_lost_connection(
    redis_server: RunningServer, kind: str
) -> None:
    async def use(pubsub: PubSub) -> None:
        other = pubsub.store.pubsub()
        lost: list[PubSub] = []
        pubsub.event("connection_lost").bind(lost.append)
        await pubsub.close()
        assert lost == []  # there was none
        pubsub.add_client(listener := Listener())
        await pubsub.subscribe("chat")
        await pubsub.psubscribe("f*")
        assert pubsub.push_connection is not None
        await pubsub.close()
        assert pubsub.push_connection is None
        assert lost == [pubsub]
        assert await other.publish("chat", "to nobody") == 0
        await until_counted(other, {b"chat": 0}, 0)
        # As in pulsar it may be used again, and has its clients still.
        await pubsub.subscribe("chat")
        await other.publish("chat", "again")
        await listener.until(("chat", b"again"))
        await other.close()

    with_pubsub(use, redis_server, kind)


def test_d12_after_close_nothing_is_left(redis_server: RunningServer) -> None:
    async def main() -> None:
        pubsub = create_store(redis_server.url).pubsub()
        await pubsub.subscribe("chat")
        await pubsub.publish("chat", "Hello")
        await pubsub.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(redis_server.call("CLIENT", "LIST").decode().splitlines()) == 1  # who asks

    run(main())


def test_d12_a_break_is_told_by_an_event_and_what_was_subscribed_is_restored(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            pubsub = create_store(proxy.url).pubsub()
            lost: list[PubSub] = []
            pubsub.event("connection_lost").bind(lost.append)
            pubsub.add_client(listener := Listener())
            await pubsub.subscribe("chat")
            await pubsub.psubscribe("f*")
            proxy.reset()
            await eventually(lambda: lost == [pubsub])
            await eventually(lambda: pubsub.push_connection)
            redis_server.call("PUBLISH", "chat", "after")
            redis_server.call("PUBLISH", "foo", "after")
            # And no word of the gap, for which clients of pulsar are not made.
            await listener.until(("chat", b"after"), ("foo", b"after"))
            assert lost == [pubsub]
            await pubsub.close()

    run(main())


def test_d12_who_has_bound_to_an_event_can_unbind_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pubsub = create_store("memory://").pubsub()
        event = pubsub.event("connection_lost")
        told: list[PubSub] = []
        event.bind(sys.exit)  # is unbound
        event.bind(lambda pubsub: 1 / 0)
        event.bind(told.append)
        assert [event.unbind(sys.exit), event.unbind(sys.exit), len(event.handlers())] == [1, 0, 2]
        await pubsub.subscribe("chat")
        await pubsub.close()
        assert told == [pubsub]

    run(main())
    assert "connection_lost" in caplog.text
