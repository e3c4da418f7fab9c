"""Sharded pub/sub, on servers alone and in a cluster."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from waterspout_redis import Gap, LinkState, MovedError, NoPermissionError, PubSubClient, PubSubMessage
from waterspout_redis.testing import RunningServer, ServerBinary, eventually, run


def free_port() -> str:
    # The default is 10,000 above the server's own port, which may be beyond the last one.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def cluster_node(binary: ServerBinary) -> RunningServer:
    return RunningServer(
        binary, "--cluster-enabled", "yes", "--cluster-port", free_port(), "--cluster-require-full-coverage", "no"
    )


async def works(*nodes: RunningServer) -> None:
    await eventually(lambda: all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in nodes))


@pytest.fixture(scope="module")
def node(redis_binary: ServerBinary) -> Iterator[RunningServer]:
    """A cluster of one, with all slots; it takes two seconds to begin its work, so tests share it."""
    with cluster_node(redis_binary) as node:
        node.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        yield node


@pytest.fixture
def two_nodes(redis_binary: ServerBinary) -> Iterator[list[RunningServer]]:
    """A cluster of two that know each other; the first has all slots."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(cluster_node(redis_binary)) for _ in range(2)]
        for epoch, node in enumerate(nodes, 1):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        nodes[0].call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        bus = nodes[1]._options[3]
        nodes[0].call("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, bus)
        yield nodes


def subscribed(server: RunningServer) -> set[bytes]:
    return set(server.call("PUBSUB", "SHARDCHANNELS"))


async def take(pubsub: PubSubClient, count: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [await anext(pubsub) for _ in range(count)]


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_is_published_to_a_shard_arrives_beside_the_rest(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub:
            await asyncio.gather(pubsub.ssubscribe("a", b"b"), pubsub.subscribe("a"), pubsub.psubscribe("p*"))
            assert pubsub.shard_channels == {b"a", b"b"}
            assert redis_server.call("SPUBLISH", "b", "1") == 1
            assert redis_server.call("PUBLISH", "a", "2") == 1
            assert await take(pubsub, 2) == [PubSubMessage(b"b", b"1"), PubSubMessage(b"a", b"2")]
            # The server counts shard channels by themselves; the others are still there when the last of them is left.
            await pubsub.sunsubscribe()
            assert (subscribed(redis_server), pubsub.shard_channels) == (set(), frozenset())
            redis_server.call("SPUBLISH", "b", "3")
            redis_server.call("PUBLISH", "pa", "4")
            assert await take(pubsub, 1) == [PubSubMessage(b"pa", b"4", b"p*")]
            await asyncio.gather(pubsub.ssubscribe("c"), pubsub.unsubscribe(), pubsub.punsubscribe())
            redis_server.call("SPUBLISH", "c", "5")
            assert await take(pubsub, 1) == [PubSubMessage(b"c", b"5")]
            assert pubsub.last_error is None

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_after_a_kill_shards_are_restored_too_F11(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub:
            await asyncio.gather(pubsub.ssubscribe("a", "b"), pubsub.subscribe("c"))
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            assert isinstance((await take(pubsub, 1))[0], Gap)
            assert subscribed(redis_server) == {b"a", b"b"}
            redis_server.call("SPUBLISH", "b", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"b", b"1")]

    run(main())


def test_a_shard_that_is_refused_raises_and_spoils_nothing_for_the_others(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">secret", "+@all", "resetchannels", "&ok*")

    async def main() -> None:
        async with PubSubClient(fresh_redis_server.url, username="app", password="secret") as pubsub:
            results = await asyncio.gather(
                pubsub.ssubscribe("ok:1"), pubsub.ssubscribe("no:1", "ok:2"), return_exceptions=True
            )
            assert [type(result) for result in results] == [type(None), NoPermissionError]
            await eventually(lambda: subscribed(fresh_redis_server) == {b"ok:1", b"ok:2"})
            assert pubsub.shard_channels == {b"ok:1", b"ok:2"}

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_in_a_cluster_shards_of_any_slots_are_subscribed_left_and_restored(node: RunningServer, protocol: int) -> None:
    async def main() -> None:
        await works(node)
        names = [f"channel:{number}" for number in range(200)]
        async with PubSubClient(node.url, protocol=protocol) as pubsub:
            await asyncio.gather(pubsub.ssubscribe(*names), pubsub.subscribe("a"))
            assert subscribed(node) == {name.encode() for name in names}
            node.call("SPUBLISH", "channel:7", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"channel:7", b"1")]
            await pubsub.sunsubscribe(*names[50:])
            node.call("CLIENT", "KILL", "TYPE", "pubsub")
            assert isinstance((await take(pubsub, 1))[0], Gap)
            assert subscribed(node) == {name.encode() for name in names[:50]}
            assert pubsub.state is LinkState.CONNECTED

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_when_the_server_ends_a_shard_it_is_subscribed_anew_behind_a_gap(node: RunningServer, protocol: int) -> None:
    async def main() -> None:
        await works(node)
        slot = node.call("CLUSTER", "KEYSLOT", "a")
        async with PubSubClient(node.url, protocol=protocol) as pubsub:
            await asyncio.gather(pubsub.ssubscribe("a"), pubsub.subscribe("b"))
            node.call("CLUSTER", "DELSLOTS", slot)
            await eventually(lambda: "ended the subscription of b'a'" in str(pubsub.last_error))
            # Nobody serves it now: tried again until somebody does.
            node.call("CLUSTER", "ADDSLOTS", slot)
            items = await take(pubsub, 1)
            assert isinstance(items[0], Gap)
            assert subscribed(node) == {b"a"}
            node.call("SPUBLISH", "a", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"a", b"1")]

    run(main())


def test_a_shard_of_another_node_raises_moved_also_when_it_moves_later(
    two_nodes: list[RunningServer], caplog: pytest.LogCaptureFixture
) -> None:
    here, there = two_nodes

    async def main() -> None:
        await works(here)
        slot = here.call("CLUSTER", "KEYSLOT", "a")
        there_id = there.call("CLUSTER", "MYID")
        await eventually(lambda: there_id in here.call("CLUSTER", "NODES"))
        async with PubSubClient(here.url) as pubsub:
            await pubsub.ssubscribe("a", "b")
            await eventually(lambda: b"connected" in here.call("CLUSTER", "NODES"))
            for node in (there, here):
                node.call("CLUSTER", "SETSLOT", slot, "NODE", there_id)
            assert isinstance((await take(pubsub, 1))[0], Gap)
            assert pubsub.shard_channels == {b"b"}
            assert "refused SSUBSCRIBE: MOVED" in caplog.text
            with pytest.raises(MovedError, match=rf"MOVED {slot} .*:{there.port}"):
                await pubsub.ssubscribe("a")
            here.call("SPUBLISH", "b", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"b", b"1")]

    caplog.set_level(logging.WARNING, "waterspout.redis")
    run(main())
