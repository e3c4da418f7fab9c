"""One message to many subscribers: what it costs Waterspout, its peers, and a bare loop of `socket.send`.

    ./dev bench benchmarks/fanout.py [--subscribers 1000] [--messages 100] [--rounds 7] [--quick] [--write]

Each server is a process of its own on one core, the subscribers are in this process on another. In each round each
server is started anew, gets its subscribers, publishes one message at a time, each when the one before has arrived
everywhere, and then bursts of messages. What is printed are the medians of the rounds. The main figure is the CPU
time of the server's process (user and system) per delivery: the load generator is not in it, and a busy machine
changes it less than it changes anything that is taken from a clock.
Each subscriber has to get every message once and in order, or the run fails.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from importlib import metadata

import click
from fanout_load import LedgerError, Server, Subscribers
from fanout_report import Result, Sample, Setting, bars, markdown, write
from fanout_servers import PEERS, Peer

BURST = 100
WARM_UP = 5  # messages before anything is measured
SPARE_FILES = 64  # files a process has open beside its connections
FULL = Setting(subscribers=1000, messages=100, rounds=7, burst=BURST)
QUICK = Setting(subscribers=200, messages=20, rounds=2, burst=BURST)


def measure(name: str, peer: Peer, setting: Setting, server_cpu: int | None) -> Sample:
    """Start a server, subscribe, publish, and end it. Raises `LedgerError`."""
    with Server(name, server_cpu) as server, Subscribers(server.port, peer.protocol) as subscribers:

        def publish(count: int) -> None:
            server.publish(count)
            subscribers.expect(count)

        def subscribe(count: int) -> int:
            subscribers.connect(count)
            server.await_subscribers(len(subscribers))
            return server.memory()

        # The first tenth warms the server up: what only the first requests need is not charged to a subscriber.
        early = max(setting.subscribers // 10, 1)
        subscribe(early)
        for _ in range(WARM_UP):
            publish(1)
        before = server.memory()
        memory = subscribe(setting.subscribers - early) - before
        for _ in range(WARM_UP):
            publish(1)

        del subscribers.latencies[:]
        load, cpu, begin = time.process_time_ns(), server.cpu(), time.monotonic_ns()
        for _ in range(setting.messages):
            publish(1)
        wall, single, load = time.monotonic_ns() - begin, server.cpu() - cpu, time.process_time_ns() - load
        latencies = statistics.quantiles(subscribers.latencies, n=100)

        cpu = server.cpu()
        for _ in range(setting.bursts):
            publish(BURST)
        burst = server.cpu() - cpu

    deliveries = setting.messages * setting.subscribers
    return Sample(
        cpu=single / deliveries / 1e3,
        burst_cpu=burst / (setting.bursts * BURST * setting.subscribers) / 1e3,
        load_cpu=load / deliveries / 1e3,
        rate=deliveries / wall * 1e9,
        p50=latencies[49] / 1e6,
        p99=latencies[98] / 1e6,
        memory=memory / (setting.subscribers - early) / 1024,
    )


def raise_file_limit(subscribers: int) -> None:
    """Let this process, and the servers that inherit it, have a file for each subscriber. Raises `ClickException`."""
    needed = subscribers + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise click.ClickException(
                f"{subscribers} subscribers need {needed} open files, and the hard limit (ulimit -Hn) is {hard}: "
                "raise it, or ask for fewer with --subscribers"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def take_cpus() -> int | None:
    """Put this process on a core of its own, and return the one that is left to the servers; None if it cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return None
    os.sched_setaffinity(0, cpus[1:])
    return cpus[0]


def installed(names: tuple[str, ...]) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those of the peers `names` that can run, and what is missing for each of the others."""
    found, missing = {}, {}
    for name in names or PEERS:
        try:
            PEERS[name].versions()
        except metadata.PackageNotFoundError as error:
            missing[name] = str(error.name)
        else:
            found[name] = PEERS[name]
    return found, missing


@click.command(help=__doc__.splitlines()[0])
@click.option("--subscribers", type=click.IntRange(2), help="How many there are (1000).")
@click.option("--messages", type=click.IntRange(2), help="How many are published one at a time (100).")
@click.option("--rounds", type=click.IntRange(1), help="How often each server is measured (7).")
@click.option("--quick", is_flag=True, help="200 subscribers, 20 messages, 2 rounds, where not said otherwise.")
@click.option("--only", multiple=True, type=click.Choice(list(PEERS)), help="Measure this one; may be repeated.")
@click.option("--write", "writing", is_flag=True, help="Put table and plot into docs/ as well.")
def main(
    subscribers: int | None, messages: int | None, rounds: int | None, quick: bool, only: tuple[str, ...], writing: bool
) -> None:
    default = QUICK if quick else FULL
    setting = Setting(
        subscribers or default.subscribers, messages or default.messages, rounds or default.rounds, burst=BURST
    )
    if writing and only:
        raise click.UsageError("--write needs all of them: leave out --only")
    raise_file_limit(setting.subscribers)
    peers, missing = installed(only)
    for name, distribution in missing.items():
        click.echo(f"left out: {name}, {distribution} is not installed", err=True)

    samples: dict[str, list[Sample]] = {name: [] for name in peers}
    server_cpu = take_cpus()
    for turn in range(1, setting.rounds + 1):
        for name, peer in peers.items():
            click.echo(f"round {turn}/{setting.rounds}  {name:<14}", nl=False, err=True)
            try:
                sample = measure(name, peer, setting, server_cpu)
            except (LedgerError, OSError) as error:
                click.echo(err=True)
                raise click.ClickException(f"{name}: {error}") from error
            samples[name].append(sample)
            click.echo(f"{sample.cpu:8.2f} µs per delivery, {sample.burst_cpu:6.2f} in bursts", err=True)

    results = {name: Result(PEERS[name], several) for name, several in samples.items()}
    table = markdown(results, setting, missing)
    click.echo(table)
    if writing:
        for path in (write(table, setting), bars(results, setting)):
            click.echo(f"written: {path}", err=True)


if __name__ == "__main__":
    main()
