"""The push server on its in-process broker, as its users meet it."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from integration.clients import DEADLINE, EventStream, publish, request, web_socket
from integration.conftest import Serve, ServerProcess


@pytest.fixture
def server(serve: Serve) -> ServerProcess:
    return serve()


def test_a_published_message_arrives_with_its_event_id_and_data(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=news") as events:
        assert events.response.status == 200
        assert events.response.getheader("Content-Type", "").startswith("text/event-stream")
        id = publish(server.url, "news", "two\nlines", event="goal")
        assert events.next() == {"event": "goal", "data": "two\nlines", "id": id}


def test_several_channels_come_on_one_stream(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=a&channel=b&format=json") as events:
        for channel in "abc":
            publish(server.url, channel, channel.upper())
        publish(server.url, "a", "end")
        got = [json.loads(data) for data in events.data(3)]
    assert [(message["channel"], message["data"]) for message in got] == [("a", "A"), ("b", "B"), ("a", "end")]


def test_a_websocket_gets_one_json_object_a_message(server: ServerProcess) -> None:
    async def use() -> list[Any]:
        async with web_socket(f"{server.url.replace('http', 'ws')}/ws?channel=a&channel=b") as connection:
            await asyncio.to_thread(publish, server.url, "a", "text")
            await asyncio.to_thread(
                request, f"{server.url}/channels/b?event=goal", b'{"home": [1]}', Content_Type="application/json"
            )
            async with asyncio.timeout(DEADLINE):
                return [json.loads(await connection.read_message() or "null") for _ in range(2)]

    first, second = asyncio.run(use())
    assert first == {"channel": "a", "data": "text", "id": first["id"]}
    assert second == {"channel": "b", "event": "goal", "data": {"home": [1]}, "id": second["id"]}


async def ask(connection: WebSocketClientConnection, **message: Any) -> Any:
    """Send a message, and read the one that comes then."""
    await connection.write_message(json.dumps(message))
    async with asyncio.timeout(DEADLINE):
        return json.loads(await connection.read_message() or "null")


def test_a_websocket_subscribes_and_publishes_by_messages(server: ServerProcess) -> None:
    async def use() -> None:
        async with web_socket(f"{server.url.replace('http', 'ws')}/ws") as connection:
            assert (await ask(connection, subscribe="news", ref=1))["subscribed"] == "news"
            id = await asyncio.to_thread(publish, server.url, "news", "posted")
            async with asyncio.timeout(DEADLINE):
                assert json.loads(await connection.read_message() or "null")["id"] == id
            answers = [await ask(connection, publish="news", data={"home": 1})]
            async with asyncio.timeout(DEADLINE):
                answers.append(json.loads(await connection.read_message() or "null"))
            assert sorted(answer.get("published", "") for answer in answers) == ["", "news"]
            assert [answer["data"] for answer in answers if "data" in answer] == [{"home": 1}]
            assert "error" in await ask(connection, subscribe="two words")

    asyncio.run(use())


def test_newline_delimited_json_is_streamed_to_who_accepts_it(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=news&format=ndjson") as stream:
        assert stream.response.getheader("Content-Type", "").startswith("application/x-ndjson")
        id = publish(server.url, "news", "text", event="goal")
        lines = iter(stream.response.readline, b"")
        message = json.loads(next(line for line in lines if line.strip()))
        assert message == {"channel": "news", "event": "goal", "data": "text", "id": id}


def test_a_long_poll_is_answered_with_what_came_since_and_at_its_end_with_nothing(server: ServerProcess) -> None:
    id, *others = (publish(server.url, "news", text) for text in ("a", "b", "c"))
    status, answer = request(f"{server.url}/poll?channel=news&last_event_id={id}")
    assert status == 200
    assert [(message["data"], message["id"]) for message in answer["messages"]] == list(
        zip(("b", "c"), others, strict=True)
    )
    assert request(f"{server.url}/poll?channel=news&timeout=1")[1] == {"messages": []}


@pytest.mark.parametrize("way", ["header", "query"])
def test_a_cut_subscriber_resumes_and_nothing_is_lost_or_repeated(server: ServerProcess, way: str) -> None:
    url = f"{server.url}/events?channel=a&channel=b"
    got: list[str] = []
    last_id: str | None = None
    sent = [f"{channel}{number}" for number in range(30) for channel in "ab"]
    waiting = iter(sent)
    for _ in range(10):
        resumed = f"{url}&last_event_id={last_id}" if last_id and way == "query" else url
        with EventStream(resumed, last_event_id=last_id if way == "header" else None) as events:
            for text in (next(waiting), next(waiting)):
                publish(server.url, text[0], text)
            # Two more than are read: they are on their way, or not, when the connection is cut.
            missing = len(sent[: sent.index(text) + 1]) - len(got)
            got += events.data(missing)
            for text in (next(waiting), next(waiting)):
                publish(server.url, text[0], text)
            last_id = events.last_id
        for text in (next(waiting), next(waiting)):
            publish(server.url, text[0], text)
    with EventStream(url, last_event_id=last_id) as events:
        got += events.data(len(sent) - len(got))
    for channel in "ab":
        assert [text for text in got if text[0] == channel] == [text for text in sent if text[0] == channel]


def test_who_is_cut_off_before_the_first_message_misses_none(server: ServerProcess) -> None:
    url = f"{server.url}/events?channel=a&channel=b"
    with EventStream(url) as events:
        head = b"".join(iter(events.response.readline, b"\n")).decode()
    last_id = head.partition("id: ")[2].strip()
    publish(server.url, "a", "while it was away")
    with EventStream(url, last_event_id=last_id) as events:
        assert events.data(1) == ["while it was away"]


def test_a_position_the_server_does_not_know_is_one_gap_and_then_goes_on(server: ServerProcess) -> None:
    publish(server.url, "a", "kept")
    with EventStream(f"{server.url}/events?channel=a", last_event_id="0123456789-7") as events:
        gap = events.next()
        assert gap is not None
        assert (gap["event"], json.loads(gap["data"])) == ("gap", {"missed": None})
        assert events.data(1) == ["kept"]


def test_a_restarted_server_tells_a_gap_and_loses_nothing_of_its_new_life(server: ServerProcess) -> None:
    with EventStream(f"{server.url}/events?channel=a") as events:
        publish(server.url, "a", "before")
        assert events.data(1) == ["before"]
    assert server.stop() == 0
    server.start()
    publish(server.url, "a", "after")
    with EventStream(f"{server.url}/events?channel=a", last_event_id=events.last_id) as events:
        assert (events.next() or {}).get("event") == "gap"
        assert events.data(1) == ["after"]


BAD_REQUESTS = [
    ("/events", None, 400, "channel"),
    ("/events?channel=", None, 400, "name"),
    ("/events?channel=two%20words", None, 400, "white space"),
    ("/events?channel=" + "x" * 300, None, 400, "255 bytes"),
    ("/events?channel=a&last_event_id=nonsense", None, 400, "last_event_id"),
    ("/events?channel=a&format=xml", None, 400, "format"),
    ("/ws", None, 426, "WebSocket"),
    ("/poll", None, 400, "channel"),
    ("/poll?channel=a&timeout=soon", None, 400, "timeout"),
    ("/channels/a", b"", 400, "empty"),
    ("/channels/a", b"\xff", 400, "UTF-8"),
    ("/channels/two%20words", b"x", 400, "white space"),
    ("/channels/a?event=gap", b"x", 400, "reserved"),
    ("/channels/a", b"x" * (1024 * 1024 + 1), 413, "1048576 bytes"),
    ("/channels/a?limit=-1", None, 400, "whole number"),
    ("/channels/a?limit=" + "9" * 5000, None, 400, "whole number"),
    ("/channels/a?limit=all", None, 400, "whole number"),
    ("/channels/a?limit=%C2%B2", None, 400, "whole number"),
    ("/channels/two%20words?limit=1", None, 400, "white space"),
    ("/nowhere", None, 404, "/nowhere"),
    ("/events", b"x", 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("path", "body", "status", "said"), BAD_REQUESTS)
def test_a_bad_request_is_told_what_was_wrong(
    server: ServerProcess, path: str, body: bytes | None, status: int, said: str
) -> None:
    answered, answer = request(server.url + path, body, Content_Type="text/plain")
    assert answered == status
    assert said in answer["error"]


@pytest.mark.parametrize("body", [b"{", b"NaN", b'"\\ud800"', b"[" * 100_000])
def test_bad_json_is_refused(server: ServerProcess, body: bytes) -> None:
    status, answer = request(f"{server.url}/channels/a", body, Content_Type="application/json")
    assert (status, answer["error"].startswith("the body")) == (400, True)


@pytest.mark.parametrize("query", ["?channel=two%20words", "?channel=a&last_event_id=nonsense"])
def test_a_bad_websocket_request_is_refused_before_the_upgrade(server: ServerProcess, query: str) -> None:
    status, answer = request(f"{server.url}/ws{query}", Upgrade="websocket")
    assert (status, bool(answer["error"])) == (400, True)


def test_a_body_of_more_lines_than_a_channel_keeps_reaches_who_keeps_up(server: ServerProcess) -> None:
    lines = [str(number) for number in range(5000)]
    with EventStream(f"{server.url}/events?channel=a") as events:
        status, answer = request(
            f"{server.url}/channels/a", "\n".join(lines).encode(), Content_Type="application/x-ndjson"
        )
        assert (status, answer["count"]) == (200, 5000)
        assert events.data(5000) == lines


def test_active_channels_are_listed_with_their_subscribers(server: ServerProcess) -> None:
    publish(server.url, "quiet", "x")
    with EventStream(f"{server.url}/events?channel=news"), EventStream(f"{server.url}/events?channel=news"):
        status, answer = request(f"{server.url}/channels")
        assert status == 200
        assert {row["channel"]: row["subscribers"] for row in answer["channels"]} == {"news": 2, "quiet": 0}


def test_a_channel_tells_where_it_stands_and_what_it_keeps(server: ServerProcess) -> None:
    ids = [publish(server.url, "news", text) for text in ("a", "b")]
    _, posted = request(f"{server.url}/channels/news?event=goal", b'{"home": [1]}', Content_Type="application/json")
    with EventStream(f"{server.url}/events?channel=news"):
        status, answer = request(f"{server.url}/channels/news")
        assert (status, answer) == (200, {"channel": "news", "id": posted["id"], "subscribers": 1, "messages": 3})
        _, answer = request(f"{server.url}/channels/news?limit=2")
    assert answer["history"] == [
        {"data": "b", "id": ids[1]},
        {"event": "goal", "data": {"home": [1]}, "id": posted["id"]},
    ]
    assert len(request(f"{server.url}/channels/news?limit=999999999")[1]["history"]) == 3
    assert request(f"{server.url}/channels/news?limit=0")[1]["history"] == []


def test_a_channel_that_nobody_has_asked_for_is_empty_and_its_id_is_good_to_come_back_with(
    server: ServerProcess,
) -> None:
    status, answer = request(f"{server.url}/channels/new?limit=10")
    assert (status, answer["messages"], answer["history"]) == (200, 0, [])
    publish(server.url, "new", "first")
    with EventStream(f"{server.url}/events?channel=new", last_event_id=answer["id"]) as events:
        assert events.data(1) == ["first"]


def test_state_and_what_follows_it_fit_together_without_a_loss(server: ServerProcess) -> None:
    """What is kept, and then `/events` from the `id` that came with it."""
    for number in range(5):
        publish(server.url, "news", str(number))
    _, answer = request(f"{server.url}/channels/news?limit=100")
    publish(server.url, "news", "5")
    with EventStream(f"{server.url}/events?channel=news&last_event_id={answer['id']}") as events:
        seen = [message["data"] for message in answer["history"]] + events.data(1)
    assert seen == [str(number) for number in range(6)]


def test_earliest_begins_with_all_that_is_kept(serve: Serve) -> None:
    """As many as `--history` says (F61)."""
    server = serve("--history", "3")
    for number in range(10):
        publish(server.url, "news", str(number))
    with EventStream(f"{server.url}/events?channel=news&last_event_id=earliest") as events:
        assert events.data(3) == ["7", "8", "9"]
        publish(server.url, "news", "10")
        assert events.data(1) == ["10"]
    assert [message["data"] for message in request(f"{server.url}/channels/news?limit=100")[1]["history"]] == [
        "8",
        "9",
        "10",
    ]


def test_what_is_older_than_the_retention_is_kept_no_longer(serve: Serve) -> None:
    """F61: also in a channel that stays busy."""
    server = serve("--retention", "0.5")
    first = publish(server.url, "news", "first")
    limit = time.monotonic() + DEADLINE
    while any(message["id"] == first for message in kept(server, "news")):
        assert time.monotonic() < limit, "the first message is still there"
        publish(server.url, "news", "another")
    while kept(server, "news"):
        assert time.monotonic() < limit, "the last ones are still there"
    with EventStream(f"{server.url}/events?channel=news", last_event_id=first) as events:
        assert (events.next() or {})["event"] == "gap"


def kept(server: ServerProcess, channel: str) -> list[dict[str, Any]]:
    """What the server keeps of a channel."""
    history: list[dict[str, Any]] = request(f"{server.url}/channels/{channel}?limit=1000")[1]["history"]
    return history


def test_with_history_0_nothing_is_kept_for_those_who_come_later(serve: Serve) -> None:
    server = serve("--history", "0")
    publish(server.url, "news", "nobody sees this")
    assert kept(server, "news") == []
    with EventStream(f"{server.url}/events?channel=news&last_event_id=earliest") as events:
        publish(server.url, "news", "live")
        assert events.data(1) == ["live"]


def test_a_gone_subscriber_is_not_counted_any_more(server: ServerProcess) -> None:
    events = EventStream(f"{server.url}/events?channel=news")
    publish(server.url, "news", "there is one")
    events.cut()
    for _ in range(1000):
        _, answer = request(f"{server.url}/channels")
        if answer["channels"][0]["subscribers"] == 0:
            return
    pytest.fail(f"still there: {answer}")


def test_it_is_healthy(server: ServerProcess) -> None:
    status, answer = request(f"{server.url}/healthz")
    assert (status, answer["status"], answer["broker"]["state"]) == (200, "ok", "connected")


def connections(server: ServerProcess) -> dict[str, int]:
    """What the server says of its subscribers."""
    counts: dict[str, int] = request(f"{server.url}/healthz")[1]["connections"]
    return counts


def until(server: ServerProcess, **counts: int) -> None:
    """Wait until that is what it says."""
    limit = time.monotonic() + DEADLINE
    while not counts.items() <= (got := connections(server)).items():
        assert time.monotonic() < limit, f"{got} and not {counts}"
        time.sleep(0.01)


def test_it_counts_its_connections_at_all_doors(serve: Serve) -> None:
    server = serve("--tcp-port", "0")
    assert connections(server) == dict.fromkeys(
        ("open", "opened", "closed", "refused", "gaps", "skipped", "too_slow", "silent"), 0
    )
    with EventStream(f"{server.url}/events?channel=a", last_event_id="0123456789-7"), line_client(server) as lines:
        assert lines("SUBSCRIBE a").startswith("CONFIRMED a ")
        until(server, open=2, opened=2, closed=0, gaps=1)
    until(server, open=0, opened=2, closed=2)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_and_its_subscribers_streams_end_in_order(
    server: ServerProcess, signal_number: signal.Signals
) -> None:
    with EventStream(f"{server.url}/events?channel=news") as events:
        publish(server.url, "news", "last words")
        assert server.stop(signal_number) == 0
        assert events.data(1) == ["last words"]
        assert events.next() is None
    assert "has stopped" in server.output()


def test_it_survives_running_out_of_file_descriptors(serve: Serve) -> None:
    server = serve(descriptors=50)
    assert re.search("WARNING .* 50 file descriptors, .* 100000 connections of --max-connections", server.output())
    connections = [socket.create_connection(server.address) for _ in range(60)]
    server.wait_for_output("cannot accept connections for now")
    for connection in connections:
        connection.close()
    assert request(f"{server.url}/healthz")[0] == 200
    assert server.output().count("cannot accept") < 20


class LineClient:
    """A client of the line protocol as plain as nc."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rw", encoding="utf-8", newline="\r\n")

    def __call__(self, line: str) -> str:
        """Send a line, and read the next one."""
        self._file.write(line + "\n")
        self._file.flush()
        return self.read()

    def read(self) -> str:
        """The next line; nothing at the end."""
        return self._file.readline().rstrip("\r\n")

    def close(self) -> None:
        self._file.close()


@contextmanager
def line_client(server: ServerProcess) -> Iterator[LineClient]:
    with socket.create_connection(tcp_address(server), DEADLINE) as connection:
        client = LineClient(connection)
        try:
            yield client
        finally:
            client.close()


def tcp_address(server: ServerProcess) -> tuple[str, int]:
    """Where it says that it listens for lines."""
    found = server.wait_for_output(r"listens on http://\S+ and tcp://(\S+):(\d+) ")
    return found[1], int(found[2])


def test_lines_over_tcp_are_the_same_channels(serve: Serve) -> None:
    server = serve("--tcp-port", "0")
    with line_client(server) as lines, EventStream(f"{server.url}/events?channel=news") as events:
        assert lines("SUBSCRIBE news").startswith("CONFIRMED news ")
        id = publish(server.url, "news", "by HTTP")
        assert json.loads(lines.read().removeprefix("MESSAGE ")) == {"channel": "news", "data": "by HTTP", "id": id}
        answers = {lines("PUBLISH news by TCP").partition(" ")[0], lines.read().partition(" ")[0]}
        assert answers == {"CONFIRMED", "MESSAGE"}
        assert events.data(2) == ["by HTTP", "by TCP"]
        assert lines("PING") == "PONG"
        assert (lines("QUIT"), lines.read()) == ("BYE", "")


def test_there_is_no_tcp_port_unless_it_is_asked_for(server: ServerProcess) -> None:
    assert "tcp://" not in server.output()


@pytest.mark.parametrize("way", ["option", "variable"])
def test_who_does_not_know_the_token_reads_and_publishes_nothing_over_tcp(serve: Serve, way: str) -> None:
    if way == "option":
        server = serve("--tcp-port", "0", "--tcp-token", "sesame")
    else:
        server = serve(environment={"WATERSPOUT_TCP_PORT": "0", "WATERSPOUT_TCP_TOKEN": "sesame"})
    assert "sesame" not in server.output()
    with line_client(server) as lines:
        assert lines("SUBSCRIBE news").startswith("ERROR ")
        assert lines("PUBLISH news text").startswith("ERROR ")
    with line_client(server) as lines:
        assert lines("AUTH open").startswith("ERROR ")
    assert request(f"{server.url}/channels")[1] == {"channels": []}
    with line_client(server) as lines:
        assert lines("AUTH sesame") == "CONFIRMED"
        assert lines("PUBLISH news text").startswith("CONFIRMED news ")


def test_a_page_cannot_make_a_browser_publish_on_the_tcp_port(serve: Serve) -> None:
    """Any page may let a browser send such a request, to any address that it reaches."""
    server = serve("--tcp-port", "0")
    with socket.create_connection(tcp_address(server), DEADLINE) as browser:
        body = b"PUBLISH news evil\r\n"
        browser.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = b"".join(iter(lambda: browser.recv(4096), b""))
    assert answer.startswith(b"ERROR ")
    assert b"CONFIRMED" not in answer
    assert request(f"{server.url}/channels/news")[1]["messages"] == 0


def test_running_out_of_file_descriptors_is_survived_at_the_tcp_port_too(serve: Serve) -> None:
    server = serve("--tcp-port", "0", descriptors=50)
    connections = [socket.create_connection(tcp_address(server)) for _ in range(60)]
    server.wait_for_output("cannot accept connections for now")
    for connection in connections:
        connection.close()
    with line_client(server) as lines:
        assert lines("PING") == "PONG"
    assert server.output().count("cannot accept") < 20


def refused(server: ServerProcess, door: str) -> tuple[int, str]:
    """The status, and the words for a subscriber that is not let in."""
    if door == "events":
        with EventStream(f"{server.url}/events?channel=a") as events:
            said = events.response.read().decode()
            assert int(re.findall(r"^retry: (\d+)$", said, re.MULTILINE)[0]) >= 5000
            return events.response.status, "".join(re.findall("^: ?(.*)$", said, re.MULTILINE))
    if door == "poll":
        status, answer = request(f"{server.url}/poll?channel=a")
        return status, answer["error"]
    if door == "tcp":
        with line_client(server) as lines:
            said = lines("SUBSCRIBE a")
            assert said.startswith(("ERROR ", "GOAWAY "))
            return 503, said

    async def connect() -> tuple[int, str]:
        with pytest.raises(HTTPClientError) as refusal:
            await websocket_connect(f"{server.url.replace('http', 'ws')}/ws?channel=a")
        response = refusal.value.response
        assert response is not None
        assert int(response.headers["Retry-After"]) >= 5
        return response.code, json.loads(response.body)["error"]

    return asyncio.run(connect())


@pytest.mark.parametrize(
    ("door", "status"), [("events", 200), ("poll", 503), ("ws", 503), ("tcp", 503)], ids=["events", "poll", "ws", "tcp"]
)
@pytest.mark.parametrize("limit", ["--max-connections", "--max-per-address"])
def test_no_more_are_let_in_than_may_come(serve: Serve, limit: str, door: str, status: int) -> None:
    """F56: but an EventSource is answered 200, since it would never come back otherwise."""
    server = serve("--tcp-port", "0", limit, "2")
    urls = [f"{server.url}/events?channel={channel}" for channel in "ab"]
    with EventStream(urls[0]) as first, EventStream(urls[1]) as second:
        until(server, open=2)
        answered, said = refused(server, door)
        assert (answered, "connections" in said) == (status, True)
        publish(server.url, "a", "for those who are here")
        assert first.data(1) == ["for those who are here"]
        second.cut()
        until(server, open=1)
        with EventStream(urls[1]) as third:
            publish(server.url, "b", "there is room again")
            assert third.data(1) == ["there is room again"]


def test_an_idle_connection_is_sent_something_now_and_then(serve: Serve) -> None:
    server = serve("--heartbeat", "0.2")
    with EventStream(f"{server.url}/events?channel=a") as events:
        while not events.response.readline().startswith(b":"):
            pass
        publish(server.url, "a", "text")
        assert events.data(1) == ["text"]


def test_a_connection_that_is_old_ends_in_order_and_its_client_misses_nothing(serve: Serve) -> None:
    """E8."""
    server = serve("--max-age", "1.5")
    url = f"{server.url}/events?channel=a"
    with EventStream(url) as events, EventStream(url) as other:
        begin = time.monotonic()
        publish(server.url, "a", "first")
        assert (events.data(1), other.data(1)) == (["first"], ["first"])
        assert (events.next(), other.next()) == (None, None)
        assert 0.5 < time.monotonic() - begin < 4
    publish(server.url, "a", "while it was away")
    with EventStream(url, last_event_id=events.last_id) as events:
        assert events.data(1) == ["while it was away"]


@pytest.mark.parametrize("policy", ["gap", "latest", "disconnect"])
def test_what_becomes_of_who_does_not_keep_up_is_chosen(serve: Serve, policy: str) -> None:
    server = serve("--when-behind", policy, "--history", "5", "--log-level", "warning")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        slow.settimeout(DEADLINE)
        slow.connect(server.address)
        slow.sendall(b"GET /events?channel=a HTTP/1.0\r\n\r\n")
        until(server, open=1)
        for number in range(40):  # of which the log holds 16 MiB
            publish(server.url, "a", f"{number} " + "x" * 1_000_000)
        if policy == "disconnect":
            until(server, open=0, too_slow=1)
            return
        publish(server.url, "a", "the end")
        got = bytearray()
        while b"data: the end\n" not in got[-1000:]:
            piece = slow.recv(1 << 20)
            assert piece, got[-100:]
            got += piece
    assert len(got) < 30_000_000
    counts = connections(server)
    if policy == "gap":
        assert (got.count(b"event: gap"), counts["gaps"], counts["skipped"]) == (1, 1, 0)
    else:
        assert (got.count(b"event: gap"), counts["gaps"], counts["skipped"] > 0) == (0, 0, True)


def test_pages_of_named_sites_may_come_and_no_others(serve: Serve) -> None:
    server = serve("--allow-origin", "https://www.example.com", "--allow-origin", "http://other.example:81")

    async def connect(origin: str) -> int:
        address = HTTPRequest(f"{server.url.replace('http', 'ws')}/ws?channel=a", headers={"Origin": origin})
        try:
            async with web_socket(address):
                return 101
        except HTTPClientError as error:
            return error.code

    for origin, allowed in {
        "https://www.example.com": True,
        "http://other.example:81": True,
        "http://www.example.com": False,
        "https://www.example.com.evil.example": False,
        "http://other.example": False,
        server.url: True,
    }.items():
        status, _ = request(f"{server.url}/channels/a", b"x", Content_Type="text/plain", Origin=origin)
        assert (origin, status) == (origin, 200 if allowed else 403)
        assert asyncio.run(connect(origin)) == (101 if allowed else 403)
    assert allowed_origin(server, "https://www.example.com") == "https://www.example.com"
    assert allowed_origin(server, "https://evil.example") is None
    assert allowed_origin(serve("--allow-origin", "*"), "https://any.example") in ("*", "https://any.example")


def allowed_origin(server: ServerProcess, origin: str) -> str | None:
    """What `/events` tells a browser about who may read it (Fetch, "CORS protocol")."""
    connection = http.client.HTTPConnection(*server.address, timeout=DEADLINE)
    connection.request("GET", "/events?channel=a", headers={"Origin": origin})
    response = connection.getresponse()
    connection.close()
    response.close()
    return response.getheader("Access-Control-Allow-Origin")


def test_it_takes_as_many_file_descriptors_as_it_may(serve: Serve) -> None:
    """A shell lets a process begin with 1,024, which are few connections."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        server = serve()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    streams = [socket.create_connection(server.address) for _ in range(300)]
    assert request(f"{server.url}/healthz")[0] == 200
    assert "cannot accept" not in server.output()
    for stream in streams:
        stream.close()


def test_its_options_are_variables_too(serve: Serve, free_port: int) -> None:
    server = serve(environment={"WATERSPOUT_LOG_LEVEL": "warning", "WATERSPOUT_DEMO": "1"})
    with EventStream(f"{server.url}/events?channel=demo.load") as events:
        assert json.loads(events.data(1)[0])["cpu_percent"] >= 0
    request(f"{server.url}/nowhere")
    assert "waterspout.access" not in server.output()


def test_the_demo_publishes_what_this_machine_does(serve: Serve) -> None:
    server = serve("--demo", "--loop", "asyncio")
    assert "loop: asyncio" in server.output()
    with EventStream(f"{server.url}/events?channel=demo.memory&channel=demo.network&format=json") as events:
        got = {message["channel"]: message["data"] for message in map(json.loads, events.data(2))}
    assert got["demo.memory"]["total_bytes"] > got["demo.memory"]["used_bytes"] > 0
    assert got["demo.network"]["received_bytes_per_second"] >= 0


def test_it_warns_where_everybody_may_come(serve: Serve) -> None:
    server = serve("--host", "0.0.0.0")
    server.wait_for_output("WARNING .*there is no authentication: whoever reaches http://0.0.0.0:[0-9]+ may")
    assert "WARNING" not in serve().output()
    server = serve("--host", "0.0.0.0", "--tcp-port", "0")
    server.wait_for_output("WARNING .*no authentication: whoever reaches http://0.0.0.0:[0-9]+ or tcp://0.0.0.0:[0-9]+")
    server = serve("--host", "0.0.0.0", "--tcp-port", "0", "--tcp-token", "sesame")
    server.wait_for_output("WARNING .*no authentication: whoever reaches http://0.0.0.0:[0-9]+ may")


def get(server: ServerProcess, host: str) -> int:
    """The status of `GET /healthz` for a request to `host`."""
    return request(f"{server.url}/healthz", Host=host)[0]


def test_it_answers_to_names_of_this_machine_only_unless_told_otherwise(serve: Serve) -> None:
    server = serve("--allow-host", "Push.example.com")
    for ours in ("localhost", "LOCALHOST:99", "127.0.0.1:80", "[::1]:80", "push.example.com"):
        assert get(server, ours) == 200
    for other in ("evil.example", "localhost.evil.example", "xlocalhost", "pushxexample.com", "127.0.0.1.evil.example"):
        assert get(server, other) == 403
    status, answer = request(f"{server.url}/channels/a", b"x", Host="evil.example", Origin="http://evil.example")
    assert (status, "evil.example" in answer["error"]) == (403, True)
    assert request(f"{server.url}/channels")[1] == {"channels": []}


def test_on_all_addresses_it_answers_to_every_name(serve: Serve) -> None:
    assert get(serve("--host", "0.0.0.0"), "any.example") == 200


def refused_to_serve(*args: str) -> str:
    """What `waterspout serve` says when it exits with status 2."""
    result = subprocess.run(
        [sys.executable, "-m", "waterspout", "serve", *args],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused_to_serve("--port", str(port))
    assert f"port {port} on 127.0.0.1 is taken" in said
    assert said.count("\n") == 1


def test_a_taken_tcp_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused_to_serve("--port", "0", "--tcp-port", str(port))
    assert f"port {port} on 127.0.0.1 is taken: choose another with --tcp-port" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--redis", "localhost:6379"), "localhost:6379"),
        (("--redis", "redis://localhost:nope"), "nope"),
        (("--redis", "redis://localhost/seven"), "seven"),
        (("--host", "203.0.113.7"), "no address of this machine"),
        (("--port", "70000"), "70000"),
        (("--history", "-1"), "--history"),
        (("--retention", "0"), "--retention"),
        (("--retention", "nan"), "retention"),
        (("--retention", "inf"), "retention"),
        (("--tcp-port", "70000"), "70000"),
        (("--tcp-port", "0", "--tcp-token", ""), "--tcp-token (or WATERSPOUT_TCP_TOKEN) is empty"),
        (("--tcp-token", "sesame"), "none without --tcp-port"),
        (("--allow-host", "http://www.example.com"), "--allow-host: a host is a name"),
        (("--allow-host", "www.example.com:8080"), "--allow-host: a host is a name"),
        (("--grace", "-1"), "--grace"),
        (("--grace", "inf"), "--grace"),
        (("--heartbeat", "nan"), "--heartbeat"),
        (("--max-age", "0"), "--max-age"),
        (("--max-connections", "0"), "--max-connections"),
        (("--max-per-address", "0"), "--max-per-address"),
        (("--when-behind", "wait"), "--when-behind"),
        (("--allow-origin", "www.example.com"), "--allow-origin"),
        (("--allow-origin", "https://www.example.com/page"), "--allow-origin"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(args: tuple[str, ...], said: str) -> None:
    assert said in refused_to_serve("--port", "0", *args)


def test_a_token_that_was_not_filled_in_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATERSPOUT_TCP_TOKEN", "")
    assert "(or WATERSPOUT_TCP_TOKEN) is empty" in refused_to_serve("--port", "0", "--tcp-port", "0")
