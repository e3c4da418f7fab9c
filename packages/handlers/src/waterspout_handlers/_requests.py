"""What the doors share: errors that say what was wrong, and the channels a request asks for."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
from asyncio import Future
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest
from tornado.web import Application, HTTPError, RequestHandler

from waterspout_core import (
    BadChannel,
    BadPosition,
    BaseStore,
    BrokerError,
    Source,
    TooManyChannels,
    check_channel,
    from_id,
)

from ._audience import Behind, Policy
from ._connections import ConnectionRefused, Connections, connections_of

logger: Final = logging.getLogger("waterspout.handlers")

PREFLIGHT_AGE: Final = 600
"""Seconds for which a browser need not ask again what a foreign page may do."""

RETRY_AFTER: Final = 5.0, 15.0
"""Between these, in seconds and at random, whoever was refused for now may come again."""

READY_TIMEOUT: Final = 5.0
"""Seconds to wait for the broker before a subscriber is let in all the same; it is told of the gap then."""


Origins: TypeAlias = Collection[str]
"""`"*"` for every site, or the origins of some, such as `https://example.org` (RFC 6454)."""


Right: TypeAlias = Callable[[str], bool]
"""Tells whether somebody may do something with a channel."""


class RequestError(HTTPError):
    """A request that cannot be served, in words for whoever sent it.

    `facts` are said beside them. What cannot be served for now (503) may be tried again after `retry` seconds.
    """

    def __init__(self, status: int, explanation: str, *, retry: float | None = None, **facts: Any) -> None:
        super().__init__(status)
        self.explanation = explanation
        # At different times: who was refused with many others would be refused with them again.
        self.retry = random.uniform(*RETRY_AFTER) if retry is None else retry
        self.facts = facts


class JSONErrors(RequestHandler):
    """Answers errors with `{"error": "what was wrong"}`; a route with wrong arguments, too, with 500."""

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        try:
            super().__init__(application, request, **kwargs)
        except Exception as error:
            # Tornado would drop the connection without an answer. What `prepare` raises is logged, and answered.
            self.prepare = partial(_raise, error)  # type: ignore[method-assign]

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if status_code == 405:
            self.set_header("Allow", self.allowed_methods())  # RFC 9110, 15.5.6
        if isinstance(error, RequestError):
            answer = {"error": error.explanation, **error.facts}
            if status_code == 503:
                self.set_header("Retry-After", math.ceil(error.retry))  # RFC 9110, 10.2.3
        elif isinstance(error, HTTPError) and error.log_message and status_code < 500:
            answer = {"error": error.log_message % error.args}
        else:
            answer = {"error": self._reason}
        self.finish(answer)

    def allowed_methods(self) -> str:
        """The methods that have an answer here, as a header lists them."""
        names = ((method, method.lower()) for method in self.SUPPORTED_METHODS)
        own = (method for method, name in names if getattr(type(self), name) is not getattr(RequestHandler, name))
        return ", ".join(own)


class NotFound(JSONErrors):
    """For every path that leads nowhere; an application's `default_handler_class`."""

    def prepare(self) -> None:
        raise RequestError(404, f"there is nothing at {self.request.path}")


class CrossOrigin(JSONErrors):
    """Pages of other sites may use it as well, if its route allows that (WHATWG Fetch, "CORS protocol")."""

    allow_origins: Origins = ()

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of `origin` may come: of this site, or of one that the route lists."""
        return origin in self.allow_origins or "*" in self.allow_origins or not is_foreign(self)

    def options(self, *args: str, **kwargs: str) -> None:
        """What may be done here; what a browser asks before it lets a foreign page do more than plain requests."""
        self.set_status(204)
        self.set_header("Allow", self.allowed_methods())

    def flush(self, include_footers: bool = False) -> Future[None]:
        # All that is sent comes by here: errors, which begin with cleared headers, and what a hook sends itself.
        if not self._headers_written:
            self._tell_browser()
        return super().flush(include_footers)

    def _tell_browser(self) -> None:
        """Headers for the browser in which a foreign page runs."""
        headers = self.request.headers
        origin = headers.get("Origin")
        public = "*" in self.allow_origins
        if not public:
            self.add_header("Vary", "Origin")
        # A page of ours needs none. One that only shares our host, on plain HTTP, shall not get any.
        if origin is None or not is_foreign(self) or not self.allows_origin(origin):
            return
        self.set_header("Access-Control-Allow-Origin", "*" if public else origin)
        if not public:
            self.set_header("Access-Control-Allow-Credentials", "true")  # what the browser grants to nobody at "*"
        self.set_header("Access-Control-Expose-Headers", "Last-Event-ID, Retry-After")
        if self.request.method == "OPTIONS":
            self.set_header("Access-Control-Allow-Methods", self.allowed_methods())
            self.set_header("Access-Control-Allow-Headers", headers.get("Access-Control-Request-Headers", "*"))
            self.set_header("Access-Control-Max-Age", PREFLIGHT_AGE)


class Door(CrossOrigin):
    """A way to `store`, or to the channels of `source`; who may do what there is said by a subclass.

    What its `prepare` has found out about the client, such as `current_user`, is known when it is asked.
    """

    store: BaseStore | None = None
    source: Source | None = None

    def may_subscribe(self, channel: str) -> bool:
        """Whether this client may read `channel`, which is empty if it is a store without a name."""
        return True

    def may_publish(self, channel: str) -> bool:
        """Whether this client may publish to `channel`, which is empty if it is a store without a name."""
        return True


class SubscriberHandler(Door):
    """A handler whose clients subscribe: to `store`, or to the channels they name in the URL, opened by `source`."""

    def initialize(
        self,
        store: BaseStore | None = None,
        source: Source | None = None,
        *,
        connections: Connections | None = None,
        when_behind: Policy | Behind = "gap",
        allow_origins: Origins = (),
        **unknown: Any,
    ) -> None:
        self.store, self.source = check_wiring(self, store, source, unknown)
        self.connections = connections_of(self.application) if connections is None else connections
        self.behind = when_behind if isinstance(when_behind, Behind) else Behind(when_behind)
        self.allow_origins = check_origins(self, allow_origins)

    @property
    def address(self) -> str:
        """Where the request comes from."""
        return self.request.remote_ip or ""

    async def open_cursors(self) -> dict[BaseStore, int]:
        """The stores that the request asks for, and where to begin in each. Raises `RequestError`, also if no more
        may connect now."""
        self.check_request()
        self._check_limits()
        cursors = await seek(self._stores(), self.offsets())
        self._check_limits()  # others may have come meanwhile
        return cursors

    def _check_limits(self) -> None:
        try:
            self.connections.check(self.address)
        except ConnectionRefused as error:
            raise RequestError(503, str(error), retry=error.retry) from None

    def check_request(self) -> None:
        """Raises `RequestError` if it cannot be served at any time, or not to this client."""
        self.offsets()
        names = self.names()
        if not names and self.store is None:
            raise RequestError(400, "name at least one channel: ?channel=NAME")
        try:
            for name in names:
                check_channel(name)
        except BadChannel as error:
            raise RequestError(400, str(error)) from None
        for channel in names if self.store is None else [self.store.channel]:
            check_right(self.may_subscribe, "subscribe", channel)

    def names(self) -> list[str]:
        """The channels that the request names, in its path or as `?channel=`; none if the route has a store. Raises
        `RequestError` if they are too many."""
        if self.store is not None:
            return []
        named = self.path_args or tuple(self.path_kwargs.values()) or self.get_query_arguments("channel", strip=False)
        names = list(dict.fromkeys(named))
        if len(names) > (most := self.connections.max_channels):
            raise RequestError(400, f"at most {most} channels on one connection, not {len(names)}")
        return names

    def _stores(self) -> list[BaseStore]:
        if self.store is not None:
            return [self.store]
        assert self.source is not None
        stores = []
        for name in self.names():
            store = open_channel(self.source, name)
            check_alias(self.may_subscribe, "subscribe", name, store)
            stores.append(store)
        return stores

    def offsets(self) -> Mapping[str, int] | None:
        """Where the client says it stopped, by epoch; None if it comes for the first time.

        A browser that reconnects by itself repeats its URL and adds the header, so the header is the newer of the two.
        """
        header = self.request.headers.get("Last-Event-ID")
        if header:
            try:
                return from_id(header)
            except BadPosition:
                # Not the client's fault, it repeats what some server gave it, and an EventSource that is refused never
                # comes back (WHATWG HTML, "fail the connection"). It is an unknown position: it will see a gap.
                return {}
        asked = self.get_query_argument("last_event_id", "")
        if not asked:
            return None
        try:
            return from_id(asked)
        except BadPosition as error:
            raise RequestError(400, f"bad last_event_id: {error}") from None


def check_wiring(
    handler: RequestHandler, store: BaseStore | None, source: Source | None, unknown: Collection[str]
) -> tuple[BaseStore | None, Source | None]:
    """The two as they are, if a route names one of them, it can be used, and nothing is `unknown`. Raises TypeError."""
    name = type(handler).__name__
    if unknown:
        raise TypeError(f"{name} has no argument {min(unknown)!r:.80} that a route could give")
    if (store is None) == (source is None):
        raise TypeError(f'{name} is routed with {{"store": …}} or {{"source": …}}, one of them')
    if store is not None and not isinstance(store, BaseStore):
        raise TypeError(f"{name} takes a store, such as QueueStore(), not {store!r:.80}")
    if source is not None and not callable(getattr(source, "open", None)):
        raise TypeError(f"{name} takes a source that opens stores, such as Channels(), not {source!r:.80}")
    return store, source


def check_origins(handler: RequestHandler, allow_origins: Origins) -> Origins:
    """`allow_origins` as it is, if a route may say so. Raises TypeError."""
    if isinstance(allow_origins, str) and allow_origins != "*":
        name = type(handler).__name__
        raise TypeError(f'{name} takes allow_origins="*" or a list of origins, not the str {allow_origins!r:.80}')
    return allow_origins


def check_right(may: Right, deed: str, channel: str | None) -> None:
    """Asks `may` about `channel`; None is a store without a name. Raises `RequestError` if it says no, or if that
    cannot be a name."""
    try:
        answer: object = may("" if channel is None else check_channel(channel))
    except BadChannel as error:
        raise RequestError(400, str(error)) from None
    if inspect.isawaitable(answer):  # which would be a yes to everyone
        raise TypeError(f"may_{deed} is a plain function: what has to be waited for is found out in `prepare`")
    if not answer:
        raise RequestError(403, f"you may not {deed} {'here' if channel is None else f'to {channel!r:.80}'}")


def check_alias(may: Right, deed: str, name: str | None, store: BaseStore) -> None:
    """Asks `may` about `store`, too, if that has another name than the one it was opened by. Raises `RequestError`."""
    # Channels with a namespace know each by two names: who may not use one shall not come in by the other.
    if store.channel not in (name, None):
        check_right(may, deed, store.channel)


async def seek(stores: Iterable[BaseStore], offsets: Mapping[str, int] | None) -> dict[BaseStore, int]:
    """Where a reader with `offsets` (by epoch; None: a new one) begins in each of `stores`. Raises `RequestError`."""
    stores = list(stores)
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            return dict(zip(stores, await asyncio.gather(*(store.seek(offsets) for store in stores)), strict=True))
    except TimeoutError:
        logger.warning("the broker has not confirmed in %g s: subscribing all the same", READY_TIMEOUT)
        return {store: store.cursor(offsets) for store in stores}
    except BrokerError as error:
        raise RequestError(503, str(error)) from error


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
        403,
        f"pages of {origin!r:.80} may not come here, to {host!r:.80}, unless allow_origins (--allow-origin) names them;"
        " if it is the same site behind a proxy, that has to pass the Host header on",
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


def _raise(error: Exception) -> NoReturn:
    raise error
