"""Bytes that are gathered to be sent, and taken in chunks."""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

Chunk: TypeAlias = bytes | memoryview

DEFAULT_VIEW_SIZE: Final = 4096


class WriteBuffer:
    """A queue of bytes, open at both ends. It may be an argument of a command.

    What is left of a part after a chunk of it was taken is not copied if it has ``use_memory_view_min_size`` bytes.
    """

    def __init__(self, use_memory_view_min_size: int = DEFAULT_VIEW_SIZE) -> None:
        self.use_memory_view_min_size = use_memory_view_min_size
        self._parts: deque[Chunk] = deque()
        self._size = 0

    def append(self, data: Chunk | WriteBuffer) -> None:
        """Add at the end."""
        parts = _parts_of(data)
        self._parts.extend(parts)
        self._size += sum(map(len, parts))

    def appendleft(self, data: Chunk | WriteBuffer) -> None:
        """Add at the beginning; a buffer's parts keep their order."""
        parts = _parts_of(data)
        self._parts.extendleft(reversed(parts))
        self._size += sum(map(len, parts))

    def pop_chunk(self, chunk_max_size: int) -> bytes:
        """Take at most so many bytes from the beginning; b"" when it is empty."""
        taken: list[Chunk] = []
        room = chunk_max_size
        while room > 0 and self._parts:
            part = self._parts.popleft()
            if len(part) > room:
                rest = memoryview(part)[room:]
                self._parts.appendleft(rest if len(rest) >= self.use_memory_view_min_size else rest.tobytes())
                part = part[:room]
            taken.append(part)
            room -= len(part)
        self._size -= chunk_max_size - room
        return b"".join(taken)

    def clear(self) -> None:
        """Drop everything."""
        self._parts.clear()
        self._size = 0

    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return not self._size

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)


def _parts_of(data: Chunk | WriteBuffer) -> list[Chunk]:
    if isinstance(data, WriteBuffer):
        return list(data._parts)
    if isinstance(data, memoryview):
        # Of other views, as those of an array, len() is not the number of bytes.
        return [data.cast("B") if data.c_contiguous else data.tobytes()]
    return [data]
