"""How to connect, and as whom, which `Client` and `PubSubClient` have in common; and the bounds of a client."""

from __future__ import annotations

import reprlib
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, TypedDict

from ._address import Address
from ._encoding import checked_encoding
from ._errors import BadAddress
from ._session import MAX_REPLY_BYTES

MiB: Final = 1024 * 1024


class ConnectionKeywords(TypedDict, total=False):
    """The keyword arguments that every client takes."""

    host: str | None
    port: int | None
    db: int | None
    username: str | None
    password: str | None
    unix_socket_path: str | None
    ssl: ssl.SSLContext | bool | None
    protocol: int
    client_name: str | None
    connect_timeout: float
    health_check_interval: float
    keepalive: float | None
    max_reply_bytes: int


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Everything a connection is made from; times in seconds."""

    address: Address
    ssl_context: ssl.SSLContext | None = None
    protocol: int = 3
    client_name: str | None = None
    connect_timeout: float = 5.0
    health_check_interval: float = 15.0
    keepalive: float | None = 15.0
    max_reply_bytes: int = MAX_REPLY_BYTES

    @classmethod
    def parse(
        cls,
        url: str | None,
        *,
        host: str | None = None,
        port: int | None = None,
        db: int | None = None,
        username: str | None = None,
        password: str | None = None,
        unix_socket_path: str | None = None,
        ssl: ssl.SSLContext | bool | None = None,
        protocol: int = 3,
        client_name: str | None = None,
        connect_timeout: float = 5.0,
        health_check_interval: float = 15.0,
        keepalive: float | None = 15.0,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> ConnectionOptions:
        """Read a URL and keyword options; an option that is given wins. Raises `BadAddress` or ValueError."""
        address = Address.parse(
            url,
            host=host,
            port=port,
            db=db,
            username=username,
            password=password,
            unix_socket_path=unix_socket_path,
            tls=None if ssl is None else ssl is not False,
        )
        if protocol not in (2, 3):
            raise ValueError("protocol must be 2 or 3")
        if client_name is not None and (not client_name.isprintable() or " " in client_name or not client_name):
            raise BadAddress("client_name must be printable and hold no spaces")
        if not (connect_timeout > 0 and health_check_interval > 0):
            raise ValueError("connect_timeout and health_check_interval must be above 0 seconds")
        if keepalive is not None and not keepalive > 0:
            raise ValueError("keepalive must be above 0 seconds, or None")
        if max_reply_bytes < 1:
            raise ValueError("max_reply_bytes must be at least 1")
        context = ssl if not isinstance(ssl, bool | None) else _default_context(address)
        return cls(
            address, context, protocol, client_name, connect_timeout, health_check_interval, keepalive, max_reply_bytes
        )


def _default_context(address: Address) -> ssl.SSLContext | None:
    return ssl.create_default_context() if address.tls else None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, how much, how often: see `Client` for what each means."""

    timeout: float | None = 10.0
    max_in_flight: int = 4096
    max_in_flight_bytes: int = 16 * MiB
    retry: int = 3

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError("timeout must be above 0 seconds, or None")
        if self.max_in_flight < 1 or self.max_in_flight_bytes < 1:
            raise ValueError("max_in_flight and max_in_flight_bytes must be at least 1")
        if self.retry < 0:
            raise ValueError("retry must be 0 or more")


# What an option must be, in words, and the types that are that; where None only says "not given", the words leave it
# out. A bool is an int nowhere here.
_STR: Final = ("a str", (str, NoneType))
_INT: Final = ("an int", (int,))
_INT_OR_NOT_GIVEN: Final = ("an int", (int, NoneType))
_SECONDS: Final = ("a number of seconds", (int, float))
_SECONDS_OR_NONE: Final = ("a number of seconds, or None", (int, float, NoneType))
_BOOL: Final = ("True or False", (bool,))
_CALLBACK: Final = ("a function", (Callable, NoneType))

_TYPES: Final[dict[str, tuple[str, tuple[Any, ...]]]] = {
    "url": _STR,
    "host": _STR,
    "port": _INT_OR_NOT_GIVEN,
    "db": _INT_OR_NOT_GIVEN,
    "username": _STR,
    "password": _STR,
    "unix_socket_path": _STR,
    "ssl": ("True, False or an ssl.SSLContext", (bool, ssl.SSLContext, NoneType)),
    "protocol": _INT,
    "client_name": _STR,
    "connect_timeout": _SECONDS,
    "health_check_interval": _SECONDS,
    "keepalive": _SECONDS_OR_NONE,
    "max_reply_bytes": _INT,
    "timeout": _SECONDS_OR_NONE,
    "max_in_flight": _INT,
    "max_in_flight_bytes": _INT,
    "retry": _INT,
    "max_leases": _INT,
    "on_connection": _CALLBACK,
    "on_command": _CALLBACK,
    "on_state": _CALLBACK,
    "max_messages": _INT,
    "max_bytes": _INT,
    "max_size": ("an int, or None", (int, NoneType)),
    "client_timeout": _SECONDS_OR_NONE,
    "wait_timeout": _SECONDS_OR_NONE,
    "autoclose": _BOOL,
    "decode_responses": ("True or False", (bool, NoneType)),
}

# These may hold a password, and are never shown.
_SECRET: Final = frozenset({"url", "password"})

# How redis-py's options are written here.
_REDIS_PYS: Final = {
    "decode_responses": 'decode="utf-8"',
    "encoding": "decode",
    "max_connections": "max_leases",
    "retry_on_timeout": "retry",
    "socket_connect_timeout": "connect_timeout",
    "socket_keepalive": "keepalive",
    "socket_timeout": "timeout",
    "ssl_ca_certs": "ssl=ssl.create_default_context(cafile=...)",
}


def check_options(
    of: object,
    options: Mapping[str, object],
    /,
    *,
    takes: Collection[str] = ConnectionKeywords.__annotations__.keys(),
    **named: object,
) -> None:
    """Refuse what the client `of` cannot be made with: one of `options` that is neither in `takes` nor in `named`,
    and a value of a wrong type in any. Raises TypeError, and LookupError for ``decode``."""
    takes = {*takes, *named}
    for name in options:
        if name not in takes:
            here = _REDIS_PYS.get(name, "")
            hint = f"; redis-py's is {here} here" if here.partition("=")[0] in takes else ""
            raise TypeError(f"{type(of).__name__} has no option {name!r}{hint}")
    for name, value in {**named, **options}.items():
        if name == "decode":
            checked_encoding(value)  # type: ignore[arg-type]  # it tells
            continue
        words, types = _TYPES[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            plain = isinstance(value, str | int | float | None) and name not in _SECRET
            raise TypeError(f"{name} must be {words}, not {reprlib.repr(value) if plain else type(value).__name__}")
