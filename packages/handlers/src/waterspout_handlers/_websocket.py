"""The door for WebSockets: the opening handshake (RFC 6455, 4.2), and the hooks that Tornado's handlers have."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable
from typing import Any, Final

from tornado.escape import json_encode, utf8
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from waterspout_core import BaseStore, Source

from . import _deflate
from ._audience import position_of
from ._dialogue import Dialogue
from ._frames import NO_CODE, NORMAL, PING, WEBSOCKET_DEFLATED, WEBSOCKET_TEXT, frame
from ._goodbye import Goodbye
from ._requests import RequestError, SubscriberHandler, foreign_page
from ._socket import Socket

MAX_MESSAGE_SIZE: Final = 64 * 1024
"""Bytes of a client's message, unless Tornado's setting `websocket_max_message_size` says otherwise."""

_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = re.compile("[A-Za-z0-9+/]{22}==")
_HOOKS: Final = ("open", "on_message", "on_ping", "on_pong", "on_close", "may_subscribe", "may_publish")


class WebSocketSubscriber(SubscriberHandler):
    """Sends each message of a store, or of channels named by `?channel=`, as one JSON object in a text frame.

    Its members are `data` and, where there are any, `channel`, `event` and `id`; `?last_event_id=` goes on behind
    an `id`, or begins with all that is kept (`earliest`). Route it with `{"store": store}` or `{"source": channels}`.
    With a source, clients may `subscribe` and `unsubscribe` by messages, and so come without a channel; they may
    `publish` if `allow_publish` is set. Messages are compressed (RFC 7692) for who can read that, unless `compress` is
    false. Pages of other origins are refused, but those in `allow_origins` (`check_origin`).

    The hooks of Tornado's `WebSocketHandler` may be overridden: `open`, `on_message`, `on_ping`, `on_pong`, `on_close`
    (plain, or all but the last a coroutine), `select_subprotocol` and `check_origin`. An `on_message` gets all messages
    of the client, binary ones too, and may leave to ours what are requests. `may_subscribe` and `may_publish` are asked
    about the channels that messages name, as about those of the address. A handler without any of these lives for the
    handshake only.
    """

    close_code: int | None = None
    """What the client closed with, if it did."""

    close_reason: str | None = None
    selected_subprotocol: str | None = None
    _socket: Socket | None = None

    def initialize(
        self,
        store: BaseStore | None = None,
        source: Source | None = None,
        *,
        allow_subscribe: bool = True,
        allow_publish: bool = False,
        compress: bool = True,
        **options: Any,
    ) -> None:
        super().initialize(store, source, **options)
        self.compress = compress
        self._allow_subscribe = allow_subscribe
        self._allow_publish = allow_publish

    async def get(self, *args: str, **kwargs: str) -> None:
        key, deflated = self._check_handshake()
        origin = self.request.headers.get("Origin")
        if origin is not None and not self.check_origin(origin):
            raise foreign_page(self)
        cursors = await self.open_cursors()
        self._accept(key, deflated=deflated, where=position_of(cursors))
        # Tornado writes the head and the access log; what follows are frames, and all of them are ours.
        self.finish()
        stream = self.detach()
        if stream.closed():
            return
        self._socket = Socket(
            stream,
            WEBSOCKET_DEFLATED if deflated else WEBSOCKET_TEXT,
            self.connections,
            self._dialogue(),
            max_size=self.max_message_size,
            address=self.address,
            behind=self.behind,
        )
        if self._stays:
            await self._socket.introduce(self, cursors)
        else:
            self._socket.open(cursors)

    def _dialogue(self) -> Dialogue:
        rights = (self.may_subscribe, self.may_publish) if self._stays else (_everyone_may, _everyone_may)
        return Dialogue(self.store, self.source, self._allow_subscribe, self._allow_publish, *rights)

    def check_request(self) -> None:
        if self.source is not None and self._allow_subscribe and not self.names():
            self.offsets()  # which channels it is for is to be said later
        else:
            super().check_request()

    @property
    def max_message_size(self) -> int:
        """Bytes of a client's message, before and after it is inflated."""
        size: int = self.settings.get("websocket_max_message_size", MAX_MESSAGE_SIZE)
        return size

    def forget(self) -> None:
        """Nothing will come any more."""
        self._socket = None  # which may know us, to ask what its client may do
        super()._break_cycles()

    @property
    def _stays(self) -> bool:
        """Whether a subclass wants to hear of more than the handshake."""
        return any(getattr(type(self), hook) is not getattr(WebSocketSubscriber, hook) for hook in _HOOKS)

    # For subclasses, as with Tornado's WebSocketHandler

    def check_origin(self, origin: str) -> bool:
        """Whether a page of `origin` may connect: only one that the route allows, unless a subclass says otherwise."""
        return self.allows_origin(origin)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Which of those that the client offers is spoken; none, unless a subclass says otherwise."""
        return None

    def open(self, *args: str, **kwargs: str) -> Awaitable[None] | None:
        """It is open. Messages of the channels come when this has returned, and so do those of the client."""

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """The client says `message`; the next one comes when this is done."""
        return None if self._socket is None else self._socket.request(message)

    def on_ping(self, data: bytes) -> Awaitable[None] | None:
        """The client has pinged, and was answered."""

    def on_pong(self, data: bytes) -> Awaitable[None] | None:
        """The client has answered a ping; ours have no data."""

    def on_close(self) -> None:
        """It is closed, for whatever reason."""

    def write_message(self, message: bytes | str | dict[str, Any], binary: bool = False) -> asyncio.Future[None]:
        """Send `message`. Wait for the Future, or do not, as you like: it is done when all has left that was said so
        far. Raises `WebSocketClosedError`."""
        socket = self._talking()
        socket.send(utf8(json_encode(message) if isinstance(message, dict) else message), binary=binary)
        done = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody has to ask

        def tell(sent: asyncio.Future[None]) -> None:
            if done.done():
                return
            if sent.exception() is None:
                done.set_result(None)
            else:
                done.set_exception(WebSocketClosedError())

        try:
            socket.sent().add_done_callback(tell)
        except StreamClosedError:
            raise WebSocketClosedError from None
        return done

    def ping(self, data: str | bytes = b"") -> None:
        """Ask for a pong, with at most 125 bytes of `data`. Raises `WebSocketClosedError`."""
        self._talking().say(frame(PING, utf8(data)))

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Say goodbye, and close when the client has answered. Raises ValueError for a `code` that may not be sent."""
        if self._socket is not None:
            self._socket.end(Goodbye(code or (NORMAL if reason else NO_CODE), reason or ""))

    def _talking(self) -> Socket:
        if self._socket is None or not self._socket.talking:
            raise WebSocketClosedError
        return self._socket

    # The handshake

    def _check_handshake(self) -> tuple[str, bool]:
        """The client's key, and whether messages are compressed. Raises `RequestError`."""
        headers = self.request.headers
        if headers.get("Upgrade", "").lower() != "websocket" or self.request.version == "HTTP/1.0":
            raise RequestError(426, "this address speaks WebSocket: connect with ws:// and not http://")
        if "upgrade" not in {option.strip().lower() for option in headers.get("Connection", "").split(",")}:
            raise RequestError(400, "a WebSocket's handshake has the header Connection: Upgrade")
        if headers.get("Sec-WebSocket-Version") != "13":
            raise RequestError(426, "this address speaks version 13 of the WebSocket protocol")
        key = headers.get("Sec-WebSocket-Key", "")
        if not _KEY.fullmatch(key):
            raise RequestError(400, "Sec-WebSocket-Key is 16 bytes in base64")
        try:
            agreed = _deflate.agrees(headers.get("Sec-WebSocket-Extensions", ""))
        except ValueError as error:
            raise RequestError(400, f"bad Sec-WebSocket-Extensions: {error}") from None
        return key, agreed and self.compress

    def _accept(self, key: str, *, deflated: bool, where: str) -> None:
        """The head of the answer (4.2.2)."""
        self.set_status(101)
        self.clear_header("Content-Type")
        self.set_header("Upgrade", "websocket")
        self.set_header("Connection", "Upgrade")
        self.set_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()))
        if deflated:
            self.set_header("Sec-WebSocket-Extensions", _deflate.ANSWER)
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        self.selected_subprotocol = self.select_subprotocol([name.strip() for name in offered.split(",") if offered])
        if self.selected_subprotocol:
            self.set_header("Sec-WebSocket-Protocol", self.selected_subprotocol)
        # Whoever is cut off before the first message has an id to come back with.
        if where:
            self.set_header("Last-Event-ID", where)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 426:
            # RFC 9110, 15.5.22 and 7.8; RFC 6455, 4.2.2
            self.set_header("Upgrade", "websocket")
            self.set_header("Connection", "Upgrade")
            self.set_header("Sec-WebSocket-Version", "13")
        super().write_error(status_code, **kwargs)

    def _break_cycles(self) -> None:
        # Who hears of more may want templates for it, as with Tornado's own handler.
        if self.get_status() != 101 or not self._stays:
            self.forget()


def _everyone_may(channel: str) -> bool:
    return True
