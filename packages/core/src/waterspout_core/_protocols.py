"""Protocols for a `PubSub` whose clients are to get Python's values and not bytes: JSON, and MessagePack."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from ._errors import BadMessage
from ._message import to_json


class JSONProtocol:
    """Each payload is one JSON text (RFC 8259) in UTF-8; `null`, `0` and `""` are messages like any other.

    >>> from waterspout_core import JSONProtocol
    >>> JSONProtocol().encode({"goals": 0})
    b'{"goals":0}'
    >>> JSONProtocol().decode(b'{"goals":0}')
    {'goals': 0}
    """

    def encode(self, message: Any) -> bytes:
        """The bytes to publish for `message`. Raises `BadMessage` if JSON cannot carry it."""
        try:
            return to_json(message).encode()
        except UnicodeEncodeError as error:
            raise BadMessage(f"the text is not valid Unicode: {error}") from None

    def decode(self, payload: bytes) -> Any:
        """The value in `payload`. Raises `ValueError` if it is not one JSON text."""
        try:
            return json.loads(payload.decode(), parse_constant=_refuse)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


class MsgpackProtocol:
    """Each payload is one MessagePack object: smaller than JSON, and bytes and the keys of a dict keep their type.

    Raises `ImportError` where msgpack is not installed.
    """

    def __init__(self) -> None:
        try:
            import msgpack  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError as error:
            raise ImportError('MessagePack needs msgpack: pip install "waterspout-core[msgpack]"') from error
        self._pack = msgpack.packb
        self._unpack = msgpack.unpackb

    def encode(self, message: Any) -> bytes:
        """The bytes to publish for `message`. Raises `BadMessage` if MessagePack cannot carry it."""
        try:
            packed: bytes = self._pack(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadMessage(f"MessagePack cannot carry the payload: {error}") from None
        return packed

    def decode(self, payload: bytes) -> Any:
        """The value in `payload`. Raises `ValueError` if it is not one MessagePack object."""
        try:
            return self._unpack(payload, strict_map_key=False)
        except (TypeError, RecursionError) as error:
            # A map may have a list for a key, a dict may not; and without its C part msgpack is nested like any Python.
            raise ValueError(f"Python cannot hold this MessagePack: {error}") from None


def _refuse(constant: str) -> NoReturn:
    # Python would read NaN and Infinity, which nobody else calls JSON, and which we could not pass on.
    raise ValueError(f"{constant} is not JSON")
