"""What `fanout.py` measures of one server, each time of a fresh one. Each function returns its figures by name."""

from __future__ import annotations

import statistics
import time
from typing import Any, Final

from fanout_load import LedgerError, Subscribers
from fanout_peers import PEERS
from fanout_process import Server, await_subscribers

BURST: Final = 100
MOST_FOR_BURSTS: Final = 10_000  # subscribers; beyond it, those who send each message alone would take minutes
WARM_UP: Final = 5  # messages before anything is measured
FEWEST: Final = 20  # messages one at a time
BURSTS_FOR: Final = 0.3  # seconds at least
SETTLE: Final = 0.05  # seconds for what a server does behind the last delivery
IDLE_INTERVALS: Final = 2
HEARTBEAT: Final = 25.0
"""Seconds: what Waterspout does by default."""

LOG: Final = 10_000  # messages that a QueueStore keeps
UNREAD: Final = 6_000_000
"""Bytes of messages that fill the buffers of a socket for certain."""


class Trial:
    """A server, its subscribers, and the turns they take."""

    def __init__(self, server: Server, subscribers: Subscribers) -> None:
        self.server = server
        self.subscribers = subscribers

    def publish(self, count: int) -> None:
        self.server.publish(count)
        self.subscribers.expect(count)

    def publish_each(self, count: int) -> list[float]:
        """One at a time, each when the one before has arrived everywhere; percentiles of the latency in ms, 1 to 99."""
        del self.subscribers.latencies[:]
        for _ in range(count):
            self.publish(1)
        return [each / 1e6 for each in statistics.quantiles(self.subscribers.latencies, n=100)]

    def subscribe(self, count: int) -> int:
        """Add so many; the server's resident memory then."""
        self.subscribers.connect(self.server.port, count)
        await_subscribers(self.server, len(self.subscribers))
        return self.server.memory()

    def cpu(self) -> int:
        time.sleep(SETTLE)
        return self.server.cpu()


def deliveries(name: str, number: int, wanted: int, cpu: int | None) -> dict[str, Any]:
    """About `wanted` deliveries to `number` subscribers, one message at a time, and then in bursts.

    CPU in µs per delivery, `rate` in deliveries a second, latencies in ms, `memory` in bytes per idle subscriber.
    """
    peer = PEERS[name]
    with Subscribers(peer.protocol, spin=cpu is not None) as subscribers, peer.start(cpu) as server:
        trial = Trial(server, subscribers)
        # The first tenth warms the server up: what only the first requests need is not charged to a subscriber.
        early = max(number // 10, 1)
        trial.subscribe(early)
        trial.publish_each(WARM_UP)
        before = server.memory()
        memory = (trial.subscribe(number - early) - before) / (number - early)
        trial.publish_each(WARM_UP)

        messages = max(wanted // number, FEWEST)
        used, began = trial.cpu(), time.monotonic_ns()
        latencies = trial.publish_each(messages)
        wall = time.monotonic_ns() - began
        count = messages * number
        figures = {
            "cpu": (trial.cpu() - used) / count / 1e3,
            "rate": count / wall * 1e9,
            "p50": latencies[49],
            "p99": latencies[98],
            "memory": memory,
        }
        if number <= MOST_FOR_BURSTS:
            used, bursts, end = trial.cpu(), 0, time.monotonic() + BURSTS_FOR
            while not bursts or time.monotonic() < end:
                trial.publish(BURST)
                bursts += 1
            figures["burst_cpu"] = (trial.cpu() - used) / (bursts * BURST * number) / 1e3
    return figures


def idle(name: str, number: int, heartbeat: float, cpu: int | None) -> dict[str, Any]:
    """The CPU of a server whose `number` subscribers get nothing but a heartbeat every `heartbeat` seconds.

    In percent of a core, as it is with the default interval if all of it is the heartbeats'. `beats` is what a
    subscriber got of them.
    """
    peer = PEERS[name]
    options = () if heartbeat == HEARTBEAT else ("--heartbeat", str(heartbeat))
    seconds = IDLE_INTERVALS * heartbeat
    with Subscribers(peer.protocol, spin=False) as subscribers, peer.start(cpu, *options) as server:
        trial = Trial(server, subscribers)
        trial.subscribe(number)
        trial.publish(1)
        subscribers.beats, used = 0, trial.cpu()
        subscribers.listen(seconds)
        percent = (trial.cpu() - used) / seconds / 1e7 * heartbeat / HEARTBEAT
        beats = subscribers.beats / number
        trial.publish(1)  # all are still there
    if beats < IDLE_INTERVALS - 1:
        raise LedgerError(f"in {seconds:g} s each subscriber got {beats:.2f} heartbeats")
    return {"cpu": percent, "beats": beats, "heartbeat": heartbeat}


def stopped(name: str, number: int, wanted: int, cpu: int | None) -> dict[str, Any]:
    """What it does to the others when one in a hundred stops to read: p99 in ms, and the server's memory in bytes.

    They stop for as long as it takes to fill the buffers of their sockets and to publish all of the log anew, and have
    to be told of a gap in the end.
    """
    peer = PEERS[name]
    messages = max(wanted // number, FEWEST)
    lazy = max(number // 100, 1)
    with Subscribers(peer.protocol, spin=cpu is not None) as subscribers, peer.start(cpu) as server:
        trial = Trial(server, subscribers)
        trial.subscribe(number - lazy)
        some = subscribers.connect(server.port, lazy, small=True)
        await_subscribers(server, number)
        log = range(LOG // BURST)
        for _ in log:  # it does not grow from now on
            trial.publish(BURST)
        without = trial.publish_each(messages)[98]
        before = server.memory()

        subscribers.stop_reading(some)
        for _ in range(UNREAD // BURST // BURST):
            trial.publish(BURST)
        with_them = trial.publish_each(messages)[98]
        for _ in log:
            trial.publish(BURST)
        after = server.memory()
        subscribers.catch_up(some)
    return {"p99": with_them, "p99_without": without, "grown": after - before, "stopped": lazy}
