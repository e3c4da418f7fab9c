"""How to connect, and as whom: what `Client` and `PubSubClient` have in common."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TypedDict

from ._address import Address
from ._errors import BadAddress


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


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Everything a connection is made from; times in seconds."""

    address: Address
    ssl_context: ssl.SSLContext | None = None
    protocol: int = 3
    client_name: str | None = None
    connect_timeout: float = 5.0
    health_check_interval: float = 15.0

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
        if connect_timeout <= 0 or health_check_interval <= 0:
            raise ValueError("connect_timeout and health_check_interval must be above 0 seconds")
        context = ssl if not isinstance(ssl, bool | None) else _default_context(address)
        return cls(address, context, protocol, client_name, connect_timeout, health_check_interval)


def _default_context(address: Address) -> ssl.SSLContext | None:
    return ssl.create_default_context() if address.tls else None
