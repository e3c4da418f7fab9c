"""Standard input as batches of lines: what has come while the batch before was under way."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Final

MAX_BATCH: Final = 500
"""Lines sent together: what has come while the batch before was under way, at most this many."""

MAX_BATCH_BYTES: Final = 128 * 1024
"""A longer line goes alone. Even if JSON escapes all of it, a batch stays below what a server takes at once."""

MAX_WAITING: Final = 2 * MAX_BATCH
"""Lines read ahead; beyond them standard input waits, and so does whoever writes to it."""


class Lines:
    """Standard input, read by a thread of its own, since it may be a file, a pipe or a terminal."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._room = threading.BoundedSemaphore(MAX_WAITING)
        self._held: str | None = None  # the line that the batch before had no room for
        threading.Thread(target=self._read, daemon=True).start()

    async def take(self) -> list[str]:
        """Some lines, at least one; none when the input has ended."""
        lines: list[str] = []
        size = 0
        while len(lines) < MAX_BATCH and (not lines or self._held is not None or not self._lines.empty()):
            line = self._held if self._held is not None else await self._lines.get()
            self._held = None
            if line is None:
                self._lines.put_nowait(None)
                break
            if lines and size + len(line) > MAX_BATCH_BYTES:
                self._held = line
                break
            lines.append(line)
            size += len(line)
            self._room.release()
        return lines

    def _read(self) -> None:
        for raw in sys.stdin.buffer:
            self._room.acquire()
            self._put(raw.decode(errors="replace").rstrip("\r\n"))
        self._put(None)

    def _put(self, line: str | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
        except RuntimeError:  # the loop has been closed: nobody wants the rest
            sys.exit()
