"""A stream whose peer may close its own direction first, and still be answered."""

from __future__ import annotations

from typing import Any

from tornado.iostream import IOStream


class HalfOpenStream(IOStream):
    """Who has said all there is to be said may close his direction, and reads on (RFC 9293, 3.6), as `nc -N` does.

    Tornado looks for that end while nobody reads, too, and closes the stream then, with all that was to be answered.
    Here the end comes in its turn: behind what was said before, when somebody reads again.
    """

    def _handle_events(self, fd: Any, events: int) -> None:
        super()._handle_events(fd, events)
        loop = self.io_loop
        if self._state == loop.READ | loop.ERROR and not self.reading():
            self._state = loop.ERROR
            loop.update_handler(fd, self._state)
