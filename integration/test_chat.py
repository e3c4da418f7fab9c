"""The chat of the examples, in a real browser: two processes on one Redis, WebSocket and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, expect

from integration.browsers import TIMEOUT
from integration.clients import EventStream, Proxy, request
from integration.programs import Program, Start, free_port
from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, find_servers

DOORS = pytest.mark.parametrize("door", ["websocket", "sse"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Program] = []

    def start_one(name: str, *args: object) -> Program:
        started.append(Program(tmp_path / f"program-{len(started)}.log", name, *args))
        return started[-1]

    yield start_one
    for program in started:
        program.kill()
        assert "Traceback" not in program.output(), program.output()


@pytest.fixture
def chat(start: Start) -> Program:
    """One process, without Redis."""
    return start("chat.py", free_port(), "memory://")


@pytest.fixture(scope="module")
def one_redis_server() -> Iterator[RunningServer]:
    """The first that is found: how they differ is tested elsewhere."""
    if not (found := find_servers()):
        pytest.fail(HOW_TO_GET_ONE, pytrace=False)
    with RunningServer(found[0]) as server:
        yield server


@pytest.fixture
def redis(one_redis_server: RunningServer) -> RunningServer:
    """It is empty at the start of the test."""
    one_redis_server.call("FLUSHALL")
    return one_redis_server


@pytest.fixture
def two(start: Start, redis: RunningServer) -> tuple[Program, Program]:
    """Two processes, one Redis."""
    return (
        start("chat.py", free_port(), redis.url),
        start("chat.py", free_port(), redis.url),
    )


class Person:
    """Somebody with a browser of their own, who has the chat at `url` open."""

    def __init__(self, context: BrowserContext, name: str, url: str, door: str) -> None:
        self.name, self.door = name, door
        self.context = context
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.sent: list[str] = []  # what was said, as often as it left the page
        self.page.on("request", lambda asked: self._requested(asked, url))
        self.page.on(
            "websocket", lambda socket: socket.on("framesent", lambda frame: self._send(json.loads(frame)["data"]))
        )
        self.page.add_init_script(f"localStorage.name = {json.dumps(name)}" if name else "")
        self.page.goto(f"{url}/{'?sse' if door == 'sse' else ''}")

    def _requested(self, asked: Request, url: str) -> None:
        if not asked.url.startswith((url, "data:")):
            self.complaints.append(f"the page asks for {asked.url}")
        if asked.method == "POST":
            self._send(asked.post_data_json)

    def _send(self, said: Any) -> None:
        self.sent.append(said["text"])

    def is_live(self) -> None:
        expect(self.page.locator("#status")).to_have_text("Live, by events" if self.door == "sse" else "Live")

    def is_down(self) -> None:
        expect(self.page.locator("#status")).to_have_text("Reconnecting…")

    def say(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    @property
    def lines(self) -> Locator:
        return self.page.locator("ol:not([hidden]) li")

    def reads(self, *said: tuple[str, str]) -> None:
        """Wait until the room has these lines and no others, none of which waits to be sent."""
        expect(self.lines.locator("p")).to_have_text([text for _, text in said])
        expect(self.lines.locator("b")).to_have_text([name for name, _ in said])
        expect(self.page.locator(".waiting")).to_have_count(0)

    def leave(self) -> None:
        self.context.close()
        assert self.complaints == []


Arrive = Callable[..., Person]


@pytest.fixture
def arrive(browser: Browser) -> Iterator[Arrive]:
    """`arrive("Ada", url, "sse")`: a person who has come, and is connected."""
    people: list[Person] = []

    def arrive_one(name: str, url: str, door: str = "websocket") -> Person:
        context = browser.new_context()
        context.set_default_timeout(TIMEOUT)
        people.append(Person(context, name, url, door))
        people[-1].is_live()
        return people[-1]

    yield arrive_one
    for person in people:
        person.leave()


def say(url: str, room: str, text: str, name: str = "") -> None:
    """Say `text` from a shell, or as a program that has a name."""
    body = json.dumps({"name": name, "text": text}) if name else text
    kind = "application/json" if name else "text/plain"
    status, answer = request(f"{url}/rooms/{quote(room)}", body.encode(), Content_Type=kind)
    assert status == 200, answer


def test_people_at_two_processes_read_one_another_by_every_door(
    two: tuple[Program, Program], redis: RunningServer, arrive: Arrive
) -> None:
    here, there = two
    ada, grace = arrive("Ada", here.url), arrive("Grace", there.url, "sse")
    ada.say("Hello")
    grace.reads(("Ada", "Hello"))
    grace.say("Hello, Ada")
    ada.reads(("Ada", "Hello"), ("Grace", "Hello, Ada"))
    with EventStream(f"{here.url}/live?channel=lobby") as events:
        say(there.url, "lobby", "from a shell")
        assert events.data(1) == ["from a shell"]
    redis.call("PUBLISH", "chat:lobby", "by a plain PUBLISH")
    conversation = [
        ("Ada", "Hello"),
        ("Grace", "Hello, Ada"),
        ("somebody", "from a shell"),
        ("somebody", "by a plain PUBLISH"),
    ]
    for person in (ada, grace):
        person.reads(*conversation)
    expect(ada.page.locator(".same p")).to_have_text(["by a plain PUBLISH"])
    expect(ada.page.locator("li.mine p")).to_have_text(["Hello"])
    expect(grace.page.locator("li.mine p")).to_have_text(["Hello, Ada"])


@DOORS
def test_who_comes_later_reads_what_was_said_before(two: tuple[Program, Program], arrive: Arrive, door: str) -> None:
    here, there = two
    ada = arrive("Ada", here.url)
    said = [("Ada", f"number {number}") for number in range(20)]
    for _, text in said:
        ada.say(text)
    ada.reads(*said)
    grace = arrive("Grace", there.url, door)
    grace.reads(*said)
    expect(grace.page.locator("#log")).to_have_js_property("scrollTop", 0)  # of a list that grows upwards: its end
    expect(grace.lines.last).to_be_in_viewport()


@DOORS
def test_a_cut_loses_nothing_and_repeats_nothing(two: tuple[Program, Program], arrive: Arrive, door: str) -> None:
    here, there = two
    with Proxy(here.address) as proxy:
        ada = arrive("Ada", proxy.url, door)
        said = [("Ada", "before")]
        ada.say("before")
        for turn in range(3):
            proxy.cut()
            ada.say(f"{turn} by Ada")
            say(there.url, "lobby", f"{turn} by Grace", "Grace")
            say(there.url, "garden", f"{turn} by Grace", "Grace")
            said += [("Ada", f"{turn} by Ada"), ("Grace", f"{turn} by Grace")]
            expect(ada.lines).to_have_count(len(said))
            expect(ada.page.locator(".waiting")).to_have_count(0)
        lines = [(line.locator("b").inner_text(), line.locator("p").inner_text()) for line in ada.lines.all()]
        # Who of the two was first in a turn is left to chance; but nobody's words are lost, repeated or turned round.
        for name in ("Ada", "Grace"):
            assert [line for line in lines if line[0] == name] == [line for line in said if line[0] == name]
        arrive("Grace", there.url).reads(*lines)
        ada.page.click("#rooms a >> nth=1")
        ada.reads(*(("Grace", f"{turn} by Grace") for turn in range(3)))
        ada.leave()


@DOORS
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_process_that_comes_back_finds_all_that_was_said_meanwhile(
    two: tuple[Program, Program], arrive: Arrive, door: str, end: str
) -> None:
    here, there = two
    ada = arrive("Ada", here.url, door)
    ada.say("before")
    ada.reads(("Ada", "before"))
    getattr(here, end)()
    ada.is_down()
    say(there.url, "lobby", "meanwhile", "Grace")
    ada.say("I cannot hear you")
    expect(ada.page.locator(".waiting p")).to_have_text(["I cannot hear you"])
    here.start()
    ada.is_live()
    ada.reads(("Ada", "before"), ("Grace", "meanwhile"), ("Ada", "I cannot hear you"))
    assert ada.sent.count("before") == 1


def test_who_is_there_when_a_process_ends_is_told_to_come_back(chat: Program) -> None:
    with EventStream(f"{chat.url}/live?channel=lobby&last_event_id=earliest") as events:
        say(chat.url, "lobby", "Hello")
        assert events.data(1) == ["Hello"]
        chat.stop()
        assert "retry:" in events.response.read().decode()


def test_a_quiet_page_comes_back_as_it_was(chat: Program, arrive: Arrive) -> None:
    ada = arrive("Ada", chat.url)
    chat.stop()
    ada.is_down()
    chat.start()
    ada.is_live()
    ada.say("Hello")
    ada.reads(("Ada", "Hello"))


@DOORS
@pytest.mark.parametrize("data", ["with its data", "without its data"])
def test_what_is_said_while_redis_is_away_is_said_when_it_is_back(
    start: Start, arrive: Arrive, door: str, data: str
) -> None:
    options = ["--appendonly", "yes", "--appendfsync", "always"] if data == "with its data" else []
    with RunningServer(find_servers()[0], *options) as redis:
        here, there = (start("chat.py", free_port(), redis.url) for _ in range(2))
        ada, grace = arrive("Ada", here.url, door), arrive("Grace", there.url)
        ada.say("before")
        for person in (ada, grace):
            person.reads(("Ada", "before"))
        redis.kill()
        ada.say("one")
        ada.say("two")
        expect(ada.page.locator(".waiting p")).to_have_text(["one", "two"])
        redis.start()
        for person in (ada, grace):
            person.reads(("Ada", "before"), ("Ada", "one"), ("Ada", "two"))
            # What Redis has forgotten may have been more than anybody has seen.
            expect(person.page.locator("ol:not([hidden]) .gap")).to_have_count(0 if options else 1)


def test_where_no_websocket_gets_through_there_are_events(chat: Program, browser: Browser) -> None:
    context = browser.new_context()
    context.add_init_script("WebSocket = class extends WebSocket { constructor(url) { super(`${url}&channel=%20`); } }")
    ada = Person(context, "Ada", chat.url, "sse")
    ada.page.goto(f"{chat.url}/")
    ada.is_live()
    ada.say("Hello")
    ada.reads(("Ada", "Hello"))
    ada.leave()


def test_all_of_it_works_by_keyboard(chat: Program, arrive: Arrive) -> None:
    ada = arrive("", chat.url)
    keyboard = ada.page.keyboard

    def press(*keys: str) -> None:
        for key in keys:
            keyboard.press(key)

    # Who has no name yet is asked for one, and says nothing without it.
    expect(ada.page.locator("#name")).to_be_focused()
    press("Tab")
    keyboard.type("Hello")
    press("Enter")
    expect(ada.page.locator("#name")).to_be_focused()
    keyboard.type("Ada")
    press("Enter")
    ada.reads(("Ada", "Hello"))

    # The log scrolls; before it stand the rooms, and the way to others.
    press("Tab", "Shift+Tab", "Shift+Tab")
    expect(ada.page.locator("#log")).to_be_focused()
    press("Shift+Tab")
    keyboard.type("küche/1")
    press("Enter")
    expect(ada.page.locator("#title")).to_have_text("# küche/1")
    ada.is_live()
    expect(ada.page.locator("#text")).to_be_focused()
    keyboard.type("Hello?")
    press("Enter")
    ada.reads(("Ada", "Hello?"))
    with EventStream(f"{chat.url}/live?channel={quote('küche/1')}&last_event_id=earliest") as events:
        assert json.loads(events.data(1)[0])["text"] == "Hello?"

    press("Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Enter")
    expect(ada.page.locator("#title")).to_have_text("# lobby")
    ada.reads(("Ada", "Hello"))


def test_what_is_said_in_other_rooms_is_counted(chat: Program, arrive: Arrive) -> None:
    grace, ada = arrive("Grace", chat.url), arrive("Ada", chat.url, "sse")
    grace.page.click("#rooms a >> nth=1")
    for number in range(3):
        grace.say(str(number))
    garden = ada.page.locator("#rooms a >> nth=1")
    expect(garden.locator(".unread")).to_have_text("3")
    assert ada.lines.count() == 0
    garden.click()
    expect(garden.locator(".unread")).to_be_empty()
    ada.reads(*(("Grace", str(number)) for number in range(3)))
    assert ada.page.title() == "garden · Chat"
    expect(arrive("Linus", chat.url).page.locator("#rooms")).to_have_text("lobbygardenkitchen")


def test_markup_and_odd_messages_are_shown_as_text(chat: Program, arrive: Arrive) -> None:
    ada = arrive("Ada", chat.url)
    markup = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    say(chat.url, "lobby", markup)
    say(chat.url, "lobby", markup, name=markup)
    odds: list[Any] = [0, None, [1], {"text": {"a": 1}}, {"name": 7, "text": ["b"], "at": "never", "key": {}}]
    for odd in (*odds, {"name": "x" * 50, "text": "", "at": 1e300}):
        body = json.dumps(odd).encode()
        assert request(f"{chat.url}/rooms/lobby", body, Content_Type="application/json")[0] == 200
    names = ["somebody", markup[:40], "somebody", "somebody", "somebody", "somebody", "7", "x" * 40]
    texts = [markup, markup, "0", "null", "[1]", '{"text":{"a":1}}', '["b"]', ""]
    ada.reads(*zip(names, texts, strict=True))
    assert ada.page.locator("li :is(img, p b, time)").count() == 0
    assert ada.page.title() == "lobby · Chat"


@DOORS
def test_what_is_said_to_other_programs_is_not_shown(chat: Program, arrive: Arrive, door: str) -> None:
    ada = arrive("Ada", chat.url, door)
    assert request(f"{chat.url}/rooms/lobby?event=typing", b"Grace", Content_Type="text/plain")[0] == 200
    say(chat.url, "lobby", "Hello")
    ada.reads(("somebody", "Hello"))


def test_nobody_has_a_name_of_spaces_or_says_them(chat: Program, arrive: Arrive) -> None:
    ada = arrive("", chat.url)
    for name, text in (("  ", "Hello"), ("Ada", "  ")):
        ada.page.fill("#name", name)
        ada.say(text)
    ada.say("Hello")
    ada.reads(("Ada", "Hello"))


def test_rooms_that_the_server_would_refuse_are_none(chat: Program, arrive: Arrive) -> None:
    ada = arrive("Ada", chat.url)
    odd = ["two words", "zero\u200dwidth", "x" * 61, "bell\a"]
    rooms = [f"room-{number}" for number in range(150)]
    ada.page.goto(f"{chat.url}/?{'&'.join(f'room={quote(room)}' for room in [*rooms, *odd])}")
    ada.is_live()
    expect(ada.page.locator("#rooms a")).to_have_text(rooms[50:])
    ada.page.fill("#join input", odd[1])
    ada.page.press("#join input", "Enter")
    ada.page.fill("#join input", "garden")
    ada.page.press("#join input", "Enter")
    expect(ada.page.locator("#title")).to_have_text("# garden")
    ada.is_live()
    expect(ada.page.locator("#rooms a")).to_have_text([*rooms[51:], "garden"])


@pytest.mark.parametrize("width", [320, 480, 704, 705, 1280])
def test_at_every_width_nothing_stands_out(chat: Program, arrive: Arrive, width: int) -> None:
    ada = arrive("Ada", chat.url)
    ada.page.set_viewport_size({"width": width, "height": 640})
    ada.page.goto(f"{chat.url}/?{'&'.join(f'room={letter * 30}' for letter in 'abcdef')}")
    ada.is_live()
    say(chat.url, "a" * 30, "x" * 500)
    say(chat.url, "a" * 30, "y", "z" * 40)
    expect(ada.lines).to_have_count(2)
    outside = ada.page.evaluate(
        """() => [...document.querySelectorAll("header, li, p, b, h2, form, input, button, #status")]
            .filter((part) => {
                const { left, right, width } = part.getBoundingClientRect();
                return width && (left < 0 || right > innerWidth);
            }).map((part) => part.id || part.tagName)"""
    )
    assert outside == []
    assert ada.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
