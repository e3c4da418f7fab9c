"""The console page in a real browser, against a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    WebSocket,
    WebSocketRoute,
    expect,
)

from integration.browsers import TIMEOUT
from integration.clients import publish, request
from integration.conftest import Serve


class Watched:
    """A page, the requests it makes, and what it complains of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.sockets: list[WebSocket] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: self.sockets.append(socket))
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


class Relay:
    """Stands between the page and the server's WebSocket: notes what the page asks for, and can end it."""

    def __init__(self, page: Page) -> None:
        self.requests: list[list[dict[str, Any]]] = []  # of each socket
        self.cut_after: int | None = None
        """End the next socket when so many of the server's answers have been passed on."""
        self._newest: WebSocketRoute | None = None
        page.route_web_socket("**/ws", self._relay)

    def _relay(self, socket: WebSocketRoute) -> None:
        server, requests = socket.connect_to_server(), list[dict[str, Any]]()
        self.requests.append(requests)
        self._newest = socket

        def ask(request: str | bytes) -> None:
            requests.append(json.loads(request))
            server.send(request)

        def answer(message: str | bytes) -> None:
            if self.cut_after == 0:
                self.cut_after = None
                self.cut()
            elif self._newest is socket:
                socket.send(message)
                self.cut_after = None if self.cut_after is None else self.cut_after - 1

        socket.on_message(ask)
        server.on_message(answer)

    def cut(self) -> None:
        """End the newest socket as a server does that is about to restart."""
        socket, self._newest = self._newest, None
        assert socket is not None, "there is no socket to cut"
        socket.close(code=1012, reason="cut by the test")


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

    asked = watched.hosts | {urlsplit(socket.url).netloc for socket in watched.sockets}
    assert asked == {urlsplit(server.url).netloc}, "the page asks nobody but its own server"
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
    server, relay = serve(), Relay(page)
    open_console(page, server.url, "news", "quiet")
    publish(server.url, "news", "one")
    expect(messages(page, "news")).to_have_count(1)
    relay.cut()
    for number in range(10):
        publish(server.url, "news" if number % 2 else "quiet", str(number))
    expect(messages(page, "news").locator(".data")).to_have_text(["9", "7", "5", "3", "1", "one"])
    expect(messages(page, "quiet").locator(".data")).to_have_text(["8", "6", "4", "2", "0"])
    expect(page.locator(".note .data")).to_have_text(["The link is back", "The link is down: cut by the test"])
    first, second = relay.requests
    assert [request["subscribe"] for request in first] == [request["subscribe"] for request in second]
    assert not any("last_event_id" in request for request in first)
    assert len({request["last_event_id"] for request in second}) == 1, "one id carries the positions of all channels"


def test_a_cut_while_the_channels_are_being_confirmed_forgets_no_position(serve: Serve, page: Page) -> None:
    server, relay = serve(), Relay(page)
    open_console(page, server.url, "news", "quiet")
    publish(server.url, "quiet", "one")
    expect(messages(page, "quiet")).to_have_count(1)
    relay.cut_after = 1  # the first channel is confirmed again, the second is not
    relay.cut()
    publish(server.url, "quiet", "two")
    publish(server.url, "news", "three")
    expect(messages(page, "quiet").locator(".data")).to_have_text(["two", "one"])
    expect(messages(page, "news").locator(".data")).to_have_text(["three"])
    _, second, third = relay.requests
    news, quiet = (request["last_event_id"] for request in third)
    assert quiet == second[1]["last_event_id"]
    assert news != quiet, "what was confirmed last says nothing of the channel that was not"


def test_f54_the_page_comes_back_after_a_restart_at_a_moment_left_to_chance(serve: Serve, page: Page) -> None:
    server, relay = serve(), Relay(page)
    page.add_init_script("Math.random = () => 0.999")
    open_console(page, server.url, "news")
    before = time.monotonic()
    relay.cut()
    expect(page.locator("#status")).to_have_attribute("data-state", "down")
    expect(page.locator("#status")).to_have_text("Live")
    assert time.monotonic() - before > 2.9, "of three seconds at most, chance has chosen nearly all"


def test_sixty_channels_are_live_at_once_over_one_websocket(serve: Serve, watched: Watched) -> None:
    server, page = serve(), watched.page
    names = [f"channel-{number}" for number in range(60)]
    open_console(page, server.url, *names[:50])
    page.fill("#subscribe-input", " ".join(names[50:]))
    page.press("#subscribe-input", "Enter")
    expect(page.locator('.card[data-state="open"]')).to_have_count(60)
    for name in names:
        publish(server.url, name, f"to {name}")
    expect(page.locator(".message")).to_have_count(60)
    shown = page.locator(".message").evaluate_all("rows => rows.map(row => row.dataset.channel)")
    assert sorted(shown) == sorted(names)
    assert len(watched.sockets) == 1
    expect(page.locator("#connections")).to_have_text("1 connection")

    page.click('.card[data-channel="channel-7"] button')
    expect(page.locator('#active button[data-channel="channel-7"] .figures')).to_have_text("0")
    publish(server.url, "channel-7", "to nobody")
    publish(server.url, "channel-8", "to the page")
    expect(messages(page, "channel-8")).to_have_count(2)
    expect(messages(page, "channel-7")).to_have_count(1)
    assert len(watched.sockets) == 1
    assert watched.complaints == []


def test_a_channel_that_the_server_refuses_says_why_and_comes_when_there_is_room(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, *(f"channel-{number}" for number in range(100)))
    page.fill("#subscribe-input", "surplus")
    page.press("#subscribe-input", "Enter")
    card = page.locator('.card[data-channel="surplus"]')
    expect(card).to_have_attribute("data-state", "refused")
    expect(card.locator(".error")).to_contain_text("100")
    expect(page.locator("#status")).to_have_text("Live")

    page.click('.card[data-channel="channel-0"] button')
    expect(card).to_have_attribute("data-state", "open")
    expect(card.locator(".error")).to_be_empty()
    publish(server.url, "surplus", "Hello")
    expect(messages(page, "surplus").locator(".data")).to_have_text("Hello")


def test_no_channel_no_connection(serve: Serve, watched: Watched) -> None:
    server, page, sockets = serve(), watched.page, watched.sockets
    open_console(page, server.url)
    expect(page.locator("#connections")).to_have_text("0 connections")
    assert sockets == []
    page.fill("#subscribe-input", "news")
    page.press("#subscribe-input", "Enter")
    expect(page.locator("#status")).to_have_text("Live")
    with sockets[0].expect_event("close"):
        page.click(".card button")
    expect(page.locator("#status")).to_have_text("Ready")


WIDTHS = [320, 480, 640, 641, 800, 900, 901, 959, 960, 1000, 1060, 1120, 1151, 1152, 1280, 1900]


def test_at_every_width_all_stays_in_its_card_and_no_number_is_broken(serve: Serve, page: Page) -> None:
    server = serve()
    open_console(page, server.url, "figures")
    publish_json(server.url, "figures", {f"number_{n}": 1234567.890123 * 1.1**n for n in range(5)}, event="measured")
    publish_json(server.url, "figures", [-1.5e-300, 0.30000000000000004, 123456789012345, -33.04561237, 71.620200012])
    expect(messages(page, "figures")).to_have_count(2)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        outside = page.evaluate(
            """() => [...document.querySelectorAll(".panel :is(button, input, textarea, .data)")].filter((part) => {
                const [inner, outer] = [part, part.closest(".panel")].map((each) => each.getBoundingClientRect());
                return inner.width && (inner.right > outer.right || inner.left < outer.left);
            }).map((part) => part.id || part.className)"""
        )
        assert outside == [], f"at {width} px"
        broken = page.evaluate(
            """() => [...document.querySelectorAll(".data.json")].flatMap((data) => [...data.childNodes])
                .filter((node) => node.nodeType === Node.TEXT_NODE && /[0-9]/.test(node.data))
                .filter((node) => {
                    const range = document.createRange();
                    range.selectNodeContents(node);
                    return new Set([...range.getClientRects()].map((box) => box.top)).size > 1;
                }).map((node) => node.data)"""
        )
        assert broken == [], f"at {width} px"


@pytest.mark.parametrize("width", [400, 1200])
def test_many_active_channels_stretch_their_list_and_not_the_page(serve: Serve, page: Page, width: int) -> None:
    server = serve()
    page.set_viewport_size({"width": width, "height": 800})
    open_console(page, server.url)
    expect(page.locator("#active-note")).to_have_text("None yet.")
    before = page.evaluate("document.documentElement.scrollHeight")
    for number in range(100):
        publish(server.url, f"channel-{number}", "x")
    expect(page.locator("#active button")).to_have_count(100)
    # On a narrow page the list has some height of its own.
    room = page.evaluate("document.getElementById('active').clientHeight") if width < 600 else 0
    assert page.evaluate("document.documentElement.scrollHeight") <= before + room


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
