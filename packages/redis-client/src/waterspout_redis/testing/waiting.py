"""Waiting in tests: for the thing itself, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result], *, deadline: float = 30.0) -> Result:
    """Run an async test in an event loop of its own. TimeoutError after `deadline` seconds."""

    async def bounded() -> Result:
        async with asyncio.timeout(deadline):
            return await main

    return asyncio.run(bounded())


async def eventually(condition: Callable[[], Any], *, deadline: float = 10.0) -> Any:
    """The first value of `condition()` that is true; AssertionError if there is none within `deadline` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not (value := condition()):
        assert loop.time() < end, f"not within {deadline:g} s: {condition!r}"
        await asyncio.sleep(0.005)
    return value
