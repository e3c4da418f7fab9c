"""The broker in Redis: the only part of the core that needs waterspout-redis."""

from ._pubsub import RedisPubSub

__all__ = ["RedisPubSub"]
