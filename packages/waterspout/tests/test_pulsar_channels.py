"""The drop-in for pulsar's Channels, row by row (D13 to D30, D32), in this process and against real servers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import waterspout_channels
from waterspout.pulsar import CallbackError, Channels, Json, ResponseError, StatusType, create_store
from waterspout.pulsar.channels import Channel
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run

both = pytest.mark.parametrize("kind", ["redis", "memory"])

NOT_SENT: Any = object()


class Seen:
    """A callback that notes what it is called with."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, Any]] = []

    def __call__(self, channel: Channel, event: str, data: Any) -> None:
        self.got.append((channel.name, event, data))

    async def until(self, *wanted: tuple[str, str, Any]) -> None:
        await eventually(lambda: len(self.got) >= len(wanted))
        assert self.got == list(wanted)


def with_channels(
    use: Callable[[Channels], Awaitable[None]],
    server: RunningServer,
    kind: str = "redis",
    *,
    connect: bool = True,
    **options: Any,
) -> None:
    async def main() -> None:
        channels = create_store("memory://" if kind == "memory" else server.url).channels(protocol=Json(), **options)
        try:
            if connect:
                await channels.connect()
                assert channels.status is StatusType.connected
            await use(channels)
        finally:
            await channels.close()

    run(main())


def status_of(channels: Channels) -> StatusType:
    """Now: for who has looked before, and has told the type checker."""
    return channels.status


def subscribed(server: RunningServer) -> set[str]:
    return {name.decode() for name in server.call("PUBSUB", "CHANNELS")}


def old_event(event: str, channel: str, data: Any = NOT_SENT) -> str:
    """An event as a process with pulsar itself writes it."""
    return json.dumps({"event": event, "channel": channel} | ({} if data is NOT_SENT else {"data": data}))


# D13: namespaces


def test_d13_channels_need_a_protocol() -> None:
    with pytest.raises(AssertionError, match="protocol"):
        create_store("redis://127.0.0.1:6379").channels()


def test_d13_the_namespace_is_lower_cased_and_ends_with_one_underscore() -> None:
    store = create_store("redis://127.0.0.1:6379/9?namespace=Test")
    for namespace, wanted in ((None, "test_"), ("foo", "foo_"), ("FOO_", "foo_")):
        channels = store.channels(protocol=Json(), namespace=namespace)
        assert channels.namespace == wanted
        assert repr(channels) == str(channels) == channels.dns == f"redis://127.0.0.1:6379/9?namespace={wanted}"
    assert store.dns == "redis://127.0.0.1:6379/9?namespace=Test"  # it is the store's still
    plain = create_store("redis://u:secret@127.0.0.1:6379").channels(protocol=Json())
    assert (plain.namespace, plain.prefixed("a")) == ("", "a")
    assert plain.dns == plain.dsn == "redis://u:secret@127.0.0.1:6379"
    assert str(plain) == "redis://u:***@127.0.0.1:6379"


def test_d13_a_name_is_prefixed_once(redis_server: RunningServer) -> None:
    async def use(channels: Channels) -> None:
        assert channels.prefixed("a") == channels.prefixed("foo_a") == "foo_a"
        await channels.register("a", "*", seen := Seen())
        await channels.register("foo_b", "*", seen)
        assert subscribed(redis_server) == {"foo_a", "foo_b", "foo_server"}
        assert {"a", "b", "server"} == set(channels.channels)
        await channels.publish("foo_a", "event", 1)
        await channels.publish("b", "event", 2)
        await seen.until(("a", "event", 1), ("b", "event", 2))

    with_channels(use, redis_server, namespace="foo")


@both
def test_d13_another_namespace_hears_nothing(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        other = channels.store.channels(protocol=Json(), namespace="other")
        await other.connect()
        await other.register("a", "*", not_called := Seen())
        await channels.register("a", "*", seen := Seen())
        await channels.publish("a", "event", 1)
        await seen.until(("a", "event", 1))
        await other.publish("a", "event", 2)
        await not_called.until(("a", "event", 2))
        assert len(seen.got) == 1
        await other.close()

    with_channels(use, redis_server, kind, namespace="foo")


# D14: the channels that there are


@both
def test_d14_the_status_channel_is_there_from_the_start(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        assert (len(channels), bool(channels), "server" in channels, "SERVER" in channels) == (1, True, True, True)
        assert (channels.status_channel.name, len(channels.status_channel)) == ("server", 0)
        assert [channel.name for channel in channels] == ["server"]
        await channels.register("Foo", "*", Seen())
        assert [channel.name for channel in channels] == list(channels.channels) == ["server", "foo"]
        assert (len(channels), "foo" in channels, "FOO" in channels, "bar" in channels, 5 in channels) == (
            2,
            True,
            True,
            False,
            False,
        )

    with_channels(use, redis_server, kind, connect=False)


def test_d14_the_status_channel_may_have_another_name() -> None:
    channels = create_store("memory://").channels(protocol=Json(), status_channel="Health")
    assert (channels.status_channel.name, "health" in channels, "server" in channels) == ("health", True, False)


@both
def test_d14_a_channel_is_there_by_its_name_and_made_if_need_be(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        assert channels.channel("SERVER") is channels.status_channel
        assert channels.channel("a", create=False) is None
        channel = channels.channel("A")
        assert (channel.name, len(channel), "a" in channels, channels.channel("a")) == ("a", 0, False, channel)
        assert channels.channel("a", False) is None  # before it has a callback it is none of theirs
        channel.fire("event")
        await channels.register("a", "*", seen := Seen())
        assert channels.channels["a"] is channels.channel("foo_a") is channels.channel("a", create=False) is channel
        channel.fire("event", 1)
        await channels.publish("a", "event", 2)
        await seen.until(("a", "event", 1), ("a", "event", 2))
        with pytest.raises(ValueError, match="white space"):
            channels.channel("a b")
        assert channels.channel("a b", create=False) is None

    with_channels(use, redis_server, kind, namespace="foo")


# D15: the status


def test_d15_the_status_has_the_names_and_numbers_of_pulsar() -> None:
    assert {status.name: status.value for status in StatusType} == {
        "initialised": 1,
        "connecting": 2,
        "connected": 3,
        "disconnected": 4,
        "closed": 5,
    }
    channels = create_store("memory://").channels(protocol=Json())
    assert channels.statusType is Channels.statusType is StatusType
    assert channels.status is StatusType.initialised


# D16: registering


@both
def test_d16_registering_before_and_after_connect(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        before, after = Seen(), Seen()
        channel = await channels.register("Before", "*", before)
        assert (channel.name, channels.status) == ("before", StatusType.initialised)
        await channels.connect()
        assert channels.status is StatusType.connected
        assert (await channels.register("AFTER", "*", after)).name == "after"
        # Both are confirmed: whoever publishes from now on is heard.
        assert await channels.pubsub.count("before", "after", "server") == {b"before": 1, b"after": 1, b"server": 1}
        await channels.publish("before", "one", 1)
        await channels.publish("after", "two", 2)
        await before.until(("before", "one", 1))
        await after.until(("after", "two", 2))

    with_channels(use, redis_server, kind, connect=False)


@both
def test_d16_the_same_callback_is_called_once(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        seen = Seen()
        first = await channels.register("a", "*", seen)
        assert await channels.register("A", "*", seen) is first
        assert first.callbacks == {"*": (seen,)}
        await channels.publish("a", "one")
        await channels.publish("a", "two")
        await seen.until(("a", "one", None), ("a", "two", None))

    with_channels(use, redis_server, kind)


def test_d16_many_are_registered_through_one_connection(redis_server: RunningServer) -> None:
    async def use(channels: Channels) -> None:
        seen = Seen()
        await asyncio.gather(*(channels.register(f"c{number}", "*", seen) for number in range(500)))
        assert len(subscribed(redis_server)) == 501
        assert len(redis_server.call("CLIENT", "LIST", "TYPE", "pubsub").decode().splitlines()) == 1
        await channels.publish("c499", "event")
        await seen.until(("c499", "event", None))

    with_channels(use, redis_server)


def test_d16_a_channel_that_the_server_refuses_is_told(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">pass", "~*", "+@all", "resetchannels", "&server", "&good")

    async def main() -> None:
        channels = create_store(f"redis://app:pass@127.0.0.1:{fresh_redis_server.port}", username="app").channels(
            protocol=Json()
        )
        await channels.connect()
        await channels.register("good", "*", Seen())
        with pytest.raises(ResponseError, match="NOPERM"):
            await channels.register("bad", "*", Seen())
        assert subscribed(fresh_redis_server) == {"server", "good"}
        await channels.close()

    run(main())


# D17: patterns


@both
@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["boom", "", "a b"], []),
        ("h?llo", ["hello", "hallo"], ["haallo", "hallox"]),
        ("h*llo", ["hello", "hllo", "hasjdbllo"], ["haallox", "xhallo"]),
        ("h[ae]llo", ["hello", "hallo"], ["hollo", "hallox"]),
        ("a.b", ["a.b"], ["axb", "a.bc"]),  # any character in pulsar
        (r"a\*", ["a*"], ["ab"]),  # which pulsar cannot read
        ("(a|b)+$", ["(a|b)+$"], ["ab"]),
        ("plain", ["plain"], ["plainer", "Plain"]),
    ],
)
def test_d17_events_are_matched_as_redis_matches_them(
    redis_server: RunningServer, kind: str, pattern: str, matching: list[str], others: list[str]
) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("a", pattern, seen := Seen())
        await channels.register("a", "*", everything := Seen())
        for event in (*others, *matching):
            await channels.publish("a", event)
        await eventually(lambda: len(everything.got) == len(others) + len(matching))
        assert [event for _, event, _ in seen.got] == matching

    with_channels(use, redis_server, kind)


# D18: callbacks


@both
def test_d18_each_matching_pattern_fires_in_order_of_registration(redis_server: RunningServer, kind: str) -> None:
    called: list[tuple[str, Channel, str, Any]] = []

    def named(name: str) -> Callable[[Channel, str, Any], None]:
        return lambda channel, event, data: called.append((name, channel, event, data))

    async def use(channels: Channels) -> None:
        channel = await channels.register("a", "g*", named("first"))
        await channels.register("a", "other", named("never"))
        await channels.register("a", "goal", named("second"))
        await channels.register("a", "g*", named("first again"))
        await channels.publish("a", "goal", {"by": "me"})
        await eventually(lambda: len(called) == 3)
        data = {"by": "me"}
        assert called == [(name, channel, "goal", data) for name in ("first", "first again", "second")]

    with_channels(use, redis_server, kind)


# D19: callbacks that fail


@both
def test_d19_a_callback_that_fails_is_removed_and_the_others_are_called(
    redis_server: RunningServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def broken(channel: Channel, event: str, data: Any) -> None:
        calls.append("broken")
        raise KeyError("a mistake")

    async def broken_later(channel: Channel, event: str, data: Any) -> None:
        calls.append("broken later")
        raise KeyError("another mistake")

    def enough(channel: Channel, event: str, data: Any) -> None:
        calls.append("enough")
        raise CallbackError

    async def use(channels: Channels) -> None:
        seen = Seen()
        for callback in (broken, broken_later, enough, seen):
            await channels.register("a", "*", callback)
        await channels.publish("a", "one")
        await channels.publish("a", "two")
        await seen.until(("a", "one", None), ("a", "two", None))
        assert sorted(calls) == ["broken", "broken later", "enough"]
        assert channels.channels["a"].callbacks == {"*": (seen,)}

    with caplog.at_level(logging.ERROR):
        with_channels(use, redis_server, kind)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "'a mistake'",
        "'another mistake'",
    ]


@both
def test_d19_coroutine_functions_are_awaited_in_order(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        order: list[str] = []
        free = asyncio.Event()

        async def slow(channel: Channel, event: str, data: Any) -> None:
            order.append(f"{event} begins")
            await free.wait()
            order.append(f"{event} ends")

        await channels.register("a", "*", slow)
        await channels.register("b", "*", seen := Seen())
        await channels.publish("a", "one")
        await channels.publish("a", "two")
        await channels.publish("b", "not held up")
        await seen.until(("b", "not held up", None))
        await eventually(lambda: order == ["one begins"])
        free.set()
        await eventually(lambda: order == ["one begins", "one ends", "two begins", "two ends"])

    with_channels(use, redis_server, kind)


# D20: what travels


@pytest.mark.parametrize("data", ["ciao!", {"a": [1, None]}, 0, "", {}, False, [], None], ids=repr)
@both
def test_d20_f39_data_arrives_as_it_was_also_what_is_nothing_much(
    redis_server: RunningServer, kind: str, data: Any
) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("a", "*", seen := Seen())
        await channels.publish("a", "event", data)
        await seen.until(("a", "event", data))
        assert type(seen.got[0][2]) is type(data)

    with_channels(use, redis_server, kind)


def test_d20_old_processes_and_new_ones_hear_one_another(redis_server: RunningServer) -> None:
    async def use(channels: Channels) -> None:
        raw = channels.store.pubsub()
        old: list[tuple[str, Any]] = []
        raw.add_client(lambda channel, message: old.append((channel, json.loads(message))))
        await raw.subscribe("foo_a")
        await channels.register("a", "*", seen := Seen())
        redis_server.call("PUBLISH", "foo_a", old_event("one", "a", {"x": 1}))
        redis_server.call("PUBLISH", "foo_a", old_event("two", "a"))
        await channels.publish("A", "three", "é")
        await seen.until(("a", "one", {"x": 1}), ("a", "two", None), ("a", "three", "é"))
        await eventually(lambda: len(old) == 3)
        assert old[-1] == ("foo_a", {"event": "three", "channel": "a", "data": "é"})
        await raw.close()

    with_channels(use, redis_server, namespace="foo")


def test_d20_what_is_no_event_is_logged_and_dropped(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("a", "*", seen := Seen())
        for payload in (b"no JSON", b"\xff\xfe", b"5", b"[]", b'{"event": 5}', b'{"channel": "a", "data": 1}'):
            redis_server.call("PUBLISH", "a", payload)
        await seen.until(("a", "", 1))  # an event without a name is one

    with caplog.at_level(logging.WARNING, "waterspout.pulsar"):
        with_channels(use, redis_server)
    assert len([record for record in caplog.records if "dropped" in record.getMessage()]) == 5


def test_d20_a_protocol_may_make_bytes(redis_server: RunningServer) -> None:
    class Backwards:
        def encode(self, message: Any) -> bytes:
            return b"\xff" + json.dumps(message).encode()[::-1]

        def decode(self, payload: bytes) -> Any:
            return json.loads(payload[:0:-1])

    async def main() -> None:
        channels = create_store(redis_server.url).channels(protocol=Backwards())
        await channels.connect()
        await channels.register("a", "*", seen := Seen())
        await channels.publish("a", "event", [1])
        await seen.until(("a", "event", [1]))
        await channels.close()

    run(main())


# D21: a channel


@both
def test_d21_a_channel_has_events_callbacks_and_fires_here_only(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        first, again, second, elsewhere = Seen(), Seen(), Seen(), Seen()
        other = channels.store.channels(protocol=Json())
        await other.connect()
        await other.register("a", "*", elsewhere)
        channel = await channels.register("a", "g*", first)
        await channels.register("a", "g*", again)
        await channels.register("a", "end", second)
        assert (channel.events, len(channel), "g*" in channel, "g" in channel) == (("g*", "end"), 2, True, False)
        assert channel.callbacks == {"g*": (first, again), "end": (second,)}
        channel.fire("goal", 1)
        channel.fire("end")
        assert first.got == again.got == [("a", "goal", 1)]
        assert second.got == [("a", "end", None)]
        await channels.publish("a", "goal", 2)
        await elsewhere.until(("a", "goal", 2))
        await other.close()

    with_channels(use, redis_server, kind)


# D22: upper and lower case


@both
def test_d22_names_are_the_same_in_upper_and_lower_case_for_publish_too(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("Bar", "*", seen := Seen())
        for number, name in enumerate(("bar", "BAR", "Bar")):
            await channels.publish(name, "event", number)
        await seen.until(*(("bar", "event", number) for number in range(3)))
        await channels.unregister("bAR", "*", seen)
        assert "bar" not in channels

    with_channels(use, redis_server, kind)


# D23: publishing


@both
def test_d23_publish_returns_nothing(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        publish: Callable[..., Any] = channels.publish
        assert await publish("a", "event", 1) is None
        assert channels.connection_error is False

    with_channels(use, redis_server, kind)


def test_d23_publishing_without_a_server_is_logged_and_so_is_the_next_success(
    fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(channels: Channels) -> None:
        fresh_redis_server.kill()
        await channels.publish("a", "lost")
        assert channels.connection_error is True
        fresh_redis_server.start()
        await channels.publish("a", "event")
        assert channels.connection_error is False

    with caplog.at_level(logging.DEBUG, "waterspout.pulsar"):
        with_channels(use, fresh_redis_server, connect=False)
    assert [record.levelname for record in caplog.records if "publish" in record.getMessage()] == [
        "CRITICAL",
        "WARNING",
    ]


def test_d23_publishing_to_a_server_that_does_not_answer_is_logged(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            channels = create_store(proxy.url, timeout=0.2).channels(protocol=Json())
            await channels.publish("a", "event")
            proxy.disturb(Faults(black_hole=True))
            await channels.publish("a", "lost")
            assert channels.connection_error is True
            await channels.close()

    run(main())
    assert "cannot publish on 'a': no answer within 0.2 s" in caplog.text


def test_d23_what_cannot_be_encoded_is_raised(redis_server: RunningServer) -> None:
    async def use(channels: Channels) -> None:
        with pytest.raises(TypeError):
            await channels.publish("a", "event", object())

    with_channels(use, redis_server)


# D24: connecting


@both
def test_d24_connect_does_nothing_where_it_is_connected_or_closed(
    redis_server: RunningServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("a", "*", seen := Seen())
        await asyncio.gather(channels.connect(), channels.connect())
        await channels.connect(2.25)
        assert channels.status is StatusType.connected
        await channels.publish("a", "event")
        await seen.until(("a", "event", None))
        await channels.close()
        await channels.connect()
        assert status_of(channels) is StatusType.closed

    with_channels(use, redis_server, kind)
    assert "cannot" not in caplog.text


def test_d24_channels_may_be_made_before_a_loop_runs(redis_server: RunningServer) -> None:
    channels = create_store(redis_server.url).channels(protocol=Json())

    async def main() -> None:
        assert channels.status is StatusType.initialised
        await channels.connect()
        assert status_of(channels) is StatusType.connected
        await channels.close()

    run(main())


# D25: what connect does


def test_d25_connect_subscribes_the_status_channel_and_all_that_is_registered_and_says_so(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("a", "*", Seen())
        await channels.connect()
        assert subscribed(redis_server) == {"server", "a"}

    with caplog.at_level(logging.WARNING, "waterspout.pulsar"):
        with_channels(use, redis_server, connect=False)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "server" in caplog.text


def test_d25_the_logger_may_be_ones_own(redis_server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    async def use(channels: Channels) -> None:
        assert channels.logger.name == "mine"

    with_channels(use, redis_server, logger=logging.getLogger("mine"))
    assert {record.name for record in caplog.records} == {"mine"}


# D26: a server that is away


def test_d26_connect_without_a_server_returns_and_goes_on_trying(
    fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(channels: Channels) -> None:
        fresh_redis_server.kill()
        await channels.register("a", "*", seen := Seen())
        for _ in range(2):
            async with asyncio.timeout(5):
                await channels.connect()
            assert channels.status is StatusType.disconnected
        fresh_redis_server.start()
        await eventually(lambda: channels.status is StatusType.connected)
        assert subscribed(fresh_redis_server) == {"server", "a"}
        await channels.publish("a", "event")
        await eventually(lambda: ("a", "event", None) in seen.got)

    with caplog.at_level(logging.WARNING, "waterspout.pulsar"):
        with_channels(use, fresh_redis_server, connect=False)
    levels = [record.levelname for record in caplog.records if record.name == "waterspout.pulsar"]
    assert (levels[0], levels[-1]) == ("CRITICAL", "WARNING")


def test_d26_why_it_cannot_connect_is_told(fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">pass", "~*", "+@all", "resetchannels", "&other")

    async def main() -> None:
        for user, password, why in (("app", "wrong", "WRONGPASS"), ("app", "pass", "NOPERM")):
            store = create_store(f"redis://{user}:{password}@127.0.0.1:{fresh_redis_server.port}", username=user)
            channels = store.channels(protocol=Json())
            await channels.connect()
            assert channels.status is StatusType.disconnected
            assert why in caplog.text
            await channels.close()

    run(main())


# D27: a link that breaks


def test_d27_after_a_break_everything_is_subscribed_again_and_callbacks_are_kept(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            channels = create_store(proxy.url).channels(protocol=Json())
            lost: list[Any] = []
            channels.pubsub.event("connection_lost").bind(lambda pubsub: lost.append(channels.status))
            await channels.connect()
            seen, gaps = Seen(), Seen()
            await channels.register("a", "*", seen)
            await channels.register("a", "gap", gaps)
            proxy.refuse()
            proxy.reset()
            await eventually(lambda: channels.status is StatusType.disconnected)
            assert len(lost) == 1
            await channels.register("meanwhile", "*", seen)  # does not wait for it
            channel = await channels.unregister("a", "nothing", seen)
            assert channel is channels.channels["a"]
            redis_server.call("PUBLISH", "a", old_event("lost", "a"))
            proxy.heal()
            await eventually(lambda: channels.status is StatusType.connected)
            assert subscribed(redis_server) == {"server", "a", "meanwhile"}
            redis_server.call("PUBLISH", "a", old_event("after", "a"))
            redis_server.call("PUBLISH", "meanwhile", old_event("after", "meanwhile"))
            await eventually(lambda: len(seen.got) == 2)
            assert sorted(seen.got) == [("a", "after", None), ("meanwhile", "after", None)]
            # The loss is told to whoever asks for it by this name, and to no pattern that pulsar's programs have.
            assert gaps.got == [("a", "gap", {"missed": None})]
            await channels.close()

    run(main())


def test_d27_registering_does_not_wait_for_a_link_that_breaks(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            channels = create_store(proxy.url).channels(protocol=Json())
            await channels.connect()
            proxy.disturb(Faults(black_hole=True))
            registering = asyncio.create_task(channels.register("a", "*", seen := Seen()))
            await eventually(lambda: "a" in channels)
            assert not registering.done()
            proxy.refuse()
            proxy.reset()
            assert (await registering).name == "a"
            assert channels.status is StatusType.disconnected
            proxy.heal()
            await eventually(lambda: status_of(channels) is StatusType.connected)
            await channels.publish("a", "event")
            await seen.until(("a", "event", None))
            await channels.close()

    run(main())


# D28, D30: closing


def test_d28_nothing_goes_on_after_close_while_the_server_is_away(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        channels = create_store(fresh_redis_server.url).channels(protocol=Json())
        fresh_redis_server.kill()
        await channels.connect()
        assert channels.status is StatusType.disconnected
        await channels.close()
        assert status_of(channels) is StatusType.closed
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert timers() == []
        fresh_redis_server.start()
        await channels.connect()
        assert status_of(channels) is StatusType.closed
        assert subscribed(fresh_redis_server) == set()

    run(main())


def timers() -> list[Any]:
    """What the loop has to do later, beside this test's own deadline."""
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if not handle.cancelled() and "Timeout" not in repr(handle)]


@both
def test_d30_close_gives_up_all_subscriptions_and_leaves_nothing_behind(redis_server: RunningServer, kind: str) -> None:
    async def main() -> None:
        store = create_store("memory://" if kind == "memory" else redis_server.url)
        channels = store.channels(protocol=Json())
        other = store.pubsub()
        await channels.connect()
        await channels.register("a", "*", seen := Seen())
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await channels.close()
        assert loop.time() - begun < 0.5  # it does not wait for anything that never comes
        assert (channels.status, channels.pubsub.push_connection) == (StatusType.closed, None)
        await eventually_nobody(other, "a", "server")
        assert await other.publish("a", old_event("event", "a")) == 0
        assert seen.got == []
        await channels.close()
        await other.close()
        with pytest.raises(ConnectionError):
            await channels.register("a", "*", seen)
        assert await channels.pubsub.publish("a", {}) == 0  # the PubSub may be used again, as in pulsar
        await channels.pubsub.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert timers() == []

    run(main())


async def eventually_nobody(pubsub: Any, *channels: str) -> None:
    async with asyncio.timeout(10):
        while any((await pubsub.count(*channels)).values()):  # noqa: ASYNC110  # the server is asked again and again
            await asyncio.sleep(0)


@both
def test_d30_other_channels_on_the_same_pubsub_go_on(redis_server: RunningServer, kind: str) -> None:
    async def use(first: Channels) -> None:
        second = Channels(first.pubsub, namespace="second")
        await second.connect()
        await second.register("a", "*", seen := Seen())
        await first.close()
        assert second.status is StatusType.connected
        await second.publish("a", "event")
        await seen.until(("a", "event", None))
        await second.close()
        assert second.pubsub.push_connection is None

    with_channels(use, redis_server, kind, namespace="first")


@both
def test_d30_closing_the_pubsub_does_not_close_channels_that_stand_on_it(
    redis_server: RunningServer, kind: str
) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("a", "*", seen := Seen())
        heard: list[str] = []
        channels.pubsub.add_client(lambda channel, message: heard.append(channel))
        await channels.pubsub.subscribe("b")
        await channels.pubsub.psubscribe("c*")
        await channels.pubsub.close()
        await eventually_nobody(channels.pubsub, "b")
        await channels.publish("b", "event")
        await channels.publish("cc", "event")
        await channels.publish("a", "event")
        await seen.until(("a", "event", None))
        assert (channels.status, heard) == (StatusType.connected, [])

    with_channels(use, redis_server, kind)


# D29: unregistering


@both
def test_d29_unregistering_the_last_callback_while_connected_unsubscribes(
    redis_server: RunningServer, kind: str
) -> None:
    async def use(channels: Channels) -> None:
        first, second = Seen(), Seen()
        assert await channels.unregister("unknown", "*", first) is None
        channel = await channels.register("a", "*", first)
        await channels.register("a", "goal", second)
        assert await channels.unregister("a", "unknown", first) is channel
        assert await channels.unregister("a", "*", first) is channel
        assert (len(channel), "a" in channels) == (1, True)
        await channels.publish("a", "goal")
        await second.until(("a", "goal", None))
        assert first.got == []
        assert await channels.unregister("a", "goal", second) is channel
        assert (len(channel), "a" in channels, len(channels)) == (0, False, 1)
        await eventually_nobody(channels.pubsub, "a")
        # And again from the start.
        await channels.register("a", "*", first)
        await channels.publish("a", "event")
        await first.until(("a", "event", None))

    with_channels(use, redis_server, kind)


@both
def test_d29_a_name_with_its_prefix_is_the_same_channel(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        channel = await channels.register("foo_a", "*", seen := Seen())
        assert "foo_a" in channels
        assert await channels.unregister("FOO_A", "*", seen) is channel
        assert ("foo_a" in channels, len(channels)) == (False, 1)

    with_channels(use, redis_server, kind, namespace="foo")


@both
def test_d29_the_status_channel_stays_when_its_last_callback_goes(redis_server: RunningServer, kind: str) -> None:
    async def use(channels: Channels) -> None:
        seen = Seen()
        await channels.register("server", "*", seen)
        assert await channels.unregister("server", "*", seen) is channels.status_channel
        assert "server" in channels
        assert await channels.pubsub.count("server") == {b"server": 1}

    with_channels(use, redis_server, kind)


# D32: the status channel


@both
def test_d32_nothing_is_published_on_the_status_channel_but_what_users_publish(
    redis_server: RunningServer, kind: str
) -> None:
    async def use(channels: Channels) -> None:
        raw = channels.store.pubsub()
        heard: list[bytes] = []
        raw.add_client(lambda channel, message: heard.append(message))
        await raw.subscribe("server", "end")
        await channels.register("server", "*", seen := Seen())
        await channels.connect()
        await channels.publish("server", "mine", 1)
        await seen.until(("server", "mine", 1))
        await channels.close()
        await raw.publish("end", "end")
        await eventually(lambda: heard[-1:] == [b"end"])
        assert [json.loads(message)["event"] for message in heard[:-1]] == ["mine"]
        await raw.close()

    with_channels(use, redis_server, kind, connect=False)


# Beside waterspout's own


def test_waterspout_s_own_channels_are_heard_where_they_keep_no_history(redis_server: RunningServer) -> None:
    async def use(channels: Channels) -> None:
        await channels.register("a", "*", seen := Seen())
        async with waterspout_channels.Channels(redis_server.url, history=0) as others:
            await others.publish("a", "event", {"x": 1})
            await seen.until(("a", "event", {"x": 1}))

    with_channels(use, redis_server)
