"""`waterspout serve`: the push server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Final

import click

from waterspout_channels import Channels

from .. import __version__
from .._demo import publish_figures
from ..server import Server
from ._options import fail, history_options, option, redis_option

LINGER: Final = 60.0
"""Seconds for which a channel that nobody uses stays open; its history is the broker's."""

logger: Final = logging.getLogger("waterspout.server")

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")

LOG_LEVELS: Final = ["debug", "info", "warning", "error"]


@click.command()
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@option("--port", default=8888, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME",
    help="Answer to requests for this name (of a proxy in front, say); on this machine's own addresses to theirs too.",
)
@redis_option("Serve the channels of this Redis, together with all other servers on it.")
@history_options("Messages kept of each channel, for those who come back to any server on the same Redis; 0: none.")
@option("--demo", is_flag=True, help="Publish this machine's load, memory and network figures every second.")
@option(
    "--loop",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    help="Event loop.",
)
@option("--log-level", default="info", show_default=True, type=click.Choice(LOG_LEVELS), help="What to report.")
def serve(
    host: str,
    port: int,
    allow_hosts: tuple[str, ...],
    redis: str | None,
    history: int,
    retention: float,
    demo: bool,
    loop: str,
    log_level: str,
) -> None:
    """Start a push server; Ctrl-C stops it.

    Without --redis it is its own broker and needs nothing else.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        # Without a history, what this process has heard is all there is for those who come back.
        linger = LINGER if history else retention
        channels = Channels(redis or "memory://", history=history, retention=retention, linger=linger)
    except ValueError as error:
        fail(str(error))
    factory = _loop_factory(loop)
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(_serve(channels, host, port, allow_hosts, demo=demo))
        except UnicodeError:  # of a name that DNS cannot have (IDNA)
            fail(f"{host!r} is no address of this machine: choose another with --host")
        except OSError as error:
            fail(_why_not(error, host, port))


async def _serve(channels: Channels, host: str, port: int, allow_hosts: tuple[str, ...], *, demo: bool) -> None:
    stopped = asyncio.Event()
    _on_signals(stopped.set)
    loopback = _is_loopback(host)
    server = Server(channels, hosts=(*LOOPBACK_NAMES, host, *allow_hosts) if loopback else allow_hosts)
    try:
        url = server.start(host, port)
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        click.echo(
            f"Waterspout {__version__} listens on {url} (broker: {channels.pubsub}, loop: {loop}); Ctrl-C stops it"
        )
        if not loopback:
            logger.warning("there is no authentication: whoever reaches %s may read and publish every channel", url)
        async with contextlib.AsyncExitStack() as stack:
            if demo:
                task = asyncio.create_task(publish_figures(channels))
                stack.callback(task.cancel)
            await stopped.wait()
    finally:
        await server.aclose()
    click.echo("Waterspout has stopped")


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop_once() -> None:
        # Whoever insists shall not have to wait for us.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop_once)
        except NotImplementedError:  # Windows: the Runner turns Ctrl-C into a cancellation
            return


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        if loop == "uvloop":
            fail("uvloop is not installed here: pip install uvloop, or leave --loop out")
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken: choose another with --port, or stop what listens there"
    if error.errno == errno.EACCES:
        return f"this user may not listen on port {port}: choose one above 1023 with --port"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host!r} is no address of this machine: choose another with --host"
    return f"cannot listen on {host} port {port}: {os.strerror(error.errno) if error.errno else error}"
