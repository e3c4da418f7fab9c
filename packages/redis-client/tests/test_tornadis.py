"""The drop-in for tornadis: its client, row by row (A1 to A28), against real servers."""

import asyncio
import logging
import socket
from asyncio import Future
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import hiredis
import pytest
import tornado.ioloop

import waterspout_redis.tornadis as tornadis
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run
from waterspout_redis.tornadis import benchmark


@asynccontextmanager
async def client_of(server: RunningServer | FaultProxy, **options: Any) -> AsyncIterator[tornadis.Client]:
    client = tornadis.Client(port=server.port, **options)
    try:
        yield client
    finally:
        client.disconnect()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def connections_of(server: RunningServer) -> int:
    """How many were ever made to it."""
    lines = server.call("INFO", "stats").decode().splitlines()
    return int(next(line for line in lines if line.startswith("total_connections_received")).partition(":")[2])


def told(client: tornadis.Client, *command: Any) -> Future[Any]:
    """What the callback of `async_call` is called with; it may be called once only."""
    result: Future[Any] = asyncio.get_running_loop().create_future()
    assert client.async_call(*command, callback=result.set_result) is None
    return result


def is_closed(result: Any) -> bool:
    return isinstance(result, tornadis.ConnectionError) and str(result) == "closed connection"


# Names and options


def test_a1_every_name_of_tornadis_is_there() -> None:
    for name in ("Client", "ClientPool", "Pipeline", "PubSubClient", "WriteBuffer", "Connection"):
        assert isinstance(getattr(tornadis, name), type)
    assert issubclass(tornadis.ConnectionError, tornadis.TornadisException)
    assert issubclass(tornadis.ClientError, tornadis.TornadisException)
    assert (tornadis.DEFAULT_HOST, tornadis.DEFAULT_PORT) == ("127.0.0.1", 6379)
    assert (tornadis.DEFAULT_CONNECT_TIMEOUT, tornadis.DEFAULT_READ_TIMEOUT) == (20, 0)
    assert (tornadis.DEFAULT_READ_PAGE_SIZE, tornadis.DEFAULT_WRITE_PAGE_SIZE) == (65536, 65536)


@pytest.mark.parametrize("options", [[], ["-P"], ["-b", "7"], ["-P", "-b", "7", "-d", "100"]])
def test_a1_the_benchmark_measures_what_it_has_done(
    redis_server: RunningServer, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    redis_server.call("CONFIG", "RESETSTAT")
    benchmark.main(["-p", str(redis_server.port), "-c", "2", "-n", "40", *options])
    assert "requests per second" in capsys.readouterr().out
    assert "cmdstat_set:calls=40," in redis_server.call("INFO", "commandstats").decode()


def test_a1_the_benchmark_says_why_it_cannot(free_port: int) -> None:
    with pytest.raises(SystemExit, match=f"can't connect to 127.0.0.1:{free_port}"):
        benchmark.main(["-p", str(free_port)])
    with pytest.raises(SystemExit):
        benchmark.main(["-n", "3", "-c", "2"])


def test_a2_a_client_has_the_options_of_tornadis_as_attributes() -> None:
    client = tornadis.Client()
    assert (client.autoconnect, client.password, client.db, client.subscribed) == (True, None, 0, False)
    assert client.connection_kwargs == {}
    client = tornadis.Client(autoconnect=False, password="secret", db=3, host="cache", port=7000)
    assert (client.autoconnect, client.password, client.db) == (False, "secret", 3)
    assert client.connection_kwargs == {"host": "cache", "port": 7000}
    for name in ("read_callback", "close_callback"):
        with pytest.raises(TypeError, match=name):
            tornadis.Client(**{name: print})


# Calling


def test_a3_a_reply_is_what_redis_means(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            future = client.call("PING")
            assert isinstance(future, Future)
            assert await future == b"PONG"
            assert await client.call("GET", "missing") is None
            assert await client.call("RPUSH", "list", "a", "b") == 2
            assert await client.call("LRANGE", "list", 0, -1) == [b"a", b"b"]
            await client.call("HSET", "hash", "field", "value")
            assert await client.call("HGETALL", "hash") == [b"field", b"value"]

    run(main())


def test_a4_errors_are_returned_also_in_lists(redis_server: RunningServer, free_port: int) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            error = await client.call("NOSUCHCOMMAND")
            assert isinstance(error, tornadis.ClientError)
            assert "unknown command" in str(error)
            await client.call("SET", "text", "x")
            await client.call("MULTI")
            assert await client.call("LPUSH", "text", 1) == b"QUEUED"
            assert await client.call("GET", "text") == b"QUEUED"
            wrong_type, text = await client.call("EXEC")
            assert isinstance(wrong_type, tornadis.ClientError)
            assert text == b"x"
            pipeline = tornadis.Pipeline()
            pipeline.stack_call("LPUSH", "text", 1)
            pipeline.stack_call("GET", "text")
            wrong_type, text = await client.call(pipeline)
            assert isinstance(wrong_type, tornadis.ClientError)
            assert text == b"x"
        assert isinstance(await tornadis.Client(port=free_port).call("PING"), tornadis.ConnectionError)

    run(main())


def test_a4_what_has_no_single_reply_is_refused_and_the_client_goes_on(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            for command in (("SUBSCRIBE", "a"), ("MONITOR",), ("CLIENT", "REPLY", "OFF")):
                assert isinstance(await client.call(*command), tornadis.ClientError)
            assert await client.call("PING") == b"PONG"
            assert await client.call("QUIT") == b"OK"
            await eventually(lambda: not client.is_connected())
            assert await client.call("PING") == b"PONG"

    run(main())


@pytest.mark.parametrize("connected", [False, True])
def test_a5_arguments_are_text_bytes_int_bool_and_buffers_and_others_are_refused_at_once(
    redis_server: RunningServer, connected: bool
) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            if connected:
                assert await client.connect()
            for value in (1.5, None, ["a"], {"a": 1}):
                with pytest.raises(TypeError, match="don't know what to do with"):
                    client.call("SET", "k", value)
                with pytest.raises(TypeError, match="don't know what to do with"):
                    client.async_call("SET", "k", value)
            buffer = tornadis.WriteBuffer()
            buffer.append(b"in ")
            buffer.append(b"parts")
            await client.call("RPUSH", "k", "é", b"\xff", 7, True, False, buffer)
            wanted = ["é".encode(), b"\xff", b"7", b"1", b"0", b"in parts"]
            assert await client.call("LRANGE", "k", 0, -1) == wanted

    run(main())


# Connecting


def test_a6_a_call_connects_and_each_one_tries_anew(redis_binary: ServerBinary) -> None:
    async def main() -> None:
        with RunningServer(redis_binary) as server:
            async with client_of(server) as client:
                assert not client.is_connected()
                assert await client.call("PING") == b"PONG"
                assert client.is_connected()
                server.stop()
                for _ in range(20):
                    error = await client.call("PING")
                    assert isinstance(error, tornadis.ConnectionError)
                assert str(error) == "impossible to connect"
                server.start()
                # No back-off is left to wait for.
                async with asyncio.timeout(2):
                    assert await client.call("PING") == b"PONG"

    run(main())


def test_a7_without_autoconnect_only_connect_connects(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server, autoconnect=False) as client:
            for result in (await client.call("PING"), await told(client, "PING")):
                assert isinstance(result, tornadis.ConnectionError)
                assert str(result) == "you are not connected and autoconnect=False"
            assert await client.connect()
            assert await client.call("PING") == b"PONG"
            # What is lost is not made anew, whatever was called meanwhile.
            lost = [client.call("CLIENT", "KILL", "SKIPME", "no", "ID", await client.call("CLIENT", "ID"))]
            lost += [client.call("PING") for _ in range(10)]
            await asyncio.gather(*lost)
            await eventually(lambda: not client.is_connected())
            assert isinstance(await client.call("PING"), tornadis.ConnectionError)
            assert not client.is_connected()

    run(main())


def test_a8_many_first_calls_make_one_connection(redis_server: RunningServer) -> None:
    async def main() -> None:
        before = connections_of(redis_server)
        async with client_of(redis_server) as client:
            replies = await asyncio.gather(*(client.call("ECHO", number) for number in range(50)))
            assert replies == [b"%d" % number for number in range(50)]
            assert connections_of(redis_server) == before + 2

    run(main())


def test_a9_connect_tells_whether_it_is_connected_and_never_raises(redis_server: RunningServer, free_port: int) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            future = client.connect()
            assert isinstance(future, Future)
            assert await future is True
            assert await client.connect() is True
        assert await tornadis.Client(port=free_port).connect() is False

    run(main())


def test_a9_connecting_logs_in_and_selects(redis_binary: ServerBinary) -> None:
    async def main() -> None:
        with RunningServer(redis_binary, "--requirepass", "secret") as server:
            async with client_of(server, password="secret", db=3) as client:
                assert await client.connect() is True
                assert b" db=3 " in await client.call("CLIENT", "LIST")

    run(main())


def test_a10_a_wrong_password_connects_nobody(redis_binary: ServerBinary) -> None:
    async def main() -> None:
        with RunningServer(redis_binary, "--requirepass", "secret") as server:
            async with client_of(server, password="wrong") as client:
                assert await client.connect() is False
                assert not client.is_connected()
                assert isinstance(await client.call("PING"), tornadis.ConnectionError)

    run(main())


def test_a11_a_database_that_is_not_there_connects_nobody(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server, db=9999) as client:
            assert await client.connect() is False
            assert not client.is_connected()
            assert isinstance(await client.call("SET", "k", "in database 0"), tornadis.ConnectionError)
        assert redis_server.call("EXISTS", "k") == 0

    run(main())


def test_a12_each_connection_logs_in_and_selects_anew(redis_binary: ServerBinary) -> None:
    async def main() -> None:
        with RunningServer(redis_binary, "--requirepass", "secret") as server:
            async with client_of(server, password="secret", db=3) as client:
                first = await client.call("CLIENT", "ID")
                client.disconnect()
                assert await client.call("SET", "k", "v") == b"OK"
                assert await client.call("CLIENT", "ID") != first
                await client.call("SELECT", 0)
                assert await client.call("EXISTS", "k") == 0

    run(main())


def test_a13_disconnect_is_done_when_it_returns(redis_server: RunningServer) -> None:
    async def main() -> None:
        client = tornadis.Client(port=redis_server.port)
        assert client.disconnect() is None
        assert await client.call("PING") == b"PONG"
        assert client.disconnect() is None
        assert not client.is_connected()
        assert client.disconnect() is None
        connecting = client.connect()
        await asyncio.sleep(0)
        client.disconnect()
        assert await connecting is False

    run(main())


def test_a14_a_client_tells_where_to_and_since_when(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            assert client.is_connected() is False
            assert client.title == f"127.0.0.1:{redis_server.port}"
            assert tornadis.Client(unix_domain_socket="/run/redis.sock").title == "/run/redis.sock"
            await asyncio.sleep(0.05)
            before = client.get_last_state_change_timedelta()
            assert before >= timedelta(seconds=0.05)
            await client.connect()
            assert client.is_connected() is True
            assert client.get_last_state_change_timedelta() < before

    run(main())


# The end of a connection


@pytest.mark.parametrize("by_server", [False, True])
def test_a15_calls_that_wait_when_it_ends_get_a_connection_error(redis_server: RunningServer, by_server: bool) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            number = await client.call("CLIENT", "ID")
            blocked = client.call("BLPOP", "list", 0)
            behind = client.call("INCR", "counter")
            await eventually(lambda: "cmd=blpop" in redis_server.call("CLIENT", "LIST").decode())
            # Called in the same breath, and not written yet.
            unwritten = client.call("INCR", "counter")
            if by_server:
                redis_server.call("CLIENT", "KILL", "ID", number)
            else:
                client.disconnect()
            assert all(map(is_closed, await asyncio.gather(blocked, behind, unwritten)))
            assert not client.is_connected()
            assert await client.call("GET", "counter") is None

    run(main())


def test_a15_what_was_not_written_yet_does_not_go_to_the_next_connection(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            number = await client.call("CLIENT", "ID")
            # More than is in flight at once: the rest waits behind what blocks.
            calls = [client.call("BLPOP", "list", 0), *(client.call("INCR", "counter") for _ in range(10_000))]
            await eventually(lambda: "cmd=blpop" in redis_server.call("CLIENT", "LIST").decode())
            redis_server.call("CLIENT", "KILL", "ID", number)
            assert all(map(is_closed, await asyncio.gather(*calls)))
            assert await client.call("GET", "counter") is None

    run(main())


def test_a16_a_pipeline_that_is_cut_gives_what_came_and_connection_errors(redis_server: RunningServer) -> None:
    async def main() -> None:
        for by_server in (False, True):
            async with FaultProxy(redis_server.port) as proxy, client_of(proxy) as client:
                await client.connect()
                pipeline = tornadis.Pipeline()
                for word in ("one", "two", "never"):
                    pipeline.stack_call("ECHO", word)
                proxy.to_client.faults = Faults(hold_at=b"$5\r\nnever")
                call = client.call(pipeline)
                await asyncio.sleep(0)
                lane = client._lane
                assert lane is not None
                assert lane.in_flight == 3
                await eventually(lambda: lane.in_flight == 1)  # noqa: B023
                if by_server:
                    proxy.reset()
                else:
                    client.disconnect()
                one, two, never = await call
                assert (one, two) == (b"one", b"two")
                assert is_closed(never)

    run(main())


def test_a16_a_pipeline_that_was_not_answered_at_all_gives_connection_errors(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy, client_of(proxy) as client:
            await client.connect()
            proxy.disturb(Faults(black_hole=True))
            pipeline = tornadis.Pipeline()
            pipeline.stack_call("PING")
            pipeline.stack_call("PING")
            call = client.call(pipeline)
            await asyncio.sleep(0)
            client.disconnect()
            result = await call
            assert isinstance(result, list)
            assert len(result) == 2
            assert all(map(is_closed, result))

    run(main())


def test_a16_a_pipeline_for_which_there_is_no_connection_gives_one_connection_error(free_port: int) -> None:
    async def main() -> None:
        pipeline = tornadis.Pipeline()
        pipeline.stack_call("PING")
        pipeline.stack_call("PING")
        result = await tornadis.Client(port=free_port).call(pipeline)
        assert isinstance(result, tornadis.ConnectionError)
        assert str(result) == "impossible to connect"

    run(main())


# Callbacks


def test_a17_a_callback_gets_the_result_once(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            results = [told(client, "PING"), told(client, "NOSUCHCOMMAND")]
            assert client.async_call("SET", "k", "v") is None
            pong, error = await asyncio.gather(*results)
            assert pong == b"PONG"
            assert isinstance(error, tornadis.ClientError)
            assert await client.call("GET", "k") == b"v"

    run(main())


def test_a18_a_callback_is_called_where_it_cannot_connect(free_port: int) -> None:
    async def main() -> None:
        error = await told(tornadis.Client(port=free_port), "PING")
        assert isinstance(error, tornadis.ConnectionError)
        assert str(error) == "impossible to connect"

    run(main())


def test_a19_a_callback_that_raises_is_logged_and_holds_up_nobody(redis_server: RunningServer) -> None:
    async def main() -> None:
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

        def fail(result: Any) -> None:
            raise ValueError(result)

        async with client_of(redis_server) as client:
            await client.connect()
            # All of it comes in one read.
            client.async_call("ECHO", "bad", callback=fail)
            after = [told(client, "ECHO", number) for number in range(5)]
            assert await asyncio.gather(*after) == [b"%d" % number for number in range(5)]
            assert [str(context["exception"]) for context in errors] == ["b'bad'"]
            assert await client.call("PING") == b"PONG"

    run(main())


# Pipelines


def test_a20_a_pipeline_is_answered_as_a_list_and_may_be_sent_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            pipeline = tornadis.Pipeline()
            assert pipeline.number_of_stacked_calls == 0
            pipeline.stack_call("SET", "k", 1)
            pipeline.stack_call("INCR", "k")
            pipeline.stack_call("GET", "k")
            assert pipeline.pipelined_args == [("SET", "k", 1), ("INCR", "k"), ("GET", "k")]
            for _ in range(2):
                assert await client.call(pipeline) == [b"OK", 2, b"2"]
                assert pipeline.number_of_stacked_calls == 3

    run(main())


def test_a21_an_empty_pipeline_is_a_client_error(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            for result in (await client.call(tornadis.Pipeline()), await told(client, tornadis.Pipeline())):
                assert isinstance(result, tornadis.ClientError)
                assert str(result) == "empty pipeline"
            assert await client.call("PING") == b"PONG"

    run(main())


def test_a22_concurrent_callers_get_their_own_replies_in_order(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client:
            order: list[int] = []

            async def caller(number: int) -> None:
                for turn in range(20):
                    word = b"%d:%d" % (number, turn)
                    pipeline = tornadis.Pipeline()
                    pipeline.stack_call("ECHO", word)
                    pipeline.stack_call("ECHO", word + b"!")
                    single, both = client.call("ECHO", word), client.call(pipeline)
                    assert await asyncio.gather(single, both) == [word, [word, word + b"!"]]

            await asyncio.gather(*map(caller, range(20)))
            for number in range(100):
                client.async_call("PING", callback=lambda reply, number=number: order.append(number))
            await client.call("PING")
            await eventually(lambda: order == list(range(100)))

    run(main())


def test_a23_what_is_not_the_protocol_ends_the_connection_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No real server says such a thing: two refusals for what a new connection tells, then nonsense.
        await reader.readuntil(b"LIB-VER\r\n")
        writer.write(b"-ERR\r\n-ERR\r\n")
        await reader.readuntil(b"PING\r\n")
        writer.write(b"nonsense\r\n")
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = tornadis.Client(port=server.sockets[0].getsockname()[1])
        async with server:
            assert all(map(is_closed, await asyncio.gather(client.call("PING"), client.call("PING"))))
            assert not client.is_connected()
        await server.wait_closed()

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.levelname for record in caplog.records if record.name == "waterspout.redis"] == ["WARNING"]
    assert "nonsense" in caplog.text or "Protocol error" in caplog.text


# Options of a connection


def test_a24_a_unix_socket_wins_over_host_and_port(redis_binary: ServerBinary, tmp_path: Path) -> None:
    path = str(tmp_path / "redis.sock")

    async def main() -> None:
        with RunningServer(redis_binary, "--unixsocket", path):
            client = tornadis.Client(host="nowhere.invalid", port=1, unix_domain_socket=path)
            assert await client.call("PING") == b"PONG"
            client.disconnect()
        missing = tornadis.Client(unix_domain_socket=str(tmp_path / "missing"))
        assert await missing.connect() is False

    run(main())


def test_a24_the_options_of_a_connection_are_taken(redis_server: RunningServer) -> None:
    async def main() -> None:
        options = {
            "host": "localhost",
            "read_page_size": 1024,
            "write_page_size": 1024,
            "connect_timeout": 5,
            "tcp_nodelay": True,
            "aggressive_write": True,
            "read_timeout": 0,
            "ioloop": tornado.ioloop.IOLoop.current(),
        }
        async with client_of(redis_server, **options) as client:
            assert await client.call("PING") == b"PONG"

    run(main())


def test_a24_connecting_takes_no_longer_than_connect_timeout() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            client = tornadis.Client(port=deaf.getsockname()[1], connect_timeout=0.1)
            assert await client.connect() is False

    run(main(), deadline=5)


def test_a25_nothing_read_for_read_timeout_ends_what_is_awaited(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server, read_timeout=0.2) as client:
            number = await client.call("CLIENT", "ID")
            assert is_closed(await client.call("BLPOP", "list", 30))
            assert await client.call("CLIENT", "ID") != number

    run(main(), deadline=10)


def test_a25_an_idle_client_is_asked_for_a_sign_of_life(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(fresh_redis_server, read_timeout=0.2) as client:
            number = await client.call("CLIENT", "ID")
            await asyncio.sleep(1)  # five times as long as it may be silent
            assert await client.call("CLIENT", "ID") == number
            fresh_redis_server.suspend()
            await eventually(lambda: not client.is_connected())
            fresh_redis_server.resume()

    run(main())


def test_a25_without_read_timeout_a_command_may_block(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(redis_server) as client, client_of(redis_server) as other:
            assert await client.connect()
            blocked = [client.call("BLPOP", "list", 0), client.call("BLPOP", "list", 30)]
            await asyncio.sleep(0)
            lane = client._lane
            assert lane is not None
            assert lane.connection is not None
            # Its health check looks away for as long: 15 seconds are too long for a test.
            assert lane.connection.quiet_until > asyncio.get_running_loop().time() + 1000
            await other.call("RPUSH", "list", "a", "b")
            assert await asyncio.gather(*blocked) == [[b"list", b"a"], [b"list", b"b"]]

    run(main())


class Wire:
    """What a bare connection brings, as replies."""

    def __init__(self, server: RunningServer, **options: Any) -> None:
        self._reader = hiredis.Reader()
        self.replies: list[Any] = []
        self.closed = 0
        self.connection = tornadis.Connection(self._read, self._close, port=server.port, **options)

    def _read(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self.replies.append(reply)

    def _close(self) -> None:
        self.closed += 1

    async def get(self, count: int) -> list[Any]:
        await eventually(lambda: len(self.replies) >= count)
        replies, self.replies = self.replies, []
        return replies


@pytest.mark.parametrize("aggressive", [False, True])
def test_a26_a_bare_connection_writes_all_of_what_it_is_given(redis_server: RunningServer, aggressive: bool) -> None:
    value = b"x" * 20_000_000

    async def main() -> None:
        wire = Wire(redis_server, aggressive_write=aggressive)
        connection = wire.connection
        connection.write(hiredis.pack_command(("ECHO", "before it was connected")))
        future = connection.connect()
        assert connection.is_connecting()
        assert await future is True
        assert await connection.connect() is True
        assert connection.is_connected()
        assert not connection.is_connecting()
        buffer = tornadis.WriteBuffer()
        buffer.append(hiredis.pack_command(("SET", "k", value)))
        buffer.append(hiredis.pack_command(("STRLEN", "k")))
        connection.write(buffer)
        connection.write(memoryview(hiredis.pack_command(("PING",))))
        assert await wire.get(4) == [b"before it was connected", b"OK", len(value), b"PONG"]
        connection.disconnect()
        assert (connection.is_connected(), wire.closed) == (False, 1)
        connection.disconnect()
        # And again, with the same object; what was not sent then is not sent now.
        assert await connection.connect() is True
        if not aggressive:
            connection.write(hiredis.pack_command(("ECHO", "never sent")))
            connection.disconnect()
            assert await connection.connect() is True
            wire.closed -= 1
        connection.write(hiredis.pack_command(("QUIT",)))
        assert await wire.get(1) == [b"OK"]
        await eventually(lambda: wire.closed == 2)
        assert not connection.is_connected()

    run(main())


def test_a26_a_bare_connection_that_hears_nothing_for_read_timeout_ends(redis_server: RunningServer) -> None:
    async def main() -> None:
        wire = Wire(redis_server, read_timeout=0.1)
        assert await wire.connection.connect()
        await eventually(lambda: wire.closed == 1)
        assert not wire.connection.is_connected()

    run(main())


def test_a26_a_bare_connection_that_cannot_be_made_is_false(free_port: int) -> None:
    async def main() -> None:
        closed: list[None] = []
        connection = tornadis.Connection(print, lambda: closed.append(None), port=free_port)
        assert await connection.connect() is False
        assert not connection.is_connected()
        assert closed == []
        missing = tornadis.Connection(print, print, unix_domain_socket="/nonexistent")
        assert await missing.connect() is False

    run(main())


def test_a27_names_and_addresses_of_ipv6_are_connected_to(redis_binary: ServerBinary) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")

    async def main() -> None:
        with RunningServer(redis_binary, "--bind", "127.0.0.1", "::1") as server:
            for host in ("::1", "localhost"):
                async with client_of(server, host=host) as client:
                    assert await client.call("PING") == b"PONG"
        assert await tornadis.Client(host="nowhere.invalid").connect() is False

    run(main())


# Buffers


def whole() -> tornadis.WriteBuffer:
    buffer = tornadis.WriteBuffer()
    for part in (b"23", b"", memoryview(b"4"), b"56789"):
        buffer.append(part)
    buffer.appendleft(b"1")
    return buffer


def test_a28_a_buffer_grows_at_both_ends() -> None:
    buffer = tornadis.WriteBuffer()
    assert (bytes(buffer), len(buffer), buffer.is_empty(), buffer.pop_chunk(10)) == (b"", 0, True, b"")
    buffer = whole()
    assert (bytes(buffer), len(buffer), buffer.is_empty()) == (b"123456789", 9, False)
    buffer.append(whole())
    buffer.appendleft(whole())
    assert bytes(buffer) == b"123456789" * 3
    assert len(buffer) == 27
    buffer.clear()
    assert (bytes(buffer), len(buffer), buffer.is_empty()) == (b"", 0, True)
    buffer.append(memoryview(bytearray(range(16))).cast("I"))
    buffer.append(memoryview(b"a-b-c")[::2])
    assert (bytes(buffer), len(buffer)) == (bytes(range(16)) + b"abc", 19)


@pytest.mark.parametrize("view_size", [0, 3, 4096])
def test_a28_a_buffer_is_taken_in_chunks_of_any_size(view_size: int) -> None:
    for size in range(1, 12):
        buffer = tornadis.WriteBuffer(use_memory_view_min_size=view_size)
        buffer.append(whole())
        taken = b""
        while not buffer.is_empty():
            chunk = buffer.pop_chunk(size)
            assert isinstance(chunk, bytes)
            taken += chunk
            assert len(chunk) == size or buffer.is_empty()
            assert taken + bytes(buffer) == b"123456789"
            assert len(taken) + len(buffer) == 9
