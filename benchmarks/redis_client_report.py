"""What `redis_client.py` has measured: as JSON, and as tables in Markdown."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from fanout_report import processor
from redis_client_peers import OURS, PEERS
from redis_client_rows import GET_1, GET_50, GET_LARGE, PIPELINE, PUBSUB, ROWS, SET_LARGE, Row

import waterspout_redis
from waterspout_redis.testing import ServerBinary

LOOP_TITLES: Final = {"asyncio": "asyncio's loop", "uvloop": "uvloop"}

PLACES: Final = {
    "server": "The server keeps to one core, the clients run where the system puts them.",
    "apart": "The server has one core, the clients have all others.",
    "together": "The server and the clients share one core.",
    "free": "The server and the clients run where the system puts them.",
}

Figure = Literal["rate", "cpu"]


class Results:
    """All samples, and where they were taken."""

    def __init__(self, facts: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        self.facts, self.samples = facts, samples
        present = {sample["row"] for sample in samples}
        self.rows = [row for row in ROWS if row.title in present]
        self.clients = list(dict.fromkeys(sample["client"] for sample in samples))
        self.loops = [loop for loop in LOOP_TITLES if any(sample["loop"] == loop for sample in samples)]

    @classmethod
    def read(cls, path: Path) -> Results:
        kept = json.loads(path.read_text())
        return cls(kept["facts"], kept["samples"])

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"facts": self.facts, "samples": self.samples}, indent=1) + "\n")

    def of(self, loop: str, row: Row, client: str) -> list[dict[str, Any]]:
        """One sample for each round; redis-benchmark has no event loop, so its samples are those of each."""
        return [
            sample
            for sample in self.samples
            if sample["row"] == row.title and sample["client"] == client and sample["loop"] in (loop, None)
        ]

    def error(self, loop: str, row: Row, client: str) -> str | None:
        """Why there is no figure: one failure is enough."""
        return next((sample["error"] for sample in self.of(loop, row, client) if "error" in sample), None)

    def median(self, loop: str, row: Row, client: str, figure: Figure) -> float | None:
        if self.error(loop, row, client):
            return None
        figures: list[float] = [sample[figure] for sample in self.of(loop, row, client)]
        return statistics.median(figures) if figures else None

    def ratio(self, loop: str, row: Row, client: str) -> float | None:
        """How often more operations per second ours does."""
        ours, theirs = self.median(loop, row, OURS, "rate"), self.median(loop, row, client, "rate")
        return ours / theirs if ours and theirs else None


def environment(server: ServerBinary, clients: Sequence[str]) -> dict[str, Any]:
    """Where it is measured, with what."""
    versions = {"uvloop": version("uvloop"), "hiredis": version("hiredis")}
    for name in clients:
        if PEERS[name].distribution:
            versions[PEERS[name].distribution] = version(PEERS[name].distribution)
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": str(server),
        "versions": {name: number for name, number in sorted(versions.items()) if number},
        "load": os.getloadavg()[0],
    }


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        # Ours may be run from its source.
        return waterspout_redis.__version__ if distribution == "waterspout-redis" else ""


# The targets


@dataclass(frozen=True)
class Bound:
    """In this row ours does so many times more operations per second than `client`."""

    row: Row
    client: str
    least: float
    aim: float

    def judged(self, results: Results, loop: str) -> str:
        ratio = results.ratio(loop, self.row, self.client)
        if ratio is None:
            return ""
        return times(ratio) + mark(ratio >= self.aim, ratio >= self.least)


TARGETS: Final = {
    "ops/s against redis-py asyncio": (Bound(GET_50, "redis-py", 15, 20),),
    "against coredis": (Bound(GET_50, "coredis", 15, 20),),
    "against valkey-glide": (Bound(GET_50, "glide", 6, 8),),
    "CPU per GET, asyncio's loop": (),
    "one caller, against redis-py": (Bound(GET_1, "redis-py", 1.5, 2),),
    "pipeline of 1000, against redis-py": (Bound(PIPELINE, "redis-py", 6, 8),),
    "pub/sub messages received per second, as objects, against redis-py / coredis": (
        Bound(PUBSUB, "redis-py", 4, 6),
        Bound(PUBSUB, "coredis", 12, 20),
    ),
    "1 MB values, against redis-py, GET / SET": (
        Bound(GET_LARGE, "redis-py", 1, 1.5),
        Bound(SET_LARGE, "redis-py", 1, 1.5),
    ),
}
CPU_AIM: Final = 5.0  # µs per GET


def targets(results: Results) -> list[list[str]]:
    """What is aimed at, and what was measured."""
    lines = [["at 50 callers, 16 B", "at least", "aimed at", *(f"on {LOOP_TITLES[loop]}" for loop in results.loops)]]
    for what, bounds in TARGETS.items():
        if bounds:
            least, aim = joined(times(bound.least) for bound in bounds), joined(times(bound.aim) for bound in bounds)
            measured = [joined(bound.judged(results, loop) for bound in bounds) for loop in results.loops]
        else:
            least, aim = "–", f"≤ {CPU_AIM:g} µs"  # noqa: RUF001
            measured = [cpu_judged(results) if loop == "asyncio" else "" for loop in results.loops]
        lines.append([what, least, aim, *measured])
    bounds_kept = "in flight within `max_in_flight` and `max_in_flight_bytes`, all answered"
    return [*lines, ["100,000 `call()`s at once", bounds_kept, "", *("a test" for _ in results.loops)]]


def cpu_judged(results: Results) -> str:
    cpu = results.median("asyncio", GET_50, OURS, "cpu")
    return f"{cpu:.1f} µs{mark(cpu <= CPU_AIM, True)}" if cpu else ""


def joined(parts: Iterable[str]) -> str:
    return " / ".join(filter(None, dict.fromkeys(parts)))


def times(ratio: float) -> str:
    return f"{ratio:.3g} \N{MULTIPLICATION SIGN}" if ratio >= 1 else f"{ratio:.2f} \N{MULTIPLICATION SIGN}"


def mark(aim: bool, least: bool) -> str:
    """A tick for what was aimed at, a cross for what is not even the least."""
    return " ✓" if aim else "" if least else " ✗"


# The tables


def markdown(results: Results) -> str:
    facts = results.facts
    parts = [table(targets(results))]
    for loop in results.loops:
        parts += [f"Operations per second on {LOOP_TITLES[loop]}, and how many times more ours does:"]
        parts += [table(rates(results, loop))]
        parts += [f"CPU of the client per operation on {LOOP_TITLES[loop]}, µs:", table(costs(results, loop))]
    about = [facts["processor"], facts["system"], facts["python"], facts["server"]]
    about += [f"{name} {number}" for name, number in facts["versions"].items()]
    rounds = "One round" if facts["rounds"] == 1 else f"Medians of {facts['rounds']} rounds"
    rounds += f" of about {facts['seconds']:g} s for each figure."
    return "\n\n".join([*parts, f"{rounds} {PLACES[facts['place']]} {'; '.join(about)}."])


def table(lines: list[list[str]]) -> str:
    head, *rest = lines
    ruled = [head, ["---"] + ["---:"] * (len(head) - 1), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


def title(client: str) -> str:
    return PEERS[client].title if client in PEERS else client


def rates(results: Results, loop: str) -> list[list[str]]:
    compared = [name for name, peer in PEERS.items() if peer.package and name != OURS] + ["redis-benchmark"]

    def cell(row: Row, client: str) -> str:
        rate = results.median(loop, row, client, "rate")
        if rate is None:
            return results.error(loop, row, client) or ""
        ratio = results.ratio(loop, row, client) if client in compared else None
        return f"{rate:,.0f}" + (f" ({times(ratio)})" if ratio else "")

    return matrix(results, cell)


def costs(results: Results, loop: str) -> list[list[str]]:
    def cell(row: Row, client: str) -> str:
        cpu = results.median(loop, row, client, "cpu")
        if cpu is None:
            return results.error(loop, row, client) or ""
        return f"{cpu:.1f}" if cpu < 1000 else f"{cpu:,.0f}"

    return matrix(results, cell)


def matrix(results: Results, cell: Callable[[Row, str], str]) -> list[list[str]]:
    head = ["", *map(title, results.clients)]
    return [head, *([row.title, *(cell(row, client) for client in results.clients)] for row in results.rows)]
