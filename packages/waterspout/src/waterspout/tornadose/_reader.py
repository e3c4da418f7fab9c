"""Reading a log for those who are given each message, as tornadose's subscribers are."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any, Final

from waterspout_core import BaseStore, Gap

logger: Final = logging.getLogger("waterspout.tornadose")


class Reader:
    """Reads the log of `store` for `subscriber`: `submit` for one message after the other, awaited if it is a
    coroutine. Nothing is kept for the slow ones but their place in the log."""

    __slots__ = ("_cursor", "_left", "_subscriber", "task")

    def __init__(self, store: BaseStore, subscriber: Any) -> None:
        self.task: asyncio.Task[None] | None = None
        self._subscriber = subscriber
        self._cursor = store.cursor()
        self._left = False

    def wake(self, store: BaseStore) -> None:
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._read(store))

    def leave(self) -> None:
        """Submit nothing more."""
        self._left = True

    async def _read(self, store: BaseStore) -> None:
        try:
            while self._cursor < store.log.top:
                first, entries = store.log.read(self._cursor)
                for self._cursor, entry in enumerate(entries, first):
                    if self._left:
                        return
                    if isinstance(entry, Gap):  # which tornadose has no word for
                        count = "some" if entry.missed is None else entry.missed
                        logger.warning("%s messages were lost to a subscriber: %r", count, self._subscriber)
                        continue
                    submitted = self._subscriber.submit(entry.data)
                    if inspect.isawaitable(submitted):
                        await submitted
        except Exception:
            logger.exception("a subscriber failed and is left out from now on: %r", self._subscriber)
            store.deregister(self._subscriber)
