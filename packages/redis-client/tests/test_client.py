"""The client against real servers."""

import asyncio
import gc
import itertools
import random
import subprocess
import sys
import textwrap
import warnings
from asyncio import Future
from typing import Any

import pytest

from waterspout_redis import (
    AuthenticationError,
    CallTimeout,
    Client,
    ClosedError,
    ConnectError,
    ConnectionLost,
    LinkState,
    Pipeline,
    ResponseError,
    WrongPasswordError,
    WrongTypeError,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


def clients_named(server: RunningServer, name: str) -> list[str]:
    lines = server.call("CLIENT", "LIST").decode().splitlines()
    return [line for line in lines if f" name={name} " in line]


# Calling


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_reply_is_what_the_server_holds(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        async with Client(redis_server.url, protocol=protocol) as client:
            assert await client.call("PING") == b"PONG"
            assert await client.call("SET", "k", b"\x00v") == b"OK"
            assert await client.call("GET", "k") == b"\x00v"
            assert await client.call("GET", "missing") is None
            assert await client.call("RPUSH", "list", 1, 2.5, "é") == 3
            assert await client.call("LRANGE", "list", 0, -1) == [b"1", b"2.5", "é".encode()]
            await client.call("HSET", "hash", "a", 1)
            assert await client.call("HGETALL", "hash") == ({b"a": b"1"} if protocol == 3 else [b"a", b"1"])

    run(main())


def test_replies_are_text_where_an_encoding_is_asked_for(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, decode="utf-8") as client:
            await client.call("HSET", "h", "é", "ü")
            assert await client.call("HGETALL", "h") == {"é": "ü"}
            assert await client.call("HGETALL", "h", decode=None) == {"é".encode(): "ü".encode()}
            assert await client.call("HGET", "h", "é", decode="latin-1") == "Ã¼"
            await client.call("SET", "raw", b"\xff")
            with pytest.raises(UnicodeDecodeError):
                await client.call("GET", "raw")
            assert await client.call("GET", "raw", decode=None) == b"\xff"

    run(main())


def test_an_error_reply_is_raised_as_its_type_and_the_connection_stays(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            await client.call("SET", "k", "v")
            before = await client.call("CLIENT", "ID")
            with pytest.raises(WrongTypeError):
                await client.call("LPUSH", "k", "x")
            with pytest.raises(ResponseError) as caught:
                await client.call("NOSUCHCOMMAND")
            assert caught.value.code == "ERR"
            assert await client.call("CLIENT", "ID") == before

    run(main())


def test_a_wrong_argument_is_refused_before_anything_is_sent(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            with pytest.raises(TypeError, match="argument 2 of 'SET' is None"):
                client.call("SET", "k", None)  # type: ignore[call-overload]
            assert await client.call("EXISTS", "k") == 0

    run(main())


def test_fifty_callers_each_get_their_own_answer(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:

            async def caller(number: int) -> None:
                for turn in range(40):
                    assert await client.call("ECHO", f"{number}:{turn}") == f"{number}:{turn}".encode()

            await asyncio.gather(*map(caller, range(50)))

    run(main())


def test_a_large_value_comes_back_whole(redis_server: RunningServer) -> None:
    value = random.Random(1).randbytes(3_000_000)

    async def main() -> None:
        async with Client(redis_server.url) as client:
            others = [client.call("ECHO", number) for number in range(100)]
            await client.call("SET", "large", value)
            assert await client.call("GET", "large") == value
            assert await asyncio.gather(*others) == [b"%d" % number for number in range(100)]

    run(main())


def test_a_hundred_thousand_calls_at_once_stay_within_the_bounds_and_are_all_answered(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_in_flight=100, max_in_flight_bytes=4000) as client:
            most = most_bytes = 0

            def answered(call: Future[Any]) -> None:
                nonlocal most, most_bytes
                most = max(most, client.in_flight)
                most_bytes = max(most_bytes, client.in_flight_bytes)

            calls = [client.call("ECHO", number) for number in range(100_000)]
            for call in calls:
                call.add_done_callback(answered)
            assert await asyncio.gather(*calls) == [b"%d" % number for number in range(100_000)]
            assert 50 < most <= 100
            assert 1000 < most_bytes <= 4000
            assert client.in_flight == client.in_flight_bytes == 0

    run(main(), deadline=60)


def test_a_command_larger_than_the_bound_goes_alone(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, max_in_flight_bytes=100) as client:
            value = "x" * 1000
            assert await asyncio.gather(*(client.call("ECHO", value) for _ in range(3))) == [value.encode()] * 3

    run(main())


# Pipelines


def test_a_pipeline_is_answered_in_order_with_errors_as_elements(redis_server: RunningServer) -> None:
    async def main() -> None:
        pipeline = Pipeline()
        pipeline.stack_call("SET", "k", "v")
        pipeline.stack_call("LPUSH", "k", "x")
        pipeline.stack_call("GET", "k")
        async with Client(redis_server.url) as client:
            for _ in range(2):
                ok, error, value = await client.call(pipeline)
                assert (ok, value) == (b"OK", b"v")
                assert isinstance(error, WrongTypeError)
            assert len(pipeline) == 3
            assert (await client.call(pipeline, decode="utf-8"))[2] == "v"

    run(main())


def test_an_empty_pipeline_has_no_replies(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            assert await client.call(Pipeline()) == []

    run(main())


def test_a_pipeline_longer_than_the_bound_goes_alone_and_in_its_place(redis_server: RunningServer) -> None:
    async def main() -> None:
        pipeline = Pipeline()
        for _ in range(500):
            pipeline.stack_call("INCR", "n")
        async with Client(redis_server.url, max_in_flight=10) as client:
            first, replies, last = await asyncio.gather(
                client.call("INCR", "n"), client.call(pipeline), client.call("INCR", "n")
            )
            assert (first, replies, last) == (1, list(range(2, 502)), 502)

    run(main())


# Cancellation and time-outs


def test_a_cancelled_caller_does_not_shift_the_replies_of_the_others_F1(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            before = await client.call("CLIENT", "ID")
            chance = random.Random(7)
            for _ in range(30):
                calls = {number: client.call("ECHO", number) for number in range(60)}
                # Some before they are written, some after, some when they may have been answered.
                for cancelled in chance.sample(range(60), 10):
                    calls.pop(cancelled).cancel()
                await asyncio.sleep(0)
                for cancelled in chance.sample(sorted(calls), 10):
                    calls.pop(cancelled).cancel()
                for number, call in calls.items():
                    assert await call == b"%d" % number
            # F2: nor is the connection that all share closed for it.
            assert await client.call("CLIENT", "ID") == before

    run(main())


def test_a_command_cancelled_in_the_turn_it_was_called_is_never_sent(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            client.call("SET", "k", "v").cancel()
            assert await client.call("EXISTS", "k") == 0

    run(main())


def test_a_cancelled_pipeline_keeps_its_places_in_line(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            pipeline = Pipeline()
            for number in range(10):
                pipeline.stack_call("ECHO", number)
            call = client.call(pipeline)
            after = client.call("ECHO", "after")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            call.cancel()
            assert await after == b"after"

    run(main())


def test_a_timed_out_caller_keeps_its_place_and_the_connection_stays(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, timeout=0.2) as client:
            before = await client.call("CLIENT", "ID")
            fresh_redis_server.suspend()
            late = [client.call("ECHO", number) for number in range(10)]
            with pytest.raises(CallTimeout) as caught:
                await late[0]
            assert caught.value.maybe_executed
            await asyncio.wait(late[1:])
            assert all(isinstance(call.exception(), CallTimeout) for call in late)
            fresh_redis_server.resume()
            assert await client.call("ECHO", "own") == b"own"
            assert await client.call("CLIENT", "ID") == before

    run(main())


def test_a_call_that_was_not_sent_in_time_says_so_and_is_never_sent(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, timeout=0.3, max_in_flight=1) as client:
            await client.call("PING")
            fresh_redis_server.suspend()
            sent, waiting = client.call("SET", "sent", 1), client.call("SET", "waiting", 1)
            await asyncio.wait((sent, waiting))
            errors = [sent.exception(), waiting.exception()]
            assert [type(error) for error in errors] == [CallTimeout, CallTimeout]
            assert [error.maybe_executed for error in errors] == [True, False]  # type: ignore[union-attr]
            fresh_redis_server.resume()
            assert await client.call("EXISTS", "sent", "waiting") == 1

    run(main())


# Connecting


def test_many_first_calls_make_one_connection_F18(redis_server: RunningServer) -> None:
    async def main() -> None:
        client = Client(redis_server.url, client_name="single-flight")
        assert not client.is_connected()
        await asyncio.gather(*(client.call("PING") for _ in range(100)))
        assert client.is_connected()
        assert len(clients_named(redis_server, "single-flight")) == 1
        await client.aclose()
        await eventually(lambda: not clients_named(redis_server, "single-flight"))

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_handshake_logs_in_selects_and_names(fresh_redis_server: RunningServer, protocol: int) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    host = f"127.0.0.1:{fresh_redis_server.port}"

    async def main() -> None:
        async with Client(f"redis://app:secret@{host}/3", protocol=protocol, client_name="me") as client:
            info = await client.call("CLIENT", "LIST", decode="utf-8")
            assert " user=app " in info
            assert " db=3 " in info
            assert " name=me " in info
            if not fresh_redis_server.binary.version.startswith("7.0"):
                assert " lib-name=waterspout-redis lib-ver=" in info

    run(main())


@pytest.mark.parametrize(("protocol", "step"), [(2, "AUTH"), (3, "HELLO")])
def test_a_wrong_password_is_a_connect_error_that_names_its_step(
    fresh_redis_server: RunningServer, protocol: int, step: str
) -> None:
    fresh_redis_server.call("CONFIG", "SET", "requirepass", "secret")

    async def main() -> None:
        client = Client(fresh_redis_server.url, password="wrong", protocol=protocol, client_name="wrong")
        with pytest.raises(ConnectError) as caught:
            await client.call("PING")
        assert caught.value.step == step
        assert isinstance(caught.value.cause, WrongPasswordError)
        assert not caught.value.maybe_executed
        assert "wrong@" not in str(caught.value)
        assert not client.is_connected()
        await client.aclose()

    run(main())


def test_a_missing_password_is_a_connect_error_that_says_where_it_goes(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.call("CONFIG", "SET", "requirepass", "secret")

    async def main() -> None:
        client = Client(fresh_redis_server.url)
        with pytest.raises(ConnectError, match=r"redis://:PASSWORD@HOST, or password=$") as caught:
            await client.call("PING")
        assert isinstance(caught.value.cause, AuthenticationError)
        assert not caught.value.maybe_executed
        await client.aclose()

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_no_command_ever_runs_in_the_wrong_database_F17(redis_server: RunningServer, protocol: int) -> None:
    async def main() -> None:
        client = Client(redis_server.url, db=9999, protocol=protocol)
        for _ in range(2):
            with pytest.raises(ConnectError) as caught:
                await client.call("SET", "k", "v")
            assert caught.value.step == "SELECT"
        await client.aclose()
        assert redis_server.call("EXISTS", "k") == 0

    run(main())


def test_one_deadline_covers_the_whole_handshake_F21(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            proxy.disturb(Faults(black_hole=True))
            client = Client(proxy.url, connect_timeout=0.2)
            begun = asyncio.get_running_loop().time()
            with pytest.raises(ConnectError, match=r"HELLO failed: timed out, connect_timeout is 0\.2 s"):
                await client.connect()
            assert asyncio.get_running_loop().time() - begun < 2
            await client.aclose()

    run(main())


def test_while_the_server_is_away_every_call_is_told_at_once_and_attempts_are_spaced(
    redis_server: RunningServer,
) -> None:
    async def main() -> None:
        attempts = []

        def on_connection(lane: str, state: LinkState, error: Exception | None) -> None:
            if state is LinkState.CONNECTING:
                attempts.append(loop.time())

        async with FaultProxy(redis_server.port) as proxy:
            proxy.refuse()
            client = Client(proxy.url, retry=0, on_connection=on_connection)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            while len(attempts) < 5:
                calls = [client.call("PING") for _ in range(10)]
                done, _ = await asyncio.wait(calls)
                assert all(isinstance(call.exception(), ConnectError) for call in done)
                assert calls[0].exception() is not calls[1].exception()
                assert not client.waiting
            pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
            # Half of 0.1, 0.2, 0.4, 0.8 seconds at least.
            assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True))
            assert loop.time() - begun < 10
            proxy.heal()
            while not await answered(client):
                pass
            await client.aclose()

    async def answered(client: Client) -> bool:
        try:
            return bool(await client.call("PING"))
        except ConnectError:
            return False

    run(main())


def test_a_server_that_comes_late_is_found(fresh_redis_server: RunningServer) -> None:
    fresh_redis_server.stop()

    async def main() -> None:
        async with asyncio.timeout(20):
            client = Client(fresh_redis_server.url)
            with pytest.raises(ConnectError):
                await client.connect()
            fresh_redis_server.start()
            assert await client.call("PING") == b"PONG"
            await client.aclose()

    run(main())


def test_a_unix_socket_does_as_well(redis_binary: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "redis.sock")
    with RunningServer(redis_binary, "--unixsocket", path):

        async def main() -> None:
            async with Client(f"unix://{path}?db=1") as client:
                assert await client.call("PING") == b"PONG"

        run(main())


# Losing the connection


def test_a_killed_connection_fails_what_was_sent_and_the_next_call_connects_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            before = await client.call("CLIENT", "ID")
            redis_server.call("CLIENT", "KILL", "ID", before)
            # The client has not heard of it yet: the command is sent in vain.
            with pytest.raises(ConnectionLost) as caught:
                await client.call("INCR", "n")
            assert caught.value.maybe_executed
            assert await client.call("CLIENT", "ID") != before

    run(main())


def test_what_was_in_flight_is_lost_and_what_was_not_written_goes_out_on_the_next_connection(
    fresh_redis_server: RunningServer,
) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, max_in_flight=10) as client:
            await client.call("SET", "n", 0)
            fresh_redis_server.suspend()
            calls = [client.call("INCR", "n") for _ in range(50)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            fresh_redis_server.kill()
            fresh_redis_server.start()
            results = await asyncio.gather(*calls, return_exceptions=True)
            lost = [error for error in results if isinstance(error, ConnectionLost)]
            assert len(lost) == 10
            assert all(error.maybe_executed for error in lost)
            assert results[10:] == list(range(1, 41))

    run(main())


def test_after_a_restart_on_the_same_port_calls_go_on(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            await client.call("PING")
            fresh_redis_server.stop()
            await eventually(lambda: not client.is_connected())
            fresh_redis_server.start()
            assert await client.call("PING") == b"PONG"

    run(main())


def test_a_connection_that_worked_is_made_anew_at_once_however_often_it_is_lost(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            begun = asyncio.get_running_loop().time()
            for _ in range(12):
                before = await client.call("CLIENT", "ID")
                redis_server.call("CLIENT", "KILL", "ID", before)
                await eventually(lambda: not client.is_connected())
            # Doubling pauses would have come to far more.
            assert asyncio.get_running_loop().time() - begun < 5

    run(main())


def test_a_suspended_server_is_found_by_the_health_check_F8(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url, health_check_interval=0.2) as client:
            await client.call("PING")
            fresh_redis_server.suspend()
            # Idle: nobody has called anything.
            await eventually(lambda: not client.is_connected(), deadline=5)
            fresh_redis_server.resume()
            assert await client.call("PING") == b"PONG"
            fresh_redis_server.suspend()
            with pytest.raises(ConnectionLost, match="the server has sent nothing"):
                await client.call("INCR", "n")
            fresh_redis_server.resume()

    run(main())


def test_idle_is_not_broken_F14(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, health_check_interval=0.1) as client:
            before = await client.call("CLIENT", "ID")
            pings = redis_server.call("INFO", "commandstats").count(b"cmdstat_ping")
            assert pings <= 1

            def pinged() -> bool:
                stats = redis_server.call("INFO", "commandstats").decode()
                line = next((line for line in stats.splitlines() if line.startswith("cmdstat_ping:")), "calls=0,")
                return int(line.split("calls=")[1].split(",")[0]) >= 5

            redis_server.call("CONFIG", "RESETSTAT")
            await eventually(pinged)
            assert await client.call("CLIENT", "ID") == before

    run(main())


# The end


def test_disconnecting_fails_what_waits_and_the_next_call_connects_again(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            fresh_redis_server.suspend()
            sent = client.call("PING")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            unsent = client.call("PING")
            client.disconnect()
            assert not client.is_connected()
            results = await asyncio.gather(sent, unsent, return_exceptions=True)
            assert [type(error) for error in results] == [ClosedError, ClosedError]
            assert [error.maybe_executed for error in results] == [True, False]  # type: ignore[union-attr]
            fresh_redis_server.resume()
            assert await client.call("PING") == b"PONG"

    run(main())


def test_a_closed_client_stays_closed(redis_server: RunningServer) -> None:
    async def main() -> None:
        client = Client(redis_server.url)
        await client.aclose()
        with pytest.raises(ClosedError):
            await client.call("PING")
        with pytest.raises(ClosedError):
            await client.connect()
        await client.aclose()

    run(main())


def test_closing_while_connecting_leaves_nothing_behind(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            proxy.disturb(Faults(black_hole=True))
            client = Client(proxy.url)
            call = client.call("PING")
            await eventually(lambda: proxy.connections)
            await client.aclose()
            with pytest.raises(ClosedError):
                await call
        assert len(asyncio.all_tasks()) <= 2

    run(main())
    gc.collect()


def test_one_client_serves_one_event_loop_after_the_other(redis_server: RunningServer) -> None:
    client = Client(redis_server.url)

    async def main(last: bool) -> None:
        assert await client.call("PING") == b"PONG"
        if last:
            await client.aclose()
        else:
            client.disconnect()

    run(main(False))
    run(main(False))
    run(main(True))


def test_a_client_left_open_warns_and_does_no_io_F20(redis_server: RunningServer) -> None:
    script = f"""
        import asyncio, gc, warnings
        from waterspout_redis import Client

        async def main():
            client = Client({redis_server.url!r})
            assert await client.call("PING") == b"PONG"

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                asyncio.run(main())
                gc.collect()
        said = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
        assert sum("was never closed" in message for message in said) == 2, said
        print("done")
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (answer.stdout, answer.stderr) == ("done\n", "")


def test_a_client_used_again_in_a_new_loop_without_closing_still_works(redis_server: RunningServer) -> None:
    client = Client(redis_server.url)

    async def main() -> bytes:
        answer: bytes = await client.call("PING")
        return answer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert run(main()) == b"PONG"
        assert run(main()) == b"PONG"
        run(client.aclose())
        gc.collect()


def test_it_runs_on_uvloop_too(redis_server: RunningServer) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with Client(redis_server.url, health_check_interval=0.05) as client, asyncio.timeout(20):
            calls = [client.call("ECHO", number) for number in range(5000)]
            assert await asyncio.gather(*calls) == [b"%d" % number for number in range(5000)]
            before = await client.call("CLIENT", "ID")
            redis_server.call("CLIENT", "KILL", "ID", before)
            await eventually(lambda: not client.is_connected())
            assert await client.call("CLIENT", "ID") != before

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_call_outside_of_a_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        Client().call("PING")


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"max_in_flight": 0}, {"protocol": 4}, {"connect_timeout": -1}, {"client_name": "a b"}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Client(**options)


def test_an_unknown_encoding_is_refused_when_the_client_is_made() -> None:
    with pytest.raises(LookupError):
        Client(decode="no-such-encoding")
