"""Commands gathered to be sent at once."""

from __future__ import annotations

from ._encoding import Argument, pack


class Pipeline:
    """Commands that are sent together and answered as one list.

    It is packed as it is stacked, is not used up by ``client.call(pipeline)``, and may be sent again.

    >>> pipeline = Pipeline()
    >>> pipeline.stack_call("SET", "k", 1)
    >>> pipeline.stack_call("GET", "k")
    >>> len(pipeline)
    2
    """

    __slots__ = ("_commands",)

    def __init__(self) -> None:
        self._commands: list[bytes] = []

    def stack_call(self, *args: Argument) -> None:
        """Add one command. Raises TypeError for an argument that Redis cannot take, see `Client.call`."""
        self._commands.append(pack(args))

    def __len__(self) -> int:
        return len(self._commands)

    def packed(self) -> bytes:
        """All commands as they go over the wire."""
        return b"".join(self._commands)
