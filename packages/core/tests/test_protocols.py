"""What clients of a PubSub get is what was published, by either protocol."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_core import BadMessage, JSONProtocol, MemoryPubSub, MsgpackProtocol, PubSubProtocol
from waterspout_redis.testing import eventually, run

FALSY: list[Any] = [None, False, 0, 0.0, "", [], {}]

both = pytest.mark.parametrize("protocol", [JSONProtocol(), MsgpackProtocol()], ids=["json", "msgpack"])
texts = st.text(st.characters(exclude_categories=["Cs"]))  # surrogates are not Unicode text
finite = st.floats(allow_nan=False, allow_infinity=False)


def values(*leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any] = texts) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | finite | texts | st.one_of(*leaves),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
        max_leaves=20,
    )


@given(values(st.integers()))
def test_whatever_json_can_carry_comes_back_as_it_was(value: Any) -> None:
    payload = JSONProtocol().encode(value)
    assert json.loads(payload) == value  # for anybody, not only for us
    assert JSONProtocol().decode(payload) == value


sixty_four_bits = st.integers(-(2**63), 2**64 - 1)


@given(values(sixty_four_bits, st.binary(), keys=texts | sixty_four_bits | st.binary() | st.booleans()))
def test_whatever_messagepack_can_carry_comes_back_as_it_was(value: Any) -> None:
    assert MsgpackProtocol().decode(MsgpackProtocol().encode(value)) == value


@both
@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_f39_a_falsy_message_stays_what_it_is(protocol: PubSubProtocol, value: Any) -> None:
    back = protocol.decode(protocol.encode(value))
    assert (back, type(back)) == (value, type(value))


@given(st.binary(max_size=60))
@both
def test_any_bytes_are_a_value_or_a_value_error(protocol: PubSubProtocol, payload: bytes) -> None:
    with contextlib.suppress(ValueError):  # any other error fails the test
        protocol.decode(payload)


@pytest.mark.parametrize("payload", [b"", b"nope", b"{", b"1 2", b"\xff", b"NaN", b"[-Infinity]", b"[" * 200_000])
def test_what_is_no_json_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # what it says is Python's
        JSONProtocol().decode(payload)


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xa1\xff", b"\x81\x90\x01", b"\x91" * 5000]
)
def test_what_is_no_messagepack_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # what it says is msgpack's
        MsgpackProtocol().decode(payload)


@both
@pytest.mark.parametrize(
    "value", [object(), {1, 2}, "\ud800", ["\ud800"]], ids=["object", "set", "surrogate", "within"]
)
def test_what_cannot_be_carried_is_refused_where_it_is_published(protocol: PubSubProtocol, value: Any) -> None:
    with pytest.raises(BadMessage):
        protocol.encode(value)


def test_json_has_no_nan_and_messagepack_no_larger_integers() -> None:
    with pytest.raises(BadMessage):
        JSONProtocol().encode(math.nan)
    with pytest.raises(BadMessage):
        MsgpackProtocol().encode(2**64)


@both
def test_a_pubsub_with_a_protocol_gives_its_clients_values(protocol: PubSubProtocol) -> None:
    got: list[Any] = []

    async def use() -> None:
        async with MemoryPubSub(protocol=protocol) as pubsub:
            pubsub.add_client(lambda channel, message: got.append((channel, message)))
            await pubsub.subscribe("scores")
            for value in FALSY:
                await pubsub.publish("scores", value)
            await eventually(lambda: len(got) == len(FALSY))

    run(use())
    assert got == [("scores", value) for value in FALSY]


def test_without_msgpack_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ImportError, match=r'pip install "waterspout-core\[msgpack\]"'):
        MsgpackProtocol()
