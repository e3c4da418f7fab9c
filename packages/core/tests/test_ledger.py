"""The ledger finds every difference, and objects to nothing else."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from waterspout_core import BrokerError, Entry, Gap, Message, Position, QueueStore
from waterspout_core.testing import Ledger, Unreconciled

History = list[Message | Gap]


def told(published: list[Message], got: History, *, begun: int = 0, unsure: frozenset[int] = frozenset()) -> bool:
    """Whether the ledger finds that `got` is what a reader gets who came when `begun` were published."""
    ledger = Ledger()
    account = None
    for number, message in enumerate(published):
        if number == begun:
            account = ledger.reader("news", "reader")
        ledger.published("news", message).sure = number not in unsure
    account = account or ledger.reader("news", "reader")
    for entry in got:
        account.got(entry)
    return reconciled(ledger)


def reconciled(ledger: Ledger) -> bool:
    try:
        ledger.check()
    except Unreconciled:
        return False
    return True


def delivery_of(runs: list[int]) -> tuple[list[Message], History]:
    """Different messages, and a history of them: a run of so many that were got, or (below zero) lost and told."""
    published: list[Message] = []
    got: History = []
    for run in runs:
        some = [Message(len(published) + number) for number in range(abs(run))]
        published += some
        got += some if run > 0 else [Gap(-run)]
    return published, got


deliveries = st.lists(st.integers(-3, 3).filter(bool), min_size=1, max_size=12).map(delivery_of)


def mutated(draw: Any, got: History) -> History:
    """`got` with one thing wrong."""
    at = draw(st.integers(0, len(got) - 1))
    entry = got[at]
    if isinstance(entry, Message):
        return draw(
            st.sampled_from(
                [
                    got[:at] + got[at + 1 :],  # a loss
                    [*got[:at], entry, *got[at:]],  # a duplicate, at once
                    [*got, entry],  # and later
                    [*got[:at], Gap(1), *got[at:]],  # a gap where nothing is missing
                    [*got[:at], Message("foreign"), *got[at:]],
                ]
            )
        )
    missed = entry.missed
    assert missed
    return draw(
        st.sampled_from(
            [
                got[:at] + got[at + 1 :],  # not told
                [*got[:at], Gap(missed + 1), *got[at + 1 :]],
                *([[*got[:at], Gap(missed - 1), *got[at + 1 :]]] if missed > 1 else []),
            ]
        )
    )


@given(deliveries)
def test_every_history_that_tells_its_losses_is_accepted(delivery: tuple[list[Message], History]) -> None:
    assert told(*delivery)


@given(st.data())
def test_every_single_mutation_is_found(data: st.DataObject) -> None:
    published, got = data.draw(deliveries)
    assert not told(published, mutated(data.draw, got))


@given(st.data())
def test_entries_that_changed_places_are_found(data: st.DataObject) -> None:
    published, got = data.draw(deliveries)
    pairs = [at for at, (one, other) in enumerate(pairwise(got)) if {type(one), type(other)} != {Gap}]
    assume(pairs)
    at = data.draw(st.sampled_from(pairs))
    assert not told(published, [*got[:at], got[at + 1], got[at], *got[at + 2 :]])


@given(st.data())
def test_a_gap_at_another_place_is_found(data: st.DataObject) -> None:
    published, got = data.draw(deliveries)
    gaps = [at for at, entry in enumerate(got) if isinstance(entry, Gap)]
    assume(gaps)
    at = data.draw(st.sampled_from(gaps))
    others = got[:at] + got[at + 1 :]
    # Next to another gap it is the same place.
    places = [
        to for to in range(len(others) + 1) if not any(isinstance(one, Gap) for one in others[max(to - 1, 0) : to + 1])
    ]
    places = [to for to in places if to != at]
    assume(places)
    to = data.draw(st.sampled_from(places))
    assert not told(published, [*others[:to], got[at], *others[to:]])


letters = st.sampled_from("ab").map(Message)
entries = st.one_of(letters, letters, st.builds(Gap, st.one_of(st.none(), st.integers(1, 3))))


@given(
    st.lists(letters, max_size=7),
    st.lists(entries, max_size=7),
    st.integers(0, 7),
    st.frozensets(st.integers(0, 6), max_size=3),
)
def test_equal_messages_are_accepted_if_there_is_a_way_to_tell_them_apart(
    published: list[Message], got: History, begun: int, unsure: frozenset[int]
) -> None:
    """Against a model: the history as a regular expression that has to match what was published."""
    begun = min(begun, len(published))

    def pattern(entry: Entry) -> str:
        if isinstance(entry, Message):
            return entry.text
        return ".*" if entry.missed is None else f".{{{entry.missed}}}"

    expression = "".join(map(pattern, got))
    unsure = frozenset(number for number in unsure if number < len(published))
    ways = [frozenset(chosen) for chosen in _subsets(sorted(unsure))]
    expected = False
    for left_out in ways:
        text = "".join(message.text for number, message in enumerate(published) if number not in left_out)
        before = sum(number not in left_out for number in range(begun))
        expected = expected or re.fullmatch(f".{{0,{before}}}{expression}", text) is not None
    assert told(published, got, begun=begun, unsure=unsure) is expected


def _subsets(items: list[int]) -> list[list[int]]:
    return [[]] if not items else [rest + add for rest in _subsets(items[1:]) for add in ([], items[:1])]


@given(st.data())
def test_equal_messages_with_positions_are_not_mistaken_for_one_another(data: st.DataObject) -> None:
    published, got = data.draw(deliveries)
    wrong = mutated(data.draw, got)

    def told_by_positions(history: History) -> bool:
        ledger = Ledger()
        account = ledger.reader("news", "reader")
        # Noted in any order: positions tell which.
        for number in data.draw(st.permutations(range(len(published)))):
            ledger.published("news", Message("same"), Position("e", number + 1))
        offset = 0
        for entry in history:
            if isinstance(entry, Gap):
                offset += entry.missed or 0
                account.got(entry, Position("e", offset))
            else:
                offset = entry.data + 1 if isinstance(entry.data, int) else offset
                account.got(Message("same") if isinstance(entry.data, int) else entry, Position("e", offset))
        return reconciled(ledger)

    assert told_by_positions(got)
    assert not told_by_positions(wrong)


def test_a_gap_of_unknown_size_covers_any_number_at_its_place_only() -> None:
    published = [Message(number) for number in range(5)]
    for lost in range(5):
        assert told(published, [published[0], Gap(), *published[1 + lost :]])
    assert not told(published, [published[0], Gap(), published[2], published[4]])
    assert not told(published, [published[0], published[2], Gap(), published[3], published[4]])
    assert not told(published, [published[0], published[1], Gap(), *published[1:]])


def test_a_reader_that_comes_late_needs_what_is_published_from_then_on_and_no_hole_before() -> None:
    published = [Message(number) for number in range(6)]
    assert told(published, published[3:], begun=3)
    assert told(published, published[1:], begun=3)
    assert not told(published, published[4:], begun=3)
    assert not told(published, [published[1], *published[3:]], begun=3)


def test_a_reader_behind_a_position_begins_exactly_there() -> None:
    for first, right in ((2, False), (3, True), (4, False)):
        ledger = Ledger()
        for number in range(6):
            ledger.published("news", Message("same"), Position("e", number + 1))
        account = ledger.reader("news", "reader", after=Position("e", 3))
        for _ in range(first, 6):
            account.got(Message("same"))
        assert reconciled(ledger) is right
    beginning = Ledger().reader("news", "reader", after=Position("e", 0))
    assert beginning.after == Position("e", 0)


def test_equal_messages_that_came_in_another_order_are_found_by_their_positions() -> None:
    ledger = Ledger()
    for offset in (1, 2):
        ledger.published("news", Message("same"), Position("e", offset))
    account = ledger.reader("news", "reader", after=Position("e", 0))
    for offset in (2, 1):
        account.got(Message("same"), Position("e", offset))
    assert not reconciled(ledger)


def test_a_gap_that_stands_elsewhere_than_it_ends_is_found() -> None:
    for offset, right in ((1, False), (2, True), (3, False)):
        for gap in (Gap(2), Gap()):
            ledger = Ledger()
            for number in range(3):
                ledger.published("news", Message(number), Position("e", number + 1))
            account = ledger.reader("news", "reader", after=Position("e", 0))
            account.got(gap, Position("e", offset))
            account.got(Message(2), Position("e", 3))
            assert reconciled(ledger) is right


def test_a_message_without_a_position_of_its_own_stands_behind_the_one_before_it() -> None:
    ledger = Ledger()
    ledger.published("news", Message("plain"))
    for name, position in (("a", Position("e", 1)), ("plain", None), ("b", Position("e", 2))):
        ledger.published("news", Message(name), position)
    for after, expected in ((0, ["plain", "a", "plain", "b"]), (1, ["plain", "b"]), (1, ["b"]), (2, [])):
        account = ledger.reader("news", "reader", after=Position("e", after))
        stands = after
        for name in expected:
            stands += name != "plain"
            account.got(Message(name), Position("e", stands))
        ledger.check()


def test_a_new_epoch_goes_on_behind_the_old_one() -> None:
    ledger = Ledger()
    for position in (Position("b", 1), Position("b", 2), Position("a", 1), Position("a", 2)):
        ledger.published("news", Message("same"), position)
    account = ledger.reader("news", "reader", after=Position("b", 0))
    account.got(Message("same"), Position("b", 1))
    account.got(Gap(), Position("a", 1))  # one of each epoch is lost
    account.got(Message("same"), Position("a", 2))
    ledger.check()


def test_what_nobody_is_sure_of_is_owed_to_all_readers_if_one_of_them_has_it() -> None:
    ledger = Ledger()
    ledger.published("news", Message("a"), Position("e", 1))
    unsure = ledger.published("news", Message("b"))
    unsure.sure = False
    ledger.published("news", Message("c"), Position("e", 3))
    without, having = (
        ledger.reader("news", "without", Position("e", 0)),
        ledger.reader("news", "having", Position("e", 0)),
    )
    for account in (without, having):
        account.got(Message("a"), Position("e", 1))
    without.got(Message("c"), Position("e", 3))
    having.leave()
    ledger.check()  # nobody has it
    having.got(Message("b"), Position("e", 2))
    with pytest.raises(Unreconciled, match="'without' differs at its entry 1: one message passed over"):
        ledger.check()


def test_a_message_that_was_published_again_because_nobody_was_sure_may_be_there_once_or_twice() -> None:
    for offset in (1, 2):
        ledger = Ledger()
        ledger.published("news", Message("a")).sure = False
        ledger.published("news", Message("a"), Position("e", offset))
        account = ledger.reader("news", "reader", Position("e", 0))
        for number in range(offset):
            account.got(Message("a"), Position("e", number + 1))
        ledger.check()


def test_a_reader_that_has_left_is_owed_nothing_at_its_end() -> None:
    ledger = Ledger()
    account = ledger.reader("news", "reader")
    for number in range(3):
        ledger.published("news", Message(number))
    account.got(Message(0))
    with pytest.raises(Unreconciled, match="2 messages never came"):
        ledger.check()
    account.leave()
    ledger.check()


def test_the_verdict_names_the_channel_the_reader_the_difference_and_what_is_around_it() -> None:
    ledger = Ledger()
    ledger.reader("sport", "somebody")
    account = ledger.reader("news", "slow")
    for number in range(20):
        ledger.published("news", Message(f"n{number}"), Position("e", number + 1))
    for number in (0, 1, 2, 3, 4, 5, 7, 8, 9, 10):
        account.got(Message(f"n{number}"), Position("e", number + 1))
    with pytest.raises(Unreconciled) as caught:
        ledger.check()
    error = caught.value
    assert (error.channel, error.reader, error.at) == ("news", "slow", 6)
    assert str(error).splitlines() == [
        "news: 'slow' differs at its entry 6: one message passed over, and no gap that says so",
        "  published  … | 3 'n3' (e-4) | 4 'n4' (e-5) | 5 'n5' (e-6) | > 6 'n6' (e-7) | 7 'n7' (e-8) | 8 'n8' (e-9) "
        "| 9 'n9' (e-10) | …",
        "  received   … | 3 'n3' (e-4) | 4 'n4' (e-5) | 5 'n5' (e-6) | > 6 'n7' (e-8) | 7 'n8' (e-9) | 8 'n9' (e-10) "
        "| 9 'n10' (e-11)",
    ]


@pytest.mark.parametrize(
    ("got", "why"),
    [
        ([Message("a"), Message("a")], "it came before"),
        ([Message("x")], "never published"),
        ([Gap(4)], "Gap\\(missed=4\\)"),
        ([Message("a"), Message("b"), Message("c"), Message("d")], "never published"),
        ([], "3 messages never came\n  published  > 0 'a' | 1 'b' | 2 'c'\n  received   > the end$"),
    ],
)
def test_the_verdict_says_what_is_wrong(got: History, why: str) -> None:
    ledger = Ledger()
    account = ledger.reader("news", "reader", after=None)
    for text in "abc":
        ledger.published("news", Message(text))
    for entry in got:
        account.got(entry)
    with pytest.raises(Unreconciled, match=why):
        ledger.check()


def test_an_account_follows_a_store_and_goes_on_after_a_break() -> None:
    async def use() -> None:
        store, ledger = QueueStore(max_messages=10), Ledger()
        account = ledger.reader("news", "reader")
        for burst in (5, 40, 5):
            following = asyncio.create_task(account.follow(store))
            if not burst % 2:
                await asyncio.sleep(0)
            await ledger.submit(store, "news", "seen")
            await ledger.settled()
            following.cancel()
            await asyncio.wait((following,))
            for number in range(burst):  # while it is away
                await ledger.submit(store, "news", number)
        following = asyncio.create_task(account.follow(store))
        await ledger.settled()
        following.cancel()
        gaps = [entry for entry, _ in account.entries if isinstance(entry, Gap)]
        assert gaps == [Gap(31)]
        await asyncio.wait((following,))
        await ledger.submit(store, "news", "nobody gets it")
        with pytest.raises(Unreconciled, match="one message never came"):
            await ledger.settled(deadline=0.05)

    asyncio.run(use())


def test_a_message_whose_answer_was_lost_may_be_there_or_not() -> None:
    class Failing(QueueStore):
        def submit(self, data: Any, event: str | None = None) -> Any:
            asyncio.get_running_loop()
            raise BrokerError("broken on purpose", maybe_done=True)

    async def use() -> None:
        ledger = Ledger()
        without, having = ledger.reader("news", "without"), ledger.reader("news", "having")
        with pytest.raises(BrokerError):
            await ledger.submit(Failing(), "news", "perhaps")
        having.got(Message("perhaps"))
        assert without.entries == []
        ledger.check()

    asyncio.run(use())
