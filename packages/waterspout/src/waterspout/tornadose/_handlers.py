"""What a handler that lives as long as its client stays needs: a queue that can be closed, and a place among the
connections of the server."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from tornado.iostream import IOStream, StreamClosedError
from tornado.queues import Queue

from waterspout_handlers import AGED, ConnectionRefused, Connections, Goodbye

if TYPE_CHECKING:
    from asyncio import Future


class Messages(Queue[Any]):
    """What was submitted to a handler and is not published yet."""

    _getting: Future[Any] | None = None

    def get(self, timeout: float | datetime.timedelta | None = None) -> Future[Any]:
        self._getting = cast("Future[Any]", super().get(timeout))
        return self._getting

    def interrupt(self) -> None:
        """Have who waits for a message get `StreamClosedError` instead."""
        if self._getting is not None and not self._getting.done():
            self._getting.set_exception(StreamClosedError())


def abandon(messages: Queue[Any]) -> None:
    """Let go whoever waits for `messages`, or for room there."""
    while not messages.empty():
        messages.get_nowait()
    if isinstance(messages, Messages):
        messages.interrupt()
    else:
        messages.put_nowait(None)


class Guest:
    """One of the server's connections that has no outlet, but a handler that lives.

    It is counted, kept alive, and said goodbye to like the others, by what the handler does for `beat` and `end`.
    """

    def __init__(
        self,
        stream: IOStream,
        address: str,
        connections: Connections,
        *,
        beat: Callable[[], object],
        end: Callable[[Goodbye], object],
    ) -> None:
        self.address = address
        self.beat = beat
        self.end = end
        self._stream = stream
        self._connections = connections
        connections.tune(stream)
        try:
            connections.add(self)
        except ConnectionRefused:
            self.left()
            raise

    def expire(self) -> None:
        """Its deadline has come."""
        self.end(AGED)

    def close(self) -> None:
        """It is over, now."""
        self._stream.close()
        self.left()

    def left(self) -> None:
        """It is over."""
        self._connections.remove(self)
