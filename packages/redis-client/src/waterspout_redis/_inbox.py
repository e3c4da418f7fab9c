"""Between the socket and the listener: batches that wait to be taken, bounded in messages and bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """Nothing is dropped here: `put` always takes, and says when it is full; then the one who puts must stop until
    `on_room` is called."""

    def __init__(self, max_messages: int, max_bytes: int, on_room: Callable[[], None]) -> None:
        self._max_messages, self._max_bytes, self._on_room = max_messages, max_bytes, on_room
        self._batches: deque[tuple[list[Item], int]] = deque()
        self._messages = self._bytes = 0
        self._full = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, batch: list[Item], size: int) -> bool:
        """Take a batch of so many bytes, and return whether there is room for more."""
        self._batches.append((batch, size))
        self._messages += len(batch)
        self._bytes += size
        self._full = self._full or self._messages >= self._max_messages or self._bytes >= self._max_bytes
        self._wake()
        return not self._full

    async def get(self) -> list[Item] | None:
        """The oldest batch, as soon as there is one; None after `close`, when all were taken."""
        while not self._batches:
            if self._closed:
                return None
            if self._waiter is not None:
                raise RuntimeError("there is a listener already: make a PubSubClient for each, or share one's items")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        batch, size = self._batches.popleft()
        self._messages -= len(batch)
        self._bytes -= size
        # Going on at half saves stopping and starting for every batch.
        if self._full and self._messages <= self._max_messages // 2 and self._bytes <= self._max_bytes // 2:
            self._full = False
            self._on_room()
        return batch

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
