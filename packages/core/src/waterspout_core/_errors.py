"""What can go wrong in the core, as one tree.

WaterspoutError
├── BadChannel          a channel's name cannot be used (also a ValueError)
├── BadMessage          a payload or an event name cannot be delivered (also a ValueError)
│   └── MessageTooLarge it is above the broker's limit
├── BadPosition         a position or id is not one of ours (also a ValueError)
├── BrokerError         the broker could not do it: `maybe_done` tells whether it may have happened all the same,
│                       `final` whether asking again cannot help
└── TooManyChannels     as many channels as allowed are in use
"""

from __future__ import annotations


class WaterspoutError(Exception):
    """Base of every error that the core raises of its own accord."""


class BadChannel(WaterspoutError, ValueError):
    """The name of a channel is empty, too long, or holds white space or control characters."""


class BadMessage(WaterspoutError, ValueError):
    """The payload or the event name cannot be carried; the caller's to mend."""


class MessageTooLarge(BadMessage):
    """The message has `size` bytes as it travels, and the broker keeps none of more than `limit`."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes, the limit is {limit}")
        self.size, self.limit = size, limit


class BadPosition(WaterspoutError, ValueError):
    """A text that should be a position, or an id made of positions, is neither."""


class BrokerError(WaterspoutError):
    """The broker is away or refused; `maybe_done` is true if the request may have been carried out.

    `final` is true if asking again cannot help: it was understood and refused, or we have closed the connection.
    """

    def __init__(self, message: str, *, maybe_done: bool = False, final: bool = False) -> None:
        super().__init__(message)
        self.maybe_done, self.final = maybe_done, final


class TooManyChannels(WaterspoutError):
    """The process holds `limit` channels already, and each of them has a subscriber."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"all {limit} channels that this process may hold are in use")
        self.limit = limit
