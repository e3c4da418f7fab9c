"""pulsar's exceptions, as one tree, and the packages' own told in the way that pulsar tells them.

PulsarException
├── ImproperlyConfigured    a store cannot be made like this
│   ├── BadStoreURL         not for this URL (also an AssertionError, which it is in pulsar, and a ValueError)
│   └── NoSuchStore         no store is registered for the scheme
└── ProtocolError           a message cannot be decoded (also a ValueError)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from waterspout_core import BrokerError
from waterspout_redis import CallTimeout, ClosedError, ConnectError, ConnectionLost, PoolTimeout, RedisError


class PulsarException(Exception):
    """Base of the errors that pulsar has a name for."""


class ImproperlyConfigured(PulsarException):
    """What was given cannot be used."""


class BadStoreURL(ImproperlyConfigured, AssertionError, ValueError):
    """The URL of a store makes no sense. The message never holds the password."""


class NoSuchStore(ImproperlyConfigured):
    """No store is registered for the scheme of the URL."""


class ProtocolError(PulsarException, ValueError):
    """To be raised by a protocol's `decode`: this is no message, it is logged and dropped."""


@contextmanager
def builtin_errors() -> Iterator[None]:
    """Raise what pulsar's callers wait for: `ConnectionRefusedError` where nobody answers, `ConnectionError` and
    `TimeoutError` for what broke on the way, and the server's own refusals as `ResponseError`."""
    try:
        yield
    except (BrokerError, RedisError) as error:
        cause = error.__cause__ if isinstance(error, BrokerError) else error
        match cause:
            case ConnectError():
                raise ConnectionRefusedError(str(error)) from error
            case ConnectionLost() | ClosedError() | None:
                raise ConnectionError(str(error)) from error
            case CallTimeout() | PoolTimeout():
                raise TimeoutError(str(error)) from error
        raise cause from None
