"""Glob patterns as Redis matches them, compiled once."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1024)
def compile_glob(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether the whole of a name matches `pattern`.

    `*` is anything, `?` one byte (Redis compares bytes of UTF-8), `[abc]`, `[a-c]` and `[^a]` one byte of a set, and a
    backslash takes the next byte as it is. An open set ends with the pattern. Source: `stringmatchlen` in
    Redis' util.c.
    """
    matches = re.compile(_translate(pattern.encode()), re.DOTALL).fullmatch
    return lambda name: matches(name.encode()) is not None


def _translate(pattern: bytes) -> bytes:
    parts = [b""]  # between the stars; what one matches has a fixed length
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            parts.append(b"")
        elif char == b"?":
            parts[-1] += b"."
        elif char == b"[":
            members, at = _set(pattern, at)
            parts[-1] += members
        else:
            if char == b"\\" and at < len(pattern):
                char = pattern[at : at + 1]
                at += 1
            parts[-1] += re.escape(char)
    if len(parts) == 1:
        return parts[0]
    # Where a part is found first it need not be looked for again: else many stars take time without end.
    middle = b"".join(b"(?>.*?%b)" % part for part in parts[1:-1] if part)
    return b"%b%b.*%b" % (parts[0], middle, parts[-1])


def _set(pattern: bytes, at: int) -> tuple[bytes, int]:
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            members.add(pattern[at + 1])
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.update(range(low, high + 1))
            at += 3
        else:
            members.add(pattern[at])
            at += 1
    if negated:
        members = set(range(256)) - members
    if not members:
        return b"(?!)", at + 1
    return b"[" + b"".join(b"\\x%02x" % member for member in sorted(members)) + b"]", at + 1
