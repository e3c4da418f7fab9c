"""Where a reader stands: a position in one log, and the id that carries the positions in several."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from ._errors import BadPosition

MAX_ID_LENGTH: Final = 4096
"""Longer ids are refused: a request header has to hold them. It is enough for over a hundred channels."""

EARLIEST: Final = "earliest"
"""As an id (Mercure's name for it): from the oldest message that is kept. No epoch has this name."""

_TOKEN: Final = re.compile(r"([0-9a-z]{1,32})-([0-9]{1,18})", re.ASCII)


class Position(NamedTuple):
    """The place just behind message number `offset` of the log that is known by `epoch`.

    Offsets are counted from 1 and never taken from a clock; 0 stands before the first message. A log that cannot
    know what came before it (a new process, a restored backup) has a new epoch, so no position is mistaken.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


NOWHERE: Final = Position("0", 0)
"""The place of a reader whose position nobody knows. No log has this epoch: who comes back here is told of a gap."""


def new_epoch() -> str:
    """A name for a log's life that no other log has had."""
    return secrets.token_hex(5)


def to_id(positions: Iterable[Position]) -> str:
    """The id that carries all `positions`: for one channel `epoch-offset`, for more of them joined by commas."""
    # A position is a tuple, too.
    return str(positions) if isinstance(positions, Position) else ",".join(map(str, positions))


def from_id(text: str) -> Mapping[str, int]:
    """The offset for each epoch that the id `text` carries, or `EARLIEST` as the only key. Raises `BadPosition`.

    Epochs are unique, so the id needs no channel names, and their order and number may change between requests.
    """
    if text == EARLIEST:
        return {EARLIEST: 0}
    if len(text) > MAX_ID_LENGTH:
        raise BadPosition(f"an id has at most {MAX_ID_LENGTH} characters, this one has {len(text)}")
    offsets: dict[str, int] = {}
    for token in text.split(","):
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise BadPosition(f"{token!r:.80} is not a position like 'f00ba47e11-42'")
        offsets[match[1]] = int(match[2])
    return offsets
