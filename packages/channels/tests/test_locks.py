"""Locks, in one process and on a clock moved by hand; with several processes and Redis in integration/test_locks.py."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from waterspout_channels import Channels, Lock, LockError, _locks
from waterspout_core import BrokerError, MemoryBroker, MemoryLeases, MemoryPubSub


class Node:
    """The leases of one broker, as one of several processes has them: with a link of its own, that may fail."""

    def __init__(self, leases: MemoryLeases) -> None:
        self._leases = leases
        self.away = self.refuses = False
        self.lose_answers = False
        """Whether calls are carried out, and their answers never come."""
        self.delay = 0.0
        """Seconds that a call and its answer take."""
        self.claims = 0

    async def claim(self, name: str, token: str, seconds: float, *, wait: float = 0.0) -> bool:
        self.claims += 1
        return await self._ask(partial(self._leases.claim, name, token, seconds, wait=wait))

    async def renew(self, name: str, token: str, seconds: float) -> bool:
        return await self._ask(partial(self._leases.renew, name, token, seconds))

    async def release(self, name: str, token: str) -> bool:
        return await self._ask(partial(self._leases.release, name, token))

    async def _ask(self, call: Callable[[], Awaitable[bool]]) -> bool:
        if self.delay:
            await asyncio.sleep(self.delay / 2)
        if self.away or self.refuses:
            raise BrokerError("NOPERM" if self.refuses else "the broker is away", final=self.refuses)
        answer = await call()
        if self.lose_answers:
            await asyncio.sleep(10)
            raise BrokerError("no answer", maybe_done=True)
        if self.delay:
            await asyncio.sleep(self.delay / 2)
        return answer


@pytest.fixture
def leases() -> MemoryLeases:
    return MemoryLeases()


@pytest.fixture
def here(leases: MemoryLeases) -> Node:
    return Node(leases)


@pytest.fixture
def there(leases: MemoryLeases) -> Node:
    return Node(leases)


@pytest.fixture(autouse=True)
def nothing_is_left(leases: MemoryLeases) -> Iterator[None]:
    yield
    gc.collect()
    assert not any(lines for lines in _locks._lines.values())
    assert not any(leases._lines.values())


async def until(condition: Any, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(0.01)


async def test_d31_one_at_a_time_has_it(clock: Any, here: Node, there: Node) -> None:
    one, other = Lock(here, "job"), Lock(there, "job")
    assert await one.acquire()
    assert (one.locked(), other.locked()) == (True, False)
    assert not await other.acquire(blocking=False)
    assert await Lock(there, "another job").acquire(blocking=False)
    await one.release()
    assert not one.locked()
    assert await other.acquire(blocking=False)
    await other.release()


async def test_d31_its_name_is_prefixed_so_each_namespace_has_its_own(clock: Any) -> None:
    broker = MemoryBroker()
    one, same, other = [Channels(MemoryPubSub(broker), namespace=name) for name in ("shop:", "shop:", "mill:")]
    async with one.lock("job") as lock:
        assert lock.key == "waterspout:lock:{shop:job}"
        assert not await same.lock("job", blocking=False).acquire()
        async with other.lock("job", timeout=5, blocking=1, sleep=0.1, renew=False) as another:
            assert (another.timeout, another.blocking, another.sleep, another.renew) == (5, 1, 0.1, False)
    for channels in (one, same, other):
        await channels.aclose()


async def test_d31_async_with_raises_where_it_is_not_got(clock: Any, here: Node, there: Node) -> None:
    async with Lock(here, "job") as lock:
        assert lock.locked()
        for blocking in (False, 0.5):
            with pytest.raises(LockError, match="'job' was not got"):
                async with Lock(there, "job", blocking=blocking):
                    raise AssertionError("it was held by somebody else")
    assert not lock.locked()


@pytest.mark.parametrize("node", ["here", "there"])  # of the same process, and of another one
async def test_d31_it_is_waited_for_as_long_as_was_said(clock: Any, here: Node, there: Node, node: str) -> None:
    held = Lock(here, "job")
    await held.acquire()
    begun = time.monotonic()
    lock = Lock({"here": here, "there": there}[node], "job", blocking=5)
    assert not await lock.acquire()
    assert time.monotonic() - begun == pytest.approx(5)
    assert not await lock.acquire(blocking=1.5)
    assert time.monotonic() - begun == pytest.approx(6.5)
    waiting = asyncio.create_task(lock.acquire(blocking=True))
    await asyncio.sleep(3600)
    assert not waiting.done()
    await held.release()
    assert await waiting
    await lock.release()


async def test_d31_who_waits_asks_about_every_sleep_seconds(clock: Any, here: Node, there: Node) -> None:
    held = Lock(here, "job")
    await held.acquire()
    assert not await Lock(there, "job", blocking=100, sleep=2).acquire()
    assert 40 <= there.claims <= 67
    await held.release()


async def test_d31_releasing_a_lost_lock_raises_and_forgets_it(clock: Any, here: Node, leases: MemoryLeases) -> None:
    lock = Lock(here, "job")
    await lock.acquire()
    leases._held[lock.key] = "somebody else", time.monotonic() + 60
    with pytest.raises(LockError, match="'job' was lost"):
        await lock.release()
    with pytest.raises(LockError, match="'job' is not held"):
        await lock.release()
    assert leases._held[lock.key][0] == "somebody else"


async def test_d31_without_renewal_it_ends_with_its_timeout(clock: Any, here: Node, there: Node, caplog: Any) -> None:
    lock, other = Lock(here, "job", timeout=5, renew=False), Lock(there, "job", sleep=0.1)
    begun = time.monotonic()
    assert await lock.acquire()
    waiting = asyncio.create_task(other.acquire())
    await lock.lost.wait()
    assert time.monotonic() - begun == pytest.approx(5)
    assert not lock.locked()
    assert await waiting
    assert time.monotonic() - begun == pytest.approx(5, abs=0.15)
    assert "'job' was lost" in caplog.text
    with pytest.raises(LockError, match="was lost"):
        await lock.release()
    await other.release()


async def test_who_waits_in_this_process_gets_it_in_order_of_arrival_and_at_once(clock: Any, here: Node) -> None:
    held, order = Lock(here, "job"), list[int]()
    await held.acquire()

    async def work(number: int) -> None:
        async with Lock(here, "job"):
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(number)) for number in range(50)]
    await asyncio.sleep(1)
    tasks[3].cancel()
    assert order == []
    claims = here.claims
    await held.release()
    begun = time.monotonic()
    await asyncio.wait(tasks)
    assert order == [0, 1, 2, *range(4, 50)]
    assert time.monotonic() - begun < 0.3  # the first one was asleep; nobody else was
    assert here.claims - claims <= 51  # the others had not asked meanwhile


async def test_who_does_not_wait_does_not_stand_behind_those_who_do(clock: Any, here: Node) -> None:
    held = Lock(here, "job")
    await held.acquire()
    waiting = asyncio.create_task(Lock(here, "job").acquire())
    await asyncio.sleep(1)
    await held.release()
    begun = time.monotonic()
    assert not await Lock(here, "job").acquire(blocking=False)  # although nobody has it in this moment
    assert time.monotonic() == begun
    assert await waiting


async def test_processes_take_turns_however_many_wait_in_each(clock: Any, leases: MemoryLeases) -> None:
    nodes, order = [Node(leases) for _ in range(3)], list[int]()

    async def work(number: int) -> None:
        while len(order) < 60:
            async with Lock(nodes[number], "job"):
                order.append(number)
                await asyncio.sleep(0.05)

    # Each comes again and again; so one of them would always be quick enough to have it all the time.
    await asyncio.gather(*(work(number) for number in (0, 0, 0, 0, 0, 1, 1, 2)))
    for start in range(3, 57, 3):
        assert sorted(order[start : start + 3]) == [0, 1, 2], order


async def test_a_place_in_line_that_nobody_claims_is_soon_forgotten(clock: Any, here: Node, there: Node) -> None:
    held, gone, waits = Lock(here, "job"), Lock(there, "job"), Lock(here, "job")
    await held.acquire()
    waiting = asyncio.create_task(gone.acquire())
    await asyncio.sleep(1)
    there.away = True  # as if its process had been killed
    waiting.cancel()
    await asyncio.wait([waiting])
    await held.release()
    begun = time.monotonic()
    async with waits:
        assert time.monotonic() - begun < 2
    there.away = False


async def test_it_is_renewed_as_long_as_it_is_held(clock: Any, here: Node, there: Node) -> None:
    for timeout in (None, 0.3):
        async with Lock(here, "job", timeout) as lock:
            assert not await Lock(there, "job", sleep=0.03).acquire(blocking=600)
            assert lock.locked()
            assert not lock.lost.is_set()


async def test_a_holder_that_died_keeps_it_no_longer_than_its_timeout(
    clock: Any, here: Node, leases: MemoryLeases
) -> None:
    lock = Lock(here, "job")
    await leases.claim(lock.key, "of a process that was killed", 30)
    begun = time.monotonic()
    async with lock:
        assert time.monotonic() - begun == pytest.approx(30, abs=0.3)


async def test_a_holder_from_whom_it_was_taken_is_told(
    clock: Any, here: Node, there: Node, leases: MemoryLeases, caplog: Any
) -> None:
    lock, other = Lock(here, "job"), Lock(here, "job")
    await lock.acquire()
    leases._held.clear()  # as a Redis that has lost its data
    async with Lock(there, "job"):
        begun = time.monotonic()
        await lock.lost.wait()
        assert time.monotonic() - begun == pytest.approx(10)
        assert not lock.locked()
        assert "'job' was lost" in caplog.text
        waiting = asyncio.create_task(other.acquire())  # nobody of this process holds it any more
        await asyncio.sleep(1)
    assert await waiting
    with pytest.raises(LockError, match="was lost"):
        await lock.release()
    assert other.locked()
    await other.release()


async def test_a_short_outage_of_the_broker_does_no_harm(clock: Any, here: Node) -> None:
    async with Lock(here, "job") as lock:
        here.away = True
        await asyncio.sleep(29)
        assert lock.locked()
        here.away = False
        await asyncio.sleep(1)
        here.away = True
        await asyncio.sleep(28)
        assert lock.locked()
        here.away = False


@pytest.mark.parametrize("renewals", [0, 1])
@pytest.mark.parametrize("answers", ["away", "lost"])
async def test_in_a_long_outage_it_is_lost_before_anybody_else_can_have_it(
    clock: Any, here: Node, there: Node, answers: str, renewals: int
) -> None:
    here.delay = 2.0  # so the lease began later than it was asked for, and earlier than that was answered
    lock = Lock(here, "job")
    await lock.acquire()
    await asyncio.sleep(13 * renewals)  # asked for after 10, answered after 12
    taken = asyncio.create_task(Lock(there, "job", sleep=0.01).acquire())
    here.away = answers == "away"
    here.lose_answers = answers == "lost"
    begun = time.monotonic() - (3.0 if renewals else 2.0)
    await until(lambda: not lock.locked())
    assert time.monotonic() - begun == pytest.approx(30, abs=0.1)
    await lock.lost.wait()
    assert not taken.done()
    assert await taken
    here.away = here.lose_answers = False
    with pytest.raises(LockError):
        await lock.release()


async def test_a_holder_that_was_suspended_knows_at_once_that_it_is_not_one_any_more(
    clock: Any, here: Node, there: Node
) -> None:
    lock = Lock(here, "job")
    await lock.acquire()
    clock.now += 31  # nothing ran meanwhile
    assert not lock.locked()
    assert await Lock(there, "job").acquire(blocking=False)
    here.lose_answers = True  # so that whoever asked would have to wait
    begun = time.monotonic()
    with pytest.raises(LockError, match="was lost"):
        await lock.release()
    assert time.monotonic() == begun
    assert lock.lost.is_set()


async def test_a_refusal_while_it_is_held_is_a_loss_told_in_time(clock: Any, here: Node) -> None:
    lock = Lock(here, "job")
    await lock.acquire()
    here.refuses = True  # as everything is once the channels are closed
    begun = time.monotonic()
    await lock.lost.wait()
    assert time.monotonic() - begun == pytest.approx(10)
    with pytest.raises(LockError):
        await lock.release()


async def test_who_waits_waits_for_a_broker_that_is_away_too(clock: Any, here: Node) -> None:
    here.away = True
    waiting = asyncio.create_task(Lock(here, "job").acquire())
    await asyncio.sleep(100)
    assert not waiting.done()
    here.away = False
    assert await waiting


async def test_who_does_not_wait_is_told_that_the_broker_is_away(clock: Any, here: Node) -> None:
    here.away = True
    lock = Lock(here, "job")
    begun = time.monotonic()
    with pytest.raises(BrokerError, match="away"):
        await lock.acquire(blocking=False)
    assert time.monotonic() == begun
    with pytest.raises(BrokerError, match="away"):
        await lock.acquire(blocking=5)
    assert time.monotonic() == pytest.approx(begun + 5)
    here.refuses = True
    with pytest.raises(BrokerError, match="NOPERM"):
        await lock.acquire(blocking=100)
    assert time.monotonic() == pytest.approx(begun + 5)


async def test_a_claim_whose_answer_was_lost_is_ours_all_the_same(clock: Any, here: Node) -> None:
    here.lose_answers = True
    waiting = asyncio.create_task(Lock(here, "job").acquire())
    await asyncio.sleep(1)
    here.lose_answers = False
    begun = time.monotonic()
    assert await waiting
    assert time.monotonic() - begun < 10  # and not when the lease of the first one is over


async def test_who_gets_no_answer_at_all_is_told_so_and_not_that_somebody_else_has_it(clock: Any, here: Node) -> None:
    here.lose_answers = True
    with pytest.raises(BrokerError, match=r"not answered for 1\.0 s"):
        await Lock(here, "job", blocking=1).acquire()
    await asyncio.sleep(20)  # until nothing is under way any more


async def test_a_claim_that_is_answered_too_late_is_no_lock(clock: Any, here: Node) -> None:
    here.delay = 2.0
    lock = Lock(here, "job", timeout=1.0)
    assert not await lock.acquire(blocking=10)
    assert not await lock.acquire(blocking=False)
    assert not lock.locked()
    await asyncio.sleep(5)


@pytest.mark.parametrize("after", [0.5, 1.5, 2.5])  # before the claim is there, before its answer is, after it
async def test_who_is_cancelled_while_waiting_leaves_nothing_behind(
    clock: Any, here: Node, there: Node, leases: MemoryLeases, after: float
) -> None:
    held, lock = Lock(there, "job"), Lock(here, "job", sleep=100)
    await held.acquire()
    here.delay = 2.0
    waiting = asyncio.create_task(lock.acquire())
    await asyncio.sleep(after)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    here.delay = 0.0
    await asyncio.sleep(3)
    assert not any(leases._lines.values())
    await held.release()
    assert await lock.acquire(blocking=False)
    await lock.release()


async def test_who_is_cancelled_while_it_gets_the_lock_gives_it_back(clock: Any, here: Node, there: Node) -> None:
    here.delay = 2.0
    waiting = asyncio.create_task(Lock(here, "job").acquire())
    await asyncio.sleep(1.5)
    assert not await Lock(there, "job").acquire(blocking=False)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await Lock(there, "job").acquire(blocking=2)


async def test_who_is_cancelled_while_giving_it_back_gives_it_back(clock: Any, here: Node, there: Node) -> None:
    lock, other = Lock(here, "job"), Lock(here, "job")
    await lock.acquire()
    here.delay = 2.0
    releasing = asyncio.create_task(lock.release())
    await asyncio.sleep(0.5)
    releasing.cancel()
    await asyncio.wait([releasing])
    assert releasing.cancelled()
    with pytest.raises(LockError, match="not held"):
        await lock.release()
    assert await other.acquire(blocking=5)  # and nobody of this process stands in the way
    here.delay = 0.0
    await other.release()


async def test_a_broker_that_is_away_when_it_is_given_back_lets_it_end(clock: Any, here: Node, there: Node) -> None:
    lock = Lock(here, "job")
    await lock.acquire()
    here.away = True
    with pytest.raises(BrokerError, match="away"):
        await lock.release()
    assert not lock.locked()
    here.away = False
    begun = time.monotonic()
    async with Lock(there, "job"):
        assert time.monotonic() - begun == pytest.approx(30, abs=0.3)


async def test_one_object_serves_several_tasks_one_after_the_other(clock: Any, here: Node) -> None:
    lock, inside, most = Lock(here, "job"), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with lock:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(1)
            inside -= 1

    begun = time.monotonic()
    await asyncio.gather(*(work() for _ in range(5)))
    assert most == 1
    assert time.monotonic() - begun == pytest.approx(5)


async def test_an_object_that_lost_it_has_to_be_released_before_it_is_used_again(
    clock: Any, here: Node, leases: MemoryLeases
) -> None:
    lock = Lock(here, "job")
    await lock.acquire()
    leases._held.clear()
    await lock.lost.wait()
    with pytest.raises(LockError, match="not released"):
        await lock.acquire()
    with pytest.raises(LockError, match="was lost"):
        await lock.release()
    async with lock:
        assert lock.locked()
        assert not lock.lost.is_set()


async def test_a_leases_mistake_is_a_loss_and_no_silence(clock: Any, here: Node, caplog: Any) -> None:
    lock = Lock(here, "job")
    await lock.acquire()
    here.renew = None  # type: ignore[method-assign, assignment]
    await lock.lost.wait()
    assert "TypeError" in caplog.text
    with pytest.raises(LockError):
        await lock.release()


async def test_nothing_runs_any_more_when_it_is_released(clock: Any, here: Node) -> None:
    before = asyncio.all_tasks()
    async with Lock(here, "job"):
        assert len(asyncio.all_tasks()) == len(before) + 1
    await clock.turn()
    assert asyncio.all_tasks() == before
    loop: Any = asyncio.get_running_loop()
    assert [handle for handle in loop._scheduled if not handle.cancelled()] == []


def test_a_loop_that_ends_while_it_is_held_gives_it_back(here: Node, leases: MemoryLeases) -> None:
    lock = Lock(here, "job")

    async def work() -> None:
        async with lock:
            await asyncio.sleep(60)

    async def use() -> None:
        task = asyncio.create_task(work())
        await until(lock.locked)
        assert not task.done()  # and is cancelled with all others when we return

    for _ in range(2):
        asyncio.run(use())
        assert leases._held == {}


def test_a_lock_left_in_one_loop_does_not_stand_in_the_way_in_the_next(here: Node) -> None:
    lock = Lock(here, "job")
    assert asyncio.run(lock.acquire())

    async def use() -> None:
        assert not await Lock(here, "job").acquire(blocking=0.3)
        await lock.release()
        async with lock:
            assert lock.locked()

    asyncio.run(use())


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 3},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("inf")},
        {"sleep": 0},
        {"blocking": -1},
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(here: Node, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* not {next(iter(wrong.values()))!r}"):
        Lock(here, **{"name": "job", **wrong})


def test_a_name_whose_keys_a_cluster_would_keep_apart_is_refused(here: Node) -> None:
    with pytest.raises(ValueError, match="brace"):
        Lock(here, "}job")
    assert Lock(here, "{job}").key == "waterspout:lock:{{job}}"


async def test_closing_the_channels_releases_what_they_have_locked_and_leaves_no_task() -> None:
    broker = MemoryBroker()
    tasks = asyncio.all_tasks()
    closing, other = Channels(MemoryPubSub(broker)), Channels(MemoryPubSub(broker))
    lock = closing.lock("job")
    assert await lock.acquire()
    await closing.aclose()
    assert not lock.locked()
    assert asyncio.all_tasks() == tasks
    assert await other.lock("job", blocking=False).acquire()
    await other.aclose()


async def test_it_says_what_it_is(clock: Any, here: Node) -> None:
    lock = Lock(here, "job")
    assert repr(lock) == "<Lock 'job': not held>"
    assert lock.key == "waterspout:lock:{job}"
    assert Lock(here, "job", key="job").key == "job"
    async with lock:
        assert repr(lock) == "<Lock 'job': held>"
