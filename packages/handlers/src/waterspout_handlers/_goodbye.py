"""Why a server ends a connection, in words and in a number that every door can tell in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last thing that a peer is told. `code` is WebSocket's (IANA, "WebSocket Close Code Number Registry")."""

    code: int
    reason: str


RESTART: Final = Goodbye(1012, "the server is about to stop: come back")
AGED: Final = Goodbye(1012, "this connection is old enough: come back")
SILENT: Final = Goodbye(1011, "nothing was heard for too long")
FULL: Final = Goodbye(1013, "there are too many connections: come back later")
