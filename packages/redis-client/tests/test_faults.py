"""Both clients over networks that break and with servers that refuse."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest

from waterspout_redis import (
    CallTimeout,
    Client,
    ConnectError,
    ConnectionLost,
    Gap,
    LinkState,
    Pipeline,
    PubSubClient,
    PubSubMessage,
    ResponseError,
    WrongPasswordError,
    WrongTypeError,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run

BLACK_HOLE = Faults(black_hole=True)

both_protocols = pytest.mark.parametrize("protocol", [2, 3])


@asynccontextmanager
async def through_proxy(server: RunningServer, **options: Any) -> AsyncIterator[tuple[FaultProxy, Client]]:
    """A client whose way to the server leads through a proxy."""
    async with FaultProxy(server.port) as proxy, Client(proxy.url, **options) as client:
        yield proxy, client


@asynccontextmanager
async def listening(server: RunningServer, **options: Any) -> AsyncIterator[tuple[FaultProxy, PubSubClient]]:
    """A client that is subscribed to "a", whose way to the server leads through a proxy."""
    async with FaultProxy(server.port) as proxy, PubSubClient(proxy.url, **options) as pubsub:
        await pubsub.subscribe("a")
        yield proxy, pubsub


async def take(pubsub: PubSubClient, count: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [await anext(pubsub) for _ in range(count)]


async def gap(pubsub: PubSubClient) -> None:
    """Wait for the news that the link was away, and that it is back."""
    assert isinstance((await take(pubsub, 1))[0], Gap)


async def written(proxy: FaultProxy, client: Client, *command: Any) -> asyncio.Future[Any]:
    """A call that has reached the proxy's far side."""
    before = proxy.to_server.bytes
    call = client.call(*command)
    await eventually(lambda: proxy.to_server.bytes > before)
    return call


def ended(call: asyncio.Future[Any]) -> bool:
    """Whether the call was told that it may have been executed."""
    error = call.exception()
    return isinstance(error, ConnectionLost) and error.maybe_executed


# In pieces, late, slowly


@both_protocols
@pytest.mark.parametrize("size", [1, 7])
def test_bytes_may_come_in_any_pieces(redis_server: RunningServer, protocol: int, size: int) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            proxy.disturb(Faults(chunk_size=size))
            async with Client(proxy.url, protocol=protocol, db=1, client_name="piecemeal") as client:
                pipeline = Pipeline()
                pipeline.stack_call("SET", "k", "\r\n$3\r\n")
                pipeline.stack_call("LPUSH", "k", "x")
                pipeline.stack_call("GET", "k")
                pipeline.stack_call("GET", "missing")
                pipeline.stack_call("HSET", "h", "a", 1, "b", 2)
                ok, error, value, missing, added = await client.call(pipeline)
                assert (ok, value, missing, added) == (b"OK", b"\r\n$3\r\n", None, 2)
                assert isinstance(error, WrongTypeError)
                hash = {b"a": b"1", b"b": b"2"} if protocol == 3 else [b"a", b"1", b"b", b"2"]
                assert await client.call("HGETALL", "h") == hash
                calls = [client.call("ECHO", number) for number in range(100)]
                assert await asyncio.gather(*calls) == [b"%d" % number for number in range(100)]

    run(main())


@both_protocols
def test_messages_may_come_in_any_pieces(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            proxy.disturb(Faults(chunk_size=1))
            async with PubSubClient(proxy.url, protocol=protocol) as pubsub:
                await asyncio.gather(pubsub.subscribe("a", "b"), pubsub.psubscribe("p*"))
                for channel, data in (("a", ""), ("b", "\r\n"), ("pa", "3")):
                    redis_server.call("PUBLISH", channel, data)
                await pubsub.unsubscribe("b")
                assert await take(pubsub, 3) == [
                    PubSubMessage(b"a", b""),
                    PubSubMessage(b"b", b"\r\n"),
                    PubSubMessage(b"pa", b"3", b"p*"),
                ]

    run(main())


def test_a_long_way_costs_all_calls_one_round_trip_and_not_each(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server) as (proxy, client):
            proxy.disturb(Faults(delay=0.1))
            loop = asyncio.get_running_loop()
            begun = loop.time()
            calls = [client.call("ECHO", number) for number in range(1000)]
            assert await asyncio.gather(*calls) == [b"%d" % number for number in range(1000)]
            assert 0.2 <= loop.time() - begun < 1

    run(main())


def test_a_reply_that_comes_after_its_time_out_is_nobody_elses_F1(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server, timeout=0.2) as (proxy, client):
            proxy.to_client.faults = BLACK_HOLE
            late = client.call("INCR", "late")
            with pytest.raises(CallTimeout) as caught:
                await late
            assert caught.value.maybe_executed
            proxy.heal()
            assert await client.call("ECHO", "own") == b"own"
            assert await client.call("GET", "late") == b"1"
            assert proxy.connections == 1

    run(main())


def test_a_slow_line_is_not_a_dead_one(redis_server: RunningServer) -> None:
    value = bytes(100_000)
    redis_server.call("SET", "large", value)

    async def main() -> None:
        async with through_proxy(redis_server, health_check_interval=0.2) as (proxy, client):
            proxy.to_client.faults = Faults(bandwidth=100_000)
            # The reply is five intervals long, but never silent.
            assert await client.call("GET", "large") == value
            assert proxy.connections == 1

    run(main())


# Black holes


def test_in_a_black_hole_every_waiting_caller_is_told_and_the_next_call_connects_again_F8(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with through_proxy(redis_server, health_check_interval=0.2, timeout=None, max_in_flight=50) as (
            proxy,
            client,
        ):
            proxy.disturb(BLACK_HOLE)
            calls = [client.call("INCR", "n") for _ in range(80)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            # What was not written goes out on the next connection, which the hole lets through once it is healed.
            proxy.reset()
            proxy.heal()
            await asyncio.wait(calls)
            lost = list(filter(ended, calls))
            assert calls[0] in lost
            assert 25 <= len(lost) <= 50
            assert "the server has sent nothing" in str(calls[0].exception())
            assert lost[0].exception() is not lost[1].exception()
            assert [call.result() for call in calls[len(lost) :]] == list(range(1, 81 - len(lost)))

    run(main())


def test_a_command_whose_reply_was_swallowed_is_not_sent_again_F16(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server, health_check_interval=0.2) as (proxy, client):
            proxy.to_client.faults = BLACK_HOLE
            with pytest.raises(ConnectionLost) as caught:
                await client.call("INCR", "n")
            assert caught.value.maybe_executed
            proxy.heal()
            assert await client.call("GET", "n") == b"1"

    run(main())


@both_protocols
def test_a_listener_in_a_black_hole_is_told_and_comes_out_of_it_F8(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with listening(redis_server, protocol=protocol, health_check_interval=0.2, connect_timeout=0.3) as (
            proxy,
            pubsub,
        ):
            # Only what comes to us is lost: the server sees our PING, and nothing wrong.
            proxy.to_client.faults = BLACK_HOLE
            redis_server.call("PUBLISH", "a", "swallowed")
            await eventually(lambda: pubsub.last_error)
            assert "the server has sent nothing" in str(pubsub.last_error)
            await eventually(lambda: isinstance(pubsub.last_error, ConnectError))
            proxy.reset()
            proxy.heal()
            await gap(pubsub)
            redis_server.call("PUBLISH", "a", "after")
            assert await take(pubsub, 1) == [PubSubMessage(b"a", b"after")]

    run(main())


def test_connecting_through_a_black_hole_ends_in_time_and_works_when_it_is_healed(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            proxy.disturb(BLACK_HOLE)
            client = Client(proxy.url, connect_timeout=0.2, retry=0)
            calls = [client.call("PING") for _ in range(10)]
            await asyncio.wait(calls)
            for call in calls:
                error = call.exception()
                assert isinstance(error, ConnectError)
                assert not error.maybe_executed
            proxy.heal()
            await client.connect()
            assert await client.call("PING") == b"PONG"
            await client.aclose()

    run(main())


# Ends


@pytest.mark.parametrize("how", ["reset", "hang_up"])
def test_at_the_end_of_a_connection_calls_in_flight_are_told_and_the_next_connects_again(
    redis_server: RunningServer, how: str
) -> None:
    async def main() -> None:
        async with through_proxy(redis_server, retry=0) as (proxy, client):
            proxy.to_client.faults = BLACK_HOLE
            await written(proxy, client, "PING")
            calls = [client.call("ECHO", number) for number in range(10)]
            calls.append(await written(proxy, client, "PING"))
            getattr(proxy, how)()
            await asyncio.wait(calls)
            assert all(map(ended, calls))
            proxy.heal()
            assert await client.call("PING") == b"PONG"
            assert proxy.connections == 2

    run(main())


def test_an_end_is_noticed_while_nobody_calls(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server) as (proxy, client):
            for end in (proxy.reset, proxy.hang_up):
                assert client.is_connected()
                end()
                await eventually(lambda: not client.is_connected())
                assert await client.call("PING") == b"PONG"

    run(main())


def test_a_reply_cut_anywhere_is_no_reply(redis_server: RunningServer) -> None:
    redis_server.call("RPUSH", "list", "one", "", "three")
    reply = b"*3\r\n$3\r\none\r\n$0\r\n\r\n$5\r\nthree\r\n"

    async def main() -> None:
        async with through_proxy(redis_server, retry=0) as (proxy, client):
            for count in range(1, len(reply)):
                await client.call("PING")
                proxy.to_client.cut_after(count, reset=bool(count % 2))
                whole, behind = client.call("LRANGE", "list", 0, -1), client.call("ECHO", "behind")
                await asyncio.wait((whole, behind))
                assert ended(whole)
                assert ended(behind)
            assert await client.call("LRANGE", "list", 0, -1) == [b"one", b"", b"three"]
            assert proxy.connections == len(reply)

    run(main())


def test_only_what_reads_is_sent_again_and_each_gets_its_own_answer_F16(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server) as (proxy, client):
            for count in (1, 10, 30):
                proxy.to_client.cut_after(count)
                reads = [client.call("ECHO", number) for number in range(10)]
                write = client.call("INCR", "n")
                assert await asyncio.gather(*reads) == [b"%d" % number for number in range(10)]
                await asyncio.wait((write,))
                assert ended(write)
            assert await client.call("GET", "n") == b"3"

    run(main())


def test_what_is_answered_before_the_cut_counts(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server) as (proxy, client):
            proxy.to_client.cut_after(len(":1\r\n:2\r\n:"))
            calls = [client.call("INCR", "n") for _ in range(5)]
            await asyncio.wait(calls)
            assert [call.result() for call in calls[:2]] == [1, 2]
            assert all(map(ended, calls[2:]))
            # The server has done all five: nobody could know.
            assert await client.call("GET", "n") == b"5"

    run(main())


def test_a_command_cut_on_its_way_may_have_been_executed_for_all_we_know(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server) as (proxy, client):
            proxy.to_server.cut_after(20)
            with pytest.raises(ConnectionLost) as caught:
                await client.call("SET", "k", "value")
            assert caught.value.maybe_executed
            assert await client.call("EXISTS", "k") == 0

    run(main())


@both_protocols
def test_a_handshake_cut_anywhere_is_a_connect_error_and_the_next_one_is_whole(
    redis_server: RunningServer, protocol: int
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:

            def client() -> Client:
                return Client(proxy.url, protocol=protocol, db=1, client_name="me", retry=0)

            async with client():
                length = proxy.to_client.bytes
            for count in range(1, length - 1, 15):
                proxy.to_client.cut_after(count, reset=bool(count % 2))
                broken = client()
                with pytest.raises(ConnectError) as caught:
                    await broken.call("SET", "k", count)
                assert caught.value.step in ("HELLO", "SELECT", "CLIENT SETNAME", "CLIENT SETINFO")
                assert not caught.value.maybe_executed
                await broken.connect()
                assert " db=1 " in await broken.call("CLIENT", "INFO", decode="utf-8")
                await broken.aclose()
            await eventually(lambda: not proxy.live)
        assert redis_server.call("EXISTS", "k") == 0

    run(main())


def test_nothing_is_executed_twice_and_every_answer_is_true_however_often_the_connection_breaks_F16(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with through_proxy(redis_server, max_in_flight=20) as (proxy, client):
            chance = random.Random(3)
            answered: list[int] = []
            lost = 0

            async def caller() -> None:
                nonlocal lost
                for _ in range(200):
                    try:
                        answered.append(await client.call("INCR", "n"))
                    except ConnectionLost:
                        lost += 1
                    except ConnectError:
                        pass

            async def breaker() -> None:
                while True:
                    way = chance.choice((proxy.to_client, proxy.to_server))
                    way.cut_after(chance.randrange(1, 4000), reset=chance.random() < 0.5)
                    next_one = proxy.connections + 1
                    await eventually(partial(reached, next_one))

            def reached(connections: int) -> bool:
                return proxy.connections >= connections

            breaking = asyncio.create_task(breaker())
            await asyncio.gather(*(caller() for _ in range(50)))
            breaking.cancel()
            proxy.heal()
            assert proxy.connections > 10
            assert lost
            executed = int(await client.call("GET", "n"))
            assert len(set(answered)) == len(answered)
            assert len(answered) <= executed <= len(answered) + lost

    run(main())


def test_callers_get_their_own_answers_while_the_server_kills_their_connection(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            answers = 0
            stop = False

            async def caller(number: int) -> None:
                nonlocal answers
                turn = 0
                while not stop:
                    turn += 1
                    # One command that is sent again where its connection is killed, and one that is not.
                    for command in (("ECHO", f"{number}:{turn}"), ("EVAL", "return ARGV[1]", 0, f"{number}:{turn}")):
                        with suppress(ConnectionLost):
                            assert await client.call(*command) == f"{number}:{turn}".encode()
                            answers += 1

            callers = [asyncio.create_task(caller(number)) for number in range(50)]
            for _ in range(10):
                await eventually(lambda more=answers + 500: answers >= more)
                assert redis_server.call("CLIENT", "KILL", "TYPE", "normal") == 1
            stop = True
            await asyncio.gather(*callers)

    run(main())


@pytest.mark.parametrize("how", ["reset", "hang_up"])
def test_a_listener_whose_connection_ends_is_restored_with_a_gap_F11(redis_server: RunningServer, how: str) -> None:
    async def main() -> None:
        async with listening(redis_server) as (proxy, pubsub):
            await pubsub.psubscribe("p*")
            getattr(proxy, how)()
            await gap(pubsub)
            redis_server.call("PUBLISH", "a", "1")
            redis_server.call("PUBLISH", "pa", "2")
            assert [item.data for item in await take(pubsub, 2)] == [b"1", b"2"]

    run(main())


@both_protocols
def test_a_message_cut_in_two_is_none(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with listening(redis_server, protocol=protocol) as (proxy, pubsub):
            for count in (1, 12, 30, len(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\nhalf\r\n") - 1):
                redis_server.call("PUBLISH", "a", "before")
                assert await take(pubsub, 1) == [PubSubMessage(b"a", b"before")]
                proxy.to_client.cut_after(count)
                redis_server.call("PUBLISH", "a", "half")
                await gap(pubsub)

    run(main())


def test_restoring_cut_anywhere_loses_no_subscription_F12(redis_server: RunningServer) -> None:
    names = [f"channel:{number}".encode() for number in range(100)]

    async def main() -> None:
        async with listening(redis_server) as (proxy, pubsub):
            await pubsub.subscribe(*names)
            # Handshake, some confirmations, most of them.
            for count in (10, 700, 3000):
                connections = proxy.connections
                proxy.refuse()
                proxy.reset()
                await eventually(lambda: isinstance(pubsub.last_error, ConnectError))
                proxy.heal()
                proxy.to_client.cut_after(count)
                await gap(pubsub)
                assert proxy.connections == connections + 2
                assert set(redis_server.call("PUBSUB", "CHANNELS")) == {b"a", *names}

    run(main())


# Refused


def test_a_port_that_refuses_is_told_to_every_caller_and_tried_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with through_proxy(redis_server, retry=0) as (proxy, client):
            proxy.refuse()
            assert await client.call("PING") == b"PONG"
            proxy.hang_up()
            await eventually(lambda: not client.is_connected())
            calls = [client.call("PING") for _ in range(10)]
            await asyncio.wait(calls)
            errors = [call.exception() for call in calls]
            assert all(isinstance(error, ConnectError) and error.step == "connect" for error in errors)
            proxy.heal()
            await client.connect()
            assert await client.call("PING") == b"PONG"

    run(main())


@both_protocols
def test_a_listener_with_a_wrong_password_says_so_and_goes_on_trying(
    fresh_redis_server: RunningServer, protocol: int
) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">right", "~*", "&*", "+@all")

    async def main() -> None:
        async with PubSubClient(fresh_redis_server.url, username="app", password="secret", protocol=protocol) as pubsub:
            with pytest.raises(ConnectError) as caught:
                await pubsub.subscribe("a")
            for error in (caught.value, pubsub.last_error):
                assert isinstance(error, ConnectError)
                assert error.step == ("HELLO" if protocol == 3 else "AUTH")
                assert isinstance(error.cause, WrongPasswordError)
                assert "secret" not in str(error)
            fresh_redis_server.call("ACL", "SETUSER", "app", ">secret")
            # What was asked for stays desired.
            await eventually(lambda: pubsub.state is LinkState.CONNECTED)
            assert fresh_redis_server.call("PUBLISH", "a", "m") == 1

    run(main())


@both_protocols
def test_a_full_server_says_that_it_is_full_and_is_tried_again(redis_binary: ServerBinary, protocol: int) -> None:
    async def main(server: RunningServer) -> None:
        url = server.url
        async with Client(url) as first, Client(url), Client(url):
            client, pubsub = Client(url, protocol=protocol, retry=0), PubSubClient(url, protocol=protocol)
            subscribed = pubsub.subscribe("a")
            calls = [client.call("PING") for _ in range(10)]
            await asyncio.wait(calls)
            errors = [*(call.exception() for call in calls), await eventually(lambda: pubsub.last_error)]
            for error in errors:
                assert isinstance(error, ConnectError)
                assert not error.maybe_executed
                assert "max number of clients reached" in str(error)
            await first.call("CONFIG", "SET", "maxclients", 10)
            await client.connect()
            assert await client.call("PING") == b"PONG"
            await subscribed
            await asyncio.gather(client.aclose(), pubsub.aclose())

    with RunningServer(redis_binary, "--maxclients", "3") as server:
        run(main(server))


@both_protocols
def test_nothing_runs_in_db_0_where_select_fails_after_a_reconnect_F17(
    redis_server: RunningServer, redis_binary: ServerBinary, protocol: int
) -> None:
    async def main(small: RunningServer) -> None:
        async with through_proxy(redis_server, db=1, protocol=protocol, retry=0) as (proxy, client):
            await client.call("SET", "k", "v")
            target, proxy.target = proxy.target, ("127.0.0.1", small.port)
            proxy.reset()
            await eventually(lambda: not client.is_connected())
            for _ in range(2):
                with pytest.raises(ConnectError, match="SELECT failed") as caught:
                    await client.call("SET", "k", "v")
                assert isinstance(caught.value.cause, ResponseError)
            assert small.call("DBSIZE") == 0
            proxy.target = target
            await client.connect()
            assert await client.call("GET", "k") == b"v"

    with RunningServer(redis_binary, "--databases", "1") as small:
        run(main(small))


@pytest.mark.parametrize("password", [None, "secret"])
def test_a_server_that_knows_no_hello_is_spoken_to_in_resp2(redis_binary: ServerBinary, password: str | None) -> None:
    async def main(port: int) -> None:
        async with (
            FaultProxy(port) as proxy,
            Client(port=port, password=password, db=2, client_name="old") as client,
            PubSubClient(proxy.url, password=password, health_check_interval=0.05) as pubsub,
        ):
            info = await client.call("CLIENT", "LIST", "TYPE", "normal", decode="utf-8")
            assert " name=old " in info
            assert " db=2 " in info
            await client.call("HSET", "h", "a", 1)
            assert await client.call("HGETALL", "h") == [b"a", b"1"]
            await asyncio.gather(pubsub.subscribe("a"), pubsub.psubscribe("p*"))
            await client.call("PUBLISH", "a", "1")
            await client.call("PUBLISH", "pa", "2")
            assert await take(pubsub, 2) == [PubSubMessage(b"a", b"1"), PubSubMessage(b"pa", b"2", b"p*")]
            # Where something is subscribed PING has an answer of another form: the health check knows it.
            five_pongs_on = proxy.to_client.bytes + 5 * len(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
            await eventually(lambda: proxy.to_client.bytes >= five_pongs_on)
            assert pubsub.last_error is None
            await client.call("CLIENT", "KILL", "TYPE", "pubsub")
            await gap(pubsub)

    options = () if password is None else ("--requirepass", password)
    with RunningServer(redis_binary, "--rename-command", "HELLO", "", *options) as server:
        run(main(server.port))


# Held up


def test_calls_wait_while_the_server_pauses_its_clients(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            before = await client.call("CLIENT", "ID")
            await client.call("CLIENT", "PAUSE", 300, "ALL")
            begun = asyncio.get_running_loop().time()
            calls = [client.call("INCR", "n") for _ in range(100)]
            assert await asyncio.gather(*calls) == list(range(1, 101))
            assert asyncio.get_running_loop().time() - begun > 0.2
            assert await client.call("CLIENT", "ID") == before

    run(main())


def test_calls_that_time_out_in_a_pause_keep_their_places_in_line_F1(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, timeout=0.2) as client:
            before = await client.call("CLIENT", "ID")
            await client.call("CLIENT", "PAUSE", 500, "WRITE")
            paused = [client.call("INCR", "n") for _ in range(10)]
            await asyncio.wait(paused)
            for call in paused:
                error = call.exception()
                assert isinstance(error, CallTimeout)
                assert error.maybe_executed
            await eventually(lambda: fresh_redis_server.call("GET", "n") == b"10")
            assert await client.call("ECHO", "own") == b"own"
            assert await client.call("CLIENT", "ID") == before

    run(main())


def test_a_server_that_sleeps_shorter_than_the_health_check_allows_is_waited_for(
    fresh_redis_server: RunningServer,
) -> None:
    async def main() -> None:
        url = fresh_redis_server.url
        async with Client(url, health_check_interval=5) as client, PubSubClient(url, health_check_interval=5) as pubsub:
            await pubsub.subscribe("a")
            before = await client.call("CLIENT", "ID")
            fresh_redis_server.suspend()
            calls = [client.call("PUBLISH", "a", number) for number in range(100)]
            done, _ = await asyncio.wait(calls, timeout=0.3)
            assert not done
            fresh_redis_server.resume()
            assert await asyncio.gather(*calls) == [1] * 100
            assert [item.data for item in await take(pubsub, 100)] == [b"%d" % number for number in range(100)]
            assert await client.call("CLIENT", "ID") == before
            assert pubsub.last_error is None

    run(main())
