"""What a program in C gets from the same server: redis-benchmark, where there is one."""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar, Final

from redis_client_rows import Row, next_times

NAMES: Final = ("redis-benchmark", "valkey-benchmark")
DEADLINE: Final = 60.0  # seconds for one measurement


class CBenchmark:
    """redis-benchmark with a connection for each caller, and so many commands in flight on each of them."""

    DEPTHS: ClassVar = (1, 16)
    loop = None

    def __init__(self, path: str, port: int, depth: int) -> None:
        self._path, self._port, self._depth = path, port, depth
        self.name = "redis-benchmark" if depth == 1 else f"redis-benchmark -P {depth}"

    @staticmethod
    def find(server: str) -> str | None:
        """The one that came with the server, or else any."""
        beside = [str(Path(server).with_name(name)) for name in NAMES]
        return next(filter(None, map(shutil.which, (*beside, *NAMES))), None)

    def does(self, row: Row) -> bool:
        if self._depth == 1:
            return row.kind != "pub/sub"
        return row.kind in ("GET", "SET") and row.size == 16

    def measure(self, row: Row, seconds: float, times: int | None) -> dict[str, Any]:
        """As a worker does, see `redis_client_peers`."""
        if times is not None:
            return self._run(row, times)
        times = 1
        while True:
            sample = self._run(row, times)
            if "error" in sample:
                return sample
            took = times * row.unit * self._depth / sample["rate"]
            more = next_times(times, took, seconds)
            if more is None:
                return self._run(row, max(round(times * seconds / took), 1))
            times = more

    def _run(self, row: Row, times: int) -> dict[str, Any]:
        depth = row.depth * self._depth
        # The value of SET is its own: one of 1 MB is no argument of a command line.
        what = ["-t", "set", "-d", str(row.size)] if row.kind == "SET" else ["GET", row.key]
        options = ["-p", self._port, "-c", row.callers, "-P", depth, "-n", times * row.callers * depth, "--csv"]
        command = [self._path, *map(str, options), *what]
        cpu = cpu_of_children()
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        cpu = cpu_of_children() - cpu
        lines = list(csv.reader(done.stdout.splitlines()))
        if done.returncode or not lines:
            return {"error": f"status {done.returncode}", "why": done.stderr[:500]}
        operations = times * row.callers * depth
        return {"times": times, "rate": float(lines[-1][1]), "cpu": cpu / operations * 1e6}


def cpu_of_children() -> float:
    """Seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
