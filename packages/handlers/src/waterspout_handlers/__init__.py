"""Tornado handlers that put a store onto sockets."""

from ._eventsource import EventSource
from ._outlet import Outlet
from ._publish import PublishHandler
from ._requests import JSONErrors, NotFound, RequestError, SubscriberHandler
from ._websocket import WebSocketSubscriber

__all__ = [
    "EventSource",
    "JSONErrors",
    "NotFound",
    "Outlet",
    "PublishHandler",
    "RequestError",
    "SubscriberHandler",
    "WebSocketSubscriber",
]
__version__ = "0.1.0"
