"""The console page in a real browser, against a real server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, WebSocketRoute, expect, sync_playwright

from integration.clients import publish, request
from integration.conftest import Serve

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT = 15_000  # ms, for whatever is waited for

expect.set_options(timeout=TIMEOUT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        explanation = f"no browser on PATH: looked for {', '.join(BROWSERS)}"
        if os.environ.get("CI"):
            pytest.fail(explanation)
        pytest.skip(f"{explanation}; install chromium to run these")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page, the requests it makes, and what it complains of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).netloc))
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _console(self, line: ConsoleMessage) -> None:
        if line.type in ("error", "warning"):
            self.complaints.append(line.text)


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT)
    yield Watched(context.new_page())
    context.close()


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


def publish_json(url: str, channel: str, value: object, event: str = "") -> None:
    """Publish a JSON value from outside of the page."""
    address = f"{url}/channels/{channel}?event={event}"
    status, answer = request(address, json.dumps(value).encode(), Content_Type="application/json")
    assert status == 200, answer


def open_console(page: Page, url: str, *channels: str) -> None:
    """Open the page, subscribed to `channels`, and wait until it is."""
    page.goto(f"{url}/?{'&'.join(f'channel={channel}' for channel in channels)}")
    if channels:
        expect(page.locator("#status")).to_have_text("Live")


def messages(page: Page, channel: str) -> Locator:
    return page.locator(f'.message[data-channel="{channel}"]')


def pixels(page: Page) -> str:
    return str(page.evaluate("document.getElementById('plot').toDataURL()"))


def test_a_page_subscribes_and_shows_what_others_publish(serve: Serve, watched: Watched) -> None:
    server, page = serve(), watched.page
    open_console(page, server.url)
    expect(page.locator("#empty")).to_contain_text(f"curl -d 'Hello' '{server.url}/channels/news'")

    page.fill("#subscribe-input", "news, scores")
    page.press("#subscribe-input", "Enter")
    expect(page.locator("#status")).to_have_text("Live")
    assert page.url == f"{server.url}/?channel=news&channel=scores"

    publish(server.url, "news", "Hello")
    publish_json(server.url, "scores", {"home": 2, "away": 1}, event="goal")
    expect(messages(page, "news").locator(".data")).to_have_text("Hello")
    expect(messages(page, "scores").locator(".data")).to_have_text('{"home":2,"away":1}')
    expect(messages(page, "scores").locator(".event")).to_have_text("goal")
    expect(page.locator('.card[data-channel="scores"] .sparkline')).to_have_count(2)

    assert watched.hosts == {urlsplit(server.url).netloc}, "the page asks nobody but its own server"
    assert watched.complaints == []


def test_the_plot_moves_when_messages_arrive(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, "news")
    expect(page.locator("#plot")).to_have_attribute("data-total", "0")
    before = pixels(page)
    for number in range(5):
        publish(server.url, "news", f"message {number}")
    expect(page.locator("#plot")).to_have_attribute("data-total", "5")
    # What is drawn in the channel's colour, not merely a grid that came late.
    page.wait_for_function(
        """() => {
            const canvas = document.getElementById("plot");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            for (let at = 0; at < data.length; at += 4)
                if (data[at + 3] > 200 && data[at + 2] - data[at] > 100) return true;
            return false;
        }"""
    )
    assert pixels(page) != before


def test_the_page_publishes_text_and_json(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, "news")
    page.fill("#publish-channel", "news")
    page.fill("#publish-event", "greeting")
    page.fill("#publish-body", "Hello")
    page.click("#publish-button")
    expect(page.locator("#publish-answer")).to_contain_text("Published as ")
    expect(messages(page, "news").locator(".data")).to_have_text("Hello")
    expect(messages(page, "news").locator(".event")).to_have_text("greeting")

    page.get_by_label("JSON").check(force=True)
    page.fill("#publish-body", '{"n": 1')
    expect(page.locator("#publish-body-error")).to_contain_text("Not JSON")
    page.click("#publish-button")
    expect(page.locator("#publish-body")).to_be_focused()
    page.fill("#publish-body", '{"n": 1}')
    expect(page.locator("#publish-body-error")).to_be_empty()
    page.press("#publish-body", "Control+Enter")
    expect(messages(page, "news").locator(".data").first).to_have_text('{"n":1}')
    expect(messages(page, "news")).to_have_count(2)


def test_the_servers_refusal_is_shown(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, "news")
    page.fill("#publish-event", "gap")
    page.fill("#publish-body", "Hello")
    page.click("#publish-button")
    expect(page.locator("#publish-answer")).to_contain_text("'gap' is reserved")


def test_a_first_message_published_on_an_empty_page_is_seen(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url)
    page.fill("#publish-channel", "first")
    page.fill("#publish-body", "Hello")
    page.click("#publish-button")
    expect(messages(page, "first").locator(".data")).to_have_text("Hello")


def test_markup_in_a_message_is_shown_as_text(serve: Serve, watched: Watched) -> None:
    server, page = serve(), watched.page
    markup = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    open_console(page, server.url, "news")
    publish(server.url, "news", markup, event="<i>event</i>")
    publish_json(server.url, "news", {markup: markup})
    publish(server.url, "news", markup * 10)
    expect(messages(page, "news")).to_have_count(3)
    page.click(".message summary")
    expect(page.locator(".message pre")).to_have_text(markup * 10)
    expect(messages(page, "news").last.locator(".data")).to_have_text(markup)
    expect(messages(page, "news").last.locator(".event")).to_have_text("<i>event</i>")
    assert page.locator("main :is(img, b)").count() == 0
    assert watched.complaints == []


def test_the_link_comes_back_by_itself_and_goes_on(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, "news", "quiet")
    publish(server.url, "news", "before")
    expect(messages(page, "news")).to_have_count(1)

    server.stop()
    expect(page.locator("#status")).to_have_attribute("data-state", "down")
    expect(page.locator("#status")).to_contain_text("reconnecting")
    expect(page.locator(".note").first).to_contain_text("The link is down")

    server.start()
    expect(page.locator("#status")).to_have_text("Live", timeout=2 * TIMEOUT)
    expect(page.locator("#announcement")).to_have_text("The link is back")
    # A new process does not know what the page has missed, and the page says so, of each channel.
    for channel in ("news", "quiet"):
        note = page.locator(f'.note[data-channel="{channel}"] .data')
        expect(note).to_have_text("Some messages may have been lost here")
    publish(server.url, "news", "after")
    expect(messages(page, "news").locator(".data").first).to_have_text("after")
    expect(messages(page, "news")).to_have_count(2)


def test_after_a_cut_nothing_is_lost_or_repeated(serve: Serve, page: Page) -> None:
    server = serve()
    sockets: list[WebSocketRoute] = []

    def relay(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    page.route_web_socket("**/ws?*", relay)
    open_console(page, server.url, "news")
    publish(server.url, "news", "one")
    expect(messages(page, "news")).to_have_count(1)
    sockets[0].close(code=1012, reason="cut by the test")
    publish(server.url, "news", "two")
    publish(server.url, "news", "three")
    expect(messages(page, "news").locator(".data")).to_have_text(["three", "two", "one"])
    assert "last_event_id=" in sockets[1].url
    expect(page.locator(".note .data")).to_have_text(["The link is back", "The link is down"])


def test_a_page_without_channels_shows_the_demos(serve: Serve, page: Page) -> None:
    server = serve()
    publish_json(server.url, "demo.load", {"cpu_percent": 3.5})
    publish(server.url, "news", "Hello")
    open_console(page, server.url)
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator('.card[data-channel="demo.load"]')).to_be_visible()
    expect(page.locator('#active button[data-channel="demo.load"]')).to_have_attribute("aria-pressed", "true")

    page.click('.card[data-channel="demo.load"] button')
    with page.expect_response(f"{server.url}/channels") as answer:
        expect(page.locator(".card")).to_have_count(0)
    answer.value.finished()
    expect(page.locator(".card")).to_have_count(0)

    page.click('#active button[data-channel="news"]')
    expect(page.locator('.card[data-channel="news"]')).to_be_visible()
    assert page.url == f"{server.url}/?channel=news"


def test_pause_filter_and_clear(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, "news")
    publish(server.url, "news", "one")
    expect(messages(page, "news")).to_have_count(1)

    page.click("#pause")
    publish(server.url, "news", "two")
    expect(page.locator("#pause")).to_have_text("Resume · 1 new")
    expect(messages(page, "news")).to_have_count(1)
    page.click("#pause")
    expect(messages(page, "news").locator(".data")).to_have_text(["two", "one"])

    page.fill("#filter", "ONE")
    expect(messages(page, "news").locator(".data")).to_have_text(["one"])
    page.fill("#filter", "three")
    expect(page.locator("#no-match")).to_be_visible()
    page.fill("#filter", "")
    expect(messages(page, "news")).to_have_count(2)

    page.click("#clear")
    expect(page.locator("#empty")).to_contain_text("Waiting for messages")
    expect(page.locator("#total")).to_have_text("2")


def test_a_flood_leaves_a_bounded_page_and_nothing_uncounted(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, "flood")
    lines = "\n".join(json.dumps({"n": number}) for number in range(800)).encode()
    for _ in range(5):
        status, _ = request(f"{server.url}/channels/flood", lines, Content_Type="application/x-ndjson")
        assert status == 200
    expect(page.locator("#plot")).to_have_attribute("data-total", "4000")
    expect(messages(page, "flood").first.locator(".data")).to_have_text('{"n":799}')
    assert messages(page, "flood").count() <= 500


@pytest.mark.parametrize("name", ["two%20words", "x" * 256])
def test_a_bad_channel_in_the_url_is_said_at_the_field(serve: Serve, page: Page, name: str) -> None:
    server = serve()
    page.goto(f"{server.url}/?channel={name}")
    expect(page.locator("#subscribe-error")).not_to_be_empty()
    expect(page.locator("#subscribe-input")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".card")).to_have_count(0)
