"""The link of a PubSubClient over broken and misleading networks: probes, back-off, restoring, the end."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from waterspout_redis import (
    CallTimeout,
    Client,
    ClosedError,
    ConnectionLost,
    Gap,
    LinkState,
    NoPermissionError,
    PubSubClient,
    PubSubMessage,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run


@pytest.fixture
def two_servers(redis_binary: ServerBinary) -> Iterator[list[RunningServer]]:
    with RunningServer(redis_binary) as first, RunningServer(redis_binary) as second:
        yield [first, second]


def subscribed(server: RunningServer) -> set[bytes]:
    return set(server.call("PUBSUB", "CHANNELS"))


async def take(listener: Any, count: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [await anext(listener) for _ in range(count)]


# Probes


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_probe_comes_back_and_no_listener_sees_it(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub, Client(redis_server.url) as client:
            listener = pubsub.listen()
            # Whoever listens to all channels gets the token, too, but not behind its own link.
            await asyncio.gather(pubsub.subscribe("a"), pubsub.psubscribe("*"))
            seconds = await asyncio.gather(*(pubsub.probe(client) for _ in range(5)))
            assert all(0 < each < 5 for each in seconds)
            assert pubsub.channels == {b"a"}
            assert pubsub.patterns == {b"*"}
            await eventually(lambda: subscribed(redis_server) == {b"a"})
            redis_server.call("PUBLISH", "a", "1")
            assert await take(listener, 2) == [PubSubMessage(b"a", b"1"), PubSubMessage(b"a", b"1", b"*")]
            # Nothing is left of them that would slow down what follows.
            redis_server.call("PUBLISH", "a", "2")
            assert len(await take(listener, 2)) == 2
            assert not pubsub._link._probes

    run(main())


def test_a_probe_alone_connects_and_is_no_reason_for_a_gap(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url) as pubsub, Client(redis_server.url) as client:
            assert await pubsub.probe(client) < 5
            redis_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda: pubsub.last_error is not None)
            await pubsub.subscribe("a")
            redis_server.call("PUBLISH", "a", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"a", b"1")]

    run(main())


def test_a_link_that_answers_but_delivers_nothing_is_made_anew_F10(two_servers: list[RunningServer]) -> None:
    old, new = two_servers

    async def main() -> None:
        async with FaultProxy(old.port) as proxy, PubSubClient(proxy.url, health_check_interval=0.1) as pubsub:
            await pubsub.subscribe("a")
            # The name leads elsewhere now; the old server lives on, and answers every PING.
            proxy.target = ("127.0.0.1", new.port)
            async with Client(proxy.url) as client:
                with pytest.raises(ConnectionLost, match=r"delivers nothing: no probe came back within 0\.5 s"):
                    await pubsub.probe(client, timeout=0.5)
                assert isinstance((await take(pubsub, 1))[0], Gap)
                assert "delivers nothing" in str(pubsub.last_error)
                await eventually(lambda: (subscribed(old), subscribed(new)) == (set(), {b"a"}))
                assert await pubsub.probe(client) < 5
                await client.call("PUBLISH", "a", "1")
                assert await take(pubsub, 1) == [PubSubMessage(b"a", b"1")]

    run(main())


def test_a_probe_ends_with_the_link_it_was_sent_over(two_servers: list[RunningServer]) -> None:
    here, elsewhere = two_servers

    async def main() -> None:
        async with PubSubClient(here.url) as pubsub, Client(elsewhere.url) as client:
            await pubsub.subscribe("a")
            probing = asyncio.create_task(pubsub.probe(client, timeout=20))
            await eventually(lambda: b"cmdstat_publish" in elsewhere.call("INFO", "commandstats"))
            here.call("CLIENT", "KILL", "TYPE", "pubsub")
            async with asyncio.timeout(5):
                with pytest.raises(ConnectionLost, match="the server closed it"):
                    await probing
                assert isinstance((await take(pubsub, 1))[0], Gap)
            assert subscribed(here) == {b"a"}

    run(main())


def test_a_probe_that_could_not_be_published_says_so_and_keeps_the_link(two_servers: list[RunningServer]) -> None:
    here, suspended = two_servers

    async def main() -> None:
        async with PubSubClient(here.url) as pubsub, Client(suspended.url) as client:
            await asyncio.gather(pubsub.subscribe("a"), client.connect())
            suspended.suspend()
            with pytest.raises(CallTimeout):
                await pubsub.probe(client, timeout=0.2)
            suspended.resume()
            await client.aclose()
            with pytest.raises(ClosedError):
                await pubsub.probe(client)
            assert (pubsub.state, pubsub.last_error) == (LinkState.CONNECTED, None)

    run(main())


def test_a_probe_while_nothing_is_read_keeps_the_link_and_loses_nothing(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, max_messages=10) as pubsub, Client(redis_server.url) as client:
            await pubsub.subscribe("a")
            await asyncio.gather(*(client.call("PUBLISH", "a", f"{n}:{'x' * 10_000}") for n in range(2000)))
            with pytest.raises(CallTimeout):
                await pubsub.probe(client, timeout=0.2)
            items = await take(pubsub, 2000)
            assert [int(item.data.split(b":")[0]) for item in items] == list(range(2000))
            assert await pubsub.probe(client) < 5
            assert pubsub.last_error is None

    run(main())


def test_a_probe_that_is_refused_or_cut_off_or_too_late_says_so(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">secret", "+@all", "resetchannels", "&a")

    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            async with PubSubClient(fresh_redis_server.url, username="app", password="secret") as pubsub:
                await pubsub.subscribe("a")
                with pytest.raises(NoPermissionError):
                    await pubsub.probe(client)
                assert pubsub.state is LinkState.CONNECTED
            with pytest.raises(ClosedError):
                await pubsub.probe(client)
            async with PubSubClient(fresh_redis_server.url) as pubsub:
                probing = asyncio.create_task(pubsub.probe(client))
                await asyncio.sleep(0)
                await pubsub.aclose()
                with pytest.raises(ClosedError):
                    await probing

    run(main())


# Restoring


def test_the_back_off_grows_until_a_subscription_is_confirmed_F13(redis_server: RunningServer) -> None:
    async def main() -> None:
        downs: list[float] = []
        waits: list[float] = []

        def changed(state: LinkState, error: Any) -> None:
            now = asyncio.get_running_loop().time()
            if state is LinkState.DISCONNECTED:
                downs.append(now)
            elif state is LinkState.CONNECTING and downs:
                waits.append(now - downs[-1])

        async with FaultProxy(redis_server.port) as proxy:
            # Every connection is made, logged in, and cut when it subscribes: the first as well as the later ones.
            proxy.to_server.faults = Faults(cut_at=b"*2\r\n$9\r\nSUBSCRIBE")
            async with PubSubClient(proxy.url, on_state=changed) as pubsub:
                confirmed = pubsub.subscribe("a")
                await eventually(lambda: len(waits) == 4)
                assert proxy.connections >= 4
                assert not confirmed.done()
                # 0.1, 0.2, 0.4 and 0.8 s, each at least half of it; had it been reset, 0.1 s at most each.
                assert sum(waits) >= 0.74
                proxy.heal()
                await confirmed
                redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
                before = len(waits)
                await eventually(lambda: len(waits) > before)
                # The sixth in a row would have been 1.6 s at least.
                assert waits[-1] < 1
                assert isinstance((await take(pubsub, 1))[0], Gap)

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_comes_while_restoring_waits_for_the_gap_and_is_bounded(
    redis_server: RunningServer, protocol: int
) -> None:
    async def main() -> None:
        async with (
            FaultProxy(redis_server.port) as proxy,
            PubSubClient(proxy.url, protocol=protocol) as pubsub,
            Client(redis_server.url) as client,
        ):
            await pubsub.subscribe("a")
            # The PING that ends the restoring is held up; what was subscribed before it works already.
            proxy.to_server.faults = Faults(hold_at=b"*1\r\n$4\r\nPING")
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda: subscribed(redis_server) == {b"a"})
            for number in range(300):
                assert await client.call("PUBLISH", "a", b"%d:%s" % (number, b"x" * 10_000)) == 1
            assert pubsub.state is LinkState.CONNECTING
            assert pubsub._link._held_bytes <= 1024 * 1024
            proxy.heal()
            items = await take(pubsub, 1)
            assert isinstance(items[0], Gap)
            numbers = [int(item.data.split(b":")[0]) for item in await take(pubsub, 1)]
            while numbers[-1] != 299:
                numbers += [int(item.data.split(b":")[0]) for item in await take(pubsub, 1)]
            # 3 MB came: the oldest are lost before the gap, and none behind it.
            assert numbers == list(range(numbers[0], 300))
            assert numbers[0] >= 190

    run(main())


def test_a_server_that_knows_no_hello_serves_all_the_same(redis_binary: ServerBinary) -> None:
    async def main(server: RunningServer) -> None:
        async with PubSubClient(server.url) as pubsub, Client(server.url) as client:
            await asyncio.gather(pubsub.subscribe("a"), pubsub.psubscribe("p*"), pubsub.ssubscribe("s"))
            assert await pubsub.probe(client) < 5
            server.call("CLIENT", "KILL", "TYPE", "pubsub")
            assert isinstance((await take(pubsub, 1))[0], Gap)
            await asyncio.gather(client.call("PUBLISH", "pa", "1"), client.call("SPUBLISH", "s", "2"))
            assert await take(pubsub, 2) == [PubSubMessage(b"pa", b"1", b"p*"), PubSubMessage(b"s", b"2")]

    with RunningServer(redis_binary, "--rename-command", "HELLO", "") as server:
        run(main(server))


# Routing


@pytest.mark.parametrize("protocol", [2, 3])
def test_messages_are_never_taken_for_confirmations_F19(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with PubSubClient(redis_server.url, protocol=protocol) as pubsub, Client(redis_server.url) as client:
            await pubsub.subscribe("subscribe")
            done = asyncio.Event()

            async def publish() -> int:
                for number in itertools.count(1):
                    await client.call("PUBLISH", "subscribe", f"{number} subscribe b")
                    if done.is_set():
                        return number
                raise AssertionError

            publishing = asyncio.create_task(publish())
            for number in range(100):
                await pubsub.subscribe(f"b:{number}")
                assert f"b:{number}".encode() in subscribed(redis_server)
                await pubsub.unsubscribe(f"b:{number}")
                assert f"b:{number}".encode() not in subscribed(redis_server)
            done.set()
            last = await publishing
            items = await take(pubsub, last)
            assert [item.data for item in items] == [b"%d subscribe b" % number for number in range(1, last + 1)]
            assert pubsub.last_error is None

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_health_checks_and_messages_do_not_get_in_each_others_way_F7(
    redis_server: RunningServer, protocol: int
) -> None:
    async def main() -> None:
        states: list[LinkState] = []
        async with (
            PubSubClient(
                redis_server.url,
                protocol=protocol,
                health_check_interval=0.02,
                on_state=lambda state, error: states.append(state),
            ) as pubsub,
            Client(redis_server.url) as client,
        ):
            await pubsub.subscribe("a")
            redis_server.call("CONFIG", "RESETSTAT")
            pings = published = 0
            while pings < 30:
                # Silent for about as long as it takes to a PING, sometimes a little less, sometimes more.
                await asyncio.sleep(0.015 + 0.001 * (published % 15))
                await client.call("PUBLISH", "a", published)
                published += 1
                stats = (await client.call("INFO", "commandstats", decode="utf-8")).splitlines()
                pings = sum(int(line.split("calls=")[1].split(",")[0]) for line in stats if "cmdstat_ping:" in line)
            items = await take(pubsub, published)
            assert [int(item.data) for item in items] == list(range(published))
            assert states == [LinkState.CONNECTING, LinkState.CONNECTED]

    run(main())


# The end


def test_an_error_in_on_state_ends_nothing_on_the_way_down_or_up(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(state: LinkState, error: Any) -> None:
        raise ValueError(f"told of {state.value}")

    async def main() -> None:
        async with PubSubClient(redis_server.url, on_state=fail) as pubsub:
            await pubsub.subscribe("a")
            for _ in range(2):
                redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
                assert isinstance((await take(pubsub, 1))[0], Gap)
            redis_server.call("PUBLISH", "a", "1")
            assert await take(pubsub, 1) == [PubSubMessage(b"a", b"1")]

    run(main())
    for state in LinkState:
        assert f"told of {state.value}" in caplog.text


async def nothing_is_left(pubsub: PubSubClient) -> None:
    loop = asyncio.get_running_loop()
    timers = sum(not timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]
    # This test, and its deadline.
    assert (len(asyncio.all_tasks()), timers) == (1, 1)
    assert pubsub.state is LinkState.CLOSED
    assert not pubsub._link.is_open


@pytest.mark.parametrize("protocol", [2, 3])
def test_closing_leaves_no_task_timer_or_socket(fresh_redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        # Connected; never used; while it connects; while it waits to try again.
        async with PubSubClient(fresh_redis_server.url, protocol=protocol) as connected:
            await connected.subscribe("a")
        await nothing_is_left(connected)
        assert b"pubsub" not in fresh_redis_server.call("CLIENT", "LIST", "TYPE", "pubsub")
        async with PubSubClient(fresh_redis_server.url) as unused:
            pass
        await nothing_is_left(unused)
        fresh_redis_server.suspend()
        async with PubSubClient(fresh_redis_server.url, protocol=protocol) as connecting:
            connecting.start()
            await eventually(lambda: connecting.state is LinkState.CONNECTING)
        await nothing_is_left(connecting)
        fresh_redis_server.resume()
        fresh_redis_server.stop()
        async with PubSubClient(fresh_redis_server.url, protocol=protocol) as waiting:
            waiting.start()
            await eventually(lambda: waiting.state is LinkState.DISCONNECTED and waiting.last_error is not None)
        await nothing_is_left(waiting)

    run(main())
