"""What `redis_client.py` measures: the rows of its tables, and how many operations a measurement needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

CALLERS: Final = (1, 10, 50, 500)
SIZES: Final = (16, 4 * 1024, 64 * 1024, 1024 * 1024)
DEPTHS: Final = (10, 100, 1000)


@dataclass(frozen=True)
class Row:
    """One kind of work. `depth` commands make one pipeline; `size` is of a value or a message, in bytes."""

    kind: Literal["GET", "SET", "pipeline", "pub/sub"]
    callers: int = 1
    size: int = 16
    depth: int = 1

    @property
    def title(self) -> str:
        if self.kind == "pipeline":
            return f"pipelines of {self.depth} GETs, {in_words(self.size)}"
        if self.kind == "pub/sub":
            return f"messages received, {in_words(self.size)}"
        return f"{self.kind}, {self.callers} caller{'s' * (self.callers > 1)}, {in_words(self.size)}"

    @property
    def value(self) -> bytes:
        return b"0123456789abcdef" * (self.size // 16)

    @property
    def key(self) -> str:
        """What GET reads is there before; SET has keys of its own."""
        return f"{'written' if self.kind == 'SET' else 'value'}:{self.size}"

    @property
    def unit(self) -> int:
        """How many operations are done when each caller did its work once."""
        return self.callers * self.depth


def in_words(size: int) -> str:
    if size >= 1024 * 1024:
        return f"{size // 1024 // 1024} MB"
    return f"{size // 1024} KB" if size >= 1024 else f"{size} B"


def next_times(times: int, took: float, seconds: float) -> int | None:
    """After `times` units took so long: how many to try next for a better guess; None if this one is good enough."""
    if took >= seconds / 4:
        return None
    return times * 10 if took < seconds / 20 else max(times + 1, round(times * seconds / 2 / took))


GET_1: Final = Row("GET", 1)
GET_50: Final = Row("GET", 50)
PIPELINE: Final = Row("pipeline", depth=1000)
PUBSUB: Final = Row("pub/sub")
GET_LARGE: Final = Row("GET", 50, SIZES[-1])
SET_LARGE: Final = Row("SET", 50, SIZES[-1])

QUICK: Final = (GET_1, GET_50, PIPELINE, PUBSUB, GET_LARGE, SET_LARGE)
"""Those with a target."""

ROWS: Final = (
    *(Row(kind, callers, size) for size in SIZES for kind in ("GET", "SET") for callers in CALLERS),
    *(Row("pipeline", depth=depth) for depth in DEPTHS),
    PUBSUB,
)
BY_TITLE: Final = {row.title: row for row in ROWS}
