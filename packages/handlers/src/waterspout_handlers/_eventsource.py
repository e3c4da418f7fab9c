"""The door for browsers' `EventSource`: server-sent events. Programs may have the same as lines of JSON."""

from __future__ import annotations

from typing import Any

from ._formats import EVENT_STREAMS, JSON_LINES, Body, farewell
from ._requests import RequestError
from ._streams import StreamHandler


class EventSource(StreamHandler):
    """Streams a store, or channels named by `?channel=`, as server-sent events (WHATWG HTML).

    Route it with `{"store": store}` or `{"source": channels}`. `Last-Event-ID`, or `?last_event_id=`, goes on
    where the client stopped; `?last_event_id=earliest` begins with all that is kept. `?format=json` makes the data of
    every event a JSON object with `channel` and `data`, and `event` where there is one; `?format=ndjson`, or `Accept:
    application/x-ndjson`, sends these objects as lines (NDJSON) and with their `id`. With a `period` (seconds)
    there is at most one sending in each.
    """

    def initialize(self, *args: Any, period: float | None = None, **kwargs: Any) -> None:
        if period is not None and not period > 0:
            raise ValueError(f"period is a number of seconds above 0, not {period!r}")
        super().initialize(*args, **kwargs)
        self.period = period

    def choose_format(self, *, chunked: bool) -> Body:
        asked = self.get_query_argument("format", "")
        if asked not in ("", "text", "json", "ndjson"):
            raise RequestError(400, f"format is text, json or ndjson, not {asked!r:.40}")
        lines = not asked and self._accepts(JSON_LINES[chunked]) and not self._accepts(EVENT_STREAMS[False, chunked])
        return JSON_LINES[chunked] if lines or asked == "ndjson" else EVENT_STREAMS[asked == "json", chunked]

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        stream = EVENT_STREAMS[False, False]
        if status_code != 503 or self.request.method != "GET" or not self._accepts(stream):
            super().write_error(status_code, **kwargs)
            return
        # A browser's EventSource never comes back from a 503 (WHATWG HTML, "fail the connection"), but it does from a
        # stream that ends.
        reason, retry = (error.explanation, error.retry) if isinstance(error, RequestError) else (self._reason, None)
        self.set_status(200)
        self.set_stream_headers(stream)
        self.finish(farewell(reason, retry))

    def _accepts(self, format: Body) -> bool:
        """Whether the request names the type of `format`."""
        named = (each.partition(";")[0].strip() for each in self.request.headers.get("Accept", "").lower().split(","))
        return format.content_type.partition(";")[0] in named
