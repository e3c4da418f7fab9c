"""The WebSocket protocol without I/O: bytes in, events out, and frames made of what is to be said (RFC 6455)."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from waterspout_core import Entry

from ._deflate import TooLarge, deflate, inflate
from ._formats import Format, whole_json
from ._goodbye import Goodbye

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
OPCODES: Final = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))

_FIN: Final = 0x80
_COMPRESSED: Final = 0x40  # RSV1 (RFC 7692, 6)
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_MAX_CONTROL: Final = 125  # bytes of a control frame's payload (5.5)

NORMAL: Final = 1000
BAD_PROTOCOL: Final = 1002
UNSUPPORTED: Final = 1003
NO_CODE: Final = 1005  # never sent: what a close frame without a code is taken for (7.1.5)
BAD_DATA: Final = 1007
TOO_LARGE: Final = 1009

DEFLATE_FROM: Final = 256
"""Bytes: what is shorter hardly shrinks, and goes as it is."""


class BadFrame(Exception):
    """The peer has broken the protocol; `code` and `reason` are what the close frame tells it (7.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class Text:
    data: str


@dataclass(frozen=True, slots=True)
class Binary:
    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer says goodbye, or answers it; nothing follows. `code` is `NO_CODE` where there was none."""

    code: int
    reason: str


Event: TypeAlias = Text | Binary | Ping | Pong | Close


class FrameReader:
    """What a client says. `receive` takes bytes, cut anywhere; `events` gives what is whole by then.

    A message has at most `max_size` bytes, before and after it is inflated: what announces more is refused before
    it is held. Without `deflate` nothing may be compressed.
    """

    __slots__ = ("_buffer", "_deflate", "_first", "_key", "_max_size", "_message", "_missing", "over")

    def __init__(self, *, max_size: int, deflate: bool = False) -> None:
        self._max_size = max_size
        self._deflate = deflate
        self._buffer = bytearray()
        self._message: _Message | None = None  # of which there may be more
        self._first: int | None = None  # the first byte of the frame that we are in
        self._key = b""
        self._missing = 0  # bytes of its payload that have not been read
        self.over = False
        """Whether nothing follows: the peer has said goodbye, or broken the protocol."""

    @property
    def idle(self) -> bool:
        """Whether it holds nothing: no part of a message or frame."""
        return not self._buffer and self._first is None and self._message is None

    def receive(self, data: bytes) -> None:
        """The next bytes from the peer."""
        if not self.over:
            self._buffer += data

    def events(self) -> Iterator[Event]:
        """What has come, in order; whoever stops asking may go on later. Raises `BadFrame`, as the last thing."""
        while not self.over:
            try:
                event = self._next()
            except BadFrame:
                self._end()
                raise
            if event is None:
                return
            if isinstance(event, Close):
                self._end()
            yield event

    def _end(self) -> None:
        self.over = True
        self._buffer.clear()
        self._message = None

    def _next(self) -> Event | None:
        while (first := self._begin()) is not None:
            opcode = first & 0x0F
            if opcode >= CLOSE:
                if len(self._buffer) < self._missing:
                    return None
                self._first = None
                return _control(opcode, self._take())
            if self._message is None:
                self._message = _Message(opcode, bool(first & _COMPRESSED))
            self._message.add(self._take())
            if self._missing:
                return None
            self._first = None
            if first & _FIN:
                message, self._message = self._message, None
                return message.finish(self._max_size)
        return None

    def _begin(self) -> int | None:
        """The first byte of the frame that we are in, or begin now, if all of its head is there."""
        buffer = self._buffer
        if self._first is not None or len(buffer) < 2:
            return self._first
        self._check(buffer[0], buffer[1])
        size = buffer[1] & 0x7F
        end = {126: 4, 127: 10}.get(size, 2)
        if len(buffer) < end:
            return None
        if size > 125:
            size = int.from_bytes(buffer[2:end], "big")
            if size < (126 if end == 4 else 65536) or size >> 63:
                raise BadFrame(BAD_PROTOCOL, "a length takes as few bytes as it needs, and 63 bits at most")
        if buffer[0] & 0x0F < CLOSE and size + (self._message.size if self._message else 0) > self._max_size:
            raise BadFrame(TOO_LARGE, f"a message has at most {self._max_size} bytes")
        if len(buffer) < end + 4:
            return None
        self._first, self._missing, self._key = buffer[0], size, bytes(buffer[end : end + 4])
        del buffer[: end + 4]
        return self._first

    def _check(self, first: int, second: int) -> None:
        """Whether a frame may begin with these two bytes (5.2, 5.4, 5.5; RFC 7692, 6.1). Raises `BadFrame`."""
        opcode, reserved = first & 0x0F, first & _RESERVED
        if opcode not in OPCODES:
            raise BadFrame(BAD_PROTOCOL, f"there is no opcode {opcode}")
        if reserved and not (reserved == _COMPRESSED and self._deflate and opcode in (TEXT, BINARY)):
            raise BadFrame(BAD_PROTOCOL, "a reserved bit is set")
        if not second & _MASKED:
            raise BadFrame(BAD_PROTOCOL, "a client has to mask its frames")
        if opcode >= CLOSE:
            if not first & _FIN:
                raise BadFrame(BAD_PROTOCOL, "a control frame is never fragmented")
            if second & 0x7F > _MAX_CONTROL:
                raise BadFrame(BAD_PROTOCOL, f"a control frame has at most {_MAX_CONTROL} bytes")
        elif opcode == CONTINUATION and self._message is None:
            raise BadFrame(BAD_PROTOCOL, "there is no message to continue")
        elif opcode != CONTINUATION and self._message is not None:
            raise BadFrame(BAD_PROTOCOL, "the message before has not ended")

    def _take(self) -> bytes:
        """What there is of the payload, unmasked."""
        taken = bytes(self._buffer[: self._missing])
        del self._buffer[: self._missing]
        self._missing -= len(taken)
        taken, turn = unmask(taken, self._key), len(taken) % 4
        self._key = self._key[turn:] + self._key[:turn]
        return taken


class _Message:
    """A message of which not all has come."""

    __slots__ = ("_checker", "_compressed", "_data", "_opcode")

    def __init__(self, opcode: int, compressed: bool) -> None:
        self._opcode = opcode
        self._compressed = compressed
        self._data = bytearray()
        # Text is checked as it comes: whoever sends nonsense needs not send all of it.
        self._checker = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT and not compressed else None

    @property
    def size(self) -> int:
        return len(self._data)

    def add(self, piece: bytes) -> None:
        if self._checker is not None:
            try:
                self._checker.decode(piece)
            except UnicodeDecodeError:
                raise _not_utf8() from None
        self._data += piece

    def finish(self, max_size: int) -> Text | Binary:
        data = bytes(self._data)
        if self._compressed:
            try:
                data = inflate(data, max_size)
            except TooLarge:
                raise BadFrame(TOO_LARGE, f"a message has at most {max_size} bytes when it is inflated") from None
            except zlib.error as error:
                raise BadFrame(BAD_DATA, f"the message cannot be inflated: {error}") from None
        return Text(_decode(data)) if self._opcode == TEXT else Binary(data)


def _control(opcode: int, payload: bytes) -> Ping | Pong | Close:
    if opcode == PING:
        return Ping(payload)
    if opcode == PONG:
        return Pong(payload)
    if not payload:
        return Close(NO_CODE, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not may_close_with(code):
        raise BadFrame(BAD_PROTOCOL, "this is no code to close with")
    return Close(code, _decode(payload[2:]))


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> BadFrame:
    return BadFrame(BAD_DATA, "text has to be UTF-8")


def may_close_with(code: int) -> bool:
    """Whether a close frame may carry `code` (7.4; IANA, "WebSocket Close Code Number Registry")."""
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code < 5000


def unmask(data: bytes, key: bytes) -> bytes:
    """`data` masked with `key`, or the same backwards (5.3)."""
    size = len(data)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")


def frame(opcode: int, payload: bytes = b"", *, compressed: bool = False) -> bytes:
    """A whole message, or a control frame, as a server sends it (5.2)."""
    first = _FIN | (_COMPRESSED if compressed else 0) | opcode
    size = len(payload)
    if size < 126:
        return b"%c%c%b" % (first, size, payload)
    if size < 65536:
        return b"%c\x7e%b%b" % (first, size.to_bytes(2, "big"), payload)
    return b"%c\x7f%b%b" % (first, size.to_bytes(8, "big"), payload)


def message_frame(payload: bytes, *, binary: bool = False, compress: bool = False) -> bytes:
    """A message as a frame, compressed where that was agreed and makes it smaller."""
    opcode = BINARY if binary else TEXT
    if compress and len(payload) >= DEFLATE_FROM:
        deflated = deflate(payload)
        if len(deflated) < len(payload):
            return frame(opcode, deflated, compressed=True)
    return frame(opcode, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """A goodbye; of a `reason` too long for it, as much as there is room for (5.5.1). Raises ValueError for a `code`
    that may not be sent."""
    if code == NO_CODE:
        return frame(CLOSE)
    if not may_close_with(code):
        raise ValueError(f"{code} is no code to close a WebSocket with")
    room = _MAX_CONTROL - 2
    return frame(CLOSE, code.to_bytes(2, "big") + reason.encode()[:room].decode(errors="ignore").encode())


class WebSocketText(Format):
    """One JSON object a message, in an unmasked text frame of its own (RFC 6455, 5.2); compressed if `deflated`."""

    def __init__(self, *, deflated: bool) -> None:
        self.deflated = deflated

    def body(self, channel: str | None, entry: Entry) -> bytes:
        return whole_json(channel, entry).encode()

    def frame(self, body: bytes, id: str) -> bytes:
        return message_frame(b'%b,"id":"%b"}' % (body, id.encode()), compress=self.deflated)

    def goodbye(self, goodbye: Goodbye) -> bytes:
        return close_frame(goodbye.code, goodbye.reason)


WEBSOCKET_TEXT: Final = WebSocketText(deflated=False)
WEBSOCKET_DEFLATED: Final = WebSocketText(deflated=True)
