"""What the plots of the benchmarks share: bars in an SVG that reads on white and on black."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

# Each has a contrast of 3:1 and more with white and with the near-black of dark pages.
INK: Final = "#76828e"
OURS_COLOURS: Final = {"asyncio": "#0c8599", "uvloop": "#119fb4"}
THEIRS: Final = {"asyncio": "#66717c", "uvloop": "#8a95a1"}


@dataclass(frozen=True)
class Bars:
    """A bar for each group, with its label and its colour; the first one says the name too."""

    name: str
    lengths: Sequence[float]
    labels: Sequence[str]
    colours: Sequence[str]


def draw(path: Path, panels: Sequence[Callable[[Any], None]], across: int = 3) -> None:
    """Each panel gets its axes; so many are side by side."""
    if not panels:
        raise click.ClickException("nothing to draw: what the pictures show was not measured")
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # A fixed salt: the same figures make the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "waterspout", "font.family": "sans-serif", "font.size": 10}
    with pyplot.rc_context({**style, "text.color": INK, "axes.labelcolor": INK}):
        across = min(len(panels), across)
        down = -(-len(panels) // across)
        size = 4 * across, 2.9 * down
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel(axis)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def bars(axis: Any, heading: str, unit: str, groups: Sequence[str], series: Sequence[Bars]) -> None:
    """One panel: the groups from top to bottom, in each of them a bar of each of the series."""
    height = 0.8 / max(len(series), 1.5)  # one alone is thinner
    for number, each in enumerate(series):
        places = [(len(series) / 2 - number - 0.5) * height - group for group in range(len(groups))]
        drawn = axis.barh(places, each.lengths, height * 0.9, color=each.colours)
        first, *others = each.labels
        axis.bar_label(drawn, [f"{first}  {each.name}", *others], padding=3, fontsize=8, color=INK)
    axis.set_title(heading, fontsize=10, loc="left", color=INK, weight="bold")
    axis.set_xlabel(unit, fontsize=9)
    axis.set_yticks([-group for group in range(len(groups))], groups)
    axis.set_xlim(0, max(length for each in series for length in each.lengths) * 1.5)
    axis.locator_params(axis="x", nbins=4)
    axis.xaxis.set_major_formatter(lambda length, _: short(length))
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(colors=INK, labelsize=9)
    axis.tick_params(axis="y", length=0)


def limit(axis: Any, length: float, label: str) -> None:
    """A line that no bar should cross."""
    axis.axvline(length, color=INK, linewidth=1, linestyle="--")
    axis.annotate(label, (length, 0), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center")


def short(number: float) -> str:
    """147,084 → 147 k"""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}" if number else ""
