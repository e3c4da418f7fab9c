"""This node on the status channel: how its link to the broker is, and what the other nodes are told of that."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from waterspout_core import BrokerError, Gap, Health, Position

from ._status import Status, StatusType

if TYPE_CHECKING:
    from ._channels import Channels

UP: Final = "up"
RECONNECT: Final = "reconnect"
DOWN: Final = "down"

_GOODBYE: Final = 1.0
"""Seconds to tell the others that this node goes."""

_RETRY: Final = 5.0
"""Seconds after which a broker that has refused the status channel is asked again."""

_AWAY: Final = ("disconnected", "deaf", "closed")


class Presence:
    """Follows the health of the link from the first `connect` on. It counts as connected when the broker has confirmed
    the status channel, and so all others that it does not refuse: the first time that is subscribed as the last one,
    and later a link is up again when all of it is restored."""

    def __init__(self, channels: Channels, status: Status, node: str) -> None:
        self.status = status
        self.node = node
        self._channels = channels
        self._pubsub = channels.pubsub
        self._confirming: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._refusal: BrokerError | None = None
        self._was_up = False
        self._leaving = asyncio.Lock()

    async def connect(self, timeout: float | None) -> None:  # noqa: ASYNC109  # it says why not
        """See `Channels.connect`; the status channel reads its store already."""
        self._pubsub.add_health_listener(self._health_changed)
        if self.status.now is not StatusType.connected:
            self.status.change(StatusType.connecting)
            self._confirm()
        # The link goes on trying without a word. What is asked on the other connection tells what is wrong.
        asked = asyncio.ensure_future(self._pubsub.count())
        try:
            async with asyncio.timeout(timeout):
                await self._wait_until_connected()
                await self._channels._ready()
        except TimeoutError:
            if self.status.now is not StatusType.connected:
                self.status.change(StatusType.disconnected)
            reason = asked.exception() if asked.done() and not asked.cancelled() else None
            raise BrokerError(
                f"{self._pubsub!r} has not confirmed within {timeout:g} s: {reason or 'no answer'}"
            ) from None
        finally:
            asked.cancel()
            asked.add_done_callback(_retrieved)

    async def _wait_until_connected(self) -> None:
        async with aclosing(self.status.watch()) as statuses:
            async for status in statuses:
                if status is StatusType.connected:
                    return
                if self._refusal is not None:
                    raise self._refusal
        raise BrokerError("these channels are closed")

    async def close(self) -> None:
        """Follow it no more, and tell the others if that can be done."""
        self._pubsub.remove_health_listener(self._health_changed)
        self._forget_retry()
        if self._confirming is not None:
            self._confirming.cancel()
            await asyncio.wait((self._confirming,))
        async with self._leaving:  # who closes it as well shall not do so in the middle of that
            if self.status.now is StatusType.connected and self._was_up and self._channels.dialect.tells_others:
                self._was_up = False
                try:
                    await self._say_goodbye()
                except (BrokerError, TimeoutError):
                    pass
                except Exception as error:  # of the dialect; what is being closed shall be closed all the same
                    self._channels.logger.warning("the other nodes could not be told that this one goes: %s", error)

    def _health_changed(self, health: Health) -> None:
        if health.state == "connected":
            self._channels._reopen()
            self._confirm()
        elif health.state == "closed":
            self.status.change(StatusType.closed)
        elif health.state in _AWAY:
            self.status.change(StatusType.disconnected)

    def _confirm(self) -> None:
        self._forget_retry()
        if self._confirming is None:
            self._refusal = None
            self._confirming = asyncio.create_task(self._wait_for_confirmation())

    def _forget_retry(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    async def _wait_for_confirmation(self) -> None:
        try:
            await self._channels.status_channel.ready()
        except BrokerError as error:
            self._refusal = error
            self.status.change(StatusType.disconnected)
            if not self._channels._closed:
                self._again = asyncio.get_running_loop().call_later(_RETRY, self._confirm)
        else:
            if self._pubsub.health.state not in _AWAY:  # else it has gone again, and we are told when it is back
                self._connected()
        finally:
            self._confirming = None

    def _connected(self) -> None:
        if self.status.now is StatusType.connected:
            return
        self.status.change(StatusType.connected)
        event, self._was_up = RECONNECT if self._was_up else UP, True
        if self._channels.dialect.tells_others:
            try:
                self._tell(event).add_done_callback(self._told)
            except Exception as error:  # of the dialect, at once
                self._channels.logger.warning("the other nodes could not be told of this one: %s", error)

    def _tell(self, event: str) -> asyncio.Future[Position | None]:
        return self._channels.publish(self._channels.status_channel.name, event, {"node": self.node})

    def _told(self, answer: asyncio.Future[Position | None]) -> None:
        if not answer.cancelled() and (error := answer.exception()) is not None:
            self._channels.logger.warning("the other nodes could not be told of this one: %s", error)

    async def _say_goodbye(self) -> None:
        """Its own callbacks shall have it, too."""
        channels = self._channels
        async with asyncio.timeout(_GOODBYE), channels.listen(channels.status_channel.name, DOWN) as events:
            await self._tell(DOWN)
            async for event in events:
                if not isinstance(event, Gap) and event.data == {"node": self.node}:
                    break
            await asyncio.sleep(0)  # they are woken in this turn of the loop


def _retrieved(answer: asyncio.Future[dict[str, int]]) -> None:
    """Nobody wants to know any more."""
    if not answer.cancelled():
        answer.exception()
