"""How events travel: what is published for one, and which event a message is."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from waterspout_core import Message, Position, PubSub

UNNAMED: Final = "message"
"""The event of a message that has no name, as browsers call it (WHATWG HTML, server-sent events)."""


class Dialect:
    """How the events of `Channels` travel, and what becomes of their broker in the end.

    This one is their own: an event is a named message, and who closes the channels closes the broker's connections.
    Programs that write events in another way are understood by a subclass that overrides what differs:

    >>> import json
    >>> from waterspout_core import Message
    >>> class Pairs(Dialect):
    ...     '''An event is a JSON array of its name and its data.'''
    ...
    ...     def event_of(self, message):
    ...         event, data = json.loads(message.text)
    ...         return event, data
    ...
    ...     def publish(self, pubsub, topic, event, data, key):
    ...         return pubsub.submit(topic, Message(json.dumps([event, data])), key=key)
    >>> Pairs().event_of(Message('["goal", {"minute": 27}]'))
    ('goal', {'minute': 27})

    It is used by one event loop, as the `Channels` are, and several of them may have the same one.
    """

    tells_others: bool = True
    """Whether the nodes tell one another on the status channel that they come and go, in events like any other."""

    def event_of(self, message: Message) -> tuple[str, Any] | None:
        """The name and the data of the event that `message` is; None if it is none.

        It is called for every message, and once for each reader. What it raises is logged, and the message is passed
        over. What other programs have published as plain text or bytes is the `data` of a message without a name, a str
        where it is UTF-8.
        """
        return message.event or UNNAMED, message.data

    def publish(
        self, pubsub: PubSub, topic: str, event: str | None, data: Any, key: str | None
    ) -> Awaitable[Position | None]:
        """Publish an event to what the broker knows as `topic`, the namespace included; may be a coroutine function.

        What it gives and raises, and `key`, are those of `Channels.publish`. A str that is submitted without a name
        travels as it is; bytes do with ``pubsub.publish(topic, data)``, and are not kept in a history.
        """
        return pubsub.submit(topic, Message(data, event), key=key)

    async def release(self, pubsub: PubSub) -> None:
        """Channels that are being closed need `pubsub` no more; nothing but this closes its connections."""
        await pubsub.aclose()
