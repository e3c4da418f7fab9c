"""Channels: stores opened by name, kept for a while, and let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_channels import Channel, Channels, StatusType
from waterspout_core import (
    LOST,
    BadChannel,
    BadMessage,
    BaseStore,
    BrokerError,
    ChannelStore,
    Gap,
    MemoryBroker,
    MemoryPubSub,
    Message,
    TooManyChannels,
)
from waterspout_core._feeds import PlainFeed, feed_log


class Reader:
    """A subscriber that notes what it reads."""

    def __init__(self, store: BaseStore) -> None:
        self.store = store
        self.got: list[Any] = []
        self._after = store.cursor()
        store.register(self)

    def wake(self, store: BaseStore) -> None:
        first, entries = store.log.read(self._after)
        self._after = first + len(entries) - 1
        self.got += [entry.data if isinstance(entry, Message) else entry for entry in entries]

    def leave(self) -> None:
        self.store.deregister(self)


class Hesitant(MemoryPubSub):
    """A broker that is elsewhere, and confirms or refuses a subscription when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[tuple[str, ...], asyncio.Future[None]]] = []
        self._attached: dict[str, PlainFeed] = {}
        self.add_client(lambda topic, payload: self._attached[topic].take([payload], self))

    def feed(self, topic: str, *, channel: str, max_messages: int, max_bytes: int) -> Any:
        return PlainFeed(topic, feed_log(None, channel, max_messages, max_bytes))

    def attach(self, feed: Any) -> None:
        self._attached[feed.topic] = feed
        self.asked.append(((feed.topic,), asyncio.get_running_loop().create_future()))

    def detach(self, feed: Any) -> None:
        del self._attached[feed.topic]
        for names, answer in self.asked:
            if names == (feed.topic,):
                answer.cancel()

    def confirm(self) -> None:
        (topic,), answer = self.asked.pop(0)
        self.subscribe(topic)
        answer.set_result(None)
        self._attached[topic].confirmed(self)

    def refuse(self) -> None:
        (topic,), answer = self.asked.pop(0)
        answer.cancel()
        self._attached[topic].refused(BrokerError("not today"))


async def listen(store: ChannelStore) -> Reader:
    """A reader that registers when the broker has confirmed and, as in a handler, a handshake is done."""
    await store.ready()
    await asyncio.sleep(0)
    return Reader(store)


def is_open(channels: Channels, name: str) -> bool:
    return name in [store.channel for store in channels.stores]


def timers() -> int:
    """Timers that the running loop has been given and that have not been cancelled."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not timer.cancelled() for timer in scheduled)


# Opening


async def test_a_channel_opened_twice_is_the_same_store() -> None:
    async with Channels() as channels:
        store = channels.open("a")
        assert channels.open("a") is store
        assert channels.open("b") is not store
        assert store.channel == "a"
        assert len(channels.stores) == 2
        assert list(channels.stores) == [store, channels.open("b")]


async def test_a_channel_is_subscribed_once_and_confirmed_when_ready() -> None:
    broker = Hesitant()
    async with Channels(broker) as channels:
        store = channels.open("a")
        channels.open("a")
        assert [names for names, _ in broker.asked] == [("a",)]
        assert not store.subscribed
        ready = asyncio.ensure_future(store.ready())
        await asyncio.sleep(0)
        assert not ready.done()
        broker.confirm()
        await ready
        assert store.subscribed


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "\0", "x" * 256, "\ud800", None])
async def test_a_bad_name_is_refused_and_opens_nothing(name: Any) -> None:
    async with Channels() as channels:
        with pytest.raises(BadChannel):
            channels.open(name)
        with pytest.raises(BadChannel):
            channels.publish(name, None, "x")
        assert len(channels.stores) == 0
        assert await channels.pubsub.channels() == []


async def test_what_is_open_is_a_collection_of_stores() -> None:
    async with Channels(namespace="ns:") as channels, Channels() as others:
        store = channels.open("a")
        assert store in channels.stores
        assert others.open("a") not in channels.stores
        assert "a" not in channels.stores
        assert list(channels) == ["server"]  # those with callbacks


def test_a_manager_is_made_before_any_loop_runs() -> None:
    channels = Channels()

    async def use() -> list[Any]:
        async with channels:
            reader = await listen(channels.open("a"))
            await channels.publish("a", None, "x")
            await channels.open("a").submit("y")
            channels.open("a").publish()
            return reader.got

    assert asyncio.run(use()) == ["x", "y"]


def test_a_url_that_names_no_broker_is_refused() -> None:
    with pytest.raises((ValueError, ImportError)):
        Channels("gopher://localhost")


# Publishing


async def test_what_is_published_reaches_the_open_channel_whoever_publishes(clock: Any) -> None:
    async with Channels() as channels:
        reader = await listen(channels.open("a"))
        assert await channels.publish("a", "goal", {"n": 1}) == channels.open("a").log.position
        await channels.open("a").submit("by the store")
        await channels.pubsub.publish("a", "by anybody")
        await channels.publish("b", None, "elsewhere")
        await clock.turn()
        assert reader.got == [{"n": 1}, "by the store", "by anybody"]
        assert [entry.event for entry in channels.open("a").log.read(0)[1]] == ["goal", None, None]


async def test_a_channel_need_not_be_open_to_publish_to_it() -> None:
    async with Channels() as channels:
        position = await channels.publish("nobody", None, "x")
        assert len(channels.stores) == 0
        assert await channels.open("nobody").history(10) == [(position, Message("x"))]


async def test_without_a_history_what_nobody_hears_has_no_position() -> None:
    async with Channels(history=0) as channels:
        assert await channels.publish("nobody", None, "x") is None
        assert await channels.open("nobody").history(10) == []


async def test_the_same_key_is_published_once() -> None:
    async with Channels() as channels:
        first = await channels.publish("a", None, "x", key="k")
        assert await channels.publish("a", None, "x", key="k") == first
        assert await channels.open("a").submit("x", key="k") == first
        assert len(await channels.open("a").history(10)) == 1


@pytest.mark.parametrize(("event", "data"), [("gap", "x"), ("a\nb", "x"), ("", "x"), (None, float("nan")), (None, {1})])
async def test_what_cannot_be_delivered_is_refused_at_once(event: str | None, data: Any) -> None:
    async with Channels() as channels:
        with pytest.raises(BadMessage):
            channels.publish("a", event, data)


@given(payloads=st.lists(st.text() | st.binary() | st.none() | st.booleans() | st.integers(-(10**20), 10**20)))
def test_payloads_are_kept_as_they_are(payloads: list[Any]) -> None:
    async def carry() -> list[Any]:
        async with Channels() as channels:
            reader = await listen(channels.open("a"))
            await asyncio.gather(*(channels.open("a").submit(payload) for payload in payloads))
            channels.open("a").publish()
            return reader.got

    got = asyncio.run(carry())
    assert got == payloads
    assert [type(payload) for payload in got] == [type(payload) for payload in payloads]


async def test_two_managers_on_one_broker_hear_each_other(clock: Any) -> None:
    broker = MemoryBroker()
    async with (
        Channels(MemoryPubSub(broker)) as here,
        Channels(MemoryPubSub(broker)) as there,
    ):
        readers = [await listen(here.open("a")), await listen(there.open("a"))]
        position = await here.publish("a", None, "x")
        await clock.turn()
        assert [reader.got for reader in readers] == [["x"], ["x"]]
        # A position of one is a position of the other.
        assert position == here.open("a").log.position == there.open("a").log.position


# The namespace


async def test_the_namespace_stands_before_every_name_at_the_broker_and_nowhere_else(clock: Any) -> None:
    broker = MemoryBroker()
    outsider = MemoryPubSub(broker)
    async with Channels(MemoryPubSub(broker), namespace="ns:") as channels:
        store = channels.open("a")
        reader = await listen(store)
        assert store.channel == "a"
        assert await outsider.channels() == ["ns:a"]
        await outsider.publish("a", "not for us")
        await outsider.publish("ns:a", "for us")
        await channels.publish("a", None, "from us")
        await clock.turn()
        assert reader.got == ["for us", "from us"]


async def test_a_name_that_has_the_namespace_already_is_the_same_channel() -> None:
    async with Channels(namespace="ns:") as channels:
        assert channels.open("ns:a") is channels.open("a")
        assert channels.prefixed("a") == channels.prefixed("ns:a") == "ns:a"


async def test_the_namespace_alone_is_no_name() -> None:
    async with Channels(namespace="ns:") as channels:
        with pytest.raises(BadChannel):
            channels.open("ns:")
        assert len(channels.stores) == 0
        assert await channels.pubsub.channels() == []


# Lingering


async def test_a_channel_that_nobody_reads_is_kept_for_a_while_and_then_let_go(clock: Any) -> None:
    async with Channels(linger=60) as channels:
        channels.open("a")
        await clock.pass_by(59)
        assert is_open(channels, "a")
        await clock.pass_by(60)
        assert not is_open(channels, "a")
        assert await channels.pubsub.channels() == []
        assert timers() == 0


async def test_who_comes_back_within_the_linger_finds_what_was_published_meanwhile(clock: Any) -> None:
    async with Channels(linger=60) as channels:
        store = channels.open("a")
        reader = await listen(store)
        await clock.pass_by(300)
        reader.leave()
        position = store.log.position
        await channels.publish("a", None, "meanwhile")
        await clock.pass_by(20)
        again = channels.open("a")
        assert again is store
        assert again.cursor({position.epoch: position.offset}) == position.offset


async def test_opening_again_starts_the_linger_again(clock: Any) -> None:
    async with Channels(linger=60) as channels:
        store = channels.open("a")
        for _ in range(10):
            await clock.pass_by(50)
            assert channels.open("a") is store


async def test_a_channel_that_is_let_go_begins_a_new_life_when_it_is_opened_again(clock: Any) -> None:
    async with Channels(linger=60, history=0) as channels:
        old = channels.open("a")
        epoch = (await old.submit("x")).epoch  # type: ignore[union-attr]
        await clock.pass_by(120)
        del old
        new = channels.open("a")
        assert new.cursor({epoch: 1}) == LOST
        reader = await listen(new)
        await new.submit("y")
        new.publish()
        assert reader.got == ["y"]


async def test_with_a_history_a_channel_that_was_let_go_goes_on_when_it_is_opened_again(clock: Any) -> None:
    async with Channels(linger=60, retention=600) as channels:
        position = await channels.open("a").submit("x")
        await channels.open("a").submit("y")
        await clock.pass_by(120)
        assert not is_open(channels, "a")
        assert [message.text for _, message in await channels.open("a").history(10)] == ["x", "y"]
        assert channels.open("a").cursor({position.epoch: 1}) == 1  # type: ignore[union-attr]


async def test_a_channel_with_subscribers_is_never_let_go(clock: Any) -> None:
    async with Channels(linger=60) as channels:
        reader = await listen(channels.open("a"))
        channels.open("b")
        await clock.pass_by(3600)
        assert [store.channel for store in channels.stores] == ["a"]
        await channels.publish("a", None, "x")
        await clock.turn()
        assert reader.got == ["x"]


@pytest.mark.parametrize("stayed", [0, 29, 31, 59, 119])
async def test_the_linger_begins_when_the_last_subscriber_leaves(clock: Any, stayed: int) -> None:
    async with Channels(linger=60) as channels:
        reader = await listen(channels.open("a"))
        await clock.pass_by(stayed)
        reader.leave()
        left = clock.now
        await clock.pass_by(59)
        assert is_open(channels, "a"), f"let go before {clock.now - left} seconds"


@pytest.mark.parametrize("linger", [0.5, 0.0])
async def test_a_short_linger_does_not_keep_the_loop_busy(clock: Any, linger: float) -> None:
    async with Channels(linger=linger) as channels:
        reader = await listen(channels.open("a"))
        await clock.pass_by(60)
        reader.leave()


async def test_a_channel_that_somebody_waits_for_is_not_swept_away_from_under_them(clock: Any) -> None:
    broker = Hesitant()
    async with Channels(broker, linger=1) as channels:
        store = channels.open("a")
        waiting = asyncio.ensure_future(store.ready())
        await clock.pass_by(4)  # a handler would wait for 5
        assert not waiting.done()
        broker.confirm()
        await waiting
        reader = await listen(store)
        await channels.publish("a", None, "x")
        await clock.turn()
        assert reader.got[-1:] == ["x"]


# The limit


async def test_beyond_the_limit_the_channel_unused_for_longest_gives_way(clock: Any) -> None:
    async with Channels(max_channels=3) as channels:
        for name in "abc":
            channels.open(name)
            await clock.pass_by(1)
        channels.open("a")
        await clock.pass_by(11)
        channels.open("d")
        assert [store.channel for store in channels.stores] == ["c", "a", "d"]
        assert sorted(await channels.pubsub.channels()) == ["a", "c", "d"]


async def test_when_all_are_in_use_a_new_channel_is_refused(clock: Any) -> None:
    async with Channels(max_channels=2) as channels:
        readers = [await listen(channels.open(name)) for name in "ab"]
        await clock.pass_by(100)
        with pytest.raises(TooManyChannels, match="2 channels") as refused:
            channels.open("c")
        assert refused.value.limit == 2
        assert channels.open("a") is readers[0].store
        assert sorted(await channels.pubsub.channels()) == ["a", "b"]


async def test_a_channel_just_opened_is_not_taken_from_whoever_is_about_to_register(clock: Any) -> None:
    async with Channels(max_channels=1) as channels:
        store = channels.open("a")
        await clock.pass_by(9)
        with pytest.raises(TooManyChannels):
            channels.open("b")
        assert channels.open("a") is store
        await clock.pass_by(11)
        assert channels.open("b").channel == "b"
        assert not is_open(channels, "a")


async def test_channels_in_use_are_passed_over(clock: Any) -> None:
    async with Channels(max_channels=2) as channels:
        reader = await listen(channels.open("a"))
        channels.open("b")
        await clock.pass_by(11)
        channels.open("c")
        assert sorted(str(store.channel) for store in channels.stores) == ["a", "c"]
        await channels.publish("a", None, "x")
        await clock.turn()
        assert reader.got == ["x"]


async def test_a_channel_left_just_now_does_not_give_way_to_one_unused_for_longer(clock: Any) -> None:
    async with Channels(max_channels=2, linger=60) as channels:
        reader = await listen(channels.open("left"))
        channels.open("unused")
        await clock.pass_by(30)
        reader.leave()
        await clock.pass_by(15)
        channels.open("new")
        assert [store.channel for store in channels.stores] == ["left", "new"]


async def test_when_all_logs_together_are_too_large_the_one_unused_for_longest_goes(clock: Any) -> None:
    async with Channels(linger=60, max_total_bytes=25_000) as channels:
        reader = await listen(channels.open("read"))
        for name in ("read", "first", "second"):
            await channels.open(name).submit("x" * 10_000)
            await clock.pass_by(1)
        await clock.pass_by(20)
        assert [store.channel for store in channels.stores] == ["read", "second"]
        reader.leave()


async def test_a_name_refused_makes_no_room() -> None:
    async with Channels(max_channels=1, linger=0.001) as channels:
        channels.open("a")
        with pytest.raises(BadChannel):
            channels.open("b b")
        assert is_open(channels, "a")


# Brokers in trouble


async def test_a_refusal_is_told_to_whoever_waits_and_the_next_one_tries_again(clock: Any) -> None:
    broker = Hesitant()
    async with Channels(broker) as channels:
        store = channels.open("a")
        broker.refuse()
        with pytest.raises(BrokerError, match="not today"):
            await store.ready()
        waiting = asyncio.ensure_future(channels.open("a").ready())
        await clock.turn()
        broker.confirm()
        await waiting
        reader = await listen(store)
        await channels.publish("a", None, "x")
        await clock.turn()
        assert reader.got == ["x"]


async def test_a_refusal_that_nobody_waits_for_is_no_error_of_the_loop(clock: Any) -> None:
    broker = Hesitant()
    async with Channels(broker) as channels:
        channels.open("a")
        broker.refuse()
        await clock.turn()


async def test_one_impatient_caller_does_not_take_the_subscription_from_the_others(clock: Any) -> None:
    broker = Hesitant()
    async with Channels(broker) as channels:
        patient = asyncio.ensure_future(channels.open("a").ready())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await channels.open("a").ready()
        broker.confirm()
        await patient
        assert channels.open("a").subscribed


async def test_who_registered_before_the_broker_had_confirmed_is_told_of_a_gap(clock: Any) -> None:
    broker = Hesitant()
    async with Channels(broker) as channels:
        reader = Reader(channels.open("a"))
        await clock.turn()
        broker.confirm()
        await channels.publish("a", None, "x")
        await clock.turn()
        assert reader.got == [Gap(), "x"]


async def test_who_registers_when_the_store_is_ready_is_told_of_no_gap(clock: Any) -> None:
    async with Channels() as channels:
        store = channels.open("a")
        await store.ready()
        reader = Reader(store)
        await channels.publish("a", None, "x")
        await clock.turn()
        assert reader.got == ["x"]


async def test_a_broker_that_never_confirms_is_let_go_like_any_other(clock: Any) -> None:
    broker = Hesitant()
    async with Channels(broker, linger=60) as channels:
        channels.open("a")
        await clock.pass_by(120)
        assert len(channels.stores) == 0
        assert broker.asked[0][1].cancelled()
        assert timers() == 0


# Closing


async def test_close_leaves_no_timer_and_no_subscription(clock: Any) -> None:
    broker = MemoryBroker()
    pubsub = MemoryPubSub(broker)
    channels = Channels(pubsub)
    readers = [await listen(channels.open(name)) for name in "abc"]
    assert timers() == 1
    await channels.aclose()
    assert (broker.channels, broker.patterns, timers(), len(channels.stores)) == ({}, {}, 0, 0)
    assert await MemoryPubSub(broker).publish("a", "too late") == 0
    await clock.turn()
    assert [reader.got for reader in readers] == [[], [], []]
    await channels.aclose()


async def test_close_ends_the_waiting_of_those_who_submitted(clock: Any) -> None:
    channels = Channels()
    store = channels.open("a")
    await store.ready()
    submitted = store.submit("x")
    await channels.aclose()
    async with asyncio.timeout(1):
        assert await submitted == store.log.position


async def test_close_is_not_held_up_by_a_broker_that_never_confirms(clock: Any) -> None:
    broker = Hesitant()
    channels = Channels(broker)
    channels.open("a")
    async with asyncio.timeout(1):
        await channels.aclose()
    await clock.turn()
    assert broker.asked[0][1].cancelled()
    assert timers() == 0


async def test_there_is_one_timer_for_all_channels(clock: Any) -> None:
    async with Channels() as channels:
        for number in range(1000):
            channels.open(str(number))
        assert timers() == 1


async def test_a_channel_that_lingers_shortly_is_not_closed_under_who_is_about_to_read_it(clock: Any) -> None:
    """Who waits for another of its channels would be let in to a store that nothing feeds any more."""
    async with Channels(linger=0.01) as channels:
        reader, awaited = Reader(channels.open("read")), channels.open("awaited")
        await clock.pass_by(1)
        assert awaited in channels.stores
        reader.leave()
        await clock.pass_by(1)
        assert awaited in channels.stores
        assert reader.store not in channels.stores
        await clock.pass_by(10)
        assert awaited not in channels.stores


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pubsub": None}, "a broker's URL or a PubSub, not None"),
        ({"pubsub": 5}, "a broker's URL or a PubSub, not 5"),
        ({"namespace": "a b"}, "holds white space"),
        ({"namespace": 5}, "needs a name, not 5"),
        ({"linger": -1}, "linger"),
        ({"max_channels": -1}, "max_channels"),
        ({"on_error": "panic"}, "on_error"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_when_they_are_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError, BadChannel), match=words):
        Channels(**options)


async def one_too_few(channel: Channel, event: str) -> None: ...


def keyword_only(*, channel: Channel, event: str, data: Any) -> None: ...


async def generator(channel: Channel, event: str, data: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    "callback",
    [one_too_few, keyword_only, generator, None, "print"],
    ids=["few", "keywords", "generator", "none", "text"],
)
async def test_a_callback_that_cannot_be_called_is_refused_when_it_is_registered(callback: Any) -> None:
    async with Channels() as channels:
        with pytest.raises(TypeError):
            channels.register("news", "*", callback)
        assert "news" not in channels


async def test_what_c_code_takes_is_found_out_by_calling_it() -> None:
    async with Channels() as channels:
        channels.register("news", "*", print)
        channels.register("news", "*", dict)
        assert channels.registered["news"].callbacks == {"*": (print, dict)}


async def test_closed_channels_neither_publish_nor_lock() -> None:
    channels = Channels()
    await channels.aclose()
    with pytest.raises(BrokerError, match="closed"):
        await channels.publish("news", "goal")
    with pytest.raises(BrokerError, match="closed"):
        channels.lock("job")


async def test_a_status_that_is_none_and_a_listener_that_would_not_be_called_are_refused() -> None:
    async def listener(status: StatusType) -> None: ...

    async with Channels() as channels:
        with pytest.raises(TypeError, match="StatusType"):
            await channels.wait_for("connected")  # type: ignore[arg-type]
        for wrong in (None, listener):
            with pytest.raises(TypeError, match="status listener"):
                channels.add_status_listener(wrong)  # type: ignore[arg-type]
