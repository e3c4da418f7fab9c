"""The errors of tornadis, which are results, and what they are made from.

::

    TornadisException
    ├── ConnectionError     no connection, or it ended before the answer came
    └── ClientError         the server answered with an error, or the call made no sense

Where there is an error of `waterspout_redis` behind one it is its ``__cause__``.
"""

from __future__ import annotations

from typing import Any

from .._errors import ConnectError, RedisError, ResponseError


class TornadisException(Exception):
    """The base of what is returned in place of a reply."""


class ConnectionError(TornadisException):
    """There is no connection, or it ended before the answer came."""


class ClientError(TornadisException):
    """The server answered with an error, or the call made no sense."""


def as_result(reply: Any) -> Any:
    """A reply with each error in it, however deep, as a ClientError. Lists are changed where they are."""
    if isinstance(reply, ResponseError):
        error = ClientError(str(reply))
        error.__cause__ = reply
        return error
    if isinstance(reply, list):
        for place, item in enumerate(reply):
            if isinstance(item, ResponseError | list):
                reply[place] = as_result(item)
    return reply


def no_reply(error: RedisError) -> ConnectionError:
    """What stands for a reply that never came."""
    result = ConnectionError("impossible to connect" if isinstance(error, ConnectError) else "closed connection")
    result.__cause__ = error
    return result
