"""All who are connected to one server: who may come, whether they are still there, and the way out."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Final, Protocol

from tornado.iostream import IOStream
from tornado.web import Application

from waterspout_core import BaseStore

from ._audience import Audience, Behind
from ._formats import Format
from ._goodbye import RESTART, Goodbye

_STEPS: Final = 25
"""In each heartbeat interval all are visited once, in so many steps at least: not all of them at one moment."""

_RATE: Final = 100
"""Goodbyes a second that a drain says at least: so many may come back at once anywhere."""

_SPREAD: Final = 0.75
"""The part of the grace in which goodbyes are said; the rest is for the last ones to be written."""

_COUNT: Final = int, 1, "a whole number of 1 or more"
_SECONDS: Final = float, 0, "a number of seconds, 0 or more"
_LIFETIME: Final = float, math.ulp(0.0), "a number of seconds above 0"

MAX_CHANNELS: Final = 130
"""The positions of so many channels fit into an id, which has 4,096 characters at most."""

_TICK: Final = 0.02
_SECOND: Final = 1.0


class ConnectionRefused(Exception):
    """No more may connect for now; come back in `retry` seconds."""

    def __init__(self, explanation: str, retry: float) -> None:
        super().__init__(explanation)
        self.retry = retry


class TooManyConnections(ConnectionRefused):
    """There are as many as may be, in all or from one address."""


class Draining(ConnectionRefused):
    """The server is about to stop."""


class Connected(Protocol):
    """One of them; an `Outlet`, mostly."""

    address: str

    def beat(self) -> object:
        """Called in each heartbeat interval once."""

    def expire(self) -> object:
        """Its deadline has come."""

    def end(self, goodbye: Goodbye, /) -> object:
        """Say `goodbye`, and close."""

    def close(self) -> object:
        """Close, now."""


class Reader(Connected, Protocol):
    """One who may fall behind."""

    def is_too_slow(self, seconds: float, written: int) -> bool:
        """Whether it is to be cut off, being behind for `seconds`, since `written` bytes had been published to it."""


@dataclass(slots=True)
class Counts:
    """What has happened since the server began."""

    opened: int = 0
    closed: int = 0
    refused: int = 0
    """At the limits, or while draining."""
    gaps: int = 0
    """Told to readers that were behind."""
    skipped: int = 0
    """Messages that readers behind were spared, as they get the latest only."""
    too_slow: int = 0
    """Cut off for being behind."""
    silent: int = 0
    """Cut off since nothing was heard of them."""


class Connections:
    """The connections of one server, at all of its doors, and what is done for all of them: limits, heartbeats,
    deadlines, and draining.

    There are at most `max_connections`, and `max_per_address` from one address (behind a proxy all come from its own);
    each reads at most `max_channels`. One that is idle is sent something every `heartbeat` seconds (0: never), and
    ends after about `max_age` seconds, so that its client comes back, perhaps to another server. A peer that neither
    reads nor acknowledges anything for `user_timeout` seconds is given up by the system (TCP_USER_TIMEOUT, RFC 5482; 0:
    when the system thinks best). One timer serves them all.
    """

    def __init__(
        self,
        *,
        max_connections: int = 100_000,
        max_per_address: int | None = None,
        max_channels: int = 100,
        heartbeat: float = 25.0,
        max_age: float | None = None,
        user_timeout: float = 60.0,
    ) -> None:
        _check("max_connections", max_connections, _COUNT)
        _check("max_channels", max_channels, _COUNT)
        if max_channels > MAX_CHANNELS:
            raise ValueError(
                f"max_channels is at most {MAX_CHANNELS}, as an id has no room for more, not {max_channels}"
            )
        _check("heartbeat", heartbeat, _SECONDS)
        _check("user_timeout", user_timeout, _SECONDS)
        if max_per_address is not None:
            _check("max_per_address", max_per_address, _COUNT, " or None")
        if max_age is not None:
            _check("max_age", max_age, _LIFETIME, " or None")
        self.max_connections = max_connections
        self.max_per_address = max_per_address
        self.max_channels = max_channels
        self.heartbeat = heartbeat
        self.max_age = max_age
        self.user_timeout = user_timeout
        self.draining = False
        self.counts = Counts()
        # In so many parts that one of them is visited each second, or more often.
        self._parts: list[dict[Connected, None]] = [{} for _ in range(max(_STEPS, math.ceil(heartbeat)))]
        self._turn = 0
        self._number = 0
        self._gone: asyncio.Event | None = None  # to be set when the last one has gone
        self._addresses: Counter[str] = Counter()  # only where they are bounded
        self._audiences: dict[tuple[object, ...], Audience] = {}
        self._behind: dict[Any, tuple[float, int]] = {}  # of each `Reader`, since when, and what had been written then
        self._deadlines: dict[Connected, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # where the timer runs

    def __len__(self) -> int:
        """How many there are."""
        return self._number

    def __bool__(self) -> bool:
        """True: `connections or Connections()` shall not take others for these, just because nobody is there yet."""
        return True

    def __iter__(self) -> Iterator[Connected]:
        """All there are now."""
        return iter([outlet for part in self._parts for outlet in part])

    def check(self, address: str) -> None:
        """Whether one more may come from `address`. Raises `TooManyConnections` or `Draining`."""
        try:
            self._check(address)
        except ConnectionRefused:
            self.counts.refused += 1
            raise

    async def drain(self, grace: float = 10.0) -> None:
        """Let nobody in any more, say goodbye to all, and return when they have gone, after `grace` seconds at most:
        those who are still there are cut off then.

        The goodbyes are said in random order, spread over most of the grace where there are many, since all of these
        clients are about to connect somewhere else.
        """
        self.draining = True
        begin = monotonic()
        leaving = list(self)
        random.shuffle(leaving)
        spread = min(grace * _SPREAD, len(leaving) / _RATE)
        for number, outlet in enumerate(leaving):
            if not self._number:
                break
            pause = begin + spread * number / len(leaving) - monotonic()
            if pause > _TICK:
                await asyncio.sleep(pause)
            outlet.end(RESTART)
        if self._number:
            if self._gone is None or self._gone.is_set():  # else it is that of a drain which is under way
                self._gone = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(begin + grace - monotonic()):
                    await self._gone.wait()
        for outlet in self:
            outlet.close()

    # For outlets

    def add(self, outlet: Connected) -> None:
        """`outlet` is connected. Raises `TooManyConnections` or `Draining`; it is counted in all the same."""
        try:
            self.check(outlet.address)
        finally:
            self._part(outlet)[outlet] = None
            self._number += 1
            self.counts.opened += 1
            if self.max_per_address is not None:
                self._addresses[outlet.address] += 1
            if self.max_age is not None:
                # Those who came together shall not all come back together.
                self.expire_at(outlet, monotonic() + self.max_age * random.uniform(0.9, 1.1))
            self._keep_time()

    def remove(self, outlet: Connected) -> None:
        """`outlet` is closed."""
        part = self._part(outlet)
        if outlet not in part:
            return
        del part[outlet]
        self._number -= 1
        if self._gone is not None and not self._number:
            self._gone.set()
        self.counts.closed += 1
        self._deadlines.pop(outlet, None)
        self._behind.pop(outlet, None)
        if self.max_per_address is not None:
            self._addresses[outlet.address] -= 1
            if not self._addresses[outlet.address]:
                del self._addresses[outlet.address]

    def expire_at(self, outlet: Connected, when: float) -> None:
        """Have `outlet.expire` called at `when` (`time.monotonic`) or soon after, unless that is to be even earlier."""
        self._deadlines[outlet] = min(when, self._deadlines.get(outlet, math.inf))

    def end_at(self, outlet: Connected, when: float) -> None:
        """Have `outlet.expire` called at `when` or soon after, and not before: what was set so far was for its life."""
        self._deadlines[outlet] = when

    def watch(self, outlet: Reader, written: int) -> None:
        """`outlet` does not keep up since now, when `written` bytes had been published to it."""
        self._behind.setdefault(outlet, (monotonic(), written))

    def unwatch(self, outlet: Reader) -> None:
        """It does again."""
        self._behind.pop(outlet, None)

    def tune(self, stream: IOStream) -> None:
        """Have `stream` send at once what is to be sent, and find out when the peer is not there any more."""
        # Tornado leaves Nagle's algorithm on: a message would wait until the peer has acknowledged the one before.
        stream.set_nodelay(True)
        if stream.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return
        with contextlib.suppress(OSError):  # where the system has no such thing, or the peer has gone
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, name):
                    stream.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            if self.user_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
                milliseconds = round(self.user_timeout * 1000)
                stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def audience(self, stores: Collection[BaseStore], format: Format, behind: Behind, period: float) -> Audience:
        """Those who read `stores` in `format`, and are treated alike."""
        key = (frozenset(stores), format, behind, period)
        found = self._audiences.get(key)
        if found is None:
            forget = partial(self._audiences.pop, key, None)
            found = self._audiences[key] = Audience(stores, format, behind, period, forget)
        return found

    def _check(self, address: str) -> None:
        # Spread over some seconds, as those who are refused together shall not come back together.
        retry = random.uniform(5.0, 15.0)
        if self.draining:
            raise Draining(RESTART.reason, retry)
        if self._number >= self.max_connections:
            raise TooManyConnections(f"there are {self.max_connections} connections, and no more may be", retry)
        if self.max_per_address is not None and self._addresses[address] >= self.max_per_address:
            raise TooManyConnections(f"there are {self.max_per_address} connections from {address} already", retry)

    # The timer

    def _part(self, outlet: Connected) -> dict[Connected, None]:
        return self._parts[hash(outlet) % len(self._parts)]

    def _keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        # Not a flag: a loop that was closed in between has taken its timer with it.
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self.heartbeat / len(self._parts) or _SECOND, self._tick)

    def _tick(self) -> None:
        self._loop = None
        if not self._number:
            return
        self._keep_time()
        time = monotonic()
        for outlet, when in tuple(self._deadlines.items()):
            if when <= time:
                self._deadlines.pop(outlet, None)
                outlet.expire()
        for outlet, (since, written) in tuple(self._behind.items()):
            if outlet.is_too_slow(time - since, written):
                self.counts.too_slow += 1
                outlet.close()
        if self.heartbeat:
            self._turn = (self._turn + 1) % len(self._parts)
            for outlet in tuple(self._parts[self._turn]):
                outlet.beat()


def connections_of(application: Application) -> Connections:
    """Those of `application`: its setting `waterspout_connections`, made when it is first asked for."""
    found = application.settings.get("waterspout_connections")
    if found is None:
        found = application.settings["waterspout_connections"] = Connections()
    if not isinstance(found, Connections):
        raise TypeError(f"the setting waterspout_connections is a Connections(), not {found!r:.80}")
    return found


def _check(name: str, value: object, kind: tuple[type[float], float, str], or_else: str = "") -> None:
    """Raises TypeError or ValueError in which `name` is that of the argument."""
    number, least, words = kind
    if not isinstance(value, number | int):
        raise TypeError(f"{name} is {words}{or_else}, not {value!r:.80}")
    if not least <= value < math.inf:
        raise ValueError(f"{name} is {words}{or_else}, not {value!r:.80}")
