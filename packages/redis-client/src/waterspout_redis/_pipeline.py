"""Commands gathered to be sent at once."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from ._encoding import Argument, pack
from ._errors import UsageError
from ._request import Request, request_of
from ._routing import RULES, UNKNOWN, Effect
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

    __slots__ = ("_blocks", "_commands", "_effects", "atomic")

    def __init__(self, *, atomic: bool = False) -> None:
        self.atomic = atomic
        self._commands: list[bytes] = []
        self._blocks = 0.0
        self._effects: list[Effect] = []

    def stack_call(self, *args: Argument) -> None:
        """Add one command. Raises TypeError for an argument that Redis cannot take, see `Client.call`, and UsageError
        for a command that cannot be in a pipeline."""
        command = pack(args)
        if RULES.get(args[0], UNKNOWN) is not None:  # type: ignore[arg-type]  # pack has seen that it is a name
            request = request_of(args)
            if self.atomic and request.effects:
                raise UsageError(f"{request.name} is not for an atomic pipeline, which sends MULTI and EXEC itself")
            if not self.atomic:
                # In a transaction nothing blocks.
                self._blocks += request.blocks
            # Which of the replies closes what, is not worth knowing: there are atomic pipelines for that.
            self._effects += (Effect.STAYS if effect is Effect.CLOSES else effect for effect in request.effects)
        self._commands.append(command)

    def __len__(self) -> int:
        return len(self._commands)

    def request(self) -> Request:
        """What is to be sent for what was stacked up to now."""
        if self.atomic:
            command = b"".join((_MULTI, *self._commands, _EXEC))
            return Request("TRANSACTION", command, slot=partial(TransactionCall, len(self) + 2))
        command, slot = b"".join(self._commands), partial(PipelineCall, len(self))
        return Request("PIPELINE", command, self._blocks, tuple(self._effects), slot)


def pipeline_request(args: tuple[Any, ...]) -> Request:
    """What ``call(pipeline)`` was called with."""
    if len(args) > 1:
        raise TypeError("a pipeline is called alone, without further arguments")
    request: Request = args[0].request()
    return request
