"""What the doors share: errors that say what was wrong, and the channels a request asks for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final
from urllib.parse import urlsplit

from tornado.web import HTTPError, RequestHandler

from waterspout_core import (
    BadChannel,
    BadPosition,
    BaseStore,
    BrokerError,
    Source,
    TooManyChannels,
    from_id,
)

logger: Final = logging.getLogger("waterspout.handlers")

MAX_CHANNELS: Final = 100
"""Channels on one connection: as many as an id (and so a request header) has room for."""

READY_TIMEOUT: Final = 5.0
"""Seconds to wait for the broker before a subscriber is let in all the same; it is told of the gap then."""


class RequestError(HTTPError):
    """A request that cannot be served, in words for whoever sent it."""

    def __init__(self, status: int, explanation: str, **facts: Any) -> None:
        super().__init__(status)
        self.explanation = explanation
        self.facts = facts


class JSONErrors(RequestHandler):
    """Answers errors with `{"error": "what was wrong"}`."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if status_code == 405:
            self.set_header("Allow", ", ".join(self._allowed()))  # RFC 9110, 15.5.6
        if isinstance(error, RequestError):
            answer = {"error": error.explanation, **error.facts}
        elif isinstance(error, HTTPError) and error.log_message and status_code < 500:
            answer = {"error": error.log_message % error.args}
        else:
            answer = {"error": self._reason}
        self.finish(answer)

    def _allowed(self) -> list[str]:
        names = ((method, method.lower()) for method in self.SUPPORTED_METHODS)
        return [method for method, name in names if getattr(type(self), name) is not getattr(RequestHandler, name)]


class NotFound(JSONErrors):
    """For every path that leads nowhere; an application's `default_handler_class`."""

    def prepare(self) -> None:
        raise RequestError(404, f"there is nothing at {self.request.path}")


class SubscriberHandler(JSONErrors):
    """A handler whose clients subscribe: to `store`, or to the channels they name in the URL, opened by `source`."""

    def initialize(self, store: BaseStore | None = None, source: Source | None = None) -> None:
        self.store, self.source = check_wiring(self, store, source)

    async def open_cursors(self) -> dict[BaseStore, int]:
        """The stores that the request asks for, and where to begin in each. Raises `RequestError`."""
        offsets = self._offsets()
        stores = self._stores()
        seeking = [store.seek(offsets) for store in stores]
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                return dict(zip(stores, await asyncio.gather(*seeking), strict=True))
        except TimeoutError:
            logger.warning("the broker has not confirmed in %g s: subscribing all the same", READY_TIMEOUT)
            return {store: store.cursor(offsets) for store in stores}
        except BrokerError as error:
            raise RequestError(503, str(error)) from error

    def _stores(self) -> list[BaseStore]:
        if self.store is not None:
            return [self.store]
        assert self.source is not None
        names = self.path_args or tuple(self.path_kwargs.values()) or self.get_query_arguments("channel", strip=False)
        if not names:
            raise RequestError(400, "name at least one channel: ?channel=NAME")
        names = list(dict.fromkeys(names))
        if len(names) > MAX_CHANNELS:
            raise RequestError(400, f"at most {MAX_CHANNELS} channels on one connection, not {len(names)}")
        return [open_channel(self.source, name) for name in names]

    def _offsets(self) -> dict[str, int] | None:
        """Where the client says it stopped, by epoch; None if it comes for the first time.

        A browser that reconnects by itself repeats its URL and adds the header, so the header is the newer of the two.
        """
        header = self.request.headers.get("Last-Event-ID")
        if header:
            try:
                return dict(from_id(header))
            except BadPosition:
                # Not the client's fault, it repeats what some server gave it, and an EventSource that is refused never
                # comes back (WHATWG HTML, "fail the connection"). It is an unknown position: it will see a gap.
                return {}
        asked = self.get_query_argument("last_event_id", "")
        if not asked:
            return None
        try:
            return dict(from_id(asked))
        except BadPosition as error:
            raise RequestError(400, f"bad last_event_id: {error}") from None


def check_wiring(
    handler: RequestHandler, store: BaseStore | None, source: Source | None
) -> tuple[BaseStore | None, Source | None]:
    """The two as they are, if a route names one of them and it can be used. Raises TypeError."""
    name = type(handler).__name__
    if (store is None) == (source is None):
        raise TypeError(f'{name} is routed with {{"store": …}} or {{"source": …}}, one of them')
    if store is not None and not isinstance(store, BaseStore):
        raise TypeError(f"{name} takes a store, such as QueueStore(), not {store!r:.80}")
    if source is not None and not callable(getattr(source, "open", None)):
        raise TypeError(f"{name} takes a source that opens stores, such as Channels(), not {source!r:.80}")
    return store, source


def open_channel(source: Source, name: str) -> BaseStore:
    """The store of the channel `name`. Raises `RequestError`."""
    try:
        return source.open(name)
    except BadChannel as error:
        raise RequestError(400, str(error)) from None
    except (TooManyChannels, BrokerError) as error:
        raise RequestError(503, str(error)) from None


def foreign_page(handler: RequestHandler) -> RequestError:
    """The answer for a page of another site."""
    origin, host = (handler.request.headers.get(name, "") for name in ("Origin", "Host"))
    return RequestError(
        403, f"pages of {origin!r:.80} may not come here, to {host!r:.80}; a proxy has to pass the Host header on"
    )


def is_foreign(handler: RequestHandler) -> bool:
    """Whether a browser says that the request was made by a page of another site (RFC 6454)."""
    origin = handler.request.headers.get("Origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != handler.request.headers.get("Host", "").lower()
    except ValueError:
        return True
