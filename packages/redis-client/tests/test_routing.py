import math
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest

from waterspout_redis import Client, UsageError
from waterspout_redis._encoding import pack
from waterspout_redis._routing import READ_ONLY, RULES, SPECIAL, UNKNOWN, Effect, name_of, reads_only, rule_for
from waterspout_redis.testing import RunningServer, run

FOREVER = math.inf

# Flagged as read-only by the servers, and yet not to be sent twice: see the table.
READS_THAT_ARE_NOT_REPEATED = {"XREAD"}

# Not flagged as read-only, and yet they change nothing that anybody could see.
HARMLESS = {"ECHO", "INFO", "LASTSAVE", "PING", "ROLE", "TIME"}


class Word(str, Enum):  # noqa: UP042  # a StrEnum would be too well-behaved
    """Its content is "blpop", its str() is "Word.BLPOP"."""

    BLPOP = "blpop"


def flags_of_commands(server: RunningServer) -> dict[str, set[str]]:
    """What the server says of each of its commands, those of two words included."""
    flags: dict[str, set[str]] = {}
    commands = server.call("COMMAND")
    while commands:
        name, _, its_flags, *rest = commands.pop()
        flags[name.decode().replace("|", " ").upper()] = {flag.decode() for flag in its_flags}
        commands += rest[6]
    return flags


def seconds(*args: Any) -> float:
    rule = rule_for(args)
    assert rule is not None
    assert rule.blocks is not None
    return rule.blocks(args)


# Against what the servers say


def test_every_command_that_a_server_calls_blocking_is_known_to_block(redis_server: RunningServer) -> None:
    blocking = {name for name, flags in flags_of_commands(redis_server).items() if "blocking" in flags}
    assert "BLPOP" in blocking
    assert blocking <= {name for name, rule in SPECIAL.items() if rule.blocks is not None}


def test_f16_nothing_is_sent_twice_that_a_server_does_not_call_read_only(redis_server: RunningServer) -> None:
    flags = flags_of_commands(redis_server)
    for command in (name.decode() for name in READ_ONLY):
        # One that this server does not know is refused both times.
        if command in flags and command not in HARMLESS and " " not in command:
            assert "readonly" in flags[command], command
        assert "write" not in flags.get(command, ()), command


def test_whatever_a_server_calls_read_only_is_in_the_table(redis_server: RunningServer) -> None:
    read_only = {name for name, flags in flags_of_commands(redis_server).items() if "readonly" in flags}
    assert {name for name in read_only if name.encode() not in READ_ONLY} == READS_THAT_ARE_NOT_REPEATED


def test_names_of_two_words_are_those_that_a_server_has_so(redis_server: RunningServer) -> None:
    for name in flags_of_commands(redis_server):
        assert name_of(name.lower().split()) == name


def test_no_special_name_is_misspelled(redis_server: RunningServer) -> None:
    flags = flags_of_commands(redis_server)
    newer = {"CLIENT CAPA", "CLIENT IMPORT-SOURCE", "CLIENT NO-TOUCH", "CLUSTER SYNCSLOTS", "WAITAOF"}
    assert SPECIAL.keys() - flags.keys() <= newer


@pytest.mark.parametrize(
    "command", [("BLPOP", "k", "0.05"), ("BLMPOP", 0.05, 1, "k", "LEFT"), ("XREAD", "BLOCK", 50, "STREAMS", "k", "$")]
)
def test_a_command_blocks_as_long_as_we_think(redis_server: RunningServer, command: tuple[Any, ...]) -> None:
    async def main() -> float:
        async with Client(redis_server.url) as client, client.lease() as leased:
            started = time.monotonic()
            assert await leased.call(*command) is None
            return time.monotonic() - started

    assert seconds(*command) == pytest.approx(0.05)
    # A thousand times longer or shorter would be the wrong unit.
    assert 0.04 < run(main()) < 5


# Blocking


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("BLPOP", "a", "b", 1), 1),
        (("blpop", "a", b"1.5"), 1.5),
        ((b"BRPOP", "a", 0), FOREVER),
        (("BRPOP", "a", "0.0"), FOREVER),
        (("BLMOVE", "a", "b", "LEFT", "RIGHT", 0.25), 0.25),
        (("BRPOPLPUSH", "a", "b", bytearray(b"7")), 7),
        (("BZPOPMIN", "a", memoryview(b"7")), 7),
        (("BZPOPMAX", "a", "7"), 7),
        (("BLMPOP", 3, 2, "a", "b", "LEFT", "COUNT", 10), 3),
        (("BZMPOP", "0", 1, "a", "MIN"), FOREVER),
        (("WAIT", 1, 1500), 1.5),
        (("WAIT", 1, 0), FOREVER),
        (("WAITAOF", 1, 0, "2000"), 2),
        (("XREAD", "STREAMS", "s", "$"), 0),
        (("XREAD", "COUNT", 10, "STREAMS", "s", "$"), 0),
        (("XREAD", "COUNT", 10, "block", b"2500", "STREAMS", "s", "$"), 2.5),
        (("XREAD", "BLOCK", 0, "STREAMS", "s", "$"), FOREVER),
        (("XREAD", "STREAMS", "BLOCK", "1000"), 0),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), 0),
        (("XREADGROUP", "GROUP", "g", "c", "NOACK", "CLAIM", 5, "BLOCK", 100, "STREAMS", "s", ">"), 0.1),
        (("XREADGROUP", "GROUP", "BLOCK", "BLOCK", "STREAMS", "s", ">"), 0),
        (("XREADGROUP", "BLOCK", 100, "GROUP", "g", "STREAMS", "STREAMS", "s", ">"), 0.1),
    ],
)
def test_how_long_a_command_may_block(command: tuple[Any, ...], expected: float) -> None:
    assert seconds(*command) == pytest.approx(expected)


@pytest.mark.parametrize("timeout", [-1, "", "soon", b"\xff", "nan", "inf", 10**400, None, [], "1e999"])
@pytest.mark.parametrize("command", [("BLPOP", "k"), ("WAIT", 1), ("XREAD", "BLOCK")])
def test_a_time_that_makes_no_sense_blocks_nothing(command: tuple[Any, ...], timeout: Any) -> None:
    assert seconds(*command, timeout) == 0


@pytest.mark.parametrize("name", sorted(name for name, rule in SPECIAL.items() if rule.blocks is not None))
def test_a_command_that_ends_too_early_blocks_nothing(name: str) -> None:
    assert seconds(name) == 0


@pytest.mark.parametrize("words", ["XREAD BLOCK", "XREADGROUP GROUP", "XREADGROUP GROUP g c COUNT", "XREAD NONSENSE 1"])
def test_options_that_end_too_early_block_nothing(words: str) -> None:
    assert seconds(*words.split()) == 0


def test_wait_is_about_the_writes_of_its_own_connection(fresh_redis_server: RunningServer) -> None:
    """Asked on any other one, the server says at once that all replicas have everything."""
    master = fresh_redis_server

    async def main(replica: RunningServer) -> None:
        async with Client(master.url) as client, client.lease() as writer, client.lease() as other:
            while not await writer.call("WAIT", 1, 100):
                pass
            replica.suspend()
            await writer.call("SET", "k", "v")
            assert await other.call("WAIT", 1, 100) == 1
            assert await writer.call("WAIT", 1, 100) == 0
            with pytest.raises(UsageError, match="WAIT"):
                client.call("WAIT", 1, 100)

    # Else it waits five seconds for a second replica before it sends anything to the first.
    master.call("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    with RunningServer(master.binary, "--replicaof", "127.0.0.1", str(master.port)) as replica:
        run(main(replica))


# What a command leaves behind, and what is refused


@pytest.mark.parametrize(
    ("command", "effect"),
    [
        (("WATCH", "k"), Effect.OPENS),
        ((b"multi",), Effect.OPENS),
        (("EXEC",), Effect.CLOSES),
        (("Discard",), Effect.CLOSES),
        (("UNWATCH",), Effect.CLOSES),
        (("SELECT", 1), Effect.STAYS),
        (("client", b"tracking", "ON"), Effect.STAYS),
        (("READONLY",), Effect.STAYS),
        (("WAIT", 1, 0), Effect.LOOKS_BACK),
    ],
)
def test_what_ties_a_command_to_its_connection(command: tuple[Any, ...], effect: Effect) -> None:
    rule = rule_for(command)
    assert rule is not None
    assert rule.effect is effect


@pytest.mark.parametrize(
    "words",
    [
        *("SUBSCRIBE c", "PSUBSCRIBE c", "SSUBSCRIBE c", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
        *("CLIENT REPLY OFF", "CLIENT REPLY SKIP", "HELLO 2", "MONITOR", "QUIT", "RESET", "SCRIPT DEBUG YES"),
        *("PSYNC ? -1", "REPLCONF ACK 0", "SYNC"),
    ],
)
@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("encode", [str.encode, str])
def test_what_breaks_the_order_of_replies_is_refused_however_it_is_spelled(
    words: str, spell: Callable[[str], str], encode: Callable[[str], Any]
) -> None:
    rule = rule_for([encode(word) for word in spell(words).split()])
    assert rule is not None
    assert rule.refusal


@pytest.mark.parametrize(
    "words", ["GET k", "CLIENT LIST", "CLIENT", "CLIENT SETNAME x", "SCRIPT LOAD x", "CLUSTER SLOTS"]
)
def test_other_commands_have_no_rule(words: str) -> None:
    for _ in range(2):
        assert rule_for(words.split()) is None


def test_of_a_subclass_of_str_its_content_counts() -> None:
    assert name_of((Word.BLPOP,)) == "BLPOP"
    assert seconds(Word.BLPOP, "k", 2) == 2


# Names


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("get", "k"), "GET"),
        ((b"config", bytearray(b"get"), "*"), "CONFIG GET"),
        (("COMMAND",), "COMMAND"),
        (("OBJECT", memoryview(b"encoding"), "k"), "OBJECT ENCODING"),
        (("CLIENT", 5), "CLIENT 5"),
        ((b"\xff",), "\ufffd"),
    ],
)
def test_the_name_of_a_command(command: tuple[Any, ...], name: str) -> None:
    assert name_of(command) == name


def test_only_names_that_have_no_rule_are_let_pass_unasked() -> None:
    for args in [("GET", "k"), ("CLIENT", "LIST"), ("BLPOP", "k", 0)]:
        rule_for(args)
    assert [RULES.get(name, UNKNOWN) is None for name in ("GET", "CLIENT", "BLPOP")] == [True, False, False]


def test_a_flood_of_made_up_names_is_not_remembered() -> None:
    for number in range(5000):
        rule_for((f"MADE.UP{number}",))
        rule_for((f"{number}" * 100,))
    assert len(RULES) <= 1024
    assert max(map(len, RULES)) <= 64
    assert rule_for(("SELECT", 1)) is not None


# What may be sent twice


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("GET", "k"), True),
        (("get", "k"), True),
        (("PING",), True),
        (("MGET", *"abcdefgh"), True),
        (("CONFIG", "GET", "*"), True),
        (("config", b"get", "*"), True),
        (("CLUSTER", "GETKEYSINSLOT", 1, 10), True),
        (("COMMAND", "GETKEYSANDFLAGS", *["x"] * 1000), True),
        (("EVALSHA_RO", "0" * 40, 0), True),
        (("SET", "k", "v"), False),
        (("SET", "GET", "GET"), False),
        (("CONFIG", "SET", "maxmemory", 0), False),
        (("CONFIG",), False),
        (("GETDEL", "k"), False),
        (("GETEX", "k"), False),
        (("EVAL", "return 1", 0), False),
        (("SORT", "k"), False),
        (("XREAD", "STREAMS", "s", "$"), False),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), False),
        (("PUBLISH", "c", "GET"), False),
        (("", "GET"), False),
        (("*1\r\n$3\r\nGET\r\n",), False),
        (("SET" * 100, "GET"), False),
    ],
)
def test_f16_which_commands_only_read(command: tuple[Any, ...], expected: bool) -> None:
    assert reads_only(pack(command)) is expected
