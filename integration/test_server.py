"""The push server on its in-process broker, as its users meet it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from tornado.websocket import websocket_connect

from integration.clients import DEADLINE, EventStream, publish, request
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
        connection = await websocket_connect(f"{server.url.replace('http', 'ws')}/ws?channel=a&channel=b")
        await asyncio.to_thread(publish, server.url, "a", "text")
        await asyncio.to_thread(
            request, f"{server.url}/channels/b?event=goal", b'{"home": [1]}', Content_Type="application/json"
        )
        async with asyncio.timeout(DEADLINE):
            messages = [json.loads(await connection.read_message() or "null") for _ in range(2)]
        connection.close()
        assert await connection.read_message() is None
        return messages

    first, second = asyncio.run(use())
    assert first == {"channel": "a", "data": "text", "id": first["id"]}
    assert second == {"channel": "b", "event": "goal", "data": {"home": [1]}, "id": second["id"]}


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


@pytest.mark.parametrize("query", ["", "?channel=two%20words", "?channel=a&last_event_id=nonsense"])
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
    events.cut()
    for _ in range(1000):
        _, answer = request(f"{server.url}/channels")
        if answer["channels"][0]["subscribers"] == 0:
            return
    pytest.fail(f"still there: {answer}")


def test_it_is_healthy(server: ServerProcess) -> None:
    status, answer = request(f"{server.url}/healthz")
    assert (status, answer["status"], answer["broker"]["state"]) == (200, "ok", "connected")


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
    connections = [socket.create_connection(server.address) for _ in range(60)]
    server.wait_for_output("cannot accept connections for now")
    for connection in connections:
        connection.close()
    assert request(f"{server.url}/healthz")[0] == 200
    assert server.output().count("cannot accept") < 20


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
    server.wait_for_output("WARNING .*there is no authentication")
    assert "WARNING" not in serve().output()


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
    ],
)
def test_what_cannot_be_served_is_one_clear_line(args: tuple[str, ...], said: str) -> None:
    assert said in refused_to_serve("--port", "0", *args)
