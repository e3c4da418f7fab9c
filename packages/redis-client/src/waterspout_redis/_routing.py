"""What is special about some commands: they block, they leave something behind, `call` refuses them, they only read.

A test compares the tables with what each server says of its commands (COMMAND). Names are in upper case, a container
command's with its subcommand: "CLIENT TRACKING".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final


class Effect(Enum):
    """What ties a command to the connection it runs on, so that it wants one of its own: it ..."""

    NONE = "nothing"
    OPENS = "begins what a later command ends"
    CLOSES = "ends what an earlier command began"
    STAYS = "changes what later commands on the connection do"
    LOOKS_BACK = "is about the commands before it on the connection"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is special about a command; most have none."""

    blocks: Callable[[Sequence[Any]], float] | None = None
    """Of all arguments, the name included: the seconds it may block, 0.0 for not at all, math.inf for ever.

    Never raises. Arguments that make no sense count as 0.0: the server refuses them at once.
    """
    effect: Effect = Effect.NONE
    refusal: str | None = None
    """Why `call` never takes it on any connection, and what to use instead."""


# How long a command blocks


def _duration(value: Any, unit: float) -> float:
    """A time-out argument in seconds; for every command that has one, 0 means for ever."""
    try:
        seconds = float(value) * unit
    except (TypeError, ValueError, OverflowError):
        return 0.0
    if seconds == 0:
        return math.inf
    return seconds if 0 < seconds < math.inf else 0.0


def _argument(place: int, *, unit: float = 1.0) -> Callable[[Sequence[Any]], float]:
    """The argument at `place` is the time-out, in `unit` seconds."""

    def blocks(args: Sequence[Any]) -> float:
        return _duration(args[place], unit) if len(args) > abs(place) else 0.0

    return blocks


# The values that each option before STREAMS takes.
_STREAM_OPTIONS: Final = {"BLOCK": 1, "CLAIM": 1, "COUNT": 1, "GROUP": 2, "NOACK": 0}


def _block_option(args: Sequence[Any]) -> float:
    """XREAD and XREADGROUP block only if told so: ``BLOCK milliseconds``, before STREAMS."""
    seconds = 0.0
    place = 1
    while place + 1 < len(args) and (option := _upper(args[place])) in _STREAM_OPTIONS:
        if option == "BLOCK":
            seconds = _duration(args[place + 1], 0.001)
        place += 1 + _STREAM_OPTIONS[option]
    return seconds


# The table of special commands

_LAST_IN_SECONDS: Final = Rule(blocks=_argument(-1))
_FIRST_IN_SECONDS: Final = Rule(blocks=_argument(1))
_BLOCK_OPTION: Final = Rule(blocks=_block_option)
# They wait for the writes of their own connection: on any other one they are answered at once, and mean nothing.
_LAST_IN_MILLISECONDS: Final = Rule(blocks=_argument(-1, unit=0.001), effect=Effect.LOOKS_BACK)

_OPENS: Final = Rule(effect=Effect.OPENS)
_CLOSES: Final = Rule(effect=Effect.CLOSES)
_STAYS: Final = Rule(effect=Effect.STAYS)

_SUBSCRIBES: Final = Rule(refusal="subscribing is what PubSubClient is for")
_REPLICATES: Final = Rule(refusal="it is spoken between servers, and is not answered by one reply")

SPECIAL: Final[Mapping[str, Rule]] = {
    "BLMOVE": _LAST_IN_SECONDS,
    "BLMPOP": _FIRST_IN_SECONDS,
    "BLPOP": _LAST_IN_SECONDS,
    "BRPOP": _LAST_IN_SECONDS,
    "BRPOPLPUSH": _LAST_IN_SECONDS,
    "BZMPOP": _FIRST_IN_SECONDS,
    "BZPOPMAX": _LAST_IN_SECONDS,
    "BZPOPMIN": _LAST_IN_SECONDS,
    "WAIT": _LAST_IN_MILLISECONDS,
    "WAITAOF": _LAST_IN_MILLISECONDS,
    "XREAD": _BLOCK_OPTION,
    "XREADGROUP": _BLOCK_OPTION,
    #
    "MULTI": _OPENS,
    "WATCH": _OPENS,
    "DISCARD": _CLOSES,
    "EXEC": _CLOSES,
    "UNWATCH": _CLOSES,
    #
    "ASKING": _STAYS,
    "AUTH": _STAYS,
    "CLIENT CACHING": _STAYS,
    "CLIENT CAPA": _STAYS,
    "CLIENT IMPORT-SOURCE": _STAYS,
    "CLIENT NO-EVICT": _STAYS,
    "CLIENT NO-TOUCH": _STAYS,
    "CLIENT TRACKING": _STAYS,
    "READONLY": _STAYS,
    "READWRITE": _STAYS,
    "SELECT": _STAYS,
    #
    "PSUBSCRIBE": _SUBSCRIBES,
    "PUNSUBSCRIBE": _SUBSCRIBES,
    "SSUBSCRIBE": _SUBSCRIBES,
    "SUBSCRIBE": _SUBSCRIBES,
    "SUNSUBSCRIBE": _SUBSCRIBES,
    "UNSUBSCRIBE": _SUBSCRIBES,
    "CLUSTER SYNCSLOTS": _REPLICATES,
    "PSYNC": _REPLICATES,
    "REPLCONF": _REPLICATES,
    "SYNC": _REPLICATES,
    "CLIENT REPLY": Rule(refusal="without replies no call could ever end; to ignore one, do not await it"),
    "HELLO": Rule(refusal="the client says it by itself: give it protocol=, username= and password="),
    "MONITOR": Rule(refusal="its replies never end; redis-cli can show them"),
    "QUIT": Rule(refusal="end a client with its aclose(), or its connection with disconnect()"),
    "RESET": Rule(refusal="it would undo the client's own log-in; for a new connection use disconnect()"),
    "SCRIPT DEBUG": Rule(refusal="a debugger does not answer in replies; redis-cli --ldb is one"),
}

# The commands that have subcommands.
CONTAINERS: Final = frozenset(
    {
        *("ACL", "CLIENT", "CLUSTER", "COMMAND", "COMMANDLOG", "CONFIG", "DEBUG", "FUNCTION", "HOTKEYS", "LATENCY"),
        *("MEMORY", "MODULE", "OBJECT", "PUBSUB", "SCRIPT", "SLOWLOG", "XGROUP", "XINFO"),
    }
)

UNKNOWN: Final = Rule()
"""Stands for the rule of a name that is not in `RULES`."""

RULES: Final[dict[str | bytes, Rule | None]] = {}
"""Names as callers spell them, once `rule_for` was asked. Where None is, it need not be asked again:

    if RULES.get(args[0], UNKNOWN) is not None: rule = rule_for(args)
"""

_BY_SUBCOMMAND: Final = Rule()
_SPECIAL_CONTAINERS: Final = frozenset(name.partition(" ")[0] for name in SPECIAL if " " in name)

# More spellings, and longer ones, than any program has; made-up names shall not fill the memory.
_MOST_RULES: Final = 1024
_LONGEST_NAME: Final = 64


def rule_for(args: Sequence[Any]) -> Rule | None:
    """What is special about this command, or None. `args` is something that `pack` takes."""
    rule = RULES.get(args[0], UNKNOWN)
    if rule is UNKNOWN:
        rule = _learn(args[0])
    return SPECIAL.get(name_of(args)) if rule is _BY_SUBCOMMAND else rule


def _learn(name: str | bytes) -> Rule | None:
    word = _upper(name)
    rule = _BY_SUBCOMMAND if word in _SPECIAL_CONTAINERS else SPECIAL.get(word)
    if len(name) <= _LONGEST_NAME:
        if len(RULES) >= _MOST_RULES:
            RULES.clear()
        RULES[name] = rule
    return rule


def name_of(args: Sequence[Any]) -> str:
    """The command's name in upper case; of a container command the first two words, as "CONFIG GET"."""
    name = _upper(args[0])
    return f"{name} {_upper(args[1])}" if name in CONTAINERS and len(args) > 1 else name


def _upper(word: Any) -> str:
    if isinstance(word, bytes | bytearray | memoryview):
        word = bytes(word).decode(errors="replace")
    # Of a subclass of str its content counts, which is what is sent, not what its __str__ says.
    return str.upper(word if isinstance(word, str) else str(word))


# What may be sent twice

# XREAD is missing on purpose: its "$" means another place the second time, and what came between would be lost.
_READ_ONLY_NAMES: Final = b"""
    BITCOUNT BITFIELD_RO BITPOS CLUSTERSCAN DBSIZE DIGEST DUMP ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO
    GEODIST GEOHASH GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS HEXPIRETIME HGET
    HGETALL HKEYS HLEN HMGET HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSTRLEN HTTL HVALS INFO KEYS LASTSAVE LCS LINDEX LLEN
    LOLWUT LPOS LRANGE MGET PEXPIRETIME PFCOUNT PING PTTL RANDOMKEY ROLE SCAN SCARD SDIFF SINTER SINTERCARD SISMEMBER
    SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER SSCAN STRLEN SUBSTR SUNION TIME TOUCH TTL TYPE VCARD VDIM VEMB VGETATTR
    VINFO VISMEMBER VLINKS VRANDMEMBER VSIM XLEN XPENDING XRANGE XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER ZINTERCARD
    ZLEXCOUNT ZMSCORE ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE
    ZREVRANK ZSCAN ZSCORE ZUNION
"""
_READ_ONLY_SUBCOMMANDS: Final = {
    b"ACL": b"CAT GETUSER LIST USERS WHOAMI",
    b"CLIENT": b"GETNAME ID INFO LIST",
    b"CLUSTER": b"COUNTKEYSINSLOT GETKEYSINSLOT INFO KEYSLOT LINKS MYID MYSHARDID NODES REPLICAS SHARDS SLAVES SLOTS",
    b"COMMAND": b"COUNT DOCS GETKEYS GETKEYSANDFLAGS INFO LIST",
    b"CONFIG": b"GET",
    b"FUNCTION": b"DUMP LIST STATS",
    b"MEMORY": b"STATS USAGE",
    b"MODULE": b"LIST",
    b"OBJECT": b"ENCODING FREQ IDLETIME REFCOUNT",
    b"PUBSUB": b"CHANNELS NUMPAT NUMSUB SHARDCHANNELS SHARDNUMSUB",
    b"SCRIPT": b"EXISTS",
    b"SLOWLOG": b"GET LEN",
    b"XINFO": b"CONSUMERS GROUPS STREAM",
}
READ_ONLY: Final = frozenset(_READ_ONLY_NAMES.split()) | frozenset(
    container + b" " + name for container, names in _READ_ONLY_SUBCOMMANDS.items() for name in names.split()
)


def reads_only(packed: bytes) -> bool:
    """Whether this one command, as `pack` made it, changes nothing and so may be sent a second time."""
    # "*3", "$6", "CONFIG", "$3", "GET", ...: no command that we know is longer than what is looked at.
    words = packed[:_LONGEST_NAME].upper().split(b"\r\n")[2:5:2]
    return words[0] in READ_ONLY or b" ".join(words) in READ_ONLY
