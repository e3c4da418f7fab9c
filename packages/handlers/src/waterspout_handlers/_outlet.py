"""The one way bytes leave: a stream, and the audience of whoever listens at its other end."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Collection
from time import monotonic
from typing import Any, Final

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from waterspout_core import BaseStore

from ._audience import GAP, Audience, Behind, Cursors, Send, position_of, read_on
from ._connections import ConnectionRefused, Connections
from ._formats import Format
from ._goodbye import AGED, FULL, RESTART, Goodbye

CLOSING: Final = 5.0
"""Seconds for a goodbye to be written, and answered where the protocol wants that."""

READ: Final = 4096
"""Bytes taken from a peer at a time."""


class _Life(enum.IntEnum):
    NEW = 0
    OPEN = 1
    ENDING = 2
    CLOSED = 3


class Outlet:
    """A subscriber at the end of a socket, and all that is kept for it: no task, no timer, no queue.

    Who is level with its audience has no cursors of its own: the audience sends it what there is. What the socket does
    not take goes into the stream's own buffer, and until that has drained the outlet has cursors that wait in the
    logs. `stream` must be one that nobody else writes to or reads from.
    """

    __slots__ = ("_audience", "_cursors", "_draining", "_life", "_send", "_stream", "address", "busy", "connections")

    def __init__(
        self,
        stream: IOStream,
        format: Format,
        connections: Connections,
        *,
        address: str = "",
        behind: Behind = GAP,
        period: float = 0.0,
    ) -> None:
        self._stream = stream
        self._send: Send = self._send_through
        self._audience: Audience = connections.audience((), format, behind, period)
        self._cursors: Cursors | None = {}
        self._draining = False
        self._life = _Life.NEW
        self.connections = connections
        self.address = address
        self.busy = False
        """While this is set nothing more is read from the peer; call `listen` when it is not any more."""

    # Reading stores

    @property
    def stores(self) -> Collection[BaseStore]:
        """What it reads."""
        return self._audience.stores

    @property
    def cursors(self) -> Cursors:
        """Where it stands; not to be changed."""
        return self._audience.cursors if self._cursors is None else self._cursors

    @property
    def position(self) -> str:
        """The id that carries where it stands in all its logs; empty if none of them knows it."""
        return position_of(self.cursors)

    @property
    def talking(self) -> bool:
        """Whether anything may still be sent."""
        return self._life is _Life.OPEN

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._life is _Life.CLOSED

    def open(self, cursors: Cursors) -> None:
        """Begin: catch up with what is in the logs already, then follow them."""
        if self._stream.closed():  # it went while the head was on its way
            self.close()
            return
        self.connections.tune(self._stream)
        if not isinstance(self._stream, SSLIOStream):
            # A stream that writes nothing has no bytes that ours could overtake, so its buffer can be passed by.
            self._send = self._stream.socket.send
        self._life = _Life.OPEN
        self._audience.join(self)
        refused = None
        try:
            self.connections.add(self)
        except ConnectionRefused:
            refused = RESTART if self.connections.draining else FULL
        if self._stream.writing():
            self._wait(b"", 0)
        self.read(cursors)
        if refused is not None:  # others were faster
            self.end(refused)
        self.listen()

    def read(self, cursors: Cursors, format: Format | None = None) -> None:
        """Read other stores from now on, or in another format."""
        if self._life is not _Life.OPEN:
            return
        before = self._audience
        before.leave(self)
        self._cursors = cursors
        self._audience = self.connections.audience(
            cursors.keys(), format or before.format, before.behind, before.period
        )
        self._audience.join(self)
        if self._draining:
            self.connections.unwatch(self)
            self._watch()
        else:
            self.catch_up()

    def follow(self, store: BaseStore, cursor: int, format: Format | None = None) -> None:
        """Read `store` as well, from `cursor` on, and have all in `format` from now on, if there is one."""
        # In one step: no id that is sent behind this may be without `store`.
        self.read({**self.cursors, store: cursor}, format)

    def unfollow(self, store: BaseStore) -> None:
        """Read `store` no more."""
        self.read({other: cursor for other, cursor in self.cursors.items() if other is not store})

    def speak(self, format: Format) -> None:
        """From now on, send what comes in `format`."""
        self.read(dict(self.cursors), format)

    def wake(self, store: BaseStore) -> None:
        """One who walks all subscribers of a store wakes the audience by any of them."""
        self._audience.wake(store)

    # For the audience

    def fall_behind(self, run: bytes, sent: int) -> None:
        """Only `sent` bytes of `run` have left: the rest goes through the stream, and until then we are not level."""
        self._cursors = self._audience.part(self)
        self._wait(run, sent)

    def catch_up(self) -> None:
        """Read on from our own cursors until we are level with the others again."""
        cursors = self._cursors
        if cursors is None or self._draining or self._life is not _Life.OPEN:
            return
        format = self._audience.format
        for store in cursors:
            log = store.log
            while cursors[store] < log.top:
                if cursors[store] < log.start - 1 and log.when_behind == "gap":
                    self.connections.counts.gaps += 1
                run = read_on(format, cursors, store)
                whole = not run or self._put(run)
                if run and format.once:
                    self.finish()
                if not whole or self._life is not _Life.OPEN:
                    return
        self.connections.unwatch(self)  # it keeps up, also if it has to wait for the others
        if self._audience.admit(self, self._send):
            self._cursors = None

    def is_too_slow(self, seconds: float, written: int) -> bool:
        """Whether it is to be cut off, not level for `seconds`, since when `written` bytes had been published to it."""
        behind = self._audience.behind
        return seconds > behind.max_seconds or self._written() - written > behind.max_bytes

    # Speaking

    def say(self, data: bytes) -> None:
        """Send `data` whole, behind what was sent so far: what is no message of a store."""
        if self._life is not _Life.OPEN or not data:
            return
        if self._draining:
            with contextlib.suppress(StreamClosedError):  # its end will be told
                self._stream.write(data)
            return
        sent = self._try(data)
        if sent == len(data):
            return
        if self._cursors is None:
            self.fall_behind(data, sent)
        else:
            self._wait(data, sent)

    def end(self, goodbye: Goodbye) -> None:
        """Say `goodbye` as the protocol has it, and close when it is written."""
        if self._life is _Life.OPEN:
            self._flush()
        if self._life is _Life.OPEN:  # not gone, and not answered by what was left
            self._end(self._audience.format.goodbye(goodbye))

    def finish(self) -> None:
        """All is said: close when it is written."""
        if self._life is _Life.OPEN:
            self._end(b"", self._audience.behind.max_seconds)  # what was said may be long

    def close(self) -> None:
        """It is over, now: the peer has gone, or has to."""
        if self._life is _Life.CLOSED:
            return
        if self._life is _Life.OPEN:
            self._audience.leave(self)
        self._life = _Life.CLOSED
        self._cursors = {}
        self.connections.remove(self)
        self._stream.close()
        self.left()

    # Hooks of the doors

    def receive(self, data: bytes) -> None:
        """What the peer sends. It is dropped here: unread, it would keep us from seeing that the peer has gone."""

    def beat(self) -> None:
        """Its connection is idle, perhaps: see that nobody on the way thinks it dead, and that the peer is there."""
        if not self._draining:
            self.say(self._audience.format.beat)

    def expire(self) -> None:
        """Its deadline has come."""
        if self._life is _Life.OPEN:
            self.end(AGED)
        else:
            self.close()

    def ended(self) -> None:
        """The goodbye is written."""
        self.close()

    def left(self) -> None:
        """It is closed, for whatever reason."""

    # The stream

    def listen(self, read: asyncio.Future[bytes] | None = None) -> None:
        """Hear what the peer says, and whether it is still there. While it does not read, it is not listened to."""
        if read is not None:
            if read.cancelled() or read.exception() is not None:
                self.close()
                return
            self.receive(read.result())
        full = self._draining and self._life is _Life.OPEN
        if full or self.busy or self._life is _Life.CLOSED or self._stream.reading():
            return
        try:
            asyncio.ensure_future(self._stream.read_bytes(READ, partial=True)).add_done_callback(self.listen)
        except OSError:  # closed; or what is read at once fails, which only some of Tornado's errors say in its own way
            self.close()

    def _flush(self) -> None:
        if self._cursors is None:
            self._audience.flush()
        else:
            self.catch_up()

    def _end(self, last: bytes, seconds: float = CLOSING) -> None:
        self._audience.leave(self)
        self._life = _Life.ENDING
        self.connections.unwatch(self)
        self.connections.end_at(self, monotonic() + seconds)
        try:
            self._stream.write(last).add_done_callback(self._said)
        except StreamClosedError:
            self.close()

    def _said(self, written: asyncio.Future[Any]) -> None:
        if written.cancelled() or written.exception() is not None:
            self.close()
        elif self._life is _Life.ENDING:
            self.ended()

    def _try(self, data: bytes) -> int:
        try:
            return self._send(data)
        except OSError:
            return 0  # full or gone: the stream will find out

    def _put(self, run: bytes) -> bool:
        """Whether all of `run` has left; if not, we are draining or closed."""
        sent = self._try(run)
        if sent == len(run):
            return True
        self._wait(run, sent)
        return False

    def _send_through(self, data: bytes) -> int:
        """How a TLS stream sends: -1 if it has all, but has not sent it yet."""
        self._stream.write(data)
        return -1 if self._stream.writing() else len(data)

    def _wait(self, run: bytes, sent: int) -> None:
        """Leave the rest of `run` to the stream, and go on when that has written all it has."""
        try:
            written = self._stream.write(memoryview(run)[sent:] if sent >= 0 else b"")
        except StreamClosedError:
            # Not now: the audience may be in the middle of a walk, and who hears of the end may publish, or end others.
            self._draining = True
            asyncio.get_running_loop().call_soon(self.close)
            return
        self._draining = True
        self._watch()
        written.add_done_callback(self._drained)

    def _drained(self, written: asyncio.Future[Any]) -> None:
        if written.cancelled() or written.exception() is not None:
            self.close()
            return
        if not self._stream.closed() and self._stream.writing():  # something was said behind it
            self._wait(b"", 0)
            return
        self._draining = False
        if self._life is _Life.OPEN and self._audience.behind.policy == "latest":
            self._skip()
        self.catch_up()
        self.listen()

    def _skip(self) -> None:
        """Of what has come meanwhile, read the newest message only."""
        cursors = self._cursors or {}
        for store, cursor in cursors.items():
            newest = store.log.top - 1
            if cursor < newest:
                self.connections.counts.skipped += newest - max(cursor, 0)
                cursors[store] = newest

    def _watch(self) -> None:
        if self._audience.behind.policy == "disconnect" and self._life is _Life.OPEN:
            self.connections.watch(self, self._written())

    def _written(self) -> int:
        return sum(store.log.written for store in self._audience.stores)
