"""What the tests of stores share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from waterspout_core import BaseStore, Message


class Reader:
    """A subscriber that notes what it reads, and how often it was woken."""

    def __init__(self, store: BaseStore, offsets: dict[str, int] | None = None) -> None:
        self.after = store.cursor(offsets)
        self.got: list[Any] = []
        self.woken = 0
        self.some = asyncio.Event()
        store.register(self)
        self.wake(store)
        self.woken = 0

    def wake(self, store: BaseStore) -> None:
        self.woken += 1
        first, entries = store.log.read(self.after)
        self.after = first + len(entries) - 1
        self.got += [entry.data if isinstance(entry, Message) else entry for entry in entries]
        self.some.set()

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(5):
            while len(self.got) < count:
                self.some.clear()
                await self.some.wait()
        return self.got


@pytest.fixture
def listen() -> type[Reader]:
    """Makes a subscriber: `reader = listen(store)`, or `listen(store, offsets)` for one that comes back."""
    return Reader
