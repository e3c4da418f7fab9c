"""An audience: all who read the same channels in the same format and stand at the same place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from waterspout_core import LOST, BaseStore, MiB, to_id

from ._formats import Format

if TYPE_CHECKING:
    from ._outlet import Outlet

Cursors: TypeAlias = dict[BaseStore, int]
Send: TypeAlias = Callable[[bytes], int]
"""Sends what the socket takes at once, and returns how much that was. Raises OSError."""

Policy: TypeAlias = Literal["gap", "latest", "disconnect"]

MAX_BYTES: Final = MiB
MAX_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Behind:
    """What becomes of a reader that does not keep up. It never holds up anyone else, and nothing is kept for it. One
    that takes nothing at all is given up by the system after the `user_timeout` of `Connections`, and may come back.

    `gap`: it reads on where it stopped, and is told of a gap where the log has given up what it missed. `latest`: it
    goes on with the newest message and is spared those in between. `disconnect`: it is cut off when it was not level
    for `max_seconds`, or more than `max_bytes` have been published since it was; the others have no such bounds.
    """

    policy: Policy = "gap"
    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        if self.policy not in ("gap", "latest", "disconnect"):
            raise ValueError(f"a reader behind gets a gap, the latest, or is disconnected, not {self.policy!r}")
        if self.max_bytes < 1 or not self.max_seconds > 0:
            raise ValueError("max_bytes and max_seconds are above 0")
        if self.policy != "disconnect" and (self.max_bytes, self.max_seconds) != (MAX_BYTES, MAX_SECONDS):
            raise ValueError(f"max_bytes and max_seconds are bounds of 'disconnect', {self.policy!r} has none")


GAP: Final = Behind()


class Audience:
    """Woken once for all of them, it makes the bytes once and sends them to each with one `send`.

    Its outlets are level with it and have no cursors of their own. One whose socket has not taken all falls out, reads
    on by itself when it can, and comes back when it is level again. With a `period` (seconds) there is at most one
    sending in each: what has come until then goes out together.
    """

    __slots__ = (
        "_cursors",
        "_due",
        "_late",
        "_level",
        "_loop",
        "_members",
        "_pause",
        "behind",
        "forget",
        "format",
        "period",
    )

    def __init__(
        self, stores: Iterable[BaseStore], format: Format, behind: Behind, period: float, forget: Callable[[], object]
    ) -> None:
        self._cursors: Cursors = {store: store.log.top for store in stores}
        self._level: dict[Outlet, Send] = {}
        self._late: dict[Outlet, None] = {}  # who have read all, and wait until the others have, too
        self._members = 0
        self.period = period
        """Seconds, or 0."""
        self._pause: asyncio.TimerHandle | None = None  # until which nothing is sent
        self._loop: asyncio.AbstractEventLoop | None = None  # where that runs
        self._due = False  # whether something has come in the meantime
        self.format = format
        self.behind = behind
        self.forget = forget
        """What to call when there is nobody any more."""

    @property
    def stores(self) -> Collection[BaseStore]:
        """What is read."""
        return self._cursors.keys()

    @property
    def cursors(self) -> Cursors:
        """Where all stand who are level; not to be changed."""
        return self._cursors

    def join(self, outlet: Outlet) -> None:
        """From now on `outlet` is one of ours, with cursors of its own until it is `admit`ted."""
        self._members += 1
        for store in self._cursors:
            store.register(outlet, by=self)

    def leave(self, outlet: Outlet) -> None:
        """It is one of ours no more."""
        self._level.pop(outlet, None)
        self._late.pop(outlet, None)
        for store in self._cursors:
            store.deregister(outlet)
        self._members -= 1
        if not self._members:
            for store in self._cursors:
                store.deregister(self)
            if self._pause is not None:
                self._pause.cancel()
                self._pause = None
            self.forget()

    def admit(self, outlet: Outlet, send: Send) -> bool:
        """Whether `outlet`, which has read all there is, is level with the others now; else it is woken when they are
        served next."""
        if self._pausing and outlet.cursors != self._cursors:
            self._late[outlet] = None
            return False
        self.flush()
        self._level[outlet] = send
        return True

    def part(self, outlet: Outlet) -> Cursors:
        """`outlet` is not level any more: the cursors it has from now on."""
        self._level.pop(outlet, None)
        return dict(self._cursors)

    def wake(self, store: BaseStore) -> None:
        if self._pausing:
            self._due = True
            return
        self._read_on(store)
        if self.period:
            self._begin_pause()

    @property
    def _pausing(self) -> bool:
        # A loop that was closed in between has taken its timer with it.
        return self._pause is not None and self._loop is asyncio.get_running_loop()

    def _begin_pause(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pause = self._loop.call_later(self.period, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        if self._due:
            self._due = False
            self._begin_pause()
            self.flush()
            late, self._late = self._late, {}
            for outlet in late:
                outlet.catch_up()

    def flush(self) -> None:
        """Send all there is to those who are level."""
        for store in self._cursors:
            self._read_on(store)

    def _read_on(self, store: BaseStore) -> None:
        while self._cursors[store] < store.log.top:
            run = read_on(self.format, self._cursors, store)
            if run and self._level:
                self._send(run)

    def _send(self, run: bytes) -> None:
        size = len(run)
        fallen = []
        for outlet, send in self._level.items():
            try:
                sent = send(run)
            except OSError:
                sent = 0  # full or gone: its stream will find out
            if sent != size:
                fallen.append((outlet, sent))
        served = tuple(self._level) if self.format.once else ()
        for outlet, sent in fallen:
            outlet.fall_behind(run, sent)
        for outlet in served:
            outlet.finish()


def read_on(format: Format, cursors: Cursors, store: BaseStore) -> bytes:
    """What stands behind the cursor of `store`, for one who stands at `cursors`; moves it there."""
    log = store.log
    if len(cursors) == 1:
        run, cursors[store] = log.encoded(format.run, cursors[store])
        return run
    # A reader of several channels has the bodies from all who read this one; the ids carry all its own positions.
    bodies, after = log.encoded(format.bodies, cursors[store])
    positions = log.positions(after - len(bodies) + 1, len(bodies))
    cursors[store] = after
    others = position_of({other: cursor for other, cursor in cursors.items() if other is not store})
    ids = (f"{others},{position}" if others else str(position) for position in positions)
    return format.pack(map(format.frame, bodies, ids))


def position_of(cursors: Cursors) -> str:
    """The id that carries where a reader stands in all its logs; empty if none of them knows it."""
    # Without those that their log lost track of: their gap has not been told yet.
    return to_id(store.log.position_at(cursor) for store, cursor in cursors.items() if cursor != LOST)
