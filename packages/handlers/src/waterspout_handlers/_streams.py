"""What the doors over plain HTTP share: the head of an answer, and the way from the handler to an outlet."""

from __future__ import annotations

import abc
import contextlib
from time import monotonic

from tornado.iostream import StreamClosedError

from ._audience import position_of
from ._formats import Body
from ._outlet import Outlet
from ._requests import SubscriberHandler


class StreamHandler(SubscriberHandler, abc.ABC):
    """Answers `GET` with a body that is not at its end yet. The handler itself lives for the handshake only."""

    period: float | None = None

    @abc.abstractmethod
    def choose_format(self, *, chunked: bool) -> Body:
        """What the request asks for. Raises `RequestError`."""

    async def head(self, *args: str, **kwargs: str) -> None:
        """The head that `get` would send, without opening anything."""
        self.check_request()
        self.set_stream_headers(self._format())
        with contextlib.suppress(StreamClosedError):
            await self.flush()

    async def get(self, *args: str, **kwargs: str) -> None:
        """Stream."""
        await self.begin()

    async def begin(self, wait: float | None = None) -> None:
        """Send the head, and let go of the connection: an outlet sends the rest, and for `wait` seconds at most."""
        format = self._format()
        cursors = await self.open_cursors()
        self.set_stream_headers(format)
        self.set_header("Connection", "close")  # in the end
        where = position_of(cursors)
        if where:
            self.set_header("Last-Event-ID", where)
        self.write(format.hello(where))
        # Tornado would promise an HTTP/1.0 client to keep the connection, whose end is that of the stream.
        self.request.headers.pop("Connection", None)
        self.flush()  # not to be waited for: it is counted before the limits are checked for the next one
        self.application.log_request(self)
        stream = self.detach()
        self.on_finish()
        if stream.closed():
            return
        outlet = Outlet(
            stream, format, self.connections, address=self.address, behind=self.behind, period=self.period or 0.0
        )
        if wait is not None:
            self.connections.expire_at(outlet, monotonic() + wait)
        outlet.open(cursors)

    def _format(self) -> Body:
        return self.choose_format(chunked=self.request.version == "HTTP/1.1")

    def set_stream_headers(self, format: Body) -> None:
        self.set_header("Content-Type", format.content_type)
        # What stands in between shall neither keep it, nor hold it back to fill a buffer or to compress it.
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        if self.settings.get("compress_response"):
            # What follows the head goes past Tornado's output transforms, so they may not promise anything for it.
            self.set_header("Content-Encoding", "identity")
