"""The application and the command, as far as they go without a process of their own (see integration/)."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from tornado.httpclient import AsyncHTTPClient

import waterspout
from waterspout import BaseStore, Channels
from waterspout._demo import publish_figures
from waterspout.cli import main
from waterspout.cli._serve import _why_not
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
        "serve": ["HOST", "PORT", "ALLOW_HOST", "REDIS", "HISTORY", "RETENTION", "DEMO", "LOOP", "LOG_LEVEL"],
        "publish": ["URL", "REDIS", "HISTORY", "RETENTION", "RETRY_FOR"],
        "tail": ["URL"],
    }.items():
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
