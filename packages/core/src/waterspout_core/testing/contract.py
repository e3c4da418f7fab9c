"""What the contracts share: a loop for each test, and readers that note what they get."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import pytest

from .._message import Entry, Message, Payload
from .._pubsub import PubSub, PubSubProtocol
from .._stores import BaseStore
from .._subscription import Subscription

# pytest shows what differs in an assertion only in modules that it has been told of before they are imported.
pytest.register_assert_rewrite(
    *(f"{__package__}.contract_{part}" for part in ("channels", "leases", "logs", "pubsub", "stores"))
)

T = TypeVar("T")

DEADLINE: Final = 30.0
"""Seconds that a test of a contract may take."""

PAYLOADS: Final[list[Payload]] = [
    *("text", "", " ", "null", "žluťoučký 🐎", "two\r\nlines\n", "\x1e{", "\x1eabc-1\n", "\x00"),
    *(b"bytes", b"", b"\x00\xff", b"\x1e{}\n"),
    *(0, -1, 10**20, 0.5, False, True, None),
    *([], {}, [0, [None]], {"goals": 0, "": {}}),
]
"""What a store has to deliver as it was given (F39)."""


class Contract:
    """Base of the contracts. pytest makes one for each test."""

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run `test` in an event loop of its own. TimeoutError after `DEADLINE` seconds."""

        async def bounded() -> T:
            async with asyncio.timeout(DEADLINE):
                return await test

        return asyncio.run(bounded())

    def name(self, text: str = "") -> str:
        """A name that begins with `text`, for a channel that no other test uses."""
        return f"{text}{secrets.token_hex(5)}"


class BrokerContract(Contract):
    """Base of the contracts for brokers. Two `PubSub`s on one broker are two nodes."""

    def open_pubsub(self, *, protocol: PubSubProtocol | None = None, history: int = 0) -> PubSub:
        """Make a new connection to the broker: to the same one within a test. With `history`, it keeps so many messages
        of each channel that stores are fed by."""
        raise NotImplementedError


class Noted:
    """A list that can be waited for."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self._some = asyncio.Event()

    def note(self, *items: Any) -> None:
        self.got += items
        self._some.set()

    async def until(self, count: int) -> list[Any]:
        """All of it, once there are at least `count`."""
        while len(self.got) < count:
            self._some.clear()
            await self._some.wait()
        return self.got


class Reader(Noted):
    """A subscriber of `store` that reads at once, and notes the entries."""

    def __init__(self, store: BaseStore) -> None:
        super().__init__()
        self._after = store.cursor()
        store.register(self)

    def wake(self, store: BaseStore) -> None:
        while self._after < store.log.top:
            first, entries = store.log.read(self._after)
            self._after = first + len(entries) - 1
            self.note(*entries)


class Listener(Noted):
    """A client of a `PubSub` that notes what it is called with, as pairs."""

    def __call__(self, channel: str, message: Any) -> None:
        self.note((channel, message))


async def take(subscription: Subscription, count: int) -> list[Entry]:
    """The next `count` entries."""
    return [await anext(subscription) for _ in range(count)]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when `condition` holds, which nobody tells us of; `Contract.run` bounds the time."""
    while not await condition():  # noqa: ASYNC110  # the broker has no event for us
        await asyncio.sleep(0.01)


def values(entries: list[Entry]) -> list[Any]:
    """The payloads of messages; a gap as it is."""
    return [entry.data if isinstance(entry, Message) else entry for entry in entries]
