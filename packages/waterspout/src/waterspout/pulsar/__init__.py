"""A drop-in for ``pulsar.apps.data``: replace it by ``waterspout.pulsar`` in the imports of stores and Channels.

Names, arguments, habits, and what travels over Redis are those of pulsar 2.0, so old and new processes hear one
another; what was broken there works. It only translates: the work is done by the packages around it.
"""

from waterspout_redis import ResponseError

from ._errors import BadStoreURL, ImproperlyConfigured, NoSuchStore, ProtocolError, PulsarException
from .channels import CallbackError, Channels, Json, StatusType
from .client import Pipeline, RedisClient
from .locks import Lock, LockError
from .pubsub import Event, MessageProtocol, PubSub, PubSubClient
from .stores import (
    MemoryStore,
    RedisStore,
    RemoteStore,
    Store,
    create_store,
    data_stores,
    parse_store_url,
    register_store,
)

__all__ = [
    "BadStoreURL",
    "CallbackError",
    "Channels",
    "Event",
    "ImproperlyConfigured",
    "Json",
    "Lock",
    "LockError",
    "MemoryStore",
    "MessageProtocol",
    "NoSuchStore",
    "Pipeline",
    "ProtocolError",
    "PubSub",
    "PubSubClient",
    "PulsarException",
    "RedisClient",
    "RedisStore",
    "RemoteStore",
    "ResponseError",
    "StatusType",
    "Store",
    "create_store",
    "data_stores",
    "parse_store_url",
    "register_store",
]
