"""The states of a link to a server, as `Client` and `PubSubClient` show them."""

from __future__ import annotations

from enum import Enum


class LinkState(Enum):
    """Of the link to the server."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    """Ready for use: logged in, and everything that is desired is subscribed and confirmed."""
    DISCONNECTED = "disconnected"
    """Nothing was asked for yet, or waiting to try again."""
    CLOSED = "closed"
    """By its owner, for good."""
