"""Wire formats: golden vectors, and what independent readers make of the bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import EARLIEST, Entry, Gap, Log, Message, Position
from waterspout_handlers._formats import EVENT_STREAMS, WEBSOCKET_TEXT, Format

PLAIN = EVENT_STREAMS[False, False]
WHOLE = EVENT_STREAMS[True, False]
CHUNKED = EVENT_STREAMS[False, True]

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
def test_an_event_looks_as_the_standard_has_it(entry: Entry, expected: bytes) -> None:
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
    assert CHUNKED.end == b"0\r\n\r\n"


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


@given(data=json_values, event=events, channel=st.none() | st.just("news"))
def test_the_whole_message_is_read_back_from_both_formats(
    event_parser: Any, data: Any, event: str | None, channel: str | None
) -> None:
    message = Message(data, event)
    expected = {"data": data} | ({"channel": channel} if channel else {}) | ({"event": event} if event else {})

    [told] = event_parser().feed(run(WHOLE, message, channel=channel))
    assert json.loads(told.data) == expected
    assert told.type == (event or "message")

    [frame] = parse_frames(run(WEBSOCKET_TEXT, message, channel=channel))
    assert json.loads(frame) == {**expected, "id": "e-1"}


@pytest.mark.parametrize("size", [125, 126, 127, 65535, 65536, 65537])
@pytest.mark.parametrize("filling", ["x", "ž"])
def test_a_frame_tells_its_length_in_bytes_in_the_shortest_form(size: int, filling: str) -> None:
    around = len('{"data":"","id":"e-1"}')
    text = (filling * size).encode()[: size - around].decode(errors="ignore").ljust(1)
    text += "x" * (size - around - len(text.encode()))
    wire = run(WEBSOCKET_TEXT, Message(text))
    heads = {125: b"\x81\x7d", 126: b"\x81\x7e\x00\x7e", 127: b"\x81\x7e\x00\x7f", 65535: b"\x81\x7e\xff\xff"}
    assert wire.startswith(heads.get(size, b"\x81\x7f" + struct.pack("!Q", size)))
    [payload] = parse_frames(wire)
    assert len(payload) == size
    assert json.loads(payload)["data"] == text


def test_frames_follow_each_other_without_anything_between() -> None:
    payloads = parse_frames(run(WEBSOCKET_TEXT, Message("a"), Gap(1), Message(b"b", "x")))
    assert [json.loads(payload) for payload in payloads] == [
        {"data": "a", "id": "e-1"},
        {"event": "gap", "data": {"missed": 1}, "id": "e-2"},
        {"event": "x", "data": "b", "id": "e-3"},
    ]


def test_the_websocket_says_goodbye_with_service_restart() -> None:
    assert WEBSOCKET_TEXT.end == b"\x88\x02" + struct.pack("!H", 1012)


@pytest.mark.parametrize("format", [*EVENT_STREAMS.values(), WEBSOCKET_TEXT], ids=lambda format: type(format).__name__)
def test_what_is_made_for_one_reader_is_shared_by_all_at_the_same_place(format: Format) -> None:
    log = Log()
    log.append(Message("a"))
    assert log.encoded(format.run, 0)[0] is log.encoded(format.run, 0)[0]
    assert log.encoded(format.bodies, 0)[0] is log.encoded(format.bodies, 0)[0]


def parse_frames(wire: bytes) -> list[bytes]:
    """The payloads of unmasked text frames (RFC 6455, 5.2)."""
    payloads = []
    while wire:
        first, size = wire[0], wire[1]
        assert first == 0x81
        form = {126: "!H", 127: "!Q"}.get(size)
        start = 2
        if form is not None:
            start += struct.calcsize(form)
            (size,) = struct.unpack(form, wire[2:start])
        payloads.append(wire[start : start + size])
        assert len(payloads[-1]) == size
        wire = wire[start + size :]
    return payloads
