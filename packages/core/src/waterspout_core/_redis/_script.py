"""The functions of waterspout.lua on a server: a library of Redis Functions where there are any, else a script."""

from __future__ import annotations

import hashlib
import re
from asyncio import Future
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeAlias

from waterspout_redis import Client, NoScriptError, RedisError

Args: TypeAlias = "Sequence[bytes | str | int]"

_NOT_LOADED: Final = "ERR Function not found"
# The server is older than Redis 7, or the commands have been taken from it, or from us.
_NO_FUNCTIONS: Final = re.compile(
    r"ERR unknown command .(fcall|fcall_ro|function)\b|NOPERM .*'(fcall|fcall_ro|function\|load)'", re.IGNORECASE
).match


class Functions:
    """What is in waterspout.lua, for calling it by `client`. Which form the server takes is found out by trying.

    `reply = call(...)` is a plain function; ``await finish(reply, ...)`` with the same arguments, or `run` for both,
    sees to it that the server gets the functions where it does not know them (yet, or any more).
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._as_library = True  # until the server has refused
        source = _source()
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._version = int(source.partition("local VERSION = ")[2].partition("\n")[0])

    def call(self, name: str, keys: Sequence[str], args: Args, *, bulk: bool = False) -> Future[Any]:
        """Run the function `name`. The Future raises what `Client.call` does."""
        if self._as_library:
            return self._client.call("FCALL", name, len(keys), *keys, *args, decode=None, bulk=bulk)
        return self._client.call("EVALSHA", self._sha, len(keys), *keys, *args, name, decode=None, bulk=bulk)

    async def finish(
        self, reply: Future[Any], name: str, keys: Sequence[str], args: Args, *, bulk: bool = False
    ) -> Any:
        """What `reply` brings, or, if that is only that the server does not know the function, what comes when it does.
        Raises RedisError."""
        try:
            return await reply
        except RedisError as error:
            if not _is_unknown(error):
                raise
        if self._as_library and await self._load():
            return await self.call(name, keys, args, bulk=bulk)
        # Not SCRIPT LOAD first: between the two the server could be another one.
        return await self._client.call("EVAL", _source(), len(keys), *keys, *args, name, decode=None, bulk=bulk)

    async def run(self, name: str, keys: Sequence[str], args: Args, *, bulk: bool = False) -> Any:
        """Run the function `name`. Raises RedisError."""
        return await self.finish(self.call(name, keys, args, bulk=bulk), name, keys, args, bulk=bulk)

    async def load(self) -> None:
        """See to it that other programs find the functions, where there can be any; newer ones are left as they are."""
        try:
            known: int = await self._client.call("FCALL_RO", "waterspout_version", 0)
        except RedisError as error:
            if not _is_unknown(error):
                raise
            known = 0
        if known < self._version:
            await self._load()

    async def _load(self) -> bool:
        """Whether they are there now."""
        code = f"#!lua name=waterspout\n{_source()}"
        try:
            # They may be there, and only calling them be forbidden.
            await self._client.call("FUNCTION", "LOAD", "REPLACE", code)
            await self._client.call("FCALL", "waterspout_version", 0)
        except RedisError as error:
            if not _NO_FUNCTIONS(str(error)):
                raise
            self._as_library = False
        return self._as_library


def _is_unknown(error: RedisError) -> bool:
    """Whether it says that the server does not know the function, in the form in which it was called."""
    return isinstance(error, NoScriptError) or str(error) == _NOT_LOADED or _NO_FUNCTIONS(str(error)) is not None


@cache
def _source() -> str:
    return files(__package__).joinpath("waterspout.lua").read_text("utf-8")
