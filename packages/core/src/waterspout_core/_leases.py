"""Leases: a name that is somebody's for a while. What locks are made of."""

from __future__ import annotations

import time
from typing import Protocol


class Leases(Protocol):
    """Who holds which name, at one broker. A token stands for the holder: a text that nobody else has.

    A lease ends by itself when its `seconds` are over, by the broker's clock, which began after it was asked for: so a
    holder that counts from there never counts on too much. Everything here raises `BrokerError` where the broker is
    away or refuses, and can be asked for again.
    """

    async def claim(self, name: str, token: str, seconds: float, *, wait: float = 0.0) -> bool:
        """Whether `name` is the token's now: it was free, and nobody waits for it who came before; or it was the
        token's already, and lasts for `seconds` from now on.

        Who is refused keeps a place in line for `wait` seconds, and has to ask again before they are over.
        """

    async def renew(self, name: str, token: str, seconds: float) -> bool:
        """Have it last for `seconds` from now on. False: it was not the token's any more."""

    async def release(self, name: str, token: str) -> bool:
        """Give it back, and any place in line. False: it was not the token's (any more)."""


class MemoryLeases:
    """`Leases` within this process."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, float]] = {}  # by whom, and until when
        self._lines: dict[str, dict[str, float]] = {}  # who waits for a name, and until when; in order of arrival
        self._many = 1_000

    async def claim(self, name: str, token: str, seconds: float, *, wait: float = 0.0) -> bool:
        now = time.monotonic()
        line = {other: until for other, until in self._lines.pop(name, {}).items() if until > now}
        holder = self._holder(name)
        got = holder == token or (holder is None and next(iter(line), token) == token)
        if got:
            line.pop(token, None)
            self._hold(name, token, now + seconds)
        elif wait > 0:
            line[token] = now + wait
        if line:
            self._lines[name] = line
        return got

    async def renew(self, name: str, token: str, seconds: float) -> bool:
        if self._holder(name) != token:
            return False
        self._hold(name, token, time.monotonic() + seconds)
        return True

    async def release(self, name: str, token: str) -> bool:
        if line := self._lines.get(name):
            line.pop(token, None)
            if not line:
                del self._lines[name]
        if self._holder(name) != token:
            return False
        del self._held[name]
        return True

    def _holder(self, name: str) -> str | None:
        token, until = self._held.get(name, (None, 0.0))
        return token if until > time.monotonic() else None

    def _hold(self, name: str, token: str, until: float) -> None:
        self._held[name] = token, until
        if len(self._held) > self._many:  # names that nobody asks for again
            self._held = {name: held for name, held in self._held.items() if held[1] > time.monotonic()}
            self._many = max(1_000, 2 * len(self._held))
