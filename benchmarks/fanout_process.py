"""The servers of `fanout.py` as processes: how they are told what to do, and what is measured of them from outside."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from typing import Final, Protocol, Self

import click
import psutil
from fanout_load import DEADLINE, LedgerError

SPARE_FILES: Final = 64
"""Files a process has open beside its connections."""


class MissingError(Exception):
    """A peer cannot run here."""


class Server(Protocol):
    """A server that runs."""

    port: int

    def publish(self, count: int) -> None:
        """Have it publish `count` messages at once."""

    def subscribers(self) -> int:
        """How many it counts."""

    def cpu(self) -> int:
        """CPU time used so far, user and system, in ns."""

    def memory(self) -> int:
        """Resident memory in bytes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None:
        """End it at once."""


def await_subscribers(server: Server, count: int) -> None:
    """Return when `server` counts `count` subscribers: a client has the head of its response before that."""
    deadline = time.monotonic() + DEADLINE
    while (found := server.subscribers()) != count:
        if time.monotonic() > deadline:
            raise LedgerError(f"the server counts {found} subscribers, and {count} are connected")
        time.sleep(0.02)


def raise_file_limit(subscribers: int) -> None:
    """Let this process, and the servers that inherit it, have a file for each subscriber. Raises `ClickException`."""
    needed = subscribers + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise click.ClickException(
                f"{subscribers} subscribers need {needed} open files, and the hard limit (ulimit -Hn) is {hard}: "
                "raise it, or ask for fewer with --subscribers"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def take_cpus() -> int | None:
    """Put this process on a core of its own, and return the one that is left to the servers; None if it cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return None
    os.sched_setaffinity(0, cpus[1:])
    return cpus[0]


class Observed:
    """What one can tell of a process from outside of it."""

    def __init__(self, pid: int, cpu: int | None) -> None:
        self._psutil = psutil.Process(pid)
        # The kernel's clock of another process: clock_getcpuclockid(3), to the ns.
        self._clock = (~pid << 3) | 2
        if cpu is not None:
            os.sched_setaffinity(pid, {cpu})

    def cpu(self) -> int:
        return time.clock_gettime_ns(self._clock)

    def memory(self) -> int:
        return int(self._psutil.memory_info().rss)


class Piped(Observed):
    """A program that obeys standard input, as `fanout_servers.py` has it."""

    def __init__(self, command: list[str], cpu: int | None) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        super().__init__(self._process.pid, cpu)
        try:
            self.port = self._answer()
        except LedgerError:
            self.__exit__()
            raise

    def publish(self, count: int) -> None:
        self._say(f"publish {count}\n")

    def subscribers(self) -> int:
        self._say("subscribers\n")
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is told when it does not answer
            self._process.stdin.write(line.encode())

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LedgerError(f"the server has ended with status {self._process.wait(DEADLINE)}: see above")
        return int(line)
