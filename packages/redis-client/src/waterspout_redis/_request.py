"""What is to be sent, packed: nothing that its caller changes afterwards changes it."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ._encoding import pack
from ._errors import UsageError
from ._routing import Effect, name_of, rule_for
from ._slots import CallSlot, DecodedCall


def _one_reply(future: Future[Any], encoding: str | None) -> CallSlot:
    return future if encoding is None else DecodedCall(future, encoding)


@dataclass(frozen=True, slots=True)
class Request:
    """A command, or a whole pipeline, that has something special about it."""

    name: str
    command: bytes
    """As it goes over the wire. An empty pipeline has nothing to send."""
    blocks: float = 0.0
    """For so many seconds it may block."""
    effects: Sequence[Effect] = ()
    """What it leaves behind on its connection, in order."""
    slot: Callable[[Future[Any], str | None], CallSlot] = _one_reply
    """Makes what waits for its replies out of the Future and the encoding that is wanted."""


def request_of(args: tuple[Any, ...]) -> Request:
    """One command. Raises TypeError for arguments that Redis cannot take, UsageError for what no connection takes."""
    command, name, rule = pack(args), name_of(args), rule_for(args)
    if rule is None:
        return Request(name, command)
    if rule.refusal is not None:
        raise UsageError(f"{name} cannot be called: {rule.refusal}")
    blocks = 0.0 if rule.blocks is None else rule.blocks(args)
    return Request(name, command, blocks, () if rule.effect is Effect.NONE else (rule.effect,))
