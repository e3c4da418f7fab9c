"""Throws streams at the session, good ones and damaged ones, in any pieces: `python fuzz_session.py --seconds 60`.

A good stream has to come out as it was written. Of a damaged one, all that was complete before the damage has to come
out right, the slots are told in their order, and it makes no difference in which pieces it arrives. Nothing is raised,
and memory stays bounded. Each execution has a number that repeats it: `--first N --seconds 0`.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

from waterspout_redis import ProtocolError, PubSubMessage, ResponseError
from waterspout_redis._session import Push, Session

MiB = 1024 * 1024
MAX_REPLY_BYTES = 8 * MiB

# What would cost much, or shift replies, if it were taken at its word.
HOSTILE = [
    b"$99999999999\r\n",
    b"*2147483647\r\n",
    b"~4294967295\r\n",
    b">2147483647\r\n",
    b"%2147483647\r\n",
    b"|2147483647\r\n",
    b"|1\r\n+a\r\n",
    b"\r\n|",
    b"\r\n!",
    b"\r\n*12345",
    b"!99999999999\r\n",
    b"!-7\r\n",
    b"!3\r\nERR",
    b"*1\r\n" * 3000,
    b"|1\r\n" * 3000,
    b"%1\r\n*0\r\n:1\r\n",
    b">1\r\n*0\r\n",
    b">3\r\n$9\r\nsubscribe\r\n*0\r\n*0\r\n",
    b"+" + b"x" * 5000,
    b"$?\r\n",
    b"*?\r\n",
    b"$-9\r\n",
    b"*-9\r\n",
    b"-\xff\xfe\r\n",
]


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


@dataclass
class Stream:
    """Bytes, and what they say: each event with where in the bytes it is complete."""

    resp3: bool
    wire: bytes = b""
    slots: int = 0
    events: list[tuple[int, Any]] = field(default_factory=list)


def payload(random: Random) -> bytes:
    """A string: any bytes, or what looks like protocol, or a long one."""
    match random.randrange(8):
        case 0:
            return b"\r\n" + random.choice(HOSTILE)[:40]
        case 1:
            return b"".join(random.choice(HOSTILE)[:20] for _ in range(random.randrange(9)))
        case 2:
            return random.randbytes(random.choice([9_999, 10_000, 10_001, 70_000]))
        case _:
            return random.randbytes(random.randrange(30))


def attribute(random: Random, depth: int) -> bytes:
    pairs = random.randrange(3)
    return b"|%d\r\n" % pairs + b"".join(value(random, True, depth + 1)[0] for _ in range(2 * pairs))


def value(random: Random, resp3: bool, depth: int = 0) -> tuple[bytes, Any]:
    """One value as (bytes, what it says)."""
    wire, said = _bare_value(random, resp3, depth)
    if resp3 and depth < 4 and random.random() < 0.1:
        wire = attribute(random, depth) + wire
    return wire, said


def _bare_value(random: Random, resp3: bool, depth: int) -> tuple[bytes, Any]:
    kind = random.randrange(14 if resp3 else 7)
    if kind >= 5 and kind != 6 and depth >= 4:
        kind = 0
    match kind:
        case 0 | 1:
            data = payload(random)
            return bulk(data), data
        case 2:
            number = random.randrange(-(10**12), 10**12)
            return b":%d\r\n" % number, number
        case 3:
            return random.choice([(b"+OK\r\n", b"OK"), (b"+|1\r\n", b"|1"), (b"$-1\r\n", None), (b"*-1\r\n", None)])
        case 4:
            return b"-ERR no\r\n", (ResponseError, "ERR no")
        case 5:
            members = [value(random, resp3, depth + 1) for _ in range(random.randrange(4))]
            return b"*%d\r\n" % len(members) + b"".join(wire for wire, _ in members), [said for _, said in members]
        case 6:
            return (b"*20000\r\n" + b":7\r\n" * 20000, [7] * 20000) if random.random() < 0.02 else (b":7\r\n", 7)
        case 7:
            members = [value(random, resp3, depth + 1) for _ in range(random.randrange(4))]
            return b"~%d\r\n" % len(members) + b"".join(wire for wire, _ in members), [said for _, said in members]
        case 8:
            members = [value(random, resp3, depth + 1) for _ in range(random.randrange(4))]
            pairs = b"".join(b":%d\r\n" % key + wire for key, (wire, _) in enumerate(members))
            return b"%%%d\r\n" % len(members) + pairs, {key: said for key, (_, said) in enumerate(members)}
        case 9:
            return random.choice([(b"_\r\n", None), (b"#t\r\n", True), (b"#f\r\n", False), (b",1.5\r\n", 1.5)])
        case 10:
            return b"=7\r\ntxt:a\r\n\r\n", b"a\r\n"
        case 11:
            return b"(12345678901234567890123\r\n", b"12345678901234567890123"
        case 12:
            return b"!9\r\nERR a\r\n|b\r\n", (ResponseError, "ERR a |b")
        case _:
            return attribute(random, depth) + b"+\r\n", b""


def new_stream(random: Random) -> Stream:
    stream = Stream(resp3=random.random() < 0.7)
    for _ in range(random.randrange(1, 10)):
        event: Any
        if stream.resp3 and random.random() < 0.3:
            data = payload(random)
            if random.random() < 0.7:
                wire, event = b">3\r\n+message\r\n+ch\r\n" + bulk(data), PubSubMessage(b"ch", data)
            else:
                wire, event = b">2\r\n+invalidate\r\n" + bulk(data), Push(b"invalidate", [data])
        else:
            wire, said = value(random, stream.resp3)
            event = (stream.slots, said)
            stream.slots += 1
        stream.wire += wire
        stream.events.append((len(stream.wire), event))
    return stream


def damaged(random: Random, wire: bytes) -> bytes:
    """The bytes after some accident."""
    here = random.randrange(len(wire) + 1)
    there = min(len(wire), here + random.choice([1, 1, 2, 10, 100]))
    match random.randrange(6):
        case 0:
            return wire[:here] + random.choice(HOSTILE) + wire[here:]
        case 1:
            return wire[:here] + wire[there:]
        case 2:
            return wire[:there] + wire[here:]
        case 3:
            return wire[:here] + random.randbytes(there - here) + wire[there:]
        case 4:
            mark = random.choice([b"\r\n", b"\n", b"\r", b"|", b"!", b"*", b">", b"$", b"9"])
            return wire[:here] + mark + wire[here:]
        case _:
            return wire[:here]


def pieces(random: Random, wire: bytes) -> list[bytes]:
    if len(wire) < 2000 and random.random() < 0.2:
        return [wire[at : at + 1] for at in range(len(wire))]
    marks = sorted(random.randrange(len(wire) + 1) for _ in range(random.randrange(9)))
    return [wire[start:end] for start, end in itertools.pairwise([0, *marks, len(wire)])]


def readable(said: Any) -> Any:
    """Exceptions compare by identity: what they say is what counts."""
    match said:
        case ResponseError():
            return (type(said), str(said))
        case list():
            return [readable(member) for member in said]
        case dict():
            return {key: readable(member) for key, member in said.items()}
    return said


def run(stream: Stream, parts: list[bytes]) -> tuple[list[Any], Session[int]]:
    """What a session says to the stream in these parts."""
    session: Session[int] = Session(max_reply_bytes=MAX_REPLY_BYTES)
    session.resp3 = stream.resp3
    session.expect_all(range(stream.slots + 1))
    events: list[Any] = []
    for part in parts:
        for event in session.receive(part):
            events += event if isinstance(event, list) else [event]
    return events, session


def normal(events: list[Any]) -> list[Any]:
    return [(event[0], readable(event[1])) if event.__class__ is tuple else event for event in events]


def execute(number: int) -> None:
    """One execution: AssertionError if the session did not behave."""
    random = Random(number)
    stream = new_stream(random)
    events, session = run(stream, pieces(random, stream.wire))
    assert session.failure is None, session.failure
    assert normal(events) == [event for _, event in stream.events]
    assert session.abandon() == [stream.slots]

    if random.random() < 0.3:
        at = random.choice([0, *(end for end, _ in stream.events)])
        wire, well_formed = stream.wire[:at] + random.choice(HOSTILE) + stream.wire[at:], True
    else:
        wire, well_formed = damaged(random, stream.wire), False
    same = next(
        (at for at, (old, new) in enumerate(zip(stream.wire, wire, strict=False)) if old != new),
        min(len(stream.wire), len(wire)),
    )
    sure = [event for end, event in stream.events if end <= same]
    said = []
    for parts in ([wire], pieces(random, wire)):
        events, session = run(stream, parts)
        assert normal(events[: len(sure)]) == sure
        assert session.failure is None or isinstance(session.failure, ProtocolError)
        answered = [event[0] for event in events if event.__class__ is tuple]
        assert answered + session.abandon() == list(range(stream.slots + 1))
        said.append(normal(events))
    if well_formed:  # hiredis does not check how a string ends: after a wrong end anything may follow
        assert repr(said[0]) == repr(said[1])


def fuzz(seconds: float, first: int = 0, max_rss: int = 512 * MiB) -> int:
    """Execute for so long, and once at least; return how many there were."""
    until = time.monotonic() + seconds
    for number in itertools.count(first):
        try:
            execute(number)
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            assert rss <= max_rss, f"{rss // MiB} MiB of memory"
        except BaseException as error:
            error.add_note(f"repeat it: fuzz_session.py --first {number} --seconds 0")
            raise
        if time.monotonic() >= until:
            return number - first + 1
    raise AssertionError("numbers do not end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=time.time_ns() // 1000)
    options = parser.parse_args()
    began = time.monotonic()
    count = fuzz(options.seconds, options.first)
    taken = time.monotonic() - began
    print(f"{count} executions from {options.first}, {count / taken:.0f}/s")


if __name__ == "__main__":
    main()
