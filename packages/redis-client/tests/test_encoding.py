import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_redis import Pipeline
from waterspout_redis._encoding import LARGE_VALUE, pack


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
