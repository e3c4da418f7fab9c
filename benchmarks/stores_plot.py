"""What `stores.py` and `history.py` have measured, drawn: an SVG that reads on white and on black."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from plots import OURS_COLOURS, THEIRS, Bars, bars, draw, limit, short
from stores_work import CHANNELS, SIZE

MB: Final = 1e6
OURS: Final = OURS_COLOURS["asyncio"]
GREY: Final = THEIRS["asyncio"]

RECEIVED: Final = {
    "receive_plain": "Waterspout",
    "receive_history": "with history",
    "receive_redis_py": "redis-py's listen()",
}
KEPT: Final = {
    "many_in_memory": "in memory",
    "many_plain": "through Redis",
    "many_history": "with history",
}

Figures = Mapping[str, Mapping[str, float]]


def plot(figures: Figures, history: Sequence[Mapping[str, Any]], bound: float, path: Path) -> None:
    """Those of the panels of which everything was measured. `bound` is what the channels may take, in bytes."""
    panels: list[Callable[[Any], None]] = []
    if figures.keys() >= RECEIVED.keys():
        panels.append(partial(received, figures=figures))
    if figures.keys() >= KEPT.keys():
        panels.append(partial(kept, figures=figures, bound=bound))
    if history:
        panels += [partial(published, rows=history), partial(costs, rows=history)]
    draw(path, panels, across=2)


def received(axis: Any, figures: Figures) -> None:
    """What a received message costs."""
    cpu = [figures[work]["cpu"] for work in RECEIVED]
    colours = [GREY if work == "receive_redis_py" else OURS for work in RECEIVED]
    one = Bars("", cpu, [f"{each:.2f}" for each in cpu], colours)
    bars(axis, "Redis → async iterator", f"µs of CPU per message of {SIZE} B", list(RECEIVED.values()), [one])


def kept(axis: Any, figures: Figures, bound: float) -> None:
    """What many channels weigh."""
    memory = [figures[work]["memory"] / MB for work in KEPT]
    one = Bars("", memory, [f"{each:.0f}" for each in memory], [OURS] * len(KEPT))
    bars(axis, f"{CHANNELS:,} channels", "MB, a message and a cursor each", list(KEPT.values()), [one])
    limit(axis, bound / MB, f"≤ {bound / MB:.0f}")


def published(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """How many messages go out one by one, and how many calls a program in C makes."""
    series, callers = [], list(dict.fromkeys(row["number"] for row in rows if row["kind"] == "one by one"))
    for kind, loop, name, colour in (
        ("one by one", "asyncio", "asyncio", OURS),
        ("one by one", "uvloop", "uvloop", OURS_COLOURS["uvloop"]),
        ("bare", "", "redis-benchmark -P", GREY),
    ):
        rates = [row["rate"] for row in rows if (row["kind"], row["loop"]) == (kind, loop)]
        if rates:
            series.append(Bars(name, rates, [*map(short, rates)], [colour] * len(rates)))
    groups = [f"{number} callers" for number in callers]
    bars(axis, "Published one by one, with history", "messages per second", groups, series)


def costs(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """What a message costs Redis, by how many go out at once."""
    own = [row for row in rows if row["loop"] == rows[0]["loop"]]
    alone = [row for row in own if row["kind"] == "one by one"][-1]
    single, *batches = [row for row in own if row["kind"] == "batch"]
    groups = {
        "one caller": single,
        f"{alone['number']} callers": alone,
        **{f"batches of {row['number']:,}": row for row in batches},
    }
    cpu = [row["redis"] for row in groups.values()]
    one = Bars("", cpu, [f"{each:.1f}" for each in cpu], [OURS] * len(cpu))
    bars(axis, "Published in batches, with history", "µs of Redis per message", list(groups), [one])
