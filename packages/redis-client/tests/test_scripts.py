"""Scripts and functions on real servers."""

import asyncio
import hashlib
from contextlib import aclosing
from typing import Any

import pytest

from waterspout_redis import Client, ResponseError
from waterspout_redis._scripts import Library, Script
from waterspout_redis.testing import RunningServer, run

COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
ECHO = Script("return ARGV[1]")

COUNTERS = """#!lua name=counters
redis.register_function('count', function(keys, args) return redis.call('INCRBY', keys[1], args[1]) end)
redis.register_function{
    function_name='look', callback=function(keys, args) return redis.call('GET', keys[1]) end, flags={'no-writes'}
}
redis.register_function('fail', function(keys, args) return redis.error_reply('MINE it went wrong') end)
"""


class Recorder:
    """A client that notes the names of the commands that go through it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.names: list[Any] = []

    def call(self, *args: Any, **options: Any) -> asyncio.Future[Any]:
        self.names.append(args[0])
        return self.client.call(*args, **options)


# Scripts


def test_a_script_is_sent_whole_once_and_then_by_its_digest(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            await client.call("SCRIPT", "FLUSH")
            recorder = Recorder(client)
            assert [await COUNT(recorder, keys=["n"], args=[2]) for _ in range(3)] == [2, 4, 6]
            assert recorder.names == ["EVALSHA", "EVAL", "EVALSHA", "EVALSHA"]
            await client.call("SCRIPT", "FLUSH")
            assert await COUNT(recorder, keys=["n"], args=[1]) == 7

    run(main())


def test_a_script_goes_on_after_the_server_was_restarted(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(fresh_redis_server.url) as client:
            assert await COUNT(client, keys=["n"], args=[1]) == 1
            fresh_redis_server.kill()
            fresh_redis_server.start()
            # Sent again over the new connection if need be, which a script that writes is not.
            assert await client.call("PING") == b"PONG"
            assert await COUNT(client, keys=["n"], args=[1]) == 1

    run(main())


def test_many_callers_at_once_each_run_a_script_once(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            await client.call("SCRIPT", "FLUSH")
            replies = await asyncio.gather(*(COUNT(client, keys=["n"], args=[1]) for _ in range(100)))
            assert sorted(replies) == list(range(1, 101))

    run(main())


@pytest.mark.parametrize("word", ["word", b"word", bytearray(b"word"), memoryview(b"word")])
@pytest.mark.parametrize("where", ["keys", "args"])
def test_one_word_for_a_list_of_them_is_refused_before_anything_is_sent(word: Any, where: str) -> None:
    async def main() -> None:
        # There is no server there.
        async with aclosing(Client("redis://127.0.0.1:1")) as client:
            recorder = Recorder(client)
            with pytest.raises(TypeError, match=rf"{where} must be a list or a tuple, not {type(word).__name__}"):
                await COUNT(recorder, **{where: word})
            with pytest.raises(TypeError, match=rf"{where} must be a list or a tuple, not {type(word).__name__}"):
                await Library(COUNTERS).call(recorder, "count", **{where: word})
            assert recorder.names == []

    run(main())


def test_keys_and_arguments_are_what_call_takes_and_replies_are_decoded_as_asked(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url, decode="utf-8") as client:
            assert await ECHO(client, args=["é"]) == "é"
            assert await ECHO(client, args=[b"\x00\r\n"], decode=None) == b"\x00\r\n"
            assert await ECHO(client, args=[1.5]) == "1.5"
            with pytest.raises(TypeError, match="argument 3"):
                await ECHO(client, args=[None])  # type: ignore[list-item]

    run(main())


def test_an_error_in_a_script_is_raised_and_the_script_not_run_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            script = Script("redis.call('INCR', 'runs') return redis.error_reply('MINE it went wrong')")
            for runs in (1, 2):
                with pytest.raises(ResponseError, match="MINE it went wrong"):
                    await script(client)
                assert await client.call("GET", "runs") == b"%d" % runs

    run(main())


def test_f16_a_read_only_script_is_one_for_the_server_too(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            recorder = Recorder(client)
            await client.call("SCRIPT", "FLUSH")
            await client.call("SET", "k", "v")
            assert await Script("return redis.call('GET', KEYS[1])", read_only=True)(recorder, keys=["k"]) == b"v"
            assert recorder.names == ["EVALSHA_RO", "EVAL_RO"]
            with pytest.raises(ResponseError, match="read-only"):
                await Script(COUNT.source, read_only=True)(client, keys=["n"], args=[1])

    run(main())


def test_a_script_runs_on_a_leased_connection_and_in_a_pipeline_by_its_digest(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client, client.lease() as leased:
            assert await COUNT(leased, keys=["n"], args=[1]) == 1
            assert await client.call("EVALSHA", COUNT.sha, 1, "n", 1) == 2

    run(main())


def test_the_digest_is_that_of_the_source_as_it_is_sent() -> None:
    assert Script("return 'é'").sha == hashlib.sha1("return 'é'".encode()).hexdigest()


# Functions


def test_a_library_is_loaded_when_a_function_is_missing(redis_server: RunningServer) -> None:
    async def main() -> None:
        library = Library(COUNTERS)
        async with Client(redis_server.url) as client:
            await client.call("FUNCTION", "FLUSH")
            recorder = Recorder(client)
            assert [await library.call(recorder, "count", keys=["n"], args=[2]) for _ in range(2)] == [2, 4]
            assert recorder.names == ["FCALL", "FUNCTION", "FCALL", "FCALL"]
            await client.call("FUNCTION", "FLUSH")
            assert await library.call(client, "count", keys=["n"], args=[1]) == 5
            assert await library.call(client, "look", keys=["n"], read_only=True, decode="utf-8") == "5"
            assert recorder.names[-1] == "FCALL"

    run(main())


def test_a_library_goes_on_after_the_server_was_restarted(fresh_redis_server: RunningServer) -> None:
    async def main() -> None:
        library = Library(COUNTERS)
        async with Client(fresh_redis_server.url) as client:
            assert await library.call(client, "count", keys=["n"], args=[1]) == 1
            fresh_redis_server.kill()
            fresh_redis_server.start()
            assert await client.call("PING") == b"PONG"
            assert await library.call(client, "count", keys=["n"], args=[1]) == 1

    run(main())


def test_many_callers_at_once_each_run_a_function_once(redis_server: RunningServer) -> None:
    async def main() -> None:
        library = Library(COUNTERS)
        async with Client(redis_server.url) as client:
            await client.call("FUNCTION", "FLUSH")
            replies = await asyncio.gather(*(library.call(client, "count", keys=["n"], args=[1]) for _ in range(100)))
            assert sorted(replies) == list(range(1, 101))

    run(main())


def test_an_error_in_a_function_is_raised_and_a_missing_one_too(redis_server: RunningServer) -> None:
    async def main() -> None:
        library = Library(COUNTERS)
        async with Client(redis_server.url) as client:
            await client.call("FUNCTION", "FLUSH")
            with pytest.raises(ResponseError, match="MINE it went wrong"):
                await library.call(client, "fail")
            with pytest.raises(ResponseError, match="Function not found"):
                await library.call(client, "no_such")
            with pytest.raises(ResponseError, match="ompiling"):
                await Library("#!lua name=bad\nthis is no Lua").call(client, "no_such")

    run(main())


def test_f16_a_function_that_may_write_is_not_called_as_one_that_only_reads(redis_server: RunningServer) -> None:
    async def main() -> None:
        async with Client(redis_server.url) as client:
            with pytest.raises(ResponseError, match="write flag"):
                await Library(COUNTERS).call(client, "count", keys=["n"], args=[1], read_only=True)

    run(main())


def test_what_is_loaded_stays_until_it_is_replaced(redis_server: RunningServer) -> None:
    def version(number: int) -> Library:
        return Library(f"#!lua name=versions\nredis.register_function('which', function() return {number} end)")

    async def main() -> None:
        async with Client(redis_server.url) as client:
            await client.call("FUNCTION", "FLUSH")
            assert await version(1).call(client, "which") == 1
            assert await version(2).call(client, "which") == 1
            await version(2).load(client)
            assert await version(1).call(client, "which") == 2

    run(main())


@pytest.mark.parametrize("code", ["#!lua name=mylib\n", '#!LUA   name="mylib"\n', "#!lua flags=x name=mylib\nreturn"])
def test_a_library_has_the_name_in_its_first_line(code: str) -> None:
    assert Library(code).name == "mylib"


@pytest.mark.parametrize("code", ["", "return 1", "#!lua\n", "#!lua\n-- name=late", " #!lua name=late"])
def test_code_without_a_name_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="name="):
        Library(code)


def test_a_server_without_functions_is_told_by_a_clear_error(redis_binary: Any) -> None:
    async def main(url: str) -> None:
        async with Client(url) as client:
            for attempt in (Library(COUNTERS).call(client, "count"), Library(COUNTERS).load(client)):
                with pytest.raises(ResponseError, match=r"no functions.*Redis 7\.0.*unknown command"):
                    await attempt

    # Commands that are renamed to nothing are unknown, as they are to servers before 7.0.
    with RunningServer(redis_binary, "--rename-command", "FCALL", "", "--rename-command", "FUNCTION", "") as server:
        run(main(server.url))
