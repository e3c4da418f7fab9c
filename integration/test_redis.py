"""Many processes on one real Redis; every test runs on every server found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integration.clients import EventStream, publish, request
from integration.conftest import Serve


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


def test_a_password_is_never_printed(serve: Serve, free_port: int) -> None:
    server = serve("--redis", f"redis://user:geheim@127.0.0.1:{free_port}")
    server.wait_for_output("WARNING")
    assert "geheim" not in server.output()
