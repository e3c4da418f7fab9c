"""Clients that others have written, one for each transport and more: all of them read channels in the same way."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp
import httpx
import pytest
from httpx_sse import aconnect_sse
from playwright.async_api import Browser, Page, async_playwright
from websockets.asyncio.client import ClientConnection, connect

from integration.browsers import FLAGS, find_browser
from integration.clients import DEADLINE, request

PAGE: Final = """() => {
    window.inbox = [];
    window.wake = () => {};
    window.got = (item) => { inbox.push(item); wake(); };
    window.take = async () => {
        if (!inbox.length) await new Promise((resolve) => { wake = resolve; });
        return inbox.splice(0);
    };
}"""
"""What a script on the page gives to `got` waits there until we `take` it."""


class Chromium:
    """A browser that is started when the first page is wanted; all of it belongs to one event loop."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._browser: Browser | None = None

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        """A page of the server at `url`."""
        if self._browser is None:
            playwright = await self._stack.enter_async_context(async_playwright())
            self._browser = await playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
            self._stack.push_async_callback(self._browser.close)
        context = await self._browser.new_context()
        try:
            page = await context.new_page()
            await page.goto(f"{url}/healthz")  # of the same origin, and nothing on it that connects by itself
            await page.evaluate(PAGE)
            yield page
        finally:
            await context.close()

    async def aclose(self) -> None:
        """End it, if it was started."""
        await self._stack.aclose()


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is to be reached, and the browser that may be used for it."""

    url: str
    tcp_port: int
    chromium: Chromium

    def address(self, path: str, channels: list[str], after: str, **options: str) -> str:
        """The URL that goes on behind the id `after` in `channels`."""
        query = [*(("channel", name) for name in channels), ("last_event_id", after), *options.items()]
        return f"{self.url}{path}?{urlencode(query)}"

    def websocket(self, channels: list[str], after: str) -> str:
        return self.address("/ws", channels, after).replace("http", "ws", 1)

    def publish(self, channel: str, values: list[Any], event: str = "") -> str:
        """Publish JSON values, all in one go; the id of the last."""
        lines = "".join(json.dumps(value) + "\n" for value in values).encode()
        address = f"{self.url}/channels/{channel}?{urlencode({'event': event})}"
        status, answer = request(address, lines, Content_Type="application/x-ndjson")
        assert status == 200, answer
        return str(answer["id"])

    def position(self, *channels: str) -> str:
        """The id behind all that has been published to `channels`."""
        return ",".join(request(f"{self.url}/channels/{name}")[1]["id"] for name in channels)


@dataclass(frozen=True, slots=True)
class Received:
    """A message as a client got it."""

    channel: str
    event: str | None
    data: Any
    id: str


def from_json(text: str | bytes, id: str | None = None) -> Received:
    """The message that a JSON object is."""
    members = json.loads(text)
    received = Received(members.pop("channel"), members.pop("event", None), members.pop("data"), members.pop("id", id))
    assert members == {}
    return received


# The clients: each reads channels from an id on, and is cut off when its iterator is closed

Read = Callable[[Server, list[str], str], AsyncGenerator[Received, None]]


async def httpx_sse(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    url = server.address("/events", channels, after, format="json")
    async with httpx.AsyncClient(timeout=DEADLINE) as client, aconnect_sse(client, "GET", url) as source:
        async for event in source.aiter_sse():
            if not event.data:
                continue  # WHATWG HTML, "dispatch the event", step 2: there is none without data
            received = from_json(event.data, event.id)
            assert event.event == (received.event or "message")
            yield received


async def aiohttp_ndjson(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    url = server.address("/events", channels, after)
    headers = {"Accept": "application/x-ndjson"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        assert response.content_type == "application/x-ndjson"
        async for line in response.content:
            if line.strip():
                yield from_json(line)


async def aiohttp_long_poll(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(server.address("/poll", channels, after)) as response:
                answer = await response.json()
            for message in answer["messages"]:
                after = message["id"]
                yield from_json(json.dumps(message))


def aiohttp_websocket(*, compress: int) -> Read:
    async def read(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(server.websocket(channels, after), compress=compress) as socket,
        ):
            assert bool(socket.compress) == bool(compress)
            async for message in socket:
                assert message.type is aiohttp.WSMsgType.TEXT
                yield from_json(message.data)

    return read


@asynccontextmanager
async def websocket(url: str, *, compression: str | None) -> AsyncIterator[ClientConnection]:
    async with connect(url, compression=compression) as socket:
        try:
            yield socket
        finally:
            socket.transport.abort()  # while messages wait to be read, websockets hears no answer to a goodbye


def websockets(*, compression: str | None) -> Read:
    async def read(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
        async with websocket(server.websocket(channels, after), compression=compression) as socket:
            negotiated = [extension.name for extension in socket.protocol.extensions]
            assert negotiated == (["permessage-deflate"] if compression else [])
            async for message in socket:
                yield from_json(message)

    return read


async def websockets_by_messages(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    async with websocket(f"{server.url.replace('http', 'ws', 1)}/ws", compression="deflate") as socket:
        for name in channels:
            await socket.send(json.dumps({"subscribe": name, "last_event_id": after, "ref": name}))
        confirmed = []
        async for message in socket:
            answer = json.loads(message)
            if "subscribed" in answer:
                assert answer["ref"] == answer["subscribed"]
                confirmed.append(answer["subscribed"])
            else:
                received = from_json(message)
                assert received.channel in confirmed
                yield received


async def tcp_lines(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    host = urlsplit(server.url).hostname
    reader, writer = await asyncio.open_connection(host, server.tcp_port, limit=1 << 20)
    try:
        writer.write("".join(f"SUBSCRIBE {name} FROM {after}\n" for name in channels).encode())
        confirmed = []
        while line := await reader.readline():
            assert line.endswith(b"\r\n")
            word, _, rest = line.decode().strip().partition(" ")
            if word == "CONFIRMED":
                confirmed.append(rest.split()[0])
            elif word != "GOAWAY":
                assert word == "MESSAGE", line
                received = from_json(rest)
                assert received.channel in confirmed
                yield received
    finally:
        writer.close()


@asynccontextmanager
async def curl(*args: str) -> AsyncIterator[asyncio.StreamReader]:
    """What curl prints, until it has ended in good order or is killed."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on PATH")
    command = ["curl", "--silent", "--show-error", "--no-buffer", *args]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=1 << 20)
    assert process.stdout is not None
    try:
        yield process.stdout
        if process.stdout.at_eof():
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def curl_sse(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    async with curl(
        "-H", "Accept: text/event-stream", server.address("/events", channels, after, format="json")
    ) as out:
        data = ""
        async for line in out:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "data":
                data = value
            elif name == "id" and data:
                yield from_json(data, value)


async def curl_ndjson(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    async with curl(server.address("/events", channels, after, format="ndjson")) as out:
        async for line in out:
            if line.strip():
                yield from_json(line)


async def curl_long_poll(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    while True:
        async with curl(server.address("/poll", channels, after)) as out:
            answer = json.loads(await out.read())
        for message in answer["messages"]:
            after = message["id"]
            yield from_json(json.dumps(message))


async def inbox(page: Page) -> AsyncGenerator[Any, None]:
    while True:
        for item in await page.evaluate("take()"):
            yield item


LISTEN: Final = """([url, names]) => {
    window.source = new EventSource(url);
    for (const name of names)
        source.addEventListener(name, ({type, data, lastEventId}) => got([type, data, lastEventId]));
}"""


async def chromium_sse(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    async with server.chromium.page(server.url) as page:
        url = server.address("/events", channels, after, format="json")
        await page.evaluate(LISTEN, [url, ["message", "gap", "created"]])
        async for type, data, id in inbox(page):
            received = from_json(data, id)
            assert type == (received.event or "message")
            yield received


async def chromium_websocket(server: Server, channels: list[str], after: str) -> AsyncGenerator[Received, None]:
    async with server.chromium.page(server.url) as page:
        await page.evaluate(
            """(url) => {
                const socket = new WebSocket(url);
                socket.onopen = () => got(socket.extensions);
                socket.onmessage = ({data}) => got(data);
            }""",
            server.websocket(channels, after),
        )
        async with aclosing(inbox(page)) as items:
            assert "permessage-deflate" in await anext(items)
            async for text in items:
                yield from_json(text)


CLIENTS: Final[dict[str, Read]] = {
    "SSE-httpx-sse": httpx_sse,
    "SSE-curl": curl_sse,
    "SSE-Chromium": chromium_sse,
    "WebSocket-websockets": websockets(compression=None),
    "WebSocket-websockets-deflate": websockets(compression="deflate"),
    "WebSocket-websockets-by-messages": websockets_by_messages,
    "WebSocket-aiohttp": aiohttp_websocket(compress=0),
    "WebSocket-aiohttp-deflate": aiohttp_websocket(compress=15),
    "WebSocket-Chromium-deflate": chromium_websocket,
    "NDJSON-aiohttp": aiohttp_ndjson,
    "NDJSON-curl": curl_ndjson,
    "long-poll-aiohttp": aiohttp_long_poll,
    "long-poll-curl": curl_long_poll,
    "TCP-lines": tcp_lines,
}
