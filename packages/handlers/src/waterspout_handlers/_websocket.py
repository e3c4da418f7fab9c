"""The door for WebSockets."""

from __future__ import annotations

from typing import Any

from tornado.websocket import WebSocketHandler

from waterspout_core import BaseStore

from ._formats import WEBSOCKET_TEXT
from ._outlet import Outlet, position_of
from ._requests import RequestError, SubscriberHandler, foreign_page, is_foreign


class WebSocketSubscriber(SubscriberHandler, WebSocketHandler):
    """Sends each message of a store, or of channels named by `?channel=`, as one JSON object in a text frame.

    Its members are `data` and, where there are any, `channel`, `event` and `id`; `?last_event_id=` goes on behind
    an `id`, or begins with all that is kept (`earliest`). Route it with `{"store": store}` or `{"source": channels}`.
    Pages of other origins are refused (`check_origin`); what the client sends is read and dropped.
    """

    _cursors: dict[BaseStore, int]
    _outlet: Outlet | None = None

    async def prepare(self) -> None:
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise RequestError(426, "this address speaks WebSocket: connect with ws:// and not http://")
        origin = self.request.headers.get("Origin")
        if origin is not None and not self.check_origin(origin):
            raise foreign_page(self)
        self._cursors = await self.open_cursors()
        # Whoever is cut off before the first message has an id to come back with.
        if where := position_of(self._cursors):
            self.set_header("Last-Event-ID", where)

    def check_origin(self, origin: str) -> bool:
        """Whether a page of `origin` may connect: only this site's own, unless a subclass says otherwise."""
        return not is_foreign(self)

    def open(self, *args: str, **kwargs: str) -> None:
        # The frames go straight to the stream, made once for all subscribers; Tornado answers pings on it and
        # reads from it. Each of the two writes whole frames only, so they may take turns.
        assert self.ws_connection is not None
        stream = self.ws_connection.stream
        assert stream is not None
        self._outlet = Outlet(stream, WEBSOCKET_TEXT, self._cursors)
        self._outlet.open()

    def on_message(self, message: str | bytes) -> None:
        """What a subscriber sends has no meaning yet."""

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        # No data frame may follow the close frame (RFC 6455, 5.5.1).
        if self._outlet is not None:
            self._outlet.leave()
        super().close(code, reason)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 426:
            self.set_header("Upgrade", "websocket")  # RFC 9110, 15.5.22
        super().write_error(status_code, **kwargs)

    def on_close(self) -> None:
        if self._outlet is not None:
            self._outlet.close()
