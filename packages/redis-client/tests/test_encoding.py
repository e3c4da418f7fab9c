import enum
import itertools
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_redis import Client, ClientPool, Pipeline, _encoding
from waterspout_redis._encoding import HUGE_VALUE, LARGE_VALUE, Parts, checked_encoding, pack, pack_parts
from waterspout_redis.testing import run


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    GET = "GET"


class FakeNumpyFloat(float):
    """Like numpy.float64: a float whose repr is not its number."""

    def __repr__(self) -> str:
        return "np.float64(1.5)"


@pytest.mark.parametrize(
    ("argument", "sent"),
    [
        ("é", b"\xc3\xa9"),
        ("", b""),
        (b"\x00\r\n", b"\x00\r\n"),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(b"abcdef")[::-1], b"fedcba"),
        (0, b"0"),
        (-(10**30), b"-1" + b"0" * 30),
        (1.5, b"1.5"),
        (1e16, b"1e+16"),
        (float("-inf"), b"-inf"),
        (Word.GET, b"GET"),
    ],
)
def test_what_is_sent_for_an_argument(argument: object, sent: bytes) -> None:
    assert pack(("SET", argument)) == b"*2\r\n$3\r\nSET\r\n$%d\r\n%b\r\n" % (len(sent), sent)


@pytest.mark.parametrize("argument", [None, True, [], {}, (), object(), Number.ONE, FakeNumpyFloat(1.5), 1j])
def test_anything_else_is_refused_by_name_and_place(argument: object) -> None:
    with pytest.raises(TypeError, match=r"argument 2 of 'SET' is"):
        pack(("SET", "k", argument))


@pytest.mark.parametrize("args", [(), (1,), (None,), (memoryview(b"GET"),)])
def test_a_command_begins_with_its_name(args: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="name"):
        pack(args)


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        pack(("SET", "k", "\ud800"))
    with pytest.raises(UnicodeEncodeError):
        pack(("SET", "k", "\ud800" * (LARGE_VALUE + 1)))


@given(st.lists(st.one_of(st.text(), st.binary(), st.integers(), st.floats()), min_size=0))
def test_both_ways_of_packing_agree(args: list[str | bytes | int | float]) -> None:
    # A bytearray takes the slow way, bytes the fast one.
    fast = pack(("CMD", *args, b"last"))
    assert pack(("CMD", *args, bytearray(b"last"))) == fast


def test_a_large_value_is_sent_as_it_is() -> None:
    value = b"x" * (LARGE_VALUE + 1)
    assert pack(("SET", "k", value)) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%b\r\n" % (len(value), value)


def test_a_pipeline_takes_what_its_arguments_are_now() -> None:
    value = bytearray(b"before")
    pipeline = Pipeline()
    pipeline.stack_call("SET", "k", value)
    value[:] = b"after!"
    assert pipeline.request().command == pack(("SET", "k", "before"))


def test_a_pipeline_refuses_a_bad_argument_and_stays_as_it_was() -> None:
    pipeline = Pipeline()
    pipeline.stack_call("GET", "k")
    with pytest.raises(TypeError, match="argument 1 of 'GET' is None"):
        pipeline.stack_call("GET", None)  # type: ignore[arg-type]
    assert len(pipeline) == 1


@pytest.mark.parametrize("name", ["utf-8", "UTF8", "latin-1", "utf-16", "idna", None])
def test_replies_can_be_decoded_by_any_encoding_of_text(name: str | None) -> None:
    assert checked_encoding(name) is checked_encoding(name) is name


@pytest.mark.parametrize("decode", [True, False, 8, b"utf-8", ["utf-8"]])
def test_what_is_no_name_of_an_encoding_is_refused(decode: object) -> None:
    with pytest.raises(TypeError) as caught:
        checked_encoding(decode)  # type: ignore[arg-type]
    assert str(caught.value) == (f'decode must be the name of an encoding, such as "utf-8", or None; not {decode!r}')


@pytest.mark.parametrize("name", ["", "utf-88", "hex", "rot13", "zlib", "undefined", "utf\0"])
def test_what_names_no_encoding_of_text_is_refused_each_time(name: str) -> None:
    for _ in range(2):
        with pytest.raises(LookupError, match="no encoding of text"):
            checked_encoding(name)


def test_the_names_that_are_remembered_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_encoding, "_encodings", set())
    names = [
        "".join(letters)
        for letters in itertools.product("uU", "tT", "fF", ("-8", "_8", "-16", "_16", "-32", "_32", "8"))
    ]
    for name in [*names, " utf-8", "utf-8 ", "latin-1", "latin1", "l1", "ascii", "646", "cp437", "cp850"]:
        assert checked_encoding(name) == name
    assert len(_encoding._encodings) == _encoding._MAX_ENCODINGS


def test_a_call_s_encoding_is_checked_at_once_and_nothing_is_sent() -> None:
    async def main() -> None:
        # There is no server there.
        async with aclosing(Client("redis://127.0.0.1:1")) as client, ClientPool("redis://127.0.0.1:1") as pool:
            callers: tuple[Any, ...] = (client, pool.get_client_nowait())
            for caller in callers:
                for command in ("GET", "BLPOP", "WATCH", Pipeline()):
                    with pytest.raises(TypeError, match="or None; not True"):
                        caller.call(command, decode=True)
                    with pytest.raises(LookupError, match="named 'hex'"):
                        caller.call(command, decode="hex")
            assert client.waiting == 0

    run(main())


@pytest.mark.parametrize(
    "args",
    [
        ("SET", "k", b"v" * 1_000_000),
        ("SET", "k", "ä" * 300_000, "EX", 5),
        ("MSET", "a", b"1" * 400_000, "b", b"2" * 400_000, "c", 3),
        ("SET", "k", bytearray(b"v" * 300_000)),
        ("SET", "k", memoryview(b"vw" * 300_000)[::2]),
        ("SET", b"k" * 300_000, 1),
        ("SET", "k", b"v" * HUGE_VALUE),
        ("SET", "k", b"v" * (HUGE_VALUE + 1)),
        ("GET", "k"),
    ],
    ids=lambda args: str(args)[:20],
)
def test_what_is_too_large_to_be_copied_is_packed_in_parts_that_say_the_same(args: tuple[Any, ...]) -> None:
    packed, parts = pack(args), pack_parts(args)
    assert len(parts) == len(packed)
    assert (b"".join(parts.buffers) if isinstance(parts, Parts) else parts) == packed
    is_huge = any(not isinstance(arg, int) and len(arg) > HUGE_VALUE for arg in args)
    assert isinstance(parts, Parts) == is_huge
    if isinstance(parts, Parts):
        # Nothing so small that it is not worth a system call, and the value itself is not copied.
        assert min(map(len, parts.buffers)) > 1000
        assert any(isinstance(buffer, memoryview) for buffer in parts.buffers)
