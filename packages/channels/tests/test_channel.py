"""Callbacks: which events fire them, in what order, and what becomes of those that fail or take their time."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest

from waterspout_channels import CallbackError, Channel, Channels, Dialect
from waterspout_core import BadChannel, BrokerError, Gap, History, MemoryBroker, MemoryPubSub, Message, TooManyChannels

PAYLOADS: list[Any] = [
    *("text", "", "null", "žluťoučký 🐎", "\x1e{}\n"),
    *(b"bytes", b"", b"\x00\xff"),
    *(0, -1, 10**20, 0.5, False, True, None),
    *([], {}, [0, [None]], {"goals": 0, "": {}}),
]

history_or_not = pytest.mark.parametrize("history", [0, 1000], ids=["no history", "history"])


class Noted:
    """A callback that notes what it is called with."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, Any]] = []

    def __call__(self, channel: Channel, event: str, data: Any) -> None:
        self.got.append((channel.name, event, data))

    @property
    def data(self) -> list[Any]:
        return [data for _, _, data in self.got]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # a callback has no event for us
            await asyncio.sleep(0.002)


async def let_go(channels: Channels, name: str) -> None:
    """Return when the broker does not have it any more."""
    async with asyncio.timeout(10):
        while name in await channels.pubsub.channels():  # noqa: ASYNC110  # the broker has no event for us
            await asyncio.sleep(0.002)


class ChannelContract:
    """What holds on every broker (E7)."""

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        """A node of its own on the test's broker."""
        raise NotImplementedError

    # Who is called

    @history_or_not
    async def test_d18_each_matching_pattern_fires_in_order_of_registration(self, history: int) -> None:
        async with self.open(history=history) as here, self.open(history=history) as there:
            order: list[tuple[str, str, Any]] = []

            def noting(name: str) -> Callable[[Channel, str, Any], None]:
                return lambda channel, event, data: order.append((name, event, data))

            for name, pattern in [("third", "g*"), ("first", "goal"), ("none", "card"), ("second", "*")]:
                channel = here.register("match", pattern, noting(name))
            await here.connect()
            for number in range(3):
                await there.publish("match", "goal", number)
            await there.publish("match", "kick-off", {})
            await until(lambda: len(order) == 10)
            assert channel.events == ("g*", "goal", "card", "*")
            assert order[:9] == [(name, "goal", n) for n in range(3) for name in ("third", "first", "second")]
            assert order[9] == ("second", "kick-off", {})

    async def test_d16_registering_takes_effect_at_once_and_the_same_callback_is_called_once(self) -> None:
        async with self.open() as channels:
            noted = Noted()
            await channels.connect()
            channel = channels.register("match", "goal", noted)
            assert channels.register("match", "goal", noted) is channel
            await channel.ready()
            await channels.publish("match", "goal", 1)
            await until(lambda: noted.got)
            assert noted.got == [("match", "goal", 1)]
            assert channel.callbacks == {"goal": (noted,)}

    async def test_who_registers_reads_from_that_moment_on(self) -> None:
        async with self.open(history=100) as channels:
            await channels.connect()
            await channels.publish("match", "goal", "before")
            early, late = Noted(), Noted()
            await channels.register("match", "*", early).ready()
            await channels.publish("match", "goal", "between")
            await until(lambda: early.got)
            channels.register("match", "*", late)
            await channels.publish("match", "goal", "after")
            await until(lambda: late.got)
            assert early.data == ["between", "after"]
            assert late.data == ["after"]

    @pytest.mark.parametrize(
        ("pattern", "fired"),
        [
            ("*", ["goal", "goal.own", "goals", "g[x]"]),
            ("goal?", ["goals"]),
            ("go[a-b]l", ["goal"]),
            ("goal.*", ["goal.own"]),  # a dot is a dot
            (r"g\[x\]", ["g[x]"]),
            (r"goal\\", []),
            ("GOAL", []),
        ],
    )
    async def test_d17_patterns_are_globs_as_redis_has_them(self, pattern: str, fired: list[str]) -> None:
        async with self.open() as channels:
            noted, end = Noted(), Noted()
            channels.register("match", pattern, noted)
            channels.register("match", "end", end)
            await channels.connect()
            for event in ("goal", "goal.own", "goals", "g[x]"):
                await channels.publish("match", event)
            await channels.publish("match", "end")
            await until(lambda: end.got)
            assert [event for _, event, _ in noted.got if event != "end"] == fired

    @history_or_not
    async def test_d20_f39_data_is_kept_as_it_is(self, history: int) -> None:
        async with self.open(history=history) as here, self.open(history=history) as there:
            noted = Noted()
            here.register("match", "*", noted)
            await here.connect()
            for payload in PAYLOADS:
                await there.publish("match", "goal", payload)
            await until(lambda: len(noted.got) == len(PAYLOADS))
            assert [repr(data) for data in noted.data] == [repr(payload) for payload in PAYLOADS]

    async def test_a_message_without_a_name_is_the_event_message(self) -> None:
        async with self.open() as channels:
            noted = Noted()
            channels.register("match", "mess*", noted)
            await channels.connect()
            await channels.publish("match", None, {"n": 1})
            await channels.pubsub.publish("match", "plain")
            await until(lambda: len(noted.got) == 2)
            assert noted.got == [("match", "message", {"n": 1}), ("match", "message", "plain")]

    async def test_d22_one_rule_for_names_in_register_and_publish(self) -> None:
        async with self.open() as channels:
            upper, lower = Noted(), Noted()
            channels.register("BAR", "*", upper)
            channels.register("bar", "*", lower)
            await channels.connect()
            await channels.publish("BAR", "e", 1)
            await channels.publish("bar", "e", 2)
            await until(lambda: upper.got and lower.got)
            assert (upper.got, lower.got) == ([("BAR", "e", 1)], [("bar", "e", 2)])
            assert channels.unregister("Bar", "*", upper) is None
            assert channels.unregister("BAR", "*", upper) is not None

    async def test_d13_the_namespace_stands_before_each_name_at_the_broker_once(self) -> None:
        async with self.open(namespace="ns_") as channels, self.open() as outsider:
            noted = Noted()
            channel = channels.register("a", "*", noted)
            assert channels.register("ns_a", "*", noted) is channel
            assert channels.prefixed("a") == channels.prefixed("ns_a") == "ns_a"
            await channels.connect()
            assert sorted(await channels.pubsub.channels()) == ["ns_a", "ns_server"]
            await outsider.publish("a", "e", "not for us")
            await outsider.publish("ns_a", "e", "for us")
            await channels.publish("ns_a", "e", "from us")
            await until(lambda: len(noted.got) == 2)
            assert noted.got == [("a", "e", "for us"), ("a", "e", "from us")]
            assert "a" in channels
            assert "ns_a" in channels
            assert channels.unregister("ns_a", "*", noted) is channel

    async def test_many_callbacks_share_one_subscription(self) -> None:
        async with self.open() as channels, self.open() as other:
            noted = [Noted() for _ in range(20)]
            for each in noted:
                channels.register("match", "*", each)
            channels.open("match")
            await channels.connect()
            assert await other.pubsub.count("match") == {"match": 1}
            await other.publish("match", "goal", 1)
            await until(lambda: all(each.got for each in noted))
            assert {len(each.got) for each in noted} == {1}

    # Coming and going

    async def test_d29_unregistering_works_while_connected_and_the_unknown_is_none(self) -> None:
        async with self.open(linger=0.05) as channels:
            goal, card, seen = Noted(), Noted(), Noted()
            channels.register("match", "goal", goal)
            channels.register("match", "card", card)
            channels.register("other", "*", seen)
            await channels.connect()
            assert channels.unregister("match", "goal", card) is None
            assert channels.unregister("nothing", "goal", goal) is None
            channel = channels.unregister("match", "goal", goal)
            assert channel is not None
            assert channel.events == ("card",)
            assert channels.unregister("match", "goal", goal) is None
            await channels.publish("match", "goal", 1)
            await channels.publish("match", "card", 2)
            await until(lambda: card.got)
            assert goal.got == []
            assert channels.unregister("match", "card", card) is channel
            assert "match" not in channels
            await let_go(channels, "match")
            assert sorted(await channels.pubsub.channels()) == ["other", "server"]
            await channels.publish("match", "card", 3)
            await channels.publish("other", "end")
            await until(lambda: seen.got)
            assert card.data == [2]

    async def test_f40_it_goes_on_after_the_last_has_gone(self) -> None:
        async with self.open(linger=0.02) as channels:
            noted = Noted()
            await channels.connect()
            for number in range(3):
                await channels.register("match", "*", noted).ready()
                await channels.publish("match", "goal", number)
                await until(lambda n=number: len(noted.got) == n + 1)  # type: ignore[misc]
                channels.unregister("match", "*", noted)
                if number == 1:
                    await let_go(channels, "match")
            assert noted.data == [0, 1, 2]

    # Those that fail, and those that take their time

    @pytest.mark.parametrize("kind", ["plain", "coroutine"])
    @pytest.mark.parametrize("policy", ["keep", "remove"])
    async def test_d19_a_failing_callback_is_logged_counted_and_harms_no_other(
        self, kind: str, policy: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.open(on_error=policy) as channels:
            noted, calls = Noted(), []

            def failing(channel: Channel, event: str, data: Any) -> None:
                calls.append(data)
                raise RuntimeError("broken on purpose")

            async def failing_later(channel: Channel, event: str, data: Any) -> None:
                failing(channel, event, data)

            channel = channels.register("match", "*", failing if kind == "plain" else failing_later)
            channels.register("match", "*", noted)
            await channels.connect()
            for number in range(3):
                await channels.publish("match", "goal", number)
            await until(lambda: len(noted.got) == 3)
            await until(lambda: channel.failures == (3 if policy == "keep" else 1))
            assert calls == ([0, 1, 2] if policy == "keep" else [0])
            assert len(channel.callbacks["*"]) == (2 if policy == "keep" else 1)
            record = caplog.records[0]
            assert (record.name, record.levelno) == ("waterspout.channels", logging.ERROR)
            assert "broken on purpose" in caplog.text
            assert "Traceback" in caplog.text

    @pytest.mark.parametrize("kind", ["plain", "coroutine"])
    async def test_d19_a_callback_error_removes_the_callback_without_a_word(
        self, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.open() as channels:
            noted, calls = Noted(), []

            def once(channel: Channel, event: str, data: Any) -> None:
                calls.append(data)
                raise CallbackError

            async def once_later(channel: Channel, event: str, data: Any) -> None:
                once(channel, event, data)

            channel = channels.register("match", "*", once if kind == "plain" else once_later)
            channels.register("other", "*", noted)
            await channels.connect()
            await channels.publish("match", "goal", 1)
            await until(lambda: "match" not in channels)
            await channels.publish("match", "goal", 2)
            await channels.publish("other", "end")
            await until(lambda: noted.got)
            assert (calls, len(channel), channel.failures, caplog.records) == ([1], 0, 0, [])

    async def test_d19_coroutine_functions_are_awaited_in_order_one_at_a_time(self) -> None:
        async with self.open() as channels:
            order: list[Any] = []

            async def slow(channel: Channel, event: str, data: Any) -> None:
                order.append(("begin", data))
                await asyncio.sleep(0.001)
                order.append(("end", data))

            channels.register("match", "*", slow)
            await channels.connect()
            for number in range(20):
                await channels.publish("match", "goal", number)
            await until(lambda: len(order) == 40)
            assert order == [(what, number) for number in range(20) for what in ("begin", "end")]
            await until(lambda: not any("callbacks of" in task.get_name() for task in asyncio.all_tasks()))

    async def test_d19_nothing_is_fired_while_something_is_awaited(self) -> None:
        async with self.open() as channels:
            order: list[Any] = []

            async def slow(channel: Channel, event: str, data: Any) -> None:
                await asyncio.sleep(0.001)
                order.append(("slow", data))

            channels.register("match", "*", slow)
            channels.register("match", "*", lambda channel, event, data: order.append(("plain", data)))
            await channels.connect()
            for number in range(5):
                channels.publish("match", "goal", number)
            await until(lambda: len(order) == 10)
            assert order == [(what, number) for number in range(5) for what in ("plain", "slow")]

    async def test_d19_a_slow_coroutine_function_holds_up_no_other_channel(self) -> None:
        async with self.open() as channels:
            noted, gate, passed = Noted(), asyncio.Event(), Noted()

            async def slow(channel: Channel, event: str, data: Any) -> None:
                await gate.wait()
                passed(channel, event, data)

            channels.register("slow", "*", slow)
            channels.register("quick", "*", noted)
            await channels.connect()
            for number in range(5):
                await channels.publish("slow", "e", number)
                await channels.publish("quick", "e", number)
            await until(lambda: len(noted.got) == 5)
            assert passed.got == []
            gate.set()
            await until(lambda: len(passed.got) == 5)
            assert passed.data == [0, 1, 2, 3, 4]

    async def test_who_stays_too_far_behind_is_told_of_a_gap_with_the_number_that_was_missed(self) -> None:
        async with self.open(max_messages=10) as channels:
            got, gate, gaps = Noted(), asyncio.Event(), Noted()

            async def slow(channel: Channel, event: str, data: Any) -> None:
                await gate.wait()
                got(channel, event, data)

            channels.register("match", "e", slow)
            channels.register("match", "gap", gaps)
            await channels.connect()
            await channels.publish("match", "e", 0)
            await until(lambda: any("callbacks of" in task.get_name() for task in asyncio.all_tasks()))
            for number in range(1, 31):
                await channels.publish("match", "e", number)
            store = channels.open("match")
            await until(lambda: store.log.newest(1)[1][0].data == 30)  # type: ignore[union-attr]
            gate.set()
            await until(lambda: got.data[-1:] == [30])
            assert got.data == [0, *range(21, 31)]
            assert gaps.data == [{"missed": 20}]

    # Locks

    async def test_a_lock_is_held_by_one_of_all_nodes_of_its_namespace(self) -> None:
        async with self.open(namespace="a_") as here, self.open(namespace="a_") as there, self.open() as elsewhere:
            async with here.lock("report"):
                assert not await there.lock("report", blocking=False).acquire()
                async with elsewhere.lock("report", blocking=False):
                    pass
            async with there.lock("report", blocking=5, sleep=0.01) as lock:
                assert lock.locked()

    # Closing

    async def test_d30_after_close_nothing_fires_and_nothing_is_subscribed(self) -> None:
        async with self.open() as other:
            channels, noted, cancelled = self.open(), Noted(), []

            async def endless(channel: Channel, event: str, data: Any) -> None:
                noted(channel, event, data)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(event)
                    raise

            await other.connect()
            before = asyncio.all_tasks()
            channels.register("match", "*", endless)
            channels.register("match", "*", endless)
            await channels.connect()
            await other.publish("match", "goal", 1)
            await other.publish("match", "goal", 2)
            await until(lambda: noted.got)
            await channels.close()
            assert cancelled == ["goal"]
            assert await other.pubsub.publish("match", "too late") == 0
            assert asyncio.all_tasks() <= before
            assert noted.data == [1]
            with pytest.raises(BrokerError, match="closed"):
                channels.register("match", "*", noted)
            with pytest.raises(BrokerError, match="closed"):
                channels.open("match")
            await channels.close()


class TestInProcess(ChannelContract):
    @pytest.fixture(autouse=True)
    def _broker(self) -> None:
        self.broker = MemoryBroker()

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        return Channels(MemoryPubSub(self.broker, history=History(history) if history else None), **options)


@pytest.mark.skipif(find_spec("waterspout_redis") is None, reason="needs waterspout-redis")
class TestInRedis(ChannelContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any) -> None:
        self.url = redis_server.url

    def open(self, *, history: int = 0, **options: Any) -> Channels:
        return Channels(self.url, history=history, **options)


# In process alone


async def test_d14_the_status_channel_is_there_from_the_start_and_channels_go_by_name() -> None:
    async with Channels() as channels:
        noted = Noted()
        assert (len(channels), list(channels), "server" in channels) == (1, ["server"], True)
        assert await channels.pubsub.channels() == []  # for who only opens stores
        channels.register("b", "*", noted)
        channels.register("a", "*", noted)
        assert (len(channels), list(channels)) == (3, ["server", "b", "a"])
        assert "a" in channels
        assert "c" not in channels
        assert channels.status_channel not in channels
        channels.register("server", "*", noted)
        channels.unregister("server", "*", noted)
        assert "server" in channels
    assert list(Channels(status_channel="nodes")) == ["nodes"]


async def test_the_channels_with_callbacks_are_there_by_name() -> None:
    async with Channels(namespace="shop:") as channels:
        match = channels.register("match", "goal", print)
        assert channels.registered == {"server": channels.status_channel, "match": match}
        channels.unregister("match", "goal", print)
        assert list(channels.registered) == list(channels) == ["server"]


async def test_d21_a_channel_fires_here_and_nowhere_else() -> None:
    broker = MemoryBroker()
    async with Channels(MemoryPubSub(broker)) as here, Channels(MemoryPubSub(broker)) as there:
        noted, later, elsewhere = Noted(), Noted(), Noted()

        async def coroutine(channel: Channel, event: str, data: Any) -> None:
            later(channel, event, data)

        channel = here.register("match", "goal*", coroutine)
        here.register("match", "*", noted)
        there.register("match", "*", elsewhere)
        assert (channel.name, len(channel), channel.events) == ("match", 2, ("goal*", "*"))
        assert channel.callbacks == {"goal*": (coroutine,), "*": (noted,)}
        assert "*" in channel
        assert repr(channel) == "<Channel 'match' ['goal*', '*']>"
        channel.fire("goals", 3)
        channel.fire("card")
        assert noted.got == [("match", "goals", 3), ("match", "card", None)]
        assert later.got == []
        await until(lambda: later.got)
        assert later.got == [("match", "goals", 3)]
        assert elsewhere.got == []


async def test_a_channel_is_there_before_its_callbacks_and_reads_nothing() -> None:
    async with Channels(namespace="shop:") as channels:
        noted = Noted()
        channel = channels.channel("match")
        channel.fire("goal", 0)
        assert channels.channel("shop:match") is channel
        assert (list(channels), "match" in channels, channel.attached) == (["server"], False, False)
        with pytest.raises(TypeError):
            channels.register("match", "*", None)  # type: ignore[arg-type]
        assert channels.register("match", "*", noted) is channels.channel("match") is channel
        channel.fire("goal", 1)
        await channels.publish("match", "goal", 2)
        await until(lambda: noted.data == [1, 2])
        channels.unregister("match", "*", noted)
        assert list(channels) == ["server"]
        assert channels.channel("server") is channels.status_channel
        with pytest.raises(BadChannel):
            channels.channel("a b")


async def test_channels_that_nobody_has_registered_on_are_forgotten() -> None:
    async with Channels() as channels:
        for number in range(100):
            channels.channel(f"c{number}")
        gc.collect()
        assert len(channels._blank) == 0


async def test_a_channel_that_is_registered_anew_is_the_same_and_keeps_the_order_of_its_events() -> None:
    async with Channels() as channels:
        order, gate = [], asyncio.Event()

        async def slow(channel: Channel, event: str, data: Any) -> None:
            order.append(f"begin {event}")
            await gate.wait()
            order.append(f"end {event}")

        channel = channels.register("match", "*", slow)
        await channels.publish("match", "a")
        await until(lambda: order)
        channels.unregister("match", "*", slow)
        assert channels.channel("match") is channel
        assert channels.register("match", "*", slow) is channel
        await channels.publish("match", "b")
        await asyncio.sleep(0.01)  # it would begin in the next turn of the loop
        gate.set()
        await until(lambda: len(order) == 4)
        assert order == ["begin a", "end a", "begin b", "end b"]


async def test_a_callback_that_fires_itself_does_not_keep_the_loop_for_itself() -> None:
    async with Channels() as channels:
        turns = 0
        fired: list[int] = []

        def turn() -> None:
            nonlocal turns
            turns += 1
            if len(fired) < 100:
                asyncio.get_running_loop().call_soon(turn)

        async def again(channel: Channel, event: str, data: Any) -> None:
            fired.append(turns)
            if len(fired) < 100:
                channel.fire(event)

        channel = channels.register("match", "*", again)
        turn()
        channel.fire("goal")
        await until(lambda: len(fired) == 100)
        assert len(set(fired)) == 100  # each in a turn of its own


async def test_nothing_is_fired_after_the_end_nor_without_a_loop() -> None:
    channels, noted = Channels(), Noted()
    channel = channels.register("match", "*", noted)
    with pytest.raises(RuntimeError, match="no running event loop"):
        await asyncio.to_thread(channel.fire, "goal")
    await channels.aclose()
    with pytest.raises(BrokerError, match="closed"):
        channel.fire("goal")
    assert noted.got == []


async def test_what_is_fired_while_something_is_awaited_comes_behind_it() -> None:
    async with Channels() as channels:
        noted, gate = Noted(), asyncio.Event()

        async def slow(channel: Channel, event: str, data: Any) -> None:
            await gate.wait()
            noted(channel, event, data)

        channel = channels.register("match", "*", slow)
        channel.fire("a")
        await channels.publish("match", "c")
        channel.fire("b")
        gate.set()
        await until(lambda: len(noted.got) == 3)
        assert [event for _, event, _ in noted.got] == ["a", "b", "c"]


async def test_what_is_fired_waits_for_callbacks_within_bounds_and_is_refused_whole_beyond() -> None:
    async with Channels() as channels:
        noted, slowly, gate = Noted(), Noted(), asyncio.Event()

        async def slow(channel: Channel, event: str, data: Any) -> None:
            await gate.wait()
            slowly(channel, event, data)

        channel = channels.register("match", "*", noted)
        channels.register("match", "*", slow)
        for number in range(1000):
            channel.fire("goal", number)
        with pytest.raises(asyncio.QueueFull, match=r"'goal' is not fired on 'match', where 1000 calls .* wait"):
            channel.fire("goal", "too many")
        assert noted.data == list(range(1000))
        await channels.publish("match", "goal", 1000)  # which waits in the log
        gate.set()
        await until(lambda: len(slowly.data) == 1001)
        channel.fire("goal", 1001)
        await until(lambda: len(slowly.data) == 1002)
        assert noted.data == slowly.data == list(range(1002))


async def test_events_of_the_log_are_fired_however_many_callbacks_an_event_has() -> None:
    async with Channels() as channels:
        noted = Noted()

        async def coroutine(number: int, channel: Channel, event: str, data: Any) -> None:
            noted(channel, event, number)

        for number in range(1500):
            channels.register("match", "*", partial(coroutine, number))
        await channels.publish("match", "goal")
        await channels.publish("match", "goal")
        await until(lambda: len(noted.data) == 3000)
        assert noted.data == [*range(1500)] * 2


def test_d16_what_is_registered_before_a_loop_runs_takes_effect_with_connect() -> None:
    channels, noted = Channels(), Noted()
    channel = channels.register("match", "*", noted)
    assert channel.name == "match"

    async def use() -> None:
        with pytest.raises(BrokerError, match="no loop has run"):
            await channel.ready()
        async with channels:
            await channels.connect()
            await channels.publish("match", "goal", 1)
            await until(lambda: noted.got)

    asyncio.run(use())
    assert noted.got == [("match", "goal", 1)]


def test_what_is_unregistered_before_a_loop_runs_is_never_subscribed() -> None:
    channels, noted = Channels(), Noted()
    channels.register("match", "*", noted)
    channels.unregister("match", "*", noted)

    async def use() -> list[str]:
        async with channels:
            await channels.connect()
            return await channels.pubsub.channels()

    assert asyncio.run(use()) == ["server"]


async def test_a_gap_fires_only_what_is_registered_for_it_by_name() -> None:
    async with Channels() as channels:
        everything, gaps = Noted(), Noted()
        channel = channels.register("match", "*", everything)
        channels.register("match", "ga[p]", everything)
        channels.register("match", "gap", gaps)
        channel.fire("gap", {"missed": None})
        assert (everything.got, gaps.data) == ([], [{"missed": None}])


async def test_a_callback_that_is_unregistered_by_another_is_not_called_any_more() -> None:
    async with Channels() as channels:
        noted = Noted()

        def first(channel: Channel, event: str, data: Any) -> None:
            channels.unregister("match", "*", noted)

        async def later(channel: Channel, event: str, data: Any) -> None:
            noted(channel, event, data)

        async def forbidding(channel: Channel, event: str, data: Any) -> None:
            channels.unregister("match", "*", later)

        for callback in (first, forbidding, noted, later):
            channel = channels.register("match", "*", callback)
        channel.fire("goal")
        await until(lambda: later not in channel.callbacks["*"])
        await until(lambda: not any("callbacks of" in task.get_name() for task in asyncio.all_tasks()))
        assert noted.got == []


async def test_a_callback_may_register_others_and_itself_anew() -> None:
    async with Channels() as channels:
        noted = Noted()

        def first(channel: Channel, event: str, data: Any) -> None:
            channels.unregister("match", "*", first)
            channels.register("match", "*", noted)

        channels.register("match", "*", first)
        await channels.publish("match", "goal", 1)
        await until(lambda: channels._registered["match"].callbacks == {"*": (noted,)})
        await channels.publish("match", "goal", 2)
        await until(lambda: noted.got)
        assert noted.data == [2]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_who_publishes_to_its_own_channel_for_ever_leaves_the_loop_to_others(kind: str) -> None:
    async with Channels(max_messages=10) as channels:
        count = 0

        def again(channel: Channel, event: str, data: Any) -> None:
            nonlocal count
            count += 1
            channels.publish("match", "goal", data + 1)

        async def again_later(channel: Channel, event: str, data: Any) -> None:
            again(channel, event, data)

        channels.register("match", "*", again if kind == "plain" else again_later)
        await channels.publish("match", "goal", 0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert 10 < count < 10_000
        before = count
        await until(lambda: count > before)


async def test_a_burst_of_more_than_the_log_holds_passes_by_no_callback_that_keeps_up() -> None:
    async with Channels(max_messages=10) as channels:
        noted, gaps = Noted(), Noted()
        channels.register("match", "e", noted)
        channels.register("match", "gap", gaps)
        for number in range(1000):
            channels.publish("match", "e", number)
        await until(lambda: len(noted.got) == 1000)
        assert noted.data == list(range(1000))
        assert gaps.got == []


async def test_a_cancelled_future_of_somebody_else_is_a_failure_like_any_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Channels() as channels:
        noted = Noted()
        future = asyncio.get_running_loop().create_future()
        future.cancel()

        async def waits(channel: Channel, event: str, data: Any) -> None:
            await future

        channel = channels.register("match", "*", waits)
        channels.register("match", "end", noted)
        await channels.publish("match", "goal")
        await channels.publish("match", "end")
        await until(lambda: noted.got)
        await until(lambda: channel.failures == 2)
        assert "CancelledError" in caplog.text


async def test_a_coroutine_function_may_close_the_channels_that_called_it() -> None:
    channels, done = Channels(), asyncio.Event()

    async def goodbye(channel: Channel, event: str, data: Any) -> None:
        await channels.aclose()
        done.set()

    channels.register("match", "*", goodbye)
    await channels.connect()
    await channels.publish("match", "goal")
    async with asyncio.timeout(5):
        await done.wait()
    assert channels.status is Channels.statusType.closed


async def test_what_a_dialect_cannot_understand_does_not_make_it_deaf(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Dialect):
        def event_of(self, message: Message) -> tuple[str, Any] | None:
            event, data = super().event_of(message) or ("", None)
            if data == "no name":
                return [], None  # type: ignore[return-value]
            return None if data == "nothing" else (event, 1 // data)

    async with Channels(dialect=Odd()) as channels:
        noted = Noted()
        channels.register("match", "*", noted)
        for data in (1, 0, "nothing", "no name", 1):
            channels.publish("match", "goal", data)
        await until(lambda: len(noted.got) == 2)
        assert caplog.text.count("cannot be understood") == 2


@pytest.mark.parametrize(("event", "callback"), [(None, print), (1, print), ("*", None), ("*", "print")])
async def test_what_is_no_event_or_no_callback_is_refused_and_registers_nothing(event: Any, callback: Any) -> None:
    async with Channels() as channels:
        with pytest.raises(TypeError):
            channels.register("match", event, callback)
        with pytest.raises(BadChannel):
            channels.register("a b", "*", print)
        assert list(channels) == ["server"]
        assert await channels.pubsub.channels() == []


def test_a_policy_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="on_error"):
        Channels(on_error="retry")  # type: ignore[arg-type]


async def test_who_publishes_more_to_its_own_channel_than_waits_for_a_turn_gets_all_of_it() -> None:
    async with Channels(max_messages=10) as channels:
        got: list[int] = []

        def more(channel: Channel, event: str, data: Any) -> None:
            got.append(data)
            if data == 0:
                for number in range(1, 9):
                    channels.publish("match", "goal", number)

        channels.register("match", "*", more)
        await channels.publish("match", "goal", 0)
        await until(lambda: len(got) == 9)
        assert got == list(range(9))


async def test_whenever_an_event_comes_while_something_is_awaited_it_is_fired() -> None:
    async with Channels() as channels:
        noted = Noted()

        async def waits(channel: Channel, event: str, data: Any) -> None:
            await asyncio.sleep(0)

        for turns in range(10):
            channels.register(f"c{turns}", "a", waits)
            channels.register(f"c{turns}", "b", noted)
            await channels.publish(f"c{turns}", "a")
            for _ in range(turns):
                await asyncio.sleep(0)
            await channels.publish(f"c{turns}", "b")
        await until(lambda: len(noted.got) == 10)
        await until(lambda: not channels._tasks)


async def test_whatever_can_be_awaited_is() -> None:
    async with Channels() as channels:
        noted = Noted()

        class Callable_:
            async def __call__(self, channel: Channel, event: str, data: Any) -> None:
                await asyncio.sleep(0)
                noted(channel, event, data)

        channels.register("match", "*", Callable_())
        channels.register("match", "goal", lambda channel, event, data: channels.publish("other", event, data))
        channels.register("other", "*", noted)
        await channels.publish("match", "goal", 1)
        await until(lambda: len(noted.got) == 2)


async def test_a_gap_is_told_to_who_registers_on_an_open_channel_and_is_the_first_that_comes() -> None:
    async with Channels() as channels:
        gaps = Noted()
        store = channels.open("match")
        channels.register("match", "gap", gaps)
        store.append(Gap(3))
        await until(lambda: gaps.got)
        assert gaps.data == [{"missed": 3}]


async def test_names_of_events_that_nobody_wants_are_not_remembered_without_end() -> None:
    async with Channels() as channels:
        channel = channels.register("match", "goal", print)
        for number in range(1000):
            channel.fire(f"event{number}")
        assert len(channel._found) <= 256


# Beside the channels that are opened by others


async def test_channels_with_callbacks_do_not_count_and_do_not_give_way(clock: Any) -> None:
    async with Channels(max_channels=1) as channels:
        noted = Noted()
        for number in range(20):
            channels.register(f"c{number}", "*", noted)
        channels.open("opened")
        with pytest.raises(TooManyChannels):
            channels.open("one-too-many")
        await clock.pass_by(3600)
        assert len(channels.stores) == 20
        await channels.publish("c7", "goal", 1)
        await clock.turn()
        assert noted.got == [("c7", "goal", 1)]


async def test_a_channel_lingers_after_its_last_callback(clock: Any) -> None:
    async with Channels(linger=60) as channels:
        channels.register("match", "*", print)
        await clock.pass_by(3600)
        channels.unregister("match", "*", print)
        await clock.pass_by(50)
        assert await channels.pubsub.channels() == ["match"]
        await clock.pass_by(20)
        assert await channels.pubsub.channels() == []


async def test_where_others_need_the_room_it_does_not_linger() -> None:
    async with Channels(max_channels=2) as channels:
        names = [f"c{number}" for number in range(10)]
        for name in names:
            channels.register(name, "*", print)
        for name in names:
            channels.unregister(name, "*", print)
        assert len(channels.stores) == 2
        assert len(await channels.pubsub.channels()) == 2


async def test_with_no_linger_it_is_gone_at_once_unless_somebody_has_just_opened_it(clock: Any) -> None:
    async with Channels(linger=0) as channels:
        for name in ("alone", "opened", "long", "read"):
            channels.register(name, "*", print)
        events = channels.listen("read")
        channels.open("long")
        await clock.pass_by(60)
        channels.open("opened")
        for name in ("alone", "opened", "long", "read"):
            channels.unregister(name, "*", print)
        assert await channels.pubsub.channels() == ["opened", "read"]
        await events.aclose()
        await clock.pass_by(60)
        assert await channels.pubsub.channels() == []
