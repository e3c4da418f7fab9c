"""The one way bytes leave: a stream and the cursors of whoever listens at its other end."""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from waterspout_core import LOST, BaseStore, to_id

from ._formats import Format


class Outlet:
    """A subscriber at the end of a socket, and all that is kept for it: no task, no timer, no queue.

    Woken by a store, it sends what stands behind its cursor with one `send`. What the socket does not take goes
    into the stream's own buffer, and until that has drained the cursor waits in the log.
    """

    __slots__ = ("_cursors", "_direct", "_draining", "_encode", "_format", "_stream")

    def __init__(self, stream: IOStream, format: Format, cursors: dict[BaseStore, int]) -> None:
        self._stream = stream
        self._format = format
        self._encode = format.run  # bound once, not for each message
        self._cursors = cursors
        self._direct = not isinstance(stream, SSLIOStream)
        self._draining = False

    def open(self) -> None:
        """Begin: catch up with what is in the logs already, then follow them."""
        # Tornado leaves Nagle's algorithm on: a message would wait until the peer has acknowledged the one before.
        self._stream.set_nodelay(True)
        for store in self._cursors:
            store.register(self)
        if self._stream.closed():  # it went while the head was on its way: no close callback will come
            self.close()
            return
        self._catch_up()

    def listen(self, read: asyncio.Future[bytes] | None = None) -> None:
        """Drop what the peer says behind its request: unread, it would keep us from seeing that the peer has gone."""
        if read is not None and (read.cancelled() or read.exception() is not None):
            self.close()
            return
        try:
            asyncio.ensure_future(self._stream.read_bytes(4096, partial=True)).add_done_callback(self.listen)
        except StreamClosedError:
            self.close()

    def leave(self) -> None:
        """Follow the stores no more; the stream is left as it is."""
        for store in self._cursors:
            store.deregister(self)
        self._cursors = {}

    def close(self) -> None:
        """The peer has gone, or has to: follow the stores no more."""
        self.leave()
        self._stream.close()

    def end(self) -> None:
        """Say goodbye as the protocol has it, then close."""
        self._catch_up()
        # Not `_draining`: a TLS stream may have written all in this turn.
        if not self._stream.closed() and not self._stream.writing():
            self._send(self._format.end)
        self.close()

    def wake(self, store: BaseStore) -> None:
        """Send what the log of `store` has for us, unless the socket is still busy with earlier things."""
        log = store.log
        while not self._draining and self._cursors.get(store, log.top) < log.top:
            if len(self._cursors) == 1:
                run, self._cursors[store] = log.encoded(self._encode, self._cursors[store])
            else:
                run = self._own_run(store)
            if not self._send(run):
                return

    def _own_run(self, store: BaseStore) -> bytes:
        """A run for a reader of several channels: bodies shared with all, ids made of all its own positions."""
        bodies, after = store.log.encoded(self._format.bodies, self._cursors[store])
        positions = store.log.positions(after - len(bodies) + 1, len(bodies))
        self._cursors[store] = after
        others = position_of({other: cursor for other, cursor in self._cursors.items() if other is not store})
        ids = (f"{others},{position}" if others else str(position) for position in positions)
        return self._format.pack(map(self._format.frame, bodies, ids))

    def _send(self, run: bytes) -> bool:
        """Whether all of `run` has left; if not, we are draining or the stream is closed."""
        stream = self._stream
        if stream.closed():
            return False
        sent = 0
        # A stream that writes nothing has no bytes that ours could overtake, so its buffer can be passed by.
        if self._direct and not stream.writing():
            try:
                sent = stream.socket.send(run)
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return False
            if sent == len(run):
                return True
        try:
            written = stream.write(memoryview(run)[sent:])
        except StreamClosedError:
            self.close()
            return False
        self._draining = True
        written.add_done_callback(self._drained)
        return False

    def _drained(self, written: asyncio.Future[Any]) -> None:
        self._draining = False
        if written.cancelled() or written.exception() is not None:
            self.close()
        else:
            self._catch_up()

    def _catch_up(self) -> None:
        for store in self._cursors:
            self.wake(store)


def position_of(cursors: dict[BaseStore, int]) -> str:
    """The id that carries where a reader stands in all its logs; empty if none of them knows it."""
    # Without those that their log lost track of: their gap has not been told yet.
    return to_id(store.log.position_at(cursor) for store, cursor in cursors.items() if cursor != LOST)
