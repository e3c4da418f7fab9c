"""The log: counted, bounded, and honest about what it gave up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import Entry, Gap, Log, Message, Position
from waterspout_core._log import LOST
from waterspout_core._position import EARLIEST, NOWHERE


def filled(count: int, **bounds: int) -> Log:
    log = Log(**bounds)
    for number in range(1, count + 1):
        log.append(Message(str(number)))
    return log


def texts(entries: list[Entry]) -> list[str]:
    return [entry.text if isinstance(entry, Message) else f"gap {entry.missed}" for entry in entries]


def read_all(log: Log, after: int) -> list[tuple[int, Entry]]:
    got: list[tuple[int, Entry]] = []
    while after < log.top:
        first, entries = log.read(after)
        got += enumerate(entries, first)
        after = first + len(entries) - 1
    return got


def test_offsets_are_counted_from_one() -> None:
    log = Log()
    assert log.top == 0
    assert [log.append(Message(text)) for text in "abc"] == [1, 2, 3]
    assert (log.start, log.top, len(log)) == (1, 3, 3)


def test_a_reader_gets_what_stands_behind_its_cursor() -> None:
    assert filled(5).read(3) == (4, [Message("4"), Message("5")])


def test_a_reader_at_the_top_gets_nothing() -> None:
    assert filled(5).read(5) == (6, [])
    assert Log().read(0) == (1, [])


def test_the_oldest_give_way_to_the_newest() -> None:
    log = filled(5, max_messages=2)
    assert (log.start, log.top, len(log)) == (4, 5, 2)


def test_bytes_are_a_bound_as_well() -> None:
    log = Log(max_bytes=1000)
    for _ in range(100):
        log.append(Message("x" * 100))
    assert log.size <= 1000
    assert log.top == 100
    assert len(log) > 3


def test_empty_messages_are_bounded_by_bytes_too() -> None:
    log = Log(max_messages=10**9, max_bytes=10_000)
    for _ in range(1000):
        log.append(Message(""))
    assert len(log) < 1000


def test_the_newest_message_is_kept_however_large() -> None:
    log = filled(3, max_bytes=1000)
    log.append(Message("x" * 5000))
    assert log.read(3) == (4, [Message("x" * 5000)])
    assert len(log) == 1


def test_what_a_reader_missed_is_one_gap_in_the_place_of_the_last_lost() -> None:
    log = filled(10, max_messages=3)
    first, entries = log.read(2)
    assert first == 7
    assert texts(entries) == ["gap 5", "8", "9", "10"]


def test_a_reader_just_at_the_edge_has_missed_nothing() -> None:
    assert texts(filled(10, max_messages=3).read(7)[1]) == ["8", "9", "10"]


def test_the_position_after_a_gap_leads_on_without_another() -> None:
    log = filled(10, max_messages=3)
    first, _ = log.read(2)
    assert texts(log.read(first)[1]) == ["8", "9", "10"]


def test_a_log_of_latest_values_skips_without_a_gap() -> None:
    log = Log(max_messages=1, when_behind="latest")
    for number in range(5):
        log.append(Message(number))
    assert log.read(0) == (5, [Message(4)])
    assert log.read(-1) == (5, [Message(4)])


def test_a_position_of_another_epoch_is_lost() -> None:
    log = filled(3)
    assert log.cursor({log.epoch: 2}) == 2
    cursor = log.cursor({"another": 2})
    assert texts(log.read(cursor)[1]) == ["gap None", "1", "2", "3"]


def test_a_position_above_the_top_is_lost_and_not_in_the_future() -> None:
    log = filled(3)
    assert texts(log.read(log.cursor({log.epoch: 4}))[1]) == ["gap None", "1", "2", "3"]


def test_a_lost_reader_of_an_empty_log_is_told_of_the_gap_at_once() -> None:
    log = Log()
    assert log.read(log.cursor({"another": 7})) == (0, [Gap(None)])


def test_no_epoch_is_not_any_epoch() -> None:
    log = filled(3)
    assert log.cursor({"": 2}) != 2
    assert log.cursor({}) != 2


def test_two_logs_never_share_an_epoch() -> None:
    assert len({Log().epoch for _ in range(1000)}) == 1000


def test_a_long_way_is_read_in_runs() -> None:
    log = filled(5000)
    _, entries = log.read(0)
    assert 0 < len(entries) < 5000
    assert [offset for offset, _ in read_all(log, 0)] == list(range(1, 5001))


def test_large_messages_make_short_runs() -> None:
    log = Log()
    for _ in range(20):
        log.append(Message("x" * 100_000))
    assert len(log.read(0)[1]) <= 2


def test_bytes_are_made_once_for_all_readers_at_the_same_place() -> None:
    made: list[int] = []

    def encode(log: Log, first: int, entries: list[Entry]) -> bytes:
        made.append(first)
        return ",".join(texts(entries)).encode()

    log = filled(3)
    assert [log.encoded(encode, 1) for _ in range(1000)] == [(b"2,3", 3)] * 1000
    assert made == [2]
    log.append(Message("4"))
    assert log.encoded(encode, 1) == (b"2,3,4", 4)
    assert log.encoded(encode, 3) == (b"4", 4)
    assert made == [2, 2, 4]


def test_what_is_shared_is_bounded_however_many_places_readers_stand_at() -> None:
    log = filled(1000)
    for after in range(1000):
        log.encoded(lambda log, first, entries: first, after)
    assert len(log._shared) <= 32


@pytest.mark.parametrize("bounds", [{"max_messages": 0}, {"max_bytes": 0}, {"max_age": 0}, {"when_behind": "wait"}])
def test_bounds_that_hold_nothing_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least one|max_age|when_behind"):
        Log(**bounds)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_f61_what_is_too_old_is_given_up_though_there_is_room() -> None:
    clock = Clock()
    log = Log(max_age=10, clock=clock)
    log.append(Message("1"))
    log.append(Message("2"), age=9)  # stays as long as the one before it, for what is kept has no holes
    clock.now = 10
    log.append(Message("3"))
    assert texts(log.read(0)[1]) == ["1", "2", "3"]
    clock.now = 10.5
    log.expire()
    assert texts(log.read(0)[1]) == ["gap 2", "3"]
    clock.now = 21
    assert log.newest(5) == (4, [])
    assert (len(log), log.size, log.top) == (0, 0, 3)
    assert log.read(0) == (3, [Gap(3)])


def test_a_log_without_an_age_keeps_no_times() -> None:
    assert filled(100)._times is None


def test_what_is_no_entry_is_refused_and_changes_nothing() -> None:
    log = filled(3)
    for refused in (lambda: log.append("text"), lambda: log.extend([Message("4"), "text"])):  # type: ignore[arg-type]
        with pytest.raises(AttributeError):
            refused()
        assert (log.top, log.read(1)) == (3, filled(3).read(1))


def test_a_batch_is_what_its_messages_are_one_by_one() -> None:
    log = Log(max_messages=3)
    assert log.extend([Message(str(number)) for number in range(1, 6)]) == 5
    assert log.read(0) == filled(5, max_messages=3).read(0)
    assert log.extend([]) == 5
    assert log.written == filled(5).written


def test_a_log_that_begins_elsewhere_counts_on_from_there() -> None:
    log = Log()
    log.begin(Position("e", 100))
    assert (log.top, log.epoch, log.position) == (0, "e", Position("e", 100))
    log.extend([Message("101"), Message("102")])
    assert log.positions(1, 2) == [Position("e", 101), Position("e", 102)]
    assert texts(log.read(log.cursor({"e": 101}))[1]) == ["102"]
    assert texts(log.read(log.cursor({"e": 90}))[1]) == ["gap 10", "101", "102"]
    with pytest.raises(RuntimeError):
        log.begin(Position("e", 102))


def test_older_messages_are_put_before_as_many_as_the_bounds_allow() -> None:
    clock = Clock()
    log = Log(max_messages=5, max_age=10, clock=clock)
    log.begin(Position("e", 100))
    log.append(Message("101"))
    older = [Message(str(offset)) for offset in range(91, 101)]
    assert log.prepend(older, [9.0 - number / 2 for number in range(10)]) == 4
    assert texts(log.read(log.cursor({EARLIEST: 0}))[1]) == ["97", "98", "99", "100", "101"]
    assert texts(log.read(log.cursor({"e": 98}))[1]) == ["99", "100", "101"]
    assert texts(log.read(log.cursor({"e": 90}))[1]) == ["gap 6", "97", "98", "99", "100", "101"]
    clock.now = 4.25  # the first of them were 6 and 5.5 seconds old
    assert log.newest(9)[0] == log.start == -2


def test_a_gap_that_was_told_is_not_filled_afterwards() -> None:
    clock = Clock()
    log = Log(max_age=10, clock=clock)
    log.append(Message("1"))
    log.append(Gap(1), Position(log.epoch, 2))
    log.append(Message("3"))
    clock.now = 11
    log.expire()
    assert log.read(1) == (3, [Gap(None)])
    assert log.read(2) == (3, [Gap(1)])
    assert log.prepend([Message("1"), Message("2"), Message("3")], [0, 0, 0]) == 1
    assert texts(log.read(1)[1]) == ["gap None", "3"]


def test_a_gap_among_older_messages_is_told_also_when_it_is_given_up_again() -> None:
    log = Log(max_messages=4)
    log.begin(Position("e", 3))
    assert log.prepend([Message("1"), Gap(1), Message("3")], [0, 0, 0]) == 3
    assert texts(log.read(log.cursor({"e": 0}))[1]) == ["1", "gap 1", "3"]
    log.extend([Message("4"), Message("5"), Message("6")])
    assert texts(log.read(log.cursor({"e": 0}))[1])[0] == texts(log.read(log.cursor({"e": 1}))[1])[0] == "gap None"
    assert texts(log.read(log.cursor({"e": 2}))[1])[0] == "3"


def test_a_message_without_a_number_is_not_replaced_by_another() -> None:
    clock = Clock()
    log = Log(max_age=10, clock=clock)
    log.append(Message("1"))
    log.append(Message("not kept elsewhere"), Position(log.epoch, 1))
    log.append(Message("2"))
    assert log.positions(1, 3) == [Position(log.epoch, offset) for offset in (1, 1, 2)]
    assert log.cursor({log.epoch: 1}) == 2
    clock.now = 11
    log.expire()
    assert log.prepend([Message("1"), Message("2")], [0, 0]) == 1
    assert texts(log.read(1)[1]) == ["gap 1", "2"]


def test_positions_of_an_epoch_that_has_ended_are_good_as_long_as_they_are_remembered() -> None:
    log = Log(max_messages=3, epoch="a")
    log.extend([Message("a1"), Message("a2")])
    log.append(Gap(), Position("b", 7))
    log.append(Message("b8"))
    assert log.position == Position("b", 8)
    assert log.positions(2, 3) == [Position("a", 2), Position("b", 7), Position("b", 8)]
    assert texts(log.read(log.cursor({"a": 1}))[1]) == ["a2", "gap None", "b8"]
    assert texts(log.read(log.cursor({"a": 99}))[1]) == ["gap None", "b8"]
    assert log.cursor({"b": 6}) == log.cursor({"b": 9}) == LOST
    log.extend([Message("b9"), Message("b10")])
    assert log.cursor({"a": 2}) == LOST
    assert log.position_at(1) == log.position_at(LOST) == NOWHERE


def test_f37_a_position_below_one_that_was_there_is_refused() -> None:
    log = Log(epoch="a")
    log.extend([Message("a1"), Message("a2")])
    with pytest.raises(ValueError, match="new epoch"):
        log.append(Message("another a1"), Position("a", 1))
    log.append(Gap(), Position("b", 0))
    with pytest.raises(ValueError, match="new epoch"):
        log.append(Message("another a2"), Position("a", 2))
    assert (log.top, log.position) == (3, Position("b", 0))


def test_f33_positions_are_counted_and_owe_nothing_to_the_clock() -> None:
    log = Log(max_age=10, clock=lambda: 5.0)
    log.extend([Message("x")] * 1000)
    assert {position.offset for position in log.positions(1, 1000)} == set(range(1, 1001))


def test_latest_values_that_are_too_old_are_gone_without_a_gap() -> None:
    clock = Clock()
    log = Log(max_messages=1, max_age=10, when_behind="latest", clock=clock)
    log.append(Message("1"))
    clock.now = 11
    log.expire()
    assert log.read(0) == (2, [])


def test_e6_what_is_shared_is_made_anew_when_older_messages_are_put_before() -> None:
    log = Log()
    log.begin(Position("e", 2))
    log.append(Message("3"))

    def encode(log: Log, first: int, entries: list[Entry]) -> list[str]:
        return texts(entries)

    assert log.encoded(encode, -2) == (["gap 2", "3"], 1)
    log.prepend([Message("1"), Message("2")], [0, 0])
    assert log.encoded(encode, -2) == (["1", "2", "3"], 1)


@given(
    st.integers(1, 5),
    st.integers(1, 500),
    st.lists(st.one_of(st.text(max_size=40), st.just(None)), max_size=60),
    st.integers(-1, 70),
)
def test_a_log_behaves_like_a_list_that_forgets_its_beginning(
    max_messages: int, max_bytes: int, given_texts: list[str | None], after: int
) -> None:
    log = Log(max_messages=max_messages, max_bytes=max_bytes)
    everything: list[Entry] = [Gap() if text is None else Message(text) for text in given_texts]
    for entry in everything:
        log.append(entry)
    assert log.top == len(everything)
    assert len(log) <= max_messages
    assert log.size <= max_bytes or len(log) == 1
    kept = list(enumerate(everything, 1))[log.start - 1 :]
    got = read_all(log, after)
    if after >= log.top:
        assert got == []
    elif after < log.start - 1:
        uncounted = after == -1 or Gap() in everything[after : log.start - 1]
        assert got[0] == (log.start - 1, Gap(None if uncounted else log.start - 1 - after))
        assert got[1:] == kept
    else:
        assert got == [(offset, entry) for offset, entry in kept if offset > after]
    assert [offset for offset, _ in got] == list(itertools.islice(itertools.count(got[0][0] if got else 0), len(got)))
