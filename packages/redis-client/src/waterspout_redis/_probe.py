"""Tokens that a link publishes to itself, to see whether what is published still reaches it."""

from __future__ import annotations

import asyncio
import secrets
from asyncio import Future
from dataclasses import dataclass
from typing import Final

from ._errors import RedisError
from ._session import PubSubMessage
from ._subscriptions import Subscriptions

_PREFIX: Final = b"waterspout:probe:"


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One token under way. Its channel is known to nobody else: a message there is the token that came back."""

    channel: bytes
    confirmed: Future[None]
    """The channel is subscribed."""
    token: Future[RedisError | None]
    """None: it came back; else why it cannot any more."""
    gone: Future[None]
    """The channel is not subscribed any more."""

    def end(self, error: RedisError | None) -> None:
        if not self.token.done():
            self.token.set_result(error)


class Probes:
    """What comes on their channels is for no listener, from the subscription on until its end is confirmed."""

    def __init__(self) -> None:
        self.subscriptions = Subscriptions(b"subscribe", b"unsubscribe")
        self._probes: dict[bytes, Probe] = {}

    def __bool__(self) -> bool:
        return bool(self._probes)

    def begin(self) -> Probe:
        """Subscribe to a new channel."""
        self._drop_those_gone()
        new = asyncio.get_running_loop().create_future
        probe = Probe(_PREFIX + secrets.token_hex(8).encode(), new(), new(), new())
        self._probes[probe.channel] = probe
        self.subscriptions.want([probe.channel], probe.confirmed)
        return probe

    def finish(self, probe: Probe) -> None:
        """Nobody waits for it any more."""
        self.subscriptions.unwant([probe.channel], probe.gone)

    def without_tokens(self, messages: list[PubSubMessage]) -> list[PubSubMessage]:
        """The messages that are for listeners, by whatever subscription they came."""
        rest: list[PubSubMessage] = []
        for message in messages:
            probe = self._probes.get(message.channel)
            if probe is None:
                rest.append(message)
            else:
                probe.end(None)
        self._drop_those_gone()
        return rest

    def link_lost(self, error: RedisError) -> None:
        """No token that is under way will come."""
        for probe in self._probes.values():
            probe.end(error)

    def _drop_those_gone(self) -> None:
        for probe in [probe for probe in self._probes.values() if probe.gone.done()]:
            del self._probes[probe.channel]
