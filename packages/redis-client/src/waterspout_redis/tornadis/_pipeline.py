"""Commands gathered to be sent at once."""

from __future__ import annotations

from typing import Any


class Pipeline:
    """Commands for ``client.call(pipeline)``, which gives the list of their replies. They are sent together, but are
    no transaction. It is not used up, and may be sent again.

    ``pipelined_args`` is the list of them, each a tuple of arguments.
    """

    def __init__(self) -> None:
        self.pipelined_args: list[tuple[Any, ...]] = []

    @property
    def number_of_stacked_calls(self) -> int:
        """How many there are."""
        return len(self.pipelined_args)

    def stack_call(self, *args: Any) -> None:
        """Add one command, with arguments as `Client.call` takes them."""
        self.pipelined_args.append(args)
