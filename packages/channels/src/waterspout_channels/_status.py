"""The status of the link to the broker: what it is, and who watches it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from enum import Enum
from inspect import iscoroutinefunction
from typing import Final, TypeAlias

from waterspout_core import BrokerError, Message, QueueStore

_REMEMBERED: Final = 100
"""So many changes are kept for who watches and takes his time."""


class StatusType(Enum):
    """Of the link between `Channels` and their broker."""

    initialised = 1
    """Nobody has called `connect` yet."""
    connecting = 2
    """Since `connect` was called; after a break it is `disconnected` until it is connected again."""
    connected = 3
    """The broker has confirmed the status channel, and all that was registered before and that it does not refuse."""
    disconnected = 4
    """It is tried again by itself, at longer and longer intervals."""
    closed = 5
    """For good."""


StatusListener: TypeAlias = Callable[[StatusType], object]
"""Called with each new status."""


class Status:
    """The status now, and all who want to know of changes. As everywhere here, it is a log with cursors in it."""

    def __init__(self, logger: logging.Logger) -> None:
        self.now = StatusType.initialised
        self._logger = logger
        self._changes = QueueStore(max_messages=_REMEMBERED)
        self._listeners: dict[StatusListener, None] = {}

    def change(self, status: StatusType) -> None:
        """It is `status` from now on, unless it is closed."""
        if status is self.now or self.now is StatusType.closed:
            return
        self.now = status
        self._changes.submit(status.value)
        for listener in tuple(self._listeners):
            try:
                listener(status)
            except Exception:
                self._logger.exception("a status listener failed: %r", listener)

    def add(self, listener: StatusListener) -> None:
        """Call `listener` with each new status. Twice is once. Raises `TypeError`."""
        if not callable(listener) or iscoroutinefunction(listener):
            raise TypeError(f"a status listener is a plain function, which {listener!r:.80} is not: see `watch`")
        self._listeners[listener] = None

    def remove(self, listener: StatusListener) -> None:
        """Call it no more, known or not."""
        self._listeners.pop(listener, None)

    async def watch(self) -> AsyncGenerator[StatusType, None]:
        """The status now, then each new one; ends with `closed`."""
        status = self.now
        async with self._changes.subscribe() as changes:
            yield status
            while status is not StatusType.closed:
                entry = await anext(changes)
                if isinstance(entry, Message):  # else so many were missed that nobody wants to know
                    status = StatusType(entry.data)
                    yield status

    async def wait_for(self, status: StatusType) -> None:
        """Return when it is `status`. Raises `BrokerError` if it never will be, and `TypeError`."""
        if not isinstance(status, StatusType):
            raise TypeError(f"a status is one of StatusType, not {status!r:.80}")
        async with aclosing(self.watch()) as statuses:
            async for each in statuses:
                if each is status:
                    return
        raise BrokerError("these channels are closed")
