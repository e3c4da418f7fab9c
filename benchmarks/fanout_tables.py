"""What `fanout.py` has measured, as tables in Markdown: what was aimed at first, then all figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fanout_peers import PEERS
from fanout_report import Results
from fanout_servers import PAYLOAD_BYTES
from fanout_work import BURST, HEARTBEAT, MOST_FOR_BURSTS
from redis_client_report import mark, table, times

KiB: Final = 1024
MiB: Final = 1024 * KiB
FLAT: Final = 2 * MiB
"""What an allocator takes and keeps without anything growing."""

P95: Final = 10.0  # ms
TIMES: Final = "\N{MULTIPLICATION SIGN}"
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True)
class Target:
    """One line of the first table: what is aimed at, and what is said of what was measured; empty if nothing was."""

    title: str
    aim: str
    told: Callable[[Results], str]


def judged(text: str, kept: bool) -> str:
    return text + mark(kept, False)


def factor(ratio: float) -> str:
    return times(ratio) if ratio < 100 else f"{ratio:,.0f} {TIMES}"


def against(one: str, other: str, bound: float, most: int = 10**9, figure: str = "cpu") -> Callable[[Results], str]:
    """The ratio of two peers' CPU per delivery, for each number of subscribers up to `most`."""

    def told(results: Results) -> str:
        ratios = [results.ratio(one, other, number, figure, "cpu") for number in numbers(results) if number <= most]
        return " / ".join(judged(factor(ratio), ratio <= bound) for ratio in ratios if ratio is not None)

    return told


def floors(results: Results) -> str:
    """How near the loop in Python, against which the others are judged, is to the same in C."""
    ratios = [results.ratio("floor", "floor-c", number) for number in numbers(results)]
    return " / ".join(factor(ratio) for ratio in ratios if ratio is not None)


def memory(results: Results) -> str:
    number = best_number(results)
    grown = results.median("memory", "deliveries", peer="eventsource", subscribers=number)
    if grown is None:
        return ""
    others = {
        PEERS[peer].title: results.median("memory", "deliveries", peer=peer, subscribers=number)
        for peer in ("nchan", "sse-starlette")
    }
    beside = ", ".join(f"{title} {other / KiB:.1f}" for title, other in others.items() if other is not None)
    return judged(f"{grown / KiB:.1f} KiB", grown <= 5 * KiB) + (f" ({beside})" if beside else "")


def idle(peer: str, results: Results) -> str:
    samples = results.of("idle", peer=peer)
    if not samples:
        return ""
    percent = statistics.median(sample["cpu"] for sample in samples)
    text = judged(f"{percent:.2f} %", percent <= 2)
    if (heartbeat := samples[0]["heartbeat"]) != HEARTBEAT:
        text += f" (scaled from one each {heartbeat:g} s)"
    return text


def redis(results: Results) -> str:
    told = []
    for history in results.each("redis", "history"):
        p95 = results.median("p95", "redis", history=history)
        assert p95 is not None
        told.append(judged(f"{p95:.1f} ms, none lost", p95 <= P95) + (" with history" if history else ""))
    return "; ".join(told)


def stopped(results: Results) -> str:
    samples = results.of("stopped")
    if not samples:
        return ""
    ratio = statistics.median(sample["p99"] / sample["p99_without"] for sample in samples)
    grown = max(sample["grown"] for sample in samples)
    return f"{judged(times(ratio), ratio <= 1.2)}, {judged(f'{grown / MiB:+.1f} MiB', grown <= FLAT)}"


TARGETS: Final = (
    Target("SSE, against a bare loop of `send`", f"≤ 1.3 {TIMES}", against("eventsource", "floor", 1.3)),
    Target("WebSocket, against a bare loop of `send`", f"≤ 1.3 {TIMES}", against("websocket", "floor", 1.3)),
    Target("this loop, which is in Python, against the same in C", "", floors),
    Target("SSE, against nchan", f"≤ 1 {TIMES}", against("eventsource", "nchan", 1, MOST_FOR_BURSTS)),
    Target("WebSocket, against nchan", f"≤ 1 {TIMES}", against("websocket", "nchan-websocket", 1, MOST_FOR_BURSTS)),
    Target(
        "SSE, against sse-starlette", f"≤ 0.25 {TIMES}", against("eventsource", "sse-starlette", 0.25, MOST_FOR_BURSTS)
    ),
    Target(
        "WebSocket, against websockets' `broadcast`",
        f"≤ 0.75 {TIMES}",
        against("websocket", "websockets", 0.75, MOST_FOR_BURSTS),
    ),
    *(
        Target(
            f"{what} in bursts of {BURST}, against one message at a time",
            f"≤ 0.10 {TIMES}",
            against(peer, peer, 0.1, MOST_FOR_BURSTS, "burst_cpu"),
        )
        for what, peer in (("SSE", "eventsource"), ("WebSocket", "websocket"))
    ),
    Target("resident memory per idle SSE subscriber", "≤ 5 KiB", memory),
    Target("idle CPU of a core, heartbeats on, SSE", "≤ 2 %", partial(idle, "eventsource")),
    Target("idle CPU of a core, heartbeats on, WebSocket", "≤ 2 %", partial(idle, "websocket")),
    Target(
        "1,500 subscribers, 5 channels, 50 messages a second, through Redis: p95", f"≤ {P95:g} ms, none lost", redis
    ),
    Target("1 % stop reading: the others' p99, and memory", f"≤ 1.2 {TIMES}, flat", stopped),
)


def numbers(results: Results) -> list[int]:
    """How many subscribers there were."""
    return sorted(results.each("deliveries", "subscribers"))


def best_number(results: Results) -> int:
    """At which memory is told: where the bursts end too."""
    found = numbers(results)
    return max((number for number in found if number <= MOST_FOR_BURSTS), default=found[0] if found else 0)


def markdown(results: Results) -> str:
    """All tables, and what has to be known to read them."""
    parts = [table(targets(results))]
    if numbers(results):
        parts += ["CPU of the server per delivery, µs, and how many times that of the bare loop in Python:"]
        parts += [table(costs(results)), "Deliveries a second, one message at a time, and p50 / p99 of the latency:"]
        parts += [table(rates(results))]
    if results.of("redis"):
        parts += ["Through Redis:", redis_table(results.samples)]
    return "\n\n".join([*parts, *about(results)])


def targets(results: Results) -> list[list[str]]:
    """What is aimed at, and what was measured."""
    told = " / ".join(f"{number:,}" for number in numbers(results))
    lines = [["CPU per delivery, and more", "aimed at", f"measured, with {told} subscribers"]]
    return [*lines, *([target.title, target.aim, target.told(results) or NOT_MEASURED] for target in TARGETS)]


def title(peer: str) -> str:
    return f"{PEERS[peer].title} ({PEERS[peer].protocol})"


def costs(results: Results) -> list[list[str]]:
    single = numbers(results)
    bursts = [number for number in single if number <= MOST_FOR_BURSTS]
    number = best_number(results)
    head = ["", *(f"{count:,}" for count in single), *(f"{count:,} in bursts of {BURST}" for count in bursts)]
    lines = [[*head, f"KiB per idle subscriber, at {number:,}"]]
    for peer in results.each("deliveries", "peer"):
        cells = [cost(results, peer, count, "cpu", 2) for count in single]
        cells += [cost(results, peer, count, "burst_cpu", 3) for count in bursts]
        grown = results.median("memory", "deliveries", peer=peer, subscribers=number)
        lines.append([title(peer), *cells, "" if grown is None else f"{grown / KiB:.1f}"])
    return lines


def cost(results: Results, peer: str, number: int, figure: str, digits: int) -> str:
    cpu = results.median(figure, "deliveries", peer=peer, subscribers=number)
    if cpu is None:
        return ""
    ratio = results.ratio(peer, "floor", number, figure, figure)
    return f"{cpu:.{digits}f}" + (f" ({factor(ratio)})" if ratio is not None else "")


def rates(results: Results) -> list[list[str]]:
    lines = [["", *(f"{number:,}" for number in numbers(results))]]
    for peer in results.each("deliveries", "peer"):
        cells = []
        for number in numbers(results):
            where: dict[str, Any] = {"kind": "deliveries", "peer": peer, "subscribers": number}
            rate, p50, p99 = (results.median(figure, **where) for figure in ("rate", "p50", "p99"))
            known = rate is not None and p50 is not None and p99 is not None
            cells.append(f"{rate:,.0f}/s, {p50:.1f} / {p99:.1f} ms" if known else "")
        lines.append([title(peer), *cells])
    return lines


def redis_table(samples: list[dict[str, Any]]) -> str:
    """What `fanout_redis.py` has measured."""
    results = Results({}, samples)
    lines = [["", "p50, ms", "p95, ms", "p99, ms", "deliveries", "lost", "CPU of the server"]]
    for history in results.each("redis", "history"):
        median = {
            figure: statistics.median(sample[figure] for sample in results.of("redis", history=history))
            for figure in ("p50", "p95", "p99", "delivered", "cpu")
        }
        name = f"history of {history:,}" if history else "without history"
        late = [f"{median[figure]:.1f}" for figure in ("p50", "p95", "p99")]
        late[1] += mark(median["p95"] <= P95, False)
        lines.append([name, *late, f"{median['delivered']:,.0f}", "0", f"{median['cpu']:.1f} %"])
    return table(lines)


def about(results: Results) -> list[str]:
    """How it was measured, where, with what, and what is missing."""
    facts = results.facts
    rounds = "One round" if facts["rounds"] == 1 else f"Medians of {facts['rounds']} interleaved rounds"
    parts = [
        f"{rounds}, {PAYLOAD_BYTES} bytes a message, about {facts['deliveries']:,} deliveries for each figure. Every "
        "subscriber got every message, once and in order.",
        described(facts),
    ]
    for heading, reasons in (("Left out", facts["missing"]), ("Failed", facts["failed"])):
        if reasons:
            parts.append(f"{heading}: {'; '.join(f'{name} ({why})' for name, why in reasons.items())}.")
    return [*parts, f"```sh\n{facts['command']}\n```"]


def described(facts: Mapping[str, Any]) -> str:
    what = [facts["processor"], facts["system"], facts["python"], *facts["others"]]
    return "; ".join([*what, *(f"{name} {version}" for name, version in facts["versions"].items())]) + "."
