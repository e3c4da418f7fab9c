"""The load of `fanout.py`: the process of a server, and the subscribers that keep a ledger of what they get from it."""

from __future__ import annotations

import array
import contextlib
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

import psutil

DEADLINE: Final = 60.0
"""Seconds in which something has to happen."""

WAVE: Final = 100  # connections at a time, so that no server's backlog overflows
RECEIVE: Final = 32 * 1024

PAYLOAD: Final = re.compile(rb"\[(\d{8}) (\d{19}) \.*\]")

REQUESTS: Final = {
    "SSE": b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
    "WebSocket": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ),
}


class LedgerError(Exception):
    """A subscriber did not get what it had to: every message, once, in order."""


class Server:
    """A process of `fanout_servers.py`."""

    def __init__(self, name: str, cpu: int | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fanout_servers.py")), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._psutil = psutil.Process(self._process.pid)
        if cpu is not None:
            os.sched_setaffinity(self._process.pid, {cpu})
        self.port = self._answer()

    def publish(self, count: int) -> None:
        """Have `count` messages published in one turn of the server's loop."""
        self._ask("publish", count)

    def cpu(self) -> int:
        """CPU time used so far, user and system, in ns."""
        self._ask("cpu")
        return self._answer()

    def memory(self) -> int:
        """Resident memory in bytes."""
        return self._psutil.memory_info().rss

    def await_subscribers(self, count: int) -> None:
        """Return when the server counts `count` subscribers: a client has the head of its response before that."""
        deadline = time.monotonic() + DEADLINE
        while True:
            self._ask("subscribers")
            if (found := self._answer()) == count:
                return
            if time.monotonic() > deadline:
                raise LedgerError(f"the server counts {found} subscribers, and {count} are connected")

    def _ask(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LedgerError(f"the server has ended with status {self._process.wait(DEADLINE)}: see above")
        return int(line)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(DEADLINE if error is None else 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Run(NamedTuple):
    """What a piece of a stream holds: messages `first` to `last` (none if `last` is 0), and the start of another."""

    first: int
    last: int
    published: int  # when the newest one was, in ns
    rest: bytes


class Subscriber:
    """One connection, and the number of the last message that came over it."""

    __slots__ = ("number", "rest", "seen", "socket")

    def __init__(self, connection: socket.socket, number: int, seen: int) -> None:
        self.socket = connection
        self.number = number
        self.seen = seen
        self.rest = b""


class Subscribers:
    """Many subscribers of one server in one selector; each must get every message once and in order."""

    def __init__(self, port: int, protocol: str) -> None:
        self._address = ("127.0.0.1", port)
        self._request = REQUESTS[protocol]
        self._selector = selectors.DefaultSelector()
        self._all: list[Subscriber] = []
        self._runs: dict[bytes, Run] = {}
        self.published = 0
        self.latencies = array.array("q")
        """From publishing to receiving, in ns, one for each piece received since it was last emptied."""

    def __len__(self) -> int:
        return len(self._all)

    def connect(self, count: int) -> None:
        """Add `count` subscribers, each of which has the head of its response when this returns."""
        while count:
            wave = [socket.create_connection(self._address, DEADLINE) for _ in range(min(count, WAVE))]
            for connection in wave:
                connection.sendall(self._request)
            for connection in wave:
                self._add(connection)
            count -= len(wave)

    def expect(self, count: int) -> None:
        """Receive until each subscriber has got `count` more messages. Raises `LedgerError`."""
        self.published += count
        missing = count * len(self._all)
        while missing:
            ready = self._selector.select(DEADLINE)
            if not ready:
                late = [subscriber for subscriber in self._all if subscriber.seen != self.published]
                raise LedgerError(
                    f"for {DEADLINE:g} s nothing has come and {missing} deliveries are missing: {len(late)} of "
                    f"{len(self._all)} subscribers have not got message {self.published}; number {late[0].number} has "
                    f"stopped at {late[0].seen}"
                )
            for key, _ in ready:
                missing -= self._receive(key.data)

    def close(self) -> None:
        self._selector.close()
        for subscriber in self._all:
            subscriber.socket.close()

    def __enter__(self) -> Subscribers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _add(self, connection: socket.socket) -> None:
        subscriber = Subscriber(connection, len(self._all) + 1, self.published)
        self._all.append(subscriber)
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(RECEIVE)
            if not data:
                raise LedgerError(f"subscriber {subscriber.number} was refused: {head!r:.200}")
            head += data
        if not head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 101 ")):
            raise LedgerError(f"subscriber {subscriber.number} was refused: {head!r:.200}")
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, subscriber)

    def _receive(self, subscriber: Subscriber) -> int:
        """Take what has come for `subscriber` into the ledger, and return how many messages it was."""
        data = subscriber.socket.recv(RECEIVE)
        now = time.monotonic_ns()
        if not data:
            raise LedgerError(f"subscriber {subscriber.number} was cut off behind message {subscriber.seen}")
        if subscriber.rest:
            data = subscriber.rest + data
        run = self._runs.get(data)
        if run is None:
            run = self._parse(data, subscriber)
        subscriber.rest = run.rest
        if not run.last:
            return 0
        if run.first != subscriber.seen + 1 or run.last > self.published:
            raise LedgerError(
                f"subscriber {subscriber.number} got messages {run.first} to {run.last} behind {subscriber.seen}, "
                f"and {self.published} were published"
            )
        subscriber.seen = run.last
        self.latencies.append(now - run.published)
        return run.last - run.first + 1

    def _parse(self, data: bytes, subscriber: Subscriber) -> Run:
        """Find the messages in `data`. Most subscribers receive the same bytes, so the result is kept for the next."""
        found = [(int(match[1]), int(match[2]), match.end()) for match in PAYLOAD.finditer(data)]
        first, (last, published, end) = (found[0][0], found[-1]) if found else (0, (0, 0, 0))
        for expected, (number, _, _) in enumerate(found, first):
            if number != expected:
                raise LedgerError(f"subscriber {subscriber.number} got message {number} in the place of {expected}")
        start = data.find(b"[", end)
        run = Run(first, last, published, data[start:] if start >= 0 else b"")
        if len(self._runs) > 64:
            self._runs.clear()
        self._runs[data] = run
        return run
