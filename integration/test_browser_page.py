"""What docs/browsers.md shows is run in a real browser, through a restart of the server."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from integration.browsers import launched
from integration.clients import DEADLINE, publish, request
from integration.conftest import Serve, ServerProcess

pytestmark = pytest.mark.one_redis_server  # how the servers differ is tested in the core

PAGE = Path(__file__).parent.parent / "docs" / "browsers.md"
EVENT_SOURCE, WEB_SOCKET = re.findall(r"```js\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def page() -> Iterator[Page]:
    with launched() as browser:
        yield browser.new_page()


def run(page: Page, server: ServerProcess, program: str) -> None:
    """Run `program` in a page of `server`, with a `show` that keeps what it is given."""
    page.goto(f"{server.url}/healthz")
    page.evaluate("window.shown = []; window.show = (text) => shown.push(text); null")
    page.evaluate(f"() => {{ {program} }}")


def shows(page: Page, texts: list[str]) -> None:
    page.wait_for_function("(texts) => shown.join('|') === texts.join('|')", arg=texts, timeout=DEADLINE * 1000)


def subscribed(server: ServerProcess, *channels: str) -> None:
    limit = time.monotonic() + DEADLINE
    while True:
        rows = request(f"{server.url}/channels")[1]["channels"]
        if {row["channel"] for row in rows if row["subscribers"]} >= set(channels):
            return
        assert time.monotonic() < limit, rows
        time.sleep(0.02)


def test_an_event_source_hears_names_and_gaps_and_comes_back(serve: Serve, page: Page) -> None:
    server = serve("--history", "2")
    run(page, server, EVENT_SOURCE)
    subscribed(server, "scores")
    publish(server.url, "scores", "1:0")
    publish(server.url, "scores", "2:0", "goal")
    shows(page, ["1:0", "Goal! 2:0"])
    server.stop()
    server.start()  # a life of its own: nobody knows what was missed
    subscribed(server, "scores")
    publish(server.url, "scores", "3:0")
    shows(page, ["1:0", "Goal! 2:0", "lost: some", "3:0"])


def test_a_websocket_that_comes_back_misses_nothing(serve: Serve, page: Page, fresh_redis_server: Any) -> None:
    url = fresh_redis_server.url
    server, other = serve("--redis", url), serve("--redis", url)
    run(page, server, WEB_SOCKET)
    subscribed(server, "scores", "news")
    publish(other.url, "scores", "1:0")
    publish(other.url, "news", "Hello")
    shows(page, ["scores: 1:0", "news: Hello"])
    server.stop()
    publish(other.url, "scores", "2:0")
    publish(other.url, "scores", "3:0")
    server.start()
    subscribed(server, "scores", "news")
    shows(page, ["scores: 1:0", "news: Hello", "scores: 2:0", "scores: 3:0"])
    publish(other.url, "news", "again")
    shows(page, ["scores: 1:0", "news: Hello", "scores: 2:0", "scores: 3:0", "news: again"])
