"""The door for publishers: `POST` a body, and it is a message."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NoReturn, cast

from tornado.http1connection import HTTP1Connection
from tornado.web import stream_request_body

from waterspout_core import (
    BadMessage,
    BaseStore,
    BrokerError,
    Message,
    MessageTooLarge,
    MiB,
    Payload,
    Position,
    Source,
    check_event,
)

from ._requests import (
    Door,
    Origins,
    RequestError,
    Right,
    check_alias,
    check_origins,
    check_right,
    check_wiring,
    foreign_page,
    open_channel,
)

MAX_BODY: Final = MiB
"""Bytes of a body, unless the route says otherwise."""

MAX_KEY: Final = 255
"""Characters of an idempotency key, with the number of the line."""

MAX_LINES: Final = 10_000
"""Messages of one body: they are published in one go, and nobody else is served meanwhile."""

BODY_TIMEOUT: Final = 60.0
"""Seconds in which a body has to be there."""

PUBLISH_TIMEOUT: Final = 10.0
"""Seconds for the broker to take the messages of one request."""

_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"(?:;.*)?')


@stream_request_body
class PublishHandler(Door):
    """Publishes the body of a `POST`.

    Text (UTF-8) is one message, `application/json` one message of any JSON value, `application/x-ndjson` one
    message of each line. `?event=` names the event. Answers `{"channel": …, "id": …}` with the id of the (last)
    message, and `count` for several.

    With a key, which the header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header) or `?key=` gives, a
    request may be sent again: what was published with it in the last 5 minutes is not published again. The key of a
    line is `<key>-<number of the line>`.

    Route it with `{"source": channels}` and a path that names the channel, or with `{"store": store}`; `max_body` is
    in bytes. Pages of other sites may publish if `allow_origins` has them, or is `"*"`. A subclass may say in
    `may_publish` who else may not.
    """

    def initialize(
        self,
        store: BaseStore | None = None,
        source: Source | None = None,
        max_body: int = MAX_BODY,
        *,
        allow_origins: Origins = (),
        **unknown: Any,
    ) -> None:
        self.store, self.source = check_wiring(self, store, source, unknown)
        self.allow_origins = check_origins(self, allow_origins)
        self.max_body = max_body
        self._body = bytearray()
        self._too_large = False

    def prepare(self) -> None:
        if self.request.method != "POST":
            return  # OPTIONS, or one that Tornado answers with 405
        # We count for ourselves, so that the answer can say what was wrong; what is too much is read and dropped.
        connection = cast(HTTP1Connection, self.request.connection)
        connection.set_max_body_size(1 << 62)
        connection.set_body_timeout(BODY_TIMEOUT)
        origin = self.request.headers.get("Origin")
        if origin is not None and not self.allows_origin(origin):
            raise foreign_page(self)
        length = self.request.headers.get("Content-Length", "0")
        # Only where the client waits for the word: closing on one that writes resets our answer away.
        waits = self.request.headers.get("Expect", "").lower() == "100-continue"
        if waits and length.isdecimal() and int(length) > self.max_body:
            self._refuse_size()

    def data_received(self, chunk: bytes) -> None:
        if self._too_large or len(self._body) + len(chunk) > self.max_body:
            self._too_large = True
            self._body.clear()
        else:
            self._body += chunk

    async def post(self, channel: str | None = None) -> None:
        if self._too_large:
            self._refuse_size()
        event = self._event()
        payloads, several = self._payloads()
        keys = self._keys(payloads, several=several)
        store = self.open_for(self.may_publish, "publish", channel)
        submissions: list[asyncio.Future[Position | None]] = []
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await store.ready()
                submissions += (
                    asyncio.ensure_future(submit_once(store, payload, event, once))
                    for payload, once in zip(payloads.values(), keys, strict=True)
                )
                for outcome in await asyncio.gather(*submissions, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
        except MessageTooLarge as error:
            raise RequestError(413, str(error)) from None
        except BadMessage as error:
            raise RequestError(400, str(error)) from None
        except (BrokerError, TimeoutError) as error:
            explanation = str(error) or f"the broker has not answered in {PUBLISH_TIMEOUT:g} s"
            # How many of the first ones are published: whoever tries again goes on behind them.
            published = sum(1 for _ in itertools.takewhile(_succeeded, submissions))
            raise RequestError(503, explanation, published=published) from None
        position = submissions[-1].result()
        named = {} if store.channel is None else {"channel": store.channel}
        answer = {**named, "id": None if position is None else str(position)}
        self.finish({**answer, "count": len(submissions)} if several else answer)

    def open_store(self, channel: str | None) -> BaseStore:
        """The store that the path, or the route, means. Raises `RequestError`."""
        if self.store is not None:
            return self.store
        assert self.source is not None
        if channel is None:
            raise RequestError(404, "no channel is named in the path")
        return open_channel(self.source, channel)

    def open_for(self, may: Right, deed: str, channel: str | None) -> BaseStore:
        """The same for whoever `may` do the `deed` ("publish", "subscribe"), and for nobody else."""
        name = channel if self.store is None else self.store.channel
        if self.store is not None or channel is not None:  # else there is nothing to ask about
            check_right(may, deed, name)
        store = self.open_store(channel)
        check_alias(may, deed, name, store)
        return store

    def _event(self) -> str | None:
        event = self.get_query_argument("event", "")
        if not event:
            return None
        try:
            return check_event(event)
        except BadMessage as error:
            raise RequestError(400, str(error)) from None

    def _keys(self, numbers: Iterable[int], *, several: bool) -> list[str | None]:
        """The key of each line."""
        key = self.request.headers.get("Idempotency-Key")
        if key is None:
            key = self.get_query_argument("key", None, strip=False)
        elif quoted := _QUOTED.fullmatch(key):
            # As the draft has it, a string of RFC 8941; most who send one leave the quotes out.
            key = re.sub(r"\\(.)", r"\1", quoted[1])
        if key is None:
            return [None for _ in numbers]
        keys = [f"{key}-{number}" for number in numbers] if several else [key]
        if not key or not key.isprintable() or len(keys[-1]) > MAX_KEY:  # no other is longer than the last
            raise RequestError(400, f"an idempotency key is 1 to {MAX_KEY} printable characters, not {key!r:.80}")
        return list(keys)

    def _payloads(self) -> tuple[dict[int, Payload], bool]:
        """What the body holds, by its line, and whether it is of a kind that may hold several messages."""
        if not self._body:
            raise RequestError(400, "the body is empty: it is the message")
        try:
            text = self._body.decode()
        except UnicodeDecodeError as error:
            raise RequestError(400, f"the body is not UTF-8: {error}") from None
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return {1: _from_json(text, "the body")}, False
        if kind == "application/x-ndjson":
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            if not lines:
                raise RequestError(400, "the body is empty: each line is a message")
            if len(lines) > MAX_LINES:
                raise RequestError(413, f"a request has at most {MAX_LINES} messages, this one has {len(lines)}")
            return {number: _from_json(line, f"line {number}") for number, line in lines}, True
        return {1: text}, False

    def _refuse_size(self) -> NoReturn:
        raise RequestError(413, f"a body has at most {self.max_body} bytes")


def submit_once(store: BaseStore, data: Payload, event: str | None, key: str | None) -> Awaitable[Position | None]:
    """Publish `data`; with an idempotency `key`, unless it was published with that already.

    Raises `BadMessage`, also for a key if the store does not know what was published before.
    """
    if key is None:
        return store.submit(data, event)
    if not _takes_key(type(store).submit):
        raise BadMessage(
            f"a {type(store).__name__} takes no idempotency key: what was published before is not known to it"
        )
    keyed: Any = store.submit
    return cast(Awaitable[Position | None], keyed(data, event, key=key))


@functools.cache
def _takes_key(submit: Callable[..., Any]) -> bool:
    return "key" in inspect.signature(submit).parameters


def _succeeded(submission: asyncio.Future[Position | None]) -> bool:
    return submission.done() and not submission.cancelled() and submission.exception() is None


def _from_json(text: str, place: str) -> Payload:
    try:
        payload = json.loads(text, parse_constant=_refuse_constant)
        Message(payload)  # now, so that of several lines none is published if one cannot be
        return payload
    except BadMessage as error:
        raise RequestError(400, f"{place}: {error}") from None
    except ValueError as error:
        raise RequestError(400, f"{place} is not JSON: {error}") from None
    except RecursionError:
        raise RequestError(400, f"{place} is JSON nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
