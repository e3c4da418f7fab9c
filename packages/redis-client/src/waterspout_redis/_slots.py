"""Who waits for a reply: one call, or a whole pipeline.

A slot stays in line when its caller is cancelled or has timed out: the server answers it all the same, and the
reply is read and dropped, so that no later caller ever gets it.
"""

from __future__ import annotations

from asyncio import Future
from typing import Any, Protocol

from ._errors import RedisError, ResponseError


class Slot(Protocol):
    """What a connection owes an end to: `resolve` or `fail`, exactly once. Neither raises."""

    def resolve(self, reply: Any) -> None: ...

    def fail(self, error: RedisError) -> None: ...


class Call:
    """One command and the Future of its reply. Its errors are raised."""

    __slots__ = ("command", "encoding", "future", "made_at")

    replies = 1

    def __init__(self, command: bytes, future: Future[Any], encoding: str | None) -> None:
        self.command, self.future, self.encoding = command, future, encoding
        self.made_at = 0.0

    def resolve(self, reply: Any) -> None:
        future = self.future
        if future.done():
            return
        if isinstance(reply, ResponseError):
            future.set_exception(reply)
        elif self.encoding is None:
            future.set_result(reply)
        else:
            try:
                future.set_result(decoded(reply, self.encoding))
            except UnicodeError as error:
                future.set_exception(error)

    def fail(self, error: RedisError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class PipelineCall:
    """Several commands and the Future of the list of their replies; error replies are elements of the list."""

    __slots__ = ("_results", "command", "encoding", "future", "made_at", "replies")

    def __init__(self, command: bytes, replies: int, future: Future[Any], encoding: str | None) -> None:
        self.command, self.replies, self.future, self.encoding = command, replies, future, encoding
        self.made_at = 0.0
        self._results: list[Any] = []

    def resolve(self, reply: Any) -> None:
        results = self._results
        results.append(reply)
        if len(results) < self.replies or self.future.done():
            return
        try:
            self.future.set_result(results if self.encoding is None else decoded(results, self.encoding))
        except UnicodeError as error:
            self.future.set_exception(error)

    def fail(self, error: RedisError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def decoded(reply: Any, encoding: str) -> Any:
    """`reply` with every byte string in it as text; errors inside are left as they are."""
    if isinstance(reply, bytes):
        return reply.decode(encoding)
    if isinstance(reply, list):
        return [decoded(item, encoding) for item in reply]
    if isinstance(reply, dict):
        return {decoded(key, encoding): decoded(value, encoding) for key, value in reply.items()}
    return reply
