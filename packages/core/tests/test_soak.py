"""The life of a store: closed at any moment, opened again and again, in another loop; and nothing grows meanwhile."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from waterspout_core import BrokerError, ChannelStore, Message, RedisStore, open_pubsub
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


@pytest.fixture
def ended_loops() -> Iterator[None]:
    """For tests in which loops end with open connections: Python warns of these, and rightly."""
    yield
    gc.collect()


with_ended_loops = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def others() -> set[asyncio.Task[Any]]:
    """The tasks beside the test's own."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def without_complaints(test: Callable[[], Coroutine[Any, Any, None]], *, deadline: float = 30.0) -> None:
    """Run it; nothing may be reported to the loop, such as an exception that nobody has retrieved."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        await test()
        gc.collect()

    run(watched(), deadline=deadline)
    assert complaints == []


async def use(store: RedisStore) -> None:
    """Everything at once, until it is closed."""
    await store.ready()
    async with store.subscribe(after="earliest") as subscription:
        while True:
            answers = (store.submit("x"), store.submit("y" * 50_000), store.submit("z", key=os.urandom(8).hex()))
            published = asyncio.gather(*answers, return_exceptions=True)
            await anext(subscription)
            await store.history(10)
            await published


def test_closing_at_any_moment_leaves_nothing_behind(redis_server: RunningServer) -> None:
    async def close_after(proxy: FaultProxy, turns: int) -> None:
        store = RedisStore("news", proxy.url)
        using = asyncio.create_task(use(store))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns % 5 == 0:
            proxy.reset()
        elif turns % 5 == 1:
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
        alive = others() - {using}
        await store.aclose()
        using.cancel()
        (result,) = await asyncio.gather(using, return_exceptions=True)
        assert isinstance(result, BrokerError | asyncio.CancelledError), result
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # The proxy's own come and go as connections do.
        left = {task for task in others() & alive if "waterspout_core" in repr(task)}
        assert not left, f"after {turns} turns"

    async def test() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            for turns in [*range(60), *range(60, 400, 17)]:
                await close_after(proxy, turns)
            await eventually(lambda: not proxy.live)

    without_complaints(test, deadline=60)


def test_closing_while_the_answers_are_awaited_tells_everybody(redis_server: RunningServer) -> None:
    async def test() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            store = RedisStore("news", proxy.url)
            await store.ready()
            position = await store.submit("1")
            proxy.to_client.faults = Faults(black_hole=True)
            fresh = RedisStore("news", proxy.url)
            waiting = [
                asyncio.ensure_future(store.submit("2")),
                asyncio.ensure_future(store.submit("3", key="k")),
                asyncio.ensure_future(fresh.ready()),
                asyncio.ensure_future(fresh.position()),
                asyncio.ensure_future(anext(fresh.subscribe(after=position))),
            ]
            await eventually(lambda: redis_server.call("XLEN", "waterspout:log:{news}") >= 2)
            await asyncio.gather(store.aclose(), fresh.aclose())
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [BrokerError] * 5
            assert {task for task in others() if "waterspout_core" in repr(task)} == set()

    without_complaints(test)


def test_a_break_that_is_heard_of_while_it_closes_starts_nothing(redis_server: RunningServer) -> None:
    async def test() -> None:
        for turns in range(8):
            pubsub = open_pubsub(redis_server.url, history=10)
            store = ChannelStore("news", pubsub)
            await store.ready()
            closing = asyncio.create_task(pubsub.aclose())
            for _ in range(turns):
                await asyncio.sleep(0)
            store._feed.broken()
            pubsub.recover([store._feed])  # type: ignore[attr-defined]
            await closing
            assert others() == set()

    without_complaints(test)


def test_a_store_that_is_closed_says_so(redis_server: RunningServer) -> None:
    async def test() -> None:
        store = RedisStore("news", redis_server.url)
        await store.ready()
        await store.submit("1")
        await store.aclose()
        await store.aclose()
        for late in (store.ready, store.position, lambda: store.submit("2"), lambda: store.history(1)):
            with pytest.raises(BrokerError):
                await late()
        assert others() == set()

    without_complaints(test)


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_1000_stores_opened_and_closed_leave_nothing(redis_server: RunningServer, turns: int) -> None:
    async def test() -> None:
        async with open_pubsub(redis_server.url, history=10) as pubsub:
            kept = ChannelStore("kept", pubsub)
            await kept.ready()
            before = len(others())
            for number in range(1000):
                store = ChannelStore(f"c{number % 10}", pubsub)
                store.open()
                for _ in range(turns):
                    await asyncio.sleep(0)
                await store.aclose()
            del store
            await kept.submit("still there")
            await eventually(lambda: kept.log.top == 1)
            await eventually(lambda: redis_server.call("PUBSUB", "CHANNELS") == [b"kept"])
            await eventually(lambda: len(others()) <= before)
            gc.collect()
            assert list(pubsub._feeds) == ["kept"]  # type: ignore[attr-defined]
            assert list(pubsub._open) == [b"kept"]  # type: ignore[attr-defined]
            kept.close()

    without_complaints(test)


def test_one_store_opened_and_closed_1000_times_follows_its_channel(redis_server: RunningServer) -> None:
    async def test() -> None:
        async with open_pubsub(redis_server.url, history=2000) as pubsub:
            store = ChannelStore("news", pubsub)
            await store.ready()
            for number in range(1000):
                store.close()
                store.open()
                if number % 10 == 0:
                    store.submit(number)
                    await asyncio.sleep(0)
            await store.ready()
            await store.submit("end")
            await eventually(lambda: store.log.newest(1)[1] == [Message("end")])
            assert [entry.data for entry in store.log.newest(2000)[1]] == [*range(0, 1000, 10), "end"]  # type: ignore[union-attr]
            store.close()

    without_complaints(test)


# Other loops


@pytest.mark.usefixtures("ended_loops")
@with_ended_loops
def test_the_same_store_goes_on_in_a_second_loop(redis_server: RunningServer) -> None:
    store = RedisStore("news", redis_server.url)

    async def go_on(number: int) -> None:
        await store.ready()
        async with store.subscribe() as subscription:
            await store.submit(number)
            assert await anext(subscription) == Message(number)

    for number in range(3):
        run(go_on(number))
    run(store.aclose())


@pytest.mark.usefixtures("ended_loops")
@with_ended_loops
def test_stores_that_share_a_channel_go_on_in_a_second_loop(redis_server: RunningServer) -> None:
    pubsub = open_pubsub(redis_server.url, history=10)
    one, other = ChannelStore("news", pubsub), ChannelStore("news", pubsub)

    async def go_on(number: int) -> None:
        await asyncio.gather(one.ready(), other.ready())
        async with other.subscribe() as subscription:
            await one.submit(number)
            assert await anext(subscription) == Message(number)

    for number in range(3):
        run(go_on(number))
    run(pubsub.aclose())


@pytest.mark.usefixtures("ended_loops")
@with_ended_loops
def test_a_loop_that_ended_while_a_store_was_opening_does_not_hinder_the_next_one(
    fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore("news", fresh_redis_server.url)

    async def begin() -> None:
        store.open()
        store.submit("never sent").add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        await asyncio.sleep(0.05)

    async def go_on() -> None:
        await store.ready()
        position = await store.submit("1")
        await eventually(lambda: store.log.position == position)
        await store.aclose()

    fresh_redis_server.suspend()
    run(begin())
    fresh_redis_server.resume()
    run(go_on())
    assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("ended_loops")
@with_ended_loops
def test_a_store_that_was_opening_in_a_loop_that_ended_can_be_closed_in_the_next_one(
    fresh_redis_server: RunningServer,
) -> None:
    store = RedisStore("news", fresh_redis_server.url)

    async def begin() -> None:
        store.open()
        await asyncio.sleep(0.05)

    async def close() -> None:
        await store.aclose()
        assert others() == set()

    fresh_redis_server.suspend()
    run(begin())
    fresh_redis_server.resume()
    without_complaints(close)


@pytest.mark.usefixtures("ended_loops")
@with_ended_loops
def test_what_was_published_between_two_loops_is_not_lost(redis_server: RunningServer) -> None:
    store = RedisStore("news", redis_server.url)

    async def first() -> None:
        await store.submit("1")
        await store.ready()

    async def second() -> None:
        async with store.subscribe(after=position) as subscription:
            assert await anext(subscription) == Message("2")
        await store.aclose()

    run(first())
    position = run(store.position())
    redis_server.call("FCALL", "waterspout_publish", 1, "news", "2")
    run(second())


# Growth


def test_f61_nothing_grows(fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    """SOAK_SECONDS in the environment makes it longer."""
    caplog.set_level(logging.ERROR, "waterspout")  # what is logged of each break is kept for the whole test
    seconds = float(os.environ.get("SOAK_SECONDS", "2"))
    server, chance = fresh_redis_server, random.Random(0)

    async def read(store: ChannelStore, position: Any, count: int) -> None:
        async with store.subscribe(after=position) as subscription:
            for _ in range(count):
                await anext(subscription)

    async def one_round() -> None:
        options: dict[str, Any] = {"history": 100, "retention": 600.0}
        async with open_pubsub(server.url, **options) as here, open_pubsub(server.url, **options) as there:
            stores = [ChannelStore(f"c{number}", here) for number in range(20)]
            await asyncio.gather(*(store.ready() for store in stores))
            positions = [await store.position() for store in stores]
            await asyncio.gather(
                *(
                    there.submit(f"c{n % 20}", Message("x" * 100), key=f"k{n % 60}" if n % 3 == 0 else None)
                    for n in range(400)
                ),
            )
            server.call("CLIENT", "KILL", "TYPE", "pubsub")
            # Most of the keys have been seen in an earlier round.
            await asyncio.gather(*(read(store, position, 5) for store, position in zip(stores, positions, strict=True)))
            for _ in range(20):
                gone = asyncio.create_task(read(chance.choice(stores), None, 1000))
                await asyncio.sleep(0)
                gone.cancel()
                await asyncio.wait((gone,))
            for store in stores:
                await store.aclose()

    async def test() -> None:
        loop = asyncio.get_running_loop()
        # The stream is cut by whole nodes, and logs fill up.
        for _ in range(8):
            await one_round()
        measured = [measure()]
        end = loop.time() + seconds / 2
        rounds = 0
        for half in (1, 2):
            while loop.time() < end or rounds < 3 * half:  # on a busy machine it takes longer
                await one_round()
                rounds += 1
            end += seconds / 2
            measured.append(measure())
        assert rounds > 4
        (_, _, first_redis, keys), (memory, objects, _, _), (last_memory, last_objects, last_redis, last_keys) = (
            measured
        )
        assert last_memory - memory < 150_000, f"{rounds} rounds"
        assert last_objects - objects < 500, f"{rounds} rounds"
        assert last_redis - first_redis < 400_000, f"{rounds} rounds"
        assert last_keys == keys
        assert others() == set()

    def measure() -> tuple[int, int, int, int]:
        """Bytes here, objects here, bytes in Redis, keys in Redis."""
        gc.collect()
        used = server.call("INFO", "memory").decode().partition("used_memory:")[2].partition("\r")[0]
        # While connections come and go their buffers do.
        return tracemalloc.get_traced_memory()[0], len(gc.get_objects()), int(used), server.call("DBSIZE")

    tracemalloc.start()
    try:
        without_complaints(test, deadline=seconds * 3 + 30)
    finally:
        tracemalloc.stop()
