"""A loop whose clock is moved by hand, so that a minute of lingering takes no time."""

from __future__ import annotations

import asyncio
import gc
import inspect
import selectors
import time
from typing import Any

import pytest


class Clock:
    """The time of the loop, and of everything else in the process, while a test runs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.turns = 0
        """Turns of the loop since it last had nothing to do."""

    def __call__(self) -> float:
        return self.now

    async def pass_by(self, seconds: float) -> None:
        """Let `seconds` pass, with all that is due in them."""
        await asyncio.sleep(seconds)

    async def turn(self) -> None:
        """Let the loop do what it has to do now."""
        for _ in range(5):
            await asyncio.sleep(0)


class HastySelector(selectors.DefaultSelector):
    """Where the loop would wait for a timer, the clock is put forward instead."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "the loop waits for something that will never happen"
        if timeout > 0:
            self._clock.turns = 0
            self._clock.now += timeout
        self._clock.turns += 1
        if self._clock.turns == 10_000:  # once: the loop has to go on to be closed
            raise AssertionError("the loop never rests")
        return super().select(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutine functions in a loop of their own, on the test's clock if it has one."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    clock: Clock | None = arguments.get("clock")
    complaints: list[str] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: complaints.append(str(context)))
        await pyfuncitem.obj(**arguments)
        gc.collect()  # exceptions that nobody has asked for are told now

    def new_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(HastySelector(clock) if clock else None)

    with pytest.MonkeyPatch.context() as patch:
        if clock is not None:
            patch.setattr(time, "monotonic", clock)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run())
    assert complaints == []
    return True
