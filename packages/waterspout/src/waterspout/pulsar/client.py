"""A drop-in for pulsar's Redis client: every command is a method of the same name, some with arguments of their own.

A method of `RedisClient` gives an awaitable of the reply; one of `Pipeline` keeps the command until `commit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from waterspout_redis import Pipeline as Stack

from ._replies import parse_reply
from .locks import Lock

if TYPE_CHECKING:
    from .pubsub import MessageProtocol, PubSub
    from .stores import RedisStore

__all__ = ["Pipeline", "RedisClient"]

_NAMES: Final = {"delete": "del"}
"""Of the commands that cannot be called so in Python."""


class RedisClient:
    """Commands for a store: ``await client.set("key", "value")``. Raises `ConnectionError`, `TimeoutError`, and
    `ResponseError`."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store})"

    def pubsub(self, protocol: MessageProtocol | None = None) -> PubSub:
        """To publish and subscribe on the same store."""
        return self.store.pubsub(protocol)

    def pipeline(self) -> Pipeline:
        """For commands that are sent together."""
        return Pipeline(self.store)

    def lock(self, name: str, timeout: float | None = None, blocking: bool | float = True, sleep: float = 0.2) -> Lock:
        """A lock that all processes share, under the key `name`."""
        return Lock(self.store.leases, name, timeout, blocking, sleep)

    def execute(self, command: str, *args: Any, **options: Any) -> Any:
        """Any command; `options` are for what is made of its reply."""
        return self.store.execute(command, *args, **options)

    execute_command = immediate_execute = execute

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return partial(self.execute, _NAMES.get(name, name))

    # Strings

    def decrby(self, key: Any, amount: int | None = None) -> Any:
        """Subtract `amount`, or 1; `decr` is the same. What is left."""
        return self.execute("decrby", key, 1 if amount is None else amount)

    def incrby(self, key: Any, amount: int | None = None) -> Any:
        """Add `amount`, or 1; `incr` is the same. The sum."""
        return self.execute("incrby", key, 1 if amount is None else amount)

    decr, incr = decrby, incrby

    def incrbyfloat(self, key: Any, amount: float | None = None) -> Any:
        """The same for a float."""
        return self.execute("incrbyfloat", key, 1 if amount is None else amount)

    def set(
        self,
        name: Any,
        value: Any,
        ex: int | timedelta | None = None,
        px: int | timedelta | None = None,
        nx: bool = False,
        xx: bool = False,
    ) -> Any:
        """`ex` (seconds) or `px` (milliseconds) is how long it is kept; only if there is none (`nx`) or one (`xx`)."""
        pieces: list[Any] = [name, value]
        if ex:
            pieces += ["EX", int(ex.total_seconds()) if isinstance(ex, timedelta) else ex]
        if px:
            pieces += ["PX", px // timedelta(milliseconds=1) if isinstance(px, timedelta) else px]
        if nx:
            pieces.append("NX")
        if xx:
            pieces.append("XX")
        return self.execute("set", *pieces)

    # Hashes

    def hmget(self, key: Any, *fields: Any) -> Any:
        """A dict of the values by `fields`."""
        return self.execute("hmget", key, *fields, fields=fields)

    def hmset(self, key: Any, pairs: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> Any:
        """Set many fields."""
        return self.execute("hmset", key, *(word for pair in dict(pairs).items() for word in pair))

    # Lists

    def blpop(self, keys: Any, timeout: float | None = 0) -> Any:
        """From the first of `keys` that has one; wait `timeout` seconds for it, 0 or None without end."""
        return self.execute("blpop", *_keys(keys), timeout or 0)

    def brpop(self, keys: Any, timeout: float | None = 0) -> Any:
        """The same from the other end."""
        return self.execute("brpop", *_keys(keys), timeout or 0)

    def brpoplpush(self, source: Any, destination: Any, timeout: float | None = 0) -> Any:
        """From the end of one to the beginning of the other; `timeout` as above."""
        return self.execute("brpoplpush", source, destination, timeout or 0)

    # Sorted sets

    def zadd(self, name: Any, *args: Any, **scores: Any) -> Any:
        """`args` are a score and a member, and so on; of `scores`, the names are the members. Raises ValueError."""
        if len(args) % 2:
            raise ValueError("zadd wants as many members as scores")
        return self.execute("zadd", name, *args, *(word for name in scores for word in (scores[name], name)))

    def zinterstore(self, destination: Any, keys: Any, weights: Any = None, aggregate: str | None = None) -> Any:
        """Keep what is in all of `keys`, whose scores are weighted, and SUM, MIN or MAX of them. How many."""
        return self.execute("zinterstore", destination, *_sets(keys, weights, aggregate))

    def zunionstore(self, destination: Any, keys: Any, weights: Any = None, aggregate: str | None = None) -> Any:
        """The same for what is in any of them."""
        return self.execute("zunionstore", destination, *_sets(keys, weights, aggregate))

    def zrange(self, key: Any, start: Any, stop: Any, withscores: bool = False) -> Any:
        """Members, or with scores (score, member) pairs."""
        return self._range("zrange", key, start, stop, withscores)

    def zrevrange(self, key: Any, start: Any, stop: Any, withscores: bool = False) -> Any:
        """The same from the highest score on."""
        return self._range("zrevrange", key, start, stop, withscores)

    def zrangebyscore(
        self,
        key: Any,
        min: Any,
        max: Any,
        withscores: bool = False,
        offset: int | None = None,
        count: int | None = None,
    ) -> Any:
        """Members with scores from `min` to `max`, of which `count` from `offset` on."""
        return self._range("zrangebyscore", key, min, max, withscores, *_limit(offset, count))

    def zrevrangebyscore(
        self,
        key: Any,
        min: Any,
        max: Any,
        withscores: bool = False,
        offset: int | None = None,
        count: int | None = None,
    ) -> Any:
        """The same from `max` down to `min`."""
        return self._range("zrevrangebyscore", key, min, max, withscores, *_limit(offset, count))

    def _range(self, command: str, key: Any, first: Any, last: Any, withscores: bool, *more: Any) -> Any:
        if withscores:
            more = ("WITHSCORES", *more)
        return self.execute(command, key, first, last, *more, withscores=withscores)

    # Scripts, and the rest

    def eval(self, script: Any, keys: Sequence[Any] | None = None, args: Sequence[Any] | None = None) -> Any:
        """Run a Lua `script`."""
        return self.execute("eval", script, len(keys or ()), *(keys or ()), *(args or ()))

    def evalsha(self, sha: Any, keys: Sequence[Any] | None = None, args: Sequence[Any] | None = None) -> Any:
        """Run the Lua script that the server knows by `sha`."""
        return self.execute("evalsha", sha, len(keys or ()), *(keys or ()), *(args or ()))

    def sort(
        self,
        key: Any,
        start: int | None = None,
        num: int | None = None,
        by: Any = None,
        get: Any = None,
        desc: bool = False,
        alpha: bool = False,
        store: Any = None,
        groups: bool = False,
    ) -> Any:
        """Sorted; with `groups` a tuple of all that `get` asks for, for each. Raises ValueError."""
        patterns = [get] if isinstance(get, str) else list(get or ())
        if (start is None) is not (num is None):
            raise ValueError("sort wants start and num, or neither")
        if groups and len(patterns) < 2:
            raise ValueError("groups are made of at least two patterns to get")
        pieces = [] if by is None else ["BY", by]
        if start is not None:
            pieces += ["LIMIT", start, num]
        for pattern in patterns:
            pieces += ["GET", pattern]
        if desc:
            pieces.append("DESC")
        if alpha:
            pieces.append("ALPHA")
        if store is not None:
            pieces += ["STORE", store]
        return self.execute("sort", key, *pieces, groups=len(patterns) if groups else None)


class Pipeline(RedisClient):
    """Commands that are kept until `commit`, and then executed with nothing of anybody else's in between."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store)
        self.reset()

    def execute(self, command: str, *args: Any, **options: Any) -> None:
        """Keep a command for `commit`."""
        self.command_stack.append(((command, *args), options))

    execute_command = execute

    def immediate_execute(self, command: str, *args: Any, **options: Any) -> Any:
        """Any command, now."""
        return self.store.execute(command, *args, **options)

    def reset(self) -> None:
        """Forget what was kept."""
        self.command_stack: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    async def commit(self, raise_on_error: bool = True) -> list[Any]:
        """The replies to all that was kept, in order; the first error among them is raised, or each stands in its
        place."""
        commands = self.command_stack
        self.reset()
        stack = Stack(atomic=True)
        for args, _ in commands:
            stack.stack_call(*args)
        replies = await self.store.execute_pipeline(stack)
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if error is not None and raise_on_error:
            raise error
        return [parse_reply(args, options, reply) for (args, options), reply in zip(commands, replies, strict=True)]


def _keys(keys: Any) -> list[Any]:
    return [keys] if isinstance(keys, str | bytes) else list(keys)


def _limit(offset: int | None, count: int | None) -> tuple[Any, ...]:
    return () if offset is None else ("LIMIT", offset, count)


def _sets(keys: Any, weights: Any, aggregate: str | None) -> list[Any]:
    names = list(keys)
    pieces = [len(names), *names]
    if weights:
        pieces += ["WEIGHTS", *weights]
    if aggregate:
        pieces += ["AGGREGATE", aggregate]
    return pieces
