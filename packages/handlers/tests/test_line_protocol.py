"""The line protocol by itself: bytes to lines, lines to commands, messages to lines."""

from __future__ import annotations

import json
import random
import re

import pytest

from waterspout_core import EARLIEST, Entry, Gap, Log, Message
from waterspout_handlers._goodbye import RESTART
from waterspout_handlers._line_protocol import (
    MESSAGE_LINES,
    PLAIN_LINES,
    USAGE,
    Auth,
    BadCommand,
    BadLine,
    Command,
    Help,
    LineReader,
    Ping,
    Publish,
    Quit,
    Subscribe,
    UnknownCommand,
    Unsubscribe,
    escape,
    parse,
    parse_message,
    publish_line,
    to_line,
    unescape,
)

TEXTS = [
    "plain",
    "two\nlines",
    "two\r\nlines",
    "\r",
    "\n",
    "\\",
    r"\n",
    r"\\n",
    "\\\n\\\r\\\\",
    "C:\\new\\readme",
    " spaces around ",
    "grüße, 世界, 🌊",
    "\x00\x85\u2028\u2029",
    '"quoted"',
]


def lines_of(*pieces: bytes, max_line: int = 64) -> list[str]:
    reader = LineReader(max_line)
    lines = []
    for piece in pieces:
        reader.receive(piece)
        while (line := reader.take()) is not None:
            lines.append(line)
    return lines


# Lines


def test_a_line_may_arrive_in_any_pieces() -> None:
    whole = "SUBSCRIBE\r\nPUBLISH grüße 🌊\n\r\n\nend\r\n".encode()
    expected = ["SUBSCRIBE", "PUBLISH grüße 🌊", "", "", "end"]
    for cut in range(len(whole) + 1):
        assert lines_of(whole[:cut], whole[cut:]) == expected
    assert lines_of(*(whole[at : at + 1] for at in range(len(whole)))) == expected


def test_a_line_ends_in_lf_or_crlf_and_in_nothing_else() -> None:
    assert lines_of("a\rb\x0b\x0c\x85\u2028c\nd\r\n".encode()) == ["a\rb\x0b\x0c\x85\u2028c", "d"]


def test_c11_of_the_end_of_a_line_no_more_is_taken_off_than_there_is() -> None:
    assert lines_of(b"a\r\r\n") == ["a\r"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_f62_a_line_of_just_the_limit_is_taken_and_one_byte_more_is_not(end: bytes) -> None:
    assert lines_of(b"x" * 64 + end) == ["x" * 64]
    with pytest.raises(BadLine, match="at most 64 bytes"):
        lines_of(b"x" * 65 + end)


def test_f62_an_endless_line_is_refused_before_it_ends() -> None:
    reader = LineReader(64)
    for _ in range(65):
        reader.receive(b"x")
        assert reader.take() is None
    reader.receive(b"x")
    with pytest.raises(BadLine, match="at most 64 bytes"):
        reader.take()


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88\x80\x80\x80"])
def test_f62_c11_bad_utf_8_is_told_with_its_place(bad: bytes) -> None:
    reader = LineReader()
    reader.receive(b"good\nbad" + bad + b"\n")
    assert reader.take() == "good"
    with pytest.raises(BadLine, match=r"this one is not: .* at byte 4"):
        reader.take()


# Escapes


@pytest.mark.parametrize("text", TEXTS)
def test_an_escaped_text_stands_on_one_line_and_is_read_back(text: str) -> None:
    assert not {"\r", "\n"} & set(escape(text))
    assert unescape(escape(text)) == text


def test_any_mixture_of_what_is_escaped_is_read_back() -> None:
    generator = random.Random(5567)
    for _ in range(500):
        text = "".join(generator.choices("\\\r\nrnx", k=generator.randrange(12)))
        assert unescape(escape(text)) == text


@pytest.mark.parametrize("text", [r"a\tb", "\\", r"\\" + "\\", r"\x", r"C:\Temp"])
def test_an_escape_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadCommand, match="a backslash is written"):
        unescape(text)


# Commands


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("SUBSCRIBE", Subscribe()),
        ("SUBSCRIBE ", Subscribe()),
        ("SUBSCRIBE news", Subscribe("news")),
        ("SUBSCRIBE FROM", Subscribe("FROM")),
        ("SUBSCRIBE news FROM abc-12", Subscribe("news", "abc-12")),
        ("SUBSCRIBE news FROM abc-12,def-3", Subscribe("news", "abc-12,def-3")),
        ("SUBSCRIBE news FROM earliest", Subscribe("news", EARLIEST)),
        ("UNSUBSCRIBE", Unsubscribe()),
        ("UNSUBSCRIBE grüße", Unsubscribe("grüße")),
        ("PUBLISH news hello", Publish("news", "hello")),
        ("PUBLISH news  two  spaces ", Publish("news", " two  spaces ")),
        (r"PUBLISH news two\nlines \\ one", Publish("news", "two\nlines \\ one")),
        ("PUBLISH logs GET / HTTP/1.1", Publish("logs", "GET / HTTP/1.1")),
        ('PUBLISH {"channel":"a","data":[1,null]}', Publish("a", [1, None])),
        ('PUBLISH {"data":"","channel":"a","event":"goal","key":"k 1"}', Publish("a", "", "goal", "k 1")),
        ('PUBLISH {"channel":"a","data":null,"event":null,"key":null}', Publish("a", None)),
        ("PING", Ping()),
        (r"PING any \thing", Ping(r"any \thing")),
        ("AUTH secret word", Auth("secret word")),
        ("QUIT", Quit()),
        ("HELP", Help()),
    ],
)
def test_a_command_is_what_its_line_says(line: str, command: Command) -> None:
    assert parse(line) == command


@pytest.mark.parametrize(
    "line", ["", " ", "subscribe", "Subscribe news", "SUBSCRIBE\tnews", "HELLO", "SUBSCRIBED", "help", "é"]
)
def test_c9_c10_anything_else_is_an_unknown_command(line: str) -> None:
    with pytest.raises(UnknownCommand, match=r"^UNKNOWN COMMAND$"):
        parse(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("SUBSCRIBE a b", "usage: SUBSCRIBE [<channel> [FROM <id>]]"),
        ("SUBSCRIBE a FROM", "SUBSCRIBE"),
        ("SUBSCRIBE a from b-1", "SUBSCRIBE"),
        ("SUBSCRIBE a FROM yesterday", "'yesterday' is not a position"),
        ("SUBSCRIBE " + "x" * 256, "at most 255 bytes"),
        ("SUBSCRIBE a\x07", "control character"),
        ("UNSUBSCRIBE a b", "usage: UNSUBSCRIBE [<channel>]"),
        ("PUBLISH", "usage: PUBLISH <channel> <text>"),
        ("HELP me", "usage: HELP"),
        ("PUBLISH news", "PUBLISH"),
        ("PUBLISH news ", "not empty"),
        ("PUBLISH  text", "needs a name"),
        (r"PUBLISH news C:\Temp", "a backslash is written"),
        ("PUBLISH {", "not JSON"),
        ('PUBLISH {"channel":"a","data":NaN}', "NaN is no JSON number"),
        ('PUBLISH {"channel":"a","data":' + "[" * 20_000, "not JSON"),
        ('PUBLISH {"channel":"a"}', "channel and data"),
        ('PUBLISH {"channel":"a","data":1,"ttl":3}', "channel and data"),
        ('PUBLISH {"channel":7,"data":1}', "needs a name"),
        ('PUBLISH {"channel":"a","data":1,"event":7}', "event is a text"),
        ('PUBLISH {"channel":"a","data":1,"key":[]}', "key is a text"),
        ('PUBLISH {"channel":"a","data":1,"key":""}', "1 to 255"),
        ('PUBLISH {"channel":"a","data":1,"key":"' + "x" * 256 + '"}', "1 to 255"),
        ("AUTH", "AUTH <token>"),
        ("QUIT now", "QUIT"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(line: str, said: str) -> None:
    with pytest.raises(BadCommand, match=re.escape(said)) as caught:
        parse(line)
    assert "\n" not in str(caught.value)


def test_what_is_told_of_a_command_tells_all_there_are() -> None:
    for command, usage in USAGE.items():
        assert usage.split()[0] == command
        try:
            parse(command)
        except BadCommand as error:
            assert str(error).startswith(f"usage: {usage}")  # noqa: PT017  # only some of them may stand alone


@pytest.mark.parametrize("line", ["POST / HTTP/1.1", "GET /PUBLISH HTTP/1.0", "OPTIONS * HTTP/1.1"])
def test_a_browser_that_a_page_has_sent_here_is_stopped_at_its_first_line(line: str) -> None:
    with pytest.raises(BadLine, match="not HTTP"):
        parse(line)


# Messages


def run(format: object, *entries: Entry, channel: str | None = "news") -> bytes:
    log = Log(channel=channel, epoch="e")
    log.extend(entries)
    return format.run(log, *log.read(0))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (Message("hello"), b"hello\r\n"),
        (Message("grüße"), "grüße\r\n".encode()),
        (Message("two\r\nlines"), rb"two\r\nlines" + b"\r\n"),
        (Message(r"a \n b"), rb"a \\n b" + b"\r\n"),
        (Message({"a": [1, "x\ny"]}), rb'{"a":[1,"x\\ny"]}' + b"\r\n"),
        (Message(b"bytes"), b"bytes\r\n"),
        (Message(b"\xff"), b"data:application/octet-stream;base64,/w==\r\n"),
        (Message("an event", "goal"), b"an event\r\n"),
        (Message(""), b""),
        (Gap(12), b"GAP 12\r\n"),
        (Gap(), b"GAP\r\n"),
    ],
)
def test_a_plain_line_is_the_text_of_the_message(entry: Entry, line: bytes) -> None:
    assert run(PLAIN_LINES, entry) == line


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (Message("hello"), 'MESSAGE {"channel":"news","data":"hello","id":"e-1"}\r\n'),
        (Message("a\r\nb\\", "goal"), r'MESSAGE {"channel":"news","event":"goal","data":"a\r\nb\\","id":"e-1"}' "\r\n"),
        (Message({"a": None}), 'MESSAGE {"channel":"news","data":{"a":null},"id":"e-1"}\r\n'),
        (Message(""), 'MESSAGE {"channel":"news","data":"","id":"e-1"}\r\n'),
        (Message("🌊"), 'MESSAGE {"channel":"news","data":"🌊","id":"e-1"}\r\n'),
        (Gap(12), 'MESSAGE {"channel":"news","event":"gap","data":{"missed":12},"id":"e-1"}\r\n'),
        (Gap(), 'MESSAGE {"channel":"news","event":"gap","data":{"missed":null},"id":"e-1"}\r\n'),
    ],
)
def test_a_message_line_is_a_whole_object(entry: Entry, line: str) -> None:
    assert run(MESSAGE_LINES, entry) == line.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_a_message_with_line_breaks_is_one_unambiguous_line_in_both_formats(text: str) -> None:
    plain, whole = run(PLAIN_LINES, Message(text)), run(MESSAGE_LINES, Message(text))
    [line] = lines_of(plain, max_line=1000)
    assert unescape(line) == text
    [line] = lines_of(whole, max_line=1000)
    assert json.loads(line.removeprefix("MESSAGE "))["data"] == text


def test_several_messages_are_as_many_lines_sent_together() -> None:
    assert run(PLAIN_LINES, Message("a"), Message(""), Gap(1), Message("b")) == b"a\r\nGAP 1\r\nb\r\n"
    two = run(MESSAGE_LINES, Message("a"), Message("b"), channel=None)
    assert two == b'MESSAGE {"data":"a","id":"e-1"}\r\nMESSAGE {"data":"b","id":"e-2"}\r\n'


def test_the_goodbye_is_a_line() -> None:
    for format in (PLAIN_LINES, MESSAGE_LINES):
        assert format.goodbye(RESTART) == b"GOAWAY %b\r\n" % RESTART.reason.encode()


def test_what_would_end_a_reply_early_is_escaped() -> None:
    assert to_line("ERROR", "first\r\nCONFIRMED") == rb"ERROR first\r\nCONFIRMED" + b"\r\n"
    assert to_line("PONG", r"C:\new") == rb"PONG C:\new" + b"\r\n"


# The client's side


@pytest.mark.parametrize("data", [*TEXTS, "", None, 1, [1, {"a": "b\n"}]])
def test_what_a_client_publishes_is_what_the_server_reads(data: object) -> None:
    line = publish_line("{odd", Message(data, "goal"), key="k")
    assert lines_of(to_line(line), max_line=1000) == [line]
    assert parse(line) == Publish("{odd", data, "goal", "k")
    assert parse(publish_line("a", Message(data), key=None)) == Publish("a", data)


@pytest.mark.parametrize("entry", [Message("a\nb"), Message([1], "goal"), Gap(3), Gap()])
def test_a_client_reads_the_message_and_its_id(entry: Entry) -> None:
    line = run(MESSAGE_LINES, entry).decode().removesuffix("\r\n")
    assert parse_message(line.removeprefix("MESSAGE ")) == (entry, "e-1")


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"data":1}', '{"event":"gap","data":1,"id":"a"}', '"x"', "[" * 20_000]
)
def test_what_is_no_message_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"no message|Expecting value"):
        parse_message(text)
