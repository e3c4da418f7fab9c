"""The URLs of stores: ``redis://user:password@host:port/database?namespace=x``."""

from __future__ import annotations

from typing import Final, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ._errors import BadStoreURL

Host: TypeAlias = str | tuple[str, int]
"""A host with its port, or without."""

_ENCODED: Final = " (in user and password, write / ? # @ : as %2F %3F %23 %40 %3A)"


def parse_store_url(url: str) -> tuple[str, Host, dict[str, str]]:
    """The scheme of `url`, its host, and everything else by name: ``user``, ``password``, ``database``, and the query.

    User and password may be percent-encoded. Raises `BadStoreURL`.

    >>> parse_store_url("redis://app:secret@cache:7000/2?namespace=x")
    ('redis', ('cache', 7000), {'namespace': 'x', 'database': '2', 'user': 'app', 'password': 'secret'})
    """
    if not url:
        raise BadStoreURL("no URL of a store is given")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadStoreURL(f"the host or the port of the store's URL is not valid{_ENCODED}") from None
    user, at, address = parts.netloc.rpartition("@")
    if not parts.scheme:
        raise BadStoreURL("the store's URL has no scheme, such as redis://")
    if parts.fragment:
        raise BadStoreURL(f"the store's URL must not have a fragment{_ENCODED}")
    if "@" in user or "@" in parts.path or user.count(":") > 1:
        raise BadStoreURL(f"the store's URL has one user:password@{_ENCODED}")
    params = dict(parse_qsl(parts.query))
    if database := parts.path[1:]:
        if parts.scheme == "unix":
            raise BadStoreURL("a Redis behind a Unix socket is redis:// with the option unix_socket_path")
        if "/" in database:
            raise BadStoreURL("the path of the store's URL is one database, without a further /")
        params["database"] = database
    if at:
        name, colon, password = user.partition(":")
        params["user"] = unquote(name)
        if colon:
            params["password"] = unquote(password)
    if port is None:
        return parts.scheme, address.removesuffix(":"), params
    return parts.scheme, (parts.hostname or "", port), params


def build_store_url(
    scheme: str, host: Host, *, user: str | None, password: str | None, database: object, params: dict[str, str]
) -> str:
    """What `parse_store_url` reads."""
    login = ""
    if user:
        login = quote(user, safe="") + (f":{quote(password, safe='*')}" if password else "") + "@"
    path = f"/{database}" if database else ""
    query = f"?{urlencode(params)}" if params else ""
    return f"{scheme}://{login}{location(host)}{path}{query}"


def location(host: Host) -> str:
    """`host` as it stands in a URL."""
    if isinstance(host, str):
        return host
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
