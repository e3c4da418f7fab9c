"""The log against a plain list: whatever is done to it, nothing is lost in silence (F33, F35, F37, F51, F61)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from waterspout_core import Entry, Gap, Log, Message, Position
from waterspout_core._log import LOST
from waterspout_core._position import EARLIEST, NOWHERE

COST = 64  # of an entry beside its text

numbers = st.integers(1, 4)
ages = st.integers(0, 3)
pauses = st.sampled_from([0, 0, 1, 3])


@dataclass(frozen=True)
class Kept:
    index: int
    position: Position
    entry: Entry
    time: float

    @property
    def cost(self) -> int:
        return COST + (self.entry.size if isinstance(self.entry, Message) else 0)


class LogAndModel(RuleBasedStateMachine):
    """A broker that numbers messages, a log that gets them (or is told that it did not), and its readers."""

    @initialize(
        max_messages=st.integers(1, 12),
        max_bytes=st.sampled_from([1, 200, 500, 10_000, 10_000]),
        max_age=st.sampled_from([None, 2, 4]),
        begin=st.none() | st.lists(pauses, max_size=9),
    )
    def make(self, max_messages: int, max_bytes: int, max_age: float | None, begin: list[int] | None) -> None:
        self.now = 0.0
        self.max_messages, self.max_bytes, self.max_age = max_messages, max_bytes, max_age
        self.log = Log(max_messages=max_messages, max_bytes=max_bytes, max_age=max_age, clock=lambda: self.now)
        self.names = (f"e{number}" for number in count())
        self.texts = (f"{number:x}" * (number % 4) for number in count())
        self.broker: dict[str, list[tuple[Message, float]]] = defaultdict(list)
        self.epoch = self.log.epoch
        if begin is not None:
            self.epoch = next(self.names)
            for pause in begin:
                self.now += pause
                self._publish()
            self.log.begin(self._end())
        self.kept: list[Kept] = []
        # All that ever stood at an index. The place before the first is known, whatever comes.
        self.positions = {0: self._end()}
        self.entries: dict[int, Entry] = {}
        self.breaks: set[int] = set()  # where the count did not simply go on
        self.given = [(0, self._end())]
        self.cursors = [0, LOST]

    # The broker, and the model

    def _publish(self) -> Message:
        message = Message(next(self.texts))
        self.broker[self.epoch].append((message, self.now))
        return message

    def _end(self) -> Position:
        return Position(self.epoch, len(self.broker[self.epoch]))

    def _stands(self, entry: Entry, position: Position, age: float = 0) -> None:
        index = max(self.positions) + 1
        self.positions[index], self.entries[index] = position, entry
        self.kept.append(Kept(index, position, entry, self.now - age))

    def _trim(self) -> None:
        while self.kept and (
            len(self.kept) > self.max_messages
            or (sum(kept.cost for kept in self.kept) > self.max_bytes and len(self.kept) > 1)
            or (self.max_age is not None and self.kept[0].time < self.now - self.max_age)
        ):
            self.kept.pop(0)

    @property
    def _top(self) -> int:
        return max(self.positions)

    @property
    def _start(self) -> int:
        return self.kept[0].index if self.kept else self._top + 1

    # Writing

    @rule(age=ages, placed=st.booleans())
    def append(self, age: float, placed: bool) -> None:
        message = self._publish()
        self._stands(message, self._end(), age)
        assert self.log.append(message, self._end() if placed else None, age) == self._top
        self._trim()

    @rule(number=numbers, age=ages)
    def extend(self, number: int, age: float) -> None:
        messages = [self._publish() for _ in range(number)]
        for offset, message in enumerate(messages, self._end().offset - number + 1):
            self._stands(message, Position(self.epoch, offset), age)
        assert self.log.extend(messages, age) == self._top
        self._trim()

    @rule(number=numbers)
    def lose_some(self, number: int) -> None:
        for _ in range(number):
            self._publish()
        self._tell(Gap(number))

    @rule(number=st.integers(0, 4))
    def lose_the_epoch(self, number: int) -> None:
        self.epoch = next(self.names)
        for _ in range(number):
            self._publish()
        self._tell(Gap())

    @rule()
    def fear_a_loss(self) -> None:
        self._tell(Gap())

    def _tell(self, gap: Gap) -> None:
        self._stands(gap, self._end())
        self.breaks.add(self._top)
        self.log.append(gap, self._end())
        self._trim()

    @rule()
    def append_one_without_a_number(self) -> None:
        message = Message(next(self.texts))
        self._stands(message, self._end())
        self.breaks.add(self._top)
        self.log.append(message, self._end())
        self._trim()

    @rule(number=st.integers(1, 8), pause=pauses)
    def prepend(self, number: int, pause: int) -> None:
        self.now += pause
        if pause:
            self.expire()
        before = self.log.position_at(self._start - 1)
        past = self.broker[before.epoch][max(before.offset - number, 0) : before.offset]
        put = self.log.prepend([message for message, _ in past], [self.now - time for _, time in past])
        assert 0 <= put <= len(past)
        for message, time in reversed(past[len(past) - put :]):
            index, position = self._start - 1, self.log.position_at(self._start - 1)
            assert self.entries.get(index, message) == message
            assert self.positions.get(index, position) == position
            self.positions[index], self.entries[index] = position, message
            self.positions.setdefault(index - 1, Position(position.epoch, position.offset - 1))
            self.kept.insert(0, Kept(index, position, message, time))
        if put < len(past):  # for one more there was no room
            message, time = past[len(past) - put - 1]
            assert (
                len(self.kept) == self.max_messages
                or sum(kept.cost for kept in self.kept) + COST + message.size > self.max_bytes
                or (self.max_age is not None and time < self.now - self.max_age)
                or self._start - 1 in self.breaks
            )

    @rule(seconds=pauses)
    def wait_and_expire(self, seconds: int) -> None:
        self.now += seconds
        self.expire()

    def expire(self) -> None:
        self.log.expire()
        self._trim()

    # Reading

    @rule(which=st.integers(0, 1000))
    def read(self, which: int) -> None:
        """A reader that reads whenever it likes gets each entry once, in order, or a gap for just what it missed."""
        after = self.cursors.pop(which % len(self.cursors))
        first, entries = self.log.read(after)
        self._check_read(after, first, entries)
        self.cursors += [first + len(entries) - 1, *self.cursors[:4]][:6]

    def _check_read(self, after: int, first: int, entries: list[Entry]) -> None:
        if after >= self._top:
            assert (first, entries) == (self._top + 1, [])
        elif after >= self._start - 1:
            assert first == after + 1
            assert entries == [kept.entry for kept in self.kept if kept.index > after]
        else:
            assert first == self._start - 1
            lost = range(after + 1, self._start) if after != LOST else ()
            unknown = after == LOST or any(isinstance(self.entries.get(index), Gap) for index in lost)
            assert entries == [Gap(None if unknown else len(lost)), *(kept.entry for kept in self.kept)]
        assert self.log.encoded(lambda log, first, entries: (first, entries), after)[0] == (first, entries)

    @rule(which=st.integers(0, 1000))
    def go_away(self, which: int) -> None:
        cursor = self.cursors[which % len(self.cursors)]
        position = self.log.position_at(cursor)
        if cursor >= self._start - 1:
            assert position == self.positions[cursor]
        else:
            assert position in (NOWHERE, self.positions.get(cursor))
        if position != NOWHERE:
            self.given.append((cursor, position))

    @rule(which=st.integers(0, 1000), pause=pauses)
    def come_back(self, which: int, pause: int) -> None:
        """A position that was given out leads to the place behind it, or to a gap."""
        self.now += pause
        index, position = self.given[which % len(self.given)]
        cursor = self.log.cursor({position.epoch: position.offset})
        self._trim()
        # Behind the last of those that have no number of their own: they are for who is there.
        while self.positions.get(index + 1) == position:
            index += 1
        if index >= self._start - 1:
            assert cursor == index
        else:
            assert cursor < self._start - 1
            _, entries = self.log.read(cursor)
            gap = entries[0]
            assert isinstance(gap, Gap)
            numbered = [lost for lost in range(index + 1, self._start) if lost not in self.breaks]
            assert gap.missed is None or len(numbered) <= gap.missed <= self._start - 1 - index
        self.cursors.append(cursor)

    @rule(offset=st.integers(0, 40), epoch=st.sampled_from([0, 1, 2]))
    def come_from_elsewhere(self, offset: int, epoch: int) -> None:
        """The largest index at or before the offset; never one above it, which would pass over what came between."""
        name = [*self.broker, "another"][-epoch]
        cursor = self.log.cursor({name: offset})
        self._trim()
        known = [kept.index for kept in self.kept if kept.position.epoch == name]
        if self.positions[self._start - 1].epoch == name:
            known.insert(0, self._start - 1)
        at_or_before = [index for index in known if self.positions[index].offset <= offset]
        if name == self.epoch and offset > self._end().offset:
            assert cursor == LOST
        elif at_or_before:
            assert cursor == max(at_or_before)
        else:
            assert cursor < self._start - 1

    @rule()
    def ask_for_the_earliest(self) -> None:
        assert self.log.cursor({EARLIEST: 0}) == self.log.start - 1
        self._trim()

    @rule()
    def come_from_nowhere(self) -> None:
        self._trim()
        assert self.log.cursor({}) == self.log.cursor({"": 1}) == self.log.cursor({NOWHERE.epoch: 0}) == LOST

    @rule(number=st.integers(0, 9), pause=pauses)
    def look_at_the_newest(self, number: int, pause: int) -> None:
        self.now += pause
        first, entries = self.log.newest(number)
        self._trim()
        newest = self.kept[-number:] if number else []
        assert first == (newest[0].index if newest else self._top + 1)
        assert entries == [kept.entry for kept in newest]

    # What always holds

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        log = self.log
        assert (log.start, log.top, len(log)) == (self._start, self._top, len(self.kept))
        assert log.size == sum(kept.cost for kept in self.kept)
        assert log.position == self._end() == log.position_at(log.top)
        assert log.epoch == self.epoch
        assert log.positions(log.start, len(log)) == [kept.position for kept in self.kept]
        assert log.position_at(log.start - 1) == self.positions[log.start - 1]

    @invariant()
    def every_reader_could_read_on(self) -> None:
        for cursor in self.cursors:
            self._check_read(cursor, *self.log.read(cursor))


def test_whatever_is_done_to_a_log_nothing_is_lost_in_silence() -> None:
    run_state_machine_as_test(LogAndModel, settings=settings(max_examples=300, stateful_step_count=40, deadline=None))
