"""What `on_connection` and `on_command` are told, and that they harm nothing."""

import asyncio
import logging
from typing import Any

import pytest

from waterspout_redis import (
    BULK,
    CallTimeout,
    Client,
    ClosedError,
    ConnectError,
    ConnectionLost,
    LinkState,
    Pipeline,
    PoolTimeout,
    RedisError,
    UsageError,
    WrongTypeError,
)
from waterspout_redis.testing import RunningServer, eventually, run


class Recorder:
    """Both callbacks, and all that they were told."""

    def __init__(self) -> None:
        self.states: list[tuple[str, LinkState, type[RedisError] | None]] = []
        self.commands: list[tuple[str, type[BaseException] | None]] = []
        self.seconds: list[float] = []

    def on_connection(self, lane: str, state: LinkState, error: RedisError | None) -> None:
        self.states.append((lane, state, error and type(error)))

    def on_command(self, name: str, seconds: float, error: BaseException | None) -> None:
        self.commands.append((name, error and type(error)))
        self.seconds.append(seconds)

    def client(self, url: str, **options: Any) -> Client:
        return Client(url, on_connection=self.on_connection, on_command=self.on_command, **options)


CONNECTING, CONNECTED, DISCONNECTED = LinkState.CONNECTING, LinkState.CONNECTED, LinkState.DISCONNECTED


def test_each_change_of_each_connection_is_told_with_its_lane(redis_server: RunningServer) -> None:
    recorder = Recorder()

    async def main() -> None:
        async with recorder.client(redis_server.url) as client:
            assert recorder.states == [("shared", CONNECTING, None), ("shared", CONNECTED, None)]
            await client.call("PING")
            await client.call("SET", "k", bytes(BULK))
            async with client.lease() as leased:
                await leased.call("SELECT", 1)
            redis_server.call("CLIENT", "KILL", "ID", await client.call("CLIENT", "ID"))
            await eventually(lambda: not client.is_connected())
            await client.call("PING")

    run(main())

    def of(lane: str) -> list[Any]:
        return [tuple(rest) for name, *rest in recorder.states if name == lane]

    up = [(CONNECTING, None), (CONNECTED, None)]
    down = (DISCONNECTED, None)
    assert of("shared") == [*up, (DISCONNECTED, ConnectionLost), *up, down, (LinkState.CLOSED, None)]
    assert of("bulk") == [*up, down]
    assert of("leased") == [*up, down]


def test_an_attempt_that_failed_is_told_with_its_error(fresh_redis_server: RunningServer) -> None:
    recorder = Recorder()
    fresh_redis_server.stop()

    async def main() -> None:
        client = recorder.client(fresh_redis_server.url, retry=1)
        with pytest.raises(ConnectError):
            await client.call("PING")
        with pytest.raises(ConnectError):
            await client.call("BLPOP", "q", 0)
        await client.aclose()

    run(main())
    failed = [("shared", CONNECTING, None), ("shared", DISCONNECTED, ConnectError)]
    assert recorder.states[:4] == failed * 2
    assert ("leased", DISCONNECTED, ConnectError) in recorder.states
    assert recorder.commands == [("PING", ConnectError), ("BLPOP", ConnectError)]


def test_each_command_is_told_once_by_name_with_its_seconds_and_its_error(redis_server: RunningServer) -> None:
    recorder = Recorder()

    async def main() -> None:
        async with recorder.client(redis_server.url) as client:
            pipeline, blocking = Pipeline(), Pipeline()
            pipeline.stack_call("INCR", "n")
            blocking.stack_call("BLPOP", "q", 0.01)
            redis_server.call("SET", "k", "v")
            for call in (
                lambda: client.call("get", "k", decode="utf-8"),
                lambda: client.call(b"lpush", "k", "x"),
                lambda: client.call("config", "get", "maxmemory"),
                lambda: client.call(pipeline),
                lambda: client.call(blocking),
                lambda: client.call("BLPOP", "q", 1.0),
                lambda: client.call("GET", "k", bulk=True),
            ):
                await asyncio.wait((call(),))
            async with client.lease() as leased:
                await leased.call("WATCH", "k")
                await leased.call(pipeline)

    run(main())
    assert recorder.commands == [
        ("GET", None),
        ("LPUSH", WrongTypeError),
        ("CONFIG GET", None),
        ("PIPELINE", None),
        ("PIPELINE", None),
        ("BLPOP", None),
        ("GET", None),
        ("WATCH", None),
        ("PIPELINE", None),
    ]
    # Of a second: a command that waits for nothing takes much less, on a busy machine, too.
    assert 0.95 < recorder.seconds[5] < 1.8
    assert all(0 < seconds < 0.75 for place, seconds in enumerate(recorder.seconds) if place != 5)


def test_a_command_that_ends_without_an_answer_is_told_too(fresh_redis_server: RunningServer) -> None:
    recorder = Recorder()

    async def main() -> None:
        client = recorder.client(fresh_redis_server.url, timeout=0.2, max_leases=1)
        await client.connect()
        blocker = client.call("BLPOP", "q", 0)
        await asyncio.wait((client.call("BRPOP", "q", 0),))
        blocker.cancel()
        await asyncio.wait((blocker,))
        cancelled = client.call("GET", "k")
        cancelled.cancel()
        fresh_redis_server.suspend()
        await asyncio.wait((client.call("INCR", "n"),))
        closed = client.call("ECHO", "k")
        client.disconnect()
        await asyncio.wait((closed,))
        with pytest.raises(UsageError):
            client.call("WATCH", "k")
        await client.aclose()
        await asyncio.wait((client.call("TTL", "k"),))
        await asyncio.sleep(0)

    run(main())
    assert recorder.commands == [
        ("BRPOP", PoolTimeout),
        ("BLPOP", asyncio.CancelledError),
        ("GET", asyncio.CancelledError),
        ("INCR", CallTimeout),
        ("ECHO", ClosedError),
        ("TTL", ClosedError),
    ]


def test_callbacks_that_fail_are_logged_and_harm_nothing(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("not today")

    async def main() -> None:
        async with Client(redis_server.url, on_connection=fail, on_command=fail) as client:
            for number in range(10):
                assert await client.call("ECHO", number) == b"%d" % number
            redis_server.call("RPUSH", "q", "v")
            assert await client.call("BLPOP", "q", 0) == [b"q", b"v"]
            redis_server.call("CLIENT", "KILL", "TYPE", "normal")
            await eventually(lambda: not client.is_connected())
            assert await client.call("PING") == b"PONG"

    caplog.set_level(logging.ERROR, "waterspout.redis")
    run(main())
    assert sum("on_command" in record.message for record in caplog.records) == 12
    assert sum("on_connection" in record.message for record in caplog.records) >= 6
    assert len(caplog.records) == sum("callback" in record.message for record in caplog.records)


def test_a_callback_may_use_the_client(redis_server: RunningServer) -> None:
    seen: list[asyncio.Future[Any]] = []

    async def main() -> None:
        def on_connection(lane: str, state: LinkState, error: RedisError | None) -> None:
            if state is CONNECTED:
                seen.append(client.call("ECHO", "hello"))
            if state is DISCONNECTED and error is not None:
                client.disconnect()

        client = Client(redis_server.url, on_connection=on_connection)
        async with client:
            assert await seen[0] == b"hello"
            redis_server.call("CLIENT", "KILL", "TYPE", "normal")
            await eventually(lambda: not client.is_connected())
            assert await client.call("PING") == b"PONG"
            assert await seen[1] == b"hello"

    run(main())


def test_what_is_not_asked_for_costs_nothing(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as plain, Recorder().client(redis_server.url) as watched:
            for client, callbacks in ((plain, 0), (watched, 1)):
                call = client.call("PING")
                assert len(call._callbacks or ()) == callbacks
                await call

    run(main())
