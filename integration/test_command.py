"""`waterspout publish` and `waterspout tail`, as processes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from integration.clients import DEADLINE, EventStream, Proxy, publish, request, web_socket
from integration.conftest import Command, Serve, ServerProcess
from waterspout.cli._targets import Away, ServerTarget
from waterspout_core import BrokerError, ChannelStore, History, MemoryPubSub, Message, Position
from waterspout_handlers import PublishHandler
from waterspout_redis.testing import FaultProxy, Faults, eventually

LINES: Final = 10_000

StartCommand = Callable[..., Command]


@pytest.fixture
def server(serve: Serve) -> ServerProcess:
    return serve()


@pytest.fixture
def access_log(tmp_path: Path) -> Path:
    """A log of 10,000 lines, as a web server writes it: with what real ones hold, quotes and umlauts included."""
    path = tmp_path / "access.log"
    with path.open("w") as log:
        for number in range(LINES):
            query = "ü" * (number % 7) + "x" * (number % 211)
            log.write(
                f'192.0.2.{number % 256} - - [21/Nov/2026:10:00:00 +0000] "GET /{number}?q={query}" 200 {number}\n'
            )
    return path


def run(*args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "waterspout", *args], input=text, capture_output=True, text=True, timeout=60, check=False
    )


def test_one_message_is_published_and_counted(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=news") as events:
        result = run("publish", "news", "hello", "--url", server.url, "--event", "greeting")
        assert (result.returncode, result.stderr) == (0, "waterspout: sent 1 message to news\n")
        event = events.next()
    assert event is not None
    assert (event["event"], event["data"]) == ("greeting", "hello")


def test_json_is_published_as_json(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=news&format=json") as events:
        assert run("publish", "news", "--json", "--url", server.url, text='{"a": 1}\n7\n').returncode == 0
        assert [json.loads(data)["data"] for data in events.data(2)] == [{"a": 1}, 7]


def test_a_line_that_is_not_json_is_left_out_and_named_and_the_others_arrive(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=a") as events:
        result = run("publish", "a", "--json", "--url", server.url, text='1\n\nnonsense\n"three"\n')
        assert events.data(2) == ["1", "three"]
    assert result.returncode == 2
    assert "line 3 is not JSON" in result.stderr
    assert "sent 2 messages to a, left out 1" in result.stderr


def test_a_log_of_ten_thousand_lines_arrives_complete_and_in_order(
    server: ServerProcess, access_log: Path, command: StartCommand
) -> None:
    lines = access_log.read_text().splitlines()

    async def websocket_lines(publishing: Command, events: EventStream) -> list[str]:
        async with web_socket(f"{server.url.replace('http', 'ws')}/ws?channel=logs") as connection:
            publishing.process.send_signal(signal.SIGCONT)
            reading = asyncio.to_thread(events.data, LINES)
            async with asyncio.timeout(60):
                got = [json.loads(await connection.read_message() or "null")["data"] for _ in range(LINES)]
                assert await reading == lines
        return got

    with EventStream(f"{server.url}/events?channel=logs") as events, access_log.open() as log:
        publishing = command("publish", "logs", "--url", server.url, stdin=log)
        publishing.process.send_signal(signal.SIGSTOP)  # until both have subscribed
        assert asyncio.run(websocket_lines(publishing, events)) == lines
    assert publishing.wait() == 0
    assert f"sent {LINES} messages to logs" in publishing.err


def test_lines_are_published_as_they_come_and_not_at_the_end(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=logs") as events:
        writing = subprocess.Popen(
            [sys.executable, "-m", "waterspout", "publish", "logs", "--url", server.url],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert writing.stdin is not None
        for line in ("first", "second"):
            writing.stdin.write(line + "\n\n")
            writing.stdin.flush()
            assert events.data(1) == [line]
        _, said = writing.communicate(timeout=DEADLINE)
    assert said == "waterspout: sent 2 messages to logs\n"


def test_lines_are_kept_while_the_server_is_away(
    server: ServerProcess, command: StartCommand, access_log: Path
) -> None:
    server.stop()
    with access_log.open() as log:
        publishing = command("publish", "logs", "--url", server.url, stdin=log)
        publishing.until(lambda: "trying again" in publishing.err, "noticing that the server is away")
        server.start()
        assert publishing.wait() == 0
    assert f"sent {LINES} messages to logs" in publishing.err
    # A log keeps the last 1,000: every one of them is there, in order.
    with EventStream(f"{server.url}/events?channel=logs&last_event_id=0123456789-0") as events:
        assert (events.next() or {})["event"] == "gap"
        assert events.data(1000) == access_log.read_text().splitlines()[-1000:]


def test_what_is_sent_again_since_the_answer_was_lost_does_not_arrive_twice(
    server: ServerProcess, command: StartCommand, access_log: Path
) -> None:
    """E11."""

    async def publish_through_a_break() -> str:
        async with FaultProxy(server.address) as proxy:
            proxy.to_client.faults = Faults(cut_at=b"HTTP/1.1 200")
            with access_log.open() as log:
                publishing = command("publish", "logs", "--url", f"http://127.0.0.1:{proxy.port}", stdin=log)
            await eventually(lambda: "trying again" in publishing.err)
            proxy.heal()
            assert await asyncio.to_thread(publishing.wait) == 0
            return publishing.err

    with EventStream(f"{server.url}/events?channel=logs") as events:
        said = asyncio.run(publish_through_a_break())
        assert events.data(LINES) == access_log.read_text().splitlines()
        publish(server.url, "logs", "the end")
        assert events.data(1) == ["the end"]
    assert f"sent {LINES} messages to logs" in said


def test_a_server_without_a_history_is_published_to_without_keys(serve: Serve) -> None:
    server = serve("--history", "0")
    with EventStream(f"{server.url}/events?channel=logs") as events:
        assert run("publish", "logs", "--url", server.url, text="a\nb\n").returncode == 0
        assert events.data(2) == ["a", "b"]


def test_the_rest_of_a_batch_is_sent_again_with_the_keys_that_it_had() -> None:
    class Hiccup(MemoryPubSub):
        """Takes all, and once says that it has not."""

        fails = True

        def submit(self, topic: str, message: Message, *, key: str | None = None) -> asyncio.Future[Position | None]:
            taken = super().submit(topic, message, key=key)
            if message.data != 3 or not self.fails:
                return taken
            self.fails = False
            failed: asyncio.Future[Position | None] = asyncio.get_running_loop().create_future()
            failed.set_exception(BrokerError("no answer"))
            return failed

    async def main() -> None:
        store = ChannelStore("a", Hiccup(history=History()))
        application = Application([("/channels/a", PublishHandler, {"store": store})])
        [listener] = bind_sockets(0, "127.0.0.1")
        server = HTTPServer(application)
        server.add_socket(listener)
        target = ServerTarget(f"http://127.0.0.1:{listener.getsockname()[1]}", "a", None)
        with pytest.raises(Away, match="no answer") as away:
            await target.send([1, 2, 3, 4, 5])
        assert away.value.sent == 2
        await target.send([3, 4, 5])
        await target.send([1, 2])
        assert [message.data for _, message in await store.history(10)] == [1, 2, 3, 4, 5, 1, 2]
        await target.aclose()
        server.stop()
        await server.close_all_connections()
        await store.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["interrupted", "given up", "refused", "closed"])
def test_publish_ends_quietly_while_its_input_is_still_open(
    server: ServerProcess, free_port: int, command: StartCommand, how: str
) -> None:
    url = {"given up": f"http://127.0.0.1:{free_port}", "refused": f"{server.url}/nowhere"}.get(how, server.url)
    publishing = command("publish", "a", "--url", url, "--retry-for", "0.2", stdin=subprocess.PIPE)
    pipe = publishing.process.stdin
    assert pipe is not None
    with EventStream(f"{server.url}/events?channel=a") as events:
        pipe.write(b"a line\n")
        pipe.flush()
        if how in ("interrupted", "closed"):
            assert events.data(1) == ["a line"]
        if how == "interrupted":
            publishing.process.send_signal(signal.SIGINT)
        if how == "closed":
            pipe.close()
        assert publishing.wait() == {"interrupted": 130, "given up": 1, "refused": 2, "closed": 0}[how]
    pipe.close()
    assert "Fatal" not in publishing.err


def test_a_closed_input_is_told(server: ServerProcess) -> None:
    closed = f'"{sys.executable}" -m waterspout publish a --url {server.url} <&-'
    result = subprocess.run(closed, shell=True, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert result.returncode == 2
    assert "standard input is closed" in result.stderr


def test_input_without_any_line_is_refused_before_it_fills_the_memory(server: ServerProcess) -> None:
    endless = f'"{sys.executable}" -m waterspout publish a --url {server.url} < /dev/zero'
    result = subprocess.run(endless, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "without a line break" in result.stderr


def test_what_is_given_with_the_command_beats_a_variable(
    server: ServerProcess, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATERSPOUT_REDIS", f"redis://127.0.0.1:{free_port}")
    with EventStream(f"{server.url}/events?channel=a") as events:
        assert run("publish", "a", "x", "--url", server.url, "--retry-for", "0").returncode == 0
        assert events.data(1) == ["x"]
    assert run("publish", "a", "x", "--retry-for", "0").returncode == 1
    both = run("publish", "a", "x", "--url", server.url, "--redis", "redis://localhost")
    assert both.returncode == 2
    assert "name one" in both.stderr


def test_a_server_that_stays_away_is_given_up_with_a_clear_line(free_port: int) -> None:
    result = run("publish", "a", "b", "--url", f"http://127.0.0.1:{free_port}", "--retry-for", "0.3")
    assert result.returncode == 1
    assert "given up after 0.3 s" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("publish", "two words", "x"), "white space"),
        (("publish", "a", ""), "empty"),
        (("publish", "a", "x", "--event", "gap"), "reserved"),
        (("publish", "a", "{", "--json"), "not JSON"),
        (("publish", "a", "x", "--url", "localhost"), "--url"),
        (("publish", "a", "x", "--url", "http://"), "--url"),
        (("publish", "a", "x", "--url", "http://localhost:99999"), "--url"),
        (("tail", "a", "--url", "http://localhost:port"), "--url"),
        (("publish", "a", "x", "--redis", "http://localhost"), "redis://"),
        (("tail", "two words"), "white space"),
        (("tail", "a", "--last-event-id", "nonsense"), "nonsense"),
        (("tail",), "CHANNEL"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(args: tuple[str, ...], said: str) -> None:
    result = run(*args)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_line_too_large_is_left_out_with_the_servers_words_and_the_others_arrive(server: ServerProcess) -> None:
    lines = ["small", "x" * 600_000, "y" * 600_000, "z" * 2_000_000, "end"]
    with EventStream(f"{server.url}/events?channel=a") as events:
        result = run("publish", "a", "--url", server.url, text="\n".join(lines))
        assert events.data(4) == [*lines[:3], "end"]
    assert result.returncode == 2
    assert "1048576 bytes; left out: 'zzz" in result.stderr
    assert "sent 4 messages to a, left out 1" in result.stderr


def subscribed(server: ServerProcess, channel: str, tailing: Command) -> None:
    """Wait until `tailing` is known to the server, and publish something that it prints."""
    tailing.until(lambda: publish(server.url, channel, "are you there?") and tailing.out, "the first message")


def test_tail_prints_messages_as_they_come(server: ServerProcess, command: StartCommand) -> None:
    tailing = command("tail", "news", "--url", server.url)
    subscribed(server, "news", tailing)
    publish(server.url, "news", "grüße")
    tailing.until(lambda: tailing.out.endswith("grüße\n"), "printing the message")
    tailing.process.send_signal(signal.SIGINT)
    assert tailing.wait() == 130
    assert not tailing.err


def test_tail_prints_whole_objects_of_several_channels(server: ServerProcess, command: StartCommand) -> None:
    tailing = command("tail", "a", "b", "--json", "--url", server.url)
    subscribed(server, "a", tailing)
    id = publish(server.url, "b", "text", event="goal")
    tailing.until(lambda: '"goal"' in tailing.out, "printing the message")
    message = json.loads(tailing.out.splitlines()[-1])
    assert id in message.pop("id")
    assert message == {"channel": "b", "event": "goal", "data": "text"}


def test_tail_resumes_after_a_cut_and_loses_and_repeats_nothing(server: ServerProcess, command: StartCommand) -> None:
    with Proxy(server.address) as proxy:
        tailing = command("tail", "news", "other", "--url", proxy.url)
        subscribed(server, "news", tailing)
        for number in range(200):
            publish(server.url, "news", str(number))
            if number % 40 == 20:
                proxy.cut()
        tailing.until(lambda: tailing.out.endswith("\nnews: 199\n"), "the last message")
    printed = [line.removeprefix("news: ") for line in tailing.out.splitlines() if line[-1].isdecimal()]
    assert printed == [str(number) for number in range(200)]
    assert "lost" not in tailing.err


def test_tail_misses_nothing_when_it_is_cut_off_before_the_first_message(
    server: ServerProcess, command: StartCommand
) -> None:
    with Proxy(server.address) as proxy:
        tailing = command("tail", "news", "--url", proxy.url)
        tailing.until(lambda: request(f"{server.url}/channels")[1]["channels"], "subscribing")
        tailing.until(lambda: request(f"{server.url}/channels")[1]["channels"][0]["subscribers"] == 1, "subscribing")
        tailing.process.send_signal(signal.SIGSTOP)
        proxy.cut()
        publish(server.url, "news", "while it was away")
        tailing.process.send_signal(signal.SIGCONT)
        tailing.until(lambda: tailing.out == "while it was away\n", "resuming")


def test_tail_survives_a_restart_of_the_server_and_tells_of_the_gap(
    server: ServerProcess, command: StartCommand
) -> None:
    tailing = command("tail", "news", "--url", server.url)
    subscribed(server, "news", tailing)
    server.stop()
    tailing.until(lambda: "trying again" in tailing.err, "noticing the break")
    server.start()
    for number in range(10):
        publish(server.url, "news", str(number))
    tailing.until(lambda: tailing.out.endswith("\n9\n"), "the last message")
    assert [line for line in tailing.out.splitlines() if line.isdecimal()] == [str(number) for number in range(10)]
    assert "lost some messages of news" in tailing.err


def test_tail_loses_nothing_when_its_server_is_replaced_by_a_new_one(
    serve: Serve, command: StartCommand, redis_server: Any
) -> None:
    """E8: it is told to come back (1012), and goes on where it was."""
    server, other = (serve("--redis", redis_server.url) for _ in range(2))
    tailing = command("tail", "news", "--url", server.url)
    subscribed(server, "news", tailing)
    for number in range(5):
        publish(other.url, "news", str(number))
    server.stop()
    for number in range(5, 10):
        publish(other.url, "news", str(number))
    server.start()
    tailing.until(lambda: tailing.out.endswith("\n9\n"), "the last message")
    assert [line for line in tailing.out.splitlines() if line.isdecimal()] == [str(number) for number in range(10)]
    assert "lost" not in tailing.err


def test_tail_says_what_a_server_answers_that_has_no_room(serve: Serve, command: StartCommand) -> None:
    server = serve("--max-connections", "1")
    with EventStream(f"{server.url}/events?channel=a"):
        tailing = command("tail", "news", "--url", server.url)
        tailing.until(lambda: f"{server.url} answered 503: there are 1 connections" in tailing.err, "the refusal")
        assert "no answer" not in tailing.err


def test_tail_goes_on_behind_an_id(server: ServerProcess, command: StartCommand) -> None:
    ids = [publish(server.url, "news", text) for text in ("a", "b", "c")]
    tailing = command("tail", "news", "--url", server.url, "--last-event-id", ids[0])
    tailing.until(lambda: tailing.out == "b\nc\n", "printing what came behind")


def test_tail_begins_with_all_that_is_kept_where_it_is_told_to(server: ServerProcess, command: StartCommand) -> None:
    for text in ("a", "b", "c"):
        publish(server.url, "news", text)
    with Proxy(server.address) as proxy:
        tailing = command("tail", "news", "--url", proxy.url, "--last-event-id", "earliest")
        tailing.until(lambda: tailing.out == "a\nb\nc\n", "printing what is kept")
        proxy.cut()
        publish(server.url, "news", "d")
        tailing.until(lambda: tailing.out == "a\nb\nc\nd\n", "going on, and not from the earliest again")


def test_tail_ends_quietly_when_nobody_reads_it_any_more(server: ServerProcess) -> None:
    tailing = subprocess.Popen(
        f'"{sys.executable}" -m waterspout tail news --url {server.url} --last-event-id 0123456789-0 | head -n 1',
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1000):
        publish(server.url, "news", "line")
        if tailing.poll() is not None:
            break
    out, err = tailing.communicate(timeout=DEADLINE)
    assert out == "line\n"
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
