"""A bare connection, for whoever speaks the protocol for himself."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, TimerHandle
from collections.abc import Callable
from typing import Any, cast

from ._settings import Settings
from ._write_buffer import Chunk, WriteBuffer


class Connection(asyncio.Protocol):
    """Gives ``read_callback`` the bytes that come, and calls ``close_callback`` when it ends. The other options are
    those of `Settings`; with ``read_timeout`` it ends when nothing was read for so many seconds.
    """

    def __init__(
        self, read_callback: Callable[[bytes], object], close_callback: Callable[[], object], **settings: Any
    ) -> None:
        self._read_callback, self._close_callback = read_callback, close_callback
        self._settings = Settings(**settings)
        self._loop: AbstractEventLoop | None = None
        self._transport: asyncio.Transport | None = None
        self._connecting: Future[bool] | None = None
        self._unsent = WriteBuffer()
        self._read_timer: TimerHandle | None = None

    def is_connecting(self) -> bool:
        """Whether `connect` is under way."""
        return self._connecting is not None

    def is_connected(self) -> bool:
        """Whether the connection is there."""
        return self._transport is not None

    def connect(self) -> Future[bool]:
        """Connect, if that was not done yet. The Future tells whether it is connected then."""
        self._loop = self._settings.loop()
        if self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())
        return self._connecting

    async def _connect(self) -> bool:
        settings, loop = self._settings, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(settings.connect_timeout):
                if self._transport is None and settings.unix_domain_socket:
                    await loop.create_unix_connection(lambda: self, settings.unix_domain_socket)
                elif self._transport is None:
                    await loop.create_connection(lambda: self, settings.host, settings.port)
        except OSError:
            return False
        finally:
            self._connecting = None
        return self.is_connected()

    def disconnect(self) -> None:
        """End it at once; what was not sent is dropped. A `connect` that is under way is cancelled."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
            self.connection_lost(None)

    def write(self, data: Chunk | WriteBuffer) -> None:
        """Send it with what else is written in this turn of the loop, or with ``aggressive_write`` at once. What the
        socket does not take is kept, and goes later; so is all that is written before it is connected."""
        if self._unsent.is_empty() and self._transport is not None and not self._settings.aggressive_write:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        if self._settings.aggressive_write:
            self._flush()

    def _flush(self) -> None:
        if self._transport is not None and not self._unsent.is_empty():
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass of it, but do the same.
        self._transport = cast(asyncio.Transport, transport)
        self._wait_for_more()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._wait_for_more()
        self._read_callback(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self._unsent.clear()
            if self._read_timer is not None:
                self._read_timer.cancel()
            self._close_callback()

    def _wait_for_more(self) -> None:
        if self._settings.read_timeout > 0:
            assert self._loop is not None
            if self._read_timer is not None:
                self._read_timer.cancel()
            self._read_timer = self._loop.call_later(self._settings.read_timeout, self.disconnect)
