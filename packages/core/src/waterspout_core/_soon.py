"""A burst costs one wake-up: call a function once per turn of the loop, however often it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Soon:
    """`soon()` has `function` called in the next turn of the running loop, once."""

    __slots__ = ("_function", "_loop")

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self) -> None:
        loop = asyncio.get_running_loop()
        # Not a flag: a loop that was closed in between has taken its callback with it.
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._run)

    def _run(self) -> None:
        self._loop = None
        self._function()
