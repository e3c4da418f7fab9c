"""What travels on a broker's channel."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import Envelope, Message
from waterspout_core._envelope import ENVELOPE, _open

payloads = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.binary(),
    st.integers(),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.booleans()),
    st.none(),
)


@given(payloads, st.sampled_from([None, "goal", "ein Tor"]))
def test_a_message_arrives_as_it_was_given(data: Any, event: str | None) -> None:
    message = Message(data, event)
    arrived = Envelope().decode(Envelope().encode(message))
    assert arrived == message
    assert type(arrived.data) is type(data)


def test_plain_text_travels_as_it_is() -> None:
    assert Envelope().encode(Message("grüße")) == "grüße".encode()
    assert Envelope().encode(Message('{"a":1}')) == b'{"a":1}'


def test_anything_else_is_one_json_text_of_a_sequence() -> None:
    payload = Envelope().encode(Message({"home": 1}, "goal"))
    assert (payload[:1], payload[-1:]) == (b"\x1e", b"\n")
    assert json.loads(payload[1:]) == {"event": "goal", "data": {"home": 1}}


def test_a_text_that_begins_like_an_envelope_is_put_into_one() -> None:
    message = Message("\x1e{}")
    assert Envelope().encode(message) != b"\x1e{}"
    assert Envelope().decode(Envelope().encode(message)) == message


def test_foreign_bytes_are_taken_as_bytes() -> None:
    assert Envelope().decode(b"\xff\xfe") == Message(b"\xff\xfe")


@pytest.mark.parametrize(
    "payload",
    [b"\x1e", b"\x1e[]", b"\x1e{}", b'\x1e{"data":', b'\x1e{"data":1,"event":"gap"}', b'\x1e{"data":1,"event":7}',
     b'\x1e{"base64":"?"}', b'\x1e{"base64":7}', b"\x1e" + b"[" * 100_000, b'\x1e{"data":NaN}', b"\x1e\xff"],
)  # fmt: skip
def test_a_broken_envelope_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="a broken envelope"):
        Envelope().decode(payload)


TEXT = st.text(st.characters(codec="utf-8"))
PRINTABLE = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.isprintable() and text != "gap"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.none() | PRINTABLE, st.sampled_from([b"", b"\x1eabc-1\n"]))
def test_the_short_way_reads_what_the_thorough_one_does(data: Any, event: str | None, position: bytes) -> None:
    message = Message(data, event)
    payload = ENVELOPE.encode(message)
    got = ENVELOPE.decode(position + payload)
    assert (got, got.size, got.text) == (message, message.size, message.text)
    if payload.startswith(b"\x1e{"):
        assert _open(json.loads(payload[1:])) == got


@given(
    st.sampled_from([b'\x1e{"data":', b'\x1e{"event":"e","data":', b'\x1e{"event":"gap","data":']),
    st.text(alphabet='{}[]",:0123eE.-nulltruefasNIity \\u\n\t'),
    st.sampled_from([b"}\n", b"}", b"} \n"]),
)
def test_the_short_way_refuses_what_the_thorough_one_does(begin: bytes, data: str, end: bytes) -> None:
    payload = begin + data.encode() + end
    try:
        thorough = _open(json.loads(payload[1:]))
    except (ValueError, TypeError):
        with pytest.raises(ValueError, match="envelope"):
            ENVELOPE.decode(payload)
    else:
        short = ENVELOPE.decode(payload)
        assert (repr(short.data), short.event) == (repr(thorough.data), thorough.event)
