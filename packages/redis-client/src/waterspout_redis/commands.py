"""redis-py's typed commands over our client: the extra `[commands]`.

redis-py knows how each command is written and what its reply means; we carry it. `Redis` is a `redis.asyncio.Redis`
without connections of its own: what redis-py would send over one goes through a `Client`.

Errors are of both families. `_THEIRS` says which of redis-py's classes each of ours is as well, so that redis-py's own
code (scripts, locks) and handlers written for it go on working.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, NoReturn, Self, Unpack

try:
    from redis import exceptions as theirs
    from redis.asyncio import ConnectionPool
    from redis.asyncio import Redis as TheirRedis
    from redis.asyncio.client import Pipeline as TheirPipeline
    from redis.client import EMPTY_RESPONSE, NEVER_DECODE
except ImportError as error:
    raise ImportError(
        'typed commands need redis-py 8.1 or newer: pip install "waterspout-redis[commands]", '
        'or, where this package was copied into another, pip install "redis>=8.1,<9"',
        name=error.name,
    ) from error

from . import _errors as ours
from ._client import Client
from ._dedicated import DedicatedClient
from ._hooks import OnCommand, OnConnection
from ._options import ConnectionKeywords, check_options
from ._pipeline import Pipeline as Stack
from ._slots import decoded

__all__ = ["Pipeline", "Redis"]

_THEIRS: Final[dict[type[ours.RedisError], type[theirs.RedisError]]] = {
    ours.RedisError: theirs.RedisError,
    ours.ConnectError: theirs.ConnectionError,
    ours.ConnectionLost: theirs.ConnectionError,
    ours.CallTimeout: theirs.TimeoutError,
    ours.ClosedError: theirs.ConnectionError,
    ours.PoolTimeout: theirs.MaxConnectionsError,
    ours.WatchError: theirs.WatchError,
    ours.ProtocolError: theirs.InvalidResponse,
    ours.ResponseError: theirs.ResponseError,
    ours.AuthenticationError: theirs.AuthenticationError,
    ours.ClusterDownError: theirs.ClusterDownError,
    ours.CrossSlotError: theirs.ClusterCrossSlotError,
    ours.ExecAbortError: theirs.ExecAbortError,
    ours.LoadingError: theirs.BusyLoadingError,
    ours.MasterDownError: theirs.MasterDownError,
    ours.NoPermissionError: theirs.NoPermissionError,
    ours.NoScriptError: theirs.NoScriptError,
    ours.OutOfMemoryError: theirs.OutOfMemoryError,
    ours.ReadOnlyError: theirs.ReadOnlyError,
    ours.TryAgainError: theirs.TryAgainError,
}

# What redis-py tells its connections by options; the rest of the options are for the command's callback.
_NOT_FOR_CALLBACKS: Final = frozenset({EMPTY_RESPONSE, NEVER_DECODE, "keys"})


class ClientKeywords(ConnectionKeywords, total=False):
    """The keyword arguments of `Client`."""

    decode: str | None
    timeout: float | None
    max_in_flight: int
    max_in_flight_bytes: int
    retry: int
    max_leases: int
    on_connection: OnConnection | None
    on_command: OnCommand | None


class Redis(TheirRedis):
    """Redis' commands as typed methods, as redis-py's asyncio client has them, on one shared connection::

        redis = Redis("redis://localhost", decode="utf-8")
        await redis.hset("user:1", mapping={"name": "Ada"})
        async for key in redis.scan_iter("user:*"): ...

    Made of what a `Client` is made of, or of a client, which then stays its owner's to close; over one that
    `Client.lease` lends, it has a connection of its own (for SELECT, WAIT and the like). ``async with`` and `aclose`
    do for it what they do for a client. Scripts, locks, pipelines with WATCH and the commands of modules are
    redis-py's too; its `pubsub`, `monitor` and `client` want connections of redis-py's and are not here.

    Replies have the shapes that redis-py gives them for the same ``protocol`` (None, which a given client counts as
    unless it speaks RESP2: RESP3, and replies as RESP2 had them) and ``legacy_responses``.

    ``decode_responses=True`` is redis-py's word for ``decode="utf-8"``, and is taken as well.

    Arguments are those of `Client.call`: for bool, None, an IntEnum or a numpy scalar a command raises what is both
    TypeError and redis-py's DataError, also where redis-py would send their repr(). Errors are those of `Client.call`
    and at once redis-py's of the same meaning: both ``except waterspout_redis.NoScriptError`` and ``except
    redis.exceptions.NoScriptError`` catch one.
    """

    def __init__(
        self,
        client: Client | DedicatedClient | str | None = None,
        *,
        decode_responses: bool | None = None,
        legacy_responses: bool = True,
        **options: Unpack[ClientKeywords],
    ) -> None:
        check_options(self, options, takes=ClientKeywords.__annotations__, decode_responses=decode_responses)
        if decode_responses is not None:
            if "decode" in options:
                raise TypeError("give either decode or decode_responses")
            options["decode"] = "utf-8" if decode_responses else None
        self._client: Client | DedicatedClient
        self._owned = not isinstance(client, Client | DedicatedClient)
        if isinstance(client, Client | DedicatedClient):
            if options:
                raise TypeError(f"the client that is given was made without {', '.join(options)}: make it with them")
            self._client = client
            protocol = 2 if client._options.protocol == 2 else None
        else:
            self._client = Client(client, **options)
            protocol = options.get("protocol")
        self._decode = self._client._decode
        super().__init__(
            connection_pool=_NoPool(
                protocol=protocol,
                legacy_responses=legacy_responses,
                decode_responses=self._decode is not None,
            )
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:  # type: ignore[override]  # ours has other options
        """``Redis(url, ...)``, as redis-py spells it."""
        return cls(url, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._client!r}>"

    # Its life

    async def initialize(self) -> Self:
        """Connect, which the first command does by itself. Raises ConnectError or ClosedError."""
        with _ERRORS_OF_BOTH:
            await self._client.connect()
        return self

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the client, unless it was given to us: then it is closed by its owner, or on the word of True."""
        if self._owned if close_connection_pool is None else close_connection_pool:
            await self._client.aclose()

    # Commands

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return what redis-py makes of its reply: all the typed methods end here."""
        return await self._execute(self._client, args, options)

    async def _execute(self, caller: Client | DedicatedClient, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The same by any `caller` that has a client's `call`."""
        # MGET without keys, which the server would refuse.
        if EMPTY_RESPONSE in options:
            return options[EMPTY_RESPONSE]
        with _ERRORS_OF_BOTH:
            reply = await caller.call(*_words(args), decode=None)
        return await self._understand(reply, args, options)

    async def _understand(self, reply: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A raw reply as redis-py gives it to its caller."""
        if self._decode is not None and NEVER_DECODE not in options:
            reply = decoded(reply, self._decode)
        callback = self.response_callbacks.get(args[0])
        if callback is None:
            return reply
        result = callback(reply, **{name: options[name] for name in options.keys() - _NOT_FOR_CALLBACKS})
        return await result if inspect.isawaitable(result) else result

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Commands that are sent together, with ``transaction`` as one MULTI ... EXEC."""
        return Pipeline(self, transaction, shard_hint)

    # What is not here

    def pubsub(self, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("subscribe with waterspout_redis.PubSubClient")

    def client(self) -> NoReturn:
        raise NotImplementedError("for a connection of your own: async with client.lease() as leased: Redis(leased)")


class Pipeline(TheirPipeline):
    """Commands to be sent together by `execute`; made by `Redis.pipeline` and used as redis-py's.

    WATCH takes a connection of its own, which `execute`, `reset` and the end of ``async with`` give back. A failed
    command's error has a note that tells its place. A connection that is lost raises ConnectionLost: unlike
    redis-py's WatchError, it does not make ``transaction`` run again what may have been executed.
    """

    def __init__(self, redis: Redis, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction, shard_hint)
        self._redis = redis
        self._caller = redis._client
        self._lease = AsyncExitStack()

    def multi(self) -> None:
        """From here on, after WATCH, stack commands for `execute`."""
        super().multi()  # type: ignore[no-untyped-call]

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send WATCH, or what is asked between WATCH and MULTI, at once."""
        if args[0] == "WATCH" and not self.watching:
            if isinstance(self._caller, Client):
                with _ERRORS_OF_BOTH:
                    self._caller = await self._lease.enter_async_context(self._caller.lease())
            self.watching = True
        reply = await self._redis._execute(self._caller, args, options)
        if args[0] in self.UNWATCH_COMMANDS:
            self.watching = False
            await self._end_watch()
        return reply

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what was stacked and return the replies.

        Raises the first error among them unless told not to, and WatchError when a watched key was changed.
        """
        commands: list[tuple[Any, Any]] = self.command_stack
        try:
            if self.scripts:
                await self.load_scripts()  # type: ignore[no-untyped-call]
            replies = iter(await self._send(commands))
            results = []
            for place, (args, options) in enumerate(commands, 1):
                result = options[EMPTY_RESPONSE] if EMPTY_RESPONSE in options else next(replies)
                if isinstance(result, ours.RedisError):
                    _make_theirs_too(result)
                    result.add_note(f"command {place} of the pipeline: {args[0]!r}")
                    if raise_on_error:
                        raise result
                elif EMPTY_RESPONSE not in options:
                    result = await self._redis._understand(result, args, options)
                results.append(result)
            return results
        finally:
            await self.reset()

    async def _send(self, commands: list[tuple[Any, Any]]) -> list[Any]:
        """Send all at once and return the raw replies."""
        stack = Stack(atomic=self.is_transaction or self.explicit_transaction)
        with _ERRORS_OF_BOTH:
            for args, options in commands:
                if EMPTY_RESPONSE not in options:
                    stack.stack_call(*_words(args))
            if stack.atomic:
                # EXEC ends the watch, however it ends.
                self.watching = False
            replies: list[Any] = await self._caller.call(stack, decode=None)
        return replies

    async def reset(self) -> None:  # type: ignore[override]  # it hides the command RESET, as redis-py's does
        """Forget what was stacked and watched."""
        self.command_stack = []
        self.scripts = set()
        self.explicit_transaction = False
        await self._end_watch()

    async def _end_watch(self) -> None:
        """Give the connection back that was taken for WATCH."""
        watching, self.watching = self.watching, False
        caller, self._caller = self._caller, self._redis._client
        async with self._lease:
            if watching:
                # A connection that is gone watches nothing.
                with suppress(ours.RedisError):
                    await caller.call("UNWATCH")


class _NoPool(ConnectionPool):
    """Stands where redis-py looks for its options, and for connections, of which there are none."""

    async def get_connection(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("this needs a connection of redis-py's own: take redis.asyncio.Redis for it")


def _words(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """redis-py writes names of two words, such as "CONFIG GET", as one."""
    return (*args[0].split(), *args[1:])


class DataError(theirs.DataError, TypeError):
    """An argument that Redis cannot take."""


class _ErrorsOfBoth:
    """Makes our errors that pass instances of redis-py's classes as well; what they are and say stays the same."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ours.RedisError):
            _make_theirs_too(error)
        elif isinstance(error, TypeError):
            # Python's own errors cannot be made anything else.
            raise DataError(*error.args) from None


_ERRORS_OF_BOTH: Final = _ErrorsOfBoth()


def _make_theirs_too(error: Any) -> None:
    if not isinstance(error, theirs.RedisError):
        error.__class__ = _both(error.__class__)
        # What redis-py's own __init__ would add to it.
        theirs.RedisError.__init__(error, *error.args)


@functools.cache
def _both(kind: Any) -> Any:
    their_kind = next(_THEIRS[base] for base in kind.__mro__ if base in _THEIRS)
    return type(kind.__name__, (kind, their_kind), {"__module__": kind.__module__, "__repr__": Exception.__repr__})
