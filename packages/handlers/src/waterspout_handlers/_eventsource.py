"""The door for browsers' `EventSource`: server-sent events."""

from __future__ import annotations

import random

from tornado.iostream import StreamClosedError

from ._formats import EVENT_STREAMS
from ._outlet import Outlet, position_of
from ._requests import RequestError, SubscriberHandler


class EventSource(SubscriberHandler):
    """Streams a store, or channels named by `?channel=`, as server-sent events (WHATWG HTML).

    Route it with `{"store": store}` or `{"source": channels}`. `Last-Event-ID`, or `?last_event_id=`, goes on
    where the client stopped; `?last_event_id=earliest` begins with all that is kept. `?format=json` makes the data of
    every event a JSON object with `channel` and `data`, and `event` where there is one. The handler itself lives for
    the handshake only.
    """

    async def get(self, *args: str, **kwargs: str) -> None:
        whole = self._whole()
        cursors = await self.open_cursors()
        chunked = self.request.version == "HTTP/1.1"
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        if self.settings.get("compress_response"):
            # What follows the head goes past Tornado's output transforms, so they may not promise anything for it.
            self.set_header("Content-Encoding", "identity")
        if not chunked:
            # Tornado would promise an HTTP/1.0 client to keep the connection, whose end is that of the stream.
            self.request.headers.pop("Connection", None)
        # Spread over time: after a restart all clients come back. It is also the early first byte that proxies need.
        head = f"retry: {random.randint(1000, 3000)}\n"
        # Where it begins, so that whoever is cut off before the first message misses none by coming back: an event
        # without data is not dispatched, but its id is kept (WHATWG HTML, "dispatch the event", step 1).
        if where := position_of(cursors):
            head += f"id: {where}\n"
        self.write(head + "\n")
        try:
            await self.flush()
        except StreamClosedError:
            return
        self.application.log_request(self)
        stream = self.detach()
        outlet = Outlet(stream, EVENT_STREAMS[whole, chunked], cursors)
        outlet.open()
        outlet.listen()

    def _whole(self) -> bool:
        format = self.get_query_argument("format", "text")
        if format not in ("text", "json"):
            raise RequestError(400, f"format is text or json, not {format!r:.40}")
        return format == "json"
