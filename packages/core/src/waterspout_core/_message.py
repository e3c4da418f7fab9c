"""What is published: a message. What may be told instead of one: a gap."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ._errors import BadChannel, BadMessage

Payload: TypeAlias = Any
"""A str, bytes, or anything JSON can carry."""

GAP_EVENT: Final = "gap"
"""The event name under which readers are told of a `Gap`; nobody can publish under it."""

MAX_CHANNEL_BYTES: Final = 255


class Message:
    """One published value, never changed afterwards.

    `data` is the payload as it was given; `event` its name, if it has one. `text` is what a text format shows
    of it: a str is its own text; bytes are their text where they are UTF-8, else a `data:` URL (RFC 2397);
    everything else is JSON text. It is made here, once, so a payload that JSON cannot carry is refused
    where it is published and not where it is read. `size` is the length of `text` in bytes (UTF-8).

    Raises `BadMessage`.
    """

    __slots__ = ("data", "event", "size", "text")

    def __init__(self, data: Payload, event: str | None = None) -> None:
        if event is not None:
            check_event(event)
        if isinstance(data, str):
            text = data = str.__str__(data) if type(data) is not str else data  # an enum's value, not its name
        elif isinstance(data, bytes | bytearray | memoryview):
            data = bytes(data)
            text = _text_of(data)
        else:
            text = to_json(data)
        self.data = data
        self.event = event
        self.text = text
        self.size = len(text) if text.isascii() else _encoded_size(text)

    @property
    def json(self) -> str:
        """The payload as JSON text; bytes as a JSON string of their `text`."""
        return to_json(self.text) if isinstance(self.data, str | bytes) else self.text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (self.text, self.event, _kind(self.data)) == (other.text, other.event, _kind(other.data))

    def __hash__(self) -> int:
        return hash((self.text, self.event))

    def __repr__(self) -> str:
        return f"Message({self.data!r}, event={self.event!r})" if self.event else f"Message({self.data!r})"


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages were lost here: `missed` of them, or nobody can tell how many (None)."""

    missed: int | None = None


Entry: TypeAlias = Message | Gap
"""What a log holds and a reader gets."""


def to_json(value: Any) -> str:
    """`value` as compact JSON text (RFC 8259). Raises `BadMessage` if JSON cannot carry it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"the payload is neither text nor bytes nor JSON: {error}") from None


def check_event(event: object) -> str:
    """`event` itself, if it may name an event. Raises `BadMessage`.

    CR, LF and NUL would forge fields of an event stream (WHATWG HTML, server-sent events).
    """
    if not isinstance(event, str) or not event or not event.isprintable() or len(event) > MAX_CHANNEL_BYTES:
        raise BadMessage(f"an event name is 1 to {MAX_CHANNEL_BYTES} printable characters, not {event!r:.80}")
    if event == GAP_EVENT:
        raise BadMessage(f"the event name {GAP_EVENT!r} is reserved: it tells readers that messages were lost")
    return event


def check_channel(name: object) -> str:
    """`name` itself, if it may name a channel. Raises `BadChannel`.

    A name is 1 to 255 bytes of UTF-8 without white space or control characters, so it stands unchanged in a URL,
    on a line of text, and in a shell.
    """
    if not isinstance(name, str) or not name:
        raise BadChannel("a channel needs a name")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadChannel(f"the channel name {name!r:.80} is not valid Unicode") from None
    if size > MAX_CHANNEL_BYTES:
        raise BadChannel(f"a channel name has at most {MAX_CHANNEL_BYTES} bytes, this one has {size}")
    if " " in name or not name.isprintable():
        raise BadChannel(f"the channel name {name!r:.80} holds white space or a control character")
    return name


def _kind(data: Payload) -> type:
    return type(data) if isinstance(data, str | bytes) else object


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def _encoded_size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise BadMessage(f"the text is not valid Unicode: {error}") from None
