"""Positions and ids, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import BadPosition, Position, from_id, new_epoch, to_id
from waterspout_core._position import EARLIEST, NOWHERE

positions = st.dictionaries(st.from_regex(r"[0-9a-z]{1,32}", fullmatch=True), st.integers(0, 10**18 - 1), min_size=1)


@given(positions)
def test_an_id_carries_its_positions(offsets: dict[str, int]) -> None:
    text = to_id(Position(epoch, offset) for epoch, offset in offsets.items())
    if len(text) <= 4096:
        assert from_id(text) == offsets


def test_an_id_for_a_hundred_channels_has_room() -> None:
    text = to_id(Position(new_epoch(), 10**12) for _ in range(100))
    assert len(from_id(text)) == 100


def test_earliest_is_an_id_by_itself() -> None:
    assert from_id(EARLIEST) == {EARLIEST: 0}
    with pytest.raises(BadPosition):
        from_id("earliest,a-1")


def test_nowhere_is_an_id_of_no_log() -> None:
    assert from_id(str(NOWHERE)) == {NOWHERE.epoch: 0}
    assert all(new_epoch() != NOWHERE.epoch for _ in range(100))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a-",
        "-1",
        "a-1,",
        "a-b",
        "a--1",
        "A-1",
        "a-1;b-2",
        "a-1\n",
        " a-1",
        "a-٣",
        "a-" + "1" * 19,
        "a-1," * 2000,
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(BadPosition):
        from_id(text)


def test_one_position_is_an_id_too() -> None:
    position = Position("f00", 5)
    assert to_id(position) == to_id([position]) == str(position) == "f00-5"
