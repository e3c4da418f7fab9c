"""Publishing into the history of channels: in batches, in order, and again where that is safe."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import Any, Final, TypeAlias

from waterspout_redis import BULK, Client, ClosedError, Pipeline, RedisError

from .._errors import MessageTooLarge
from .._history import History
from .._position import Position
from ._errors import is_final
from ._keys import idempotency_key, keys_of
from ._script import Functions

MAX_PAYLOAD: Final = 1024 * 1024
"""Bytes of one message, as it travels. The functions refuse more, too."""

BATCH_MESSAGES: Final = 1000
BATCH_BYTES: Final = BULK - 4096
"""While Redis works on one batch it does nothing else, for a millisecond or two. With all that is around it a batch is
small enough for the shared connection."""

_OVERHEAD: Final = 32  # bytes around an argument
# Channels in one pipeline where so many or more are ready. Larger ones cost us less for each; of few channels in small
# ones the server works on some while we work on others, which was worth half as much again for 16 callers.
_TOGETHER: Final = ((65, 32), (17, 16), (0, 8))
_TRY_AGAIN: Final = 10.0  # seconds
_RETRY_DELAY: Final = 0.1

_Call: TypeAlias = tuple[bytes, str | None, Future[Position]]  # a payload, its idempotency key, who waits
_Batch: TypeAlias = list[_Call]
"""What goes out in one call of the function: messages of one channel, all with an idempotency key or none."""


class Publisher:
    """Publishes on any number of channels.

    Each keeps its order, whatever happens: what is published while an answer is awaited waits for it, and then goes
    out together.
    """

    def __init__(self, client: Client, functions: Functions, history: History) -> None:
        self._client, self._functions = client, functions
        self._bounds = history.messages, max(round(history.retention * 1000), 1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, _Batch] = {}  # what is not sent yet, of each channel that is busy
        self._ready: deque[str] = deque()  # busy channels that wait for no answer
        self._tasks: set[asyncio.Task[None]] = set()

    def publish(self, topic: str, payload: bytes, key: str | None) -> Future[Position]:
        """See `RedisHistory.publish`."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # What waited in another loop ended with it.
            self._loop, self._waiting, self._ready, self._tasks = loop, {}, deque(), set()
        answer: Future[Position] = loop.create_future()
        if len(payload) > MAX_PAYLOAD:
            answer.set_exception(MessageTooLarge(len(payload), MAX_PAYLOAD))
            return answer
        waiting = self._waiting.get(topic)
        if waiting is None:
            keys_of(topic)  # raises here and not where it would hold up others
            self._waiting[topic] = [(payload, key, answer)]
            self._send_soon(topic)
        else:
            waiting.append((payload, key, answer))
        return answer

    async def aclose(self) -> None:
        """Send nothing again any more."""
        if self._tasks and self._loop is asyncio.get_running_loop():
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _send_soon(self, topic: str) -> None:
        if not self._ready:
            assert self._loop is not None
            self._loop.call_soon(self._send)
        self._ready.append(topic)

    def _send(self) -> None:
        """Send what waits on channels that are ready. Of many channels some go in this turn of the loop and some in the
        next ones, so that the server works on these while we work on those."""
        pipeline = Pipeline()
        together: list[tuple[str, _Batch]] = []
        ready, functions = self._ready, self._functions
        most = next(most for least, most in _TOGETHER if len(ready) >= least)
        room = BATCH_BYTES // 2  # with all that is around it: what went as bulk could overtake a question
        while ready and len(together) < most:
            topic = ready[0]
            waiting = self._waiting[topic]
            room -= _size(topic, waiting[0]) if len(waiting) == 1 else sum(_size(topic, call) for call in waiting)
            if together and room < 0:
                break
            ready.popleft()
            batches, self._waiting[topic] = _batches(topic, waiting)
            if len(batches) == 1:
                pipeline.stack_call(*functions.command("waterspout_append", *self._arguments(topic, batches[0])))
                together.append((topic, batches[0]))
            else:
                replies = [functions.call("waterspout_append", *self._arguments(topic, batch)) for batch in batches]
                self._follow(topic, batches, replies)
        if together:
            self._client.call(pipeline, decode=None).add_done_callback(partial(self._answered, together))
        if ready:
            assert self._loop is not None
            self._loop.call_soon(self._send)

    def _arguments(self, topic: str, batch: _Batch) -> tuple[Sequence[str], Sequence[str | bytes | int]]:
        keys: Sequence[str] = keys_of(topic)
        if batch[0][1] is not None:
            keys = [*keys, *[idempotency_key(topic, key or "") for _, key, _ in batch]]
        return keys, [topic, *self._bounds, *[payload for payload, _, _ in batch]]

    def _answered(self, together: list[tuple[str, _Batch]], reply: Future[list[Any]]) -> None:
        error = asyncio.CancelledError() if reply.cancelled() else reply.exception()
        if error is None:
            results: Sequence[Any] = reply.result()
        else:
            results = error.replies if isinstance(error, RedisError) else ()
            results = [*results, *repeat(error, len(together) - len(results))]
        for (topic, batch), result in zip(together, results, strict=True):
            if isinstance(result, BaseException):
                failed = reply.get_loop().create_future()
                failed.set_exception(result)
                self._follow(topic, [batch], [failed])
            else:
                _resolve(batch, result)
                self._go_on(topic)

    def _go_on(self, topic: str) -> None:
        """Whatever was sent is answered."""
        if self._waiting[topic]:
            self._send_soon(topic)
        else:
            del self._waiting[topic]

    # Where it takes more than one answer

    def _follow(self, topic: str, batches: list[_Batch], replies: Sequence[Future[Any]]) -> None:
        """Have a task see to these, one after the other."""
        assert self._loop is not None
        task = self._loop.create_task(self._see_to(topic, batches, replies))

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            for reply in replies:
                reply.add_done_callback(_retrieved)  # those it did not get to
            for batch in batches:
                _fail(batch, ClosedError(maybe_executed=True))  # if it was cancelled
            self._go_on(topic)

        self._tasks.add(task)
        task.add_done_callback(done)

    async def _see_to(self, topic: str, batches: list[_Batch], replies: Sequence[Future[Any]]) -> None:
        for batch, reply in zip(batches, replies, strict=True):
            try:
                _resolve(batch, await self._answer(topic, batch, reply))
            except Exception as error:
                _fail(batch, error)

    async def _answer(self, topic: str, batch: _Batch, reply: Future[Any]) -> Any:
        """The reply to `batch`, which is sent again where that is right."""
        call: Final = "waterspout_append", *self._arguments(topic, batch)
        try:
            return await self._functions.finish(reply, *call)
        except RedisError as error:
            if batch[0][1] is None or not error.maybe_executed or isinstance(error, ClosedError):
                raise
            lost = error
        with suppress(TimeoutError):
            async with asyncio.timeout(_TRY_AGAIN):
                while True:
                    try:
                        return await self._functions.run(*call)
                    except RedisError as error:
                        if is_final(error) or isinstance(error, ClosedError):
                            break
                    await asyncio.sleep(_RETRY_DELAY)
        raise lost


def _batches(topic: str, waiting: list[_Call]) -> tuple[list[_Batch], list[_Call]]:
    """What may be sent now, and the rest. What is too large for the shared connection goes alone: on another one it
    could overtake, and be overtaken."""
    if len(waiting) == 1:
        return [waiting], []
    batches: list[_Batch] = []
    batch: _Batch = []
    size = 0
    for at, call in enumerate(waiting):
        grown = _size(topic, call)
        size += grown
        if batch and (size > BATCH_BYTES or len(batch) == BATCH_MESSAGES or (call[1] is None) != (batch[0][1] is None)):
            batches.append(batch)
            batch, size = [], grown
        if size > BATCH_BYTES:
            return (batches, waiting[at:]) if batches else ([[call]], waiting[at + 1 :])
        batch.append(call)
    batches.append(batch)
    return batches, []


def _size(topic: str, call: _Call) -> int:
    """Bytes that it takes in a batch, at most."""
    payload, key, _ = call
    size = len(payload) + _OVERHEAD
    # A character has 4 bytes at most.
    return size if key is None else size + 4 * (len(topic) + len(key)) + _OVERHEAD


def _resolve(batch: _Batch, reply: Any) -> None:
    """Each message of it has its position now."""
    if isinstance(reply, list):
        for (_, _, answer), text in zip(batch, reply, strict=True):
            if not answer.done():
                answer.set_result(position_of(text))
        return
    epoch, last = position_of(reply)
    for offset, (_, _, answer) in enumerate(batch, last - len(batch) + 1):
        if not answer.done():
            answer.set_result(Position(epoch, offset))


def _retrieved(reply: Future[Any]) -> None:
    """Nobody wants to know what became of it."""
    if not reply.cancelled():
        reply.exception()


def _fail(batch: _Batch, error: Exception) -> None:
    """Those of it that have no position yet raise this."""
    for _, _, answer in batch:
        if not answer.done():
            answer.set_exception(error)


def position_of(text: bytes) -> Position:
    """The position that the functions write like this."""
    epoch, _, offset = text.decode().partition("-")
    return Position(epoch, int(offset))
