"""`waterspout tail`: print messages as they come."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from typing import Any, Final
from urllib.parse import urlencode

import click
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from waterspout_core import GAP_EVENT, check_channel, from_id, to_json

from ._options import check_url, counted, fail, say, url_option

COME_BACK: Final = (1012, 1013)
"""Close codes of a server that stops, or has too many connections (IANA, "WebSocket Close Code Number Registry")."""

RETURN: Final = (1.0, 5.0)
"""Seconds until we come back to such a server: not all at once."""

MAX_RETRY_AFTER: Final = 60.0
"""Seconds for which a server may put us off."""


@click.command()
@click.argument("channels", metavar="CHANNEL...", nargs=-1, required=True)
@url_option
@click.option("--json", "as_json", is_flag=True, help="Print whole objects, one a line.")
@click.option(
    "--last-event-id",
    metavar="ID",
    help="Go on behind the message with this id; earliest: begin with all that is kept.",
)
def tail(channels: tuple[str, ...], url: str, as_json: bool, last_event_id: str | None) -> None:
    """Print the messages of CHANNEL... as they come; Ctrl-C ends it.

    After a break it goes on where it stopped: what the server still keeps is neither lost nor repeated, and what it
    does not keep any more is told.
    """
    try:
        for channel in channels:
            check_channel(channel)
        if last_event_id:
            from_id(last_event_id)
        check_url(url)
        asyncio.run(_tail(url, channels, as_json, last_event_id))
    except ValueError as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone, as in `waterspout tail a | head`; let nothing be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)


async def _tail(url: str, channels: tuple[str, ...], as_json: bool, last_id: str | None) -> None:
    pause = 0.1
    away = False
    while True:
        put_off = 0.0
        try:
            connection = await _connect(url, channels, last_id)
        except (OSError, HTTPClientError, WebSocketError) as error:
            explanation = _explanation(url, error)
            if isinstance(error, HTTPClientError) and 400 <= error.code < 500:
                fail(explanation)
            if not away:
                say(f"{explanation}; trying again")
            away = True
            put_off = _retry_after(error)
        else:
            if away:
                say("it is back")
            away = False
            if connection.headers is not None:
                last_id = last_id or connection.headers.get("Last-Event-ID")
            try:
                while (text := await connection.read_message()) is not None:
                    pause = 0.1
                    message = json.loads(text)
                    last_id = message["id"]
                    show(message, as_json, several=len(channels) > 1)
            finally:
                connection.close()
            if connection.close_code in COME_BACK:
                put_off = random.uniform(*RETURN)
        await asyncio.sleep(put_off + pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, 3.0)


async def _connect(url: str, channels: tuple[str, ...], last_id: str | None) -> WebSocketClientConnection:
    query = [("channel", channel) for channel in channels]
    if last_id:
        query.append(("last_event_id", last_id))
    address = "ws" + url.rstrip("/").removeprefix("http") + "/ws?" + urlencode(query)
    request = HTTPRequest(address, connect_timeout=10.0)
    return await websocket_connect(request, ping_interval=30.0, ping_timeout=30.0, max_message_size=1 << 30)


def show(message: dict[str, Any], as_json: bool, *, several: bool) -> None:
    """Print one message: its data, behind the channel's name where there are several; or all of it."""
    data = message["data"]
    if as_json:
        click.echo(to_json(message))
    elif message.get("event") == GAP_EVENT:
        missed = data["missed"]
        lost = "some messages" if missed is None else counted(missed, "message")
        say(f"lost {lost} of {message['channel']}, which the server does not keep any more")
    else:
        text = data if isinstance(data, str) else to_json(data)
        click.echo(f"{message['channel']}: {text}" if several else text)


def _retry_after(error: Exception) -> float:
    """The seconds for which a server that refuses us for now wants us to stay away."""
    response = error.response if isinstance(error, HTTPClientError) else None
    asked = response.headers.get("Retry-After", "") if response else ""
    return min(float(asked), MAX_RETRY_AFTER) if asked.isascii() and asked.isdecimal() else 0.0


def _explanation(url: str, error: Exception) -> str:
    """What was wrong, in the server's words if there are any."""
    if not isinstance(error, HTTPClientError) or error.response is None:
        return f"no answer from {url}: {error}"
    try:
        said = str(json.loads(error.response.body)["error"])
    except (ValueError, KeyError, TypeError):
        said = error.message
    return f"{url} answered {error.code}: {said}"
