"""A fast asyncio client for Redis and Valkey: `Client` for commands, `PubSubClient` for receiving messages."""

from ._address import Address
from ._client import Client
from ._errors import (
    AskError,
    AuthenticationError,
    BadAddress,
    BusyError,
    BusyGroupError,
    CallTimeout,
    ClosedError,
    ClusterDownError,
    ConnectError,
    ConnectionLost,
    CrossSlotError,
    ExecAbortError,
    LoadingError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ProtocolError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
    UnknownProtocolError,
    WrongPasswordError,
    WrongTypeError,
)
from ._link import Gap, Item, PubSubState
from ._pipeline import Pipeline
from ._pubsub import PubSubClient
from ._session import PubSubMessage

__all__ = [
    "Address",
    "AskError",
    "AuthenticationError",
    "BadAddress",
    "BusyError",
    "BusyGroupError",
    "CallTimeout",
    "Client",
    "ClosedError",
    "ClusterDownError",
    "ConnectError",
    "ConnectionLost",
    "CrossSlotError",
    "ExecAbortError",
    "Gap",
    "Item",
    "LoadingError",
    "MasterDownError",
    "MovedError",
    "NoPermissionError",
    "NoScriptError",
    "OutOfMemoryError",
    "Pipeline",
    "ProtocolError",
    "PubSubClient",
    "PubSubMessage",
    "PubSubState",
    "ReadOnlyError",
    "RedisError",
    "ResponseError",
    "TryAgainError",
    "UnknownProtocolError",
    "WrongPasswordError",
    "WrongTypeError",
    "__version__",
]

__version__ = "0.1.0"
