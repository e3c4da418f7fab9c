"""The way out of a server: SIGTERM with readers at every door (E8, F54, F55)."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.websocket import websocket_connect

from integration.clients import DEADLINE, publish, request
from integration.conftest import Serve, ServerProcess
from waterspout_redis.testing import eventually, run

pytestmark = pytest.mark.one_redis_server  # how the servers differ is tested in the core

TCP: Final = ("--tcp-port", "0")

LATE: Final = 3.0
"""Seconds for a process to end, on a busy machine, when it has nothing more to wait for."""


class Stream:
    """The bytes of one connection; every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address: tuple[str, int], *, receive_buffer: int | None = None) -> Stream:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError:
            sock.close()
            raise
        return cls(*await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**16))

    async def get(self, path: str, **headers: str) -> tuple[int, dict[str, str]]:
        """Ask for `path`, and read the head of the answer: status and headers."""
        fields = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        status = int((await self.line()).split()[1])
        answered = {}
        while line := await self.line():
            name, _, value = line.partition(": ")
            answered[name.lower()] = value
        return status, answered

    async def line(self) -> str:
        async with asyncio.timeout(DEADLINE):
            return (await self.reader.readline()).decode().rstrip("\r\n")

    async def body(self, headers: dict[str, str]) -> Any:
        """The JSON of an answer that tells its length."""
        async with asyncio.timeout(DEADLINE):
            return json.loads(await self.reader.readexactly(int(headers["content-length"])))

    async def chunks(self) -> AsyncIterator[str]:
        """The chunks of a body. It has to end in order: with the last chunk, and nothing behind it."""
        size = 1
        while size:
            async with asyncio.timeout(DEADLINE):
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                chunk = await self.reader.readexactly(size + 2)
            assert chunk.endswith(b"\r\n")
            yield chunk[:-2].decode()
        assert await self.end() == b""

    async def lines(self) -> AsyncIterator[str]:
        """The lines of such a body."""
        begun = ""
        async for chunk in self.chunks():
            *ended, begun = (begun + chunk).split("\n")
            for line in ended:
                yield line
        assert not begun

    async def end(self) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):  # it was reset
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(address: tuple[str, int], **options: Any) -> AsyncIterator[Stream]:
    stream = await Stream.connect(address, **options)
    try:
        yield stream
    finally:
        await stream.close()


class Reader(abc.ABC):
    """Reads the channel `news` at one door, of one server after the other."""

    def __init__(self) -> None:
        self.data: list[Any] = []
        self.last_id = ""
        self.said: tuple[Any, ...] = ()
        """What the server has said at the end."""

    async def read(self, server: ServerProcess, until: Any = None) -> None:
        """Read on until the server ends it, or the message `until` has come."""
        self.said = ()
        async with contextlib.aclosing(self.messages(server)) as messages:
            async for message in messages:
                self.last_id = message["id"]
                self.data.append(message["data"])
                if message["data"] == until:
                    return

    @abc.abstractmethod
    def messages(self, server: ServerProcess) -> AsyncGenerator[dict[str, Any]]:
        """The messages behind `last_id`, which is set at once if it was empty; sets `said` at the end."""

    def query(self, **more: str) -> str:
        named = {"channel": "news", **({"last_event_id": self.last_id} if self.last_id else {}), **more}
        return "&".join(f"{name}={value}" for name, value in named.items())


class EventSource(Reader):
    async def messages(self, server: ServerProcess) -> AsyncGenerator[dict[str, Any]]:
        async with connected(server.address) as stream:
            status, _ = await stream.get(f"/events?{self.query()}", Accept="text/event-stream")
            assert status == 200
            fields: dict[str, str] = {}
            retries = []
            async for line in stream.lines():
                name, _, value = line.partition(": ")
                fields[name] = value
                if name == "retry":
                    retries.append(int(value))
                if not line:
                    self.last_id = fields.get("id", self.last_id)
                    if "data" in fields:
                        yield fields
                    fields = {}
            self.said = tuple(retries[1:])  # the first one was said at the beginning


class NDJSON(Reader):
    async def messages(self, server: ServerProcess) -> AsyncGenerator[dict[str, Any]]:
        async with connected(server.address) as stream:
            status, headers = await stream.get(f"/events?{self.query()}", Accept="application/x-ndjson")
            assert status == 200
            self.last_id = self.last_id or headers["last-event-id"]
            async for line in stream.lines():
                if line:
                    yield json.loads(line)
            self.said = ("the end",)


class LongPoll(Reader):
    async def messages(self, server: ServerProcess) -> AsyncGenerator[dict[str, Any]]:
        while not self.said:
            async with connected(server.address) as stream:
                status, headers = await stream.get(f"/poll?{self.query(timeout='60')}")
                if status == 503:
                    self.said = (503, headers["retry-after"])
                    return
                assert status == 200
                self.last_id = self.last_id or headers["last-event-id"]
                answer = json.loads("".join([chunk async for chunk in stream.chunks()]))
            for message in answer["messages"]:
                yield message
            if not answer["messages"]:
                self.said = ("nothing new",)


class WebSocket(Reader):
    async def messages(self, server: ServerProcess) -> AsyncGenerator[dict[str, Any]]:
        connection = await websocket_connect(f"ws{server.url[4:]}/ws?{self.query()}")
        try:
            assert connection.headers is not None
            self.last_id = self.last_id or connection.headers["Last-Event-ID"]
            async with asyncio.timeout(DEADLINE):
                while (text := await connection.read_message()) is not None:
                    yield json.loads(text)
            self.said = (connection.close_code, connection.close_reason)
        finally:
            connection.close()


class Lines(Reader):
    async def messages(self, server: ServerProcess) -> AsyncGenerator[dict[str, Any]]:
        async with connected(tcp_address(server)) as stream:
            stream.writer.write(f"SUBSCRIBE news{f' FROM {self.last_id}' if self.last_id else ''}\r\n".encode())
            word, channel, id = (await stream.line()).split()
            assert (word, channel) == ("CONFIRMED", "news")
            self.last_id = self.last_id or id
            while (line := await stream.line()).startswith("MESSAGE "):
                yield json.loads(line.removeprefix("MESSAGE "))
            assert await stream.end() == b""
            self.said = (line,)


DOORS: Final = (EventSource, NDJSON, LongPoll, WebSocket, Lines)


def tcp_address(server: ServerProcess) -> tuple[str, int]:
    """Where it speaks the line protocol."""
    host, port = re.findall(r"tcp://(\S+):(\d+)", server.output())[-1]
    return host, int(port)


async def counted(server: ServerProcess) -> dict[str, int]:
    """What it says of its connections."""
    counts: dict[str, int] = (await asyncio.to_thread(request, f"{server.url}/healthz"))[1]["connections"]
    return counts


async def until_opened(server: ServerProcess, count: int) -> None:
    """Wait until so many subscribers have come."""
    async with asyncio.timeout(DEADLINE):
        while (await counted(server))["opened"] < count:  # noqa: ASYNC110  # it is another process
            await asyncio.sleep(0.01)


async def until_ended(server: ServerProcess, begin: float) -> tuple[int, float]:
    """Its exit status, and the seconds from `begin` until then."""
    status = await asyncio.to_thread(server.process.wait, DEADLINE)
    return status, time.monotonic() - begin


def terminate(server: ServerProcess) -> float:
    """Send SIGTERM; the time of it."""
    server.process.send_signal(signal.SIGTERM)
    return time.monotonic()


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_e8_at_every_door_the_goodbye_is_that_of_its_protocol(serve: Serve, loop: str) -> None:
    server = serve(*TCP, "--grace", "4", "--loop", loop)

    async def use() -> None:
        readers = [door() for door in DOORS]
        reading = [asyncio.create_task(reader.read(server)) for reader in readers]
        await until_opened(server, len(DOORS))
        await asyncio.to_thread(publish, server.url, "news", "last words")
        await until_opened(server, len(DOORS) + 1)  # a long poll is over with its message, and has come again
        await eventually(lambda: all(reader.data for reader in readers))
        begin = terminate(server)
        await asyncio.gather(*reading)
        status, seconds = await until_ended(server, begin)
        assert (status, seconds < 4 + LATE) == (0, True)
        assert [reader.data for reader in readers] == [["last words"]] * len(DOORS)
        events, *others, websocket, lines = (reader.said for reader in readers)
        assert len(events) == 1
        assert 1000 <= events[0] <= 5000
        assert others == [("the end",), ("nothing new",)]
        assert (websocket[0], bool(websocket[1])) == (1012, True)
        assert lines[0].startswith("GOAWAY ")

    run(use())


def test_e8_who_comes_back_to_another_server_on_the_same_redis_has_lost_nothing(
    serve: Serve, redis_server: Any
) -> None:
    """Messages go on all the time; each reader has all of them, in order and once."""
    here, there = (serve(*TCP, "--redis", redis_server.url) for _ in range(2))
    sent = [str(number) for number in range(200)]

    async def follow(reader: Reader) -> None:
        # A long poll may come again just when nobody is accepted any more.
        with contextlib.suppress(ConnectionError) if isinstance(reader, LongPoll) else contextlib.nullcontext():
            await reader.read(here)
        assert sent[-1] not in reader.data, "the server was gone before"
        await reader.read(there, until=sent[-1])

    async def use() -> None:
        readers = [door() for door in DOORS]
        following = [asyncio.create_task(follow(reader)) for reader in readers]
        await until_opened(here, len(DOORS))
        begin = 0.0
        for number, text in enumerate(sent):
            await asyncio.to_thread(publish, there.url, "news", text)
            if number == 50:
                begin = terminate(here)
            if number == 150:
                assert (await until_ended(here, begin))[0] == 0
        await asyncio.gather(*following)
        for reader in readers:
            assert (type(reader), reader.data) == (type(reader), sent)

    run(use(), deadline=60)


def test_f54_many_are_sent_away_over_some_time_in_no_order_and_come_back_over_some_time(serve: Serve) -> None:
    """At most a hundred a second, where the grace allows it; the times to wait until then are random, too."""
    count, grace = 150, 6.0
    server = serve("--grace", str(grace))

    async def use() -> None:
        readers = [EventSource() for _ in range(count)]
        ended: list[int] = []

        async def read(number: int) -> float:
            await readers[number].read(server)
            ended.append(number)
            return time.monotonic()

        reading = []
        for number in range(count):  # one behind the other, so that there is an order that could be kept
            reading.append(asyncio.create_task(read(number)))
            await until_opened(server, number + 1)
        begin = terminate(server)
        times = sorted(await asyncio.gather(*reading))
        status, seconds = await until_ended(server, begin)
        assert (status, seconds < grace + LATE) == (0, True)
        assert times[-1] - times[0] > 0.7 * count / 100
        assert ended not in (sorted(ended), sorted(ended, reverse=True))
        waits = [reader.said[0] for reader in readers]
        assert all(1000 <= wait <= 5000 for wait in waits)
        assert max(waits) - min(waits) > 2000

    run(use(), deadline=60)


HEAD: Final = {
    EventSource: b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n",
    NDJSON: b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n",
    WebSocket: b"GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    Lines: b"SUBSCRIBE news\r\n",
}
"""How a reader begins at each door that streams."""


async def stall(door: type[Reader], server: ServerProcess) -> Stream:
    """A reader that has begun and then reads nothing any more, with more on its way than all buffers take."""
    before = (await counted(server))["opened"]
    address = tcp_address(server) if door is Lines else server.address
    stream = await Stream.connect(address, receive_buffer=1 << 17)
    stream.writer.write(HEAD[door])
    await until_opened(server, before + 1)
    for _ in range(12):
        await asyncio.to_thread(publish, server.url, "news", "x" * 1_000_000)
    return stream


@pytest.mark.parametrize("door", [EventSource, NDJSON, WebSocket, Lines])
def test_f55_who_does_not_read_cannot_hold_up_the_end(serve: Serve, door: type[Reader]) -> None:
    server = serve(*TCP, "--grace", "1.5")

    async def use() -> None:
        stalled = await stall(door, server)
        reader = EventSource()
        reading = asyncio.create_task(reader.read(server))
        await until_opened(server, 2)
        begin = terminate(server)
        await reading
        assert reader.said, "the others leave in order"
        status, seconds = await until_ended(server, begin)
        assert (status, seconds < 1.5 + LATE) == (0, True)
        await stalled.close()

    run(use())


def test_f55_who_is_slow_is_not_cut_off_in_the_middle_of_a_message(serve: Serve) -> None:
    server = serve("--grace", "10")

    async def use() -> None:
        stream = await stall(EventSource, server)
        begin = terminate(server)
        await eventually(lambda: "to leave" in server.output())
        assert (await stream.line()).startswith("HTTP/1.1 200")
        while await stream.line():
            pass  # the rest of the head
        *_, last, empty = [line async for line in stream.lines()]
        assert (last.partition(":")[0], empty) == ("retry", "")
        assert (await until_ended(server, begin))[0] == 0
        await stream.close()

    run(use())


def test_f55_a_request_under_way_is_answered(serve: Serve) -> None:
    server = serve("--grace", "10")

    async def use() -> None:
        async with connected(server.address) as stream, connected(server.address) as other:
            head = "POST /channels/news HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"
            stream.writer.write(f"{head}he".encode())
            await other.get("/healthz")  # so that the server has seen the other one, too
            begin = terminate(server)
            await refused(server)
            stream.writer.write(b"llo")
            assert (await stream.line()) == "HTTP/1.1 200 OK"
            status, seconds = await until_ended(server, begin)
            assert (status, seconds < 10) == (0, True)

    run(use())


async def refused(server: ServerProcess) -> None:
    """Wait until it accepts nobody any more."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await (await Stream.connect(server.address)).close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # it was about to be accepted
                continue


def test_f56_who_asks_on_an_open_connection_meanwhile_is_sent_away_with_words(serve: Serve) -> None:
    """An EventSource that is answered anything but 200 would never come back."""
    server = serve("--grace", "5")

    async def use() -> None:
        async with contextlib.AsyncExitStack() as stack:
            health, poll, events = [await stack.enter_async_context(connected(server.address)) for _ in range(3)]
            for stream in (health, poll, events):
                status, headers = await stream.get("/healthz")
                assert (status, (await stream.body(headers))["status"]) == (200, "ok")
            stalled = await stall(EventSource, server)  # as long as it is there the server is, too
            terminate(server)
            await refused(server)
            status, headers = await health.get("/healthz")
            assert (status, (await health.body(headers))["status"]) == (503, "draining")
            status, headers = await poll.get("/poll?channel=news")
            assert (status, int(headers["retry-after"]) > 0) == (503, True)
            assert "stop" in (await poll.body(headers))["error"]
            status, headers = await events.get("/events?channel=news", Accept="text/event-stream")
            assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
            said = (await events.end()).decode()
            assert 5000 <= int(re.findall(r"^retry: (\d+)$", said, re.MULTILINE)[0]) <= 15000
            await stalled.close()

    run(use())


def test_without_any_grace_the_goodbye_is_said_all_the_same(serve: Serve) -> None:
    server = serve("--grace", "0")

    async def use() -> None:
        reader = EventSource()
        reading = asyncio.create_task(reader.read(server))
        await until_opened(server, 1)
        begin = terminate(server)
        await reading
        status, seconds = await until_ended(server, begin)
        assert (status, len(reader.said), seconds < LATE) == (0, 1, True)

    run(use())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(serve: Serve, number: signal.Signals) -> None:
    server = serve("--grace", "60")

    async def use() -> None:
        stalled = await stall(EventSource, server)
        server.process.send_signal(number)
        await eventually(lambda: "to leave" in server.output())
        begin = time.monotonic()
        server.process.send_signal(number)
        _, seconds = await until_ended(server, begin)
        assert seconds < LATE
        await stalled.close()

    run(use())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_second_signal_ends_it_at_once_wherever_it_is() -> None:
    """Where its output is not taken, it stands at what it says of the first one."""
    reading, writing = os.pipe()
    command = [sys.executable, "-um", "waterspout", "serve", "--port", "0", "--grace", "60"]
    server = subprocess.Popen(command, stdout=writing, stderr=subprocess.DEVNULL)
    with open(reading) as output, server:
        try:
            port = int(output.readline().partition("127.0.0.1:")[2].split()[0])
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(HEAD[EventSource])
                peer.recv(1)
                os.write(writing, bytes(fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)))
                server.send_signal(signal.SIGINT)
                limit = time.monotonic() + DEADLINE
                while catches(server.pid, signal.SIGTERM):
                    assert time.monotonic() < limit
                    time.sleep(0.01)
                begin = time.monotonic()
                server.send_signal(signal.SIGINT)
                assert server.wait(DEADLINE) == -signal.SIGINT
                assert time.monotonic() - begin < LATE
        finally:
            os.close(writing)
            server.kill()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether that process has a handler for this signal (proc(5): SigCgt)."""
    found = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return bool(int(found[1], 16) >> (number - 1) & 1)


def test_with_nobody_there_it_ends_without_waiting(serve: Serve) -> None:
    server = serve("--grace", "60")
    begin = terminate(server)
    assert server.process.wait(DEADLINE) == 0
    assert time.monotonic() - begin < LATE


def test_f55_a_broker_that_hangs_does_not_hold_up_the_end(serve: Serve, fresh_redis_server: Any) -> None:
    server = serve("--redis", fresh_redis_server.url, "--grace", "1")

    async def use() -> None:
        reader = EventSource()
        reading = asyncio.create_task(reader.read(server))
        await until_opened(server, 1)
        fresh_redis_server.suspend()
        async with connected(server.address) as waiting, connected(server.address) as publishing:
            waiting.writer.write(b"GET /events?channel=other HTTP/1.1\r\nHost: localhost\r\n\r\n")
            publishing.writer.write(
                b"POST /channels/news HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
            )
            await counted(server)  # it has read these two, too
            begin = terminate(server)
            await reading
            status, seconds = await until_ended(server, begin)
            assert (status, len(reader.said), seconds < 1 + LATE) == (0, 1, True)
        fresh_redis_server.resume()

    run(use())
