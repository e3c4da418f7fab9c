"""The Redis client side by side with others, in one run on one machine.

    ./dev bench benchmarks/redis_client.py [--quick] [--only TEXT] [--loop asyncio|uvloop|both]
        [--place server|apart|together|free] [--json FILE]
    ./dev bench benchmarks/redis_client.py --from FILE --plot docs/images/redis-client.svg

Each client is a process of its own, on each event loop, with its default options; the server is one more. In each
round all clients do the same work in turn, row by row, so that a disturbance hits all alike, and what is printed are
the medians of the rounds. How often is found out once for each client and row, for a measurement to take as long as
any other.

Rates are of the client's process together with the server, and hang on where the two run. The system puts them on one
core or on two as it likes, one client so and the next otherwise, which makes a rate up to four times as high: waking
what sleeps on another core is dear. So `--place` says it: "apart", the server on one core (the publisher of messages
with it) and the clients on the others, as a server elsewhere would be; "together", all on one core, which varies
least and lets nobody wait for a core to wake up; "server", only the server is kept to one; "free". valkey-glide has
threads: on a machine of two cores "apart" and "together" leave it one.

CPU is that of the client's process alone, all its threads, and the load (a loop that awaits call after call) is in it:
"no client at all" is what remains without a client.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Final, Self

import click
from machine import cpus, started_on
from redis_client_c import CBenchmark
from redis_client_peers import PEERS
from redis_client_plot import plot
from redis_client_report import PLACES, Results, environment, markdown
from redis_client_rows import QUICK, ROWS, SIZES, Row

from waterspout_redis.testing import HOW_TO_GET_ONE, RunningServer, find_servers

LOOPS: Final = ("asyncio", "uvloop")
BUSY: Final = 0.5  # processes that want to run


class Worker:
    """The process of one client on one event loop."""

    def __init__(self, name: str, loop: str, url: str, publisher_cpus: list[int]) -> None:
        self.name, self.loop = name, loop
        script = Path(__file__).with_name("redis_client_peers.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), name, loop, url, *map(str, publisher_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process
        )

    def does(self, row: Row) -> bool:
        return PEERS[self.name].does(row)

    def measure(self, row: Row, seconds: float, times: int | None) -> dict[str, Any]:
        """See `redis_client_peers`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"row": row.title, "seconds": seconds, "times": times}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise click.ClickException(f"{self.name} on {self.loop} ended while it did: {row.title}")
        measured: dict[str, Any] = json.loads(answer)
        return measured

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Whatever it is doing.
        self._process.terminate()
        with self._process:
            pass


def run(clients: list[Worker | CBenchmark], rows: list[Row], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measure everything; one sample is a line of the JSON file."""
    work = [(row, client) for row, client in product(rows, clients) if client.does(row)]
    samples: list[dict[str, Any]] = []
    times: dict[tuple[Row, int], int | None] = {}
    failed: set[tuple[Row, int]] = set()
    with click.progressbar(
        [pair for _ in range(rounds) for pair in work],
        file=sys.stderr,
        item_show_func=lambda pair: pair and f"{pair[0].title}: {pair[1].name}",
    ) as bar:
        for row, client in bar:
            cell = row, clients.index(client)
            if cell in failed:
                continue
            sample = client.measure(row, seconds, times.get(cell))
            if "error" in sample:
                failed.add(cell)
            else:
                times[cell] = int(sample["times"])
            samples.append({"row": row.title, "client": client.name, "loop": client.loop, **sample})
    return samples


def chosen_rows(quick: bool, only: tuple[str, ...]) -> list[Row]:
    rows = list(QUICK if quick else ROWS)
    if only:
        rows = [row for row in rows if any(text.lower() in row.title.lower() for text in only)]
    if not rows:
        raise click.UsageError("no row has that in its title; there are:\n  " + "\n  ".join(row.title for row in ROWS))
    return rows


def installed(names: tuple[str, ...]) -> list[str]:
    """Those of the clients that can run here; the others are named."""
    found = []
    for name in names or PEERS:
        package = PEERS[name].package
        if package is None or find_spec(package):
            found.append(name)
        else:
            click.echo(f"left out: {name}, {PEERS[name].distribution} is not installed", err=True)
    return found


def measured(
    loop: str, quick: bool, only: tuple[str, ...], names: tuple[str, ...], rounds: int, seconds: float, place: str
) -> Results:
    rows = chosen_rows(quick, only)
    servers = find_servers()
    if not servers:
        raise click.ClickException(HOW_TO_GET_ONE)
    loops = LOOPS if loop == "both" else (loop,)
    if "uvloop" in loops and not find_spec("uvloop"):
        click.echo("left out: uvloop is not installed", err=True)
        loops = ("asyncio",)
    peers = installed(names)
    facts = environment(servers[0], peers)
    if facts["load"] > BUSY:
        click.echo(f"others use this machine (load {facts['load']:.1f}): rates will be too low", err=True)
    server_cpus, client_cpus = cpus(place)
    # A client that is slow to take its messages is to be measured, not cut off.
    server = RunningServer(servers[0], "--client-output-buffer-limit", "pubsub 0 0 0")
    with started_on(server_cpus):
        server.start()
    with server, started_on(client_cpus), ExitStack() as workers:
        for size in SIZES:
            row = Row("GET", size=size)
            server.call("SET", row.key, row.value)
        clients: list[Worker | CBenchmark] = [
            workers.enter_context(Worker(name, each, server.url, server_cpus)) for each in loops for name in peers
        ]
        if not names and (found := CBenchmark.find(servers[0].path)):
            clients += [CBenchmark(found, server.port, depth) for depth in CBenchmark.DEPTHS]
        samples = run(clients, rows, rounds, seconds)
    return Results(facts | {"rounds": rounds, "seconds": seconds, "place": place}, samples)


@click.command(help=__doc__.splitlines()[0])
@click.option("--loop", type=click.Choice([*LOOPS, "both"]), default="both", help="On which event loop (both).")
@click.option("--quick", is_flag=True, help="Only the rows that have a target.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only rows with this in their title; may be repeated.")
@click.option("--client", "names", multiple=True, type=click.Choice(list(PEERS)), help="Only this; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="How often each is measured (3).")
@click.option("--seconds", type=click.FloatRange(0.01), default=0.3, help="How long about, each time (0.3).")
@click.option(
    "--place",
    type=click.Choice(list(PLACES)),
    default="apart",
    help="On which cores server and clients are (apart).",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Keep what was measured.")
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True), help="Measure nothing, read this.")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw this, an SVG.")
def main(
    loop: str,
    quick: bool,
    only: tuple[str, ...],
    names: tuple[str, ...],
    rounds: int,
    seconds: float,
    place: str,
    json_file: Path | None,
    source: Path | None,
    picture: Path | None,
) -> None:
    results = Results.read(source) if source else measured(loop, quick, only, names, rounds, seconds, place)
    if json_file:
        results.write(json_file)
    click.echo(markdown(results))
    if picture:
        plot(results, picture)
        click.echo(f"written: {picture}", err=True)


if __name__ == "__main__":
    main()
