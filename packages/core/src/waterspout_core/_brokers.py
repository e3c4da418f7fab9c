"""Brokers by URL: the one place where it is decided which of them is there."""

from __future__ import annotations

from typing import Any, Final

from ._history import History
from ._memory import MemoryPubSub
from ._pubsub import PubSub, PubSubProtocol

REDIS_SCHEMES: Final = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")


def open_pubsub(
    url: str,
    *,
    protocol: PubSubProtocol | None = None,
    history: int = 0,
    retention: float = 3600.0,
    **options: Any,
) -> PubSub:
    """A `PubSub` for `url`: `memory://` is this process; `redis://`, `rediss://` and `unix://` a Redis server, of which
    `valkey://` and `valkeys://` are other names.

    Of each channel that stores are fed by, the newest `history` messages are kept for `retention` seconds; 0 keeps
    none. `options` go to `RedisPubSub` and the Redis client. Nothing is connected before it is used, so no loop needs
    to run yet. Raises `ValueError` for a URL or numbers that cannot be used and `ImportError` where the Redis client is
    not installed.
    """
    if history < 0:
        raise ValueError(f"history is a number of messages, 0 for none, not {history}")
    kept = History(history, retention) if history else None
    if url == "memory://":
        return MemoryPubSub(protocol=protocol, history=kept)
    if not url.startswith(REDIS_SCHEMES):
        raise ValueError(
            f"no broker at {url!r}: it is memory://, or a server at redis://, rediss://, valkey://, valkeys:// or unix://"
        )
    try:
        from ._redis import RedisPubSub
    except ModuleNotFoundError as error:
        if error.name != "waterspout_redis":
            raise
        raise ImportError("a Redis broker needs waterspout-redis: pip install 'waterspout-core[redis]'") from error
    return RedisPubSub(url, protocol=protocol, history=kept, **options)
