"""Channels by name over any PubSub: callbacks for their events, and a link that heals."""

from ._channel import Callback, CallbackError, Channel
from ._channels import Channels
from ._dialect import Dialect
from ._listen import ChannelEvent, Listening
from ._locks import Lock, LockError
from ._status import StatusListener, StatusType

__all__ = [
    "Callback",
    "CallbackError",
    "Channel",
    "ChannelEvent",
    "Channels",
    "Dialect",
    "Listening",
    "Lock",
    "LockError",
    "StatusListener",
    "StatusType",
]
__version__ = "0.1.0"
