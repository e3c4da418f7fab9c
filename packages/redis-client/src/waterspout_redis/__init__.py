"""A fast asyncio client for Redis and Valkey: `Client` for commands, `PubSubClient` for receiving messages."""

from ._address import Address
from ._client import BULK, Client
from ._dedicated import DedicatedClient
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
    PoolTimeout,
    ProtocolError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
    UnknownProtocolError,
    UsageError,
    WatchError,
    WrongPasswordError,
    WrongTypeError,
)
from ._hooks import OnCommand, OnConnection
from ._inbox import Gap, Item
from ._listeners import Listener
from ._pipeline import Pipeline
from ._pool import ClientPool
from ._pubsub import PubSubClient
from ._scripts import Caller, Library, Script
from ._session import PubSubMessage
from ._state import LinkState

__all__ = [
    "BULK",
    "Address",
    "AskError",
    "AuthenticationError",
    "BadAddress",
    "BusyError",
    "BusyGroupError",
    "CallTimeout",
    "Caller",
    "Client",
    "ClientPool",
    "ClosedError",
    "ClusterDownError",
    "ConnectError",
    "ConnectionLost",
    "CrossSlotError",
    "DedicatedClient",
    "ExecAbortError",
    "Gap",
    "Item",
    "Library",
    "LinkState",
    "Listener",
    "LoadingError",
    "MasterDownError",
    "MovedError",
    "NoPermissionError",
    "NoScriptError",
    "OnCommand",
    "OnConnection",
    "OutOfMemoryError",
    "Pipeline",
    "PoolTimeout",
    "ProtocolError",
    "PubSubClient",
    "PubSubMessage",
    "ReadOnlyError",
    "RedisError",
    "ResponseError",
    "Script",
    "TryAgainError",
    "UnknownProtocolError",
    "UsageError",
    "WatchError",
    "WrongPasswordError",
    "WrongTypeError",
    "__version__",
]

__version__ = "0.1.0"
