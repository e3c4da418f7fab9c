"""Where metrics and tracing plug in. What is not asked for costs nothing."""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, CancelledError, Future
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from ._errors import RedisError
from ._state import LinkState

logger: Final = logging.getLogger("waterspout.redis")

OnConnection: TypeAlias = Callable[[str, LinkState, RedisError | None], object]
OnCommand: TypeAlias = Callable[[str, float, BaseException | None], object]


class Hooks:
    """The callbacks of one client. What they raise is logged and harms nothing."""

    __slots__ = ("_on_command", "_on_connection")

    def __init__(self, on_connection: OnConnection | None = None, on_command: OnCommand | None = None) -> None:
        self._on_connection, self._on_command = on_connection, on_command

    def connection(self, lane: str, state: LinkState, error: RedisError | None) -> None:
        """The connection of this lane has changed to `state`, because of `error`."""
        if self._on_connection is not None:
            try:
                self._on_connection(lane, state, error)
            except Exception:
                logger.exception("error in an on_connection callback")

    def watch(self, future: Future[Any], name: str, loop: AbstractEventLoop) -> None:
        """Tell of this command when it has ended."""
        if self._on_command is not None:
            future.add_done_callback(partial(self._ended, name, loop.time(), loop))

    def _ended(self, name: str, begun: float, loop: AbstractEventLoop, future: Future[Any]) -> None:
        assert self._on_command is not None
        error = CancelledError() if future.cancelled() else future.exception()
        try:
            self._on_command(name, loop.time() - begun, error)
        except Exception:
            logger.exception("error in an on_command callback")
