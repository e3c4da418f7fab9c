"""What a line server tells the log: which channels are read there, and, for debugging, what is sent in them."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from waterspout_core import BaseStore

if TYPE_CHECKING:
    from ._lines import LineServer

logger: Final = logging.getLogger("waterspout.handlers")


class Readers:
    """Which channels have readers here, for the log; where that is for debugging, every message of theirs, too."""

    def __init__(self, server: LineServer) -> None:
        self._server = server
        self._numbers: Counter[BaseStore] = Counter()
        self._cursors: dict[BaseStore, int] = {}

    def add(self, store: BaseStore) -> None:
        """One more reads `store`."""
        self._numbers[store] += 1
        if self._numbers[store] == 1:
            self._tell("Subscribed to", store)
            if logger.isEnabledFor(logging.DEBUG):
                self._cursors[store] = store.log.top
                store.register(self)

    def remove(self, store: BaseStore) -> None:
        """One less does."""
        self._numbers[store] -= 1
        if not self._numbers[store]:
            del self._numbers[store]
            self._tell("Unsubscribed from", store)
            if self._cursors.pop(store, None) is not None:
                store.deregister(self)

    def wake(self, store: BaseStore) -> None:
        while self._cursors[store] < store.log.top:
            first, entries = store.log.read(self._cursors[store])
            self._cursors[store] = first + len(entries) - 1
            for entry in entries:
                logger.debug("Message in %s: %s", self._server.name_of(store), getattr(entry, "text", entry))

    def _tell(self, what: str, store: BaseStore) -> None:
        name = self._server.name_of(store)
        # Where clients have channels of their own, each of them comes and goes all the time.
        level = logging.INFO if name == self._server.default_channel else logging.DEBUG
        logger.log(level, '%s "%s"', what, name)
