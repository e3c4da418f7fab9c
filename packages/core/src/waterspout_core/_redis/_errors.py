"""The Redis client's errors, as the core's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from waterspout_redis import (
    BusyError,
    ClosedError,
    ClusterDownError,
    ConnectError,
    LoadingError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
    UsageError,
)

from .._errors import BrokerError

T = TypeVar("T")

_TRANSIENT = (
    BusyError,
    ClusterDownError,
    LoadingError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)


def is_final(error: RedisError) -> bool:
    """Whether asking once more cannot help: the server understood and refused."""
    return isinstance(error, ResponseError) and not isinstance(error, _TRANSIENT)


def translated_error(error: BaseException) -> BaseException:
    """`error`, as the core's if it is the Redis client's."""
    if isinstance(error, RedisError):
        final = is_final(error) or isinstance(error, ClosedError | UsageError)
        final = final or (isinstance(error, ConnectError) and error.hopeless)
        translated = BrokerError(str(error), maybe_done=error.maybe_executed, final=final)
        translated.__cause__ = error
        return translated
    return error


def translated(answer: asyncio.Future[Any], into: Callable[[Any], T] = lambda result: result) -> asyncio.Future[T]:
    """`answer`, with the core's errors, and its result made `into` what is wanted. It need not be awaited, and may be
    cancelled."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def answered(answer: asyncio.Future[Any]) -> None:
        error = None if answer.cancelled() else answer.exception()
        if future.done():
            return
        if answer.cancelled():
            future.cancel()
        elif error is None:
            future.set_result(into(answer.result()))
        else:
            future.set_exception(translated_error(error))

    answer.add_done_callback(answered)
    return future
