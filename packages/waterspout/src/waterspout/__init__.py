"""Realtime publish/subscribe for Tornado, with Redis between the machines: all four packages under one name."""

from waterspout_channels import Channels
from waterspout_core import (
    BaseStore,
    DataStore,
    Gap,
    MemoryPubSub,
    Message,
    Position,
    PubSub,
    QueueStore,
    RedisStore,
    open_pubsub,
)
from waterspout_handlers import (
    Behind,
    Connections,
    EventSource,
    LineClient,
    LineServer,
    LongPoll,
    PublishHandler,
    WebSocketSubscriber,
)
from waterspout_redis import Client, Pipeline, PubSubClient, RedisError

__all__ = [
    "BaseStore",
    "Behind",
    "Channels",
    "Client",
    "Connections",
    "DataStore",
    "EventSource",
    "Gap",
    "LineClient",
    "LineServer",
    "LongPoll",
    "MemoryPubSub",
    "Message",
    "Pipeline",
    "Position",
    "PubSub",
    "PubSubClient",
    "PublishHandler",
    "QueueStore",
    "RedisError",
    "RedisStore",
    "WebSocketSubscriber",
    "open_pubsub",
]
__version__ = "0.1.0"
