"""What the subcommands share: options that are variables too, and how they fail."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import click

F = TypeVar("F", bound=Callable[..., Any])

EXIT_UNUSABLE: Final = 2
"""Exit status for what only the user can mend; click's own for bad usage."""

CLEAR_LINE: Final = "\r\x1b[K"

DEFAULT_URL: Final = "http://127.0.0.1:8888"


class Seconds(click.FloatRange):
    """So many seconds, and not for ever."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


def option(name: str, *names: str, **settings: Any) -> Callable[[F], F]:
    """A click option that `WATERSPOUT_<NAME>` sets as well."""
    variable = "WATERSPOUT_" + name.removeprefix("--").upper().replace("-", "_")
    if settings.get("multiple"):
        settings["help"] += " May be given several times; in the variable, with spaces in between."
    return click.option(name, *names, envvar=variable, show_envvar=True, **settings)


def redis_option(help: str) -> Callable[[F], F]:
    """`--redis URL`."""
    return option("--redis", metavar="URL", help=f"{help} redis://, rediss:// or unix:// (valkey:// is the same)")


def history_options(help: str) -> Callable[[F], F]:
    """`--history N` and `--retention SECONDS`."""
    messages = option("--history", default=1000, show_default=True, type=click.IntRange(0), metavar="N", help=help)
    retention = option("--retention", default=3600.0, show_default=True, type=Seconds(0, min_open=True),
                       metavar="SECONDS", help="How long they are kept.")  # fmt: skip
    return lambda function: messages(retention(function))


def connection_options(function: F) -> F:
    """What bounds the connections of a server, and when they end."""
    count = click.IntRange(1)
    for each in (
        option("--grace", default=5.0, show_default=True, type=Seconds(0), metavar="SECONDS",
               help="When it stops, all who are connected leave in order, within so long."),
        option("--when-behind", default="gap", show_default=True, type=click.Choice(["gap", "latest", "disconnect"]),
               help="What becomes of a subscriber that does not keep up: it is told of a gap where what it missed is "
               "not kept any more, goes on with the latest message, or is cut off."),
        option("--heartbeat", default=25.0, show_default=True, type=Seconds(0), metavar="SECONDS",
               help="Send something this often where there is nothing to say; 0: never."),
        option("--max-age", type=Seconds(0, min_open=True), metavar="SECONDS",
               help="End a connection when it is about so old: its client comes back, perhaps to another server."),
        option("--max-per-address", type=count, metavar="N",
               help="At most so many subscribers from one address; behind a proxy all come from its own."),
        option("--max-connections", default=100_000, show_default=True, type=count, metavar="N",
               help="At most so many subscribers."),
    ):  # fmt: skip
        function = each(function)
    return function


def url_option(function: F) -> F:
    """`--url URL` of a running server."""
    text = "The running server; with https:// SSL_CERT_FILE names certificates to trust."
    return option("--url", default=DEFAULT_URL, show_default=True, metavar="URL", help=text)(function)


def check_url(url: str) -> str:
    """`url` itself, if it can be a server's. Raises ValueError."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port
        good = False
    if not good:
        raise ValueError(f"--url is an address like {DEFAULT_URL}, not {url!r}")
    return url


def counted(number: int, thing: str) -> str:
    """`1 message`, or `2 messages`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def say(text: str) -> None:
    """One line for the user, beside the output."""
    # On a terminal a line that shows progress may stand there: it gives way.
    click.echo(f"{CLEAR_LINE if sys.stderr.isatty() else ''}waterspout: {text}", err=True)


def fail(text: str, status: int = EXIT_UNUSABLE) -> NoReturn:
    """One line that says what was wrong, and the end."""
    say(text)
    sys.exit(status)
