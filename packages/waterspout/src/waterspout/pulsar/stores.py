"""A drop-in for the stores of ``pulsar.apps.data``: `create_store` makes one of a URL, and from it come a client, a
PubSub, and Channels.

Nothing is connected before it is used, so a store can be made before a loop runs. ``redis://`` is a server (``valkey://``
says the same), with TLS ``rediss://``, and ``memory://`` is this process: whoever has the same store hears one another.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Final

import waterspout_core
from waterspout_core import Leases, MemoryBroker, MemoryPubSub, PubSubProtocol, open_pubsub
from waterspout_redis import Client
from waterspout_redis import Pipeline as Stack

from ._errors import ImproperlyConfigured, NoSuchStore, builtin_errors
from ._replies import parse_reply
from ._urls import Host, build_store_url, location, parse_store_url
from .channels import Channels
from .client import Pipeline, RedisClient
from .pubsub import MessageProtocol, PubSub

__all__ = [
    "MemoryStore",
    "RedisStore",
    "RemoteStore",
    "Store",
    "create_store",
    "data_stores",
    "parse_store_url",
    "register_store",
]

_TIMES: Final = ("timeout", "connect_timeout", "health_check_interval", "keepalive")
"""Options in seconds."""

data_stores: Final[dict[str, str]] = {}
"""The dotted path of each registered store, by the scheme of its URLs."""


def register_store(name: str, dotted_path: str) -> None:
    """From now on URLs with the scheme `name` are those of the store at `dotted_path` ("package.module:Class")."""
    data_stores[name] = dotted_path


def create_store(url: str | Store, **options: Any) -> Store:
    """The store at `url`; a store is its own. `options`, such as ``database``, ``user``, ``password``, ``namespace``
    or ``pool_size``, win over the URL.

    Raises `BadStoreURL`, `NoSuchStore`, `ImproperlyConfigured`.
    """
    if isinstance(url, Store):
        return url
    scheme, host, params = parse_store_url(url)
    dotted_path = data_stores.get(scheme)
    if not dotted_path:
        raise NoSuchStore(f"no store is registered for {scheme}://")
    made: Store = _attribute(dotted_path)(scheme, host, **{**params, **options})
    return made


def _attribute(dotted_path: str) -> Any:
    module, _, name = dotted_path.rpartition(":" if ":" in dotted_path else ".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(f"there is no store at {dotted_path!r}: {error}") from error


class Store:
    """What a store is made from; `_init` is the hook that gets the options which are not named here.

    `name` is the scheme of its URL, `host` a name, or a name and a port. `encoding` is that of text.
    """

    def __init__(
        self,
        name: str,
        host: Host = "",
        loop: Any = None,  # the running one is used
        *,
        database: int | str | None = None,
        user: str | None = None,
        password: str | None = None,
        encoding: str | None = None,
        namespace: str | None = None,
        **options: Any,
    ) -> None:
        if password and not user:
            raise ImproperlyConfigured("a password needs a user too")
        self.name = name
        self.encoding = encoding or "utf-8"
        self.urlparams: dict[str, str] = {"namespace": namespace} if namespace else {}
        self.logger = logging.getLogger("waterspout.pulsar")
        self._host, self._user, self._password = host, user, password
        self._database = _number(database)
        self._init(**options)

    def _init(self, **options: Any) -> None:
        """A hook for the options of this kind of store."""

    @property
    def database(self) -> int:
        """Which database; set it, and whatever is connected from now on uses the other one."""
        return self._database

    @database.setter
    def database(self, value: int | str) -> None:
        self._database = _number(value)

    @property
    def dns(self) -> str:
        """The store's URL, the password included: `create_store` makes the same store of it."""
        return self.buildurl()

    @property
    def dsn(self) -> str:
        """The same, by its proper name."""
        return self.dns

    @property
    def namespace(self) -> str:
        """What stands before the names of keys: the ``namespace`` of the URL and a colon, or nothing."""
        namespace = self.urlparams.get("namespace")
        return f"{namespace}:" if namespace else ""

    def buildurl(self, **params: str) -> str:
        """The store's URL, with `params` in its query."""
        return self._build(self._password, {**self.urlparams, **params})

    def shown(self, **params: str) -> str:
        """The same with stars for the password."""
        return self._build("***" if self._password else None, {**self.urlparams, **params})

    def __str__(self) -> str:
        return self.shown()

    def __repr__(self) -> str:
        return f'Store(dns="{self}")'

    def _build(self, password: str | None, params: dict[str, str]) -> str:
        return build_store_url(
            self.name, self._host, user=self._user, password=password, database=self._database, params=params
        )

    def client(self) -> RedisClient:
        """For commands."""
        raise NotImplementedError(f"{self.name}:// has no client for commands")

    def pipeline(self) -> Pipeline:
        """For commands that are sent together."""
        raise NotImplementedError(f"{self.name}:// has no client for commands")

    def execute(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """One command."""
        raise NotImplementedError(f"{self.name}:// has no client for commands")

    def broker(self, protocol: PubSubProtocol | None = None) -> waterspout_core.PubSub:
        """A PubSub of the core, on which those of pulsar stand."""
        raise NotImplementedError(f"{self.name}:// has no publish and subscribe")

    @property
    def leases(self) -> Leases:
        """What locks stand on."""
        raise NotImplementedError(f"{self.name}:// has no locks")

    def pubsub(self, protocol: MessageProtocol | None = None) -> PubSub:
        """To publish and subscribe, raw bytes or what `protocol` makes of them."""
        return PubSub(self, protocol)

    def channels(self, protocol: MessageProtocol | None = None, **options: Any) -> Channels:
        """Channels with events; see there."""
        return Channels(self.pubsub(protocol), **options)

    async def ping(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    async def flush(self) -> bool:
        """Remove all keys of the database."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close its connections; not those of its PubSubs and Channels, which have their own `close`."""


RemoteStore = Store
"""The same, by its other name in pulsar."""


class RedisStore(Store):
    """A Redis or Valkey server.

    `pool_size` is how many connections blocking commands and locks may have at most; all others share one. What
    pulsar does not know (``ssl``, ``timeout``, ``connect_timeout`` …) goes to its connections; times may stand in the
    URL's query, too. As in pulsar the user of the URL is not sent to the server, only the password: to log in as an ACL
    user, give ``username``.
    """

    def _init(
        self,
        pool_size: int | str = 10,
        decode_responses: bool = False,
        protocol_factory: Callable[..., Any] | None = None,  # this and the next one are pulsar's own business
        parser_class: Any = None,
        **connection: Any,
    ) -> None:
        self._decode = self.encoding if decode_responses else None
        self._clients: dict[int, Client] = {}  # by database
        self._brokers: dict[int, waterspout_core.PubSub] = {}
        if "db" in connection:
            raise ImproperlyConfigured("the database of a store is its path or its option database, not db")
        try:
            self._pool_size = int(pool_size)
            times = {name: float(connection[name]) for name in _TIMES if isinstance(connection.get(name), str)}
            self._connection = {"password": self._password, **connection, **times}
            self._made()  # now, rather than at the first use, to be told what cannot be used
            self.broker()
        except (TypeError, ValueError, LookupError) as error:
            raise ImproperlyConfigured(f"no store can be made like this: {error}") from error

    def client(self) -> RedisClient:
        return RedisClient(self)

    def pipeline(self) -> Pipeline:
        return Pipeline(self)

    async def execute(self, *args: Any, **options: Any) -> Any:
        """One command. Raises `ConnectionError`, `TimeoutError`, `ResponseError`."""
        with builtin_errors():
            reply = await self._commands.call(*args)
        return parse_reply(args, options, reply)

    async def execute_pipeline(self, stack: Stack) -> list[Any]:
        """The raw replies to all of `stack`."""
        with builtin_errors():
            return await self._commands.call(stack)

    @property
    def leases(self) -> Leases:
        broker = self._brokers.get(self.database)
        if broker is None:
            broker = self._brokers[self.database] = self.broker()
        return broker.leases

    def broker(self, protocol: PubSubProtocol | None = None) -> waterspout_core.PubSub:
        return open_pubsub(self._url, protocol=protocol, **self._connection)

    @property
    def _commands(self) -> Client:
        client = self._clients.get(self.database)
        if client is None:
            client = self._clients[self.database] = self._made()
        return client

    def _made(self) -> Client:
        # RESP2: its replies look as pulsar's do.
        options = {"protocol": 2, "max_leases": self._pool_size, "decode": self._decode, **self._connection}
        return Client(self._url, **options)

    @property
    def _url(self) -> str:
        """Where the server is: who we are there is told by options."""
        return f"{self.name}://{location(self._host) or '127.0.0.1'}/{self.database}"

    async def ping(self) -> bool:
        return bool(await self.execute("PING"))

    async def flush(self) -> bool:
        return bool(await self.execute("FLUSHDB"))

    async def close(self) -> None:
        opened: list[Client | waterspout_core.PubSub] = [*self._clients.values(), *self._brokers.values()]
        self._clients.clear()
        self._brokers.clear()
        for one in opened:
            await one.aclose()


class MemoryStore(Store):
    """This process: no server, no keys, and no commands."""

    def _init(self, **options: Any) -> None:
        self._broker = MemoryBroker()

    def broker(self, protocol: PubSubProtocol | None = None) -> waterspout_core.PubSub:
        return MemoryPubSub(self._broker, protocol=protocol)

    @property
    def leases(self) -> Leases:
        return self.broker().leases

    async def ping(self) -> bool:
        return True

    async def flush(self) -> bool:
        return True


def _number(database: int | str | None) -> int:
    try:
        return int(database or 0)
    except ValueError:
        raise ImproperlyConfigured(f"the database is a number, not {database!r}") from None


register_store("redis", "waterspout.pulsar.stores:RedisStore")
register_store("rediss", "waterspout.pulsar.stores:RedisStore")
register_store("valkey", "waterspout.pulsar.stores:RedisStore")
register_store("valkeys", "waterspout.pulsar.stores:RedisStore")
register_store("memory", "waterspout.pulsar.stores:MemoryStore")
