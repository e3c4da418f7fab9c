"""Clients from the standard library and from others: what a browser or curl would see."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import urllib.request
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from waterspout_redis.testing import FaultProxy

DEADLINE: Final = 20.0


class EventStream:
    """A reader of server-sent events as plain as curl: the standard library's HTTP client."""

    def __init__(self, url: str, *, last_event_id: str | None = None) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=DEADLINE)
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        self._connection.request("GET", f"{parts.path or '/'}?{parts.query}", headers=headers)
        self.response = self._connection.getresponse()
        self.last_id: str | None = last_event_id

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Go away without a word, as a closing laptop lid does."""
        self._connection.close()
        self.response.close()

    def next(self) -> dict[str, str] | None:
        """The next event with its fields; None when the stream has ended."""
        fields: dict[str, str] = {}
        while line := self.response.readline().decode():
            line = line.rstrip("\n")
            if not line:  # an event without data is none, but its id counts
                self.last_id = fields.get("id", self.last_id)
                if "data" in fields:
                    return fields
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data" and "data" in fields:
                fields["data"] += "\n" + value
            elif name:
                fields[name] = value
            else:
                fields.clear()
        return None

    def data(self, count: int) -> list[str]:
        """The data of the next `count` events."""
        events = [self.next() for _ in range(count)]
        return [event["data"] if event else "the stream has ended" for event in events]


@asynccontextmanager
async def web_socket(url: str | HTTPRequest) -> AsyncIterator[WebSocketClientConnection]:
    """Tornado's client, whose socket is closed at the end: its `close` alone leaves that to the server's answer."""
    connection = await websocket_connect(url)
    try:
        yield connection
    finally:
        connection.close()
        async with asyncio.timeout(DEADLINE):
            while await connection.read_message() is not None:
                pass


class Proxy:
    """A `FaultProxy` for tests that block: it lives in a thread with an event loop of its own."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._proxy = FaultProxy(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._proxy.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._wait(self._proxy.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._wait(self._proxy.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """End every connection that there is."""
        self._wait(self._cut())

    async def _cut(self) -> None:
        self._proxy.hang_up()

    def _wait(self, step: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(DEADLINE)


def request(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """The status and the JSON of an answer; a POST if there is a `body`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(url, data=body, headers=named, method="GET" if body is None else "POST")
    try:
        with urllib.request.urlopen(asked, timeout=DEADLINE) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def publish(url: str, channel: str, text: str, event: str | None = None) -> str:
    """Publish `text` by `POST`; the message's id."""
    query = f"?event={quote(event)}" if event else ""
    status, answer = request(
        f"{url}/channels/{quote(channel, safe='')}{query}", text.encode(), Content_Type="text/plain"
    )
    assert status == 200, answer
    assert answer["channel"] == channel
    return str(answer["id"])
