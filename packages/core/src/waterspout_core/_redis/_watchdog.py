"""Tells a silent link from a deaf one: where nothing comes, something is published to oneself."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from waterspout_redis import Client, ConnectionLost, LinkState, NoPermissionError, PubSubClient, RedisError

from .._pubsub import Health, HealthListener, HealthState

logger: Final = logging.getLogger("waterspout.core")

_PROBE_TIMEOUT: Final = 5.0
_NAMES: Final[dict[LinkState, HealthState]] = {
    LinkState.CONNECTING: "connecting",
    LinkState.CONNECTED: "connected",
    LinkState.DISCONNECTED: "disconnected",
    LinkState.CLOSED: "closed",
}


class Watchdog:
    """Watches one link, with one timer. A deaf one is dropped, so that the link is made anew."""

    def __init__(self, link: PubSubClient, client: Client, silence: float, on_health: HealthListener) -> None:
        if silence <= 0:
            raise ValueError(f"silence is a number of seconds above 0, not {silence}")
        self._link, self._client, self._silence, self._on_health = link, client, silence, on_health
        self._state: HealthState = "disconnected"
        self._tried = False
        self._since = self._heard = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def health(self) -> Health:
        now = time.monotonic()
        return Health(self._state, now - self._since, now - self._heard)

    def heard(self) -> None:
        """Something came."""
        self._heard = time.monotonic()

    def link_changed(self, state: LinkState) -> None:
        """The link tells that it is in this state now."""
        if state is LinkState.CONNECTED:
            self.heard()
        elif state is not LinkState.CLOSED and (self._state == "deaf" or (self._tried and self._state != "connected")):
            return  # what is down or deaf is so until there is a better one, however often that is tried
        self._tried = True
        self._change(_NAMES[state])

    def start(self) -> None:
        """Watch, in the running loop."""
        self.close()
        self._look_later(self._silence)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    def _look_later(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        left = self._heard + self._silence - time.monotonic()
        if left <= 0 and self._link.state is LinkState.CONNECTED:
            self._probing = asyncio.create_task(self._probe())
        else:
            self._look_later(max(left, self._silence / 3))

    async def _probe(self) -> None:
        since = self._since
        try:
            await self._link.probe(self._client, timeout=_PROBE_TIMEOUT)
        except ConnectionLost as error:
            # That of the client, by which it was published, or of a link in whose place there is another one already.
            if error.maybe_executed or self._since != since:
                logger.debug("a silent link could not be tested: %s", error)
            elif self._link.state is not LinkState.CLOSED:
                logger.warning("the link to %s is deaf and is made anew: %s", self._link.address, error)
                self._change("deaf")
        except NoPermissionError as error:
            logger.warning("a silent link cannot be tested here, so a deaf one is not found: %s", error)
            return
        except RedisError as error:  # nothing is known of the link
            logger.debug("a silent link could not be tested: %s", error)
        else:
            self.heard()
        self._look_later(self._silence / 3)

    def _change(self, state: HealthState) -> None:
        if state == self._state:
            return
        self._state, self._since = state, time.monotonic()
        self._on_health(self.health)
