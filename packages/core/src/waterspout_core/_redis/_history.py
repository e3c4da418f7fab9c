"""The history of channels in Redis: publishing into it in batches, and reading it."""

from __future__ import annotations

import asyncio
import re
from asyncio import Future
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, TypeAlias

from waterspout_redis import BULK, Client, ClosedError, Pipeline, RedisError

from .._errors import BadMessage
from .._history import History, Past
from .._position import Position
from ._errors import is_final
from ._script import Functions

MAX_PAYLOAD: Final = 1024 * 1024
"""Bytes of one message, as it travels. The functions refuse more, too."""

BATCH_MESSAGES: Final = 1000
BATCH_BYTES: Final = BULK - 4096
"""While Redis works on one batch it does nothing else, for a millisecond or two. With all that is around it a batch is
small enough for the shared connection."""

_OVERHEAD: Final = 32  # bytes around an argument

_TRY_AGAIN: Final = 10.0  # seconds
_RETRY_DELAY: Final = 0.1

_OWN_TAG: Final = re.compile(r"[^{]*\{[^}]+\}", re.DOTALL).match


_Call: TypeAlias = tuple[bytes, str | None, Future[Position]]  # a payload, its idempotency key, who waits


@lru_cache(10_000)
def keys_of(topic: str) -> tuple[str, str]:
    """The names in Redis of a channel's meta key and its log, which is a stream.

    They are in the cluster slot of the channel's own name. (Not for `{a}`, which would be taken for `a` then.)

    >>> keys_of("news")
    ('waterspout:meta:{news}', 'waterspout:log:{news}')
    >>> keys_of("of{eu}rope")
    ('waterspout:meta:of{eu}rope', 'waterspout:log:of{eu}rope')

    Raises UnicodeEncodeError for a name that cannot be one.
    """
    topic.encode()
    name = _tagged(topic)
    return f"waterspout:meta:{name}", f"waterspout:log:{name}"


def idempotency_key(topic: str, key: str) -> str:
    """The name in Redis of the idempotency key `key` for a channel. Names of channels have no white space."""
    return f"waterspout:key:{_tagged(topic)} {key}"


def _tagged(topic: str) -> str:
    own = _OWN_TAG(topic) and not (topic[0] == "{" and topic[-1] == "}")
    return topic if own else f"{{{topic}}}"


class RedisHistory:
    """The history of every channel on one server.

    Publishing keeps the order of a channel, whatever happens: what is published while an answer is awaited waits for
    it, and goes out in one batch.
    """

    def __init__(self, client: Client, history: History) -> None:
        self._client = client
        self._messages, self._retention = history.messages, max(round(history.retention * 1000), 1)
        self._functions = Functions(client)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, list[_Call]] = {}  # what is not sent yet, of each channel that is busy
        self._new: list[str] = []  # channels that have become busy in this turn of the loop
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """See to it that other programs find the functions, where the server can have any. Raises RedisError."""
        await self._functions.load()

    async def aclose(self) -> None:
        """Send nothing again any more."""
        tasks = self._tasks if self._loop is asyncio.get_running_loop() else set()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Publishing

    def publish(self, topic: str, payload: bytes, key: str | None = None) -> Future[Position]:
        """Put `payload` into the channel's history and publish it; the Future gives its position, or raises RedisError
        (or `BadMessage`, if it is too large).

        What was published with the same `key` in the last 5 minutes is not published again. So it is safe to send it
        again when its answer was lost, which is done for 10 seconds. Without one the caller has to decide.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # What waited in another loop ended with it.
            self._loop, self._waiting, self._new, self._tasks = loop, {}, [], set()
        answer: Future[Position] = loop.create_future()
        if len(payload) > MAX_PAYLOAD:
            answer.set_exception(BadMessage(f"a message of {len(payload)} bytes, the limit is {MAX_PAYLOAD}"))
            return answer
        waiting = self._waiting.get(topic)
        if waiting is not None:
            waiting.append((payload, key, answer))
            return answer
        keys_of(topic)  # raises here and not where it would hold up others
        self._waiting[topic] = [(payload, key, answer)]
        if not self._new:
            loop.call_soon(self._flush)
        self._new.append(topic)
        return answer

    def _flush(self) -> None:
        topics, self._new = self._new, []
        for topic in topics:
            self._send(topic)

    def _send(self, topic: str) -> None:
        """Send what waits."""
        waiting = self._waiting[topic]
        if not waiting:
            del self._waiting[topic]
            return
        batches, self._waiting[topic] = _batches(topic, waiting)
        replies = [self._functions.call("waterspout_append", batch.keys, self._args(batch)) for batch in batches]
        if len(batches) > 1:
            self._follow(topic, batches, replies)
            return

        def answered(reply: Future[Any]) -> None:
            if reply.cancelled() or reply.exception() is not None:
                self._follow(topic, batches, replies)
            else:
                batches[0].resolve(reply.result())
                self._send(topic)

        replies[0].add_done_callback(answered)

    def _args(self, batch: _Batch) -> list[str | bytes | int]:
        return [batch.topic, self._messages, self._retention, *[payload for payload, _, _ in batch.calls]]

    def _follow(self, topic: str, batches: list[_Batch], replies: list[Future[Any]]) -> None:
        """Have a task see to these, one after the other."""
        assert self._loop is not None
        task = self._loop.create_task(self._see_to(batches, replies))

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                for batch in batches:
                    batch.fail(ClosedError(maybe_executed=True))
            self._send(topic)

        self._tasks.add(task)
        task.add_done_callback(done)

    async def _see_to(self, batches: list[_Batch], replies: list[Future[Any]]) -> None:
        for batch, reply in zip(batches, replies, strict=True):
            try:
                batch.resolve(await self._answer(batch, reply))
            except RedisError as error:
                batch.fail(error)

    async def _answer(self, batch: _Batch, reply: Future[Any]) -> Any:
        """The reply to `batch`, which is sent again where that is right."""
        call: Final = "waterspout_append", batch.keys, self._args(batch)
        try:
            return await self._functions.finish(reply, *call)
        except RedisError as error:
            if not batch.keyed or not error.maybe_executed or isinstance(error, ClosedError):
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

    # Reading

    async def read(self, topic: str, after: Position | None = None, limit: int | None = None) -> Past:
        """What is kept of the channel behind `after`: all of it if that is of another epoch, nothing without it. At
        most the newest `limit`. Raises RedisError.

        A channel that nobody has published on begins its epoch here: so who reads it has a position to come back with.
        """
        keys = keys_of(topic)
        count = 0 if after is None else self._messages if limit is None else min(limit, self._messages)
        epoch, offset = after or ("", 0)
        reply = await self._functions.run(
            "waterspout_read", keys, [epoch, offset, count, self._retention], bulk=count > 0
        )
        if reply is None:
            reply = await self._functions.run("waterspout_open", keys, [topic, self._messages, self._retention])
            return Past(*_position(reply), [])
        found, top, now, entries = reply
        payloads = []
        # Newest first. Where one is missing, what is before it is of no use.
        for expected, (entry_id, fields) in zip(range(top, 0, -1), entries, strict=False):
            if int(fields[0]) != expected:
                break
            payloads.append((fields[1], max(now - int(entry_id.partition(b"-")[0]), 0) / 1000))
        return Past(found.decode(), top, payloads[::-1])

    def tops(self, topics: Sequence[str]) -> Future[list[Position | None]]:
        """Where each channel stands, asked in one pipeline; None where that is not known."""
        pipeline = Pipeline()
        for topic in topics:
            pipeline.stack_call("GET", keys_of(topic)[0])
        loop = asyncio.get_running_loop()
        tops: Future[list[Position | None]] = loop.create_future()

        def answered(reply: Future[list[Any]]) -> None:
            error = None if reply.cancelled() else reply.exception()
            if tops.done():
                return
            if reply.cancelled():
                tops.cancel()
            elif error is not None:
                tops.set_exception(error)
            else:
                tops.set_result([_top(meta) for meta in reply.result()])

        self._client.call(pipeline, decode=None).add_done_callback(answered)
        return tops

    async def renew(self, topic: str, lost: Position) -> None:
        """Begin a new epoch, if the channel is still in that of `lost` and has not come as far: a failover has lost
        what somebody has seen, and its numbers must not be given to other messages. Raises RedisError."""
        keys = keys_of(topic)
        await self._functions.run("waterspout_renew", keys, [topic, *lost])


class _Batch:
    """Messages of one channel that go out in one call: all with an idempotency key, or none."""

    __slots__ = ("calls", "keyed", "keys", "topic")

    def __init__(self, topic: str, calls: list[_Call]) -> None:
        self.topic, self.calls = topic, calls
        self.keyed = calls[0][1] is not None
        self.keys: Sequence[str] = keys_of(topic)
        if self.keyed:
            self.keys = [*self.keys, *[idempotency_key(topic, key or "") for _, key, _ in calls]]

    def resolve(self, reply: Any) -> None:
        """Each message has its position now."""
        if self.keyed:
            positions = [_position(text) for text in reply]
        else:
            epoch, last = _position(reply)
            positions = [Position(epoch, offset) for offset in range(last - len(self.calls) + 1, last + 1)]
        for (_, _, answer), position in zip(self.calls, positions, strict=True):
            if not answer.done():
                answer.set_result(position)

    def fail(self, error: RedisError) -> None:
        """They all raise it, those that have no position yet."""
        for _, _, answer in self.calls:
            if not answer.done():
                answer.set_exception(error)


def _batches(topic: str, waiting: list[_Call]) -> tuple[list[_Batch], list[_Call]]:
    """What may be sent now, and the rest. What is too large for the shared connection goes alone: on another one it
    could overtake, and be overtaken."""
    if len(waiting) == 1:
        return [_Batch(topic, waiting)], []
    batches: list[_Batch] = []
    batch: list[_Call] = []
    size = 0
    for at, call in enumerate(waiting):
        payload, key, _ = call
        grown = len(payload) + _OVERHEAD
        if key is not None:
            grown += 4 * (len(topic) + len(key)) + _OVERHEAD  # a character has 4 bytes at most
        size += grown
        if batch and (size > BATCH_BYTES or len(batch) == BATCH_MESSAGES or (key is None) != (batch[0][1] is None)):
            batches.append(_Batch(topic, batch))
            batch, size = [], grown
        if size > BATCH_BYTES:
            if batches:
                return batches, waiting[at:]
            return [_Batch(topic, [call])], waiting[at + 1 :]
        batch.append(call)
    batches.append(_Batch(topic, batch))
    return batches, []


def _position(text: bytes) -> Position:
    epoch, _, offset = text.decode().partition("-")
    return Position(epoch, int(offset))


def _top(meta: Any) -> Position | None:
    """What a meta key says."""
    if not isinstance(meta, bytes):
        return None
    epoch, _, rest = meta.partition(b" ")
    top = rest.partition(b" ")[0]
    return Position(epoch.decode(errors="replace"), int(top)) if top.isdigit() else None
