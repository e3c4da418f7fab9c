"""`waterspout publish`: one message, or every line of standard input."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

import click
from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPResponse

from waterspout_channels import Channels
from waterspout_core import BadMessage, BrokerError, Payload, check_channel, check_event, to_json

from ._options import fail, option, redis_option, say, url_option

MAX_BATCH: Final = 500
"""Lines sent together: what has come while the batch before was under way, at most this many."""

MAX_BATCH_BYTES: Final = 128 * 1024
"""A longer line goes alone. Even if JSON escapes all of it, a batch stays below what a server takes at once."""

MAX_WAITING: Final = 2 * MAX_BATCH
"""Lines read ahead; beyond them standard input waits, and so does whoever writes to it."""


class Refused(Exception):
    """The other side understood, and will not have it: trying again is no use."""


class TooLarge(Refused):
    """The message is larger than the other side takes; the next one may not be."""


class Away(Exception):
    """The other side cannot be reached or cannot do it now; `sent` messages of the batch were taken."""

    def __init__(self, reason: str, sent: int = 0) -> None:
        super().__init__(reason)
        self.sent = sent


class Target(Protocol):
    """Where messages go."""

    async def send(self, batch: list[Payload]) -> None:
        """Publish all of `batch`, in order. Raises `Refused` or `Away`."""

    async def aclose(self) -> None:
        """Let go of connections."""


@click.command()
@click.argument("channel")
@click.argument("message", required=False)
@url_option
@redis_option("Publish straight to this Redis, without a server.")
@option("--event", metavar="NAME", help="Name the messages' event.")
@click.option("--json", "as_json", is_flag=True, help="The message, or each line, is JSON.")
@option("--retry-for", default=60.0, show_default=True, type=click.FloatRange(0), metavar="SECONDS",
        help="How long to keep messages while the other side is away.")  # fmt: skip
def publish(
    channel: str,
    message: str | None,
    url: str,
    redis: str | None,
    event: str | None,
    as_json: bool,
    retry_for: float,
) -> None:
    """Publish MESSAGE to CHANNEL; without MESSAGE, each line of standard input.

    \b
    tail -F access.log | waterspout publish logs

    Empty lines are passed over, bytes that are not UTF-8 are replaced. Messages are kept while the server is away for
    a moment; one that had been taken when the connection broke may arrive twice.
    """
    try:
        check_channel(channel)
        if event is not None:
            check_event(event)
        asyncio.run(_publish(channel, message, url, redis, event, as_json=as_json, retry_for=retry_for))
    except (ValueError, Refused) as error:
        fail(str(error))
    except Away as error:
        fail(f"given up after {retry_for:g} s: {error}", status=1)
    except KeyboardInterrupt:
        sys.exit(130)


async def _publish(
    channel: str,
    message: str | None,
    url: str,
    redis: str | None,
    event: str | None,
    *,
    as_json: bool,
    retry_for: float,
) -> None:
    target: Target = RedisTarget(redis, channel, event) if redis else ServerTarget(url, channel, event)
    progress = Progress(channel)
    left_out = 0
    try:
        async for batch in _batches(message, as_json):
            try:
                await _deliver(target, batch, progress, retry_for)
            except TooLarge as error:
                say(f"{error}; left out: {str(batch[0])[:60]!r}…")
                left_out += 1
        if left_out:
            raise Refused(f"left out {left_out} too large for the server")
    finally:
        progress.report()
        await target.aclose()


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


class ServerTarget:
    """A running Waterspout server, by HTTP."""

    def __init__(self, url: str, channel: str, event: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--url is an address like http://127.0.0.1:8888, not {url!r}")
        query = "?" + urlencode({"event": event}) if event else ""
        self._url = url
        self._address = f"{url.rstrip('/')}/channels/{quote(channel, safe='')}{query}"
        self._http = AsyncHTTPClient()

    async def send(self, batch: list[Payload]) -> None:
        body = "".join(to_json(payload) + "\n" for payload in batch)
        try:
            response = await self._http.fetch(
                self._address,
                method="POST",
                body=body,
                headers={"Content-Type": "application/x-ndjson"},
                raise_error=False,
                request_timeout=30.0,
            )
        except (OSError, HTTPError) as error:
            raise Away(f"no answer from {self._url}: {error}") from None
        if response.code != 200:
            answer = _answer(response)
            explanation = f"{self._url} answered {response.code}: {answer.get('error', response.reason)}"
            if response.code == 413:
                raise TooLarge(explanation)
            if response.code < 500 and response.code != 429:
                raise Refused(explanation)
            raise Away(explanation, sent=int(answer.get("published", 0)))

    async def aclose(self) -> None:
        self._http.close()


class RedisTarget:
    """A Redis server that Waterspout servers listen to."""

    def __init__(self, url: str, channel: str, event: str | None) -> None:
        self._channels = Channels(url)
        self._channel = channel
        self._event = event

    async def send(self, batch: list[Payload]) -> None:
        publishing = [self._channels.publish(self._channel, self._event, payload) for payload in batch]
        results = await asyncio.gather(*publishing, return_exceptions=True)
        for sent, result in enumerate(results):
            if isinstance(result, BrokerError):
                raise Away(str(result), sent) from None
            if isinstance(result, BaseException):
                raise result

    async def aclose(self) -> None:
        await self._channels.aclose()


class Progress:
    """How many were sent; shown while it grows where somebody looks at a terminal."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._sent = 0
        self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def add(self, count: int) -> None:
        self._sent += count
        if self._live and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            click.echo(f"\rwaterspout: {self._text()}", err=True, nl=False)

    def report(self) -> None:
        if self._live:
            click.echo("\r", err=True, nl=False)
        say(self._text())

    def _text(self) -> str:
        return f"sent {self._sent} message{'' if self._sent == 1 else 's'} to {self._channel}"


async def _batches(message: str | None, as_json: bool) -> AsyncIterator[list[Payload]]:
    if message is not None:
        yield [_payload(message, as_json, "the message")]
        return
    lines = _Lines()
    number = 0
    while batch := await lines.take():
        payloads = []
        for line in batch:
            number += 1
            if line:
                payloads.append(_payload(line, as_json, f"line {number}"))
        yield payloads


def _payload(text: str, as_json: bool, place: str) -> Payload:
    if not text:
        raise BadMessage(f"{place} is empty")
    if not as_json:
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadMessage(f"{place} is not JSON: {error}") from None


class _Lines:
    """Standard input, read by a thread of its own, since it may be a file, a pipe or a terminal."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._room = threading.BoundedSemaphore(MAX_WAITING)
        self._held: str | None = None  # the line that the batch before had no room for
        threading.Thread(target=self._read, daemon=True).start()

    async def take(self) -> list[str]:
        """Some lines, at least one; none when the input has ended."""
        lines: list[str] = []
        size = 0
        while len(lines) < MAX_BATCH and (not lines or self._held is not None or not self._lines.empty()):
            line = self._held if self._held is not None else await self._lines.get()
            self._held = None
            if line is None:
                self._lines.put_nowait(None)
                break
            if lines and size + len(line) > MAX_BATCH_BYTES:
                self._held = line
                break
            lines.append(line)
            size += len(line)
            self._room.release()
        return lines

    def _read(self) -> None:
        for raw in sys.stdin.buffer:
            self._room.acquire()
            self._put(raw.decode(errors="replace").rstrip("\r\n"))
        self._put(None)

    def _put(self, line: str | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
        except RuntimeError:  # the loop has been closed: nobody wants the rest
            sys.exit()


def _answer(response: HTTPResponse) -> dict[str, Any]:
    try:
        answer = json.loads(response.body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
