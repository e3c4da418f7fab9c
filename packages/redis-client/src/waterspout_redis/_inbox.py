"""Between the socket and one listener: batches that wait to be taken, bounded in messages and bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ._session import PubSubMessage


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages may have been lost here: the link was away for `seconds`, or, where that is 0.0, they did not fit into
    a full listener. Everything desired is subscribed, and what is published from now on comes after this."""

    seconds: float


Item: TypeAlias = PubSubMessage | Gap


class Inbox:
    """Full from its bound on until half of it was taken; then it calls `on_room`."""

    def __init__(self, max_messages: int, max_bytes: int, on_room: Callable[[], None]) -> None:
        self._max_messages, self._max_bytes, self._on_room = max_messages, max_bytes, on_room
        self._batches: deque[tuple[list[Item], int]] = deque()
        self._messages = self._bytes = 0
        self._losing = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.full = False

    def put(self, batch: list[Item], size: int, *, keep: bool) -> None:
        """Take a batch of so many bytes. When full, it is taken only to `keep` it, else lost with one `Gap` in its
        place: whoever puts must have stopped reading to ask for the first."""
        if self.full and not keep:
            if self._losing:
                return
            batch, size = [Gap(0.0)], 0
            self._losing = True
        else:
            self._losing = False
        self._batches.append((batch, size))
        self._messages += len(batch)
        self._bytes += size
        self.full = self.full or self._messages >= self._max_messages or self._bytes >= self._max_bytes
        self._wake()

    async def get(self) -> list[Item] | None:
        """The oldest batch, as soon as there is one; None after `close`, when all were taken."""
        while not self._batches:
            if self._closed:
                return None
            if self._waiter is not None:
                raise RuntimeError("a task waits here already: give each a listener of its own with listen()")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        batch, size = self._batches.popleft()
        self._messages -= len(batch)
        self._bytes -= size
        # Going on at half saves stopping and starting for every batch.
        if self.full and self._messages <= self._max_messages // 2 and self._bytes <= self._max_bytes // 2:
            self.full = False
            self._on_room()
        return batch

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
