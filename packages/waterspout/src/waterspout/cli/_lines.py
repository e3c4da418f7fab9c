"""Standard input as batches of lines: what has come while the batch before was under way."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Final

from waterspout_core import BadMessage

MAX_BATCH: Final = 500
"""Lines sent together: what has come while the batch before was under way, at most this many."""

MAX_BATCH_BYTES: Final = 128 * 1024
"""A longer line goes alone. Even if JSON escapes all of it, a batch stays below what a server takes at once."""

MAX_WAITING: Final = 2 * MAX_BATCH
"""Lines read ahead; beyond them standard input waits, and so does whoever writes to it."""


MAX_LINE: Final = 16 * 1024 * 1024
"""Bytes without a line break that are still a line, however useless."""


class Lines:
    """Standard input, read by a thread of its own, since it may be a file, a pipe or a terminal."""

    def __init__(self) -> None:
        if sys.stdin is None:  # closed: its number may be somebody else's by now
            raise BadMessage("standard input is closed: give the MESSAGE, or lines to read")
        self._input = sys.stdin.fileno()
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | BadMessage | None] = asyncio.Queue()
        self._room = threading.BoundedSemaphore(MAX_WAITING)
        self._held: str | None = None  # the line that the batch before had no room for
        threading.Thread(target=self._read, daemon=True).start()

    async def take(self) -> list[str]:
        """Some lines, at least one; none when the input has ended. Raises `BadMessage` for what is no text."""
        lines: list[str] = []
        size = 0
        while len(lines) < MAX_BATCH and (not lines or self._held is not None or not self._lines.empty()):
            line = self._held if self._held is not None else await self._lines.get()
            self._held = None
            if not isinstance(line, str):
                if line is not None and not lines:
                    raise line
                self._lines.put_nowait(line)
                break
            if lines and size + len(line) > MAX_BATCH_BYTES:
                self._held = line
                break
            lines.append(line)
            size += len(line)
            self._room.release()
        return lines

    def _read(self) -> None:
        # Not by sys.stdin: its lock, held by a thread that waits for input, would abort the interpreter at its end.
        begun = b""
        while piece := self._read_piece():
            *lines, begun = (begun + piece).split(b"\n")
            for line in lines:
                self._put_line(line)
            if len(begun) > MAX_LINE:
                self._put(BadMessage(f"{MAX_LINE} bytes without a line break: is the input text?"))
                return
        if begun:
            self._put_line(begun)
        self._put(None)

    def _read_piece(self) -> bytes:
        try:
            return os.read(self._input, 65536)
        except OSError as error:
            self._put(BadMessage(f"standard input cannot be read: {error.strerror}"))
            return b""

    def _put_line(self, line: bytes) -> None:
        self._room.acquire()
        self._put(line.decode(errors="replace").rstrip("\r"))

    def _put(self, line: str | BadMessage | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
        except RuntimeError:  # the loop has been closed: nobody wants the rest
            sys.exit()
