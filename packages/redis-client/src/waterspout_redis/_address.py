"""Where a server is and who we are there: read from a URL, from options, or from both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from ._errors import BadAddress

DEFAULT_PORT: Final = 6379

_SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "unix")


@dataclass(frozen=True, slots=True)
class Address:
    """One server, one database, one user. ``str()`` hides the password; ``repr()`` leaves it out."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    path: str | None = None
    """A unix socket; `host` and `port` mean nothing then."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False

    def __post_init__(self) -> None:
        if self.path is None and not self.host:
            raise BadAddress("the host is empty")
        if self.path is not None and not self.path:
            raise BadAddress("the path of the unix socket is empty")
        if self.path is not None and self.tls:
            raise BadAddress("TLS over a unix socket is not supported")
        if not 1 <= self.port <= 65535:
            raise BadAddress("the port must be from 1 to 65535")
        if self.db < 0:
            raise BadAddress("the database must be 0 or more")
        if self.username is not None and self.password is None:
            raise BadAddress("a username needs a password too")

    @classmethod
    def parse(
        cls,
        url: str | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        db: int | None = None,
        username: str | None = None,
        password: str | None = None,
        unix_socket_path: str | None = None,
        tls: bool | None = None,
    ) -> Address:
        """Read ``redis://[[user]:password@]host[:port][/db]``, the same with ``rediss://`` for TLS,
        ``unix://[[user]:password@]/path[?db=n]``, or the options alone. ``valkey://`` and ``valkeys://``
        mean the same as ``redis://`` and ``rediss://``. An option that is given wins over the URL. User,
        password and path may be percent-encoded.

        Raises `BadAddress`, which says what is wrong.

        >>> str(Address.parse("redis://app:secret@cache:7000/2"))
        'redis://app:***@cache:7000/2'
        >>> str(Address.parse(host="cache", db=1))
        'redis://cache:6379/1'
        """
        base = cls() if url is None else _parse_url(url)
        if unix_socket_path is not None and (host is not None or port is not None):
            raise BadAddress("give either unix_socket_path or host and port")
        path = unix_socket_path
        if path is None and host is None and port is None:
            path = base.path
        return cls(
            host=base.host if host is None else host,
            port=base.port if port is None else port,
            path=path,
            db=base.db if db is None else db,
            username=base.username if username is None else username,
            password=base.password if password is None else password,
            tls=base.tls if tls is None else tls,
        )

    def __str__(self) -> str:
        user = "" if self.password is None else f"{quote(self.username or '', safe='')}:***@"
        if self.path is not None:
            return f"unix://{user}{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        db = f"/{self.db}" if self.db else ""
        return f"{'rediss' if self.tls else 'redis'}://{user}{host}:{self.port}{db}"


def _parse_url(url: str) -> Address:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        # A scheme may be shown; anything else may hold the password.
        instead = f", not with {scheme[:20]}://" if separator else ""
        raise BadAddress(f"the URL must begin with redis://, rediss://, valkey://, valkeys:// or unix://{instead}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad("the host or the port of the URL is not valid", url) from None
    if parts.fragment:
        raise _bad("the URL has a fragment", url)
    query = _query(parts, url)
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if parts.scheme == "unix":
        if parts.hostname:
            raise _bad("a unix URL has no host: write unix:///path", url)
        if not parts.path.strip("/"):
            raise _bad("the URL names no unix socket", url)
        db = _db(query.get("db"), url)
        return Address(path=unquote(parts.path), db=db, username=username, password=password)
    if not parts.hostname:
        raise _bad("the URL names no host", url)
    if port == 0:
        raise _bad("the port must be from 1 to 65535", url)
    in_path = parts.path.strip("/") or None
    if in_path is not None and "db" in query:
        raise _bad("the URL names the database twice", url)
    return Address(
        host=unquote(parts.hostname),
        port=port or DEFAULT_PORT,
        db=_db(in_path or query.get("db"), url),
        username=username,
        password=password,
        tls=parts.scheme in ("rediss", "valkeys"),
    )


def _query(parts: SplitResult, url: str) -> dict[str, str]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs) or query.keys() - {"db"}:
        raise _bad("the URL's query may hold db once, and nothing else", url)
    return query


def _db(text: str | None, url: str) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise _bad("the database must be a number", url)
    return int(text)


def _bad(what: str, url: str) -> BadAddress:
    # Where there is a user part, a stray "/", "?" or "#" may have put a piece of the password anywhere.
    if "@" in url:
        return BadAddress(f"{what} (in a password, write / ? # @ : as %2F %3F %23 %40 %3A)")
    return BadAddress(f"{what}: {url!r}")
