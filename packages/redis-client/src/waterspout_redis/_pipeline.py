"""Commands gathered to be sent at once."""

from __future__ import annotations

from asyncio import Future
from typing import Any, Final

from ._encoding import Argument, pack
from ._errors import UsageError
from ._routing import Effect, name_of, rule_for
from ._slots import PipelineCall, TransactionCall

_MULTI: Final = pack(("MULTI",))
_EXEC: Final = pack(("EXEC",))


class Pipeline:
    """Commands that are sent together and answered as one list; error replies are elements of it.

    With ``atomic=True`` it is a transaction: Redis executes all of it with nothing of anybody else's in between
    (MULTI … EXEC), or, when it refuses one of the commands, nothing: then `ExecAbortError` is raised.

    It is packed as it is stacked, is not used up by ``client.call(pipeline)``, and may be sent again.

    >>> pipeline = Pipeline()
    >>> pipeline.stack_call("SET", "k", 1)
    >>> pipeline.stack_call("GET", "k")
    >>> len(pipeline)
    2
    """

    __slots__ = ("_commands", "atomic", "blocks", "effects")

    def __init__(self, *, atomic: bool = False) -> None:
        self._commands: list[bytes] = []
        self.atomic = atomic
        self.blocks = 0.0
        """For how many seconds its commands may block, all together."""
        self.effects: list[Effect] = []
        """What its commands leave behind on their connection, in order."""

    def stack_call(self, *args: Argument) -> None:
        """Add one command. Raises TypeError for an argument that Redis cannot take, see `Client.call`, and UsageError
        for a command that cannot be in a pipeline."""
        command = pack(args)
        rule = rule_for(args)
        if rule is not None:
            if rule.refusal is not None:
                raise UsageError(f"{name_of(args)} is not for a pipeline: {rule.refusal}")
            if self.atomic and rule.effect is not Effect.NONE:
                raise UsageError(f"{name_of(args)} is not for an atomic pipeline, which sends MULTI and EXEC itself")
            if rule.blocks is not None and not self.atomic:
                # In a transaction nothing blocks.
                self.blocks += rule.blocks(args)
            if rule.effect is not Effect.NONE:
                self.effects.append(rule.effect)
        self._commands.append(command)

    def __len__(self) -> int:
        return len(self._commands)

    def packed(self) -> bytes:
        """All commands as they go over the wire."""
        if self.atomic:
            return b"".join((_MULTI, *self._commands, _EXEC))
        return b"".join(self._commands)

    def slot(self, future: Future[Any], encoding: str | None) -> PipelineCall:
        """What waits for its replies, and makes `future` the list of them."""
        if self.atomic:
            return TransactionCall(len(self) + 2, future, encoding)
        return PipelineCall(len(self), future, encoding)
