"""Lua on the server: a script is sent once and then called by its digest, a library of functions by their names."""

from __future__ import annotations

import hashlib
import re
from asyncio import Future
from collections.abc import Sequence
from typing import Any, Final, Protocol

from ._dedicated import DEFAULT, Default
from ._encoding import Argument
from ._errors import NoScriptError, ResponseError

_LIBRARY_NAME: Final = re.compile(r'#![^\n]*\sname="?(\w+)', re.IGNORECASE)


class Caller(Protocol):
    """Whoever has a client's `call`: the client, one that is leased, or your own around them."""

    def call(self, *args: Argument, decode: str | Default | None = ...) -> Future[Any]: ...


class Script:
    """A Lua script, made once and called with any client, as often as you like::

        increment = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        assert await increment(client, keys=["hits"], args=[2]) == 2

    It is sent whole only to a server that does not know it (yet, or any more). With ``read_only`` the server sees to
    it that nothing is written (Redis 7.0), and so the client may send it again after a lost connection.
    """

    __slots__ = ("_eval", "_evalsha", "sha", "source")

    def __init__(self, source: str, *, read_only: bool = False) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        """The digest by which the server knows it, for ``EVALSHA`` in a pipeline."""
        self._evalsha, self._eval = ("EVALSHA_RO", "EVAL_RO") if read_only else ("EVALSHA", "EVAL")

    async def __call__(
        self,
        client: Caller,
        *,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        decode: str | Default | None = DEFAULT,
    ) -> Any:
        """Run it and return its reply; KEYS and ARGV are what it finds `keys` and `args` as.

        Raises what `Client.call` does; TypeError for a str or bytes in place of a sequence of them; ResponseError for
        an error in the script.
        """
        given = _given(keys, args)
        try:
            return await client.call(self._evalsha, self.sha, *given, decode=decode)
        except NoScriptError:
            # Not SCRIPT LOAD and once more: between the two the server could be another one.
            return await client.call(self._eval, self.source, *given, decode=decode)


class Library:
    """A library of Redis Functions (Redis 7.0, Valkey), made once and used with any client::

        counters = Library('''#!lua name=counters
            redis.register_function('increment', function(keys, args)
                return redis.call('INCRBY', keys[1], args[1])
            end)
        ''')
        assert await counters.call(client, "increment", keys=["hits"], args=[2]) == 2

    It is loaded where a function of it is not found. What a server holds already is taken as it is: after a change
    `load` it, or better give it and its functions other names, so that old and new programs can run side by side.

    Raises ValueError for code that does not begin with ``#!lua name=...``.
    """

    __slots__ = ("code", "name")

    def __init__(self, code: str) -> None:
        match = _LIBRARY_NAME.match(code)
        if match is None:
            raise ValueError("the code of a library must begin with #!lua name=... to give its name")
        self.code, self.name = code, match[1]

    async def load(self, client: Caller) -> None:
        """Load it, in place of any other of this name. Raises ResponseError for code that does not compile."""
        await _functions(client.call("FUNCTION", "LOAD", "REPLACE", self.code))

    async def call(
        self,
        client: Caller,
        function: str,
        *,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        read_only: bool = False,
        decode: str | Default | None = DEFAULT,
    ) -> Any:
        """Run one of its functions and return the reply.

        With ``read_only``, which only a function with the flag ``no-writes`` allows, the client may send it again
        after a lost connection. Raises what `Client.call` does; TypeError for a str or bytes in place of a sequence of
        them; ResponseError for an error in the function, or if the library has none of that name.
        """
        given = _given(keys, args)
        fcall = "FCALL_RO" if read_only else "FCALL"
        try:
            return await _functions(client.call(fcall, function, *given, decode=decode))
        except ResponseError as error:
            if str(error) != "ERR Function not found":
                raise
        # Two callers who find it missing load it twice, which changes nothing.
        await self.load(client)
        return await client.call(fcall, function, *given, decode=decode)


def _given(keys: Sequence[Argument], args: Sequence[Argument]) -> tuple[Argument, ...]:
    """What follows the name of a script or a function: how many keys, the keys, the arguments."""
    for name, values in (("keys", keys), ("args", args)):
        # These are sequences too, of letters or of numbers, and nobody means that.
        if isinstance(values, str | bytes | bytearray | memoryview):
            raise TypeError(f"{name} must be a list or a tuple, not {type(values).__name__}: write {name}=[...]")
    return (len(keys), *keys, *args)


async def _functions(reply: Future[Any]) -> Any:
    """The reply, or an error that says what it means when the server knows no functions."""
    try:
        return await reply
    except ResponseError as error:
        if str(error).startswith("ERR unknown command"):
            raise ResponseError(f"ERR this server has no functions, which came with Redis 7.0: {error}") from error
        raise
