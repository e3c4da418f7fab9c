"""The session against what no good server sends: it says what was wrong, tells every slot, and holds little."""

import asyncio
import itertools
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from waterspout_redis import Client, ConnectionLost, ProtocolError, PubSubMessage, ResponseError
from waterspout_redis._session import Push, Session
from waterspout_redis.testing import RunningServer, ServerBinary, run


def new_session(slots: int = 0, resp3: bool = True, **options: int) -> Session[int]:
    session: Session[int] = Session(**options)
    session.resp3 = resp3
    session.expect_all(range(slots))
    return session


def in_pieces(session: Session[int], wire: bytes, size: int) -> list[Any]:
    """The events, when `wire` comes `size` bytes at a time."""
    parts = [wire[start : start + size] for start in range(0, len(wire), size)]
    return list(itertools.chain.from_iterable(session.receive(part) for part in parts))


# Attributes

ATTRIBUTES = [
    b"|0\r\n",
    b"|1\r\n+ttl\r\n:3600\r\n",
    b"|2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n%1\r\n_\r\n#t\r\n=5\r\ntxt:x\r\n",
    b"|1\r\n+key\r\n%2\r\n+a\r\n~1\r\n(12\r\n+b\r\n$6\r\n\r\n|1\r\n\r\n",
    b"|1\r\n|1\r\n+of the key\r\n,1.5\r\n+key\r\n|1\r\n+of the value\r\n-ERR x\r\n!5\r\n\r\n|1\r\r\n",
    b"|1\r\n+first\r\n+x\r\n|1\r\n+second\r\n+y\r\n",
    b"|1\r\n+large\r\n$28000\r\n" + b"\r\n|1\r\n*99999\r\n" * 2000 + b"\r\n",
]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 1000, 100_000])
def test_attributes_are_dropped_wherever_they_stand(attribute: bytes, size: int) -> None:
    session = new_session(4)
    events = in_pieces(
        session,
        attribute
        + b"+one\r\n"
        + b"*2\r\n%b:1\r\n%b:2\r\n" % (attribute, attribute)
        + b"%1\r\n"
        + attribute
        + b"+key\r\n"
        + attribute
        + b"*1\r\n"
        + attribute
        + b"+deep\r\n"
        + attribute
        + b">3\r\n+message\r\n+ch\r\n"
        + attribute
        + b"+data\r\n"
        + b"+four\r\n",
        size,
    )
    assert session.failure is None
    assert events == [
        (0, b"one"),
        (1, [1, 2]),
        (2, {b"key": [b"deep"]}),
        [PubSubMessage(b"ch", b"data")],
        (3, b"four"),
    ]


@given(st.binary(max_size=60), st.integers(1, 20))
@example(b"\r\n|1\r\n+a\r\n+b\r\n", 1)
@example(b"\r\n|1\r\n+a\r\n+b\r\n", 3)
@example(b"|", 5)
@example(b"x\r\n*99999999\r\n\r\n!3\r\nERR\r\n", 4)
def test_a_value_that_looks_like_protocol_is_a_value(value: bytes, size: int) -> None:
    value = b"\r\n".join(value[at:] for at in range(0, len(value), 9))
    session = new_session(3)
    events = in_pieces(session, b"*1\r\n$%d\r\n%b\r\n+|1\r\n$%d\r\n%b\r\n" % (2 * (len(value), value)), size)
    assert events == [(0, [value]), (1, b"|1"), (2, value)]
    assert session.failure is None


def test_in_a_large_value_nothing_is_searched() -> None:
    value = b"\r\n|1\r\n" * 1_000_000
    session = new_session(2)
    began = time.process_time()
    events = in_pieces(session, b"$%d\r\n%b\r\n|0\r\n+after\r\n" % (len(value), value), 100_000)
    assert events == [(0, value), (1, b"after")]
    # A closer look at each of them takes some seconds.
    assert time.process_time() - began < 0.5


def test_a_servers_attribute_does_not_shift_the_replies_after_it(redis_binary: ServerBinary) -> None:
    async def main(url: str) -> None:
        async with Client(url) as client:
            replies = await asyncio.gather(
                client.call("ECHO", "before"), client.call("DEBUG", "PROTOCOL", "attrib"), client.call("ECHO", "after")
            )
        assert replies == [b"before", b"Some real reply following the attribute", b"after"]

    with RunningServer(redis_binary, "--enable-debug-command", "yes") as server:
        run(main(server.url))


# Blob errors


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_blob_errors_are_errors_also_within_other_replies(size: int) -> None:
    session = new_session(3)
    events = in_pieces(session, b"!21\r\nSYNTAX invalid syntax\r\n*2\r\n!8\r\nERR a\r\nb\r\n:1\r\n!0\r\n\r\n", size)
    assert session.failure is None
    (_, first), (_, (second, one)), (_, third) = events
    assert all(isinstance(error, ResponseError) for error in (first, second, third))
    assert (str(first), first.code, str(second), one, str(third)) == (
        "SYNTAX invalid syntax",
        "SYNTAX",
        "ERR a b",
        1,
        "",
    )


# What ends the session, and what it says then


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", 'got "H"'),
        (b"$abc\r\n", "length"),
        (b"$-2\r\n", "length"),
        (b"*-2\r\n", "length"),
        (b"$99999999999999999999\r\n", "length"),
        (b"$?\r\n", "length"),
        (b":12a\r\n", "integer"),
        (b"#maybe\r\n", "bool"),
        (b"*1\r\n" * 10_000, "nesting"),
        (b">1\r\n" * 10_000, "nesting"),
        (b"%1\r\n*0\r\n:1\r\n", "unhashable"),
        (b">0\r\n", "push without a kind"),
        (b">1\r\n:1\r\n", "push without a kind"),
        (b">3\r\n*1\r\n:1\r\n:1\r\n:1\r\n", "unhashable"),
        (b">2\r\n+subscribe\r\n+a\r\n", "malformed confirmation"),
        (b">3\r\n+subscribe\r\n+a\r\n" + b"*1\r\n" * 900 + b":1\r\n", "malformed confirmation"),
        (b"*2147483647\r\n", "array of 2147483647 members"),
        (b"*4294967295\r\n", "array of 4294967295 members"),
        (b"~2147483647\r\n", "array of 2147483647 members"),
        (b"*300000000\r\n*300000000\r\n", "array of 300000000 members"),
        (b">2147483647\r\n", "push of 2147483647 members"),
        (b"*2\r\n>1000001\r\n", "push of 1000001 members"),
        (b"*123456x\r\n", "no number"),
        (b"*12345678901234567890123\r\n", "no number"),
        (b"|x\r\n", "no number"),
        (b"|1\r\n+a\r\n?b\r\n", "no number"),
        (b"|1\r\n+a\r\n?1\r\n", "attribute that cannot be read"),
        (b"|1\r\n+" + b"a" * 70_000, "in one line"),
        (b"!-5\r\n", "error that has not the -5 bytes"),
        (b"!3\r\nERRATIC\r\n", "error that has not the 3 bytes"),
        (b"!80000\r\n" + b"a" * 70_000, "in one line"),
        (b"|" + b"1" * 70_000, "in one line"),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1_000_000])
def test_what_was_wrong_is_said_and_every_slot_is_told(hostile: bytes, says: str, size: int) -> None:
    session = new_session(3)
    assert in_pieces(session, b"+OK\r\n" + hostile, max(size, len(hostile) // 5000)) == [(0, b"OK")]
    assert isinstance(session.failure, ProtocolError)
    assert says in str(session.failure)
    assert session.receive(b"+OK\r\n") == []
    assert session.abandon() == [1, 2]


# Bounds

ENDLESS = {
    "a line": (b"+", b"x" * 1000),
    "a string": (b"$200000\r\n", b"x" * 1000),
    "an array": (b"*20000\r\n", b"$5\r\nhello\r\n" * 99),
    "a map": (b"%1000000\r\n", b"".join(b":%d\r\n" % number for number in range(1000))),
    "an attribute": (b"|2147483647\r\n", b":1\r\n" * 250),
    "a string in an attribute": (b"|1\r\n$99999999999\r\n", b"x" * 1000),
    "attributes only": (b"", b"|1\r\n+a\r\n:1\r\n" * 99),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_reply_without_end_is_given_up_at_the_limit(kind: str) -> None:
    begin, more = ENDLESS[kind]
    session = new_session(2, max_reply_bytes=100_000)
    received = 0
    assert session.receive(b"+OK\r\n" + begin) == [(0, b"OK")]
    while session.failure is None:
        assert received <= 110_000
        assert session.receive(more) == []
        received += len(more)
    assert "no end of a reply" in str(session.failure) or "the limit is 100000" in str(session.failure)
    assert session.abandon() == [1]


def test_a_string_above_the_limit_is_refused_when_it_is_announced() -> None:
    session = new_session(1, max_reply_bytes=1_000_000)
    session.receive(b"$99999999999\r\nabc")
    assert "string of 99999999999 bytes, the limit is 1000000" in str(session.failure)


def test_many_replies_within_the_limit_are_no_matter_how_many() -> None:
    session = new_session(max_reply_bytes=30_000)
    for _ in range(100):
        session.expect_all(range(10))
        assert len(session.receive(b"+OK\r\n" * 9 + b"$10000\r\n" + b"x" * 9000)) == 9
        assert session.receive(b"x" * 1000 + b"\r\n") == [(9, b"x" * 10_000)]
    assert session.failure is None


def test_long_arrays_one_after_the_other_do_not_add_up() -> None:
    session = new_session(50, max_reply_bytes=100_000)
    for number in range(50):
        assert session.receive(b"*20000\r\n" + b"_\r\n" * 10_000) == []
        assert session.receive(b"_\r\n" * 10_000) == [(number, [None] * 20_000)]
    assert session.failure is None


# Subscriptions


def test_in_resp2_shard_subscriptions_are_counted_by_themselves() -> None:
    session = new_session(resp3=False)
    for number, (kind, name) in enumerate([(b"subscribe", b"a"), (b"ssubscribe", b"s"), (b"sunsubscribe", b"s")]):
        session.expect_confirmations(number, kind, [name])
    confirmation = b"*3\r\n+%b\r\n+%b\r\n:%d\r\n"
    session.receive(confirmation % (b"subscribe", b"a", 1) + confirmation % (b"ssubscribe", b"s", 1))
    assert session.receive(b"*3\r\n+smessage\r\n+s\r\n+1\r\n") == [[PubSubMessage(b"s", b"1")]]
    session.receive(confirmation % (b"sunsubscribe", b"s", 0))
    assert session.receive(b"*3\r\n+message\r\n+a\r\n+2\r\n") == [[PubSubMessage(b"a", b"2")]]
    assert session.failure is None


@pytest.mark.parametrize("null", [b"$-1\r\n", b"_\r\n"])
def test_a_confirmation_without_a_name_answers_nobody_elses_slot(null: bytes) -> None:
    session = new_session()
    session.expect_confirmations(7, b"unsubscribe", [b"a"])
    assert session.receive(b">3\r\n+unsubscribe\r\n" + null + b":0\r\n") == [Push(b"unsubscribe", [None, 0])]
    assert session.receive(b">3\r\n+unsubscribe\r\n+a\r\n:0\r\n") == [(7, 0)]


def test_in_resp2_unsubscribe_without_names_is_answered_as_any_command() -> None:
    session = new_session(1, resp3=False)
    assert session.receive(b"*3\r\n+unsubscribe\r\n$-1\r\n:0\r\n") == [(0, [b"unsubscribe", None, 0])]


# The whole client, and the fuzzer


@pytest.mark.parametrize("hostile", [b">2147483647\r\n", b"what?\r\n", b"*1\r\n" * 10_000, b"%1\r\n*0\r\n:1\r\n"])
def test_a_hostile_server_loses_the_connection_and_all_its_callers_are_told(hostile: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(b"+OK\r\n" * data.count(b"SETINFO\r\n"))
            if b"GET" in data:
                writer.write(hostile)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Client(host="127.0.0.1", port=port, protocol=2, retry=0) as client:
            answers = await asyncio.gather(*(client.call("GET", "k") for _ in range(5)), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, ConnectionLost)
            assert isinstance(answer.__cause__, ProtocolError)

    run(main())


def test_receiving_for_long_leaks_nothing_F26() -> None:
    session: Session[int] = Session()
    session.resp3 = True
    read = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\ndata\r\n" * 100 + b"-ERR no\r\n*2\r\n:1\r\n$1\r\na\r\n"

    def receive(times: int) -> int:
        for number in range(times):
            session.expect_all((number, number))
            assert len(session.receive(read)) == 3
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = receive(10)
        # hiredis before 3.4.2 kept some 96 bytes of every push.
        assert receive(200) - before < 100_000
    finally:
        tracemalloc.stop()


def test_a_few_seconds_of_fuzzing_find_nothing_F26() -> None:
    fuzzer = Path(__file__).with_name("fuzz_session.py")
    done = subprocess.run(
        [sys.executable, fuzzer, "--seconds", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert "executions" in done.stdout
