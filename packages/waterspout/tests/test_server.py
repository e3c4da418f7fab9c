"""The application and the command, as far as they go without a process of their own (see integration/)."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler

import waterspout
from waterspout import BaseStore, Channels, Connections
from waterspout._demo import publish_figures
from waterspout.cli import main
from waterspout.cli._serve import _check_origin, _why_not
from waterspout.cli._tail import _tail
from waterspout.server import CONSOLE, Server


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    for name in ("WATERSPOUT_URL", "WATERSPOUT_REDIS", "WATERSPOUT_PORT"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner()


def test_every_name_that_is_promised_is_there() -> None:
    for name in waterspout.__all__:
        assert getattr(waterspout, name)


def test_the_console_page_is_served_with_all_its_parts_and_nothing_from_elsewhere() -> None:
    async def use() -> None:
        server = Server(Channels())
        url = server.start("127.0.0.1", 0)
        client = AsyncHTTPClient()
        page = await client.fetch(url + "/")
        assert page.headers["Content-Type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        for part in CONSOLE.iterdir():
            if part.name != "index.html":
                assert (await client.fetch(f"{url}/{part.name}")).body == part.read_bytes()
        for elsewhere in (
            "/../server.py",
            "/%2e%2e/server.py",
            "/..%2fserver.py",
            "/console.py",
            "//etc/passwd.js",
            "/%00.js",
        ):
            answer = await client.fetch(url + elsewhere, raise_error=False)
            assert (answer.code, "error" in json.loads(answer.body)) == (404, True)
        await server.aclose()

    asyncio.run(use())


def test_an_ipv6_address_is_listened_on_and_named_as_a_url() -> None:
    async def use() -> None:
        server = Server(Channels())
        url = server.start("::1", 0)
        assert url.startswith("http://[::1]:")
        assert json.loads((await AsyncHTTPClient().fetch(url + "/healthz")).body)["status"] == "ok"
        await server.aclose()

    asyncio.run(use())


def test_a_closed_server_leaves_no_task_behind() -> None:
    async def use() -> None:
        server = Server(Channels())
        server.start("127.0.0.1", 0)
        await server.channels.open("a").submit("x")
        await server.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(use())


def test_a_channel_shows_what_it_keeps_whatever_was_published() -> None:
    """F39, and bytes as everywhere: their text, or a data: URL."""
    payloads = ["", 0, False, None, [], {"a": ["ž", 1.5]}, b"text", b"\xff"]

    async def use() -> None:
        server = Server(Channels())
        url = server.start("127.0.0.1", 0)
        store = server.channels.open("a")
        positions = [await store.submit(payload) for payload in payloads]
        answer = json.loads((await AsyncHTTPClient().fetch(f"{url}/channels/a?limit=100")).body)
        shown = [*payloads[:-2], "text", "data:application/octet-stream;base64,/w=="]
        assert answer["history"] == [
            {"data": data, "id": str(position)} for data, position in zip(shown, positions, strict=True)
        ]
        assert [type(message["data"]) for message in answer["history"]] == list(map(type, shown))
        await server.aclose()

    asyncio.run(use())


def test_a_channel_whose_broker_does_not_answer_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waterspout.server.READ_TIMEOUT", 0.01)

    async def use() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            server = Server(Channels(f"redis://127.0.0.1:{silent.getsockname()[1]}"))
            url = server.start("127.0.0.1", 0)
            answer = await AsyncHTTPClient().fetch(url + "/channels/a", raise_error=False)
            assert (answer.code, "0.01 s" in json.loads(answer.body)["error"]) == (503, True)
            health = json.loads((await AsyncHTTPClient().fetch(url + "/healthz")).body)
            assert (health["status"], health["broker"]["state"]) == ("ok", "connecting")
            await server.aclose()

    asyncio.run(use())


class Woken:
    """A subscriber that waits for the first message."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()

    def wake(self, store: BaseStore) -> None:
        self.woken.set()


def test_the_demo_publishes_figures_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waterspout._demo.PERIOD", 0.01)

    async def use() -> None:
        async with Channels() as channels:
            task = asyncio.create_task(publish_figures(channels))
            figures = {}
            for name in ("demo.load", "demo.memory", "demo.network"):
                store, reader = channels.open(name), Woken()
                store.register(reader)
                async with asyncio.timeout(5):
                    await reader.woken.wait()
                figures[name] = store.log.read(0)[1][0].data
            task.cancel()
        assert figures["demo.load"]["load_1min"] >= 0
        assert 0 < figures["demo.memory"]["used_percent"] < 100
        assert figures["demo.network"]["sent_bytes_per_second"] >= 0

    asyncio.run(use())


def test_help_names_the_variable_of_every_option(runner: CliRunner) -> None:
    for command, options in {
        "serve": ["HOST", "PORT", "ALLOW_HOST", "ALLOW_ORIGIN", "TCP_PORT", "TCP_TOKEN", "REDIS", "HISTORY",
                  "RETENTION", "MAX_CONNECTIONS", "MAX_PER_ADDRESS", "MAX_AGE", "HEARTBEAT", "WHEN_BEHIND", "GRACE",
                  "DEMO", "LOOP", "LOG_LEVEL"],
        "publish": ["URL", "REDIS", "HISTORY", "RETENTION", "RETRY_FOR"],
        "tail": ["URL"],
    }.items():  # fmt: skip
        result = runner.invoke(main, [command, "--help"])
        assert result.exit_code == 0
        for option in options:
            assert f"WATERSPOUT_{option}" in result.output.replace("\n", "").replace(" ", "")


def test_the_version_is_told(runner: CliRunner) -> None:
    assert waterspout.__version__ in runner.invoke(main, ["--version"]).output


def test_uvloop_is_asked_for_by_name_only_where_it_is(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    result = runner.invoke(main, ["serve", "--loop", "uvloop", "--port", "0"])
    assert result.exit_code == 2
    assert "pip install uvloop" in result.output


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EADDRINUSE, ""), "port 80 on ::1 is taken"),
        (OSError(errno.EACCES, ""), "may not listen on port 80"),
        (OSError(errno.EADDRNOTAVAIL, ""), "no address of this machine"),
        (socket.gaierror(-2, ""), "no address of this machine"),
        (OSError(errno.EMFILE, ""), "cannot listen on ::1 port 80"),
    ],
)
def test_why_it_cannot_listen_is_told_in_words(error: OSError, said: str) -> None:
    assert said in _why_not(error, "::1", 80)


def test_why_it_cannot_listen_names_the_option_that_mends_it() -> None:
    assert "--tcp-port" in _why_not(OSError(errno.EADDRINUSE, ""), "::1", 80, "--tcp-port")


@pytest.mark.parametrize("origin", ["*", "https://www.example.com", "http://localhost:3000", "http://[::1]:80"])
def test_what_a_browser_sends_as_an_origin_may_be_allowed(origin: str) -> None:
    _check_origin(origin)


@pytest.mark.parametrize("origin", ["", "null", "www.example.com", "https://", "https://a/", "https://a?b", "a b://c"])
def test_anything_else_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match="--allow-origin"):
        _check_origin(origin)


def test_the_doors_share_the_connections_that_they_are_given() -> None:
    async def use() -> None:
        server = Server(Channels(), connections=Connections(max_connections=1))
        url = server.start("127.0.0.1", 0)
        host, _, port = server.start_lines("127.0.0.1", 0).removeprefix("tcp://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"SUBSCRIBE a\r\n")
        assert (await reader.readline()).startswith(b"CONFIRMED a ")
        answer = await AsyncHTTPClient().fetch(url + "/poll?channel=a", raise_error=False)
        assert (answer.code, int(answer.headers["Retry-After"]) > 0) == (503, True)
        counts = json.loads((await AsyncHTTPClient().fetch(url + "/healthz")).body)["connections"]
        assert (counts["open"], counts["refused"]) == (1, 1)
        await server.aclose()
        assert (await reader.readline()).startswith(b"GOAWAY ")
        assert await reader.read() == b""
        writer.close()

    asyncio.run(use())


class Restless(WebSocketHandler):
    """Refuses the first one, sends the second one away, and has a message for the third."""

    def initialize(self, came: list[float]) -> None:
        self.came = came

    def prepare(self) -> None:
        self.came.append(time.monotonic())
        if len(self.came) == 1:
            self.set_header("Retry-After", "1")
            self.set_status(503)
            self.finish()

    async def open(self) -> None:
        if len(self.came) == 2:
            self.close(1012, "the server is about to stop: come back")
        else:
            await self.write_message({"channel": "a", "data": "at last", "id": "0123456789-1"})


def test_tail_comes_back_when_it_was_told_to_and_not_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F54: after a restart thousands of them come back, not all at once."""
    monkeypatch.setattr("waterspout.cli._tail.RETURN", (0.7, 0.9))
    came: list[float] = []

    async def use() -> None:
        server = HTTPServer(Application([(r"/ws", Restless, {"came": came})]))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        port = sockets[0].getsockname()[1]
        tailing = asyncio.create_task(_tail(f"http://127.0.0.1:{port}", ("a",), False, None))
        printed = ""
        async with asyncio.timeout(10):
            while "at last" not in printed:
                await asyncio.sleep(0.01)
                printed += capsys.readouterr().out
        tailing.cancel()
        server.stop()
        await server.close_all_connections()

    asyncio.run(use())
    first, second, third = came
    assert 1.0 <= second - first < 2
    assert 0.7 <= third - second < 2
