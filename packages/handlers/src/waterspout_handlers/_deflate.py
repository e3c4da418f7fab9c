"""WebSocket compression, permessage-deflate (RFC 7692): each message by itself, so that one serves all who get it."""

from __future__ import annotations

import re
import zlib
from typing import Final

EXTENSION: Final = "permessage-deflate"

ANSWER: Final = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
"""What is agreed: neither side refers to earlier messages (7.1.1), so nothing is kept for any connection."""

_TAIL: Final = b"\x00\x00\xff\xff"  # what the end of each message goes without (7.2.1)
_MAX_STREAMS: Final = 8  # final blocks in one message: nobody makes more than one, and each costs an inflater

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'\s*;\s*({_TOKEN})(?:\s*=\s*(?:({_TOKEN})|"({_TOKEN})"))?')
_EXTENSION: Final = re.compile(rf"[\s,]*({_TOKEN})((?:{_PARAMETER.pattern})*)\s*(?:,|$)")
_WINDOW: Final = re.compile("[89]|1[0-5]")


class TooLarge(Exception):
    """The message is larger than agreed when it is inflated."""


def deflate(payload: bytes) -> bytes:
    """`payload` as it travels (7.2.1)."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)


def inflate(payload: bytes, limit: int) -> bytes:
    """What `payload` was before it was deflated (7.2.2). Raises `TooLarge`, beyond `limit` bytes, and `zlib.error`."""
    inflated, rest = b"", payload + _TAIL
    for _ in range(_MAX_STREAMS):
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated += inflater.decompress(rest, limit + 1 - len(inflated))
        if len(inflated) > limit:
            raise TooLarge
        rest = inflater.unused_data  # behind a block that called itself the last one (7.2.3.4)
        if not rest:
            return inflated
    raise zlib.error("too many final blocks in one message")


def offers(header: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The extensions in `Sec-WebSocket-Extensions` with their parameters (RFC 6455, 9.1). Raises ValueError."""
    header = header.strip(" \t,")
    found, place = [], 0
    while place < len(header):
        match = _EXTENSION.match(header, place)
        if match is None:
            raise ValueError(f"no list of extensions: {header!r:.80}")
        parameters = [(name.lower(), token or quoted or None) for name, token, quoted in _PARAMETER.findall(match[2])]
        found.append((match[1].lower(), parameters))
        place = match.end()
    return found


def agrees(header: str) -> bool:
    """Whether a client that sends this `Sec-WebSocket-Extensions` takes our `ANSWER`. Raises ValueError."""
    return any(name == EXTENSION and _acceptable(parameters) for name, parameters in offers(header))


def _acceptable(parameters: list[tuple[str, str | None]]) -> bool:
    values = dict(parameters)
    if len(values) < len(parameters):
        return False  # 7.1: each at most once
    for name, value in parameters:
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover":
                if value is not None:
                    return False
            case "client_max_window_bits":
                # What it is able to do (7.1.2.2); we inflate what was made with any window.
                if value is not None and not _WINDOW.fullmatch(value):
                    return False
            case _:
                # A smaller window would need bytes of its own (7.1.2.1); the largest would have to be answered.
                return False
    return True
