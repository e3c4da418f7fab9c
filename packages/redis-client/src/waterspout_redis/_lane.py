"""A lane: one connection, made when needed, on which the commands of all callers are pipelined.

What is called in one turn of the event loop is gathered in a `Turn` and written in one piece at its end. Turns wait
in one queue until they are written, connected or not; then until they are answered. Either way their order is the
order of the calls, so one timer keeps the deadlines of all of them.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, Task
from collections import deque
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Final, TypeAlias

from ._backoff import Backoff
from ._connection import Connection
from ._encoding import Packed, Parts
from ._errors import CallTimeout, ClosedError, ConnectError, RedisError, unanswered
from ._options import ConnectionOptions, Limits
from ._request import Request
from ._routing import reads_only
from ._session import PubSubMessage, Push
from ._slots import CallSlot, PipelineCall, fail
from ._state import LinkState
from ._turn import Turn

# What goes to the transport in one piece. It also bounds what a lost connection leaves in doubt.
_PIECE_COMMANDS: Final = 512
_PIECE_BYTES: Final = 256 * 1024

# Between attempts to connect. Callers wait for it, so it is short.
LONGEST_DELAY: Final = 1.0

_is_done: Final = methodcaller("done")

OnState: TypeAlias = Callable[[LinkState, RedisError | None], None]


class Lane:
    """The connection of one event loop. With `reconnect` False it connects once: who has a connection of his own has
    state on it, which a second one would not have."""

    def __init__(
        self,
        options: ConnectionOptions,
        limits: Limits,
        loop: AbstractEventLoop,
        on_state: OnState | None = None,
        *,
        reconnect: bool = True,
        backoff: Backoff | None = None,
    ) -> None:
        self._options, self._limits, self._loop, self.on_state = options, limits, loop, on_state
        self._reconnect = reconnect
        self._backoff = backoff or Backoff(LONGEST_DELAY)
        self._piece_commands = max(1, min(_PIECE_COMMANDS, limits.max_in_flight // 8))
        self._piece_bytes = max(1, min(_PIECE_BYTES, limits.max_in_flight_bytes // 8))
        self.connection: Connection | None = None
        self.lost: RedisError | None = None
        """Why it will not connect again."""
        self.turn: Turn | None = None
        """That of this turn of the loop, if anything was called in it."""
        self._queue: deque[Turn] = deque()
        self._written: deque[Turn] = deque()
        self.in_flight_bytes = 0
        """Bytes of commands that were written and not all answered yet, counted by whole pieces."""
        self._proven = self._leaving = False
        self._not_before = 0.0
        self._trouble: ConnectError | None = None
        self._failures = 0
        self._connecting: Task[None] | None = None
        self._connect_waiters: list[Future[None]] = []
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0
        self._pings = True

    # Calling

    @property
    def in_flight(self) -> int:
        """Commands that were written and are not answered yet."""
        return 0 if self.connection is None else self.connection.in_flight

    @property
    def waiting(self) -> int:
        """Commands and pipelines that were called and are not written yet."""
        return sum(len(turn.slots) for turn in (*self._queue, *((self.turn,) if self.turn else ())))

    @property
    def busy(self) -> bool:
        """Whether anything waits to be written, or for a reply."""
        return bool(self.turn or self._queue or self.in_flight)

    def expect_silence(self, until: float) -> None:
        """A command blocks: the server may owe its reply until then, in the loop's time, without a sign of life."""
        self._quiet_until = max(self._quiet_until, until)
        if self.connection is not None:
            self.connection.quiet_until = self._quiet_until

    def allow_pings(self, allowed: bool) -> None:
        """Whether it may be asked for a sign of life: in a transaction the PING would be one of its commands."""
        self._pings = allowed
        if self.connection is not None:
            self.connection.pings = allowed

    def begin_turn(self) -> Turn:
        """What is needed once for all calls of one turn of the loop: one look at the clock, one flush."""
        now = self._loop.time()
        self.turn = turn = Turn(now)
        self._loop.call_soon(self._flush)
        timeout = self._limits.timeout
        if self._deadline_timer is None and timeout is not None:
            self._deadline_timer = self._loop.call_at(now + timeout, self._expire)
        return turn

    def send(self, request: Request, future: Future[Any], encoding: str | None) -> CallSlot:
        """Have `future` answered with what is replied to `request`; returned is what waits for that."""
        slot = request.slot(future, encoding)
        if not request.command:
            future.set_result([])
            return slot
        turn = self.turn or self.begin_turn()
        turn.commands.append(request.command)
        turn.slots.append(slot)
        return slot

    def head_start(self) -> None:
        """Write what was called up to now in this turn of the loop. It goes on with the rest, and is due with it."""
        turn = self.turn
        if turn is not None:
            self.turn = Turn(turn.made_at)
            self._take(turn)

    def _flush(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None and turn.commands:
            self._take(turn)

    def _take(self, turn: Turn) -> None:
        self._queue.extend(turn.pieces(self._piece_commands, self._piece_bytes))
        self._write_queue()

    def _write_queue(self) -> None:
        """Write what may be written now: in order, within the bounds on what is in flight."""
        connection, queue, limits = self.connection, self._queue, self._limits
        if connection is None:
            if queue and self._trouble is not None and not limits.retry and self._waits_to_try_again():
                # It is known to be away, and nobody wants to wait until it may be back.
                self._fail_waiting(self._trouble.again)
            elif queue:
                self._start_connecting()
            return
        while queue and connection.writable and not self._leaving:
            turn = queue[0]
            awaited = turn.awaited()
            if connection.in_flight and (
                connection.in_flight + len(awaited) > limits.max_in_flight
                or self.in_flight_bytes + turn.size > limits.max_in_flight_bytes
            ):
                break
            if any(map(_is_done, awaited)):
                # Cancelled before it was sent: then it is not sent.
                turn.keep(lambda command, slot: not slot.done())
                if not turn.slots:
                    queue.popleft()
                continue
            queue.popleft()
            connection.write(turn.packed(), awaited)
            turn.end = connection.sent
            self.in_flight_bytes += turn.size
            self._written.append(turn)

    def _expire(self) -> None:
        """Time out what is due. Turns are due in the order they were made, so one timer does for all."""
        timeout = self._limits.timeout
        assert timeout is not None
        now = self._loop.time()
        self._deadline_timer = None
        due = now - timeout
        left = None
        for turn in self._written:
            if turn.made_at > due:
                left = turn
                break
            for slot in turn.slots:
                fail(slot, CallTimeout(timeout, maybe_executed=True))
        queue = self._queue
        while queue and queue[0].made_at <= due:
            turn = queue.popleft()
            for slot in turn.slots:
                fail(slot, CallTimeout(timeout, maybe_executed=False, reason=self._trouble))
        left = left or (queue[0] if queue else self.turn)
        if left is not None:
            # Not for each turn by its own: a hundredth of the time-out is precise enough.
            self._deadline_timer = self._loop.call_at(max(left.made_at + timeout, now + timeout / 100), self._expire)
        self._recycle()

    def _recycle(self) -> None:
        """Replies that nobody waits for take up room in flight: when they are too many, begin anew without them."""
        connection = self.connection
        if connection is not None and connection.in_flight > self._limits.max_in_flight // 2:
            forsaken = sum(slot.done() for turn in self._written for slot in turn.awaited())
            if forsaken > self._limits.max_in_flight // 2:
                connection.abort(connection.lost(f"{forsaken} commands were given up and not answered"))

    # The connection

    async def connect(self) -> None:
        """Connect now rather than at the first call. Raises ConnectError or ClosedError, or why it was lost."""
        if self.lost is not None:
            raise unanswered(self.lost, maybe_executed=False)
        if self.connection is None:
            waiter: Future[None] = self._loop.create_future()
            self._connect_waiters.append(waiter)
            self._start_connecting()
            await waiter

    def disconnect(self, reason: str) -> None:
        """Drop the connection and all calls that wait, which get ClosedError."""
        task, self._connecting = self._connecting, None
        if task is not None:
            task.cancel()
            self._change_state(LinkState.DISCONNECTED, None)
        self._fail_waiting(lambda: ClosedError(reason))
        if self.connection is not None:
            self.connection.abort(ClosedError(reason))

    async def aclose(self) -> None:
        """Disconnect, and return when the socket is given back."""
        task, connection = self._connecting, self.connection
        self.lost = ClosedError()
        self.disconnect("the client is closed")
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if task is not None:
            await asyncio.wait((task,))
        if connection is not None:
            await connection.wait_released()

    def _start_connecting(self) -> None:
        """One attempt at a time, however many wait for it."""
        if self.lost is not None:
            lost = self.lost
            self._fail_waiting(lambda: unanswered(lost, maybe_executed=False))
        elif self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._open()
        except asyncio.CancelledError:
            # By disconnect(), which has cleaned up; or because the loop shuts down, and nobody would try again.
            if self._connecting is asyncio.current_task():
                self.disconnect("the event loop was shut down")
            raise
        self._connecting = None
        if connection is None:
            return
        self._trouble, self._failures = None, 0
        self.connection = connection
        connection.quiet_until, connection.pings = self._quiet_until, self._pings
        self._proven = self._leaving = False
        self._change_state(LinkState.CONNECTED, None)
        waiters, self._connect_waiters = self._connect_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._write_queue()

    async def _open(self) -> Connection | None:
        """A connection, or None when it could not be made and nobody waits for it any more."""
        while True:
            delay = self._not_before - self._loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            self._change_state(LinkState.CONNECTING, None)
            try:
                return await Connection.open(self._options, self)
            except ConnectError as error:
                self._trouble = error
                self._failures += 1
                self._not_before = self._loop.time() + self._backoff.next_delay()
                self._change_state(LinkState.DISCONNECTED, error)
                if self._gives_up(error):
                    self._fail_waiting(error.again)
                else:
                    # Who asked to connect is told; a command waits for some more attempts.
                    self._fail_waiters(error.again)
                if not self._queue:
                    return None

    def _gives_up(self, error: ConnectError) -> bool:
        """Whether commands wait no longer for a connection."""
        return error.hopeless or self._failures > self._limits.retry

    def _waits_to_try_again(self) -> bool:
        return self._connecting is None and self._loop.time() < self._not_before

    def _fail_waiting(self, error: Callable[[], RedisError]) -> None:
        """Nothing of what waits was sent: say so to each, with an error of its own."""
        queue, self._queue = self._queue, deque()
        if self.turn is not None:
            queue.append(self.turn)
            self.turn = None
        for turn in queue:
            for slot in turn.slots:
                fail(slot, error())
        self._fail_waiters(error)

    def _fail_waiters(self, error: Callable[[], RedisError]) -> None:
        waiters, self._connect_waiters = self._connect_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error())

    def _change_state(self, state: LinkState, error: RedisError | None) -> None:
        if self.on_state is not None:
            self.on_state(state, error)

    # What the connection tells its owner

    def messages_received(self, messages: list[PubSubMessage], size: int) -> None:
        """Dropped: who wants messages uses a `PubSubClient`."""

    def push_received(self, push: Push) -> None:
        """Dropped: nothing was asked for that the server could push."""

    def refused_to_write(self) -> None:
        """It was the master and is a replica now, or never was the master: what is in flight is answered, then we
        connect anew, to where the name leads now."""
        self._leaving = True

    def has_room(self) -> None:
        connection = self.connection
        assert connection is not None
        self._proven = True
        written, answered = self._written, connection.answered
        while written and written[0].end <= answered:
            self.in_flight_bytes -= written.popleft().size
        if self._quiet_until and not self.busy:
            # What blocked was answered: from now on silence means something again.
            self._quiet_until = connection.quiet_until = 0.0
        if self._leaving and not connection.in_flight:
            connection.abort(connection.lost("the server is a replica that takes no writes"))
        elif self._queue:
            self._write_queue()

    def connection_lost(self, error: RedisError) -> None:
        self.connection = None
        written, self._written = self._written, deque()
        self.in_flight_bytes = 0
        if not self._reconnect:
            self.lost = error
        again = not isinstance(error, ClosedError) and self.lost is None
        for turn in reversed(written):
            turn.attempts += 1
            if not again or turn.attempts > self._limits.retry:
                turn.keep(lambda command, slot: _give_up(slot, error))
            else:
                turn.keep(lambda command, slot: _can_repeat(command, slot) or _give_up(slot, error))
            if turn.slots:
                self._queue.appendleft(turn)
        if isinstance(error, ClosedError):
            self._change_state(LinkState.DISCONNECTED, None)
            return
        self._change_state(LinkState.DISCONNECTED, error)
        if self._proven and not self._leaving:
            self._backoff.reset()
        else:
            # The server took us only to send us away: that is no better than a refusal.
            self._not_before = self._loop.time() + self._backoff.next_delay()
        if self._queue:
            self._start_connecting()


def _can_repeat(command: Packed, slot: CallSlot) -> bool:
    """Whether it does no harm to send it twice."""
    if slot.done() or isinstance(slot, PipelineCall) or isinstance(command, Parts):
        return False
    return reads_only(command)


def _give_up(slot: CallSlot, error: RedisError) -> bool:
    fail(slot, unanswered(error, maybe_executed=True))
    return False
