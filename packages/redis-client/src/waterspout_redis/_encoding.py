"""A command's arguments as the bytes of one RESP array of bulk strings, and the encodings that replies can be in."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from hiredis import pack_command

Argument: TypeAlias = str | bytes | bytearray | memoryview | int | float

# hiredis packs small commands three times faster than Python can, and large values ten times slower:
# above this many bytes (measured) we join the parts ourselves.
LARGE_VALUE: Final = 8 * 1024

# Above this many, copying costs more than the system calls that it saves.
HUGE_VALUE: Final = 256 * 1024
_EDGE: Final = 16 * 1024

_TEXT: Final = frozenset({str, bytes})
_NUMBERS: Final = frozenset({int, float})

# Names that were looked up, which takes as long as a small command does otherwise. Whoever has more of them pays.
_MAX_ENCODINGS: Final = 64
_encodings: Final[set[str]] = set()


class Parts:
    """A packed command with a value too large to be copied: its `buffers` are sent one after the other."""

    __slots__ = ("_size", "buffers")

    def __init__(self, buffers: list[bytes | memoryview]) -> None:
        self.buffers = buffers
        self._size = sum(map(len, buffers))

    def __len__(self) -> int:
        return self._size


Packed: TypeAlias = bytes | Parts


def pack(args: tuple[Any, ...]) -> bytes:
    """One command, ready to be sent.

    str (sent as UTF-8), bytes, bytearray, memoryview (any shape or stride: what ``tobytes()`` gives), int and
    float are taken; so are subclasses of str and bytes, whose content is what is sent. Subclasses of int and
    float (bool, IntEnum, numpy scalars) are refused, since their text is not settled: pass ``int(x)``,
    ``x.value`` or ``str(x)``.

    Raises TypeError, naming the argument and its place, for anything else.

    >>> pack(("SET", "k", 1))
    b'*3\\r\\n$3\\r\\nSET\\r\\n$1\\r\\nk\\r\\n$1\\r\\n1\\r\\n'
    """
    packed = pack_plain(args)
    return b"".join(_pieces(args)) if packed is None else packed


def pack_plain(args: tuple[Any, ...]) -> bytes | None:
    """The same for small arguments of the plainest kinds, as nearly all are; None where there is any other."""
    for arg in args:
        kind = arg.__class__
        if kind in _TEXT:
            if len(arg) > LARGE_VALUE:
                return None
        elif kind not in _NUMBERS:
            return None
    if not args or args[0].__class__ not in _TEXT:
        return None
    packed: bytes = pack_command(args)
    return packed


def pack_parts(args: tuple[Any, ...]) -> Packed:
    """The same where there is any other: without a copy of what has more than `HUGE_VALUE` bytes.

    Only its edges are copied, so that no buffer is so small that it is not worth a system call.
    """
    buffers: list[bytes | memoryview] = []
    gathered: list[bytes] = []
    for piece in _pieces(args):
        if len(piece) > HUGE_VALUE:
            gathered.append(piece[:_EDGE])
            buffers += (b"".join(gathered), memoryview(piece)[_EDGE:-_EDGE])
            gathered = [piece[-_EDGE:]]
        else:
            gathered.append(piece)
    last = b"".join(gathered)
    return Parts([*buffers, last]) if buffers else last


def _pieces(args: tuple[Any, ...]) -> list[bytes]:
    if not args:
        raise TypeError("a command needs a name")
    if not isinstance(args[0], str | bytes):
        raise TypeError(f"the name of a command must be str or bytes, not {_describe(args[0])}")
    pieces = [b"*%d\r\n" % len(args)]
    for place, arg in enumerate(args):
        data = _to_bytes(arg, place, args[0])
        pieces += (b"$%d\r\n" % len(data), data, b"\r\n")
    return pieces


def _to_bytes(arg: Any, place: int, name: Any) -> bytes:
    if type(arg) is bytes:
        return arg
    if isinstance(arg, bytes | bytearray):
        # __bytes__ of a subclass could be anything; what we send is what it holds.
        return bytes(memoryview(arg))
    if isinstance(arg, str):
        return str.encode(arg)
    if isinstance(arg, memoryview):
        return arg.tobytes()
    if arg.__class__ in _NUMBERS:
        return repr(arg).encode()
    raise TypeError(
        f"argument {place} of {name!r} is {_describe(arg)}; a command takes str, bytes, bytearray, "
        "memoryview, int and float"
    )


def _describe(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__module__}.{type(value).__qualname__}"


def checked_encoding(decode: str | None) -> str | None:
    """`decode` as it was given, if replies can be decoded so.

    Raises TypeError for what is no name, and LookupError for the name of no encoding, or of one that is not of text.
    """
    if decode is None:
        return None
    if not isinstance(decode, str):
        raise TypeError(f'decode must be the name of an encoding, such as "utf-8", or None; not {decode!r}')
    if decode not in _encodings:
        try:
            "".encode(decode)
        except (LookupError, ValueError):
            raise LookupError(f"decode: there is no encoding of text named {decode!r}") from None
        if len(_encodings) < _MAX_ENCODINGS:
            _encodings.add(decode)
    return decode
