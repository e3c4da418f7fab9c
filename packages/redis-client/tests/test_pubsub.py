"""Receiving against real servers: confirmation, healing, gaps, bounds."""

import asyncio
import itertools
import logging
import warnings
from typing import Any

import pytest

from waterspout_redis import (
    Client,
    ClosedError,
    ConnectError,
    Gap,
    LinkState,
    NoPermissionError,
    PubSubClient,
    PubSubMessage,
)
from waterspout_redis.testing import RunningServer, eventually, run


def subscribed(server: RunningServer) -> set[bytes]:
    """What the server itself says is subscribed."""
    return set(server.call("PUBSUB", "CHANNELS"))


def clients_listening(server: RunningServer) -> int:
    return int(server.call("CLIENT", "LIST", "TYPE", "pubsub").decode().count("id="))


def waiting(pubsub: PubSubClient) -> int:
    """How many items were received and not taken yet."""
    return sum(inbox._messages for inbox in pubsub._listeners._inboxes)


async def take(pubsub: PubSubClient, count: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [await anext(pubsub) for _ in range(count)]


# Subscribing


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_is_published_arrives_once_confirmed(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub:
            await asyncio.gather(pubsub.subscribe("a", b"b"), pubsub.psubscribe("p*"))
            assert redis_server.call("PUBLISH", "a", "1") == 1
            assert redis_server.call("PUBLISH", "b", b"\x00\xff") == 1
            assert redis_server.call("PUBLISH", "pa", "3") == 1
            assert await take(pubsub, 3) == [
                PubSubMessage(b"a", b"1", None),
                PubSubMessage(b"b", b"\x00\xff", None),
                PubSubMessage(b"pa", b"3", b"p*"),
            ]

    run(main())


def test_calls_of_one_turn_go_out_as_one_command(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            await pubsub.subscribe("first")
            redis_server.call("CONFIG", "RESETSTAT")
            await asyncio.gather(*(pubsub.subscribe(f"channel:{number}") for number in range(100)))
            stats = redis_server.call("INFO", "commandstats").decode()
            assert "cmdstat_subscribe:calls=1," in stats
            assert len(subscribed(redis_server)) == 101

    run(main())


def test_many_channels_are_subscribed_and_left_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            names = [f"channel:{number}" for number in range(2500)]
            await pubsub.subscribe(*names)
            assert len(subscribed(redis_server)) == 2500
            await pubsub.unsubscribe(*names[1:])
            assert subscribed(redis_server) == {b"channel:0"}
            assert pubsub.channels == {b"channel:0"}

    run(main())


def test_subscribing_twice_is_done_at_once_and_delivers_once(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            await asyncio.gather(pubsub.subscribe("a"), pubsub.subscribe("a", "a"))
            await pubsub.subscribe("a")
            redis_server.call("PUBLISH", "a", "1")
            redis_server.call("PUBLISH", "a", "2")
            assert [item.data for item in await take(pubsub, 2)] == [b"1", b"2"]

    run(main())


def test_the_last_word_counts_however_fast_the_words_come(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            await asyncio.gather(pubsub.subscribe("a", "b"), pubsub.unsubscribe("b"), pubsub.subscribe("c"))
            assert subscribed(redis_server) == {b"a", b"c"}
            waits = []
            for _ in range(20):
                waits += [pubsub.subscribe("d"), pubsub.unsubscribe("a")]
                await asyncio.sleep(0)
                waits += [pubsub.unsubscribe("d"), pubsub.subscribe("a")]
                await asyncio.sleep(0)
            await asyncio.gather(*waits)
            assert subscribed(redis_server) == {b"a", b"c"}

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_it_goes_on_after_the_last_unsubscribe_F40(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub:
            await asyncio.gather(pubsub.subscribe("a"), pubsub.psubscribe("p*"))
            await asyncio.gather(pubsub.unsubscribe(), pubsub.punsubscribe())
            assert subscribed(redis_server) == set()
            assert pubsub.state is LinkState.CONNECTED
            listener = asyncio.create_task(take(pubsub, 1))
            await pubsub.subscribe("b")
            redis_server.call("PUBLISH", "b", "1")
            assert await listener == [PubSubMessage(b"b", b"1")]

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_refused_name_raises_is_removed_and_spoils_nothing_for_the_others(
    fresh_redis_server: RunningServer, protocol: int
) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">secret", "+@all", "resetchannels", "&ok*")

    async def main() -> None:
        async with PubSubClient(fresh_redis_server.url, username="app", password="secret", protocol=protocol) as pubsub:
            results = await asyncio.gather(
                pubsub.subscribe("ok:1"),
                pubsub.subscribe("no:1", "ok:2"),
                pubsub.subscribe("ok:3"),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [type(None), NoPermissionError, type(None)]
            await eventually(lambda: subscribed(fresh_redis_server) == {b"ok:1", b"ok:2", b"ok:3"})
            assert pubsub.channels == {b"ok:1", b"ok:2", b"ok:3"}
            fresh_redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            assert isinstance((await take(pubsub, 1))[0], Gap)
            assert subscribed(fresh_redis_server) == {b"ok:1", b"ok:2", b"ok:3"}

    run(main())


@pytest.mark.parametrize("names", [(), ("a", None), (1,)])
def test_names_are_str_or_bytes_and_at_least_one(names: tuple[Any, ...]) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="name"):
            PubSubClient().subscribe(*names)

    run(main())


# Healing


@pytest.mark.parametrize("protocol", [2, 3])
def test_after_a_kill_all_is_restored_and_then_comes_one_gap_F11(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub:
            await asyncio.gather(pubsub.subscribe("a", "b"), pubsub.psubscribe("p*"))
            redis_server.call("PUBLISH", "a", "before")
            for _ in range(3):
                redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
                items = await take(pubsub, 1)
                if items == [PubSubMessage(b"a", b"before")]:
                    items = await take(pubsub, 1)
                assert isinstance(items[0], Gap)
                assert pubsub.state is LinkState.CONNECTED
                assert subscribed(redis_server) == {b"a", b"b"}
                assert redis_server.call("PUBSUB", "NUMPAT") == 1
            redis_server.call("PUBLISH", "b", "after")
            assert await take(pubsub, 1) == [PubSubMessage(b"b", b"after")]

    run(main())


def test_after_a_restart_on_the_same_port_all_is_restored_with_what_changed_meanwhile(
    fresh_redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with PubSubClient(fresh_redis_server.url) as pubsub:
            await pubsub.subscribe("a", "b")
            fresh_redis_server.stop()
            await eventually(lambda: pubsub.state is not LinkState.CONNECTED)
            added = pubsub.subscribe("c")
            # Nothing to wait for: a server that is gone has nothing subscribed.
            await pubsub.unsubscribe("b")
            assert not added.done()
            fresh_redis_server.start()
            await added
            assert subscribed(fresh_redis_server) == {b"a", b"c"}
            assert isinstance((await take(pubsub, 1))[0], Gap)

    run(main())


def test_no_gap_comes_before_the_first_subscription_is_confirmed(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.stop()

    async def main() -> None:
        async with PubSubClient(fresh_redis_server.url) as pubsub:
            first = pubsub.subscribe("a")
            await eventually(lambda: isinstance(pubsub.last_error, ConnectError))
            fresh_redis_server.start()
            await first
            fresh_redis_server.call("PUBLISH", "a", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"a", b"1")]

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_second_drop_while_restoring_loses_no_subscription_F12(
    fresh_redis_server: RunningServer, protocol: int
) -> None:
    async def main() -> None:
        names = [f"channel:{number}" for number in range(5000)]
        async with PubSubClient(fresh_redis_server.url, protocol=protocol) as pubsub:
            await pubsub.subscribe(*names)
            for _ in range(20):
                fresh_redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(0.01)
            await eventually(lambda: len(subscribed(fresh_redis_server)) == 5000)
            await eventually(lambda: pubsub.state is LinkState.CONNECTED)
            assert len(pubsub.channels) == 5000

    run(main())


def test_messages_after_the_gap_are_complete(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub, Client(redis_server.url) as client:
            await pubsub.subscribe("a")
            stop = asyncio.Event()

            async def publish() -> int:
                number = 0
                while not stop.is_set():
                    number += 1
                    await client.call("PUBLISH", "a", number)
                return number

            publisher = asyncio.create_task(publish())
            seen: list[int] = []
            gaps = 0
            # Until a message has come behind the last gap: then the link is up, and nothing published is lost any more.
            while gaps < 5 or seen[-1] == -1:
                item = (await take(pubsub, 1))[0]
                if isinstance(item, Gap):
                    gaps += 1
                    seen.append(-1)
                else:
                    if gaps < 5 and (not seen or seen[-1] == -1):
                        redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
                    seen.append(int(item.data))
            stop.set()
            last = await publisher
            while seen[-1] < last:
                seen.append(int((await take(pubsub, 1))[0].data))
            # Between two gaps nothing is missing, repeated or out of order.
            for earlier, later in itertools.pairwise(seen):
                assert later == -1 or earlier == -1 or later == earlier + 1

    run(main())


def test_a_suspended_server_is_found_by_the_health_check_F8(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        states: list[LinkState] = []
        async with PubSubClient(
            fresh_redis_server.url,
            health_check_interval=0.2,
            connect_timeout=0.3,
            on_state=lambda state, error: states.append(state),
        ) as pubsub:
            await pubsub.subscribe("a")
            fresh_redis_server.suspend()
            await eventually(lambda: LinkState.DISCONNECTED in states, deadline=5)
            assert "the server has sent nothing" in str(pubsub.last_error)
            fresh_redis_server.resume()
            assert isinstance((await take(pubsub, 1))[0], Gap)

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_idle_is_not_broken_F14(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        states: list[LinkState] = []
        async with PubSubClient(
            redis_server.url,
            protocol=protocol,
            health_check_interval=0.05,
            on_state=lambda state, error: states.append(state),
        ) as pubsub:
            await pubsub.subscribe("a")
            redis_server.call("CONFIG", "RESETSTAT")

            def pings() -> int:
                stats = redis_server.call("INFO", "commandstats").decode()
                line = next((line for line in stats.splitlines() if line.startswith("cmdstat_ping:")), "calls=0,")
                return int(line.split("calls=")[1].split(",")[0])

            await eventually(lambda: pings() >= 5)
            redis_server.call("PUBLISH", "a", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"a", b"1")]
            assert states == [LinkState.CONNECTING, LinkState.CONNECTED]

    run(main())


def test_an_outage_is_visible_and_logged_once(
    fresh_redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "waterspout.redis")

    async def main() -> None:
        changes: list[tuple[LinkState, Any]] = []
        async with PubSubClient(
            fresh_redis_server.url, on_state=lambda state, error: changes.append((state, error))
        ) as pubsub:
            assert pubsub.state is LinkState.DISCONNECTED
            await pubsub.subscribe("a")
            fresh_redis_server.stop()
            await eventually(lambda: sum(isinstance(error, ConnectError) for _, error in changes) >= 2)
            assert isinstance(pubsub.last_error, ConnectError)
            fresh_redis_server.start()
            await eventually(lambda: pubsub.state is LinkState.CONNECTED)
        assert [state for state, _ in changes[:4]] == [
            LinkState.CONNECTING,
            LinkState.CONNECTED,
            LinkState.DISCONNECTED,
            LinkState.CONNECTING,
        ]
        assert [state for state, _ in changes[-2:]] == [LinkState.CONNECTED, LinkState.CLOSED]

    run(main())
    levels = [record.levelname for record in caplog.records if record.name == "waterspout.redis"]
    assert levels == ["WARNING", "INFO"]
    assert fresh_redis_server.url in caplog.text


def test_a_failing_state_callback_harms_nothing(redis_server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    def fail(state: LinkState, error: Any) -> None:
        raise ValueError("from the callback")

    async def main() -> None:
        async with PubSubClient(redis_server.url, on_state=fail) as pubsub:
            await pubsub.subscribe("a")
            assert subscribed(redis_server) == {b"a"}

    run(main())
    assert "from the callback" in caplog.text


# Listening


@pytest.mark.parametrize("protocol", [2, 3])
def test_batches_and_single_items_are_one_stream(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub, Client(redis_server.url) as client:
            await pubsub.subscribe("a")
            await asyncio.gather(*(client.call("PUBLISH", "a", number) for number in range(1000)))
            seen = [item.data for item in await take(pubsub, 3)]
            async for batch in pubsub.batches():
                seen += [item.data for item in batch if isinstance(item, PubSubMessage)]
                if len(seen) == 1000:
                    break
            assert seen == [b"%d" % number for number in range(1000)]

    run(main())


def test_a_full_buffer_stops_the_reading_and_drops_nothing(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with (
            PubSubClient(redis_server.url, max_messages=100, health_check_interval=0.1) as pubsub,
            Client(redis_server.url) as client,
        ):
            await pubsub.subscribe("a")
            payload = "x" * 1000
            for start in range(0, 20_000, 500):
                await asyncio.gather(
                    *(client.call("PUBLISH", "a", f"{number}:{payload}") for number in range(start, start + 500))
                )
            # 20 MB do not fit: the most is still in the sockets, or with the server. One read holds up to 128 KiB.
            assert waiting(pubsub) < 400
            items = await take(pubsub, 20_000)
            assert [int(item.data.split(b":")[0]) for item in items] == list(range(20_000))

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_when_the_server_gives_up_on_a_slow_listener_a_gap_tells_F9(
    fresh_redis_server: RunningServer, protocol: int
) -> None:
    fresh_redis_server.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1")

    async def main() -> None:
        async with (
            PubSubClient(fresh_redis_server.url, max_bytes=10_000, protocol=protocol) as pubsub,
            Client(fresh_redis_server.url) as client,
        ):
            await pubsub.subscribe("a")
            payload = "x" * 100_000
            while await client.call("PUBLISH", "a", payload):
                pass
            async with asyncio.timeout(10):
                async for item in pubsub:
                    if isinstance(item, Gap):
                        break
            assert subscribed(fresh_redis_server) == {b"a"}

    run(main())


def test_a_second_listener_is_refused_rather_than_given_half(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            await pubsub.subscribe("a")
            first = asyncio.create_task(take(pubsub, 1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="a listener of its own"):
                await take(pubsub, 1)
            redis_server.call("PUBLISH", "a", "1")
            assert await first == [PubSubMessage(b"a", b"1")]

    run(main())


def test_a_cancelled_listener_loses_nothing(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub:
            await pubsub.subscribe("a")
            taken: list[Any] = []
            for number in range(50):
                listener = asyncio.create_task(take(pubsub, 1))
                await asyncio.sleep(0)
                redis_server.call("PUBLISH", "a", number)
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                listener.cancel()
                await asyncio.wait((listener,))
                if not listener.cancelled():
                    taken += await listener
            taken += await take(pubsub, 50 - len(taken))
            assert [int(item.data) for item in taken] == list(range(50))

    run(main())


# The end


def test_closing_ends_the_iteration_after_what_was_received(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            pubsub = PubSubClient(redis_server.url)
            await pubsub.subscribe("a")
            await client.call("PUBLISH", "a", "1")
            await eventually(lambda: waiting(pubsub))
            await pubsub.aclose()
            assert [item async for item in pubsub] == [PubSubMessage(b"a", b"1")]
            assert [batch async for batch in pubsub.batches()] == []
            assert pubsub.state is LinkState.CLOSED
            with pytest.raises(ClosedError):
                await pubsub.subscribe("b")
            await pubsub.unsubscribe("a")
            await pubsub.aclose()
        assert len(asyncio.all_tasks()) <= 2

    run(main())
    assert clients_listening(redis_server) == 0


def test_closing_wakes_who_listens_and_who_waits_for_a_confirmation(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        pubsub = PubSubClient(fresh_redis_server.url)
        await pubsub.subscribe("a")
        listener = asyncio.create_task(anext(aiter(pubsub), "ended"))
        fresh_redis_server.suspend()
        waiting = pubsub.subscribe("b")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await pubsub.aclose()
        assert await listener == "ended"
        with pytest.raises(ClosedError):
            await waiting
        fresh_redis_server.resume()

    run(main())


def test_it_serves_one_event_loop_after_the_other(redis_server: RunningServer) -> None:
    pubsub = PubSubClient(redis_server.url)

    async def first() -> None:
        await pubsub.subscribe("a")

    async def second() -> None:
        # Iterating alone restores what is desired; messages may have been lost between the loops.
        assert isinstance((await take(pubsub, 1))[0], Gap)
        assert subscribed(redis_server) == {b"a"}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(first())
        run(second())
        run(pubsub.aclose())


def test_it_runs_on_uvloop_too(redis_server: RunningServer) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=10) as pubsub, Client(redis_server.url) as client:
            await pubsub.subscribe("a")
            await asyncio.gather(*(client.call("PUBLISH", "a", number) for number in range(1000)))
            assert [int(item.data) for item in await take(pubsub, 1000)] == list(range(1000))
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            assert isinstance((await take(pubsub, 1))[0], Gap)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
