"""What `fanout.py` has measured: as a table in Markdown, and as a plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from fanout_servers import PAYLOAD_BYTES, Peer

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
PAGE: Final = DOCS / "benchmarks.md"
PLOT: Final = DOCS / "images" / "fanout.png"
BEGIN: Final = "<!-- fanout: begin -->"
END: Final = "<!-- fanout: end -->"

HEAD: Final = (
    "",
    "CPU per delivery, µs",
    "lowest to highest",
    "ratio",
    "ratio",
    "deliveries/s",
    "p50, ms",
    "p99, ms",
    "KiB per subscriber",
)

STANDARD: Final = {"SSE": "eventsource", "WebSocket": "websocket"}
"""Whom each protocol's servers are compared with."""


@dataclass(frozen=True)
class Setting:
    """What was asked for."""

    subscribers: int
    messages: int
    rounds: int
    burst: int

    @property
    def bursts(self) -> int:
        return max(self.messages // 50, 2)

    @property
    def command(self) -> str:
        """The command that measures it once more."""
        return (
            f"./dev bench benchmarks/fanout.py --subscribers {self.subscribers} --messages {self.messages}"
            f" --rounds {self.rounds} --write"
        )


@dataclass(frozen=True)
class Sample:
    """One server in one round. CPU in µs per delivery, `rate` in deliveries per second, latencies in ms.

    `memory` is in KiB per idle subscriber; `load_cpu` is what the load generator used.
    """

    cpu: float
    burst_cpu: float
    load_cpu: float
    rate: float
    p50: float
    p99: float
    memory: float


class Result:
    """One server in all rounds."""

    def __init__(self, peer: Peer, samples: list[Sample]) -> None:
        self.peer = peer
        self.samples = samples

    def median(self, figure: str) -> float:
        return statistics.median(self._each(figure))

    def range(self, figure: str) -> tuple[float, float]:
        return min(self._each(figure)), max(self._each(figure))

    def _each(self, figure: str) -> list[float]:
        return [getattr(sample, figure) for sample in self.samples]


def markdown(results: Mapping[str, Result], setting: Setting, missing: Mapping[str, str]) -> str:
    """The table, and under it what has to be known to read it."""
    rows = [[*HEAD[:4], f"in bursts of {setting.burst}, µs", *HEAD[4:]], ["---"] + ["---:"] * len(HEAD)]
    for result in results.values():
        low, high = result.range("cpu")
        rows.append(
            [
                f"{result.peer.title} ({result.peer.protocol})",
                f"{result.median('cpu'):.2f}",
                f"{low:.2f} to {high:.2f}",
                ratio(results, result, "cpu"),
                f"{result.median('burst_cpu'):.3f}",
                ratio(results, result, "burst_cpu"),
                f"{result.median('rate'):,.0f}",
                f"{result.median('p50'):.1f}",
                f"{result.median('p99'):.1f}",
                f"{result.median('memory'):.1f}",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rounds = "one round" if setting.rounds == 1 else f"medians of {setting.rounds} interleaved rounds"
    load = [result.median("load_cpu") for result in results.values()]
    lines += [
        "",
        f"{setting.subscribers:,} subscribers, {PAYLOAD_BYTES} bytes a message, {setting.messages} messages one at a "
        f"time and {setting.bursts} bursts of {setting.burst}, {rounds}. Ratios are against Waterspout on the same "
        "protocol. Every subscriber got every message, once and in order. The load generator used "
        f"{min(load):.1f} to {max(load):.1f} µs of its own core per delivery.",
        "",
        environment(results),
    ]
    if missing:
        left_out = ", ".join(f"{name} ({distribution} is not installed)" for name, distribution in missing.items())
        lines += ["", f"Left out: {left_out}."]
    return "\n".join(lines)


def ratio(results: Mapping[str, Result], result: Result, figure: str) -> str:
    standard = results.get(STANDARD[result.peer.protocol])
    return f"{result.median(figure) / standard.median(figure):.2f}" if standard else ""


def environment(results: Mapping[str, Result]) -> str:
    """Machine, Python, and versions."""
    versions: dict[str, str] = {}
    for result in results.values():
        versions |= result.peer.versions()
    try:
        loop = f"uvloop {metadata.version('uvloop')}"
    except metadata.PackageNotFoundError:
        loop = "asyncio's own event loop"
    facts = [
        f"{processor()}, {os.cpu_count()} cores",
        f"{platform.system()} {platform.release().partition('-')[0]}",
        f"{platform.python_implementation()} {platform.python_version()} on {loop}",
        *(f"{name} {version}" for name, version in sorted(versions.items())),
    ]
    return "; ".join(facts) + "."


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(table: str, setting: Setting) -> Path:
    """Put the table, and the command that measures it, between the markers of the page in the documentation."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE} has lost the markers {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n\n```sh\n{setting.command}\n```\n{END}{after}")
    return PAGE


def bars(results: Mapping[str, Result], setting: Setting) -> Path:
    """Draw what a delivery and a subscriber cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "cpu": "server CPU per delivery, µs\none message at a time",
        "burst_cpu": f"server CPU per delivery, µs\nin bursts of {setting.burst}",
        "memory": "resident memory\nper idle subscriber, KiB",
    }
    pyplot.rcParams.update({"font.family": "sans-serif", "font.size": 10, "text.color": INK, "axes.labelcolor": INK})
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 3.8), sharey=True, layout="constrained")
    order = sorted(results.values(), key=lambda result: result.median("cpu"), reverse=True)
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        panel(axis, title, [result.peer for result in order], [result.median(name) for result in order])
    figure.suptitle(f"One message to {setting.subscribers:,} subscribers: less is better", fontsize=13, weight="bold")
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=160)
    return PLOT


INK: Final = "#1f2933"
OURS: Final = "#0b7285"
THEIRS: Final = "#b8c4ce"
FLOOR: Final = "#e3e8ec"


def panel(axis: Any, title: str, peers: list[Peer], figures: list[float]) -> None:
    labels = [f"{peer.title.replace('`', '')} ({peer.protocol})" for peer in peers]
    colours = [color(peer) for peer in peers]
    drawn = axis.barh(labels, figures, color=colours, height=0.68)
    axis.bar_label(
        drawn, [f"{figure:.1f}" if figure >= 1 else f"{figure:.2f}" for figure in figures], padding=4, color=INK
    )
    axis.set_title(title, fontsize=10, loc="left", color=INK)
    axis.set_xlim(0, max(figures) * 1.18)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(FLOOR)
    axis.tick_params(length=0, colors=INK)
    axis.xaxis.set_visible(False)


def color(peer: Peer) -> str:
    if not peer.needs:
        return FLOOR
    return OURS if "waterspout-handlers" in peer.needs else THEIRS
