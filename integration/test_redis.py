"""Many processes on one real Redis; every test runs on every server found."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.error import URLError

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from integration.clients import DEADLINE, EventStream, publish, request
from integration.conftest import Serve, ServerProcess


class WebSocket:
    """A reader of a WebSocket for tests that block; like an `EventStream`, it knows the last id that it was given."""

    def __init__(self, url: str, *, last_event_id: str | None = None) -> None:
        self._runner = asyncio.Runner()
        resumed = f"&last_event_id={last_event_id}" if last_event_id else ""
        self._connection: WebSocketClientConnection = self._wait(websocket_connect, f"ws{url[4:]}{resumed}")
        assert self._connection.headers is not None
        self.last_id: str | None = last_event_id or self._connection.headers["Last-Event-ID"]

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()
        while self._wait(self._connection.read_message) is not None:
            pass
        self._runner.close()

    def next(self) -> dict[str, Any] | None:
        text = self._wait(self._connection.read_message)
        if text is None:
            return None
        message: dict[str, Any] = json.loads(text)
        self.last_id = message["id"]
        return message

    def data(self, count: int) -> list[Any]:
        messages = [self.next() for _ in range(count)]
        return [message["data"] if message else "the stream has ended" for message in messages]

    def _wait(self, begin: Callable[..., Any], *args: Any) -> Any:
        async def wait() -> Any:
            async with asyncio.timeout(DEADLINE):
                return await begin(*args)

        return self._runner.run(wait())


def subscribe(door: str, server: ServerProcess, query: str, last_id: str | None = None) -> EventStream | WebSocket:
    """A reader at one of the doors."""
    if door == "ws":
        return WebSocket(f"{server.url}/ws?{query}", last_event_id=last_id)
    return EventStream(f"{server.url}/events?{query}", last_event_id=last_id)


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until `condition()` holds."""
    limit = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < limit, f"{what} did not happen"
        time.sleep(0.01)


def is_connected(server: ServerProcess) -> bool:
    """Whether the link to the broker is up, as the server sees it."""
    return bool(request(f"{server.url}/healthz")[1]["broker"]["state"] == "connected")


DOORS = pytest.mark.parametrize("door", ["events", "ws"])


@pytest.mark.parametrize("payload", [b'{"home": 1}', b"0", b'""', b"null", '"grüße"'.encode()])
def test_what_is_published_on_one_process_is_received_on_the_other(
    serve: Serve, redis_server: Any, payload: bytes
) -> None:
    here, there = serve("--redis", redis_server.url), serve("--redis", redis_server.url)
    with EventStream(f"{there.url}/events?channel=news&format=json") as events:
        status, answer = request(
            f"{here.url}/channels/news?event=goal", payload, Content_Type="application/json; charset=utf-8"
        )
        assert (status, bool(answer["id"])) == (200, True)
        message = json.loads(events.data(1)[0])
        assert (message["event"], message["data"]) == ("goal", json.loads(payload))


def test_a_foreign_program_publishes_with_plain_redis(serve: Serve, redis_server: Any) -> None:
    server = serve("--redis", redis_server.url)
    with EventStream(f"{server.url}/events?channel=news") as events:
        assert redis_server.call("PUBLISH", "news", "grüße\nfrom outside") == 1
        assert redis_server.call("PUBLISH", "news", '\x1e{"event":"goal","data":{"n":1}}') == 1
        assert events.data(1) == ["grüße\nfrom outside"]
        goal = events.next()
        assert goal is not None
        assert (goal["event"], goal["data"]) == ("goal", '{"n":1}')


def test_a_burst_of_more_than_a_channel_keeps_reaches_who_keeps_up(serve: Serve, redis_server: Any) -> None:
    server = serve("--redis", redis_server.url)
    with EventStream(f"{server.url}/events?channel=news") as events:
        redis_server.call("EVAL", "for i = 1, 3000 do redis.call('PUBLISH', 'news', i) end", 0)
        assert events.data(3000) == [str(number) for number in range(1, 3001)]


def test_a_cut_subscriber_resumes_at_its_own_process(serve: Serve, redis_server: Any) -> None:
    here, there = serve("--redis", redis_server.url), serve("--redis", redis_server.url)
    with EventStream(f"{here.url}/events?channel=news") as events:
        publish(there.url, "news", "first")
        assert events.data(1) == ["first"]
    for number in range(50):
        publish(there.url, "news", str(number))
    with EventStream(f"{here.url}/events?channel=news", last_event_id=events.last_id) as events:
        assert events.data(50) == [str(number) for number in range(50)]


def test_a_published_message_has_the_id_under_which_this_process_keeps_it(serve: Serve, redis_server: Any) -> None:
    server = serve("--redis", redis_server.url)
    ids = [publish(server.url, "news", "same") for _ in range(3)]
    with EventStream(f"{server.url}/events?channel=news&last_event_id={ids[0]}") as events:
        assert [(events.next() or {})["id"] for _ in range(2)] == ids[1:]


# Resuming anywhere


@DOORS
def test_a_cursor_of_one_node_resumes_on_any_other(serve: Serve, redis_server: Any, door: str) -> None:
    """Cut again and again, with messages on their way and while it is away, on two channels: none lost, none twice."""
    nodes = [serve("--redis", redis_server.url) for _ in range(2)]
    sent: list[str] = []
    got: list[str] = []
    last_id: str | None = None

    def send(count: int) -> None:
        for _ in range(count):
            text = f"{'ab'[len(sent) % 2]}{len(sent)}"
            publish(nodes[len(sent) // 2 % 2].url, text[0], text)
            sent.append(text)

    for turn in range(8):
        with subscribe(door, nodes[turn % 2], "channel=a&channel=b", last_id) as reader:
            send(4)
            got += reader.data(len(sent) - 2 - len(got))  # two more are on their way, or not, when it is cut
            last_id = reader.last_id
        send(4)
    with subscribe(door, nodes[0], "channel=a&channel=b", last_id) as reader:
        got += reader.data(len(sent) - len(got))
        send(1)
        got += reader.data(1)
    for channel in "ab":
        assert [text for text in got if text[0] == channel] == [text for text in sent if text[0] == channel]


@DOORS
def test_a_node_that_has_just_come_has_all_that_redis_keeps(serve: Serve, redis_server: Any, door: str) -> None:
    here = serve("--redis", redis_server.url)
    ids = [publish(here.url, "news", str(number)) for number in range(10)]
    here.kill()
    there = serve("--redis", redis_server.url)
    with subscribe(door, there, "channel=news", ids[4]) as reader:
        assert reader.data(5) == ["5", "6", "7", "8", "9"]
    with subscribe(door, there, "channel=news", "earliest") as reader:
        assert reader.data(10) == [str(number) for number in range(10)]


@DOORS
def test_a_cursor_resumes_on_the_other_node_after_redis_was_restarted_with_its_data(
    serve: Serve, fresh_redis_server: Any, door: str
) -> None:
    here, there = (serve("--redis", fresh_redis_server.url) for _ in range(2))
    with subscribe(door, here, "channel=news") as reader:
        publish(there.url, "news", "seen")
        assert reader.data(1) == ["seen"]
    for number in range(5):
        publish(there.url, "news", str(number))
    fresh_redis_server.call("SAVE")
    fresh_redis_server.stop()
    until(lambda: not is_connected(there), "noticing that Redis is away")
    fresh_redis_server.start()
    with subscribe(door, there, "channel=news", reader.last_id) as reader:
        assert reader.data(5) == ["0", "1", "2", "3", "4"]
        until(lambda: is_connected(here), "coming back")
        publish(here.url, "news", "5")
        assert reader.data(1) == ["5"]


def test_who_stays_through_a_restart_of_redis_with_its_data_notices_nothing(
    serve: Serve, fresh_redis_server: Any
) -> None:
    """Not even what was published before this node was back (F11, F31)."""
    server = serve("--redis", fresh_redis_server.url)
    with EventStream(f"{server.url}/events?channel=news") as events:
        publish(server.url, "news", "before")
        assert events.data(1) == ["before"]
        fresh_redis_server.call("SAVE")
        fresh_redis_server.stop()
        until(lambda: not is_connected(server), "noticing that Redis is away")
        fresh_redis_server.start()
        meanwhile = fresh_redis_server.call("FCALL", "waterspout_publish", 1, "news", "meanwhile").decode()
        until(lambda: is_connected(server), "coming back")
        after = publish(server.url, "news", "after")
        assert events.next() == {"data": "meanwhile", "id": meanwhile}
        assert events.next() == {"data": "after", "id": after}


@DOORS
def test_who_reads_at_a_node_that_is_killed_goes_on_at_another(serve: Serve, redis_server: Any, door: str) -> None:
    """Each of the two publishes all the time; what a node has answered for is delivered once and in order, whatever
    became of the node."""
    dies, stays = (serve("--redis", redis_server.url) for _ in range(2))
    answered: dict[str, list[str]] = {"dies": [], "stays": []}
    enough = threading.Event()

    def keep_publishing(name: str, server: ServerProcess) -> None:
        number = 0
        while not enough.is_set():
            try:
                publish(server.url, "news", f"{name} {number}")
            except (OSError, URLError, http.client.HTTPException):
                return  # it has died; this one may have been published or not
            answered[name].append(f"{name} {number}")
            number += 1

    with subscribe(door, dies, "channel=news") as reader:
        threads = [threading.Thread(target=keep_publishing, args=each) for each in (("dies", dies), ("stays", stays))]
        for thread in threads:
            thread.start()
        got = reader.data(50)
        dies.kill()
        last_id = reader.last_id
    with subscribe(door, stays, "channel=news", last_id) as reader:
        got += reader.data(50)
        enough.set()
        for thread in threads:
            thread.join()
        publish(stays.url, "news", "end")
        while got[-1] != "end":
            got += reader.data(1)
    for name, expected in answered.items():
        of_it = [text for text in got if text.startswith(name)]
        assert of_it[: len(expected)] == expected
        # What it was killed over may have been published.
        assert len(of_it) - len(expected) in ((0, 1) if name == "dies" else (0,))


def test_a_channel_tells_the_same_at_each_node(serve: Serve, redis_server: Any) -> None:
    here, there = (serve("--redis", redis_server.url) for _ in range(2))
    ids = [publish(node.url, "news", text) for node, text in ((here, "a"), (there, "b"), (here, "c"))]
    for node in (here, there, serve("--redis", redis_server.url)):
        _, answer = request(f"{node.url}/channels/news?limit=2")
        assert answer == {
            "channel": "news",
            "id": ids[2],
            "subscribers": 0,
            "messages": 3,
            "history": [{"data": "b", "id": ids[1]}, {"data": "c", "id": ids[2]}],
        }


def test_no_more_is_kept_than_history_says(serve: Serve, redis_server: Any) -> None:
    """F61."""
    server = serve("--redis", redis_server.url, "--history", "3")
    ids = [publish(server.url, "news", str(number)) for number in range(10)]
    other = serve("--redis", redis_server.url, "--history", "3")
    for node in (server, other):
        _, answer = request(f"{node.url}/channels/news?limit=100")
        assert [message["data"] for message in answer["history"]] == ["7", "8", "9"]
        with EventStream(f"{node.url}/events?channel=news&last_event_id=earliest") as events:
            assert events.data(3) == ["7", "8", "9"]
    with EventStream(f"{other.url}/events?channel=news", last_event_id=ids[3]) as events:
        gap = events.next()
        assert gap is not None
        assert (gap["event"], gap["data"]) == ("gap", '{"missed":3}')
        assert events.data(3) == ["7", "8", "9"]


def test_what_is_older_than_the_retention_is_kept_no_longer_in_redis(serve: Serve, redis_server: Any) -> None:
    """F61: also in a channel that stays busy, and the last of it too."""
    here, there = (serve("--redis", redis_server.url, "--retention", "0.5") for _ in range(2))
    first = publish(here.url, "news", "first")

    def kept() -> list[str]:
        return [message["id"] for message in request(f"{there.url}/channels/news?limit=1000")[1]["history"]]

    assert kept() == [first]
    until(lambda: publish(here.url, "news", "another") and first not in kept(), "the end of the first message")
    until(lambda: not kept(), "the end of the last one")
    until(lambda: not redis_server.call("EXISTS", "waterspout:log:{news}"), "its end in Redis")
    with EventStream(f"{there.url}/events?channel=news", last_event_id=first) as events:
        assert (events.next() or {})["event"] == "gap"


def test_a_channel_cannot_be_told_about_while_redis_is_away(serve: Serve, free_port: int) -> None:
    server = serve("--redis", f"redis://127.0.0.1:{free_port}")
    status, answer = request(f"{server.url}/channels/news?limit=1")
    assert status == 503
    assert answer["error"]
    assert not is_connected(server)
    assert request(f"{server.url}/healthz")[0] == 200


# What stands in Redis


def test_the_id_of_a_message_is_the_one_that_redis_has_given_it(serve: Serve, redis_server: Any) -> None:
    nodes = [serve("--redis", redis_server.url) for _ in range(2)]
    ids = [publish(nodes[number % 2].url, "news", str(number)) for number in range(4)]
    epoch, offset = redis_server.call("GET", "waterspout:meta:{news}").decode().split()[:2]
    assert ids == [f"{epoch}-{number}" for number in range(1, 5)]
    assert offset == "4"


class PlainListener:
    """What comes on a Redis channel, as any program sees it."""

    def __init__(self, server: Any, channel: str) -> None:
        self._connection = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE)
        self._stream = self._connection.makefile("rb")
        self._connection.sendall(f"SUBSCRIBE {channel}\r\n".encode())
        self._reply()

    def __enter__(self) -> PlainListener:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.close()
        self._connection.close()

    def next(self) -> bytes:
        """The payload of the next message."""
        return self._reply()[-1]

    def _reply(self) -> list[bytes]:
        parts = []
        for _ in range(int(self._stream.readline()[1:])):
            head = self._stream.readline()
            parts.append(self._stream.read(int(head[1:]) + 2)[:-2] if head.startswith(b"$") else head[1:-2])
        return parts


def test_a_message_with_history_is_published_with_its_position_before_it(serve: Serve, redis_server: Any) -> None:
    server = serve("--redis", redis_server.url)
    with PlainListener(redis_server, "news") as listener:
        id = publish(server.url, "news", "grüße")
        assert listener.next() == f"\x1e{id}\ngrüße".encode()


def test_with_history_0_the_payload_is_the_plain_message_and_nothing_is_kept_in_redis(
    serve: Serve, redis_server: Any
) -> None:
    here, there = (serve("--redis", redis_server.url, "--history", "0") for _ in range(2))
    with PlainListener(redis_server, "news") as listener, EventStream(f"{there.url}/events?channel=news") as events:
        publish(here.url, "news", "grüße")
        assert listener.next() == "grüße".encode()
        assert events.data(1) == ["grüße"]
    assert redis_server.call("KEYS", "*") == []
    # What a process has heard itself it keeps for those who come back to it.
    publish(here.url, "news", "while it was away")
    with EventStream(f"{there.url}/events?channel=news", last_event_id=events.last_id) as events:
        assert events.data(1) == ["while it was away"]
    with EventStream(f"{here.url}/events?channel=news", last_event_id=events.last_id) as events:
        assert (events.next() or {})["event"] == "gap"


def test_a_foreign_program_publishes_with_history_by_fcall(serve: Serve, redis_server: Any) -> None:
    here, there = (serve("--redis", redis_server.url) for _ in range(2))
    with EventStream(f"{here.url}/events?channel=news") as events:
        id = redis_server.call("FCALL", "waterspout_publish", 1, "news", "Hello").decode()
        assert events.next() == {"data": "Hello", "id": id}
        redis_server.call("FCALL", "waterspout_publish", 1, "news", '{"n":1}', "JSON", "EVENT", "goal")
        goal = events.next() or {}
        assert (goal["event"], goal["data"]) == ("goal", '{"n":1}')
    with EventStream(f"{there.url}/events?channel=news", last_event_id=id) as events:
        assert events.next() == goal


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="needs redis-cli")
def test_redis_cli_publishes_with_history(serve: Serve, redis_server: Any) -> None:
    server = serve("--redis", redis_server.url)
    with EventStream(f"{server.url}/events?channel=news") as events:
        words = ["redis-cli", "-p", str(redis_server.port), "FCALL", "waterspout_publish", "1", "news", "Hello"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
        assert events.next() == {"data": "Hello", "id": said.strip()}


# Redis in trouble


def test_a_restart_of_redis_is_told_as_a_gap_and_all_goes_on(serve: Serve, fresh_redis_server: Any) -> None:
    server = serve("--redis", fresh_redis_server.url)
    with EventStream(f"{server.url}/events?channel=news") as events:
        publish(server.url, "news", "before")
        assert events.data(1) == ["before"]
        fresh_redis_server.stop()
        status, answer = request(f"{server.url}/channels/news", b"nobody takes this")
        assert (status, answer["published"]) == (503, 0)
        assert answer["error"]
        fresh_redis_server.start()
        gap = events.next()
        assert gap is not None
        assert gap["event"] == "gap"
        publish(server.url, "news", "after")
        assert events.data(1) == ["after"]


def test_a_redis_that_is_not_there_yet_is_waited_for(serve: Serve, fresh_redis_server: Any) -> None:
    fresh_redis_server.stop()
    server = serve("--redis", fresh_redis_server.url, "--demo")
    server.wait_for_output(r"WARNING waterspout\.redis: .*" + str(fresh_redis_server.port))
    assert request(f"{server.url}/healthz")[0] == 200
    fresh_redis_server.start()
    with EventStream(f"{server.url}/events?channel=demo.load") as events:
        event = events.next()
        if event and event.get("event") == "gap":
            event = events.next()
        assert event is not None
        assert json.loads(event["data"])["cpu_percent"] >= 0
    assert server.stop() == 0


def test_a_server_whose_redis_is_away_stops_cleanly(serve: Serve, free_port: int) -> None:
    server = serve("--redis", f"redis://127.0.0.1:{free_port}")
    server.wait_for_output("WARNING")
    assert server.stop() == 0


def test_publish_goes_straight_to_redis(serve: Serve, redis_server: Any, command: Any) -> None:
    server = serve("--redis", redis_server.url)
    with EventStream(f"{server.url}/events?channel=news") as events:
        assert command("publish", "news", "hello", "--redis", redis_server.url).wait() == 0
        assert events.data(1) == ["hello"]


def test_what_is_published_straight_to_redis_is_in_the_history(serve: Serve, redis_server: Any, command: Any) -> None:
    """Under the numbers that the server says: what it keeps is not trimmed by who publishes."""
    server = serve("--redis", redis_server.url, "--history", "2000")
    lines = "".join(f"{number}\n" for number in range(1500))
    words = ["publish", "news", "--redis", redis_server.url, "--history", "2000"]
    result = run(*words, text=lines)
    assert (result.returncode, result.stderr) == (0, "waterspout: sent 1500 messages to news\n")
    run(*words, "and one more")
    _, answer = request(f"{server.url}/channels/news?limit=2000")
    assert [message["data"] for message in answer["history"]] == [*map(str, range(1500)), "and one more"]


def test_a_line_too_large_for_the_history_is_left_out_and_the_others_arrive(serve: Serve, redis_server: Any) -> None:
    server = serve("--redis", redis_server.url)
    lines = ["small", "z" * 2_000_000, "end"]
    result = run("publish", "news", "--redis", redis_server.url, text="\n".join(lines))
    assert result.returncode == 2
    assert "left out: 'zzz" in result.stderr
    assert "sent 2 messages to news, left out 1" in result.stderr
    _, answer = request(f"{server.url}/channels/news?limit=10")
    assert [message["data"] for message in answer["history"]] == ["small", "end"]


def run(*args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """A `waterspout` subcommand, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "waterspout", *args], input=text, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_password_is_never_printed(serve: Serve, free_port: int) -> None:
    server = serve("--redis", f"redis://user:geheim@127.0.0.1:{free_port}")
    server.wait_for_output("WARNING")
    assert "geheim" not in server.output()
