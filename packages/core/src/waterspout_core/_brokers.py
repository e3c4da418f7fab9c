"""Brokers by URL: the one place where it is decided which of them is there."""

from __future__ import annotations

from typing import Any, Final

from ._memory import MemoryPubSub
from ._pubsub import PubSub, PubSubProtocol

REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def open_pubsub(url: str, *, protocol: PubSubProtocol | None = None, **options: Any) -> PubSub:
    """A `PubSub` for `url`: `memory://` is this process; `redis://`, `rediss://` and `unix://` a Redis server.

    `options` go to the Redis client. Nothing is connected before it is used, so no loop needs to run yet. Raises
    `ValueError` for a URL that cannot be used and `ImportError` where the Redis client is not installed.
    """
    if url == "memory://":
        return MemoryPubSub(protocol=protocol)
    if not url.startswith(REDIS_SCHEMES):
        raise ValueError(f"no broker at {url!r}: it is memory://, or a Redis at redis://, rediss:// or unix://")
    try:
        from ._redis import RedisPubSub
    except ModuleNotFoundError as error:
        if error.name != "waterspout_redis":
            raise
        raise ImportError("a Redis broker needs waterspout-redis: pip install 'waterspout-core[redis]'") from error
    return RedisPubSub(url, protocol=protocol, **options)
