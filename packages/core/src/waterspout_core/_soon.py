"""A burst costs one wake-up: call a function once per turn of the loop, however often it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Soon:
    """`soon(function)` has `function` called in the next turn of the running loop, once.

    It keeps no reference to it beyond that: its owner's bound method would make a cycle, and a large log would live
    on until the garbage collector comes by, which counts objects and not bytes.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, function: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        # Not a flag: a loop that was closed in between has taken its callback with it.
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._run, function)

    def _run(self, function: Callable[[], None]) -> None:
        self._loop = None
        function()
