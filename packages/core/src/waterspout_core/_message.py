"""What is published: a message. What may be told instead of one: a gap."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NoReturn, TypeAlias

from ._errors import BadChannel, BadMessage

Payload: TypeAlias = Any
"""A str, bytes, or anything JSON can carry."""

GAP_EVENT: Final = "gap"
"""The event name under which readers are told of a `Gap`; nobody can publish under it."""

MAX_CHANNEL_BYTES: Final = 255

_encoder: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _refuse(constant: str) -> NoReturn:
    # Python would read NaN and Infinity, which nobody else calls JSON, and which could not be passed on.
    raise ValueError(f"{constant} is not JSON")


_scan: Final[Callable[[Any, int], tuple[Any, int]]] = json.JSONDecoder(parse_constant=_refuse).scan_once  # type: ignore[attr-defined]  # typeshed leaves it out
"""The value at a place in a text, and where it ends; `loads` without what it does around that."""


class Message:
    """One published value, never changed afterwards.

    `data` is the payload: a str or bytes as they are; anything else is kept as its JSON text, and made of it anew at
    each access, so nobody can change what was published, and a tuple is a list here as it is behind Redis. `event` is
    its name, if it has one. `text` is what a text format shows of it: a str is its own text; bytes are their text where
    they are UTF-8, else a `data:` URL (RFC 2397); everything else is JSON text. It is made here, once, so a payload
    that JSON cannot carry is refused where it is published and not where it is read. `size` is the length of `text`
    in bytes (UTF-8).

    Raises `BadMessage`.
    """

    __slots__ = ("_is_json", "_kept", "event", "size")

    _kept: str | bytes

    def __init__(self, data: Payload, event: str | None = None) -> None:
        if event is not None:
            check_event(event)
        if isinstance(data, str):
            self._kept = text = data if type(data) is str else str.__str__(data)  # an enum's value, not its name
            self._is_json = False
        elif isinstance(data, bytes | bytearray | memoryview):
            self._kept = data = bytes(data)
            self._is_json = False
            text = _text_of(data)
        else:
            self._kept = text = to_json(data)
            self._is_json = True
        self.event = event
        self.size = len(text) if text.isascii() else _encoded_size(text)

    @property
    def data(self) -> Payload:
        """The payload."""
        return _scan(self._kept, 0)[0] if self._is_json else self._kept

    @property
    def text(self) -> str:
        """The payload as text."""
        kept = self._kept
        return kept if isinstance(kept, str) else _text_of(kept)

    @property
    def json(self) -> str:
        """The payload as JSON text; bytes as a JSON string of their `text`."""
        return self.text if self._is_json else to_json(self.text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"Message({self.data!r}, event={self.event!r})" if self.event else f"Message({self.data!r})"

    def _identity(self) -> tuple[object, ...]:
        return type(self._kept), self._kept, self._is_json, self.event


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages were lost here: `missed` of them, or nobody can tell how many (None)."""

    missed: int | None = None

    size: ClassVar[int] = 0
    """It has no payload."""


Entry: TypeAlias = Message | Gap
"""What a log holds and a reader gets."""


def from_json(text: str, event: str | None = None) -> Message:
    """The message with the payload that the JSON text `text` is, and which keeps it as it is. `event` has been checked.
    Raises `ValueError` if it is not one JSON text without white space around it, and `RecursionError`."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("it is not JSON") from None
    size = len(text)
    if end != size:
        raise ValueError("something stands behind the JSON text")
    if isinstance(value, str):
        return Message(value, event)
    message = Message.__new__(Message)
    message._kept, message._is_json, message.event = text, True, event
    message.size = size if text.isascii() else _encoded_size(text)
    return message


def to_json(value: Any) -> str:
    """`value` as compact JSON text (RFC 8259). Raises `BadMessage` if JSON cannot carry it."""
    try:
        return _encoder.encode(value)
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
        raise BadChannel(f"a channel needs a name, not {name!r:.80}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadChannel(f"the channel name {name!r:.80} is not valid Unicode") from None
    if size > MAX_CHANNEL_BYTES:
        raise BadChannel(f"a channel name has at most {MAX_CHANNEL_BYTES} bytes, this one has {size}")
    if " " in name or not name.isprintable():
        raise BadChannel(f"the channel name {name!r:.80} holds white space or a control character")
    return name


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
