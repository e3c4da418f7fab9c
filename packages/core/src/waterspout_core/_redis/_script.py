"""The functions of waterspout.lua on a server: a library of Redis Functions where there are any, else a script."""

from __future__ import annotations

import asyncio
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
        self._bringing: asyncio.Task[None] | None = None
        source = _source()
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._version = int(source.partition("local VERSION = ")[2].partition("\n")[0])

    def command(self, name: str, keys: Sequence[str], args: Args) -> Args:
        """The command that runs the function `name`."""
        if self._as_library:
            return ["FCALL", name, len(keys), *keys, *args]
        return ["EVALSHA", self._sha, len(keys), *keys, *args, name]

    def call(self, name: str, keys: Sequence[str], args: Args, *, bulk: bool = False) -> Future[Any]:
        """Run the function `name`. The Future raises what `Client.call` does."""
        return self._client.call(*self.command(name, keys, args), decode=None, bulk=bulk)

    async def finish(
        self, reply: Future[Any], name: str, keys: Sequence[str], args: Args, *, bulk: bool = False
    ) -> Any:
        """What `reply` brings, or, if that is only that the server does not know the function, what comes when it does.
        Raises RedisError."""
        # More than once, for a server that forgets them again, or another one in its place.
        for _ in range(3):
            try:
                return await reply
            except RedisError as error:
                if not _is_unknown(error):
                    raise
            await self._bring()
            reply = self.call(name, keys, args, bulk=bulk)
        return await reply

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
            await self._load_library()

    async def _bring(self) -> None:
        """Bring the functions to the server, in the form that it takes; once for all who find them missing."""
        task = self._bringing
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._bringing = asyncio.create_task(self._load())
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever waits may have gone
        await asyncio.shield(task)

    async def _load(self) -> None:
        if self._as_library:
            await self._load_library()
        if not self._as_library:
            await self._client.call("SCRIPT", "LOAD", _source())

    async def _load_library(self) -> None:
        try:
            await self._client.call("FUNCTION", "LOAD", "REPLACE", _library())
            await self._client.call("FCALL", "waterspout_version", 0)  # to call them may be forbidden
        except RedisError as error:
            if not _NO_FUNCTIONS(str(error)):
                raise
            self._as_library = False


def _is_unknown(error: RedisError) -> bool:
    """Whether it says that the server does not know the function, in the form in which it was called."""
    return isinstance(error, NoScriptError) or str(error) == _NOT_LOADED or _NO_FUNCTIONS(str(error)) is not None


@cache
def _library() -> str:
    return files(__package__).joinpath("waterspout.lua").read_text("utf-8")


@cache
def _source() -> str:
    """The same as a script, which has no name."""
    return _library().partition("\n")[2]
