"""Who listens on one link: each with an inbox of its own, all with the same stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Self

from ._inbox import Inbox, Item


class Listeners:
    """The inboxes of all who listen. `on_room` is called whenever `full` may have ended."""

    def __init__(self, max_messages: int, max_bytes: int, on_room: Callable[[], None]) -> None:
        self._max_messages, self._max_bytes, self._on_room = max_messages, max_bytes, on_room
        self._inboxes: list[Inbox] = []
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether nobody has room. One who has keeps the others from being waited for."""
        for inbox in self._inboxes:
            if not inbox.full:
                return False
        return bool(self._inboxes)

    def put(self, batch: list[Item], size: int, *, keep: bool) -> None:
        """Give all of them the batch, which is handed over; see `Inbox.put`."""
        for place, inbox in enumerate(self._inboxes):
            inbox.put(batch.copy() if place else batch, size, keep=keep)

    def add(self) -> Inbox:
        """One more, who gets what comes from now on."""
        inbox = Inbox(self._max_messages, self._max_bytes, self._on_room)
        if self._closed:
            inbox.close()
        else:
            self._inboxes.append(inbox)
            self._on_room()
        return inbox

    def remove(self, inbox: Inbox) -> None:
        """One less; what it has can still be taken."""
        inbox.close()
        if inbox in self._inboxes:
            self._inboxes.remove(inbox)
            self._on_room()

    def close(self) -> None:
        """Nothing more will come, for anybody."""
        self._closed = True
        for inbox in self._inboxes:
            inbox.close()
        self._inboxes.clear()


class Listener:
    """One of those who listen to a `PubSubClient`, made by its `listen()`: ``async for item in listener``, or
    ``async for batch in listener.batches()``; only one task can wait for it at a time.

    Close it, or use it in a ``with``, when nobody takes from it any more.
    """

    def __init__(self, listeners: Listeners, begin: Callable[[], None]) -> None:
        self._listeners, self._begin = listeners, begin
        self._inbox = listeners.add()
        self._current: Iterator[Item] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        for item in self._current:
            return item
        self._current = iter(await self._next_batch())
        return next(self._current)

    def batches(self) -> AsyncIterator[list[Item]]:
        """The same stream in lists, each with all that one read from the socket brought: the fast way."""
        return _Batches(self)

    def close(self) -> None:
        """Stop listening: the iteration ends after what was received."""
        self._listeners.remove(self._inbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _rest_or_next_batch(self) -> list[Item]:
        return list(self._current) or await self._next_batch()

    async def _next_batch(self) -> list[Item]:
        self._begin()
        batch = await self._inbox.get()
        if batch is None:
            raise StopAsyncIteration
        return batch


class _Batches:
    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Item]:
        return await self._listener._rest_or_next_batch()
