"""The real parts: server processes, and clients that know nothing of our code."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser

from integration.browsers import launched

DEADLINE: Final = 20.0
"""Seconds after which something that should have happened has not."""


class ServerProcess:
    """`waterspout serve` as a process of its own, started and stopped as a user would."""

    def __init__(
        self, log: Path, *args: str, environment: dict[str, str] | None = None, descriptors: int | None = None
    ) -> None:
        self._descriptors = descriptors
        self._log = log
        self._args = args
        self._environment = {**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"}
        self._port = 0
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it says where it listens."""
        with self._log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [*self._limit(), sys.executable, "-m", "waterspout", "serve", "--port", str(self._port), *self._args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        url = self.wait_for_output(r"listens on (https?://\S+)", begin)[1]
        self.url = url
        self._port = int(url.rpartition(":")[2])

    def _limit(self) -> list[str]:
        """What to start it with, so that it may have no more than so many file descriptors."""
        return ["sh", "-c", f'ulimit -n {self._descriptors} && exec "$@"', "sh"] if self._descriptors else []

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, as (host, port)."""
        return "127.0.0.1", self._port

    def output(self) -> str:
        """All that it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_for_output(self, pattern: str, begin: int = 0) -> re.Match[str]:
        """Wait until what it prints matches `pattern`."""
        limit = time.monotonic() + DEADLINE
        while True:
            found = re.search(pattern, self.output()[begin:])
            if found:
                return found
            ended = self.process.poll()
            if ended is not None or time.monotonic() > limit:
                pytest.fail(f"no {pattern!r} from the server (exit status {ended}):\n{self.output()}")
            time.sleep(0.01)

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(DEADLINE)


Serve = Callable[..., ServerProcess]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts server processes: `serve("--redis", url)`; they end with the test."""
    started: list[ServerProcess] = []

    def start(*args: str, **options: Any) -> ServerProcess:
        server = ServerProcess(tmp_path / f"server-{len(started)}.log", *args, **options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()
        assert "Traceback" not in server.output(), server.output()


class Command:
    """A `waterspout` subcommand as a process, with its output in files."""

    def __init__(self, folder: Path, *args: str, stdin: Any = subprocess.DEVNULL) -> None:
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "waterspout", *args],
                stdin=stdin,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until `condition()` holds."""
        limit = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > limit:
                pytest.fail(
                    f"{what} did not happen (exit status {self.process.poll()}):\n{self.out[-2000:]}\n{self.err}"
                )
            time.sleep(0.01)

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(DEADLINE)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts subcommands: `command("tail", "news", "--url", url)`; they end with the test."""
    started: list[Command] = []

    def start(*args: str, stdin: Any = subprocess.DEVNULL) -> Command:
        folder = tmp_path / f"command-{len(started)}"
        folder.mkdir()
        started.append(Command(folder, *args, stdin=stdin))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait(DEADLINE)
        assert "Traceback" not in each.err, each.err


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser, one for all tests of a module."""
    with launched() as browser:
        yield browser


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
