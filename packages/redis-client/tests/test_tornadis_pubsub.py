"""The drop-in for tornadis: its pub/sub client, row by row (A29 to A38), against real servers."""

import asyncio
import logging
import socket
from asyncio import Future
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import waterspout_redis.tornadis as tornadis
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run


@asynccontextmanager
async def pubsub_of(server: RunningServer | FaultProxy, **options: Any) -> AsyncIterator[tornadis.PubSubClient]:
    pubsub = tornadis.PubSubClient(port=server.port, **options)
    try:
        yield pubsub
    finally:
        pubsub.disconnect()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def message(channel: str, data: str) -> list[bytes]:
    return [b"message", channel.encode(), data.encode()]


def lost(result: Any) -> bool:
    return isinstance(result, tornadis.ConnectionError)


def test_a25_who_is_subscribed_may_hear_nothing_for_longer_than_read_timeout(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, pubsub_of(proxy, read_timeout=0.1) as pubsub:
            await pubsub.pubsub_subscribe("a")
            assert await pubsub.pubsub_pop_message(deadline=0.5) is None
            assert proxy.connections == 1
            # But not from a server that gives no sign of life.
            proxy.disturb(Faults(black_hole=True))
            await eventually(lambda: not pubsub.is_connected())
            proxy.heal()
            assert lost(await pubsub.pubsub_pop_message())

    run(main())


def test_a29_calling_is_not_allowed(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            assert isinstance(pubsub, tornadis.Client)
            for call in (pubsub.call, pubsub.async_call):
                with pytest.raises(tornadis.ClientError, match="not allowed with PubSubClient object"):
                    call("PING")

    run(main())


def test_a30_subscriptions_accumulate(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            assert pubsub.subscribed is False
            assert not pubsub.is_connected()
            future = pubsub.pubsub_subscribe("a", b"b")
            assert isinstance(future, Future)
            assert await future is True
            assert pubsub.subscribed is True
            assert pubsub.is_connected()
            assert await pubsub.pubsub_subscribe("b", 7) is True
            assert await pubsub.pubsub_psubscribe("p*") is True
            for channel in ("a", "b", "7", "p1"):
                assert redis_server.call("PUBLISH", channel, "x") == 1

    run(main())


def test_a30_subscribing_to_nothing_is_false_and_warned_of(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            assert await pubsub.pubsub_subscribe() is False
            assert await pubsub.pubsub_psubscribe() is False
            assert pubsub.subscribed is False

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a30_subscribing_without_a_server_is_false_and_leaves_nothing_behind(redis_binary: ServerBinary) -> None:
    async def main() -> None:
        with RunningServer(redis_binary) as server:
            server.stop()
            async with pubsub_of(server) as pubsub:
                assert await pubsub.connect() is False
                assert await pubsub.pubsub_subscribe("a") is False
                assert await pubsub.pubsub_psubscribe("a*") is False
                assert pubsub.subscribed is False
                assert not pubsub.is_connected()
                # Nothing tries on behind the back of who was told that it is not subscribed.
                await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
                server.start()
                assert await pubsub.pubsub_subscribe("b") is True
                assert server.call("PUBLISH", "a", "x") == 0
            async with pubsub_of(server, autoconnect=False) as pubsub:
                assert await pubsub.pubsub_subscribe("a") is False
                assert await pubsub.connect() is True
                assert await pubsub.pubsub_subscribe("a") is True

    run(main())


def test_a30_a_subscription_that_a_break_interrupts_is_false_and_does_not_come_later(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, pubsub_of(proxy) as pubsub:
            assert await pubsub.pubsub_subscribe("a")
            proxy.to_server.faults = Faults(black_hole=True)
            subscribing = pubsub.pubsub_subscribe("a", "b")
            await asyncio.sleep(0)
            proxy.heal()
            proxy.to_server.faults = Faults(cut_at=b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nb")
            assert await subscribing is False
            proxy.heal()
            assert lost(await pubsub.pubsub_pop_message())
            assert redis_server.call("PUBLISH", "a", "x") == 1
            assert redis_server.call("PUBLISH", "b", "x") == 0

    run(main())


def test_a31_unsubscribing_is_true_for_unknown_names_too(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            await pubsub.pubsub_subscribe("a", "b")
            await pubsub.pubsub_psubscribe("p*")
            assert await pubsub.pubsub_unsubscribe("a", "unknown") is True
            assert await pubsub.pubsub_punsubscribe("unknown*") is True
            assert redis_server.call("PUBLISH", "a", "x") == 0
            assert await pubsub.pubsub_unsubscribe("b") is True
            assert pubsub.subscribed is True
            assert await pubsub.pubsub_punsubscribe("p*") is True
            assert pubsub.subscribed is False
            assert redis_server.call("PUBLISH", "p", "x") == 0

    run(main())


def test_a31_unsubscribing_without_a_server_is_false(free_port: int) -> None:
    async def main() -> None:
        pubsub = tornadis.PubSubClient(port=free_port)
        assert await pubsub.pubsub_unsubscribe("a") is False
        assert await pubsub.pubsub_punsubscribe("a*") is False

    run(main())


def test_a32_unsubscribing_without_names_is_from_all(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            await pubsub.pubsub_subscribe("a", "b", "c")
            assert await pubsub.pubsub_unsubscribe() is True
            assert pubsub.subscribed is False
            await pubsub.pubsub_psubscribe("a*", "b*")
            redis_server.call("PUBLISH", "b1", "x")
            # No confirmation comes out as a message.
            assert await pubsub.pubsub_pop_message(5) == [b"pmessage", b"b*", b"b1", b"x"]
            assert await pubsub.pubsub_punsubscribe() is True
            assert pubsub.subscribed is False

    run(main())


def test_a33_messages_are_popped_in_order_and_none_is_lost_while_nobody_pops(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            await pubsub.pubsub_subscribe("a")
            await pubsub.pubsub_psubscribe("p*")
            for number in range(100):
                redis_server.call("PUBLISH", "a", number)
            redis_server.call("PUBLISH", "p1", "by pattern")
            assert [await pubsub.pubsub_pop_message() for _ in range(100)] == [
                message("a", str(number)) for number in range(100)
            ]
            assert await pubsub.pubsub_pop_message(deadline=5) == [b"pmessage", b"p*", b"p1", b"by pattern"]
            assert await pubsub.pubsub_pop_message(deadline=0.05) is None
            waiting = pubsub.pubsub_pop_message()
            await asyncio.sleep(0)
            redis_server.call("PUBLISH", "a", "late")
            assert await waiting == message("a", "late")

    run(main())


def test_a34_popping_without_a_subscription_is_a_client_error(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            assert isinstance(await pubsub.pubsub_pop_message(), tornadis.ClientError)
            await pubsub.pubsub_subscribe("a")
            await pubsub.pubsub_unsubscribe("a")
            assert isinstance(await pubsub.pubsub_pop_message(), tornadis.ClientError)

    run(main())


def test_a35_of_two_that_pop_each_gets_a_message_of_its_own(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            await pubsub.pubsub_subscribe("a")
            first, given_up, second = (
                pubsub.pubsub_pop_message(),
                pubsub.pubsub_pop_message(0.05),
                pubsub.pubsub_pop_message(),
            )
            assert await given_up is None
            redis_server.call("PUBLISH", "a", 1)
            assert await first == message("a", "1")
            assert not second.done()
            redis_server.call("PUBLISH", "a", 2)
            assert await second == message("a", "2")
            third, fourth = pubsub.pubsub_pop_message(), pubsub.pubsub_pop_message()
            await asyncio.sleep(0)
            third.cancel()
            redis_server.call("PUBLISH", "a", 3)
            assert await fourth == message("a", "3")

    run(main())


def test_a36_a_message_during_subscribing_is_a_message(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, pubsub_of(proxy) as pubsub:
            await pubsub.pubsub_subscribe("a")
            # What the server says waits, the message first, then the confirmation.
            proxy.to_client.faults = Faults(black_hole=True)
            assert redis_server.call("PUBLISH", "a", "between") == 1
            subscribing = pubsub.pubsub_subscribe("b")
            await eventually(lambda: redis_server.call("PUBSUB", "CHANNELS", "b") == [b"b"])
            proxy.heal()
            assert await subscribing is True
            assert await pubsub.pubsub_pop_message(5) == message("a", "between")
            assert await pubsub.pubsub_pop_message(0.05) is None

    run(main())


def test_a37_after_a_break_one_connection_error_is_popped_and_all_subscriptions_are_back(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, pubsub_of(proxy) as pubsub:
            await pubsub.pubsub_subscribe("a", "b")
            await pubsub.pubsub_psubscribe("p*")
            popping = pubsub.pubsub_pop_message()
            await asyncio.sleep(0)
            proxy.reset()
            assert lost(await popping)
            assert pubsub.subscribed is True
            assert pubsub.is_connected()
            for channel in ("a", "b", "p1"):
                assert redis_server.call("PUBLISH", channel, channel) == 1
            assert await pubsub.pubsub_pop_message(5) == message("a", "a")
            assert await pubsub.pubsub_pop_message(5) == message("b", "b")
            assert await pubsub.pubsub_pop_message(5) == [b"pmessage", b"p*", b"p1", b"p1"]

    run(main())


def test_a37_without_autoconnect_a_break_is_the_end(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, pubsub_of(proxy, autoconnect=False) as pubsub:
            assert await pubsub.connect()
            await pubsub.pubsub_subscribe("a")
            popping = [pubsub.pubsub_pop_message(), pubsub.pubsub_pop_message()]
            await asyncio.sleep(0)
            proxy.reset()
            assert all(map(lost, await asyncio.gather(*popping)))
            assert pubsub.subscribed is False
            assert not pubsub.is_connected()
            assert isinstance(await pubsub.pubsub_pop_message(), tornadis.ClientError)
            await eventually(lambda: proxy.live == 0)
            assert proxy.connections == 1

    run(main())


def test_a37_disconnect_ends_who_waits_and_a_new_life_may_begin(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with pubsub_of(redis_server) as pubsub:
            await pubsub.pubsub_subscribe("a")
            popping = pubsub.pubsub_pop_message()
            await asyncio.sleep(0)
            assert pubsub.disconnect() is None
            assert not pubsub.is_connected()
            assert lost(await popping)
            assert await pubsub.pubsub_subscribe("b") is True
            await eventually(lambda: redis_server.call("PUBLISH", "a", "x") == 0)
            redis_server.call("PUBLISH", "b", "x")
            assert await pubsub.pubsub_pop_message(5) == message("b", "x")

    run(main())


def test_a38_messages_that_were_not_popped_outlive_a_break(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, pubsub_of(proxy) as pubsub:
            await pubsub.pubsub_subscribe("a")
            before = proxy.to_client.bytes
            redis_server.call("PUBLISH", "a", "before")
            # They come in order, so what was sent after it tells that it was read.
            await eventually(lambda: proxy.to_client.bytes > before)
            await pubsub.pubsub_unsubscribe("unknown")
            assert await pubsub.pubsub_subscribe("b")
            proxy.reset()
            await eventually(lambda: proxy.connections == 2 and pubsub.is_connected())
            redis_server.call("PUBLISH", "a", "after")
            assert await pubsub.pubsub_pop_message(5) == message("a", "before")
            assert lost(await pubsub.pubsub_pop_message(5))
            assert await pubsub.pubsub_pop_message(5) == message("a", "after")

    run(main())
