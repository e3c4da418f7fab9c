"""Wire formats: golden vectors, and what independent readers make of the bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import EARLIEST, BadMessage, Entry, Gap, Log, Message, Position
from waterspout_handlers._formats import EVENT_STREAMS, JSON_LINES, POLLS, Body, Format, farewell
from waterspout_handlers._goodbye import RESTART

PLAIN = EVENT_STREAMS[False, False]
WHOLE = EVENT_STREAMS[True, False]
CHUNKED = EVENT_STREAMS[False, True]
LINES = JSON_LINES[False]
POLL = POLLS[False]

FORMATS = pytest.mark.parametrize(
    "format",
    [*EVENT_STREAMS.values(), *JSON_LINES.values(), *POLLS.values()],
    ids=lambda format: f"{type(format).__name__}{' chunked' * format.chunked}{' whole' * getattr(format, 'whole', 0)}",
)

VECTORS: Final = json.loads((Path(__file__).parent / "vectors_eventstream.json").read_text())
"""Event streams, and what WHATWG HTML says a browser makes of them; those of its own examples among them."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
events = st.none() | st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(
    lambda name: name != "gap"
)


def run(format: Format, *entries: Entry, channel: str | None = None) -> bytes:
    """What a reader gets that comes to a log of `entries` from its beginning."""
    log = Log(channel=channel, epoch="e")
    for entry in entries:
        log.append(entry)
    return log.encoded(format.run, 0)[0]


def unchunked(wire: bytes) -> tuple[bytes, bool]:
    """The payload of the chunks (RFC 9112, 7.1), and whether the last of them was there."""
    payload = b""
    while wire:
        size, _, rest = wire.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        payload += rest[:length]
        wire = rest[length + 2 :]
        if not length:
            assert not wire, "something stands behind the last chunk"
            return payload, True
    return payload, False


# Server-sent events


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_parser_of_these_tests_reads_event_streams_as_the_standard_says(event_parser: Any, vector: Any) -> None:
    stream = vector["stream"].encode()
    pieces = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
    pieces += [[stream[:at], stream[at:]] for at in range(1, len(stream))]
    for cut in pieces:
        parser = event_parser()
        events = [event for piece in cut for event in parser.feed(piece)]
        assert [[event.data, event.id, event.type] for event in events] == vector["events"]
        assert (parser.last_event_id, parser.reconnection_time) == (
            vector["last_event_id"],
            vector["reconnection_time"],
        )


@pytest.mark.parametrize("vector", [each for each in VECTORS if each["events"]], ids=lambda vector: vector["name"])
def test_what_was_read_of_an_event_stream_can_be_published_and_is_read_again(event_parser: Any, vector: Any) -> None:
    messages = [Message(data, None if name == "message" else name) for data, _, name in vector["events"]]
    again = event_parser().feed(run(PLAIN, *messages))
    assert [[event.data, event.type] for event in again] == [[data, name] for data, _, name in vector["events"]]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        pytest.param(Message("hello"), b"data: hello\nid: e-1\n\n", id="text"),
        pytest.param(Message(""), b"data: \nid: e-1\n\n", id="empty"),
        pytest.param(Message(" two  spaces "), b"data:  two  spaces \nid: e-1\n\n", id="spaces"),
        pytest.param(Message("a\nb"), b"data: a\ndata: b\nid: e-1\n\n", id="LF"),
        pytest.param(Message("a\rb"), b"data: a\ndata: b\nid: e-1\n\n", id="CR"),
        pytest.param(Message("a\r\nb"), b"data: a\ndata: b\nid: e-1\n\n", id="CRLF"),
        pytest.param(Message("a\n\rb"), b"data: a\ndata: \ndata: b\nid: e-1\n\n", id="LF and CR"),
        pytest.param(Message("\na\n"), b"data: \ndata: a\ndata: \nid: e-1\n\n", id="line ends at both ends"),
        pytest.param(Message("x\nid: 9\nevent: y"), b"data: x\ndata: id: 9\ndata: event: y\nid: e-1\n\n", id="forgery"),
        pytest.param(Message("a\u2028b\x0bc\x85d"), b"data: a\xe2\x80\xa8b\x0bc\xc2\x85d\nid: e-1\n\n", id="no ends"),
        pytest.param(Message("\ufeff\0"), b"data: \xef\xbb\xbf\0\nid: e-1\n\n", id="BOM and NUL"),
        pytest.param(Message("žluť 🐎"), "data: žluť 🐎\nid: e-1\n\n".encode(), id="unicode"),
        pytest.param(Message(b"text"), b"data: text\nid: e-1\n\n", id="bytes of text"),
        pytest.param(
            Message(b"\xff\x00"), b"data: data:application/octet-stream;base64,/wA=\nid: e-1\n\n", id="other bytes"
        ),
        pytest.param(Message({"a": [1, None, "ž\n"]}), 'data: {"a":[1,null,"ž\\n"]}\nid: e-1\n\n'.encode(), id="JSON"),
        pytest.param(Message(0), b"data: 0\nid: e-1\n\n", id="zero"),
        pytest.param(Message(None), b"data: null\nid: e-1\n\n", id="null"),
        pytest.param(Message("x", "goal"), b"event: goal\ndata: x\nid: e-1\n\n", id="event"),
        pytest.param(Gap(3), b'event: gap\ndata: {"missed":3}\nid: e-1\n\n', id="gap"),
        pytest.param(Gap(), b'event: gap\ndata: {"missed":null}\nid: e-1\n\n', id="gap of unknown size"),
    ],
)
def test_f38_an_event_looks_as_the_standard_has_it_and_forges_no_fields(entry: Entry, expected: bytes) -> None:
    assert run(PLAIN, entry) == expected


@pytest.mark.parametrize(
    ("entry", "channel", "expected"),
    [
        (Message("x"), None, b'data: {"data":"x"}\nid: e-1\n\n'),
        (
            Message("x\ny", "goal"),
            "news",
            b'event: goal\ndata: {"channel":"news","event":"goal","data":"x\\ny"}\nid: e-1\n\n',
        ),
        (Gap(2), 'a"b', b'event: gap\ndata: {"channel":"a\\"b","event":"gap","data":{"missed":2}}\nid: e-1\n\n'),
    ],
)
def test_the_data_of_an_event_may_be_the_whole_message(entry: Entry, channel: str | None, expected: bytes) -> None:
    assert run(WHOLE, entry, channel=channel) == expected


def test_each_frame_has_the_position_of_its_entry_which_need_not_be_its_index() -> None:
    log = Log()
    log.begin(Position("aa", 5))
    log.append(Message("live"))
    log.prepend([Message("old"), Message("older")], [2.0, 1.0])
    log.append(Message("elsewhere"), Position("bb", 9))
    run, _ = log.encoded(PLAIN.run, log.cursor({EARLIEST: 0}))
    ids = [line.removeprefix(b"id: ") for line in run.splitlines() if line.startswith(b"id: ")]
    assert ids == [b"aa-4", b"aa-5", b"aa-6", b"bb-9"]


def test_what_is_sent_together_is_one_chunk() -> None:
    events = b"data: a\nid: e-1\n\ndata: b\nid: e-2\n\n"
    assert run(CHUNKED, Message("a"), Message("b")) == b"%x\r\n%b\r\n" % (len(events), events)


def test_nothing_is_no_chunk_because_an_empty_one_would_be_the_last() -> None:
    assert CHUNKED.pack([]) == b""


@given(texts=st.lists(st.text() | st.text("\r\n: \ufeffa\0"), min_size=1, max_size=5), cut=st.integers(1, 50))
def test_events_are_read_back_whatever_the_text_and_however_it_is_cut(
    event_parser: Any, texts: list[str], cut: int
) -> None:
    stream = run(PLAIN, *map(Message, texts))
    parser = event_parser()
    got = [event for at in range(0, len(stream), cut) for event in parser.feed(stream[at : at + cut])]
    # The format knows one kind of line end only.
    expected = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    assert [event.data for event in got] == expected
    assert [event.id for event in got] == [f"e-{offset}" for offset in range(1, len(texts) + 1)]
    assert {event.type for event in got} == {"message"}


@given(texts=st.lists(st.text("\r\n:\0 dataieventry\ufeff"), max_size=5), event=events)
def test_f38_no_payload_makes_a_line_that_is_none_of_ours(texts: list[str], event: str | None) -> None:
    wire = run(PLAIN, *(Message(text, event) for text in texts), Gap(1))
    ours = re.compile(rb"(data|event): .*|id: e-[0-9]+|")
    # The three ends of the standard, and no others.
    for line in re.split(rb"\r\n|\r|\n", wire):
        assert ours.fullmatch(line), line


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", "\ufeff", "", "gap", "a\u2028b", "x" * 256])
def test_f38_an_event_name_that_could_forge_fields_is_refused_where_it_is_published(name: str) -> None:
    with pytest.raises(BadMessage):
        Message("x", name)


def test_a_stream_begins_with_a_retry_time_and_where_it_begins(event_parser: Any) -> None:
    parser = event_parser()
    assert parser.feed(PLAIN.hello("e-1,f-2")) == []
    assert parser.last_event_id == "e-1,f-2"
    assert 1000 <= parser.reconnection_time <= 5000
    nowhere = event_parser()
    assert nowhere.feed(PLAIN.hello("")) == []
    # An empty `id:` would make a browser forget the one it has.
    assert b"id" not in PLAIN.hello("")
    assert nowhere.feed(b"data: x\n\n")[0].data == "x"


def test_f54_the_retry_times_of_many_streams_are_spread(event_parser: Any) -> None:
    for say in (lambda: PLAIN.hello(""), lambda: PLAIN.goodbye(RESTART)):
        times = []
        for _ in range(200):
            parser = event_parser()
            parser.feed(say())
            times.append(parser.reconnection_time)
        assert min(times) >= 1000
        assert max(times) <= 5000
        assert len(set(times)) > 100
        assert max(times) - min(times) > 3000


@given(reason=st.text() | st.text("\r\n: dat\u2028"), retry=st.floats(0.001, 1e6))
def test_f38_the_reason_of_a_farewell_is_a_comment_whatever_it_holds(
    event_parser: Any, reason: str, retry: float
) -> None:
    wire = farewell(reason.encode("utf-8", "replace").decode(), retry)
    said, when, *rest = re.split(rb"\r\n|\r|\n", wire)
    assert said.startswith(b": ")
    assert when == b"retry: %d" % round(retry * 1000)
    assert rest == [b"", b""]
    assert event_parser().feed(wire + b"data: x\n\n") == [("x", "", "message")]


def test_a_heartbeat_is_a_comment(event_parser: Any) -> None:
    assert PLAIN.beat == b":\n\n"
    assert CHUNKED.beat == b"3\r\n:\n\n\r\n"
    parser = event_parser()
    assert parser.feed(PLAIN.beat + run(PLAIN, Message("x")) + PLAIN.beat * 2) == [("x", "e-1", "message")]
    assert parser.last_event_id == "e-1"


# JSON


@given(data=json_values, event=events, channel=st.none() | st.just("news"))
def test_the_whole_message_is_read_back_from_all_formats(
    event_parser: Any, data: Any, event: str | None, channel: str | None
) -> None:
    message = Message(data, event)
    expected = {"data": data} | ({"channel": channel} if channel else {}) | ({"event": event} if event else {})

    [told] = event_parser().feed(run(WHOLE, message, channel=channel))
    assert json.loads(told.data) == expected
    assert told.type == (event or "message")

    [line] = run(LINES, message, channel=channel).decode().splitlines()
    assert json.loads(line) == {**expected, "id": "e-1"}

    answer = json.loads(run(POLL, message, channel=channel))
    assert answer == {"messages": [{**expected, "id": "e-1"}]}


def test_each_message_is_one_line() -> None:
    assert run(LINES, Message("a\nb"), Gap(2), Message({"x": [1]}, "moved"), channel="news") == (
        b'{"channel":"news","data":"a\\nb","id":"e-1"}\n'
        b'{"channel":"news","event":"gap","data":{"missed":2},"id":"e-2"}\n'
        b'{"channel":"news","event":"moved","data":{"x":[1]},"id":"e-3"}\n'
    )
    assert LINES.hello("e-1") == LINES.beat == b"\n"
    assert JSON_LINES[True].beat == b"1\r\n\n\r\n"


def test_all_messages_of_a_poll_are_one_object() -> None:
    expected = b'{"messages":[{"data":"a","id":"e-1"},{"event":"gap","data":{"missed":null},"id":"e-2"}]}\n'
    assert run(POLL, Message("a"), Gap()) == expected
    assert run(POLLS[True], Message("a"), Gap()) == b"%x\r\n%b\r\n0\r\n\r\n" % (len(expected), expected)
    assert POLL.goodbye(RESTART) == b'{"messages":[]}\n'
    assert POLL.hello("e-1") == b""


@pytest.mark.parametrize("format", [WHOLE, LINES, POLL], ids=lambda format: type(format).__name__)
@pytest.mark.parametrize("text", ["a\u2028b", "\\\u2029\\", "\x85", "ž\x0b\x0c\x1c\x1d\x1e\r\n"])
def test_a_line_is_one_line_also_to_readers_that_know_more_line_ends_than_the_standard(
    format: Format, text: str
) -> None:
    """Python's `splitlines`, by which some clients read, is one of them."""
    lines = run(format, Message({text: [text]})).decode().splitlines()
    [line] = [line for line in lines if "data" in line]
    found = json.loads(line.removeprefix("data: "))
    found = found.get("messages", [found])[0]
    assert found["data"] == {text: [text]}


# All of them


@FORMATS
def test_what_is_sent_is_whole_chunks_and_ends_with_the_last_one(format: Body) -> None:
    wire = run(format, Message("a"), Message("b"))
    if format.chunked:
        payload, ended = unchunked(wire)
        assert ended == format.once
        assert payload.count(b"e-1") == payload.count(b"e-2") == 1
        assert unchunked(format.beat)[1] is False
        assert unchunked(format.goodbye(RESTART))[1] is True
    else:
        assert not re.search(rb"^[0-9a-f]+\r\n", wire + format.beat + format.goodbye(RESTART), re.MULTILINE)


@FORMATS
def test_what_is_made_for_one_reader_is_shared_by_all_at_the_same_place(format: Format) -> None:
    log = Log()
    log.append(Message("a"))
    assert log.encoded(format.run, 0)[0] is log.encoded(format.run, 0)[0]
    assert log.encoded(format.bodies, 0)[0] is log.encoded(format.bodies, 0)[0]
