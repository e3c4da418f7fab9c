"""The application and the command, as far as they go without a process of their own (see integration/)."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
import trustme
from click.testing import CliRunner
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

import waterspout
import waterspout_channels
import waterspout_core
import waterspout_handlers
from waterspout import BaseStore, Channels, Connections
from waterspout._demo import publish_figures
from waterspout.cli import main
from waterspout.cli._serve import _check_origin, _warn_of_few_descriptors, _why_not
from waterspout.cli._tail import _tail, show
from waterspout.server import AWAY_TIMEOUT, CONSOLE, ChannelHandler, Server, host_name, make_app
from waterspout_redis.testing import RunningServer, eventually


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    for name in ("WATERSPOUT_URL", "WATERSPOUT_REDIS", "WATERSPOUT_PORT"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner()


def test_every_name_that_is_promised_is_there() -> None:
    for name in waterspout.__all__:
        assert getattr(waterspout, name)


def test_all_that_may_have_to_be_caught_is_there() -> None:
    raised = {
        name
        for package in (waterspout_core, waterspout_handlers, waterspout_channels)
        for name in package.__all__
        if isinstance(found := getattr(package, name), type) and issubclass(found, Exception)
    }
    assert {"BrokerError", "TooManyConnections"} <= raised
    assert raised <= set(waterspout.__all__)


def certified() -> ssl.SSLContext:
    """The context of a server for this machine."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("tls", [False, True])
def test_who_connects_and_says_nothing_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    monkeypatch.setattr("waterspout.server.IDLE_TIMEOUT", 0.2)

    async def use() -> None:
        server = Server(Channels(), ssl_options=certified() if tls else None)
        port = int(server.start("127.0.0.1", 0).rpartition(":")[2])
        for said in (b"", b"\x16\x03" if tls else b"GET / HTTP/1.1\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()
        await server.aclose(0.1)

    asyncio.run(use())


def test_a_server_with_tls_has_urls_that_say_so_and_a_certificate_that_can_be_renewed() -> None:
    before, after = certified(), certified()

    async def shown(url: str) -> bytes:
        port = int(url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ssl._create_unverified_context())
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return certificate

    async def use() -> None:
        server = Server(Channels(), ssl_options=before)
        urls = [server.start("127.0.0.1", 0), server.start_lines("127.0.0.1", 0)]
        assert [url.partition(":")[0] for url in urls] == ["https", "tls"]
        first = {await shown(url) for url in urls}
        assert {await shown(url) for url in urls} == first
        server.renew(after)
        urls.append(server.start_lines("127.0.0.1", 0))
        second = {await shown(url) for url in urls}
        assert (len(first), len(second), first & second) == (1, 1, set())
        await server.aclose(0.1)

    asyncio.run(use())


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


def test_while_the_broker_is_away_nobody_waits_long(fresh_redis_server: RunningServer) -> None:
    """A channel that is new here would wait until it is confirmed."""

    async def use() -> None:
        server = Server(Channels(fresh_redis_server.url))
        url, client = server.start("127.0.0.1", 0), AsyncHTTPClient()
        await server.channels.open("known").ready()
        fresh_redis_server.kill()
        await eventually(lambda: server.channels.pubsub.health.state == "disconnected")
        for path, body in (("/channels/new", "x"), ("/channels/other", None), ("/channels/a?limit=5", None)):
            begin = time.monotonic()
            method = "GET" if body is None else "POST"
            answer = await client.fetch(url + path, method=method, body=body, raise_error=False)
            assert answer.code == 503
            assert time.monotonic() - begin < AWAY_TIMEOUT + 1
            assert json.loads(answer.body).get("published") == (0 if body else None)
        fresh_redis_server.start()
        await eventually(lambda: server.channels.pubsub.health.state == "connected")
        assert (await client.fetch(url + "/channels/new", method="POST", body="x")).code == 200
        await server.aclose()

    asyncio.run(use())


def test_asking_about_a_channel_does_not_make_it() -> None:
    async def use() -> list[str]:
        server = Server(Channels())
        url, client = server.start("127.0.0.1", 0), AsyncHTTPClient()
        for path in ("/channels/asked", "/channels/searched?limit=5"):
            assert json.loads((await client.fetch(url + path)).body)["messages"] == 0
        await client.fetch(url + "/channels/published", method="POST", body="x")
        server.channels.open("read").register(Woken())
        answer = json.loads((await client.fetch(url + "/channels")).body)
        await server.aclose()
        return [row["channel"] for row in answer["channels"]]

    assert asyncio.run(use()) == ["published", "read"]


class OwnChannels(ChannelHandler):
    """Everyone may read what begins with `public`, and publish nowhere."""

    def may_subscribe(self, channel: str) -> bool:
        return channel.startswith("public")

    def may_publish(self, channel: str) -> bool:
        return False


def test_who_may_not_read_a_channel_is_not_told_what_it_keeps(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        channels = Channels(fresh_redis_server.url, namespace="app:")
        app = Application([("/channels/(.+)", OwnChannels, {"source": channels})], requests=set())
        sockets = bind_sockets(0, "127.0.0.1")
        http = HTTPServer(app)
        http.add_sockets(sockets)
        url, client = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/channels", AsyncHTTPClient()
        for path in ("/secret", "/secret?limit=5", "/app:secret?limit=5"):
            assert (await client.fetch(url + path, raise_error=False)).code == 403
        assert (await client.fetch(f"{url}/public?limit=5")).code == 200
        fresh_redis_server.kill()
        await eventually(lambda: channels.pubsub.health.state == "disconnected")
        assert (await client.fetch(f"{url}/secret", method="POST", body="x", raise_error=False)).code == 403
        assert [store.channel for store in channels.stores] == ["public"]  # nobody's question makes a channel
        http.stop()
        await http.close_all_connections()
        await channels.aclose()

    asyncio.run(use())


def test_an_answer_is_a_whole_line() -> None:
    """The prompt of a shell comes behind it."""

    async def use() -> None:
        server = Server(Channels())
        url, client = server.start("127.0.0.1", 0), AsyncHTTPClient()
        await server.channels.open("é").submit("ž")
        for path in ("/channels", "/channels/%C3%A9?limit=1", "/healthz"):
            answer = await client.fetch(url + path)
            assert answer.headers["Content-Type"].startswith("application/json")
            assert answer.body.count(b"\n") == answer.body.endswith(b"\n") == 1
            assert ("é" in answer.body.decode()) == (path != "/healthz")
        await server.aclose()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("Push.Example.com", "push.example.com"),
        ("my_host-1", "my_host-1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]"),
        ("2001:DB8:0::1", "[2001:db8::1]"),
    ],
)
def test_a_host_is_what_requests_name(host: str, named: str) -> None:
    assert host_name(host) == named


@pytest.mark.parametrize(
    "host", ["", "http://a", "a:80", "a/b", "[::1]", "[::1]:80", "*.example.com", "ex\N{KELVIN SIGN}"]
)
def test_anything_else_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match="a host is a name"):
        make_app(Channels(), hosts=["localhost", host])


def test_hosts_are_a_list() -> None:
    with pytest.raises(TypeError, match=r"not the str 'www\.example\.com'"):
        make_app(Channels(), hosts="www.example.com")


def test_an_empty_token_is_none() -> None:
    with pytest.raises(ValueError, match="empty"):
        Server(Channels()).start_lines("127.0.0.1", 0, token="")


class Mistake(RequestHandler):
    """A handler that fails."""

    def get(self) -> None:
        self.send_error(500)


def test_the_access_log_is_short_and_alarms_for_our_mistakes_only(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        app = make_app(Channels(), hosts=["127.0.0.1"], connections=Connections(max_connections=1))
        app.add_handlers("elsewhere", [("/mistake", Mistake)])
        server, [listener] = HTTPServer(app), bind_sockets(0, "127.0.0.1")
        server.add_socket(listener)
        port = listener.getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /events?channel=a HTTP/1.0\r\n\r\n")
        await reader.readline()
        for path, headers in (
            ("/nowhere?" + 1000 * "x", {}),
            ("/poll?channel=a", {}),
            ("/events?channel=a", {"Accept": "text/event-stream"}),
            ("/mistake", {"Host": "elsewhere"}),
        ):
            await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}{path}", headers=headers, raise_error=False)
        writer.close()
        server.stop()
        await server.close_all_connections()

    with caplog.at_level("INFO", "waterspout.access"):
        asyncio.run(use())
    lines = [(record.levelname, record.message.partition(" (")[0]) for record in caplog.records]
    assert lines == [
        ("INFO", "404 GET /nowhere?" + 191 * "x" + "…"),
        ("WARNING", "503 GET /poll?channel=a"),
        ("WARNING", "503 GET /events?channel=a"),  # which a browser is answered with 200
        ("ERROR", "500 GET /mistake"),
    ]


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


@pytest.mark.parametrize(
    ("limit", "most", "asked", "warned"),
    [
        (1024, 100_000, False, True),
        (20_000, 100_000, False, False),
        (20_000, 30_000, True, True),
        (20_000, 20_000, True, True),  # some are needed for other things
        (1024, 500, True, False),
        (1024, 500, False, False),
        (math.inf, 100_000, True, False),
    ],
)
def test_too_few_descriptors_are_told_where_that_is_news(
    caplog: pytest.LogCaptureFixture, limit: float, most: int, asked: bool, warned: bool
) -> None:
    _warn_of_few_descriptors(limit, most, asked=asked)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warned
    assert all(word in caplog.text for word in ("ulimit -n", "LimitNOFILE", str(limit), str(most)) if warned)


@pytest.mark.parametrize(
    ("missed", "said"),
    [(None, "lost some messages of news"), (1, "lost 1 message of news"), (2, "lost 2 messages of news")],
)
def test_tail_tells_how_much_is_lost(capsys: pytest.CaptureFixture[str], missed: int | None, said: str) -> None:
    show({"channel": "news", "event": "gap", "data": {"missed": missed}, "id": "0123456789-1"}, False, several=False)
    assert said + "," in capsys.readouterr().err


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
        printed = said = ""
        async with asyncio.timeout(10):
            while "at last" not in printed:
                await asyncio.sleep(0.01)
                new = capsys.readouterr()
                printed, said = printed + new.out, said + new.err
        assert f"http://127.0.0.1:{port} answered 503: Service Unavailable; trying again" in said
        assert "no answer" not in said
        tailing.cancel()
        server.stop()
        await server.close_all_connections()

    asyncio.run(use())
    first, second, third = came
    assert 1.0 <= second - first < 2
    assert 0.7 <= third - second < 2
