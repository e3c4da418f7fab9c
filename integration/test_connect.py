"""`waterspout connect`, and the line server where it is used: the article's console, `nc`, and Redis behind it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.netutil import bind_sockets

from integration.clients import DEADLINE, publish
from integration.conftest import Command, Serve, ServerProcess
from waterspout_core import RedisStore
from waterspout_handlers import LineClient, LineServer
from waterspout_redis.testing import eventually, run

CERTIFICATE: Final = Path(__file__).parent.parent / "packages" / "handlers" / "tests" / "localhost.pem"

StartCommand = Callable[..., Command]


class Console:
    """`waterspout connect`, with somebody who types."""

    def __init__(self, command: StartCommand, *args: str) -> None:
        self.command = command("connect", *args, stdin=subprocess.PIPE)

    def type(self, text: str) -> None:
        assert self.command.process.stdin is not None
        self.command.process.stdin.write(text.encode())
        self.command.process.stdin.flush()

    def close(self) -> None:
        """Ctrl-D."""
        assert self.command.process.stdin is not None
        self.command.process.stdin.close()

    def sees(self, text: str) -> None:
        """Wait until exactly `text` has been printed."""
        self.command.until(lambda: self.command.out == text, f"printing {text!r}")

    def reads(self, text: str) -> None:
        """Wait until `text` is told beside the output."""
        self.command.until(lambda: text in self.command.err, f"saying {text!r}")


@pytest.fixture
def server(serve: Serve) -> ServerProcess:
    return serve("--tcp-port", "0")


@pytest.fixture
def address(server: ServerProcess) -> str:
    return f"127.0.0.1:{line_port(server)}"


@pytest.fixture
def console(command: StartCommand, address: str) -> Any:
    talking = Console(command, address)
    yield talking
    talking.close()


def line_port(server: ServerProcess) -> int:
    return int(server.wait_for_output(r"tcp://\S+:(\d+)")[1])


# The console


def test_c12_the_console_of_the_article_reads_and_writes_at_once(server: ServerProcess, console: Console) -> None:
    console.type("SUBSCRIBE\nSUBSCRIBE\n")
    console.sees("CONFIRMED\nALREADY SUBSCRIBED\n")
    publish(server.url, "updates", "while nothing is typed")
    console.sees("CONFIRMED\nALREADY SUBSCRIBED\nwhile nothing is typed\n")
    console.type("PUBL")
    publish(server.url, "updates", "grüße")
    console.sees("CONFIRMED\nALREADY SUBSCRIBED\nwhile nothing is typed\ngrüße\n")
    console.type("ISH\nEXIT\n")
    assert console.command.wait() == 0
    assert console.command.out.endswith("BYE\n")


@pytest.mark.parametrize("word", ["EXIT", "QUIT"])
def test_c12_exit_disconnects_though_the_input_goes_on(console: Console, word: str) -> None:
    console.type(f"PING\n{word}\nPING never said\n")
    assert console.command.wait() == 0
    assert console.command.out == "PONG\nBYE\n"


def test_c12_the_end_of_the_input_disconnects_when_all_is_answered(console: Console) -> None:
    console.type("PING 1\r\nHELLO\nPING 2")
    console.close()
    assert console.command.wait() == 0
    assert console.command.out == "PONG 1\nUNKNOWN COMMAND\nPONG 2\nBYE\n"


def test_c12_the_loss_of_the_server_ends_it_with_a_word(server: ServerProcess, console: Console) -> None:
    console.type("PING\n")
    console.sees("PONG\n")
    server.kill()
    assert console.command.wait() == 1
    assert "the server has closed the connection" in console.command.err


def test_a_server_that_stops_says_goaway(server: ServerProcess, console: Console) -> None:
    console.type("PING\n")
    console.sees("PONG\n")
    server.stop()
    assert console.command.wait() == 1
    assert "\nGOAWAY " in console.command.out


def test_the_address_may_be_as_the_server_prints_it(command: StartCommand, address: str) -> None:
    console = Console(command, f"tcp://{address}")
    console.type("PING\nEXIT\n")
    assert console.command.wait() == 0
    assert console.command.out == "PONG\nBYE\n"
    console.close()


def test_ctrl_c_ends_it(console: Console) -> None:
    console.type("PING\n")
    console.sees("PONG\n")
    console.command.process.send_signal(signal.SIGINT)
    assert console.command.wait() == 130


def test_it_ends_quietly_when_nobody_reads_it_any_more(server: ServerProcess, address: str) -> None:
    lines = "".join(f"PING {number}\n" for number in range(100_000))
    ended = subprocess.run(
        f'"{sys.executable}" -m waterspout connect {address} | head -n 1',
        shell=True,
        input=lines,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.stdout == "PONG 0\n"
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr


def test_nobody_there_is_told(free_port: int, command: StartCommand) -> None:
    talking = command("connect", f"127.0.0.1:{free_port}")
    assert talking.wait() == 1
    assert f"cannot connect to 127.0.0.1:{free_port}" in talking.err


def test_what_could_not_be_said_to_the_end_is_told_though_the_input_has_ended(command: StartCommand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        console = Console(command, f"127.0.0.1:{listener.getsockname()[1]}")
        console.type("PUBLISH news x\n")
        console.close()
        connection, _ = listener.accept()
        with connection:
            heard = b""
            while not heard.endswith(b"QUIT\r\n"):
                heard += connection.recv(100)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert console.command.wait() == 1
    assert "the server has closed the connection: " in console.command.err


@pytest.mark.parametrize("address", ["", "a b", "host:port", "host:99999", "host:0", "me@host", "host/path", "[::1"])
def test_an_address_that_is_none_is_told(address: str, command: StartCommand) -> None:
    talking = command("connect", address)
    assert talking.wait() == 2
    assert "an address is HOST, HOST:PORT or tls://HOST:PORT" in talking.err


SERVING: Final = """
import asyncio, ssl, sys
from tornado.netutil import bind_sockets
from waterspout_core import QueueStore
from waterspout_handlers import LineServer

async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[1])
    server = LineServer(QueueStore(), ssl_options=context)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_connects_by_tls_and_trusts_nobody_it_should_not(
    command: StartCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = [sys.executable, "-c", SERVING, str(CERTIFICATE)]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = f"localhost:{process.stdout.readline().strip()}"
            distrusting = command("connect", address, "--tls")
            assert distrusting.wait() == 1
            assert "certificate verify failed" in distrusting.err
            monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
            console = Console(command, address, "--tls")
            console.type("SUBSCRIBE\nPING\nEXIT\n")
            assert console.command.wait() == 0
            assert console.command.out == "CONFIRMED\nPONG\nBYE\n"
            console.close()
        finally:
            process.kill()


# Others at the same port


def talk(address: str, said: bytes) -> bytes:
    """All that is answered to `said`."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_what_is_piped_into_a_socket_is_published_and_answered(address: str, console: Console) -> None:
    """As `nc -N` does: it closes its direction when all is said, and reads on."""
    console.type("SUBSCRIBE news\n")
    console.command.until(lambda: console.command.out.startswith("CONFIRMED news "), "subscribing")
    said = talk(address, b"PUBLISH news by hand\nPING\n")
    assert said.startswith(b"CONFIRMED news ")
    assert said.endswith(b"\r\nPONG\r\n")
    console.command.until(lambda: '"data":"by hand"' in console.command.out, "printing the message")


def test_a_page_cannot_make_a_browser_publish(address: str) -> None:
    """It can make it send to any port, and need not see the answer."""
    answer = talk(address, b"POST / HTTP/1.1\r\nHost: x\r\n\r\nPUBLISH updates forged\r\n")
    assert answer.startswith(b"ERROR ")
    assert b"CONFIRMED" not in answer


# Redis behind it


@contextlib.asynccontextmanager
async def serving(store: RedisStore) -> AsyncIterator[tuple[LineServer, int]]:
    async with store:
        server = LineServer(store, default_channel="updates", allow_publish=True)
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        try:
            yield server, sockets[0].getsockname()[1]
        finally:
            await server.drain(grace=5.0)


def test_c3_c4_what_any_program_publishes_in_redis_goes_to_all_clients(redis_server: Any) -> None:
    async def main() -> None:
        async with serving(RedisStore("updates", redis_server.url, history=0)) as (_, port):
            consoles = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for reader, writer in consoles:
                writer.write(b"SUBSCRIBE\r\n")
                assert await reader.readline() == b"CONFIRMED\r\n"
            for text in ("grüße", "", "two\r\nlines"):
                redis_server.call("PUBLISH", "updates", text)
            for reader, writer in consoles:
                assert await reader.readline() == "grüße\r\n".encode()
                assert await reader.readline() == rb"two\r\nlines" + b"\r\n"
                writer.close()

    run(main())


def test_c6_when_the_connection_to_redis_breaks_it_is_made_again_and_nothing_is_lost(fresh_redis_server: Any) -> None:
    async def main() -> None:
        url = fresh_redis_server.url
        async with (
            serving(RedisStore("updates", url)) as (server, port),
            RedisStore("updates", url) as publisher,
            LineClient("127.0.0.1", port) as client,
        ):
            messages = client.subscribe("updates")

            async def read() -> list[Any]:
                return [await anext(messages) for _ in range(30)]

            reading = asyncio.ensure_future(read())
            await eventually(lambda: server.store and server.store.subscribers)
            for number in range(30):
                if number % 10 == 5:
                    fresh_redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
                await publisher.submit(str(number))
            assert [message.data for message in await reading] == [str(number) for number in range(30)]

    run(main())


def test_c2_c8_a_second_server_on_the_same_redis_takes_over_without_a_loss(redis_server: Any) -> None:
    async def main() -> None:
        async with serving(RedisStore("handover", redis_server.url)) as (first, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"SUBSCRIBE handover\r\nPUBLISH handover 1\r\n")
            position = (await reader.readline()).split()[-1].decode()
            await reader.readline()
            await reader.readline()
            draining = asyncio.ensure_future(first.drain(grace=5.0))
            assert (await reader.readline()).startswith(b"GOAWAY")
            assert await reader.read() == b""
            writer.close()
            await draining
            assert len(first.connections) == 0
        async with (
            serving(RedisStore("handover", redis_server.url)) as (_, port),
            LineClient("127.0.0.1", port) as client,
            client.subscribe("handover", after=position) as messages,
        ):
            await client.publish("handover", "2")
            assert [(await anext(messages)).data for _ in range(2)] == ["1", "2"]

    run(main())
