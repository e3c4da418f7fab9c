"""A channel with callbacks: one more reader of the channel's log, which fires what it reads."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, QueueFull, Task
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from inspect import isasyncgenfunction, isawaitable, ismethod, signature
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from waterspout_core import GAP_EVENT, BaseStore, BrokerError, ChannelStore, Entry, Gap, compile_glob

if TYPE_CHECKING:
    from ._channels import Channels

Callback: TypeAlias = Callable[["Channel", str, Any], object]
"""Called with the channel, the name of the event, and its data: a plain function, or a coroutine function."""

_REMEMBERED: Final = 256
"""Names of events whose callbacks a channel knows without matching patterns."""

_MAX_WAITING: Final = 1_000
"""Calls of coroutine functions that wait, at 300 bytes and more each, when no more events may be fired here."""


class CallbackError(Exception):
    """Raised by a callback that wants to be called no more: it is unregistered without a word."""


class _Pattern(NamedTuple):
    """The callbacks of one pattern, in order."""

    pattern: str
    matches: Callable[[str], bool]
    callbacks: dict[Callback, None]


class Channel:
    """The callbacks that are registered on one channel, made by `Channels.register`.

    It reads the channel's log from the moment of its first registration, and each event fires the callbacks whose
    pattern matches, in order of registration. What a coroutine function does is awaited before the next event is read,
    so a slow one is a cursor that stays behind, which costs nothing and is told of a gap when the log has moved past.
    """

    def __init__(self, channels: Channels, name: str) -> None:
        self.channels = channels
        self.name = name
        self.failures = 0
        """How often a callback has failed."""
        self._patterns: dict[str, _Pattern] = {}
        self._found: dict[str, tuple[tuple[_Pattern, Callback], ...]] = {}  # by event; forgotten with each change
        self._store: ChannelStore | None = None
        self._cursor = 0
        self._run: Iterator[Entry] = iter(())  # read, and not fired yet
        self._reading = False
        self._due = False  # in the next turn of the loop
        self._called: deque[tuple[_Pattern, Callback, Awaitable[object]]] = deque()  # what is to be awaited
        self._task: Task[None] | None = None  # only while there is

    def __repr__(self) -> str:
        return f"<Channel {self.name!r} {list(self.events)}>"

    def __len__(self) -> int:
        """How many patterns are registered."""
        return len(self._patterns)

    def __contains__(self, event: object) -> bool:
        return event in self._patterns

    @property
    def events(self) -> tuple[str, ...]:
        """The patterns that are registered, in order."""
        return tuple(self._patterns)

    @property
    def callbacks(self) -> Mapping[str, tuple[Callback, ...]]:
        """The callbacks of each pattern, in order."""
        return {name: tuple(pattern.callbacks) for name, pattern in self._patterns.items()}

    def fire(self, event: str, data: Any = None) -> None:
        """Fire `event` here and nowhere else. What coroutine functions do is awaited soon, in order.

        What is fired meanwhile waits in memory, not in the log. Raises `asyncio.QueueFull`, before anything is called,
        where 1,000 calls of coroutine functions wait already: fire it when they have caught up, or publish it. Raises
        `BrokerError` after `aclose`, and RuntimeError where no loop runs.
        """
        self.channels._check_open()
        asyncio.get_running_loop()  # without one nothing shall be called
        if len(self._called) >= _MAX_WAITING:
            raise QueueFull(
                f"{event!r:.80} is not fired on {self.name!r}, where {len(self._called)} calls of coroutine functions "
                "wait: fire it when they have caught up, or publish it, so that it waits in the log"
            )
        self._call(event, data)
        self._await_soon()

    async def ready(self) -> None:
        """Return when the broker has confirmed the channel: what is published from now on is fired here.
        Raises `BrokerError`."""
        if self._store is None:
            raise BrokerError(f"nothing is subscribed for {self.name!r}: it is not registered, or no loop has run")
        await self._store.ready()

    def wake(self, store: BaseStore) -> None:
        """The log has grown."""
        if self._task is not None or self._reading:
            return  # it will be read then
        self._read()
        self._await_soon()
        # What a callback has published here itself waits for the next turn of the loop, so that others have theirs.
        if self._task is None and not self._due and self._cursor < store.log.top:
            self._due = True
            asyncio.get_running_loop().call_soon(self._go_on)

    # What its owner does

    @property
    def attached(self) -> bool:
        """Whether it reads its channel."""
        return self._store is not None

    def add(self, event: str, callback: Callback) -> None:
        """Call `callback` for events that match the glob `event`; twice is once. Raises `TypeError`."""
        if not isinstance(event, str) or not callable(callback):
            raise TypeError(f"register takes an event's name and a function, not {event!r:.80} and {callback!r:.80}")
        if not _fits(callback):
            raise TypeError(
                f"a callback is called with a channel, an event and its data, for which {callback!r:.80} is not made"
            )
        pattern = self._patterns.get(event) or _Pattern(event, compile_glob(event), {})
        pattern.callbacks[callback] = None  # what cannot be a key is refused here, before anything is changed
        self._patterns[event] = pattern
        self._found.clear()

    def remove(self, event: str, callback: Callback) -> bool:
        """Call it no more. False if it was not registered for `event`."""
        pattern = self._patterns.get(event)
        if pattern is None or callback not in pattern.callbacks:
            return False
        del pattern.callbacks[callback]
        if not pattern.callbacks:
            del self._patterns[event]
        self._found.clear()
        return True

    def attach(self, store: ChannelStore, *, patient: bool) -> None:
        """Read `store` from now on. A `patient` one is not told of what is missed until the broker has confirmed."""
        self._store = store
        store.open()  # it may have been refused, and nobody has asked for it since
        self._cursor = store.cursor()
        store.register(self, patient=patient)

    def reopen(self) -> None:
        """Ask the broker again if it has refused."""
        if self._store is not None:
            self._store.open()

    def detach(self) -> None:
        """Read no more. What is being awaited goes on."""
        if self._store is not None:
            self._store.deregister(self)
            self._store = None
        self._run = iter(())

    def stop(self) -> None:
        """Read no more, and await nothing that is not being awaited."""
        self.detach()
        while self._called:
            _drop(self._called.popleft()[-1])

    # Firing

    def _go_on(self) -> None:
        self._due = False
        if self._store is not None:
            self.wake(self._store)

    def _read(self) -> None:
        """Fire what stands behind the cursor now, until something is to be awaited."""
        store, event_of = self._store, self.channels.dialect.event_of
        end = 0 if store is None else store.log.top
        self._reading = True
        try:
            while True:
                for entry in self._run:
                    try:
                        told = (GAP_EVENT, {"missed": entry.missed}) if isinstance(entry, Gap) else event_of(entry)
                        if told is not None:
                            self._call(*told)
                    except Exception:  # what is behind it shall come all the same
                        self.channels.logger.exception("a message on %r cannot be understood", self.name)
                    if self._called:
                        return
                if store is None or self._cursor >= end:
                    return
                first, entries = store.log.read(self._cursor)
                self._cursor = first + len(entries) - 1
                self._run = iter(entries)
        finally:
            self._reading = False

    def _call(self, event: str, data: Any) -> None:
        """Call what is registered for `event`."""
        found = self._found.get(event)
        for pattern, callback in self._find(event) if found is None else found:
            if callback not in pattern.callbacks:
                continue  # one of those before has unregistered it
            try:
                result = callback(self, event, data)
            except (Exception, CancelledError) as error:  # such as the result of a Future that was cancelled
                self._failed(pattern, callback, error)
            else:
                if result is not None and isawaitable(result):
                    self._called.append((pattern, callback, result))

    def _find(self, event: str) -> tuple[tuple[_Pattern, Callback], ...]:
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        found = self._found[event] = tuple(
            (pattern, callback)
            for pattern in tuple(self._patterns.values())
            # A gap is no event that somebody has published: who wants to know of it says so.
            if (pattern.pattern == event if event == GAP_EVENT else pattern.matches(event))
            for callback in pattern.callbacks
        )
        return found

    def _await_soon(self) -> None:
        if self._called and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._await(), name=f"callbacks of {self.name}")
            self.channels._tasks.add(self._task)
            self._task.add_done_callback(self.channels._tasks.discard)

    async def _await(self) -> None:
        """Await what was called, and go on reading, until there is nothing to be awaited."""
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._called:
                for _ in range(len(self._called)):
                    if not self._called:
                        break  # stopped meanwhile
                    pattern, callback, result = self._called.popleft()
                    if callback not in pattern.callbacks:
                        _drop(result)  # it was unregistered meanwhile
                        continue
                    try:
                        await result
                    except CancelledError as error:
                        if task.cancelling():
                            raise
                        self._failed(pattern, callback, error)
                    except Exception as error:
                        self._failed(pattern, callback, error)
                if self._called:  # they have fired more; who waits for nothing shall not keep the loop
                    await asyncio.sleep(0)
                    continue
                before = self._cursor
                self._read()
                if self._cursor != before:
                    await asyncio.sleep(0)  # callbacks that wait for nothing shall not keep the loop for themselves
        finally:
            self._task = None
        self._go_on()

    def _failed(self, pattern: _Pattern, callback: Callback, error: BaseException) -> None:
        if not isinstance(error, CallbackError):
            self.failures += 1
            self.channels.logger.error(
                "a callback for %r on %r failed: %r", pattern.pattern, self.name, callback, exc_info=error
            )
            if self.channels.on_error == "keep":
                return
        self.channels._forget(self, pattern.pattern, callback)


def _fits(callback: Callback) -> bool:
    """Whether it may be called with three arguments, and something comes of that, as far as it can be known."""
    function: Any = callback
    if not hasattr(function, "__code__"):
        function = function.__call__
    if isasyncgenfunction(function):
        return False
    code = getattr(function, "__code__", None)
    if code is not None and code.co_argcount == 3 + ismethod(function) and not code.co_kwonlyargcount:
        return True  # as most are; to ask properly takes as long as all else of a registration
    try:
        signature(callback).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # some that are written in C do not tell
        return True
    return True


def _drop(result: Awaitable[object]) -> None:
    """Nobody awaits it."""
    if asyncio.iscoroutine(result):
        result.close()
