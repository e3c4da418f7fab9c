"""The load of `fanout.py`: subscribers that keep a ledger of what they get, all of them in this one process."""

from __future__ import annotations

import array
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Final, NamedTuple, Self

DEADLINE: Final = 60.0
"""Seconds in which something has to happen."""

WAVE: Final = 100  # connections at a time, so that no server's backlog overflows
RECEIVE: Final = 64 * 1024
SMALL_BUFFER: Final = 4096  # bytes in the socket of one who is going to stop reading

PAYLOAD: Final = re.compile(rb"\[(\d{8}) (\d{19}) \.*\]")
PAYLOAD_OR_GAP: Final = re.compile(rb"\[(\d{8}) \d{19} \.*\]|event: gap")
GAP: Final = -1  # in the place of a message's number
RESET: Final = struct.pack("ii", 1, 0)


class LedgerError(Exception):
    """A subscriber did not get what it had to: every message, once, in order."""


class Run(NamedTuple):
    """What a piece of a stream holds: messages `first` to `last` (none if `last` is 0), and the start of another."""

    first: int
    last: int
    published: int  # when the newest one was, in ns
    rest: bytes
    answer: bytes = b""  # what the protocol wants to be said to it


def read_text(data: bytes) -> tuple[bytes, bytes]:
    """What is missing of a message at the end of `data`, and no answer: of event streams and lines."""
    start = data.rfind(b"[")
    return (data[start:] if start >= 0 and b"]" not in data[start:] else b""), b""


def read_frames(data: bytes) -> tuple[bytes, bytes]:
    """The start of a WebSocket frame at the end of `data`, and the pongs to its pings. Raises `LedgerError`."""
    place, answer = 0, b""
    while len(data) >= place + 2:
        begin, size = place + 2, data[place + 1]
        if size >= 126:
            wide = 2 if size == 126 else 8
            begin, size = begin + wide, int.from_bytes(data[begin : begin + wide], "big")
        if len(data) < begin + size:
            break
        opcode, content = data[place] & 15, data[begin : begin + size]
        if opcode == 9:
            answer += bytes([0x8A, 0x80 | size, 0, 0, 0, 0]) + content  # masked with zeros, which changes nothing
        elif opcode == 8:
            raise LedgerError(f"the server has closed a WebSocket: {content!r}")
        place = begin + size
    return data[place:], answer


@dataclass(frozen=True)
class Protocol:
    """How one subscribes, by what the answer is known, and how what follows is read."""

    request: bytes
    accepted: tuple[bytes, ...]
    end_of_head: bytes
    read: Callable[[bytes], tuple[bytes, bytes]]


PROTOCOLS: Final = {
    "SSE": Protocol(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
        (b"HTTP/1.1 200 ",),
        b"\r\n\r\n",
        read_text,
    ),
    "WebSocket": Protocol(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        (b"HTTP/1.1 101 ",),
        b"\r\n\r\n",
        read_frames,
    ),
    "lines": Protocol(b"SUBSCRIBE\r\n", (b"CONFIRMED",), b"\r\n", read_text),
}


class Subscriber:
    """One connection, and the number of the last message that came over it."""

    __slots__ = ("number", "rest", "seen", "socket")

    def __init__(self, connection: socket.socket, number: int, seen: int) -> None:
        self.socket = connection
        self.number = number
        self.seen = seen
        self.rest = b""


class Subscribers:
    """Many subscribers of one server; each must get every message once and in order.

    With `spin` this process never sleeps while it waits for messages, for it has a core of its own: else each `send`
    of a slow server would pay for waking us up, and those of a fast one would not.
    """

    def __init__(self, protocol: str, *, spin: bool) -> None:
        self._protocol = PROTOCOLS[protocol]
        self._pause = 0.0 if spin else 1.0
        self._epoll = select.epoll()
        self._reading: dict[int, Subscriber] = {}
        self._all: list[Subscriber] = []
        self._runs: dict[bytes, Run] = {}
        self.published = 0
        self.latencies = array.array("q")
        """From publishing to receiving, in ns, one for each piece received since it was last emptied."""
        self.beats = 0
        """Pieces received that held no message."""

    def __len__(self) -> int:
        return len(self._all)

    @property
    def seen(self) -> list[int]:
        """The number of the last message of each."""
        return [subscriber.seen for subscriber in self._all]

    def connect(self, port: int, count: int, *, path: str = "/", small: bool = False) -> list[Subscriber]:
        """Add `count` subscribers, each of which has the head of its response when this returns."""
        request = self._protocol.request.replace(b"GET / ", b"GET %b " % path.encode())
        added: list[Subscriber] = []
        while len(added) < count:
            wave = [self._dial(port, small) for _ in range(min(count - len(added), WAVE))]
            for connection in wave:
                connection.sendall(request)
            for connection in wave:
                added.append(self._add(connection))
                self.poll(0)  # those who are there already may be asked whether they are
        return added

    def expect(self, count: int) -> None:
        """Receive until each who reads has got `count` more messages. Raises `LedgerError`."""
        self.published += count
        missing = count * len(self._reading)
        deadline = time.monotonic() + DEADLINE
        while missing:
            if received := self.poll(self._pause):
                missing -= received
                deadline = 0.0
            elif not deadline:  # the clock is asked only when nothing comes
                deadline = time.monotonic() + DEADLINE
            elif time.monotonic() > deadline:
                raise LedgerError(self._late(missing))

    def listen(self, seconds: float) -> None:
        """Receive what comes in so much time, asleep in between."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.poll(left)

    def poll(self, timeout: float) -> int:
        """Receive what is there, or comes within `timeout` seconds; how many messages it was."""
        received = 0
        for file, _ in self._epoll.poll(timeout, len(self._reading) or 1):
            received += self._receive(self._reading[file])
        return received

    def stop_reading(self, some: list[Subscriber]) -> None:
        """From now on, take nothing for these."""
        for subscriber in some:
            self._epoll.unregister(subscriber.socket)
            del self._reading[subscriber.socket.fileno()]

    def catch_up(self, some: list[Subscriber]) -> None:
        """Take all that has come since these have stopped: up to the newest message, with a hole that is told as a gap.

        One may have been cut off instead. Raises `LedgerError`, also for one who has missed nothing: then it was never
        behind.
        """
        for subscriber in some:
            self._catch_up(subscriber)

    def close(self) -> None:
        self._epoll.close()
        for subscriber in self._all:
            subscriber.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _dial(self, port: int, small: bool) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(DEADLINE)
        # At their end none of them shall keep its port busy.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        connection.connect(("127.0.0.1", port))
        return connection

    def _add(self, connection: socket.socket) -> Subscriber:
        subscriber = Subscriber(connection, len(self._all) + 1, self.published)
        self._all.append(subscriber)
        head = b""
        while self._protocol.end_of_head not in head:
            data = connection.recv(RECEIVE)
            if not data:
                raise LedgerError(f"subscriber {subscriber.number} was refused: {head!r:.200}")
            head += data
        if not head.startswith(self._protocol.accepted):
            raise LedgerError(f"subscriber {subscriber.number} was refused: {head!r:.200}")
        connection.setblocking(False)
        # Told once of each arrival: of what is level again it would be told twice.
        self._epoll.register(connection, select.EPOLLIN | select.EPOLLET)
        self._reading[connection.fileno()] = subscriber
        return subscriber

    def _receive(self, subscriber: Subscriber) -> int:
        """Take what has come for `subscriber` into the ledger, and return how many messages it was."""
        received, size = 0, RECEIVE
        while size == RECEIVE:
            try:
                data = subscriber.socket.recv(RECEIVE)
            except BlockingIOError:
                break
            size = len(data)
            received += self._account(subscriber, data, time.monotonic_ns())
        return received

    def _account(self, subscriber: Subscriber, data: bytes, now: int) -> int:
        if not data:
            raise LedgerError(f"subscriber {subscriber.number} was cut off behind message {subscriber.seen}")
        if subscriber.rest:
            data = subscriber.rest + data
        run = self._runs.get(data)
        if run is None:
            run = self._parse(data, subscriber)
        subscriber.rest = run.rest
        if run.answer:
            subscriber.socket.send(run.answer)
        if not run.last:
            self.beats += 1
            return 0
        if run.first != subscriber.seen + 1:
            raise LedgerError(f"subscriber {subscriber.number} got message {run.first} behind {subscriber.seen}")
        subscriber.seen = run.last
        self.latencies.append(now - run.published)
        return run.last - run.first + 1

    def _parse(self, data: bytes, subscriber: Subscriber) -> Run:
        """Find the messages in `data`. Most subscribers receive the same bytes, so the result is kept for the next."""
        found = [(int(match[1]), int(match[2])) for match in PAYLOAD.finditer(data)]
        first, (last, published) = (found[0][0], found[-1]) if found else (0, (0, 0))
        for expected, (number, _) in enumerate(found, first):
            if number != expected:
                raise LedgerError(f"subscriber {subscriber.number} got message {number} in the place of {expected}")
        run = Run(first, last, published, *self._protocol.read(data))
        if len(self._runs) > 64:
            self._runs.clear()
        self._runs[data] = run
        return run

    def _late(self, missing: int) -> str:
        late = [subscriber for subscriber in self._reading.values() if subscriber.seen != self.published]
        told = f"for {DEADLINE:g} s nothing has come and {missing} deliveries are missing"
        if not late:
            return told
        return (
            f"{told}: {len(late)} of {len(self._reading)} subscribers have not got message {self.published}; "
            f"number {late[0].number} has stopped at {late[0].seen}"
        )

    def _catch_up(self, subscriber: Subscriber) -> None:
        subscriber.socket.settimeout(DEADLINE)
        data, end = subscriber.rest, b"[%08d " % self.published
        while end not in data[-RECEIVE:]:
            try:
                piece = subscriber.socket.recv(RECEIVE // 2)
            except ConnectionResetError:
                return
            if not piece:
                return
            data += piece
        numbers = [int(match[1] or GAP) for match in PAYLOAD_OR_GAP.finditer(data)]
        for one, other in pairwise([subscriber.seen, *numbers]):
            if GAP not in (one, other) and other != one + 1:
                raise LedgerError(f"subscriber {subscriber.number} got message {other} behind {one}, and no gap")
        if GAP not in numbers:
            raise LedgerError(f"subscriber {subscriber.number} did not read, and has missed nothing")
