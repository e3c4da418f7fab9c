"""A drop-in for ``tornadose.handlers``: they publish a store to those who are connected.

`EventSource` and `WebSocketSubscriber` as they are hand the connection over to those of `waterspout_handlers`, with all
that these can do; so no handler is kept. One of a class derived from them, or of a store that publishes in a way of its
own, lives as long as its client stays: `submit` is given each message, in order, and `publish` sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import random
import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

from tornado import gen
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, StreamClosedError
from tornado.queues import Queue, QueueFull
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

import waterspout_core
import waterspout_handlers
from waterspout_handlers import ConnectionRefused, Goodbye, connections_of

from . import stores
from ._handlers import Guest, Messages, abandon
from ._reader import Reader

__all__ = ["BaseHandler", "EventSource", "WebSocketSubscriber"]

logger: Final = logging.getLogger("waterspout.tornadose")

MAX_MESSAGES: Final = 1000
"""Messages that wait for one client where the store keeps none; whoever is further behind is cut off."""


class BaseHandler(RequestHandler):
    """What a handler of one's own is made from: registered with `store` while its request lasts.

    `submit` puts each message on the queue `messages`, and waits there if the store keeps a log: until then it stays
    in that. A handler of one's own may override it, or take the messages from the queue.
    """

    store: waterspout_core.BaseStore
    finished = False
    _gone = False
    _guest: Guest | None = None
    _reader: Reader | None = None

    def initialize(self, store: waterspout_core.BaseStore) -> None:
        """Has to be called by those that override it, unless they set `store` and register themselves."""
        self._serve(store)
        self._register()

    @functools.cached_property
    def messages(self) -> Queue[Any]:
        """What was submitted and is not published yet."""
        return Messages(1 if self._has_log else MAX_MESSAGES)

    @gen.coroutine
    def submit(self, message: Any) -> Generator[Any, Any, None]:
        """Take in a new message."""
        if self.finished:
            return
        if self._has_log:
            yield self.messages.put(message)
            return
        try:
            self.messages.put_nowait(message)
        except QueueFull:  # nobody else shall wait for it
            logger.warning("cut off since it is %d messages behind: %r", MAX_MESSAGES, self)
            self._cut()

    def publish(self, message: Any) -> Any:
        """To be written: send a message."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it publishes")

    def log_exception(self, *exc_info: Any) -> None:
        if not (self.finished and isinstance(exc_info[1], StreamClosedError)):  # that the client has gone is no error
            super().log_exception(*exc_info)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        if self._gone:
            self.finish()
        else:
            super().send_error(status_code, **kwargs)

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        if self.get_status() != 101:  # which is where a WebSocket begins
            self._leave()
        return super().finish(chunk)

    def on_connection_close(self) -> None:
        """The client has gone. Call it from where you override it."""
        self._gone = True
        self._leave()
        super().on_connection_close()

    # For those below

    @property
    def _has_log(self) -> bool:
        return isinstance(self.store, stores.LogStore) or not isinstance(self.store, stores.BaseStore)

    @property
    def _stream(self) -> IOStream:
        connection: Any = self.request.connection
        return connection.stream  # type: ignore[no-any-return]

    def _serve(self, store: waterspout_core.BaseStore) -> None:
        assert isinstance(store, waterspout_core.BaseStore), f"{store!r} is no store"
        self.store = store

    def _register(self) -> None:
        if isinstance(self.store, stores.BaseStore):
            self.store.register(self)
        elif self._reader is None:
            # One of waterspout_core only wakes.
            self._reader = Reader(self.store, self)
            self.store.register(self, by=self._reader)  # type: ignore[arg-type]

    def _enter(self, beat: Callable[[], object], end: Callable[[Goodbye], object]) -> None:
        """Be one of the server's connections. Raises `ConnectionRefused`."""
        connections = connections_of(self.application)
        self._guest = Guest(self._stream, self.request.remote_ip or "", connections, beat=beat, end=end)

    def _leave(self) -> None:
        """Nothing is to be published any more."""
        self.finished = True
        store = getattr(self, "store", None)
        if store is None:
            return
        if self in store.subscribers:
            store.deregister(self)
        if self._reader is not None:
            self._reader.leave()
            store.deregister(self._reader)
        if self._guest is not None:
            self._guest.left()
        abandon(self.messages)

    def _cut(self) -> None:
        self._stream.close()
        self._leave()

    async def _publish_next(self) -> None:
        message = await self.messages.get()
        if self.finished:
            return
        published = self.publish(message)
        if inspect.isawaitable(published):
            await published


class EventSource(BaseHandler):
    """Server-sent events: `data` is the message as text. With a `period` (seconds) it rests between messages."""

    period: float | None = None

    def __new__(cls, application: Application, request: HTTPServerRequest, **kwargs: Any) -> Any:
        if cls is EventSource and stores.wakes(kwargs["store"]):
            return waterspout_handlers.EventSource(application, request, **kwargs | {"period": _period(**kwargs)})
        return super().__new__(cls)

    def initialize(self, store: waterspout_core.BaseStore, period: float | None = None) -> None:
        self._serve(store)
        self.period = _period(period=period)
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")

    async def get(self, *args: str, **kwargs: str) -> None:
        try:
            self._enter(self._beat, self._end)
            # The head at once, for proxies and for who waits for it.
            self.write(f"retry: {random.randint(1000, 3000)}\n\n")
            await self.flush()
            self.application.log_request(self)
            self._register()
            while not self.finished:
                await self._publish_next()
                if self.period:
                    await asyncio.sleep(self.period)
        except ConnectionRefused as error:
            # As a stream that ends: a browser's EventSource never comes back from a 503.
            self.write(f"retry: {error.retry * 1000:.0f}\n: {error}\n\n")
        except StreamClosedError:
            return
        finally:
            self._leave()

    @gen.coroutine
    def publish(self, message: Any) -> Generator[Any, Any, None]:
        """Send `message`, whose lines become one `data` line each."""
        data = re.sub("\r\n|\r|\n", "\ndata: ", stores.message_of(message).text)
        self.write(f"data: {data}\n\n")
        yield self.flush()

    def flush(self, include_footers: bool = False) -> asyncio.Future[None]:
        self._flushing = super().flush(include_footers)
        return self._flushing

    def _beat(self) -> None:
        # While another one is under way Tornado would forget to tell its end.
        if self._flushing.done():
            self.write(":\n")
            self.flush()

    def _end(self, goodbye: Goodbye) -> None:
        self.write(f"retry: {random.randint(1000, 5000)}\n: {goodbye.reason}\n\n")
        self.finished = True
        abandon(self.messages)


class WebSocketSubscriber(BaseHandler, WebSocketHandler):
    """WebSockets: each message is a JSON object, in whose `data` it is."""

    def __new__(cls, application: Application, request: HTTPServerRequest, **kwargs: Any) -> Any:
        if cls is WebSocketSubscriber and stores.wakes(kwargs["store"]):
            return waterspout_handlers.WebSocketSubscriber(application, request, **kwargs)
        return super().__new__(cls)

    def initialize(self, store: waterspout_core.BaseStore) -> None:
        self._serve(store)

    async def get(self, *args: str, **kwargs: str) -> None:
        try:
            connections_of(self.application).check(self.request.remote_ip or "")
        except ConnectionRefused as error:
            self.set_status(503)
            self.set_header("Retry-After", round(error.retry))
            self.finish(str(error))
            return
        self.open = functools.partial(self._opened, self.open)  # type: ignore[method-assign]
        await super().get(*args, **kwargs)

    def _opened(self, open: Callable[..., Any], *args: str, **kwargs: str) -> None:
        """Tornado reads from the client when `open` has returned, and those of tornadose never do: it runs beside."""
        del self.open
        self._enter(self._beat, self._end)
        self._register()
        opened = open(*args, **kwargs)
        if inspect.isawaitable(opened):
            self._opening = asyncio.ensure_future(self._watch(opened))

    def open(self, *args: str, **kwargs: str) -> Awaitable[None] | None:
        """Publish what is submitted, for as long as the client is there."""
        self._publishing = asyncio.ensure_future(self._watch(self._publish_all()))
        return self._publishing

    async def _publish_all(self) -> None:
        while not self.finished:
            await self._publish_next()

    async def _watch(self, running: Awaitable[Any]) -> None:
        try:
            await running
        except (StreamClosedError, WebSocketClosedError):
            self._leave()
        except Exception:
            logger.exception("a WebSocket is closed since its handler failed: %r", self)
            self.close(1011)

    @gen.coroutine
    def publish(self, message: Any) -> Generator[Any, Any, None]:
        """Send `message` as a JSON object with the member `data`."""
        yield self.write_message(f'{{"data":{stores.message_of(message).json}}}')

    @property
    def _stream(self) -> IOStream:
        assert self.ws_connection is not None
        stream = self.ws_connection.stream
        assert stream is not None
        return stream

    def _beat(self) -> None:
        with contextlib.suppress(WebSocketClosedError):
            self.ping()

    def _end(self, goodbye: Goodbye) -> None:
        self.close(goodbye.code, goodbye.reason)


def _period(period: float | None = None, **others: Any) -> float | None:
    assert period is None or isinstance(period, int | float), f"period is a number of seconds, not {period!r}"
    return period or None
