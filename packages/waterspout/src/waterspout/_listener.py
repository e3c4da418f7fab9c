"""A listening socket for when file descriptors run out."""

from __future__ import annotations

import errno
import logging
import socket
from typing import Any, Final

from tornado.ioloop import IOLoop

PAUSE: Final = 1.0

logger: Final = logging.getLogger("waterspout.server")


class Listener(socket.socket):
    """A listening socket that waits a moment when the process is out of file descriptors.

    Tornado would be called again at once, for ever, and log a traceback each time.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            logger.error("cannot accept connections for now: %s (see ulimit -n)", error.strerror)
            loop = IOLoop.current()
            loop.update_handler(self.fileno(), 0)
            loop.call_later(PAUSE, self._go_on, loop)
            raise BlockingIOError from None

    def _go_on(self, loop: IOLoop) -> None:
        if self.fileno() != -1:
            loop.update_handler(self.fileno(), IOLoop.READ)
