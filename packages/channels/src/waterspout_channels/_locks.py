"""Locks across processes: what one at a time may do, by a lease at the broker that is renewed while it is held."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from waterspout_core import BrokerError, Leases, WaterspoutError

logger: Final = logging.getLogger("waterspout.channels")

_TIMEOUT: Final = 30.0
"""Seconds after which the lock of a process that died is free."""

_RENEWALS: Final = 3
"""So often is a lock renewed within its timeout: one of them may fail."""

_GRACE: Final = 1.0
"""Seconds for which the place of one who waits is kept at the broker, on top of a few of its polls."""


class LockError(WaterspoutError):
    """The lock was not got, is not held, or was lost while it was."""


class Lock:
    """A lock that one at a time holds, of all processes at the broker::

        async with channels.lock("nightly-report"):
            ...

    It is a lease of `timeout` seconds, renewed until it is released: so a process that dies, or hangs, does not keep
    it for longer. With ``renew=False`` it ends when they are over. `blocking` is whether to wait for it, or for how
    many seconds at most. Who waits asks every `sleep` seconds or so; those of one process come in order of arrival, and
    so do the processes. `key` is its name at the broker, where that is not to be made from `name`.

    It is lost when it was taken away, or could not be renewed in time: then `locked()` is False, `lost` is set, and
    `release` raises `LockError`. Work that takes longer than a moment should look there. There are never two holders
    as long as the broker keeps what it was told, and its clock and ours run evenly. That is not certain where the
    broker has lost its data or its clock was set, a computer was asleep, or a process was suspended in the middle of a
    step: there the holder learns of it when it goes on, or with its next renewal. Where that is too late, let what the
    lock protects refuse whoever comes late.

    The same object may be used again, and by several tasks, which wait for one another.
    """

    def __init__(
        self,
        leases: Leases,
        name: str,
        timeout: float | None = None,
        blocking: bool | float = True,
        sleep: float = 0.2,
        *,
        renew: bool = True,
        key: str | None = None,
    ) -> None:
        timeout = _TIMEOUT if timeout is None else timeout
        if not isinstance(name, str) or not name:
            raise ValueError(f"a lock needs a name, not {name!r:.80}")
        for what, seconds in (("timeout", timeout), ("sleep", sleep)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{what} is a number of seconds above 0, not {seconds!r}")
        if not blocking >= 0:
            raise ValueError(f"blocking is whether to wait, or for how many seconds at most, not {blocking!r}")
        if key is None and name.startswith("}"):
            raise ValueError(f"the name of a lock does not begin with a brace that closes: {name!r:.80}")
        self.name = name
        # In a cluster the braces say what its slot is made from.
        self.key = f"waterspout:lock:{{{name}}}" if key is None else key
        self.timeout, self.blocking, self.sleep, self.renew = timeout, blocking, sleep, renew
        self.lost = asyncio.Event()
        """Set when it is lost; a new one each time that it is acquired."""
        self._leases = leases
        self._token: str | None = None  # while it is held, or lost and not released
        self._until = 0.0
        self._line: _Line | None = None  # while we are at its head
        self._keeper: asyncio.Task[None] | None = None
        self._parting: set[asyncio.Task[bool]] = set()
        self._asking: str | None = None  # the token of who is at the head of the line, and has not got it yet
        self._closed = False

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}: {'held' if self.locked() else 'not held'}>"

    def locked(self) -> bool:
        """Whether this object holds it, now."""
        return self._token is not None and not self.lost.is_set() and time.monotonic() < self._until

    async def acquire(self, blocking: bool | float | None = None) -> bool:
        """Whether it is held now, after having waited as `blocking` says here, or else for the lock.

        Who waits for it waits for a broker that is away, too. Raises `BrokerError` if it is away to the end, or
        refuses, and `LockError` if this object has lost it and was not released since.
        """
        blocking = self.blocking if blocking is None else blocking
        line = _line(self._leases, self.key)
        if not blocking and line.length:
            return False
        if not blocking:
            return await self._stand(line, [], wait=False)
        last: list[BrokerError | None] = []
        try:
            async with asyncio.timeout(None if blocking is True else blocking):
                return await self._stand(line, last, wait=True)
        except TimeoutError:
            if last and last[0] is not None:
                raise last[0] from None
            return False

    async def release(self) -> None:
        """Give it back. Raises `LockError` if it is not held or was lost, and `BrokerError` where the broker is away:
        it ends by itself then."""
        held = self.locked()
        token, self._token = self._token, None
        if token is None:
            raise LockError(f"the lock {self.name!r} is not held")
        if self._keeper is not None:
            self._keeper.cancel()
        try:
            # Of one that is over, the broker need not be asked. Who is cancelled here gives it back all the same.
            if not held or not await asyncio.shield(self._part(token)):
                self.lost.set()
                raise LockError(f"the lock {self.name!r} was lost")
        finally:
            self._leave()

    async def aclose(self) -> None:
        """Give it back, if that is to be done, and let nobody have it any more: who waits for it gets `BrokerError`.
        Raises what `release` does."""
        self._closed = True
        if self.locked():
            await self.release()
        elif self._asking is not None:
            await self._part(self._asking)  # what is under way may have got it

    async def __aenter__(self) -> Lock:
        if not await self.acquire():
            raise LockError(f"the lock {self.name!r} was not got in time")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()

    async def _stand(self, line: _Line, last: list[BrokerError | None], *, wait: bool) -> bool:
        """Stand in line, and at its head claim the lease until we have it. `last` has the broker's last answer: the
        error, or None."""
        await line.join()
        token = secrets.token_hex(16)
        try:
            if self._token is not None:
                raise LockError(f"the lock {self.name!r} was lost and is not released yet")
            self._asking = token
            while not await self._claim(token, line, last, wait=wait):
                if not wait:
                    return False
                await asyncio.sleep(self.sleep * random.uniform(0.75, 1.25))
            return True
        finally:
            self._asking = None
            if self._token != token:
                # Whatever became of the last claim; and nobody else is to wait for us.
                self._part(token)
                line.leave()

    async def _claim(self, token: str, line: _Line, last: list[BrokerError | None], *, wait: bool) -> bool:
        self._check_open()
        asked = time.monotonic()
        try:
            # The same token again, where an answer was lost: it may be ours already.
            got = await self._leases.claim(self.key, token, self.timeout, wait=3 * self.sleep + _GRACE if wait else 0.0)
        except BrokerError as error:
            if error.final or not wait:
                raise
            last[:] = [error]
            return False
        except asyncio.CancelledError:
            if not last and (waited := time.monotonic() - asked) > self.sleep:
                last.append(BrokerError(f"the broker has not answered for {waited:.1f} s", maybe_done=True))
            raise
        last[:] = [None]
        self._check_open()
        until = asked + self.timeout  # the broker has begun to count later
        if not got or time.monotonic() >= until:
            return False
        self._token, self._until, self._line, self.lost = token, until, line, asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(token))
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"the lock {self.name!r} is closed", final=True)

    async def _keep(self, token: str) -> None:
        """Renew the lease as long as that can be done, and tell when it is lost."""
        try:
            async with asyncio.timeout(self._until - time.monotonic()) as limit:
                # Where it is not renewed that is too long, which is what we want.
                await (self._renew(token, limit) if self.renew else asyncio.sleep(self.timeout))
        except TimeoutError:
            pass
        except Exception:
            logger.exception("error while renewing the lock %r", self.name)
        if self._token == token:
            logger.warning("the lock %r was lost", self.name)
            self.lost.set()
            self._leave()

    async def _renew(self, token: str, limit: asyncio.Timeout) -> None:
        """Return when it cannot be renewed any more."""
        pause = self.timeout / _RENEWALS
        while True:
            await asyncio.sleep(pause)
            asked = time.monotonic()
            try:
                if not await self._leases.renew(self.key, token, self.timeout):
                    return
            except BrokerError as error:
                if error.final:
                    return
                pause = min(pause, self.sleep)
            else:
                pause = self.timeout / _RENEWALS
                self._until = asked + self.timeout
                limit.reschedule(asyncio.get_running_loop().time() + self._until - time.monotonic())

    def _leave(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.leave()

    def _part(self, token: str) -> asyncio.Task[bool]:
        """Give back what `token` has at the broker."""
        task = asyncio.create_task(self._leases.release(self.key, token))
        self._parting.add(task)
        task.add_done_callback(self._parted)
        return task

    def _parted(self, task: asyncio.Task[bool]) -> None:
        self._parting.discard(task)
        if not task.cancelled():
            task.exception()  # it ends by itself


class _Line:
    """Those of this process who want one lock, in order of arrival. One of them at a time asks the broker, and nobody
    while one of them has it."""

    def __init__(self) -> None:
        self._head = asyncio.Lock()
        self.length = 0

    async def join(self) -> None:
        """Return when we are at its head."""
        self.length += 1
        try:
            await self._head.acquire()
        except BaseException:
            self.length -= 1
            raise

    def leave(self) -> None:
        self.length -= 1
        self._head.release()


_Lines: TypeAlias = WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], _Line]
_lines: Final[WeakKeyDictionary[Leases, _Lines]] = WeakKeyDictionary()


def _line(leases: Leases, key: str) -> _Line:
    """The line of all who want it now, in this loop."""
    return _lines.setdefault(leases, _Lines()).setdefault((asyncio.get_running_loop(), key), _Line())
