"""The keyword arguments for a connection, and what each of them is here."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from dataclasses import dataclass
from typing import Any, Final

from .._options import ConnectionKeywords

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 6379
DEFAULT_CONNECT_TIMEOUT: Final = 20
DEFAULT_READ_TIMEOUT: Final = 0
DEFAULT_READ_PAGE_SIZE: Final = 65536
DEFAULT_WRITE_PAGE_SIZE: Final = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """- ``host`` and ``port``, or ``unix_domain_socket``, which wins: where to. Names are looked up without blocking,
      for IPv6 too.
    - ``connect_timeout``: seconds for connecting and logging in together.
    - ``read_timeout``: when something is awaited and nothing was read for so many seconds the connection is ended; a
      command that blocks longer (BLPOP) ends it, too. One that is idle for so long is asked for a sign of life. With 0
      the same is done after 15 seconds, but commands that block may take their time.
    - ``ioloop``: the IOLoop of Tornado to work in; by default the one that runs.
    - ``aggressive_write``: for a `Connection`, to send at once. Clients gather what is called in one turn of the loop.
    - ``read_page_size``, ``write_page_size`` and ``tcp_nodelay`` mean nothing any more: the transport knows by itself,
      and TCP_NODELAY is always on.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    unix_domain_socket: str | None = None
    read_page_size: int = DEFAULT_READ_PAGE_SIZE
    write_page_size: int = DEFAULT_WRITE_PAGE_SIZE
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    tcp_nodelay: bool = False
    aggressive_write: bool = False
    read_timeout: float = DEFAULT_READ_TIMEOUT
    ioloop: Any = None

    @property
    def title(self) -> str:
        """Where to, for people."""
        return self.unix_domain_socket or f"{self.host}:{self.port}"

    def keywords(self, password: str | None, db: int, *, protocol: int) -> ConnectionKeywords:
        """The same for the clients of `waterspout_redis`."""
        keywords = ConnectionKeywords(
            password=password, db=int(db), protocol=protocol, connect_timeout=self.connect_timeout
        )
        if self.unix_domain_socket:
            keywords["unix_socket_path"] = self.unix_domain_socket
        else:
            keywords["host"], keywords["port"] = self.host, int(self.port)
        if self.read_timeout > 0:
            keywords["health_check_interval"] = self.read_timeout
        return keywords

    def loop(self) -> AbstractEventLoop:
        """The event loop to work in: that of ``ioloop``, the running one, or the one that is set to run."""
        if self.ioloop is not None:
            loop: AbstractEventLoop = self.ioloop.asyncio_loop
            return loop
        return asyncio.get_event_loop()
