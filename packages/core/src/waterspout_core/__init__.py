"""A channel is a log, a store keeps the log, a subscriber is a cursor in it."""

from ._brokers import open_pubsub
from ._channel_stores import ChannelStore, RedisStore
from ._envelope import Envelope
from ._errors import BadChannel, BadMessage, BadPosition, BrokerError, TooManyChannels, WaterspoutError
from ._log import Log, MiB
from ._memory import MemoryBroker, MemoryPubSub
from ._message import GAP_EVENT, Entry, Gap, Message, Payload, check_channel, check_event, to_json
from ._position import Position, from_id, new_epoch, to_id
from ._pubsub import PubSub, PubSubProtocol
from ._stores import BaseStore, DataStore, QueueStore, Source, Subscriber

__all__ = [
    "GAP_EVENT",
    "BadChannel",
    "BadMessage",
    "BadPosition",
    "BaseStore",
    "BrokerError",
    "ChannelStore",
    "DataStore",
    "Entry",
    "Envelope",
    "Gap",
    "Log",
    "MemoryBroker",
    "MemoryPubSub",
    "Message",
    "MiB",
    "Payload",
    "Position",
    "PubSub",
    "PubSubProtocol",
    "QueueStore",
    "RedisStore",
    "Source",
    "Subscriber",
    "TooManyChannels",
    "WaterspoutError",
    "check_channel",
    "check_event",
    "from_id",
    "new_epoch",
    "open_pubsub",
    "to_id",
    "to_json",
]
__version__ = "0.1.0"
