"""nginx with its module nchan, for `fanout.py`: with a configuration and a folder of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self
from urllib.request import urlopen

import psutil
from fanout_load import DEADLINE
from fanout_process import MissingError, Observed
from fanout_servers import payload

FILES: Final = 20_000
"""Descriptors that it may have."""

PLACES: Final = 32_768
"""Connections that it is made for: when all but a sixteenth of them are taken it closes those that have not asked for
anything yet."""


class Nchan(Observed):
    """nginx with nchan: one worker, whose CPU and memory are counted, and a folder of its own."""

    def __init__(self, cpu: int | None) -> None:
        program, module = find_nchan()
        self._folder = tempfile.TemporaryDirectory(prefix="fanout-nginx-")
        self.port = free_port()
        self._published = 0
        place = Path(self._folder.name, "nginx.conf")
        load = f"load_module {module};\n" if module else ""
        place.write_text(load + NGINX.format(port=self.port, files=FILES, places=PLACES, folder=self._folder.name))
        self._log = Path(self._folder.name, "error.log")
        self._process = subprocess.Popen(
            [program, "-p", self._folder.name, "-c", str(place), "-e", str(self._log)], stderr=subprocess.DEVNULL
        )
        try:
            super().__init__(self._worker(), cpu)
            self._publisher = socket.create_connection(("127.0.0.1", self.port))
        except (OSError, MissingError, psutil.Error):
            self._end()
            raise

    def publish(self, count: int) -> None:
        """One request for each, all of them sent at once on one connection."""
        with contextlib.suppress(BlockingIOError):  # the answers to those before
            while self._publisher.recv(65536, socket.MSG_DONTWAIT):
                pass
        self._publisher.sendall(b"".join(self._request() for _ in range(count)))

    def subscribers(self) -> int:
        return int(self._status("subscribers"))

    def version(self) -> str:
        return self._status("nchan version")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._publisher.close()
        self._end()

    def _request(self) -> bytes:
        self._published += 1
        body = payload(self._published)
        return f"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    def _status(self, name: str) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}/status", timeout=DEADLINE) as answer:
            told: dict[str, str] = dict(
                line.split(": ", 1) for line in answer.read().decode().splitlines() if ": " in line
            )
        return told[name].strip()

    def _worker(self) -> int:
        """The process of the worker, when it accepts connections. Raises `MissingError`."""
        master = psutil.Process(self._process.pid)
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                if workers := master.children():
                    return int(workers[0].pid)
            time.sleep(0.02)
        told = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        raise MissingError(f"nginx with nchan does not start: {told[-1] if told else 'it does not say why'}")

    def _end(self) -> None:
        # Its worker ends with it (SIGTERM, nginx's "fast shutdown").
        self._process.terminate()
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


NGINX: Final = """
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections {places}; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_header_timeout 1h;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location = / {{
      nchan_subscriber eventsource websocket;
      nchan_channel_id news;
      nchan_subscriber_first_message newest;
    }}
    location = /publish {{
      nchan_publisher http;
      nchan_channel_id news;
      nchan_message_buffer_length 1000;
    }}
    location = /status {{ nchan_stub_status; }}
  }}
}}
"""


@functools.cache
def find_nchan() -> tuple[str, str]:
    """The program nginx, and the file of the module; empty if it is built in. Raises `MissingError`."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        raise MissingError("nginx is not installed")
    built = subprocess.run([program, "-V"], capture_output=True, text=True).stderr
    folder = re.search(r"--modules-path=(\S+)", built)
    module = Path(folder[1] if folder else "/usr/lib/nginx/modules", "ngx_nchan_module.so")
    if module.exists():
        return program, str(module)
    if re.search(r"--add-module=\S*nchan", built):
        return program, ""
    raise MissingError("nginx has no nchan (Debian: libnginx-mod-nchan)")


def nchan_version() -> dict[str, str]:
    program, _ = find_nchan()
    told = subprocess.run([program, "-v"], capture_output=True, text=True).stderr
    with Nchan(None) as server:
        return {"nginx": told.strip().rpartition("/")[2], "nchan": server.version()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
