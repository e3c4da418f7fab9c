"""`waterspout publish`: one message, or every line of standard input."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable

import click

from waterspout_core import BadMessage, Payload, check_channel, check_event

from ._lines import Lines
from ._options import CLEAR_LINE, EXIT_UNUSABLE, counted, fail, history_options, option, redis_option, say, url_option
from ._targets import Away, RedisTarget, Refused, ServerTarget, Target, TooLarge


@click.command()
@click.argument("channel")
@click.argument("message", required=False)
@url_option
@redis_option("Publish straight to this Redis, without a server.")
@history_options("Messages kept of the channel in Redis, which has to be what the servers say; 0: none.")
@click.option("--event", metavar="NAME", help="Name the messages' event.")
@click.option("--json", "as_json", is_flag=True, help="The message, or each line, is JSON.")
@option("--retry-for", default=60.0, show_default=True, type=click.FloatRange(0), metavar="SECONDS",
        help="How long to keep messages while the other side is away.")  # fmt: skip
def publish(
    channel: str,
    message: str | None,
    url: str,
    redis: str | None,
    history: int,
    retention: float,
    event: str | None,
    as_json: bool,
    retry_for: float,
) -> None:
    """Publish MESSAGE to CHANNEL; without MESSAGE, each line of standard input.

    \b
    tail -F access.log | waterspout publish logs

    Empty lines are passed over, bytes that are not UTF-8 are replaced. Messages are kept while the server is away for
    a moment; where there is a history, one that had been taken when the connection broke does not arrive twice.
    """
    redis = _redis_if_meant(redis)

    def open_target() -> Target:
        if redis is None:
            return ServerTarget(url, channel, event)
        return RedisTarget(redis, channel, event, history, retention)

    try:
        check_channel(channel)
        if event is not None:
            check_event(event)
        asyncio.run(_publish(open_target, channel, message, as_json=as_json, retry_for=retry_for))
    except (ValueError, Refused) as error:
        fail(str(error))
    except Away as error:
        fail(f"given up after {retry_for:g} s: {error}", status=1)
    except KeyboardInterrupt:
        sys.exit(130)


def _redis_if_meant(redis: str | None) -> str | None:
    """What is given with the command beats a variable, which may be there for `serve`."""
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    if redis is not None and context.get_parameter_source("url") is given:
        if context.get_parameter_source("redis") is given:
            raise click.UsageError("--url and --redis are two places: name one")
        return None
    return redis


async def _publish(
    open_target: Callable[[], Target], channel: str, message: str | None, *, as_json: bool, retry_for: float
) -> None:
    target = open_target()
    progress = Progress(channel)
    try:
        async for batch in _batches(message, as_json, progress):
            try:
                await _deliver(target, batch, progress, retry_for)
            except TooLarge as error:
                progress.leave_out(f"{error}; left out: {str(batch[0])[:60]!r}…")
    finally:
        await target.aclose()
        progress.report()
    if progress.left_out:
        sys.exit(EXIT_UNUSABLE)


async def _deliver(target: Target, batch: list[Payload], progress: Progress, retry_for: float) -> None:
    pause = 0.1
    away_since: float | None = None
    while batch:
        try:
            await target.send(batch)
        except Away as error:
            if error.sent:
                pause, away_since = 0.1, None
            progress.add(error.sent)
            batch = batch[error.sent :]
            now = time.monotonic()
            if away_since is None:
                away_since = now
                say(f"{error}; keeping the messages and trying again")
            if now - away_since >= retry_for:
                raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 3.0)
        else:
            progress.add(len(batch))
            if away_since is not None:
                say("it is back")
            return


class Progress:
    """How many were sent; shown while it grows where somebody looks at a terminal."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._sent = 0
        self._shown = time.monotonic()
        # Not while somebody types the lines.
        self._live = sys.stderr.isatty() and not (sys.stdin and sys.stdin.isatty())
        self.left_out = 0

    def add(self, count: int) -> None:
        self._sent += count
        if self._live and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            click.echo(f"{CLEAR_LINE}waterspout: {self._text()}", err=True, nl=False)

    def leave_out(self, why: str) -> None:
        """One message cannot be sent; the others go on."""
        self.left_out += 1
        say(why)

    def report(self) -> None:
        say(self._text())

    def _text(self) -> str:
        left_out = f", left out {self.left_out}" if self.left_out else ""
        return f"sent {counted(self._sent, 'message')} to {self._channel}{left_out}"


async def _batches(message: str | None, as_json: bool, progress: Progress) -> AsyncIterator[list[Payload]]:
    if message is not None:
        yield [_payload(message, as_json, "the message")]
        return
    lines = Lines()
    number = 0
    while batch := await lines.take():
        payloads = []
        for line in batch:
            number += 1
            try:
                if line:
                    payloads.append(_payload(line, as_json, f"line {number}"))
            except BadMessage as error:
                progress.leave_out(f"{error}; left out")
        yield payloads


def _payload(text: str, as_json: bool, place: str) -> Payload:
    if not text:
        raise BadMessage(f"{place} is empty")
    if not as_json:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"{place} is not JSON: {error}") from None
