"""Whom `fanout.py` compares, and how each is started: as a process of its own on the server's core."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fanout_nchan import Nchan, nchan_version
from fanout_process import MissingError, Piped, Server
from fanout_servers import PAYLOAD_BYTES

HERE: Final = Path(__file__).parent


@functools.cache
def floor_program() -> tuple[tempfile.TemporaryDirectory[str], str, str]:
    """The folder of the floor in C, its program, and the compiler's version. Raises `MissingError`."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingError("there is no C compiler (cc)")
    folder = tempfile.TemporaryDirectory(prefix="fanout-floor-")
    program = str(Path(folder.name, "floor"))
    built = subprocess.run(
        [compiler, "-O2", "-o", program, str(HERE / "fanout_floor.c")], capture_output=True, text=True
    )
    if built.returncode:
        raise MissingError(f"cc fails: {(built.stderr.splitlines() or ['it does not say why'])[-1]}")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    return folder, program, version


@dataclass(frozen=True)
class Peer:
    """One of those that are compared."""

    title: str
    protocol: str
    needs: tuple[str, ...] = ()
    """The distributions it is made of."""
    server: str = ""
    """Its name in `fanout_servers.py`."""
    other: Callable[[int | None], Server] | None = None
    """How it is started if it is none of those."""
    about: Callable[[], dict[str, str]] = dict
    """The versions of what is no distribution. Raises `MissingError`."""
    most: int = 100_000
    """Subscribers beyond which a measurement would take minutes."""

    def versions(self) -> dict[str, str]:
        """What it is made of. Raises `MissingError`."""
        return {name: version(name) for name in self.needs} | self.about()

    def start(self, cpu: int | None, *options: str) -> Server:
        """Have it run, on the core `cpu`, a server in Python with these options."""
        if self.other is not None:
            return self.other(cpu)
        return Piped([sys.executable, str(HERE / "fanout_servers.py"), self.server, *options], cpu)


def version(distribution: str) -> str:
    """Of what is installed, or of ours when they run from source. Raises `MissingError`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        module = distribution.replace("-", "_")
        if distribution.startswith("waterspout") and find_spec(module):
            return str(import_module(module).__version__)
        raise MissingError(f"{distribution} is not installed") from None


def start_floor(cpu: int | None) -> Server:
    return Piped([floor_program()[1], str(PAYLOAD_BYTES)], cpu)


OURS: Final = ("tornado", "waterspout-core", "waterspout-handlers")
STARLETTE: Final = ("httptools", "sse-starlette", "starlette", "uvicorn")

MOST_FOR_SLOW: Final = 10_000

PEERS: Final = {
    "floor-c": Peer("a loop of `send` in C", "SSE", other=start_floor, about=lambda: {"cc": floor_program()[2]}),
    "floor": Peer("a loop of `socket.send`", "SSE", server="floor"),
    "eventsource": Peer("Waterspout `EventSource`", "SSE", OURS, "eventsource"),
    "websocket": Peer("Waterspout `WebSocketSubscriber`", "WebSocket", OURS, "websocket"),
    "lines": Peer("Waterspout `LineServer`", "lines", OURS, "lines"),
    "nchan": Peer("nchan", "SSE", other=Nchan, about=nchan_version),
    "nchan-websocket": Peer("nchan", "WebSocket", other=Nchan, about=nchan_version),
    "websockets": Peer("websockets `broadcast`", "WebSocket", ("websockets",), "websockets"),
    "tornado": Peer("Tornado `write` + `flush`", "SSE", ("tornado",), "tornado", most=MOST_FOR_SLOW),
    "tornadose": Peer("tornadose 0.4", "SSE", ("tornado", "tornadose"), "tornadose", most=MOST_FOR_SLOW),
    "aiohttp-sse": Peer("aiohttp-sse", "SSE", ("aiohttp", "aiohttp-sse"), "aiohttp-sse", most=MOST_FOR_SLOW),
    "sse-starlette": Peer("sse-starlette on uvicorn", "SSE", STARLETTE, "sse-starlette", most=MOST_FOR_SLOW),
}
