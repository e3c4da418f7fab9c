"""Wire formats over HTTP: messages to bytes, nothing else."""

from __future__ import annotations

import abc
import random
from collections.abc import Iterable
from typing import Final

from waterspout_core import GAP_EVENT, Entry, Gap, Log, to_json

from ._goodbye import Goodbye

RETRY: Final = 1.0, 5.0
"""Between these, in seconds and at random, whoever was cut off comes back: not all of them at one moment."""

_LINE_ENDS: Final = {end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Where Unicode ends a line, and ASCII and JSON do not."""


class Format(abc.ABC):
    """How entries of a log look on one kind of connection.

    A frame is made of a body, which every subscriber of the channel shares, and an id, which those share who
    read this channel only. There is one object of each format, so what was made in it is found again.
    """

    beat: bytes = b""
    """What is sent on an idle connection, so that whatever stands in between keeps it; empty: nothing."""

    once: bool = False
    """Whether one run is all: then the connection ends."""

    @abc.abstractmethod
    def body(self, channel: str | None, entry: Entry) -> bytes:
        """All of an entry's frame but its id."""

    @abc.abstractmethod
    def frame(self, body: bytes, id: str) -> bytes:
        """The whole frame."""

    def pack(self, frames: Iterable[bytes]) -> bytes:
        """Several frames as they are sent together."""
        return b"".join(frames)

    def bodies(self, log: Log, first: int, entries: list[Entry]) -> list[bytes]:
        """The bodies of `entries`."""
        return [self.body(log.channel, entry) for entry in entries]

    def run(self, log: Log, first: int, entries: list[Entry]) -> bytes:
        """All of `entries`, of which the first has the index `first`, for a reader of this log only."""
        bodies = self.bodies(log, first, entries)
        positions = log.positions(first, len(entries))
        return self.pack(self.frame(body, str(position)) for body, position in zip(bodies, positions, strict=True))

    def goodbye(self, goodbye: Goodbye) -> bytes:
        """What is said before an orderly end, if the protocol has a way to say it."""
        return b""


class Body(Format):
    """The body of an HTTP response whose length nobody knows.

    `chunked` wraps what is sent together in one HTTP/1.1 chunk (RFC 9112, 7.1); without it the end of the connection
    is the end of the body.
    """

    content_type: str

    def __init__(self, *, chunked: bool) -> None:
        self.chunked = chunked
        self.last = b"0\r\n\r\n" if chunked else b""

    def hello(self, where: str) -> bytes:
        """The first bytes, before any chunk, for a reader that begins at the id `where` (empty: nowhere known)."""
        return b""

    def pack(self, frames: Iterable[bytes]) -> bytes:
        return self.wrap(b"".join(frames))

    def wrap(self, data: bytes) -> bytes:
        """`data` as a chunk, where there are chunks. Of nothing none is made: it would be the last one."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked and data else data

    def goodbye(self, goodbye: Goodbye) -> bytes:
        return self.last


class EventStream(Body):
    """Server-sent events (WHATWG HTML, "Server-sent events", event stream format).

    `whole` makes `data` the JSON object that a WebSocket would get: it tells a reader of several channels which
    one a message came from.
    """

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, whole: bool, chunked: bool) -> None:
        super().__init__(chunked=chunked)
        self.whole = whole
        self.beat = self.wrap(b":\n\n")

    def hello(self, where: str) -> bytes:
        # Where it begins, so that whoever is cut off before the first message misses none by coming back: an event
        # without data is not dispatched, but its id is kept (WHATWG HTML, "dispatch the event", step 1).
        return (_retry_line() + (f"id: {where}\n\n" if where else "\n")).encode()

    def body(self, channel: str | None, entry: Entry) -> bytes:
        event = event_of(entry)
        text = whole_json(channel, entry) + "}" if self.whole else text_of(entry)
        # The format ends a line at CR, LF and CRLF alike; a payload with any of them takes several data lines.
        if "\n" in text or "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
        return (f"event: {event}\ndata: {text}\n" if event else f"data: {text}\n").encode()

    def frame(self, body: bytes, id: str) -> bytes:
        return b"%bid: %b\n\n" % (body, id.encode())

    def goodbye(self, goodbye: Goodbye) -> bytes:
        return self.wrap(farewell(goodbye.reason)) + self.last


class JSONLines(Body):
    """One JSON object a line (NDJSON), as a WebSocket would get it; a blank line is a heartbeat."""

    content_type = "application/x-ndjson"

    def __init__(self, *, chunked: bool) -> None:
        super().__init__(chunked=chunked)
        self.beat = self.wrap(b"\n")

    def hello(self, where: str) -> bytes:
        return b"\n"  # some proxies hold the head back until there is something behind it

    def body(self, channel: str | None, entry: Entry) -> bytes:
        return whole_json(channel, entry).encode()

    def frame(self, body: bytes, id: str) -> bytes:
        return b'%b,"id":"%b"}\n' % (body, id.encode())


class Poll(Body):
    """One JSON object with all the `messages` there are, or none at the end of the time, and nothing after it."""

    content_type = "application/json"
    once = True

    def body(self, channel: str | None, entry: Entry) -> bytes:
        return whole_json(channel, entry).encode()

    def frame(self, body: bytes, id: str) -> bytes:
        return b'%b,"id":"%b"}' % (body, id.encode())

    def pack(self, frames: Iterable[bytes]) -> bytes:
        return self.wrap(b'{"messages":[%b]}\n' % b",".join(frames)) + self.last

    def goodbye(self, goodbye: Goodbye) -> bytes:
        return self.pack(())


EVENT_STREAMS: Final = {
    (whole, chunked): EventStream(whole=whole, chunked=chunked) for whole in (False, True) for chunked in (False, True)
}
JSON_LINES: Final = {chunked: JSONLines(chunked=chunked) for chunked in (False, True)}
POLLS: Final = {chunked: Poll(chunked=chunked) for chunked in (False, True)}


def event_of(entry: Entry) -> str | None:
    """The name under which `entry` is told."""
    return GAP_EVENT if isinstance(entry, Gap) else entry.event


def text_of(entry: Entry) -> str:
    """`entry` as text."""
    return _gap_json(entry) if isinstance(entry, Gap) else entry.text


def whole_json(channel: str | None, entry: Entry) -> str:
    """The JSON object of an entry, still open at its end: members, such as `,"id":"…"`, and `}` may follow."""
    json = _gap_json(entry) if isinstance(entry, Gap) else entry.json
    event = event_of(entry)
    named = "" if channel is None else f'"channel":{to_json(channel)},'
    whole = f'{{{named}"event":{to_json(event)},"data":{json}' if event else f'{{{named}"data":{json}'
    # Many a reader of lines, and Python's `splitlines` is one, would take these for their ends.
    if not whole.isascii():
        for end, escaped in _LINE_ENDS.items():
            whole = whole.replace(end, escaped)
    return whole


def farewell(reason: str, retry: float | None = None) -> bytes:
    """The end of an event stream: for people a comment that says why, for browsers when to come back, in seconds."""
    return f": {' '.join(reason.split())}\n{_retry_line(retry)}\n".encode()


def _retry_line(retry: float | None = None) -> str:
    return f"retry: {round((random.uniform(*RETRY) if retry is None else retry) * 1000)}\n"


def _gap_json(gap: Gap) -> str:
    return to_json({"missed": gap.missed})
