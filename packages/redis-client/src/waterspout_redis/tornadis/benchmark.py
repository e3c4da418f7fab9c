"""The command ``tornadis-benchmark``: how many SETs a second these clients get done with a server."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence

from . import DEFAULT_HOST, DEFAULT_PORT, Client, Pipeline, TornadisException


def parameters(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("tornadis-benchmark", description="SETs per second", add_help=False)
    parser.add_argument("--help", action="help")
    parser.add_argument("-h", "--hostname", default=DEFAULT_HOST, help="of the server (%(default)s)")
    parser.add_argument("-p", "--port", type=int, default=DEFAULT_PORT, help="of the server (%(default)s)")
    parser.add_argument("-a", "--password", help="to log in with")
    parser.add_argument("-c", "--clients", type=int, default=5, help="how many there are (%(default)s)")
    parser.add_argument("-n", "--requests", type=int, default=10_000, help="of all clients together (%(default)s)")
    parser.add_argument("-b", "--batch-size", type=int, help="requests that a client sends at once (all)")
    parser.add_argument("-P", "--pipeline", action="store_true", help="send each batch as a Pipeline")
    parser.add_argument("-d", "--data-size", type=int, default=2, help="of the values, in bytes (%(default)s)")
    options = parser.parse_args(arguments)
    if options.clients < 1 or options.requests < 1 or options.requests % options.clients:
        parser.error("the number of requests must be a multiple of the number of clients")
    return options


async def measure(options: argparse.Namespace) -> float:
    """Seconds for all requests, on connections that are made before. Raises TornadisException."""
    clients = [
        Client(host=options.hostname, port=options.port, password=options.password) for _ in range(options.clients)
    ]
    try:
        if not all(await asyncio.gather(*(client.connect() for client in clients))):
            raise TornadisException(f"can't connect to {clients[0].title}")
        start = time.perf_counter()
        await asyncio.gather(*(_set(client, options) for client in clients))
        return time.perf_counter() - start
    finally:
        for client in clients:
            client.disconnect()


async def _set(client: Client, options: argparse.Namespace) -> None:
    command = "SET", "benchmark-key", b"*" * options.data_size
    left = options.requests // options.clients
    while left:
        size = min(options.batch_size or left, left)
        if options.pipeline:
            pipeline = Pipeline()
            for _ in range(size):
                pipeline.stack_call(*command)
            replies = await client.call(pipeline)
        else:
            replies = await asyncio.gather(*(client.call(*command) for _ in range(size)))
        for reply in replies:
            if isinstance(reply, TornadisException):
                raise reply
        left -= size


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print it."""
    options = parameters(arguments)
    try:
        seconds = asyncio.run(measure(options))
    except TornadisException as error:
        raise SystemExit(f"tornadis-benchmark: {error}") from None
    print(f"{seconds:.3f} seconds\n{options.requests / seconds:.0f} requests per second")


if __name__ == "__main__":
    main()
