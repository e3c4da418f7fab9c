"""A channel is a log, a store keeps the log, a subscriber is a cursor in it."""

from ._brokers import open_pubsub
from ._channel_stores import ChannelStore, RedisStore
from ._envelope import Envelope
from ._errors import (
    BadChannel,
    BadMessage,
    BadPosition,
    BrokerError,
    MessageTooLarge,
    TooManyChannels,
    WaterspoutError,
)
from ._glob import compile_glob
from ._history import History
from ._leases import Leases, MemoryLeases
from ._log import LOST, Log, MiB
from ._memory import MemoryBroker, MemoryPubSub
from ._message import GAP_EVENT, Entry, Gap, Message, Payload, check_channel, check_event, to_json
from ._position import EARLIEST, Position, from_id, new_epoch, to_id
from ._protocols import JSONProtocol, MsgpackProtocol
from ._pubsub import Health, HealthListener, PubSub, PubSubProtocol
from ._stores import BaseStore, DataStore, QueueStore, Source, Submitted, Subscriber
from ._subscription import Subscription

__all__ = [
    "EARLIEST",
    "GAP_EVENT",
    "LOST",
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
    "Health",
    "HealthListener",
    "History",
    "JSONProtocol",
    "Leases",
    "Log",
    "MemoryBroker",
    "MemoryLeases",
    "MemoryPubSub",
    "Message",
    "MessageTooLarge",
    "MiB",
    "MsgpackProtocol",
    "Payload",
    "Position",
    "PubSub",
    "PubSubProtocol",
    "QueueStore",
    "RedisStore",
    "Source",
    "Submitted",
    "Subscriber",
    "Subscription",
    "TooManyChannels",
    "WaterspoutError",
    "check_channel",
    "check_event",
    "compile_glob",
    "from_id",
    "new_epoch",
    "open_pubsub",
    "to_id",
    "to_json",
]
__version__ = "0.1.0"
