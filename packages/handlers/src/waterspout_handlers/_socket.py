"""A WebSocket once it is open: frames in, answers out, and the way it is closed (RFC 6455)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tornado.iostream import IOStream, SSLIOStream

from ._audience import Behind, Cursors
from ._connections import Connections
from ._dialogue import Dialogue
from ._frames import (
    NO_CODE,
    PING,
    PONG,
    UNSUPPORTED,
    BadFrame,
    Close,
    Event,
    FrameReader,
    Ping,
    Pong,
    WebSocketText,
    frame,
    message_frame,
)
from ._goodbye import RESTART, SILENT, Goodbye
from ._outlet import CLOSING, Outlet

if TYPE_CHECKING:
    from ._websocket import WebSocketSubscriber

logger: Final = logging.getLogger("waterspout.handlers")

Outcome: TypeAlias = Awaitable[None] | None
"""What a hook returns: nothing, or something to wait for."""

FAILED: Final = Goodbye(1011, "something went wrong here")
NOT_TEXT: Final = Goodbye(UNSUPPORTED, "a request is text")


class Socket(Outlet):
    """An outlet whose peer speaks, too. While one of its messages is dealt with nothing more is read.

    Its `handler` is there only if that wants to hear of what happens; `reader` only while there is something in it.
    """

    __slots__ = ("_deflated", "_dialogue", "_goodbye", "_handler", "_max_size", "_reader", "_task", "_unheard")

    def __init__(
        self,
        stream: IOStream,
        format: WebSocketText,
        connections: Connections,
        dialogue: Dialogue,
        *,
        max_size: int,
        address: str,
        behind: Behind,
    ) -> None:
        super().__init__(stream, format, connections, address=address, behind=behind)
        self._deflated = format.deflated
        self._dialogue = dialogue
        self._max_size = max_size
        self._handler: WebSocketSubscriber | None = None
        self._reader: FrameReader | None = None
        self._task: asyncio.Future[None] | None = None  # that deals with a message
        self._goodbye: Goodbye | None = None  # to be said when that is done
        self._unheard = False  # whether nothing was heard since the last ping

    async def introduce(self, handler: WebSocketSubscriber, cursors: Cursors) -> None:
        """Begin, with a `handler` that hears of all that happens; first of all that it is open."""
        self.busy = True  # what comes in the meantime has to wait
        self.open({})
        try:
            if self.talking:
                self._handler = handler
                opened = handler.open(*handler.path_args, **handler.path_kwargs)
                if opened is not None:
                    await opened
                self.read(cursors)
        except BaseException:
            self.end(FAILED)
            raise
        finally:
            self.busy = False
            self.listen()

    def tell(self, answer: dict[str, Any]) -> None:
        """Send `answer` as JSON."""
        self.send(json.dumps(answer, separators=(",", ":")).encode())

    def send(self, payload: bytes, *, binary: bool = False) -> None:
        """Send a message, behind what was sent so far."""
        self.say(message_frame(payload, binary=binary, compress=self._deflated))

    def sent(self) -> asyncio.Future[None]:
        """Done when all has left that was sent so far. Raises StreamClosedError."""
        return self._stream.write(b"")

    def request(self, message: str | bytes) -> Outcome:
        """Answer a message of the client."""
        if isinstance(message, bytes):
            self.end(NOT_TEXT)
            return None
        return self._dialogue.answer(message, self)

    # Hooks of the outlet

    def receive(self, data: bytes) -> None:
        self._unheard = False
        if self._reader is None:
            self._reader = FrameReader(max_size=self._max_size, deflate=self._deflated)
        self._reader.receive(data)
        self._go_on(self._reader)

    def beat(self) -> None:
        if not self.talking:
            return
        if self._draining or self.busy:
            self._unheard = False  # it is we who do not listen
        elif self._unheard:
            self.connections.counts.silent += 1
            self.end(SILENT)
        else:
            self._unheard = True
            self.say(frame(PING))

    def end(self, goodbye: Goodbye) -> None:
        if self._task is not None and self._goodbye is None and goodbye.code == RESTART.code:
            # It has asked for something: the answer comes first, and nothing is asked for any more.
            self._goodbye = goodbye
            self.connections.end_at(self, monotonic() + CLOSING)
            return
        super().end(goodbye)

    def ended(self) -> None:
        # Ours is said. If the peer's is still to come it is waited for, as long as a goodbye may take.
        if self._reader is not None and self._reader.over:
            self._hang_up()

    def left(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            try:
                handler.on_close()
            except Exception:
                handler.log_exception(*sys.exc_info())
            handler.forget()

    # What the peer says

    def _go_on(self, reader: FrameReader) -> None:
        """Deal with what has come, up to a message that takes its time."""
        try:
            for event in reader.events():
                self._take(event)
                if self.busy:
                    return
        except BadFrame as error:
            if not self.talking:
                self.close()
            self.end(Goodbye(error.code, error.reason))
        if reader.idle and not reader.over:
            self._reader = None

    def _take(self, event: Event) -> None:
        handler = self._handler
        if isinstance(event, Close):
            self._part(event)
        elif not self.talking:
            return
        elif isinstance(event, Ping):
            self.say(frame(PONG, event.data))
            if handler is not None:
                self._call(handler.on_ping, event.data)
        elif isinstance(event, Pong):
            if handler is not None:
                self._call(handler.on_pong, event.data)
        else:
            self._call(self.request if handler is None else handler.on_message, event.data)

    def _call(self, hook: Callable[[Any], Outcome], data: str | bytes) -> None:
        try:
            outcome = hook(data)
            if outcome is None:
                return
            self._task = asyncio.ensure_future(outcome)
        except Exception as error:
            self._fail(error)
            return
        self.busy = True
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._task = None
        self.busy = False
        if task.cancelled():
            self.end(FAILED)
        elif error := task.exception():
            self._fail(error)
        if self._goodbye is not None:
            self.end(self._goodbye)
        if self._reader is not None:
            self._go_on(self._reader)
        self.listen()

    def _fail(self, error: BaseException) -> None:
        if self._handler is not None:
            self._handler.log_exception(type(error), error, error.__traceback__)
        else:
            logger.error("a request of a WebSocket's client failed", exc_info=error)
        self.end(FAILED)

    # The end (RFC 6455, 7)

    def _part(self, event: Close) -> None:
        if self._handler is not None:
            self._handler.close_code = None if event.code == NO_CODE else event.code
            self._handler.close_reason = event.reason or None
        if self.talking:
            self.end(Goodbye(event.code, ""))
        elif not self._stream.writing():
            self._hang_up()

    def _hang_up(self) -> None:
        """All is said: the server closes first, and what is still on its way shall not reset that away (7.1.1)."""
        if isinstance(self._stream, SSLIOStream) or self._stream.closed():
            self.close()
            return
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)
