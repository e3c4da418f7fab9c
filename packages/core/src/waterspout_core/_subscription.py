"""The plain way to read a store: ``async for message in store.subscribe()``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from ._message import Entry
from ._position import EARLIEST, Position, from_id

if TYPE_CHECKING:
    from ._stores import BaseStore


class Subscription:
    """The messages of a store, and a `Gap` where some were lost, from one position on and for ever.

    Made by `BaseStore.subscribe`. Only one task can wait for it at a time. Whoever takes slowly costs nothing: what was
    not taken yet waits in the store's log. Close it, use it in an ``async with``, or let it go.
    """

    __slots__ = ("_bell", "_cursor", "_next", "_now", "_offsets", "_run", "_store")

    def __init__(self, store: BaseStore, after: Position | str | None) -> None:
        self._store = store
        # The store knows the bell only, so that a subscription which nobody holds any more can be collected.
        self._bell = _Bell()
        self._offsets = None if after is None else from_id(str(after))
        # From now on is from now on, also if nobody asks for the first message for a while.
        self._now = store.cursor()
        self._cursor = self._now if after is None else None
        self._run: list[Entry] = []
        self._next = 0
        store.register(self._bell)

    @property
    def position(self) -> Position | None:
        """Behind what was taken last: `subscribe(after=…)` goes on from here. None before it is known."""
        if self._cursor is None:
            return None
        return self._store.log.position_at(self._cursor - len(self._run) + self._next)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        at = self._next
        if at < len(self._run):
            self._next = at + 1
            return self._run[at]
        if self._bell.closed:
            raise StopAsyncIteration
        if self._cursor is None:
            self._cursor = await self._store.seek(self._offsets)
            if self._offsets and EARLIEST in self._offsets:
                self._cursor = min(self._cursor, self._now)
        log = self._store.log
        if self._cursor >= log.top:
            await self._store.ready()  # or nothing will ever come
            while self._cursor >= log.top:
                await self._bell.wait()
        first, self._run = log.read(self._cursor)
        self._cursor = first + len(self._run) - 1
        self._next = 1
        return self._run[0]

    async def aclose(self) -> None:
        """End it; who waits for the next message gets none."""
        if self._cursor is not None:
            self._cursor += self._next - len(self._run)
        self._run, self._next = [], 0
        self._store.deregister(self._bell)
        self._bell.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._store.deregister(self._bell)


class _Bell:
    """Rings when the log has grown; what a subscription registers."""

    __slots__ = ("_waiter", "closed")

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False

    def wake(self, store: BaseStore) -> None:
        self._ring()

    async def wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("a task waits here already: make a subscription for each")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self.closed:
            raise StopAsyncIteration

    def close(self) -> None:
        self.closed = True
        self._ring()

    def _ring(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
