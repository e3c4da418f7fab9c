"""Looks at what arrives before hiredis parses it, and deals with what hiredis cannot read.

hiredis 3.5 returns an attribute as if it were a reply, which would shift all the replies after it. It refuses blob
errors. And it makes room for the members of an array as soon as they are announced: thirteen bytes that announce a
push of 2**31 members cost it 16 GiB and a minute. So attributes are dropped, as the RESP3 specification allows; blob
errors become simple errors, which mean the same; and arrays that could not end within the limit are refused.

Hardly any stream has these, and every stream pays for the search. So a quick one rules out most of what arrives.
What it finds may be a header, or a part of somebody's value that looks like one, and hiredis knows which: fed up to
that place and drained, it has nothing left over exactly where a value begins, as it takes the length of a string
and the string itself from its buffer together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from hiredis import Reader

from ._errors import ProtocolError

# Only an error, or what belongs to an attribute, is ever held back: nobody writes longer ones.
_MAX_HELD: Final = 64 * 1024

# hiredis fills a push when it is announced: this many members take 8 MB. An invalidation names some keys.
_MAX_PUSH: Final = 1_000_000

# The shortest member there is: b"_\r\n".
_SHORTEST: Final = 3

_LF: Final = 10
_ARRAY, _ATTRIBUTE, _BLOB_ERROR, _PUSH, _SET, _STRING = b"*|!>~$"
_LINES: Final = b"+-:_#,("
_STRINGS: Final = b"$=!"
_LISTS: Final = b"*~>"
_PAIRS: Final = b"%|"

# A header follows CRLF. Arrays under 10,000 members, and strings under 10,000 bytes, are not worth a closer look.
_LONG_ARRAY: Final = re.compile(rb"\*\d{5}(?<![^\n].{6})", re.DOTALL).search
_LONG_PUSH: Final = re.compile(rb">\d{5}(?<![^\n].{6})", re.DOTALL).search
_LONG_STRING: Final = re.compile(rb"\$\d{5}").match
_CUT: Final = re.compile(rb"[*~>](?<![^\n].)\d{0,4}\Z", re.DOTALL).search
_HEADER: Final = re.compile(rb"[|!]|[*~>$]\d{5}").match
_NEXT_HEADER: Final = re.compile(rb"\n(?:[|!](?<![^\r]..)|[*~>$]\d{5}(?<![^\r].{7}))", re.DOTALL).search
_NUMBER: Final = re.compile(rb"-?\d{1,19}").fullmatch

# What `feed` returns for most of all: an iterator would be made each time.
_ONE_STEP: Final = (None,)


class Screen:
    """Stands before one hiredis reader.

    ``limit`` is the most bytes that one reply may have.
    """

    __slots__ = ("_drop", "_drop_values", "_ends_line", "_held", "_left", "_limit", "_open", "_reader", "announced")

    def __init__(self, reader: Reader, limit: int) -> None:
        self._reader, self._limit = reader, limit
        self._held = b""
        self._left = 0
        """So many bytes still belong to a string, whatever they look like."""
        self._drop = self._drop_values = 0
        """So many bytes, and then values, still belong to an attribute."""
        self._ends_line = True
        self._open = False
        self.announced = 0
        """Members that came or are to come in the unfinished reply. Set it to 0 when a reply was complete."""

    def feed(self, data: bytes | bytearray) -> Iterable[None]:
        """Feed `data` to the reader in one step or several; after each, drain the reader.

        A step may raise ProtocolError: that must not be parsed.
        """
        ends_line = data[-1] == _LF
        if (
            self._open
            or (
                (_PUSH in data or _ARRAY in data or _BLOB_ERROR in data or _ATTRIBUTE in data or _SET in data)
                and _is_odd(data, ends_line)
            )
            or not (ends_line or _ends_shortly(data))
        ):
            return self._feed_closely(data)
        self._ends_line = ends_line
        self._reader.feed(data)  # type: ignore[arg-type]  # any buffer will do
        return _ONE_STEP

    def _feed_closely(self, data: bytes | bytearray) -> Iterator[None]:
        if self._held:
            data = self._held + data
            self._held = b""
        reader, size = self._reader, len(data)
        start = 0  # what is before it was fed or dropped
        look = 0 if self._ends_line else 1  # where the next header may begin
        while start < size:
            if self._left:
                length = min(self._left, size - start)
                reader.feed(data, start, length)  # type: ignore[arg-type]
                yield
                self._left -= length
                start = look = start + length
                continue
            if self._drop or self._drop_values:
                start = look = self._drop_on(data, start)
                if self._held:
                    break
                continue
            here = _next_header(data, look)
            if here > start:
                reader.feed(data, start, here - start)  # type: ignore[arg-type]
                yield
                start = here
            look = here + 1
            if here == size or reader.has_data():
                continue  # it was no header, but within a value
            mark = data[here]
            number, end = _number(data, here)
            if not end:
                self._hold(data, here)
                break
            if mark == _ATTRIBUTE:
                self._drop_values = 2 * max(number, 0)
                start = look = end
            elif mark == _BLOB_ERROR:
                after = end + number + 2
                if after > size:
                    self._hold(data, here)
                    break
                if number < 0 or data[after - 2 : after] != b"\r\n":
                    raise ProtocolError(f"the server sent an error that has not the {number} bytes it announced")
                reader.feed(b"-%b\r\n" % b" ".join(data[end : after - 2].splitlines()))
                yield
                start = look = after
            elif mark == _STRING:
                if number > self._limit:
                    raise ProtocolError(f"the server announced a string of {number} bytes, the limit is {self._limit}")
                self._left = end - here + number + 2
            else:
                self._announce(mark, number)
        self._ends_line = bool(self._held) or data[-1] == _LF
        self._open = bool(self._held or self._left or self._drop or self._drop_values)

    def _announce(self, mark: int, members: int) -> None:
        """Nothing is fed: an array is parsed as any other, if it may be so long."""
        most = _MAX_PUSH if mark == _PUSH else (self._limit - self.announced * _SHORTEST) // _SHORTEST
        if members > most:
            what = "a push" if mark == _PUSH else "an array"
            raise ProtocolError(f"the server announced {what} of {members} members, the limit is {most}")
        self.announced += members

    def _drop_on(self, data: bytes | bytearray, start: int) -> int:
        """Go on past an attribute's bytes and values, as far as they are there: return where that is."""
        size = len(data)
        while start < size and (self._drop or self._drop_values):
            if self._drop:
                length = min(self._drop, size - start)
                self._drop -= length
                start += length
                continue
            mark = data[start]
            number, end = 0, data.find(b"\r\n", start) + 2
            if mark not in _LINES:
                number, end = _number(data, start)
            if end < 2:
                self._hold(data, start)
                return size
            if mark in _STRINGS:
                self._drop = number + 2 if number >= 0 else 0
            elif mark in _PAIRS:
                self._drop_values += 2 * max(number, 0)
            elif mark in _LISTS:
                self._drop_values += max(number, 0)
            elif mark not in _LINES:
                raise ProtocolError(f"the server sent an attribute that cannot be read: {bytes(data[start:end])!r:.80}")
            # An attribute within the attribute belongs to the value after it, and is none itself.
            self._drop_values -= mark != _ATTRIBUTE
            start = end
        return start

    def _hold(self, data: bytes | bytearray, start: int) -> None:
        """Wait for the rest of what begins at `start`."""
        if len(data) - start > _MAX_HELD:
            raise ProtocolError(f"the server sent an error or attribute with more than {_MAX_HELD} bytes in one line")
        self._held = bytes(data[start:])


def _is_odd(data: bytes | bytearray, ends_line: bool) -> bool:
    """Needs `data`, which has some of the marks, a closer look?"""
    if not ends_line and _CUT(data, max(len(data) - 5, 0)):
        return True
    if _ATTRIBUTE in data or _BLOB_ERROR in data or _SET in data:
        return bool(_HEADER(data) or _NEXT_HEADER(data))
    return bool((_PUSH in data and _LONG_PUSH(data)) or (_ARRAY in data and _LONG_ARRAY(data)))


def _ends_shortly(data: bytes | bytearray) -> bool:
    """Will what is unfinished at the end be over soon? In a long string there is nothing to search for."""
    return not _LONG_STRING(data, data.rfind(b"\n$") + 1)


def _next_header(data: bytes | bytearray, look: int) -> int:
    """Where, from `look` on, a header may be that needs a closer look, or the beginning of one; else the end."""
    if look == 0 and _HEADER(data):
        return 0
    if found := _NEXT_HEADER(data, max(look - 1, 0)):
        return found.start() + 1
    cut = _CUT(data, max(len(data) - 5, look))
    return cut.start() if cut else len(data)


def _number(data: bytes | bytearray, start: int) -> tuple[int, int]:
    """The number in the header at `start` and where the header ends: 0 if that did not come yet."""
    end = data.find(b"\r\n", start)
    if end < 0:
        return 0, 0
    text = data[start + 1 : end]
    if not _NUMBER(text):
        raise ProtocolError(f"the server sent a length that is no number: {bytes(data[start:end])!r:.80}")
    return int(text), end + 2
