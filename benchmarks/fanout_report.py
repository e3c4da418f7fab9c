"""What `fanout.py` has measured: all samples, where they were taken, and the figures that follow from them."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
PAGE: Final = DOCS / "benchmarks.md"
BEGIN: Final = "<!-- fanout: begin -->"
END: Final = "<!-- fanout: end -->"

Sample = dict[str, Any]
"""The figures of one server in one round, with its `kind`, `round`, and mostly `peer` and `subscribers`."""


@dataclass(frozen=True)
class Results:
    """What `--json` keeps."""

    facts: dict[str, Any]
    samples: list[Sample]

    @classmethod
    def read(cls, path: Path) -> Results:
        kept = json.loads(path.read_text())
        return cls(kept["facts"], kept["samples"])

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"facts": self.facts, "samples": self.samples}, indent=1) + "\n")

    def of(self, kind: str, **where: object) -> list[Sample]:
        """Those that were taken so."""
        wanted = {"kind": kind, **where}
        return [sample for sample in self.samples if wanted.items() <= sample.items()]

    def each(self, kind: str, name: str) -> list[Any]:
        """The different values of `name`, in the order they were measured."""
        return list(dict.fromkeys(sample[name] for sample in self.of(kind)))

    def median(self, figure: str, kind: str, **where: object) -> float | None:
        """Of all rounds; None if it was not measured."""
        figures = [sample[figure] for sample in self.of(kind, **where) if figure in sample]
        return statistics.median(figures) if figures else None

    def ratio(self, one: str, other: str, number: int, figure: str = "cpu", against: str = "cpu") -> float | None:
        """How many times as much `figure` of one peer is as `against` of another: the median of the rounds' ratios.

        In a round they stand side by side, so what the machine does else is in both.
        """
        others = {
            sample["round"]: sample[against]
            for sample in self.of("deliveries", peer=other, subscribers=number)
            if against in sample
        }
        ratios = [
            sample[figure] / others[sample["round"]]
            for sample in self.of("deliveries", peer=one, subscribers=number)
            if figure in sample and sample["round"] in others
        ]
        return statistics.median(ratios) if ratios else None


def environment(versions: Mapping[str, str], *others: object) -> dict[str, Any]:
    """Where it is measured, with what."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()} on {event_loop()}",
        "others": list(map(str, others)),
        "versions": dict(sorted(versions.items())),
        "load": os.getloadavg()[0],
    }


def event_loop() -> str:
    """On which the servers run."""
    try:
        return f"uvloop {metadata.version('uvloop')}"
    except metadata.PackageNotFoundError:
        return "asyncio's own event loop"


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(text: str) -> Path:
    """Put it between the markers of the page in the documentation."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE} has lost the markers {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return PAGE
