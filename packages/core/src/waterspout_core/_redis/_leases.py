"""Leases in Redis: a key of each name that is held, and one of those who wait for it."""

from __future__ import annotations

import math
from typing import Any

from waterspout_redis import Client, RedisError

from ._errors import translated_error
from ._keys import line_of
from ._script import Functions


class RedisLeases:
    """`Leases` on one server. A name is that of its key, which holds the token; what is done there is written in
    waterspout.lua."""

    def __init__(self, client: Client) -> None:
        self._functions = Functions(client)

    async def claim(self, name: str, token: str, seconds: float, *, wait: float = 0.0) -> bool:
        return await self._run("claim", name, token, _milliseconds(seconds), _milliseconds(wait))

    async def renew(self, name: str, token: str, seconds: float) -> bool:
        return await self._run("renew", name, token, _milliseconds(seconds))

    async def release(self, name: str, token: str) -> bool:
        return await self._run("release", name, token)

    async def _run(self, function: str, name: str, *args: Any) -> bool:
        try:
            return bool(await self._functions.run(f"waterspout_lease_{function}", [name, line_of(name)], args))
        except RedisError as error:
            raise translated_error(error) from error


def _milliseconds(seconds: float) -> int:
    """Up: nobody is to lose a lease before he thinks so."""
    return math.ceil(seconds * 1000)
