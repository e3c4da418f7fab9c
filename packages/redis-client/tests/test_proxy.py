"""The fault proxy itself, between plain sockets."""

import asyncio
import gc
import math
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from waterspout_redis.testing import FaultProxy, Faults, eventually, run

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def proxied(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[FaultProxy]:
    """A proxy before a server that gives `answer` to each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, FaultProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()


async def echo_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(-1))


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(streams: Streams, data: bytes) -> bytes:
    reader, writer = streams
    writer.write(data)
    return await reader.readexactly(len(data))


def now() -> float:
    return asyncio.get_running_loop().time()


def test_what_goes_through_is_unchanged_and_counted() -> None:
    data = random.Random(1).randbytes(5_000_000)

    async def main() -> None:
        async with proxied(echo) as proxy:
            assert proxy.url == f"redis://127.0.0.1:{proxy.port}"
            async with connected(proxy) as first, connected(proxy) as second:
                assert await exchange(first, data) == data
                assert await exchange(second, b"short") == b"short"
                assert (proxy.connections, proxy.live) == (2, 2)
            await eventually(lambda: proxy.live == 0)
            assert proxy.connections == 2
            assert (proxy.to_server.bytes, proxy.to_client.bytes) == (5_000_005, 5_000_005)

    run(main())


def test_the_end_of_one_way_leaves_the_other_open() -> None:
    async def main() -> None:
        async with proxied(echo_at_the_end) as proxy, connected(proxy) as (reader, writer):
            writer.write(b"all")
            writer.write_eof()
            assert await reader.read(-1) == b"all"
            await eventually(lambda: proxy.live == 0)

    run(main())


@pytest.mark.parametrize("size", [1, 3])
def test_each_chunk_is_a_read_of_its_own(size: int) -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as (reader, writer):
            await exchange((reader, writer), b"x")
            proxy.to_client.faults = Faults(chunk_size=size)
            writer.write(b"abcdefghij")
            pieces = []
            while sum(map(len, pieces)) < 10:
                pieces.append(await reader.read(100))
            assert b"".join(pieces) == b"abcdefghij"
            assert [len(piece) for piece in pieces] == [size] * (10 // size) + [1] * (10 % size)

    run(main())


def test_a_delay_is_added_to_each_way_and_holds_up_nothing_behind_it() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as (reader, writer):
            proxy.disturb(Faults(delay=0.1))
            begun = now()
            for number in range(10):
                writer.write(b"%d" % number)
                await asyncio.sleep(0.01)
            assert await reader.readexactly(10) == b"0123456789"
            # 0.1 s each way behind the last of them, not for each of them.
            assert 0.29 <= now() - begun < 0.6

    run(main())


def test_what_a_long_delay_holds_comes_at_once_when_it_is_healed() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as (reader, writer):
            proxy.to_client.faults = Faults(delay=1000)
            writer.write(b"hello")
            await eventually(lambda: proxy.to_server.bytes == 5)
            proxy.heal()
            assert await reader.readexactly(5) == b"hello"

    run(main())


def test_the_bandwidth_is_kept_by_all_connections_together() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as first, connected(proxy) as second:
            proxy.to_server.faults = Faults(bandwidth=100_000)
            begun = now()
            exchanges = [exchange(streams, bytes(20_000)) for streams in (first, second)]
            await asyncio.gather(*exchanges)
            # 40,000 bytes take 0.4 s; the last hundredth of a second's worth is not waited for.
            assert 0.38 <= now() - begun < 2

    run(main())


def test_a_black_hole_keeps_all_until_it_is_healed() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as before:
            await exchange(before, b"x")
            proxy.disturb(Faults(black_hole=True))
            async with connected(proxy) as meanwhile:
                waits = [asyncio.create_task(exchange(streams, b"hello")) for streams in (before, meanwhile)]
                await eventually(lambda: proxy.connections == 2)
                done, _ = await asyncio.wait(waits, timeout=0.1)
                assert not done
                assert proxy.to_server.bytes == 1
                proxy.heal()
                assert await asyncio.gather(*waits) == [b"hello", b"hello"]

    run(main())


def test_a_black_hole_of_one_way_lets_the_other_through() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as (reader, writer):
            proxy.to_client.faults = Faults(black_hole=True)
            writer.write(b"hello")
            await eventually(lambda: proxy.to_server.bytes == 5)
            assert proxy.to_client.bytes == 0
            proxy.to_client.faults = Faults()
            assert await reader.readexactly(5) == b"hello"

    run(main())


def test_the_news_of_an_end_does_not_leave_a_black_hole_either() -> None:
    async def main() -> None:
        async with proxied(echo_at_the_end) as proxy:
            async with connected(proxy) as (_, writer):
                await eventually(lambda: proxy.live == 1)
                proxy.disturb(Faults(black_hole=True))
                writer.write(b"lost")
            done, _ = await asyncio.wait([asyncio.create_task(eventually(lambda: not proxy.live))], timeout=0.1)
            assert not done
            proxy.heal()
            await eventually(lambda: not proxy.live)

    run(main())


def test_a_reset_is_a_reset_on_both_sides() -> None:
    told: list[type[BaseException] | None] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
            told.append(None)
        except ConnectionError as error:
            told.append(type(error))

    async def main() -> None:
        async with proxied(note) as proxy:
            async with connected(proxy) as streams:
                await exchange(streams, b"x")
                proxy.reset()
                with pytest.raises(ConnectionResetError):
                    await streams[0].read(1)
                await eventually(lambda: told == [ConnectionResetError])
            async with connected(proxy) as streams:
                await exchange(streams, b"x")
                proxy.hang_up()
                assert await streams[0].read(1) == b""
                await eventually(lambda: told == [ConnectionResetError, None])
            assert proxy.live == 0

    run(main())


@pytest.mark.parametrize("turns", range(6))
def test_what_was_held_does_not_come_out_when_all_is_reset_and_healed_at_once(turns: int) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with FaultProxy(listener.getsockname()[1]) as proxy, connected(proxy) as (reader, _):
                await eventually(lambda: proxy.live == 1)
                server = listener.accept()[0]
                with server:
                    proxy.to_client.faults = Faults(black_hole=True)
                    await eventually(lambda: len(asyncio.all_tasks()) >= 6)  # ours, the tunnel's, and its ways'
                    server.send(b"held")
                    # So many turns of the loop ago it came to the proxy.
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    proxy.reset()
                    proxy.heal()
                    with pytest.raises(ConnectionResetError):
                        await reader.read(100)
            assert proxy.to_client.bytes == 0

    run(main())


def test_a_reset_by_one_side_reaches_the_other() -> None:
    async def hang_up_rudely(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        writer.transport.abort()

    async def main() -> None:
        async with proxied(hang_up_rudely) as proxy, connected(proxy) as (reader, writer):
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read(1)

    run(main())


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_cut_lets_so_many_bytes_through_and_no_more_once(count: int) -> None:
    async def main() -> None:
        async with proxied(echo) as proxy:
            proxy.to_client.cut_after(count)
            async with connected(proxy) as (reader, writer):
                writer.write(b"0123456789")
                assert await reader.read(-1) == b"0123456789"[:count]
            async with connected(proxy) as streams:
                assert await exchange(streams, b"0123456789") == b"0123456789"

    run(main())


def test_a_cut_may_be_a_reset_and_spares_the_other_connections() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as cut, connected(proxy) as spared:
            await exchange(spared, b"x")
            proxy.to_server.cut_after(3, reset=True)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)) as caught:
                await exchange(cut, b"0123456789")
            assert caught.type is ConnectionResetError
            assert await exchange(spared, b"x") == b"x"

    run(main())


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_what_comes_from_a_word_on_is_held(chunk_size: int | None) -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as held, connected(proxy) as other:
            proxy.to_server.faults = Faults(hold_at=b"word", chunk_size=chunk_size)
            held[1].write(b"before, word, behind")
            assert await held[0].readexactly(8) == b"before, "
            assert await exchange(other, b"wor d") == b"wor d"
            assert proxy.to_server.bytes == 13
            proxy.heal()
            assert await held[0].readexactly(12) == b"word, behind"

    run(main())


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_connection_is_cut_before_a_word_each_time(chunk_size: int | None) -> None:
    async def main() -> None:
        async with proxied(echo) as proxy:
            proxy.to_client.faults = Faults(cut_at=b"word", chunk_size=chunk_size)
            for text, left in ((b"before, word, behind", b"before, "), (b"word", b"")):
                async with connected(proxy) as (reader, writer):
                    writer.write(text)
                    assert await reader.read(-1) == left

    run(main())


def test_refused_is_refused_by_the_system_and_the_port_stays_ours() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as before:
            await exchange(before, b"x")
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", proxy.port))
            assert await exchange(before, b"still here") == b"still here"
            proxy.heal()
            async with connected(proxy) as again:
                assert await exchange(again, b"x") == b"x"
            assert proxy.connections == 2

    run(main())


def test_where_no_server_is_the_client_is_reset() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy:
            target, proxy.target = proxy.target, ("127.0.0.1", 1)
            async with connected(proxy) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read(1)
            proxy.target = target
            async with connected(proxy) as streams:
                assert await exchange(streams, b"x") == b"x"

    run(main())


@pytest.mark.parametrize("faults", [Faults(), Faults(black_hole=True), Faults(delay=1000), Faults(bandwidth=1)])
def test_it_ends_at_once_and_leaves_nothing_behind(faults: Faults) -> None:
    async def main() -> None:
        async with proxied(echo) as proxy, connected(proxy) as (reader, writer), connected(proxy):
            proxy.disturb(faults)
            writer.write(bytes(3_000_000))
            await eventually(lambda: proxy.live == 2)
            begun = time.monotonic()
            await proxy.__aexit__(None, None, None)
            assert time.monotonic() - begun < 1
            assert proxy.live == 0
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            while not reader.at_eof() and reader.exception() is None:
                try:
                    await reader.read(65536)
                except ConnectionError:
                    break
            await eventually(lambda: len(asyncio.all_tasks()) <= 2)

    run(main())
    gc.collect()


def test_a_connection_that_ends_before_it_began_is_given_back() -> None:
    async def main() -> None:
        async with proxied(echo) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port)) as client:
                proxy._accept()
                assert proxy.live == 1
                proxy.reset()
                await eventually(lambda: proxy.live == 0)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)

    run(main())
    gc.collect()


def test_by_default_nothing_is_wrong() -> None:
    assert Faults() == Faults(chunk_size=None, delay=0.0, bandwidth=math.inf, black_hole=False, hold_at=b"", cut_at=b"")


def test_it_runs_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with asyncio.timeout(20), proxied(echo) as proxy:
            async with connected(proxy) as streams:
                proxy.disturb(Faults(chunk_size=1))
                assert await exchange(streams, b"hello") == b"hello"
                proxy.disturb(Faults(black_hole=True))
                waiting = asyncio.create_task(exchange(streams, b"hello"))
                await asyncio.sleep(0)
                proxy.heal()
                assert await waiting == b"hello"
                proxy.reset()
                with pytest.raises(ConnectionResetError):
                    await streams[0].read(1)
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.heal()
            async with connected(proxy) as streams:
                proxy.to_client.cut_after(2)
                streams[1].write(b"hello")
                assert await streams[0].read(-1) == b"he"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
