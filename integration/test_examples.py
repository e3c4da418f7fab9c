"""Every example runs, and the README shows what is run."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.clients import DEADLINE, EventStream, request

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@contextmanager
def running(name: str, port: int, *args: str) -> Iterator[str]:
    """The example as a process, on a port of ours in place of its own; its URL."""
    source = (EXAMPLES / name).read_text()
    assert source.count("listen(9000") == 1
    with subprocess.Popen(
        [sys.executable, "-c", source.replace("listen(9000", f"listen({port}"), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            limit = time.monotonic() + DEADLINE
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > limit:
                    process.kill()
                    pytest.fail(f"{name} does not listen: {process.communicate()[0]}")
                time.sleep(0.02)
            yield url
            interrupt(process)
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[str]) -> None:
    """What Ctrl-C does: it ends without a word of Python's."""
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0


def _answers(url: str) -> bool:
    try:
        request(f"{url}/there-is-no-such-page")
    except (urllib.error.URLError, ConnectionError):
        return False
    except ValueError:  # an answer, though not in JSON
        return True
    return True


def run(name: str, *args: str) -> str:
    """What the example prints until it ends by itself."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_data_store_and_an_event_source_in_ten_lines(free_port: int) -> None:
    with running("datastore_eventsource.py", free_port) as url, EventStream(url) as events:
        values = [float(text) for text in events.data(3)]
    assert len(set(values)) == 3
    assert all(0 <= value < 1 for value in values)


def test_one_store_behind_three_doors(free_port: int) -> None:
    with running("one_store.py", free_port) as url, EventStream(f"{url}/events") as events:
        status, answer = request(f"{url}/publish", b"Hello")
        assert (status, list(answer)) == (200, ["id"])
        assert events.next() == {"data": "Hello", "id": answer["id"]}


def test_channels_in_an_application_of_ones_own(free_port: int, redis_server: Any) -> None:
    with (
        running("own_application.py", free_port, redis_server.url) as url,
        EventStream(f"{url}/live?channel=scores") as events,
    ):
        status, answer = request(f"{url}/publish/scores", "Malmö 1:0 Gent".encode())
        assert (status, answer["channel"]) == (200, "scores")
        assert events.data(1) == ["Malmö 1:0 Gent"]


def test_one_command_to_redis_and_its_answer(redis_server: Any) -> None:
    assert run("redis_ping.py", redis_server.url) == "PONG\n"


def test_a_pipeline_is_one_round_trip_and_one_list(redis_server: Any) -> None:
    assert run("redis_pipeline.py", redis_server.url) == "['OK', 'value', 1]\n"


def test_a_listener_prints_what_is_published(redis_server: Any) -> None:
    listening = [sys.executable, str(EXAMPLES / "redis_listen.py"), redis_server.url]
    with subprocess.Popen(listening, stdout=subprocess.PIPE, text=True) as process:
        try:
            limit = time.monotonic() + DEADLINE
            while redis_server.call("PUBLISH", "news", "Hello") != 1:
                assert time.monotonic() < limit, "it never subscribed"
            assert process.stdout is not None
            assert process.stdout.readline() == "news Hello\n"
            interrupt(process)
        finally:
            process.kill()


def test_who_keeps_a_position_misses_nothing_while_it_is_not_running(redis_server: Any, tmp_path: Path) -> None:
    place = tmp_path / "position"
    following = [sys.executable, str(EXAMPLES / "follow_channel.py"), redis_server.url, str(place)]

    def publish(text: str) -> str:
        return str(redis_server.call("FCALL", "waterspout_publish", 1, "news", text), "ascii")

    for run in ("first", "second"):
        with subprocess.Popen(following, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if run == "second":
                    assert process.stdout.readline() == "in between\n"
                limit = time.monotonic() + DEADLINE
                while "waterspout_publish" not in str(redis_server.call("FUNCTION", "LIST")):
                    assert time.monotonic() < limit, "it never brought the functions"
                    time.sleep(0.02)
                position = publish(run)
                assert process.stdout.readline() == f"{run}\n"
                while not place.exists() or place.read_text() != position:
                    assert time.monotonic() < limit, "it never wrote its position"
                    time.sleep(0.02)
                interrupt(process)
            finally:
                process.kill()
        publish("in between")


def test_lines_over_tcp_and_their_client(free_port: int) -> None:
    assert run("tcp_lines.py", str(free_port)) == "what came before\ntwo\nlines are one message\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_doors_share_a_store_and_say_goodbye(free_port: int, tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        lines = other.getsockname()[1]
    program = tmp_path / "program.py"
    source = (EXAMPLES / "two_doors.py").read_text()
    program.write_text(source.replace("listen(9000", f"listen({free_port}").replace("listen(5567", f"listen({lines}"))
    with subprocess.Popen([sys.executable, str(program)]) as process:
        try:
            limit = time.monotonic() + DEADLINE
            while not _answers(f"http://127.0.0.1:{free_port}"):
                assert time.monotonic() < limit, "it does not listen"
                time.sleep(0.02)
            with (
                EventStream(f"http://127.0.0.1:{free_port}/events") as events,
                socket.create_connection(("127.0.0.1", lines), DEADLINE) as connection,
                connection.makefile("rw", newline="\r\n") as peer,
            ):
                peer.write("SUBSCRIBE\n")
                peer.flush()
                assert peer.readline() == "CONFIRMED\r\n"
                told = peer.readline().rstrip("\r\n")
                assert told in events.data(2)
                process.send_signal(number)
                rest = peer.read().split("\r\n")
                assert rest[-2].startswith("GOAWAY ")
                while events.next() is not None:
                    pass
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()


def test_every_example_is_run_here() -> None:
    """The larger ones have files of their own beside this one."""
    source = "".join(page.read_text() for page in Path(__file__).parent.glob("test_*.py"))
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in source


def code_blocks() -> list[Any]:
    pages = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in pages
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    ]


@pytest.mark.parametrize("block", code_blocks())
def test_what_the_pages_show_is_an_example_or_runs_by_itself(block: str, redis_server: Any) -> None:
    programs = [re.sub(r'\A""".*?"""\n+', "", path.read_text(), flags=re.DOTALL) for path in EXAMPLES.glob("*.py")]
    if block not in programs:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-"],
            input=block.replace("redis://localhost", redis_server.url),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert result.returncode == 0, result.stderr
