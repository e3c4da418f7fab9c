"""Tornado handlers that put a store onto sockets."""

from ._audience import Behind
from ._connections import ConnectionRefused, Connections, Counts, Draining, TooManyConnections, connections_of
from ._eventsource import EventSource
from ._formats import Format
from ._goodbye import AGED, FULL, RESTART, SILENT, Goodbye
from ._line_client import LineBroken, LineClient, LineRefused, LineSubscription
from ._lines import LineServer
from ._longpoll import LongPoll
from ._outlet import Outlet
from ._publish import PublishHandler
from ._requests import JSONErrors, NotFound, RequestError, SubscriberHandler
from ._websocket import WebSocketSubscriber

__all__ = [
    "AGED",
    "FULL",
    "RESTART",
    "SILENT",
    "Behind",
    "ConnectionRefused",
    "Connections",
    "Counts",
    "Draining",
    "EventSource",
    "Format",
    "Goodbye",
    "JSONErrors",
    "LineBroken",
    "LineClient",
    "LineRefused",
    "LineServer",
    "LineSubscription",
    "LongPoll",
    "NotFound",
    "Outlet",
    "PublishHandler",
    "RequestError",
    "SubscriberHandler",
    "TooManyConnections",
    "WebSocketSubscriber",
    "connections_of",
]
__version__ = "0.1.0"
