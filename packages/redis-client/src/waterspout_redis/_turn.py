"""What was called in one turn of the event loop, and is written in one piece."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from ._encoding import Packed
from ._slots import CallSlot, DecodedCall, PipelineCall

_ONE_REPLY: Final[frozenset[type[Any]]] = frozenset({Future, DecodedCall})


class Turn:
    """Commands that were called in one turn of the loop, or a piece of them; one slot for each."""

    __slots__ = ("attempts", "commands", "end", "made_at", "size", "slots")

    def __init__(self, made_at: float) -> None:
        self.commands: list[Packed] = []
        self.slots: list[CallSlot] = []
        self.made_at = made_at
        self.attempts = 0
        """How often it was sent in vain."""
        self.size = 0
        """In bytes; and, once it is written, how many replies of the connection there are up to its `end`."""
        self.end = 0

    def pieces(self, max_commands: int, max_bytes: int) -> Iterator[Turn]:
        """The same in pieces within these bounds; a larger command is a piece of its own."""
        self.size = sum(map(len, self.commands))
        if self.size <= max_bytes and len(self.commands) <= max_commands:
            yield self
            return
        piece = Turn(self.made_at)
        for command, slot in zip(self.commands, self.slots, strict=True):
            if piece.commands and (piece.size + len(command) > max_bytes or len(piece.commands) == max_commands):
                yield piece
                piece = Turn(self.made_at)
            piece.commands.append(command)
            piece.slots.append(slot)
            piece.size += len(command)
        yield piece

    def keep(self, wanted: Callable[[Packed, CallSlot], bool]) -> None:
        """Only those that are wanted."""
        kept = [pair for pair in zip(self.commands, self.slots, strict=True) if wanted(*pair)]
        self.commands = [command for command, _ in kept]
        self.slots = [slot for _, slot in kept]
        self.size = sum(map(len, self.commands))

    def packed(self) -> Packed:
        """All its commands as they go over the wire."""
        # What is in parts is too large for anything else to be in one piece with it.
        return self.commands[0] if len(self.commands) == 1 else b"".join(cast("list[bytes]", self.commands))

    def awaited(self) -> list[CallSlot]:
        """One slot for each reply to come."""
        slots = self.slots
        if _ONE_REPLY.issuperset(map(type, slots)):
            return slots
        return [unit for unit in slots for _ in range(unit.replies if isinstance(unit, PipelineCall) else 1)]
