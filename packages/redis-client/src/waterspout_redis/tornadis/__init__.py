"""A drop-in for tornadis: ``import waterspout_redis.tornadis as tornadis``.

Names, arguments and habits are those of tornadis 0.8: one connection for each `Client`, which takes every command;
errors are returned, not raised; replies are those of RESP2. Its Futures are asyncio's, so that ``yield`` in a
coroutine of Tornado and ``await`` both do. It only translates: the work is done by the package around it.

What is called before an event loop runs needs one that is set, as ``tornado.ioloop.IOLoop.current()`` does. Making a
client or a pool needs none.
"""

from ._client import Client
from ._connection import Connection
from ._errors import ClientError, ConnectionError, TornadisException
from ._pipeline import Pipeline
from ._pool import ClientPool
from ._pubsub import PubSubClient
from ._settings import (
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_HOST,
    DEFAULT_PORT,
    DEFAULT_READ_PAGE_SIZE,
    DEFAULT_READ_TIMEOUT,
    DEFAULT_WRITE_PAGE_SIZE,
)
from ._write_buffer import WriteBuffer

__all__ = [
    "DEFAULT_CONNECT_TIMEOUT",
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "DEFAULT_READ_PAGE_SIZE",
    "DEFAULT_READ_TIMEOUT",
    "DEFAULT_WRITE_PAGE_SIZE",
    "Client",
    "ClientError",
    "ClientPool",
    "Connection",
    "ConnectionError",
    "Pipeline",
    "PubSubClient",
    "TornadisException",
    "WriteBuffer",
]
