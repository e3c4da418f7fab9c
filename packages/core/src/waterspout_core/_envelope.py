"""How a message looks on a broker's channel: plain text where that says it all, else a JSON envelope."""

from __future__ import annotations

import base64
import json
import logging
import re
from functools import lru_cache
from typing import Any, Final

from ._message import Message, check_event, from_json, to_json

logger: Final = logging.getLogger("waterspout.core")

_MARK: Final = b"\x1e"
"""Begins an envelope: the record separator that begins a JSON text of a sequence (RFC 7464)."""

_POSITION: Final = re.compile(rb"\x1e[0-9a-f]{1,32}-[0-9]{1,18}\n")
"""What the broker puts before a message that it keeps: its position."""

_PLAIN: Final = re.compile(
    rb'(?:\x1e[0-9a-f]{1,32}-[0-9]{1,18}\n)?\x1e\{(?:"event":"([^"\\\x00-\x1f]+)",)?"data":([^\x00-\x1f]*)\}\n'
)
"""An envelope as `encode` writes nearly all of them: these members in this order, and no white space around them."""


class Envelope:
    """The `PubSubProtocol` for `Message`.

    A str without an event name travels as it is, so any program can publish and read it with plain `PUBLISH` and
    `SUBSCRIBE`. Anything else is one JSON text of a sequence (RFC 7464: a record separator, an object, a line feed)
    with the members `event` (if named) and `data` (JSON) or `base64` (bytes). Foreign bytes
    that are no UTF-8 are taken as bytes. Where the broker keeps a history it puts the position before the whole: a
    record separator, the position, a line feed.
    """

    def encode(self, message: Message) -> bytes:
        """The bytes to publish for `message`."""
        data = message.data
        if isinstance(data, str) and message.event is None:
            payload = data.encode()
            if not payload.startswith(_MARK):
                return payload
        members = [] if message.event is None else [f'"event":{to_json(message.event)}']
        if isinstance(data, bytes):
            members.append(f'"base64":"{base64.b64encode(data).decode()}"')
        else:
            members.append(f'"data":{message.json}')
        return b"\x1e{" + ",".join(members).encode() + b"}\n"

    def decode(self, payload: bytes) -> Message:
        """The message in `payload`. Raises `ValueError` if it begins like an envelope and is none."""
        plain = _PLAIN.fullmatch(payload) if payload.startswith(_MARK) else None
        if plain and b"\\u" not in payload:  # else there may be half a character
            event, data = plain.groups()
            try:
                # Its text is kept: to write it anew would cost as much as reading it.
                return from_json(data.decode(), None if event is None else _event(event))
            except (ValueError, RecursionError):
                pass  # the thorough way says what is wrong, if anything is
        if payload.startswith(_MARK) and (position := _POSITION.match(payload)):
            payload = payload[position.end() :]
        if not payload.startswith(_MARK):
            try:
                return Message(payload.decode())
            except UnicodeDecodeError:
                return Message(payload)
        try:
            return _open(json.loads(payload[1:]))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"a broken envelope: {error}") from None


@lru_cache(maxsize=1024)
def _event(name: bytes) -> str:
    """Most messages have one of a few names."""
    return check_event(name.decode())


def decoded(payload: bytes) -> Message | None:
    """The message in `payload`; None, and a warning, if it begins like an envelope and is none."""
    try:
        return ENVELOPE.decode(payload)
    except ValueError as error:
        logger.warning("a message cannot be decoded: %s", error)
        return None


def _open(members: Any) -> Message:
    if not isinstance(members, dict):
        raise ValueError("it is not an object")
    event = members.get("event")
    if "base64" in members:
        return Message(base64.b64decode(members["base64"], validate=True), event)
    if "data" in members:
        return Message(members["data"], event)
    raise ValueError("it holds neither data nor base64")


ENVELOPE: Final = Envelope()
