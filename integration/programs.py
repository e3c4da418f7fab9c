"""The larger examples as processes of their own, started and stopped as a user would."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from integration.clients import DEADLINE

EXAMPLES: Final = Path(__file__).parent.parent / "examples"


class Program:
    """`examples/<name>` with these arguments, of which the first ones are the ports that it listens on."""

    def __init__(self, log: Path, name: str, *args: object) -> None:
        self._log = log
        self._command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
        self._ports = [arg for arg in args if isinstance(arg, int)]
        self.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where it speaks HTTP."""
        return "127.0.0.1", self._ports[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        limit = time.monotonic() + DEADLINE
        while not all(map(_listens, self._ports)):
            if self.process.poll() is not None or time.monotonic() > limit:
                pytest.fail(f"{self._command} does not listen:\n{self.output()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, and wait until it has, in good order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(DEADLINE) == 0, self.output()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def output(self) -> str:
        """All that it has printed so far."""
        return self._log.read_text(errors="replace")


Start = Callable[..., Program]
"""`start("chat.py", free_port(), url)`: a program that ends with the test."""


def free_port() -> int:
    """A port that nobody listens on, nor will be given for a connection before we do (Linux: from 32768 on)."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
