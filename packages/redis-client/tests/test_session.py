"""The protocol alone, over bytes."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterspout_redis import ProtocolError, PubSubMessage, ResponseError
from waterspout_redis._session import Push, Session


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def array(*items: bytes, mark: bytes = b"*") -> bytes:
    return mark + b"%d\r\n" % len(items) + b"".join(items)


def number(value: int) -> bytes:
    return b":%d\r\n" % value


def push(*items: bytes, resp3: bool) -> bytes:
    return array(*items, mark=b">" if resp3 else b"*")


def message(channel: bytes, data: bytes, resp3: bool) -> bytes:
    return push(bulk(b"message"), bulk(channel), bulk(data), resp3=resp3)


def confirmation(kind: bytes, name: bytes, count: int, resp3: bool) -> bytes:
    return push(bulk(kind), bulk(name), number(count), resp3=resp3)


def new_session(resp3: bool = True) -> Session[Any]:
    session: Session[Any] = Session()
    session.resp3 = resp3
    return session


def readable(value: Any) -> Any:
    """Exceptions compare by identity: what they say is what counts."""
    if isinstance(value, ResponseError):
        return (type(value), str(value))
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return value


def flat(events: list[Any]) -> list[Any]:
    """Messages of one read come as one list: how many lists there are depends on the pieces."""
    out: list[Any] = []
    for event in events:
        if isinstance(event, list):
            out += event
        elif isinstance(event, tuple):
            out.append((event[0], readable(event[1])))
        else:
            out.append(event)
    return out


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(marks)]


# Replies of each version as (bytes, value)

SIMPLE = st.one_of(
    st.binary(max_size=40).map(lambda data: (bulk(data), data)),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: (number(value), value)),
    st.sampled_from([(b"+OK\r\n", b"OK"), (b"$-1\r\n", None), (b"*-1\r\n", None)]),
    st.sampled_from([(b"-ERR no\r\n", (ResponseError, "ERR no")), (b"+\r\n", b"")]),
)
RESP3_ONLY = st.sampled_from(
    [(b"_\r\n", None), (b"#t\r\n", True), (b"#f\r\n", False), (b",1.5\r\n", 1.5), (b"=7\r\ntxt:abc\r\n", b"abc")]
)


def nested(simple: Any, resp3: bool) -> Any:
    def containers(children: Any) -> Any:
        lists = st.lists(children, max_size=4)
        arrays = lists.map(lambda items: (array(*(wire for wire, _ in items)), [value for _, value in items]))
        if not resp3:
            return arrays
        maps = lists.map(
            lambda items: (
                b"%%%d\r\n" % len(items) + b"".join(number(key) + wire for key, (wire, _) in enumerate(items)),
                {key: value for key, (_, value) in enumerate(items)},
            )
        )
        sets = lists.map(lambda items: (array(*(wire for wire, _ in items), mark=b"~"), [value for _, value in items]))
        return st.one_of(arrays, maps, sets)

    return st.recursive(simple, containers, max_leaves=8)


RESP2 = nested(SIMPLE, False)
RESP3 = nested(st.one_of(SIMPLE, RESP3_ONLY), True)


@given(st.lists(RESP2, max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_resp2_replies_may_arrive_in_any_pieces(replies: list[tuple[bytes, Any]], cuts: list[int]) -> None:
    session = new_session(resp3=False)
    session.expect_all(range(len(replies)))
    events: list[Any] = []
    for piece in pieces(b"".join(wire for wire, _ in replies), cuts):
        events += session.receive(piece)
    assert session.failure is None
    assert flat(events) == list(enumerate(value for _, value in replies))


@given(
    st.lists(st.one_of(RESP3, st.tuples(st.just(b"push"), st.binary(max_size=9))), max_size=6),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_resp3_replies_and_pushes_between_them_may_arrive_in_any_pieces(
    stream: list[tuple[bytes, Any]], cuts: list[int]
) -> None:
    session = new_session()
    expected: list[Any] = []
    wire, slots = b"", 0
    for kind, value in stream:
        if kind == b"push":
            wire += message(b"ch", value, resp3=True)
            expected.append(PubSubMessage(b"ch", value))
        else:
            wire += kind
            expected.append((slots, value))
            slots += 1
    session.expect_all(range(slots))
    events: list[Any] = []
    for piece in pieces(wire, cuts):
        events += session.receive(piece)
    assert session.failure is None
    assert flat(events) == expected


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_whatever_make_it_raise(data: bytes, resp3: bool) -> None:
    session = new_session(resp3)
    session.expect_all(range(50))
    session.receive(data)
    assert session.failure is None or isinstance(session.failure, ProtocolError)


def test_an_empty_session_waits_for_nothing() -> None:
    session = new_session()
    assert len(session) == 0
    assert session.receive(b"") == []


@pytest.mark.parametrize("resp3", [True, False])
class TestSubscribing:
    def test_one_confirmation_for_each_name_completes_the_slot(self, resp3: bool) -> None:
        session = new_session(resp3)
        session.expect_confirmations("slot", b"subscribe", [b"a", b"b"])
        assert session.receive(confirmation(b"subscribe", b"a", 1, resp3)) == []
        assert session.receive(confirmation(b"subscribe", b"b", 2, resp3)) == [("slot", 2)]
        assert len(session) == 0

    def test_a_message_that_comes_while_a_subscribe_waits_is_not_taken_for_its_reply_F19(self, resp3: bool) -> None:
        session = new_session(resp3)
        session.expect_confirmations("first", b"subscribe", [b"a"])
        session.expect_confirmations("second", b"psubscribe", [b"p*", b"q*"])
        events = session.receive(
            confirmation(b"subscribe", b"a", 1, resp3)
            + message(b"a", b"1", resp3)
            + confirmation(b"psubscribe", b"p*", 2, resp3)
            + message(b"a", b"2", resp3)
            + push(bulk(b"pmessage"), bulk(b"p*"), bulk(b"pa"), bulk(b"3"), resp3=resp3)
            + confirmation(b"psubscribe", b"q*", 3, resp3)
        )
        assert events == [
            ("first", 1),
            [PubSubMessage(b"a", b"1")],
            [PubSubMessage(b"a", b"2"), PubSubMessage(b"pa", b"3", b"p*")],
            ("second", 3),
        ]

    def test_a_refused_subscribe_fails_its_own_slot(self, resp3: bool) -> None:
        session = new_session(resp3)
        session.expect_confirmations("refused", b"subscribe", [b"a", b"b"])
        session.expect_confirmations("fine", b"subscribe", [b"c"])
        events = session.receive(b"-NOPERM no\r\n" + confirmation(b"subscribe", b"c", 1, resp3))
        assert flat(events)[0][0] == "refused"
        assert flat(events)[0][1][1] == "NOPERM no"
        assert events[1] == ("fine", 1)

    def test_an_unsolicited_unsubscribe_disturbs_nobody(self, resp3: bool) -> None:
        session = new_session(resp3)
        session.expect_confirmations("first", b"subscribe", [b"a"])
        session.receive(confirmation(b"subscribe", b"a", 1, resp3))
        session.expect_confirmations("second", b"subscribe", [b"b"])
        session.expect_confirmations("third", b"unsubscribe", [b"b"])
        events = session.receive(
            confirmation(b"unsubscribe", b"a", 0, resp3)
            + confirmation(b"subscribe", b"b", 1, resp3)
            + confirmation(b"unsubscribe", b"b", 0, resp3)
        )
        assert events == [Push(b"unsubscribe", [b"a", 0]), ("second", 1), ("third", 0)]

    def test_a_ping_is_answered_between_messages(self, resp3: bool) -> None:
        session = new_session(resp3)
        session.expect_confirmations("subscribe", b"subscribe", [b"a"])
        session.expect("ping")
        pong = b"+PONG\r\n" if resp3 else array(bulk(b"pong"), bulk(b""))
        events = session.receive(confirmation(b"subscribe", b"a", 1, resp3) + message(b"a", b"1", resp3) + pong)
        assert events[1:] == [[PubSubMessage(b"a", b"1")], ("ping", b"PONG" if resp3 else [b"pong", b""])]

    def test_the_same_name_twice_is_confirmed_twice(self, resp3: bool) -> None:
        session = new_session(resp3)
        session.expect_confirmations("slot", b"subscribe", [b"a", b"a"])
        assert session.receive(confirmation(b"subscribe", b"a", 1, resp3)) == []
        assert session.receive(confirmation(b"subscribe", b"a", 1, resp3)) == [("slot", 1)]

    def test_a_subscribe_answered_with_anything_else_ends_the_session(self, resp3: bool) -> None:
        session = new_session(resp3)
        session.expect_confirmations("slot", b"subscribe", [b"a"])
        session.receive(b"+OK\r\n")
        assert isinstance(session.failure, ProtocolError)


def test_in_resp2_a_list_that_looks_like_a_message_is_a_reply_while_nothing_is_subscribed() -> None:
    session = new_session(resp3=False)
    session.expect("lrange")
    looks = [b"message", b"a", b"1"]
    assert session.receive(array(*map(bulk, looks))) == [("lrange", looks)]


def test_in_resp3_an_array_is_never_a_push() -> None:
    session = new_session()
    session.expect_confirmations("subscribe", b"subscribe", [b"a"])
    session.receive(confirmation(b"subscribe", b"a", 1, True))
    session.expect("lrange")
    looks = [b"message", b"a", b"1"]
    assert session.receive(array(*map(bulk, looks))) == [("lrange", looks)]


def test_other_pushes_are_told_by_their_kind() -> None:
    session = new_session()
    session.expect("get")
    events = session.receive(push(bulk(b"invalidate"), array(bulk(b"k")), resp3=True) + bulk(b"v"))
    assert events == [Push(b"invalidate", [[b"k"]]), ("get", b"v")]


@pytest.mark.parametrize(
    "hostile",
    [b"?what\r\n", b"$abc\r\n", b"*1\r\n" * 2000 + b":1\r\n", b">0\r\n", b">1\r\n:1\r\n", b"%1\r\n*0\r\n:1\r\n"],
)
def test_what_is_not_resp_ends_the_session_and_loses_nothing_before_it(hostile: bytes) -> None:
    session = new_session()
    session.expect_all(["first", "second"])
    assert session.receive(b"+OK\r\n" + hostile) == [("first", b"OK")]
    assert isinstance(session.failure, ProtocolError)
    assert session.receive(b"+OK\r\n") == []
    assert session.abandon() == ["second"]


def test_a_reply_that_nobody_asked_for_ends_the_session() -> None:
    session = new_session()
    session.receive(b"+OK\r\n")
    assert "nothing had asked for" in str(session.failure)


def test_abandoned_slots_are_told_in_order_subscribes_too() -> None:
    session = new_session()
    session.expect("a")
    session.expect_confirmations("b", b"subscribe", [b"x", b"y"])
    session.expect("c")
    assert session.abandon() == ["a", "b", "c"]
    assert len(session) == 0
