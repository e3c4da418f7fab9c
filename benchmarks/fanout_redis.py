"""1,500 subscribers of 5 channels, 50 messages a second in all, through Redis: how late, and whether one is lost.

    ./dev bench benchmarks/fanout_redis.py [--rounds 3] [--seconds 20] [--quick] [--json FILE]

The publisher is a process of its own with `Channels` of its own, so a message goes through Redis to the server of
event streams, which has a core for itself. Redis (its own, on a free port), the publisher and the subscribers share the
other one. Latency is from before `publish` until the subscriber has read the message. `fanout.py` measures it too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
from fanout_load import DEADLINE, LedgerError, Subscribers
from fanout_process import Piped, await_subscribers, raise_file_limit, take_cpus
from fanout_report import environment
from fanout_tables import redis_table

from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, find_servers

HERE: Final = Path(__file__).parent
SUBSCRIBERS: Final = 1500
CHANNELS: Final = tuple(f"news{number}" for number in range(5))
RATE: Final = 50.0
"""Messages a second, in all channels together."""

HISTORIES: Final = (0, 1000)
"""Messages that Redis keeps of each channel: none, and what is the default."""

SECONDS: Final = 20.0
QUICK_SECONDS: Final = 3.0
PROGRAM: Final = "fanout_servers.py"


def through_redis(history: int, seconds: float, cpu: int | None) -> dict[str, Any]:
    """Latencies in ms, and the server's CPU in percent of a core. Raises `LedgerError` if a message is lost."""
    redis = RunningServer(find_servers()[0])
    redis.start()
    options = ["channels", "--broker", redis.url, "--history", str(history)]
    with (
        redis,
        Subscribers("SSE", spin=False) as subscribers,
        Piped([sys.executable, str(HERE / PROGRAM), *options], cpu) as server,
    ):
        for name in CHANNELS:
            subscribers.connect(server.port, SUBSCRIBERS // len(CHANNELS), path=f"/?channel={name}")
        await_subscribers(server, SUBSCRIBERS)
        used, began = server.cpu(), time.monotonic()
        told = [redis.url, str(history), str(RATE), str(seconds), *CHANNELS]
        with subprocess.Popen(
            [sys.executable, str(HERE / "fanout_publisher.py"), *told], stdout=subprocess.PIPE
        ) as publisher:
            while publisher.poll() is None:
                subscribers.poll(0.2)
            percent = (server.cpu() - used) / (time.monotonic() - began) / 1e7
            assert publisher.stdout is not None
            published = int(publisher.stdout.read() or 0)
        await_all(subscribers, published)
    latencies = [latency / 1e6 for latency in statistics.quantiles(subscribers.latencies, n=100)]
    return {
        "p50": latencies[49],
        "p95": latencies[94],
        "p99": latencies[98],
        "cpu": percent,
        "delivered": published * SUBSCRIBERS,
    }


def await_all(subscribers: Subscribers, published: int) -> None:
    """Receive until each has got all that its channel has. Raises `LedgerError`."""
    deadline = time.monotonic() + DEADLINE
    while missing := sum(published - seen for seen in subscribers.seen):
        if not published or time.monotonic() > deadline:
            raise LedgerError(f"{missing} deliveries are missing, of {published} messages a channel")
        subscribers.poll(0.2)


def measured(seconds: float, cpu: int | None) -> list[dict[str, Any]]:
    """Once without and once with history."""
    return [{"history": history, "seconds": seconds, **through_redis(history, seconds, cpu)} for history in HISTORIES]


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", type=click.IntRange(1), default=3, help="How often it is measured (3).")
@click.option("--seconds", type=click.FloatRange(1), help=f"How long messages are published ({SECONDS:g}).")
@click.option("--quick", is_flag=True, help=f"One round of {QUICK_SECONDS:g} seconds, where not said otherwise.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured.")
def main(rounds: int, seconds: float | None, quick: bool, json_file: Path | None) -> None:
    if not find_servers():
        raise click.ClickException(HOW_TO_GET_ONE)
    samples: list[dict[str, Any]] = []
    raise_file_limit(SUBSCRIBERS)
    cpu = take_cpus()
    for number in range(1, (1 if quick else rounds) + 1):
        try:
            taken = measured(seconds or (QUICK_SECONDS if quick else SECONDS), cpu)
        except (LedgerError, OSError) as error:
            raise click.ClickException(str(error)) from error
        for sample in taken:
            click.echo(f"round {number}, history {sample['history']}: p95 {sample['p95']:.1f} ms", err=True)
        samples += [{"kind": "redis", "round": number, **sample} for sample in taken]
    results = {"facts": environment({}, find_servers()[0]), "samples": samples}
    if json_file:
        json_file.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(redis_table(samples))


if __name__ == "__main__":
    main()
