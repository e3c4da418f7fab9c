"""Who waits for a reply.

What stands in line in a session is a *slot*. Nearly always it is the bare Future that `Client.call` returned: nothing
is faster. Where the reply has to be worked on first, it is an object of this module around that Future.

A slot stays in line when its caller is cancelled or has timed out: the server answers it all the same, and the
reply is read and dropped, so that no later caller ever gets it.
"""

from __future__ import annotations

from asyncio import Future
from typing import Any, Protocol, TypeAlias

from ._errors import ExecAbortError, RedisError, ResponseError, WatchError


class Waiter(Protocol):
    """A slot that works on its reply. Neither of these raises."""

    def resolve(self, reply: Any) -> None:
        """Here is a reply; an error reply is a ResponseError."""

    def fail(self, error: RedisError) -> None:
        """There will be no reply."""


Slot: TypeAlias = "Future[Any] | Waiter"


def fail(slot: Slot, error: RedisError) -> None:
    """There will be no reply: tell whoever waits."""
    if not isinstance(slot, Future):
        slot.fail(error)
    elif not slot.done():
        slot.set_exception(error)


class DecodedCall:
    """One command whose reply is wanted as text."""

    __slots__ = ("encoding", "future")

    def __init__(self, future: Future[Any], encoding: str) -> None:
        self.future, self.encoding = future, encoding

    def resolve(self, reply: Any) -> None:
        if self.future.done():
            return
        if isinstance(reply, ResponseError):
            self.future.set_exception(reply)
        else:
            _deliver(self.future, reply, self.encoding)

    def fail(self, error: RedisError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def done(self) -> bool:
        return self.future.done()


class PipelineCall:
    """Several commands and the Future of the list of their replies; error replies are elements of the list."""

    __slots__ = ("_encoding", "_future", "_results", "replies")

    def __init__(self, replies: int, future: Future[Any], encoding: str | None) -> None:
        self.replies = replies
        """How many are awaited in all."""
        self._future, self._encoding = future, encoding
        self._results: list[Any] = []

    def resolve(self, reply: Any) -> None:
        self._results.append(reply)
        if len(self._results) == self.replies and not self._future.done():
            self._finish(self._future, self._results)

    def _finish(self, future: Future[Any], results: list[Any]) -> None:
        _deliver(future, results, self._encoding)

    def fail(self, error: RedisError) -> None:
        if not self._future.done():
            error.replies = self._results
            self._future.set_exception(error)

    def done(self) -> bool:
        return self._future.done()


class TransactionCall(PipelineCall):
    """MULTI, commands, EXEC, and the Future of the list that EXEC answers."""

    __slots__ = ()

    def fail(self, error: RedisError) -> None:
        # That commands were queued is no reply to them.
        self._results = []
        super().fail(error)

    def _finish(self, future: Future[Any], results: list[Any]) -> None:
        begun, *queued, outcome = results
        refusals = [reply for reply in queued if isinstance(reply, ResponseError)]
        if isinstance(begun, ResponseError):
            # Without MULTI each command was executed by itself.
            begun.maybe_executed = True
            outcome = begun
        elif isinstance(outcome, ExecAbortError) and refusals:
            outcome = ExecAbortError(f"{outcome} {refusals[0]}")
        if isinstance(outcome, ResponseError):
            future.set_exception(outcome)
        elif outcome is None:
            future.set_exception(WatchError())
        else:
            super()._finish(future, outcome)


CallSlot: TypeAlias = "Future[Any] | DecodedCall | PipelineCall"
"""Those that somebody waits for; `done()` tells when nobody does any more."""


def _deliver(future: Future[Any], reply: Any, encoding: str | None) -> None:
    try:
        future.set_result(reply if encoding is None else decoded(reply, encoding))
    except Exception as error:
        # Also an encoding that there is not: nothing may come out of here, see `Waiter`.
        future.set_exception(error)


def decoded(reply: Any, encoding: str) -> Any:
    """`reply` with every byte string in it as text; errors inside are left as they are."""
    if isinstance(reply, bytes):
        return reply.decode(encoding)
    if isinstance(reply, list):
        return [decoded(item, encoding) for item in reply]
    if isinstance(reply, dict):
        return {decoded(key, encoding): decoded(value, encoding) for key, value in reply.items()}
    return reply
