"""The score-board of the examples: a browser, a TCP client and a plain PUBLISH side by side, at two processes."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import Browser, Page, expect

from integration.browsers import TIMEOUT
from integration.clients import DEADLINE
from integration.programs import Program, free_port

pytestmark = pytest.mark.one_redis_server  # how the servers differ is tested in the core


class Board:
    """One process of the score-board."""

    def __init__(self, log: Path, broker: str) -> None:
        self.tcp_port = free_port()
        self.program = Program(log, "scoreboard.py", free_port(), self.tcp_port, broker)
        self.url = self.program.url


@pytest.fixture
def boards(tmp_path: Path, redis_server: Any) -> Iterator[list[Board]]:
    """Two of them, on one Redis."""
    with contextlib.ExitStack() as stack:
        boards = []
        for number in range(2):
            boards.append(Board(tmp_path / f"board-{number}.log", redis_server.url))
            stack.callback(boards[-1].program.kill)
        yield boards
        for board in boards:
            assert "Traceback" not in board.program.output(), board.program.output()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(reduced_motion="reduce")  # what moves does so for a moment only
    context.set_default_timeout(TIMEOUT)
    page, complaints = context.new_page(), list[str]()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


class Peer:
    """A TCP client as plain as `nc`."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        self._lines = self._socket.makefile("rw", encoding="utf-8", newline="\r\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lines.close()
        self._socket.close()

    def say(self, line: str) -> None:
        self._lines.write(f"{line}\n")
        self._lines.flush()

    def hear(self) -> str:
        """The next line."""
        return self._lines.readline().rstrip("\r\n")

    def subscribe(self) -> None:
        self.say("SUBSCRIBE")
        assert self.hear() == "CONFIRMED"


def shows(page: Page, *rows: str) -> None:
    """Wait until the board has these rows and no others."""
    expect(page.locator("#board li")).to_have_text(rows)


def publish(redis_server: Any, line: str) -> None:
    """`redis-cli PUBLISH updates LINE`, by redis-cli itself where there is one."""
    command = shutil.which("redis-cli")
    if command is None:
        redis_server.call("PUBLISH", "updates", line)
    else:
        subprocess.run(
            [command, "-p", str(redis_server.port), "PUBLISH", "updates", line], check=True, timeout=DEADLINE
        )


def test_browser_tcp_client_and_plain_publish_side_by_side(boards: list[Board], redis_server: Any, page: Page) -> None:
    here, there = boards
    with Peer(here.tcp_port) as near, Peer(there.tcp_port) as far:
        near.subscribe()
        far.subscribe()
        page.goto(here.url)
        expect(page.locator("#status")).to_have_text("Live")

        publish(redis_server, "Malmö 1:0 Gent")
        assert (near.hear(), far.hear()) == ("Malmö 1:0 Gent", "Malmö 1:0 Gent")
        shows(page, "Malmö1:0Gent")

        far.say("PUBLISH updates Malmö 1:1 Gent")  # at the other process
        assert {far.hear(), far.hear()} == {"Malmö 1:1 Gent", "CONFIRMED updates"}
        assert near.hear() == "Malmö 1:1 Gent"
        shows(page, "Malmö1:1Gent")
        # A goal is seen to be one, and whose it was.
        expect(page.locator("li.goal .goals").nth(0)).to_have_class("goals")
        expect(page.locator("li.goal .goals").nth(1)).to_have_class("goals goal")

        near.say("PUBLISH updates Real Madrid 10:0 São Paulo")
        assert far.hear() == "Real Madrid 10:0 São Paulo"
        shows(page, "Malmö1:1Gent", "Real Madrid10:0São Paulo")

        for line in ("It rains.", "  1:0  "):  # no score of two teams, so it is for those who read the lines
            publish(redis_server, line)
            assert far.hear() == line
        publish(redis_server, "Malmö 2:1 Gent")
        shows(page, "Malmö2:1Gent", "Real Madrid10:0São Paulo")

        # What redis-cli SUBSCRIBE would print is the line as it was said.
        with socket.create_connection(("127.0.0.1", redis_server.port), DEADLINE) as plain:
            plain.sendall(b"SUBSCRIBE updates\r\n")
            with plain.makefile("rb") as replies:
                while replies.readline() != b":1\r\n":
                    pass
                near.say("PUBLISH updates Malmö 3:1 Gent")
                while (line := replies.readline().decode()) != "Malmö 3:1 Gent\r\n":
                    assert line.startswith(("*", "$", "message", "updates"))


def test_who_comes_later_sees_where_it_stands_at_any_process(
    boards: list[Board], redis_server: Any, page: Page
) -> None:
    publish(redis_server, "Malmö 1:0 Gent")
    publish(redis_server, "<b>Ajax</b> 0:0 Porto")
    for board in boards:
        page.goto(board.url)
        shows(page, "Malmö1:0Gent", "<b>Ajax</b>0:0Porto")
        expect(page.locator(".goal")).to_have_count(0)


def test_after_a_restart_of_redis_the_next_score_comes_to_all(
    fresh_redis_server: Any, tmp_path: Path, page: Page
) -> None:
    board = Board(tmp_path / "board.log", fresh_redis_server.url)
    try:
        page.goto(board.url)
        with Peer(board.tcp_port) as peer:
            peer.subscribe()
            publish(fresh_redis_server, "Malmö 1:0 Gent")
            assert peer.hear() == "Malmö 1:0 Gent"
            fresh_redis_server.kill()
            fresh_redis_server.start()
            limit = time.monotonic() + DEADLINE
            while b"updates" not in fresh_redis_server.call("PUBSUB", "CHANNELS"):
                assert time.monotonic() < limit, "it never subscribed again"
            publish(fresh_redis_server, "Malmö 2:0 Gent")
            while (line := peer.hear()) != "Malmö 2:0 Gent":
                assert "gap" in line.lower(), line
            shows(page, "Malmö2:0Gent")
        board.program.stop()
        expect(page.locator("#status")).to_have_text("Reconnecting…")
        board.program.start()
        expect(page.locator("#status")).to_have_text("Live")
    finally:
        board.program.kill()


@pytest.mark.parametrize("width", [320, 1280])
def test_long_names_stay_in_their_row(boards: list[Board], redis_server: Any, page: Page, width: int) -> None:
    publish(redis_server, f"{'x' * 40} 100:100 {'y ' * 19}z")
    page.set_viewport_size({"width": width, "height": 640})
    page.goto(boards[0].url)
    expect(page.locator("#board li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
