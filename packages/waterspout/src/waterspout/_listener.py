"""Listening sockets, also for when file descriptors run out."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer

PAUSE: Final = 1.0
"""Seconds."""

BACKLOG: Final = 4096
"""Connections that wait to be accepted, as far as the system allows: after a restart all clients come at once."""

logger: Final = logging.getLogger("waterspout.server")


class Listener(socket.socket):
    """A listening socket that waits a moment when the process is out of file descriptors.

    Tornado would be called again at once, for ever, and log a traceback each time. With TLS it logs one, too, for each
    that has gone again before it is accepted, as port scanners do.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            logger.error("cannot accept connections for now: %s (see ulimit -n)", error.strerror)
            loop = IOLoop.current()
            loop.update_handler(self.fileno(), 0)
            loop.call_later(PAUSE, self._go_on, loop)
            raise BlockingIOError from None
        try:
            connection.getpeername()
        except OSError:  # it has gone
            connection.close()
            raise ConnectionAbortedError from None  # on which Tornado takes the next one
        return connection, address

    def _go_on(self, loop: IOLoop) -> None:
        if self.fileno() != -1:
            loop.update_handler(self.fileno(), IOLoop.READ)


def listen(server: TCPServer, host: str, port: int) -> str:
    """Let `server` listen, and return its address as URLs name it. Port 0 takes a free one. Raises `OSError`."""
    sockets = [Listener(fileno=found.detach()) for found in bind_sockets(port, host, backlog=BACKLOG)]
    server.add_sockets(sockets)
    return f"{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}"


def allow_descriptors() -> float:
    """Let this process have as many file descriptors as it may: where it is not told otherwise it starts with few.

    Returns how many that are; they may be without a limit.
    """
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS says "unlimited", and then refuses that.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft
