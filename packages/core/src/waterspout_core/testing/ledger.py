"""The delivery ledger: what was published, against what each reader got."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from .._errors import BrokerError
from .._message import Entry, Gap, Message, Payload
from .._position import Position
from .._stores import BaseStore

_AROUND: Final = 3  # entries shown on each side of a difference


class Unreconciled(AssertionError):
    """What a reader got is not what was published: `reader` of `channel` differs at its entry number `at` (from 0)."""

    def __init__(self, channel: str, reader: str, at: int, why: str, published: str, received: str) -> None:
        super().__init__(
            f"{channel}: {reader!r} differs at its entry {at}: {why}\n  published  {published}\n  received   {received}"
        )
        self.channel, self.reader, self.at, self.why = channel, reader, at, why


@dataclass(slots=True, eq=False)
class Sent:
    """One message that was published.

    Set its `position` when the broker has told it, and `sure` to False when the broker's answer was lost: then it may
    have been published, or not.
    """

    message: Message
    position: Position | None = None
    sure: bool = True


class Account:
    """What one reader of a channel got, however often it went away and came back. Made by `Ledger.reader`."""

    def __init__(self, channel: str, name: str, after: Position | None, begun: int) -> None:
        self.channel = channel
        self.name = name
        self.after = after
        self.entries: list[tuple[Entry, Position | None]] = []
        self.left = False
        self.begun = begun
        self._position = after

    def got(self, entry: Entry, position: Position | None = None) -> None:
        """The reader got `entry`, and stands at `position` now."""
        self.entries.append((entry, position))
        self._position = position or self._position

    def leave(self) -> None:
        """The reader has gone for good: what is missing at its end is no loss."""
        self.left = True

    async def follow(self, store: BaseStore) -> None:
        """Note all that `store` delivers, until cancelled.

        Called again, also with the store of another node, it goes on where it stopped.
        """
        if self._position is None:
            self.after = self._position = await store.position()
        async with store.subscribe(after=self._position) as subscription:
            async for entry in subscription:
                self.got(entry, subscription.position)


class Ledger:
    """Reconciles deliveries: each reader got every message, in order and once, or a `Gap` for exactly what is missing.

    `Gap(missed=k)` stands for exactly k messages, `Gap()` for any number of them, none as well, at that place only.
    Messages that have positions are known by them, and stand in their order whoever published first; others are
    known by their value, and stand in the order of `published`. Equal messages without positions may be told apart
    in more than one way: the ledger objects if there is none at all.
    """

    def __init__(self) -> None:
        self._sent: dict[str, list[Sent]] = {}
        self._accounts: list[Account] = []

    def published(self, channel: str, message: Message, position: Position | None = None) -> Sent:
        """`message` was or is about to be published. Note it before it goes out, so that no reader can be faster."""
        sent = Sent(message, position)
        self._sent.setdefault(channel, []).append(sent)
        return sent

    async def submit(self, store: BaseStore, channel: str, data: Payload, event: str | None = None) -> Position | None:
        """Note and publish a message. A `BrokerError` is noted too, and raised."""
        sent = self.published(channel, Message(data, event))
        try:
            sent.position = await store.submit(data, event)
        except (BrokerError, asyncio.CancelledError):
            sent.sure = False
            raise
        return sent.position

    def reader(self, channel: str, name: str, after: Position | None = None) -> Account:
        """Open the account of a reader, which gets all that stands behind `after`.

        Without `after` it gets all that is published from now on; before that may come some that were on their way,
        or were kept: the newest of them, without a hole.
        """
        account = Account(channel, name, after, len(self._sent.get(channel, ())))
        self._accounts.append(account)
        return account

    def check(self) -> None:
        """Raises `Unreconciled` at the first difference."""
        for channel in dict.fromkeys(account.channel for account in self._accounts):
            accounts = [account for account in self._accounts if account.channel == channel]
            book = _Book(self._sent.get(channel, []), accounts)
            for account in accounts:
                book.check(account)

    async def settled(self, deadline: float = 10.0) -> None:
        """Return when all is delivered. Raises `Unreconciled` if it is not within `deadline` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        before, pause = -1, 0.02
        while True:
            now = sum(len(account.entries) for account in self._accounts)
            late = loop.time() > end
            # While there is a flow it is too early to count.
            if now == before or late:
                try:
                    return self.check()
                except Unreconciled:
                    if late:
                        raise
                    pause = min(pause * 2, 0.5)
            before = now
            await asyncio.sleep(pause)


class _Book:
    """The messages of one channel in their order, and the places between them: place n stands behind n messages."""

    def __init__(self, sent: list[Sent], accounts: list[Account]) -> None:
        _learn(sent, accounts)
        # Epochs follow one another in the order in which they were first seen.
        self._ranks = {
            epoch: rank for rank, epoch in enumerate(dict.fromkeys(s.position.epoch for s in sent if s.position))
        }
        keys: list[tuple[int, int]] = []
        for one in sent:
            # Without a position of its own it stands where the one before it stands.
            keys.append(self._key(one.position) if one.position else keys[-1] if keys else (0, 0))
        order = sorted(range(len(sent)), key=keys.__getitem__)
        self._sent = [sent[at] for at in order]
        self._keys = [keys[at] for at in order]
        self._end = len(sent)
        self._places: dict[Message, dict[int, None]] = {}
        for place, one in enumerate(self._sent):
            self._places.setdefault(one.message, {})[place] = None
        self._sure = [0, *accumulate(one.sure for one in self._sent)]

    def check(self, account: Account) -> None:
        """Raises `Unreconciled`."""
        here: Collection[int] = self._begin(account)
        for at, (entry, position) in enumerate(account.entries):
            there = self._with_unsure(self._go(here, entry, position))
            if not there:
                raise self._difference(account, at, here, self._why(here, entry))
            here = there
        if not account.left and self._end not in here:
            missing = self._end - max(here)
            raise self._difference(account, len(account.entries), here, f"{_messages(missing)} never came")

    def _begin(self, account: Account) -> Collection[int]:
        if account.after is not None and account.after.epoch in self._ranks:
            begin: Collection[int] = self._behind(account.after)
        else:
            begin = range(account.begun + 1)
        return self._with_unsure(begin)

    def _go(self, here: Collection[int], entry: Entry, position: Position | None) -> Iterable[int]:
        """The places where a reader may stand that stood at one of `here` and got `entry`."""
        if isinstance(entry, Message):
            # After a gap it may be anywhere: look where there are such messages, if those are fewer.
            equal = self._places.get(entry, ())
            near = filter(here.__contains__, equal) if len(equal) < len(here) else filter(equal.__contains__, here)
            return (place + 1 for place in near if self._fits(place, position))
        ends = self._behind(position)
        if entry.missed is None:
            return range(max(min(here), ends.start), ends.stop)
        return (end for place in here for end in self._over(place, entry.missed) if end in ends)

    def _fits(self, place: int, position: Position | None) -> bool:
        known = self._sent[place].position
        return position is None or known is None or known == position

    def _with_unsure(self, places: Iterable[int]) -> Collection[int]:
        """`places`, and those behind them that a reader reaches if what nobody is sure of was not published."""
        if isinstance(places, range) and self._end in places:
            return places
        return {end for place in places for end in self._over(place, 0)}

    def _over(self, place: int, missed: int) -> Iterator[int]:
        """The places `missed` messages further on; what nobody is sure of counts, or does not."""
        end = place + missed
        while end <= self._end and self._sure[end] - self._sure[place] <= missed:
            yield end
            end += 1

    def _behind(self, position: Position | None) -> range:
        """The places that stand at `position`: one, but for messages that have no position of their own."""
        if position is None or position.epoch not in self._ranks:
            return range(self._end + 1)
        key = self._key(position)
        first, last = bisect_left(self._keys, key), bisect_right(self._keys, key)
        if first < last and self._sent[first].position:
            first += 1
        return range(first, last + 1)

    def _key(self, position: Position) -> tuple[int, int]:
        return self._ranks[position.epoch], position.offset

    def _why(self, here: Collection[int], entry: Entry) -> str:
        if isinstance(entry, Gap):
            return f"{entry} does not end where it says, or not before the last message"
        places = self._places.get(entry, {})
        if later := [place for place in places if place > max(here)]:
            return f"{_messages(later[0] - max(here))} passed over, and no gap that says so"
        return "it came before, or too late" if places else "it was never published"

    def _difference(self, account: Account, at: int, here: Collection[int], why: str) -> Unreconciled:
        published = [_shown(sent.message, sent.position) + "?" * (not sent.sure) for sent in self._sent]
        received = [_shown(entry, position) for entry, position in account.entries]
        return Unreconciled(account.channel, account.name, at, why, _part(published, max(here)), _part(received, at))


def _learn(sent: list[Sent], accounts: list[Account]) -> None:
    """What nobody was sure of has been published if a reader has it, and then at the position that the reader saw."""
    known = {one.position for one in sent if one.position}
    epochs = {position.epoch for position in known}
    seen = {
        entry: position
        for account in accounts
        for entry, position in account.entries
        if position and position.epoch in epochs and position not in known
    }
    for one in sent:
        if not one.sure and one.position is None and one.message in seen:
            one.position = seen[one.message]
            one.sure = True


def _messages(count: int) -> str:
    return "one message" if count == 1 else f"{count} messages"


def _shown(entry: Entry, position: Position | None) -> str:
    text = repr(entry) if isinstance(entry, Gap) else f"{entry.data!r:.30}"
    return f"{text} ({position})" if position else text


def _part(shown: list[str], at: int) -> str:
    first = max(at - _AROUND, 0)
    part = [f"{number} {text}" for number, text in enumerate(shown[first : at + _AROUND + 1], first)]
    part[at - first :] = ["> " + text for text in part[at - first :][:1]] + part[at - first + 1 :] or ["> the end"]
    return " | ".join(["…"] * (first > 0) + part + ["…"] * (at + _AROUND + 1 < len(shown)))
