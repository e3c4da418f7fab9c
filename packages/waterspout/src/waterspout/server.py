"""The push server: the pieces wired into one Tornado application."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, Final

from tornado.httpserver import HTTPServer
from tornado.tcpserver import TCPServer
from tornado.web import Application, RequestHandler, StaticFileHandler

from waterspout_channels import Channels
from waterspout_core import BrokerError, Message, Position, to_json
from waterspout_handlers import (
    Behind,
    Connections,
    EventSource,
    JSONErrors,
    LineServer,
    LongPoll,
    NotFound,
    PublishHandler,
    RequestError,
    WebSocketSubscriber,
)

from ._listener import listen

CONSOLE: Final = Path(__file__).parent / "console"

MAX_INCOMING: Final = 64 * 1024
"""Bytes of a WebSocket message from a subscriber."""

MAX_OTHER_BODY: Final = 64 * 1024
"""Bytes of a request's body where none is wanted; Tornado would hold 100 MB of it before it looks."""

IDLE_TIMEOUT: Final = 60.0
"""Seconds for the head of a request, and between two: who says nothing is not counted by any limit of ours, and Tornado
would keep it for an hour."""

READ_TIMEOUT: Final = 5.0
"""Seconds for the broker to tell about a channel."""

AWAY_TIMEOUT: Final = 1.0
"""Seconds for a broker that is known to be away: it may come back just now."""

GRACE: Final = 5.0
"""Seconds in which all leave when the server stops."""

GAP: Final = Behind()
"""Who does not keep up is told of a gap, where there is one."""

MAX_LOGGED: Final = 200
"""Characters of a request's URI in the access log."""

access_logger: Final = logging.getLogger("waterspout.access")


class ConsolePage(JSONErrors, StaticFileHandler):
    """The files of the console page; they load nothing from anywhere else, and nothing else may frame them."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'")


class Events(EventSource):
    """`GET /events`. A browser that is refused is answered 200, and in the access log refused all the same."""

    refused: int | None = None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.refused = status_code
        super().write_error(status_code, **kwargs)


class ActiveChannels(JSONErrors):
    """`GET /channels`: the channels that have subscribers here, or messages, and the number of each seen so far.

    One that was only asked about is not among them: reading makes no channel.
    """

    def initialize(self, channels: Channels) -> None:
        self.channels = channels

    def get(self) -> None:
        rows = [
            {
                "channel": store.channel,
                "subscribers": len(store.subscribers),
                "messages": store.log.position.offset,
            }
            for store in sorted(self.channels.stores, key=lambda store: str(store.channel))
            if store.subscribers or store.log.position.offset
        ]
        finish(self, {"channels": rows})


class ChannelHandler(PublishHandler):
    """`GET /channels/<name>`: where the channel stands, and with `?limit=` what it keeps. `POST` publishes to it.

    The application's setting `requests` has a Future for each that is under way: a server that stops waits for them.
    """

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        # First of all: it is answered, too, if the rest fails.
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        requests: set[asyncio.Future[None]] = self.settings["requests"]
        requests.add(self._answered)
        self._answered.add_done_callback(requests.discard)
        super().initialize(*args, **kwargs)

    def on_finish(self) -> None:
        self._end()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._end()

    def _end(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)

    async def get(self, channel: str) -> None:
        limit = self._limit()
        store = self.open_for(self.may_subscribe, "subscribe", channel)
        async with _soon(AWAY_TIMEOUT if self._away else READ_TIMEOUT):
            kept = None if limit is None else await store.history(limit)
            # Behind what is kept: whoever subscribes from here goes on with the next message.
            position = await store.position()
        answer = {
            "channel": store.channel,
            "id": str(position),
            "subscribers": len(store.subscribers),
            "messages": position.offset,
        }
        finish(self, answer if kept is None else {**answer, "history": [_as_object(*each) for each in kept]})

    async def post(self, channel: str | None = None) -> None:
        if self._away:  # the first message of a channel would wait for the subscription as long as for a slow broker
            async with _soon(AWAY_TIMEOUT, published=0):
                await self.open_for(self.may_publish, "publish", channel).ready()
        await super().post(channel)

    @property
    def _away(self) -> bool:
        assert isinstance(self.source, Channels)
        return self.source.pubsub.health.state == "disconnected"

    def _limit(self) -> int | None:
        asked = self.get_query_argument("limit", "")
        if not asked:
            return None
        if not re.fullmatch("[0-9]{1,9}", asked):
            raise RequestError(400, f"limit is a whole number of messages, not {asked!r:.40}")
        return int(asked)


@contextlib.asynccontextmanager
async def _soon(seconds: float, **facts: Any) -> AsyncIterator[None]:
    """Raises `RequestError` with these `facts` if the broker does not answer in so many seconds, or refuses."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (BrokerError, TimeoutError) as error:
        raise RequestError(503, str(error) or f"the broker has not answered in {seconds:g} s", **facts) from None


def _as_object(position: Position, message: Message) -> dict[str, Any]:
    """A message as a WebSocket's subscribers get it, but for the channel's name."""
    named = {} if message.event is None else {"event": message.event}
    data = message.text if isinstance(message.data, bytes) else message.data
    return {**named, "data": data, "id": str(position)}


class Health(RequestHandler):
    """`GET /healthz`: 200 while the process serves, how the link to the broker is, and who is connected.

    While it is stopping it answers 503: whatever balances the load shall send nobody here any more.
    """

    def initialize(self, channels: Channels, connections: Connections) -> None:
        self.channels, self.connections = channels, connections

    def get(self) -> None:
        connections = self.connections
        if connections.draining:
            self.set_status(503)
        finish(
            self,
            {
                "status": "draining" if connections.draining else "ok",
                "broker": dataclasses.asdict(self.channels.pubsub.health),
                "connections": {"open": len(connections), **dataclasses.asdict(connections.counts)},
            },
        )


def finish(handler: RequestHandler, answer: dict[str, Any]) -> None:
    """Answer with JSON, a whole line of it: in a shell the prompt comes behind."""
    handler.set_header("Content-Type", "application/json; charset=UTF-8")
    handler.finish(to_json(answer) + "\n")


def log_request(handler: RequestHandler) -> None:
    """The access log; what went well is for debugging only, since an open console page asks all the time."""
    status = (isinstance(handler, Events) and handler.refused) or handler.get_status()
    if status == 503:  # at a limit, while it stops, or since the broker is away: for now, and no mistake of ours
        level = logging.WARNING
    else:
        level = logging.DEBUG if status < 400 else logging.INFO if status < 500 else logging.ERROR
    request = handler.request
    uri = request.uri or ""
    shown = uri if len(uri) <= MAX_LOGGED else f"{uri[:MAX_LOGGED]}…"
    milliseconds = 1000 * request.request_time()
    access_logger.log(level, "%d %s %s (%s) %.1f ms", status, request.method, shown, request.remote_ip, milliseconds)


class OtherHost(JSONErrors):
    """For requests to a host whose name is not ours.

    A page of another site can give its own name our address, and is then this site to the browser (DNS rebinding).
    """

    def prepare(self) -> None:
        host = self.request.host_name
        raise RequestError(403, f"this server does not answer to the name {host!r:.80}: --allow-host lets it")


def make_app(
    channels: Channels,
    *,
    hosts: Collection[str] = (),
    connections: Connections | None = None,
    allow_origins: Collection[str] = (),
    when_behind: Behind = GAP,
    **settings: Any,
) -> Application:
    """The push server's routes over `channels`, as an application to run, mount or extend.

    It answers to requests for one of `hosts` only; to all where none is named. Pages of `allow_origins` may use it from
    elsewhere. `when_behind` says what becomes of a subscriber that does not keep up, and `connections`
    bounds and counts them. Raises ValueError for what is no host.
    """
    if isinstance(hosts, str):
        raise TypeError(f"hosts is a list of names, not the str {hosts!r:.80}")
    connections = Connections() if connections is None else connections
    source = {"source": channels, "allow_origins": allow_origins}
    subscribers = {**source, "connections": connections, "when_behind": when_behind}
    application = Application(
        default_handler_class=OtherHost if hosts else NotFound,
        log_function=log_request,
        websocket_max_message_size=MAX_INCOMING,
        waterspout_connections=connections,
        requests=set(),
        **settings,
    )
    application.add_handlers(
        f"({'|'.join(re.escape(host_name(host)) for host in hosts)})" if hosts else ".*",
        [
            (r"/events", Events, subscribers),
            (r"/ws", WebSocketSubscriber, {**subscribers, "allow_subscribe": True, "allow_publish": True}),
            (r"/poll", LongPoll, subscribers),
            (r"/channels", ActiveChannels, {"channels": channels}),
            (r"/channels/(.+)", ChannelHandler, source),
            (r"/healthz", Health, {"channels": channels, "connections": connections}),
            (r"/([a-z]+\.(?:js|css|svg))", ConsolePage, {"path": CONSOLE}),
            (r"/()", ConsolePage, {"path": CONSOLE, "default_filename": "index.html"}),
            (r".*", NotFound),
        ],
    )
    return application


def host_name(host: str) -> str:
    """`host` as requests name it. Raises ValueError if none does: it has no port there, and is no URL."""
    if re.fullmatch(r"[A-Za-z0-9_.-]+", host):
        return host.lower()
    try:
        return f"[{ipaddress.IPv6Address(host)}]"
    except ValueError:
        raise ValueError(
            f"a host is a name like www.example.com or an address, without scheme, port and path, not {host!r:.80}"
        ) from None


class Server:
    """Serves `channels` over HTTP and over TCP: `start()`, `start_lines()`, and later `await aclose()`.

    `hosts`, `allow_origins` and `when_behind` are those of `make_app`; `connections` counts those of both together.
    With `ssl_options` both speak TLS, and nothing else.
    """

    def __init__(
        self,
        channels: Channels,
        *,
        hosts: Collection[str] = (),
        connections: Connections | None = None,
        allow_origins: Collection[str] = (),
        when_behind: Behind = GAP,
        ssl_options: ssl.SSLContext | None = None,
    ) -> None:
        self.channels = channels
        self.connections = Connections() if connections is None else connections
        self._when_behind = when_behind
        self._ssl_options = ssl_options
        app = make_app(
            channels,
            hosts=hosts,
            connections=self.connections,
            allow_origins=allow_origins,
            when_behind=when_behind,
        )
        self._requests: set[asyncio.Future[None]] = app.settings["requests"]
        self._http = HTTPServer(
            app,
            xheaders=False,
            # Only what is published has a body, and PublishHandler has bounds of its own.
            max_body_size=MAX_OTHER_BODY,
            body_timeout=10.0,
            idle_connection_timeout=IDLE_TIMEOUT,
            ssl_options=ssl_options,
        )
        self._servers: list[TCPServer] = [self._http]

    def start(self, host: str, port: int) -> str:
        """Listen, and return the URL. Port 0 takes a free one. Raises `OSError`."""
        address = listen(self._http, host, port)
        self.channels.pubsub.start()  # so that trouble with the broker is told at once
        return f"{'https' if self._ssl_options else 'http'}://{address}"

    def start_lines(self, host: str, port: int, *, token: str | None = None) -> str:
        """Speak the line protocol on a port beside it, to those who know the `token`, if there is one; like `start`.

        Raises ValueError if it is empty: a secret that is missing shall not let everybody in.
        """
        lines = LineServer(
            source=self.channels,
            token=token,
            allow_publish=True,
            connections=self.connections,
            when_behind=self._when_behind,
            ssl_options=self._ssl_options,
        )
        address = listen(lines, host, port)
        self._servers.append(lines)
        return f"{'tls' if self._ssl_options else 'tcp'}://{address}"

    def renew(self, ssl_options: ssl.SSLContext) -> None:
        """Show another certificate to whoever connects from now on; who is connected already stays so."""
        # A new context, not one that is loaded again: that would keep a certificate whose key was of another kind.
        self._ssl_options = ssl_options
        for server in self._servers:
            server.ssl_options = ssl_options

    async def aclose(self, grace: float = GRACE) -> None:
        """Accept nobody any more, let all leave in order within `grace` seconds, and close the channels."""
        end = time.monotonic() + grace
        for server in self._servers:
            server.stop()
        await self.connections.drain(grace)
        if self._requests:
            await asyncio.wait(self._requests, timeout=max(end - time.monotonic(), 0))
        await self._http.close_all_connections()
        await self.channels.aclose()
