"""`waterspout serve`: the push server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Literal

import click
from click.core import ParameterSource

from waterspout_channels import Channels
from waterspout_handlers import Behind, Connections

from .. import __version__
from .._demo import publish_figures
from .._listener import allow_descriptors
from ..server import Server, host_name
from ._options import connection_options, counted, fail, history_options, option, redis_option
from ._tls import Certificate, find_certificate, tls_options

LINGER: Final = 60.0
"""Seconds for which a channel that nobody uses stays open; its history is the broker's."""

FEW: Final = 10_000
"""With fewer file descriptors there is a warning, even where nobody has said how many connections there shall be."""

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
@option(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this site, as in https://www.example.com, read and publish here too; *: those of all sites.",
)
@option("--tcp-port", type=click.IntRange(0, 65535), help="Serve lines of text over TCP too; 0 takes a free port.")
@option("--tcp-token", metavar="TOKEN", help="What clients on the TCP port have to know. Better set as the variable.")
@tls_options
@redis_option("Serve the channels of this Redis, together with all other servers on it.")
@history_options("Messages kept of each channel, for those who come back to any server on the same Redis; 0: none.")
@connection_options
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
    redis: str | None,
    history: int,
    retention: float,
    loop: str,
    log_level: str,
    max_connections: int,
    max_per_address: int | None,
    max_age: float | None,
    heartbeat: float,
    when_behind: Literal["gap", "latest", "disconnect"],
    tls_cert: str | None,
    tls_key: str | None,
    **options: Any,
) -> None:
    """Start a push server; Ctrl-C stops it.

    Without --redis it is its own broker and needs nothing else.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _check_token(options["tcp_token"], options["tcp_port"])
    connections = Connections(
        max_connections=max_connections, max_per_address=max_per_address, max_age=max_age, heartbeat=heartbeat
    )
    try:
        # Without a history, what this process has heard is all there is for those who come back.
        linger = LINGER if history else retention
        channels = Channels(redis or "memory://", history=history, retention=retention, linger=linger)
        for origin in options["allow_origins"]:
            _check_origin(origin)
        for host in options["allow_hosts"]:
            _check_host(host)
        certificate = find_certificate(tls_cert, tls_key)
    except ValueError as error:
        fail(str(error))
    asked = click.get_current_context().get_parameter_source("max_connections") is not ParameterSource.DEFAULT
    _warn_of_few_descriptors(allow_descriptors(), max_connections, asked=asked)
    factory = _loop_factory(loop)
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(_serve(channels, connections, Behind(when_behind), certificate, **options))
        except CannotListen as error:
            fail(str(error))


async def _serve(
    channels: Channels,
    connections: Connections,
    when_behind: Behind,
    certificate: Certificate | None,
    *,
    host: str,
    port: int,
    tcp_port: int | None,
    tcp_token: str | None,
    allow_hosts: tuple[str, ...],
    allow_origins: tuple[str, ...],
    grace: float,
    demo: bool,
) -> None:
    stopped = asyncio.Event()
    _on_signals(stopped.set)
    loopback = _is_loopback(host)
    server = Server(
        channels,
        hosts=(*LOOPBACK_NAMES, host, *allow_hosts) if loopback else allow_hosts,
        connections=connections,
        allow_origins=allow_origins,
        when_behind=when_behind,
        ssl_options=certificate.context if certificate else None,
    )
    if certificate:
        _on_hangup(partial(certificate.renew, server))
    try:
        with _explained(host, port, "--port"):
            url = server.start(host, port)
        urls, open_urls = [url], [url]
        if tcp_port is not None:
            with _explained(host, tcp_port, "--tcp-port"):
                urls.append(server.start_lines(host, tcp_port, token=tcp_token))
            open_urls = urls[: 1 if tcp_token else 2]
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        click.echo(
            f"Waterspout {__version__} listens on {' and '.join(urls)} (broker: {channels.pubsub}, loop: {loop}); "
            "Ctrl-C stops it"
        )
        if not loopback:
            where = " or ".join(open_urls)
            logger.warning("there is no authentication: whoever reaches %s may read and publish every channel", where)
        async with contextlib.AsyncExitStack() as stack:
            if demo:
                task = asyncio.create_task(publish_figures(channels))
                stack.callback(task.cancel)
            await stopped.wait()
        if len(connections):
            leaving = counted(len(connections), "connection")
            click.echo(f"{leaving} to leave within {grace:g} s; Ctrl-C again ends it at once")
    finally:
        await server.aclose(grace)
    click.echo("Waterspout has stopped")


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop_once() -> None:
        # Whoever insists shall not have to wait for us; nor for a KeyboardInterrupt, of which nothing comes where it is
        # raised just before something that is awaited in the end.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop_once)
        except NotImplementedError:  # Windows: the Runner turns Ctrl-C into a cancellation
            return


def _on_hangup(renew: Callable[[], None]) -> None:
    with contextlib.suppress(AttributeError, NotImplementedError):  # Windows has no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew)


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


class CannotListen(Exception):
    """Why, in one line for the user."""


@contextlib.contextmanager
def _explained(host: str, port: int, option: str) -> Iterator[None]:
    """Raises `CannotListen` for what goes wrong within."""
    try:
        yield
    except UnicodeError:  # of a name that DNS cannot have (IDNA)
        raise CannotListen(f"{host!r} is no address of this machine: choose another with --host") from None
    except OSError as error:
        raise CannotListen(_why_not(error, host, port, option)) from None


def _why_not(error: OSError, host: str, port: int, option: str = "--port") -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken: choose another with {option}, or stop what listens there"
    if error.errno == errno.EACCES:
        return f"this user may not listen on port {port}: choose one above 1023 with {option}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host!r} is no address of this machine: choose another with --host"
    return f"cannot listen on {host} port {port}: {os.strerror(error.errno) if error.errno else error}"


def _check_origin(origin: str) -> None:
    """Raises ValueError for what no browser sends as an origin (RFC 6454, 6.1)."""
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+", origin):
        raise ValueError(f"--allow-origin is a site like https://www.example.com, without a path, not {origin!r}")


def _check_host(host: str) -> None:
    """Raises ValueError for what is no name of a host."""
    try:
        host_name(host)
    except ValueError as error:
        raise ValueError(f"--allow-host: {error}") from None


def _check_token(token: str | None, port: int | None) -> None:
    """A secret that is missing, as where a variable was not filled in, shall not let everybody in."""
    # An empty variable is none at all to click.
    if token == "" or (token is None and os.environ.get("WATERSPOUT_TCP_TOKEN") == ""):
        fail("--tcp-token (or WATERSPOUT_TCP_TOKEN) is empty: without a token everybody may come, so leave it out then")
    if token is not None and port is None:
        fail("--tcp-token is for lines over TCP: there are none without --tcp-port")


def _warn_of_few_descriptors(limit: float, max_connections: int, *, asked: bool) -> None:
    """Each connection takes one; of the default for `max_connections`, which is no wish, most systems allow fewer."""
    if limit <= max_connections and (asked or limit < FEW):
        logger.warning(
            "this process may have %d file descriptors, and so not the %d connections of --max-connections: "
            "raise the limit (ulimit -n, or LimitNOFILE= of a systemd unit), or ask for fewer",
            limit,
            max_connections,
        )
