"""What `redis_client.py` has measured, drawn: an SVG that reads on white and on black."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from redis_client_peers import OURS, PEERS
from redis_client_report import Results, title
from redis_client_rows import QUICK, Row

# Each has a contrast of 3:1 and more with white and with the near-black of dark pages.
INK: Final = "#76828e"
OURS_COLOURS: Final = {"asyncio": "#0c8599", "uvloop": "#119fb4"}
THEIRS: Final = {"asyncio": "#66717c", "uvloop": "#8a95a1"}


def plot(results: Results, path: Path) -> None:
    """The rows that have a target: a bar for each client and event loop."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = [row for row in QUICK if row in results.rows]
    # A fixed salt: the same figures make the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "waterspout", "font.family": "sans-serif", "font.size": 10}
    with pyplot.rc_context({**style, "text.color": INK, "axes.labelcolor": INK}):
        across = min(len(rows), 3)
        down = -(-len(rows) // across)
        size = 4 * across, 2.9 * down
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
        for axis, row in zip(axes.flat, rows, strict=False):
            panel(axis, results, row)
        for axis in axes.flat[len(rows) :]:
            axis.set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def panel(axis: Any, results: Results, row: Row) -> None:
    clients = [name for name in results.clients if name in PEERS and PEERS[name].package][::-1]
    height = 0.8 / len(results.loops)
    longest = 0.0
    for number, loop in enumerate(results.loops):
        # A client that cannot do it has no bar.
        rates = [results.median(loop, row, name, "rate") or 0.0 for name in clients]
        labels = [
            short(rate) if rate else results.error(loop, row, name) or ""
            for name, rate in zip(clients, rates, strict=True)
        ]
        labels[-1] += f"  {loop}"
        places = [place + 0.4 - (number + 0.5) * height for place in range(len(clients))]
        colours = [(OURS_COLOURS if name == OURS else THEIRS)[loop] for name in clients]
        bars = axis.barh(places, rates, height * 0.9, color=colours)
        axis.bar_label(bars, labels, padding=3, fontsize=8, color=INK)
        longest = max(longest, *rates)
    axis.set_title(row.title, fontsize=10, loc="left", color=INK, weight="bold")
    axis.set_xlabel("messages per second" if row.kind == "pub/sub" else "operations per second", fontsize=9)
    axis.set_yticks(range(len(clients)), [title(name) for name in clients])
    axis.set_xlim(0, longest * 1.5)
    axis.locator_params(axis="x", nbins=4)
    axis.xaxis.set_major_formatter(lambda rate, _: short(rate))
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(colors=INK, labelsize=9)
    axis.tick_params(axis="y", length=0)


def short(rate: float) -> str:
    """147,084 → 147 k"""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if rate >= size:
            return f"{rate / size:.3g}{unit}"
    return f"{rate:.3g}" if rate else ""
