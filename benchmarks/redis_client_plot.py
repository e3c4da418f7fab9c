"""What `redis_client.py` has measured, drawn: an SVG that reads on white and on black."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from plots import OURS_COLOURS, THEIRS, Bars, bars, draw, short
from redis_client_peers import OURS, PEERS
from redis_client_report import Results, title
from redis_client_rows import QUICK, Row


def plot(results: Results, path: Path) -> None:
    """The rows that have a target: a bar for each client and event loop."""
    draw(path, [partial(panel, results=results, row=row) for row in QUICK if row in results.rows])


def panel(axis: Any, results: Results, row: Row) -> None:
    clients = [name for name in results.clients if name in PEERS and PEERS[name].package]
    unit = "messages per second" if row.kind == "pub/sub" else "operations per second"
    series = [bars_of(results, row, clients, loop) for loop in results.loops]
    bars(axis, row.title, unit, [title(name) for name in clients], series)


def bars_of(results: Results, row: Row, clients: list[str], loop: str) -> Bars:
    # A client that cannot do it has no bar.
    rates = [results.median(loop, row, name, "rate") or 0.0 for name in clients]
    labels = [
        short(rate) if rate else results.error(loop, row, name) or "" for name, rate in zip(clients, rates, strict=True)
    ]
    return Bars(loop, rates, labels, [(OURS_COLOURS if name == OURS else THEIRS)[loop] for name in clients])
