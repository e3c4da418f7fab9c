"""Messages: kept as they were given, refused where they are published."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import BadChannel, BadMessage, Gap, Message, check_channel

text = st.text(st.characters(codec="utf-8"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("data", [0, "", {}, [], None, False, 0.0, b""])
def test_f39_falsy_payloads_are_kept_as_they_are(data: Any) -> None:
    message = Message(data)
    assert message.data == data
    assert type(message.data) is type(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("plain", "plain"),
        ("with\nbreak", "with\nbreak"),
        (0.5, "0.5"),
        (None, "null"),
        ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'),
        (b"bytes", "bytes"),
        (b"\xff\x00", "data:application/octet-stream;base64,/wA="),
    ],
)
def test_every_payload_has_a_text(data: Any, text: str) -> None:
    assert Message(data).text == text


@pytest.mark.parametrize(("data", "value"), [("a", "a"), ({"a": 1}, {"a": 1}), (b"a", "a"), ("[1]", "[1]"), ([1], [1])])
def test_a_text_that_looks_like_json_stays_a_text_in_json(data: Any, value: Any) -> None:
    assert json.loads(Message(data).json) == value


@given(st.text())
def test_size_is_the_length_in_bytes(text: str) -> None:
    try:
        expected = len(text.encode())
    except UnicodeEncodeError:
        with pytest.raises(BadMessage):
            Message(text)
    else:
        assert Message(text).size == expected


@given(json_values)
def test_whatever_json_carries_is_a_message(data: Any) -> None:
    message = Message(data)
    assert json.loads(message.json) == data
    assert message.data == data


@pytest.mark.parametrize("data", [{1, 2}, object(), float("nan"), float("inf"), {"a": {1}}, "\ud800", {"a": "\ud800"}])
def test_what_cannot_be_carried_is_refused_where_it_is_published(data: Any) -> None:
    with pytest.raises(BadMessage):
        Message(data)


def test_nobody_can_change_what_was_published() -> None:
    data = {"a": [1]}
    message = Message(data)
    data["a"].append(2)
    message.data["a"].append(3)
    assert message.data == {"a": [1]}
    assert message.text == '{"a":[1]}'


def test_a_tuple_is_a_list_in_process_as_behind_a_broker() -> None:
    assert Message((1, (2,))).data == [1, [2]]


def test_a_gap_has_no_size() -> None:
    assert Gap(7).size == 0
    assert Gap(7) == Gap(missed=7) != Gap()


def test_a_payload_that_contains_itself_is_refused() -> None:
    data: list[Any] = []
    data.append(data)
    with pytest.raises(BadMessage):
        Message(data)


@pytest.mark.parametrize("event", ["", "two\nlines", "cr\r", "nul\0", "gap", "\x1b[31m", "x" * 300])
def test_f38_event_names_that_would_forge_fields_are_refused(event: str) -> None:
    with pytest.raises(BadMessage, match="event name"):
        Message("data", event)


def test_a_member_of_an_enumeration_is_its_value() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    assert Message(Colour.RED) == Message("red")
    assert Message(Colour.RED).json == '"red"'


def test_messages_are_equal_by_payload_kind_and_event() -> None:
    assert Message("a") == Message("a")
    assert hash(Message("a")) == hash(Message("a"))
    assert Message("a") != Message(b"a")
    assert Message("1") != Message(1)
    assert Message("a") != Message("a", "event")
    assert Message((1, 2)) == Message([1, 2])


@pytest.mark.parametrize("name", ["a", "chat.room-1", "prices/eur:usd", "grüße", "*", "x" * 255])
def test_channel_names_that_stand_in_a_url_and_a_line_are_good(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize("name", ["", "two words", "tab\t", "line\n", "nul\0", "x" * 256, "ü" * 128, "\ud800", None, 7])
def test_other_channel_names_are_refused(name: Any) -> None:
    with pytest.raises(BadChannel):
        check_channel(name)
