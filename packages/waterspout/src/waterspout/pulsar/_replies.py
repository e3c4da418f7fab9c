"""What pulsar makes of the replies to some commands; those to all others are given as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final


def parse_reply(args: Sequence[Any], options: Mapping[str, Any], reply: Any) -> Any:
    """`reply` to the command `args`, which was called with `options`."""
    name = args[0]
    parse = _REPLIES.get((name.decode() if isinstance(name, bytes) else name).upper())
    return reply if parse is None or isinstance(reply, Exception) else parse(reply, **options)


def _is_ok(reply: Any) -> bool:
    return reply in (b"OK", "OK")  # None where SET has refused


def _is_pong(reply: Any) -> bool:
    return reply in (b"PONG", "PONG")


def _float(reply: Any) -> float | None:
    return None if reply is None else float(reply)


def _tuple(reply: Any) -> tuple[Any, ...] | None:
    return tuple(reply) if reply else None


def _pairs(reply: Any) -> list[tuple[Any, Any]]:
    return list(zip(reply[::2], reply[1::2], strict=True))


def _dict(reply: Any) -> dict[Any, Any]:
    return dict(_pairs(reply))


def _fields(reply: Any, fields: Sequence[Any] | None = None) -> Any:
    return reply if fields is None else dict(zip(fields, reply, strict=True))


def _scores(reply: Any, withscores: bool = False) -> Any:
    return [(float(score), value) for value, score in _pairs(reply)] if withscores else reply


def _groups(reply: Any, groups: int | None = None) -> Any:
    return list(zip(*(reply[place::groups] for place in range(groups)), strict=True)) if groups else reply


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


def _time(reply: Any) -> tuple[int, int]:
    seconds, microseconds = reply
    return int(seconds), int(microseconds)


def _info(reply: Any) -> dict[str, Any]:
    lines = [line for line in _text(reply).splitlines() if line and not line.startswith("#")]
    return {key: _info_value(value) for key, _, value in (line.partition(":") for line in lines)}


def _info_value(value: str) -> Any:
    if "=" in value:  # such as keys=1,expires=0
        return {key: _info_value(part) for key, _, part in (pair.partition("=") for pair in value.split(","))}
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


_COMMANDS: Final[dict[Callable[..., Any], tuple[str, ...]]] = {
    _dict: ("HGETALL",),
    _fields: ("HMGET",),
    _float: ("HINCRBYFLOAT", "INCRBYFLOAT", "ZINCRBY", "ZSCORE"),
    _groups: ("SORT",),
    _info: ("INFO",),
    _is_ok: ("BGSAVE", "FLUSHALL", "FLUSHDB", "HMSET", "LSET", "LTRIM", "MSET", "RENAME", "RESTORE", "SAVE", "SET"),
    _is_pong: ("PING",),
    _scores: ("ZRANGE", "ZRANGEBYSCORE", "ZREVRANGE", "ZREVRANGEBYSCORE"),
    _text: ("TYPE",),
    _time: ("TIME",),
    _tuple: ("BLPOP", "BRPOP"),
    bool: ("EXISTS", "EXPIRE", "EXPIREAT", "PEXPIRE", "PEXPIREAT", "PERSIST", "RENAMENX"),
    set: ("SDIFF", "SINTER", "SMEMBERS", "SUNION"),
}

_REPLIES: Final = {name: parse for parse, names in _COMMANDS.items() for name in names}
