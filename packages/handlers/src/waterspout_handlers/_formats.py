"""Wire formats: messages to bytes, nothing else."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Final

from waterspout_core import GAP_EVENT, Entry, Gap, Log, to_json


class Format(abc.ABC):
    """How entries of a log look on one kind of connection.

    A frame is made of a body, which every subscriber of the channel shares, and an id, which those share who
    read this channel only. There is one object of each format, so what was made in it is found again.
    """

    end: bytes = b""
    """Says that nothing follows, where the protocol has a way to say it."""

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


class EventStream(Format):
    """Server-sent events (WHATWG HTML, "Server-sent events", event stream format).

    `whole` makes `data` the JSON object that a WebSocket would get: it tells a reader of several channels which
    one a message came from. `chunked` wraps what is sent together in one HTTP/1.1 chunk (RFC 9112, 7.1).
    """

    def __init__(self, *, whole: bool, chunked: bool) -> None:
        self.whole = whole
        self.chunked = chunked
        self.end = b"0\r\n\r\n" if chunked else b""

    def body(self, channel: str | None, entry: Entry) -> bytes:
        event = event_of(entry)
        text = _members(channel, entry) + "}" if self.whole else text_of(entry)
        # The format ends a line at CR, LF and CRLF alike; a payload with any of them takes several data lines.
        if "\n" in text or "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
        return (f"event: {event}\ndata: {text}\n" if event else f"data: {text}\n").encode()

    def frame(self, body: bytes, id: str) -> bytes:
        return b"%bid: %b\n\n" % (body, id.encode())

    def pack(self, frames: Iterable[bytes]) -> bytes:
        run = b"".join(frames)
        return b"%x\r\n%b\r\n" % (len(run), run) if self.chunked and run else run


class WebSocketText(Format):
    """One JSON object a message, in an unmasked text frame of its own (RFC 6455, 5.2)."""

    end = b"\x88\x02\x03\xf4"  # a close frame with 1012, service restart (IANA's WebSocket close codes)

    def body(self, channel: str | None, entry: Entry) -> bytes:
        return _members(channel, entry).encode()

    def frame(self, body: bytes, id: str) -> bytes:
        payload = b'%b,"id":"%b"}' % (body, id.encode())
        size = len(payload)
        if size < 126:
            return b"\x81%c%b" % (size, payload)
        if size < 65536:
            return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
        return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


EVENT_STREAMS: Final = {
    (whole, chunked): EventStream(whole=whole, chunked=chunked) for whole in (False, True) for chunked in (False, True)
}
WEBSOCKET_TEXT: Final = WebSocketText()


def event_of(entry: Entry) -> str | None:
    """The name under which `entry` is told."""
    return GAP_EVENT if isinstance(entry, Gap) else entry.event


def text_of(entry: Entry) -> str:
    """`entry` as text."""
    return _gap_json(entry) if isinstance(entry, Gap) else entry.text


def _members(channel: str | None, entry: Entry) -> str:
    """The JSON object of an entry, still open at its end."""
    json = _gap_json(entry) if isinstance(entry, Gap) else entry.json
    event = event_of(entry)
    named = "" if channel is None else f'"channel":{to_json(channel)},'
    return f'{{{named}"event":{to_json(event)},"data":{json}' if event else f'{{{named}"data":{json}'


def _gap_json(gap: Gap) -> str:
    return to_json({"missed": gap.missed})
