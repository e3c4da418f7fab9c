"""The merge: what comes live and what is read, each message once and in order, or a gap that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import Gap, History, Log, Message, Position
from waterspout_core._history import Merge, Past


def live(epoch: str, *offsets: int) -> list[bytes]:
    return [f"\x1e{epoch}-{offset}\n{epoch}{offset}".encode() for offset in offsets]


def past(epoch: str, top: int, count: int) -> Past:
    return Past(epoch, top, [(f"{epoch}{offset}".encode(), 0.0) for offset in range(top - count + 1, top + 1)])


def nobody() -> None:
    """Nobody has to be told that the log has grown."""


def merge(position: Position | None = None, **bounds: int) -> Merge:
    made = Merge(Log(**bounds))
    if position is not None:
        made.begin(position, nobody)
    return made


def content(merge: Merge) -> list[tuple[str, str]]:
    """What is in the log: position and text."""
    log = merge.log
    first, entries = log.newest(10_000)
    texts = [f"gap {entry.missed}" if isinstance(entry, Gap) else entry.text for entry in entries]
    return list(zip(map(str, log.positions(first, len(entries))), texts, strict=True))


def placed(*rows: str) -> list[tuple[str, str]]:
    return [(row.split()[0], row.partition(" ")[2]) for row in rows]


def test_what_comes_next_is_taken_as_it_comes() -> None:
    m = merge(Position("a", 7))
    m.take(live("a", 8, 9), nobody)
    assert m.live
    assert content(m) == placed("a-8 a8", "a-9 a9")


def test_f30_what_comes_before_the_history_was_read_is_held_and_follows_it() -> None:
    m = merge()
    m.take(live("a", 3, 4), nobody)
    assert content(m) == []
    m.begin(Position("a", 2), nobody)
    assert content(m) == placed("a-3 a3", "a-4 a4")


def test_what_the_history_told_already_is_not_told_again() -> None:
    m = merge()
    m.take(live("a", 3, 4, 5), nobody)
    m.begin(Position("a", 4), nobody)
    m.take(live("a", 6), nobody)
    assert content(m) == placed("a-5 a5", "a-6 a6")


def test_a_hole_is_filled_from_the_history() -> None:
    m = merge(Position("a", 1))
    m.take(live("a", 2, 5, 6), nobody)
    assert not m.live
    m.recover(past("a", 6, 6), nobody)
    assert m.live
    assert content(m) == placed("a-2 a2", "a-3 a3", "a-4 a4", "a-5 a5", "a-6 a6")


def test_f36_what_the_history_has_no_more_is_one_gap_with_its_number() -> None:
    m = merge(Position("a", 1))
    m.take(live("a", 2, 9), nobody)
    m.recover(past("a", 9, 3), nobody)
    assert content(m) == placed("a-2 a2", "a-6 gap 4", "a-7 a7", "a-8 a8", "a-9 a9")


def test_an_empty_history_is_a_gap_up_to_its_top() -> None:
    m = merge(Position("a", 1))
    m.interrupt()
    m.recover(past("a", 5, 0), nobody)
    assert content(m) == placed("a-5 gap 4")
    m.take(live("a", 6), nobody)
    assert content(m)[1:] == placed("a-6 a6")


def test_another_epoch_is_a_gap_and_all_that_it_has() -> None:
    m = merge(Position("a", 4))
    m.take(live("a", 5), nobody)
    m.take(live("b", 2), nobody)
    m.recover(past("b", 2, 2), nobody)
    assert content(m) == placed("a-5 a5", "b-0 gap None", "b-1 b1", "b-2 b2")


def test_f35_f37_a_top_below_what_is_known_is_a_lost_tail() -> None:
    m = merge(Position("a", 4))
    m.take(live("a", 5, 6), nobody)
    assert m.lost_tail(past("a", 5, 2)) == Position("a", 6)
    assert m.lost_tail(past("a", 6, 2)) is None
    assert m.lost_tail(past("b", 5, 2)) is None


def test_f37_an_epoch_that_had_ended_and_is_back_has_to_end_again() -> None:
    m = merge(Position("a", 4))
    m.interrupt()
    m.recover(past("b", 2, 2), nobody)
    assert m.lost_tail(past("a", 9, 2)) == Position("a", 10)
    assert m.lost_tail(past("c", 9, 2)) is None


def test_nothing_is_told_when_nothing_was_missed() -> None:
    m = merge(Position("a", 4))
    m.interrupt()
    m.take(live("a", 5), nobody)
    assert content(m) == []
    m.recover(past("a", 4, 0), nobody)
    assert content(m) == placed("a-5 a5")


def test_who_reads_before_the_place_is_known_is_told_of_a_gap() -> None:
    m = merge()
    m.begin(Position("a", 4), nobody, early=True)
    m.take(live("a", 5), nobody)
    assert content(m) == placed("a-4 gap None", "a-5 a5")


def test_a_message_without_history_stands_where_it_came_and_is_not_given_again() -> None:
    m = merge(Position("a", 4))
    m.take([*live("a", 5), b"plain", *live("a", 6)], nobody)
    assert content(m) == placed("a-5 a5", "a-5 plain", "a-6 a6")
    assert m.log.read(m.log.cursor({"a": 5}))[1] == [Message("a6")]


def test_what_cannot_be_decoded_leaves_a_gap_of_one() -> None:
    m = merge(Position("a", 0))
    m.take([b"\x1ea-1\n\x1e{no json", *live("a", 2)], nobody)
    assert content(m) == placed("a-1 gap 1", "a-2 a2")


@pytest.mark.parametrize("forged", [live("a", 99), live("dead", 1)])
def test_a_position_that_nobody_gave_does_not_stop_the_channel(
    forged: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    m = merge(Position("a", 1))
    m.take([*forged, *live("a", 2)], nobody)
    m.recover(past("a", 2, 2), nobody)
    m.take(live("a", 3), nobody)
    assert m.live
    assert content(m) == placed("a-2 a2", "a-3 a3")
    assert "dropped" in caplog.text


def test_too_much_that_is_held_is_read_again_instead() -> None:
    m = merge(max_messages=3)
    m.begin(Position("a", 0), nobody)
    m.interrupt()
    m.take(live("a", *range(1, 8)), nobody)
    m.recover(past("a", 2, 2), nobody)
    assert not m.live
    m.recover(past("a", 7, 7), nobody)
    assert m.live
    assert content(m) == placed("a-5 a5", "a-6 a6", "a-7 a7")


def test_too_much_that_is_held_and_is_not_in_the_history_is_told_as_a_gap() -> None:
    m = merge(max_messages=3)
    m.begin(Position("a", 0), nobody)
    m.interrupt()
    m.take([b"plain"] * 4, nobody)
    m.recover(past("a", 0, 0), nobody)
    m.recover(past("a", 0, 0), nobody)
    assert m.live
    assert content(m) == placed("a-0 gap None")


def test_f36_when_the_history_cannot_be_read_a_gap_is_told_and_it_goes_on() -> None:
    m = merge(Position("a", 1))
    m.take(live("a", 2, 8, 9), nobody)
    m.give_up(nobody)
    assert m.live
    assert content(m) == placed("a-2 a2", "a-7 gap None", "a-8 a8", "a-9 a9")


def test_readers_who_keep_up_miss_nothing_of_a_burst_larger_than_the_log() -> None:
    m = merge(max_messages=4)
    m.begin(Position("a", 0), nobody)
    got: list[str] = []
    after = m.log.top

    def grown() -> None:
        nonlocal after
        first, entries = m.log.read(after)
        got.extend(entry.text if isinstance(entry, Message) else f"gap {entry.missed}" for entry in entries)
        after = first + len(entries) - 1

    m.take(live("a", *range(1, 20)), grown)
    m.interrupt()
    m.recover(past("a", 40, 30), grown)
    assert got == [f"a{number}" for number in range(1, 41)]


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, int]]:
    """What happens to a channel: messages published, delivered live or not, breaks, failures of the history."""
    words = ["publish", "lose", "break", "recover", "forget", "trim", "plain"]
    return draw(st.lists(st.tuples(st.sampled_from(words), st.integers(1, 6)), max_size=40))


@given(lives())
def test_f30_f37_whatever_happens_all_is_told_once_and_in_order_or_as_a_gap_of_the_right_size(
    happened: Iterable[tuple[str, int]],
) -> None:
    m = merge(Position("e0", 0))
    epoch, top, kept = 0, 0, 0
    published: list[str] = []  # all, of all epochs

    def read() -> Past:
        return past(f"e{epoch}", top, kept)

    def recover() -> None:
        for _ in range(3):
            if not m.live:
                m.recover(read(), nobody)

    for word, count in happened:
        if word in ("publish", "lose"):
            for _ in range(count):
                top, kept = top + 1, kept + 1
                published.append(f"e{epoch}{top}")
                if word == "publish":
                    m.take(live(f"e{epoch}", top), nobody)
        elif word == "break":
            m.interrupt()
        elif word == "recover":
            recover()
        elif word == "forget":
            epoch, top, kept = epoch + 1, 0, 0
        elif word == "trim":
            kept = min(kept, count)
        else:
            m.take([b"plain"], nobody)
    m.interrupt()  # the link is back, or the next message comes
    recover()
    assert m.live
    rows = [row for row in content(m) if row[1] != "plain"]
    texts = [text for _, text in rows if not text.startswith("gap")]
    assert len(set(texts)) == len(texts)
    at = 0
    for position, text in rows:
        if text.startswith("gap None"):
            behind = (n for n in range(at, len(published)) if _is_behind(published[n], position))
            at = next(behind, len(published))
        elif text.startswith("gap"):
            at += int(text.split()[1])
        else:
            assert published[at] == text, rows
            at += 1
    assert at == len(published)


def _is_behind(text: str, position: str) -> bool:
    """Whether the message `text` (an epoch's name and its number) was published after `position`."""
    epoch, offset = position.split("-")
    return (text[:2], int(text[2:])) > (epoch, int(offset))


@pytest.mark.parametrize(
    "wrong", [lambda: History(0), lambda: History(-1), lambda: History(1, 0), lambda: History(1, -5)]
)
def test_a_history_that_keeps_nothing_is_refused(wrong: Callable[[], History]) -> None:
    with pytest.raises(ValueError, match=r"history|retention"):
        wrong()
