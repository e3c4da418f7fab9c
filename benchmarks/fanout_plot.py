"""What `fanout.py` has measured, drawn: SVGs that read on white and on black."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from fanout_peers import PEERS
from fanout_report import DOCS, Results
from fanout_tables import KiB, best_number, numbers
from fanout_work import BURST
from plots import INK, OURS_COLOURS, THEIRS, Bars, bars, draw

BY_PEER: Final = DOCS / "images" / "fanout.svg"
BY_NUMBER: Final = DOCS / "images" / "fanout-by-n.svg"

NAMES: Final = {
    "floor-c": "loop in C",
    "floor": "loop in Python",
    "eventsource": "Waterspout SSE",
    "websocket": "Waterspout WS",
    "lines": "Waterspout lines",
    "nchan": "nchan SSE",
    "nchan-websocket": "nchan WS",
    "tornado": "Tornado",
}
"""Those that are not called as in `PEERS`, in short."""

LINES: Final = {"SSE": ("SSE",), "WebSocket and lines": ("WebSocket", "lines")}
FLOOR: Final = "#a6803a"  # as readable on white and on black as the others
MARKERS: Final = "osD^vP*X<>dh"
TICKS: Final = (1, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500)


def plot(results: Results) -> list[Path]:
    """Draw what a delivery costs by peer, and by the number of subscribers."""
    number = best_number(results)
    figures = {"cpu": "One message at a time", "burst_cpu": f"In bursts of {BURST}", "memory": "Memory"}
    panels: list[Callable[[Any], None]] = [
        partial(by_peer, results=results, number=number, figure=figure, heading=heading)
        for figure, heading in figures.items()
        if results.median(figure, "deliveries", subscribers=number) is not None
    ]
    draw(BY_PEER, panels)
    draw(BY_NUMBER, [partial(by_number, results=results, heading=heading) for heading in LINES], across=2)
    return [BY_PEER, BY_NUMBER]


def colour(peer: str) -> str:
    if peer.startswith("floor"):
        return FLOOR
    return OURS_COLOURS["asyncio"] if "waterspout-handlers" in PEERS[peer].needs else THEIRS["asyncio"]


def by_peer(axis: Any, results: Results, number: int, figure: str, heading: str) -> None:
    """A bar for each peer, the cheapest first."""
    unit, scale = ("KiB per idle subscriber", KiB) if figure == "memory" else ("µs of server CPU per delivery", 1)
    found = {
        peer: median / scale
        for peer in results.each("deliveries", "peer")
        if (median := results.median(figure, "deliveries", peer=peer, subscribers=number)) is not None
    }
    order = sorted(found, key=found.__getitem__)
    lengths = [found[peer] for peer in order]
    labels = [f"{length:.2f}" if length < 10 else f"{length:.0f}" for length in lengths]
    one = Bars("", lengths, labels, [colour(peer) for peer in order])
    bars(axis, f"{heading}, {number:,} subscribers", unit, [NAMES.get(peer, peer) for peer in order], [one])


def by_number(axis: Any, results: Results, heading: str) -> None:
    """A line for each peer over the number of subscribers."""
    counts, drawn = numbers(results), list[float]()
    for marker, peer in zip(MARKERS, results.each("deliveries", "peer"), strict=False):
        if PEERS[peer].protocol not in LINES[heading] and not peer.startswith("floor"):
            continue
        points = {
            number: median
            for number in counts
            if (median := results.median("cpu", "deliveries", peer=peer, subscribers=number)) is not None
        }
        axis.plot([*points], [*points.values()], marker=marker, markersize=5, color=colour(peer), label=peer)
        drawn += points.values()
    if not drawn:
        return
    handles, peers = axis.get_legend_handles_labels()
    # In the order of the lines, the uppermost first.
    order = sorted(zip(handles, peers, strict=True), key=lambda each: -each[0].get_ydata()[-1])
    axis.legend(
        [handle for handle, _ in order],
        [NAMES.get(peer, peer) for _, peer in order],
        bbox_to_anchor=(1, 0.5),
        loc="center left",
        fontsize=7.5,
        frameon=False,
        labelcolor=INK,
    )
    axis.set_title(f"{heading}, one message at a time", fontsize=10, loc="left", color=INK, weight="bold")
    axis.set_xlabel("subscribers", fontsize=9)
    axis.set_ylabel("µs of server CPU per delivery", fontsize=9)
    axis.set_xticks(counts, [f"{number:,}" for number in counts])
    axis.set_yscale("log")
    axis.minorticks_off()
    ticks = [tick for tick in TICKS if min(drawn) * 0.8 <= tick <= max(drawn) * 1.2]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(colors=INK, labelsize=8)
