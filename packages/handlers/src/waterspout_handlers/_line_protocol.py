"""The line protocol without any I/O: bytes to lines, lines to commands, messages to lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

from waterspout_core import (
    GAP_EVENT,
    BadChannel,
    BadMessage,
    BadPosition,
    Entry,
    Gap,
    Message,
    Payload,
    check_channel,
    from_id,
    to_json,
)

from ._formats import Format, whole_json
from ._goodbye import Goodbye
from ._publish import MAX_KEY

PORT: Final = 5567
"""Where a line server listens, unless it is told otherwise."""

MAX_LINE: Final = 64 * 1024
"""Bytes of a line without its end, unless the server says otherwise."""

UNKNOWN: Final = "UNKNOWN COMMAND"


class LineProtocolError(Exception):
    """What a peer said is no use; the text is for the peer.

    LineProtocolError
    ├── BadLine         it does not speak this protocol: the connection has to end
    ├── BadCommand      a command that cannot be carried out as it stands
    └── UnknownCommand  no command at all
    """


class BadLine(LineProtocolError):
    """Too long, not UTF-8, or another protocol: nothing that follows can be trusted."""


class BadCommand(LineProtocolError):
    """The command is known, what comes with it is wrong."""


class UnknownCommand(LineProtocolError):
    """No command begins like this."""


# Lines


class LineReader:
    """Bytes in, lines out. A line ends in LF or CRLF, is UTF-8, and has at most `max_line` bytes.

    What was received and not taken yet is kept here, so take before more is received.
    """

    __slots__ = ("_buffer", "_searched", "max_line")

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self.max_line = max_line
        self._buffer = bytearray()
        self._searched = 0  # so far there is no line end: a long line that comes in pieces is searched once

    def receive(self, data: bytes) -> None:
        """Some bytes have come."""
        self._buffer += data

    def take(self) -> str | None:
        """The next line without its end; None if there is no whole one yet. Raises `BadLine`."""
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched > self.max_line + 1:  # one more may be the CR of its end
                self._refuse_length()
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        self._searched = 0
        if len(line) > self.max_line:
            self._refuse_length()
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise BadLine(f"a line is UTF-8, and this one is not: {error.reason} at byte {error.start + 1}") from None

    def _refuse_length(self) -> NoReturn:
        raise BadLine(f"a line has at most {self.max_line} bytes")


def to_line(*words: str) -> bytes:
    """Those of `words` that are not empty, as one line. What would end it early is escaped."""
    return escape_ends(" ".join(filter(None, words))).encode() + b"\r\n"


def escape(text: str) -> str:
    r"""`text` as part of a line: CR, LF and the backslash are written ``\r``, ``\n`` and ``\\``."""
    return escape_ends(text.replace("\\", r"\\"))


def escape_ends(text: str) -> str:
    """`text` without what ends a line, for what nobody reads back."""
    return text.replace("\r", r"\r").replace("\n", r"\n")


def unescape(text: str) -> str:
    """What `escape` was given. Raises `BadCommand` if it cannot have been."""
    return _ESCAPED.sub(_unescaped, text) if "\\" in text else text


_ESCAPED: Final = re.compile(r"\\(.?)")
_MEANINGS: Final = {"r": "\r", "n": "\n", "\\": "\\"}


def _unescaped(found: re.Match[str]) -> str:
    meaning = _MEANINGS.get(found[1])
    if meaning is None:
        raise BadCommand(rf"a backslash is written \\, a line break \n or \r; there is no {found[0]}")
    return meaning


# Commands


@dataclass(frozen=True, slots=True)
class Subscribe:
    """`SUBSCRIBE [<channel> [FROM <id>]]`; without a channel, to the default one."""

    channel: str = ""
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """`UNSUBSCRIBE [<channel>]`."""

    channel: str = ""


@dataclass(frozen=True, slots=True)
class Publish:
    """`PUBLISH <channel> <text>`, or `PUBLISH {"channel": …, "data": …, "event"?: …, "key"?: …}`."""

    channel: str
    data: Payload
    event: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    """`PING [<text>]`: the text comes back."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class Auth:
    """`AUTH <token>`."""

    token: str


@dataclass(frozen=True, slots=True)
class Quit:
    """`QUIT`."""


@dataclass(frozen=True, slots=True)
class Help:
    """`HELP`: which commands there are."""


Command: TypeAlias = Subscribe | Unsubscribe | Publish | Ping | Auth | Quit | Help

USAGE: Final = {
    "SUBSCRIBE": "SUBSCRIBE [<channel> [FROM <id>]]",
    "UNSUBSCRIBE": "UNSUBSCRIBE [<channel>]",
    "PUBLISH": "PUBLISH <channel> <text>",
    "PING": "PING [<text>]",
    "AUTH": "AUTH <token>",
    "QUIT": "QUIT",
    "HELP": "HELP",
}
"""How each command is written."""


def parse(line: str) -> Command:
    """The command that `line` is. Raises `LineProtocolError`."""
    word, _, rest = line.partition(" ")
    parse_rest = _COMMANDS.get(word)
    if parse_rest is None:
        # A page can make a browser send lines of its choice here, but only behind a request line.
        if line.endswith((" HTTP/1.1", " HTTP/1.0")):
            raise BadLine("this port speaks lines of text, not HTTP")
        raise UnknownCommand(UNKNOWN)
    try:
        return parse_rest(rest)
    except (BadChannel, BadMessage, BadPosition) as error:
        raise BadCommand(str(error)) from None


def _subscribe(rest: str) -> Subscribe:
    match rest.split():
        case []:
            return Subscribe()
        case [channel]:
            return Subscribe(check_channel(channel))
        case [channel, "FROM", after]:
            from_id(after)
            return Subscribe(check_channel(channel), after)
    raise _usage("SUBSCRIBE")


def _unsubscribe(rest: str) -> Unsubscribe:
    match rest.split():
        case []:
            return Unsubscribe()
        case [channel]:
            return Unsubscribe(check_channel(channel))
    raise _usage("UNSUBSCRIBE")


def _publish(rest: str) -> Publish:
    if rest.startswith("{"):
        return _publish_object(rest)
    channel, _, text = rest.partition(" ")
    if not text:
        raise BadCommand(f"usage: {USAGE['PUBLISH']}, and the text is not empty")
    return Publish(check_channel(channel), unescape(text))


def _publish_object(rest: str) -> Publish:
    try:
        members = json.loads(rest, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadCommand(f"PUBLISH has an object that is not JSON: {error}") from None
    if not {"channel", "data"} <= members.keys() <= {"channel", "data", "event", "key"}:
        raise BadCommand("PUBLISH has an object of channel and data, and perhaps event and key")
    for name in ("event", "key"):
        if not isinstance(members.get(name), str | None):
            raise BadCommand(f"the {name} is a text, not {members[name]!r:.80}")
    key = members.get("key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise BadCommand(f"a key is 1 to {MAX_KEY} printable characters, not {key!r:.80}")
    return Publish(**{**members, "channel": check_channel(members["channel"])})


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _auth(rest: str) -> Auth:
    if not rest:
        raise _usage("AUTH")
    return Auth(rest)


def _quit(rest: str) -> Quit:
    if rest:
        raise _usage("QUIT")
    return Quit()


def _help(rest: str) -> Help:
    if rest:
        raise _usage("HELP")
    return Help()


def _usage(command: str) -> BadCommand:
    return BadCommand(f"usage: {USAGE[command]}")


_COMMANDS: Final[dict[str, Callable[[str], Command]]] = {
    "SUBSCRIBE": _subscribe,
    "UNSUBSCRIBE": _unsubscribe,
    "PUBLISH": _publish,
    "PING": Ping,
    "AUTH": _auth,
    "QUIT": _quit,
    "HELP": _help,
}


# Messages


class Lines(Format):
    """What all formats of lines share."""

    def goodbye(self, goodbye: Goodbye) -> bytes:
        return to_line("GOAWAY", goodbye.reason)


class PlainLines(Lines):
    """The text of a message on a line, for who reads one channel and nothing else; `GAP 12`, or `GAP`, for a gap.

    What would end the line is escaped. An empty message would be an empty line: it is passed over.
    """

    def body(self, channel: str | None, entry: Entry) -> bytes:
        if isinstance(entry, Gap):
            return b"GAP\r\n" if entry.missed is None else b"GAP %d\r\n" % entry.missed
        return escape(entry.text).encode() + b"\r\n" if entry.text else b""

    def frame(self, body: bytes, id: str) -> bytes:
        return body


class MessageLines(Lines):
    """`MESSAGE` and the JSON object that a WebSocket would get: JSON text has no line breaks."""

    def body(self, channel: str | None, entry: Entry) -> bytes:
        return b"MESSAGE " + whole_json(channel, entry).encode()

    def frame(self, body: bytes, id: str) -> bytes:
        return b'%b,"id":"%b"}\r\n' % (body, id.encode())


PLAIN_LINES: Final = PlainLines()
MESSAGE_LINES: Final = MessageLines()


# The client's side


def publish_line(channel: str, message: Message, key: str | None) -> str:
    """The command that publishes `message`."""
    event = "" if message.event is None else f',"event":{to_json(message.event)}'
    once = "" if key is None else f',"key":{to_json(key)}'
    return f'PUBLISH {{"channel":{to_json(channel)},"data":{message.json}{event}{once}}}'


def parse_message(json_text: str) -> tuple[Entry, str]:
    """The message, or gap, behind `MESSAGE`, and its id. Raises ValueError if it is none."""
    try:
        members: dict[str, Any] = json.loads(json_text)
        event, data, id = members.get("event"), members["data"], members["id"]
        entry = Gap(data["missed"]) if event == GAP_EVENT else Message(data, event)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no message: {json_text[:80]!r}: {error!r}") from None
    return entry, str(id)
