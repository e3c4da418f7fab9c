"""The history of channels in Redis, from this side: publishing into it, and reading it."""

from __future__ import annotations

import asyncio
import re
from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from waterspout_redis import Client, Pipeline

from .._history import History, Past
from .._position import Position
from ._keys import keys_of
from ._publisher import Publisher, position_of
from ._script import Functions

T = TypeVar("T")

_META: Final = re.compile(rb"([0-9a-f]{1,32}) ([0-9]{1,18}) [0-9]+ [0-9]+ [0-9]+").fullmatch


class RedisHistory:
    """The history of every channel on one server. What it does there is written in waterspout.lua."""

    def __init__(self, client: Client, history: History) -> None:
        self._client = client
        self._messages, self._retention = history.messages, max(round(history.retention * 1000), 1)
        self._functions = Functions(client)
        self._publisher = Publisher(client, self._functions, history)

    async def load(self) -> None:
        """See to it that other programs find the functions, where the server can have any. Raises RedisError."""
        await self._functions.load()

    async def aclose(self) -> None:
        """Send nothing again any more; to be called before the client is closed."""
        await self._publisher.aclose()

    def publish(self, topic: str, payload: bytes, key: str | None = None) -> Future[Position]:
        """Put `payload` into the channel's history and publish it; the Future gives its position, or raises RedisError
        (or `MessageTooLarge`). A channel keeps the order of the calls.

        What was published with the same `key` in the last 5 minutes is not published again. So it is safe to send it
        again when its answer was lost, which is done for 10 seconds. Without one the caller has to decide.
        """
        return self._publisher.publish(topic, payload, key)

    # Reading

    async def read(self, topic: str, after: Position | None = None, limit: int | None = None) -> Past:
        """What is kept of the channel behind `after`: all of it if that is of another epoch, nothing without it. At
        most the newest `limit`. Raises RedisError.

        A channel that nobody has published on begins its epoch here: so who reads it has a position to come back with.
        """
        keys = keys_of(topic)
        reply = None
        if after is not None:
            count = self._messages if limit is None else min(limit, self._messages)
            reply = await self._functions.run("waterspout_read", keys, [*after, count, self._retention], bulk=count > 0)
        if reply is None:
            reply = await self._functions.run("waterspout_open", keys, [topic, self._messages, self._retention])
            top = position_of(reply)
            if after is None or not top.offset:
                return Past(*top, [])
            # Somebody has published between the two.
            return await self.read(topic, after, limit)
        found, top, now, entries = reply
        payloads = []
        # Newest first. Where one is missing, what is before it is of no use.
        for expected, (entry_id, fields) in zip(range(top, 0, -1), entries, strict=False):
            if fields[0] != b"%d" % expected:
                break
            payloads.append((fields[1], max(now - int(entry_id.partition(b"-")[0]), 0) / 1000))
        return Past(found.decode(), top, payloads[::-1])

    def meta(self, topic: str) -> Future[list[Any]]:
        """What `top_in` finds a channel's top in, alone in a list, as it is before anything that is published here from
        now on, but for what `overtakes`."""
        pipeline = Pipeline()  # which, unlike a GET, is not sent again behind what was published meanwhile
        pipeline.stack_call("GET", keys_of(topic)[0])
        return self._client.call(pipeline, decode=None)

    def tops(self, topics: Sequence[str]) -> Future[list[Position | None]]:
        """Where each channel stands, asked in one pipeline; None where that is not known."""
        return self._ask([("GET", keys_of(topic)[0]) for topic in topics], _tops)

    def ends(self, topics: Sequence[str]) -> Future[list[Past | None]]:
        """Where each channel stands, and its last message if that is kept, asked in one pipeline."""
        commands: list[Sequence[str | int]] = []
        for topic in topics:
            meta, log = keys_of(topic)
            commands += [("GET", meta), ("XREVRANGE", log, "+", "-", "COUNT", 1)]
        return self._ask(commands, _ends)

    def _ask(self, commands: Sequence[Sequence[str | int]], into: Callable[[list[Any]], T]) -> Future[T]:
        pipeline = Pipeline()
        for command in commands:
            pipeline.stack_call(*command)
        answer: Future[T] = asyncio.get_running_loop().create_future()

        def answered(replies: Future[list[Any]]) -> None:
            error = None if replies.cancelled() else replies.exception()
            if answer.done():
                return
            if replies.cancelled():
                answer.cancel()
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(into(replies.result()))

        self._client.call(pipeline, decode=None).add_done_callback(answered)
        return answer

    async def renew(self, topic: str, lost: Position) -> None:
        """Begin a new epoch, if the channel is still in that of `lost` and has not come as far: a failover has lost
        what somebody has seen, and its numbers must not be given to other messages. Raises RedisError."""
        keys = keys_of(topic)
        await self._functions.run("waterspout_renew", keys, [topic, *lost])


def _tops(replies: list[Any]) -> list[Position | None]:
    return [top_in(meta) for meta in replies]


def _ends(replies: list[Any]) -> list[Past | None]:
    ends: list[Past | None] = []
    for meta, entries in zip(replies[::2], replies[1::2], strict=True):
        top = top_in(meta)
        if top is None:
            ends.append(None)
            continue
        # Nothing, an error, or an entry that is none of ours tells nothing.
        found = entries[0][1] if isinstance(entries, list) and entries else [b""]
        payloads = [(found[1], 0.0)] if found[0] == b"%d" % top.offset else []
        ends.append(Past(top.epoch, top.offset, payloads))
    return ends


def top_in(meta: Any) -> Position | None:
    """Where a channel stands as its meta key says; None where that is not known."""
    if not isinstance(meta, bytes):
        return None  # no such key, or an error
    found = _META(meta)
    return Position(found[1].decode(), int(found[2])) if found else None
