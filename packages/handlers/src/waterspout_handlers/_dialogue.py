"""What the clients of a WebSocket may ask for by messages of their own: to subscribe, to unsubscribe, to publish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from waterspout_core import BadMessage, BadPosition, BaseStore, BrokerError, Source, from_id

from ._audience import position_of
from ._publish import PUBLISH_TIMEOUT, submit_once
from ._requests import RequestError, Right, check_alias, check_right, open_channel, seek

if TYPE_CHECKING:
    from ._socket import Socket

Members: TypeAlias = dict[str, Any]
Reply: TypeAlias = Callable[[Members], None]

REQUESTS: Final[dict[str, frozenset[str]]] = {
    "subscribe": frozenset({"last_event_id"}),
    "unsubscribe": frozenset(),
    "publish": frozenset({"data", "event", "key"}),
}
"""What there is to ask for, and what may be said beside its channel, and beside `ref`, which the answer repeats."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Answers the requests of one connection. Each is a JSON object, and so is the answer::

        {"subscribe": "news", "last_event_id": "…"}              {"subscribed": "news", "id": "…"}
        {"unsubscribe": "news"}                                  {"unsubscribed": "news"}
        {"publish": "news", "data": …, "event": …, "key": …}     {"published": "news", "id": "…"}
        anything else                                            {"error": "what was wrong"}

    `store` or `source` is what the route has; with a store, that is the only channel there is. Of what the route
    allows the client may do what `may_subscribe` and `may_publish` say.
    """

    store: BaseStore | None
    source: Source | None
    allow_subscribe: bool
    allow_publish: bool
    may_subscribe: Right
    may_publish: Right

    async def answer(self, text: str, socket: Socket) -> None:
        """Do what `text` asks for, and say what became of it."""
        ref: Members = {}
        try:
            request = _parse(text)
            ref = _ref(request)
            verb = _verb(request)
            if verb == "publish":
                answer = await self._publish(request)
            elif self.source is None:
                raise RequestError(403, "there is one store here, and no channels to choose from")
            elif not self.allow_subscribe:
                raise RequestError(403, "the channels that are read here are named in the address, not by messages")
            elif verb == "unsubscribe":
                answer = _unsubscribe(request, socket)
            else:
                store, cursor, answer = await self._seek(self.source, request, socket)
                socket.tell({**answer, **ref})
                socket.follow(store, cursor)  # the answer comes before the messages
                return
        except RequestError as error:
            answer = {"error": error.explanation}
        socket.tell({**answer, **ref})

    async def _seek(self, source: Source, request: Members, socket: Socket) -> tuple[BaseStore, int, Members]:
        name, last_event_id = request["subscribe"], _text(request, "last_event_id")
        try:
            offsets = from_id(last_event_id) if last_event_id else None
        except BadPosition as error:
            raise RequestError(400, f"bad last_event_id: {error}") from None
        check_right(self.may_subscribe, "subscribe", name)
        if _find(socket, name) is not None:
            raise RequestError(409, f"you have subscribed to {name!r:.80} already")
        if len(socket.stores) >= (most := socket.connections.max_channels):
            raise RequestError(400, f"at most {most} channels on one connection")
        if (store := open_channel(source, name)) in socket.stores:  # by another of its names
            raise RequestError(409, f"you have subscribed to {store.channel!r:.80} already")
        check_alias(self.may_subscribe, "subscribe", name, store)
        cursors = await seek([store], offsets)
        ((store, cursor),) = cursors.items()
        return store, cursor, {"subscribed": name, "id": position_of({**socket.cursors, **cursors})}

    async def _publish(self, request: Members) -> Members:
        if not self.allow_publish:
            raise RequestError(403, "nobody may publish by messages here: its route has no allow_publish")
        name, event, key = request["publish"], _text(request, "event"), _text(request, "key")
        if "data" not in request:
            raise RequestError(400, "data is missing: it is the message")
        check_right(self.may_publish, "publish", name)
        if self.source is not None:
            store = open_channel(self.source, name)
        elif self.store is not None and name == self.store.channel:
            store = self.store
        else:
            raise RequestError(404, f"there is no channel {name!r:.80} here")
        check_alias(self.may_publish, "publish", name, store)
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await store.ready()
                position = await submit_once(store, request["data"], event, key)
        except BadMessage as error:
            raise RequestError(400, str(error)) from None
        except (BrokerError, TimeoutError) as error:
            explanation = str(error) or f"the broker has not answered in {PUBLISH_TIMEOUT:g} s"
            raise RequestError(503, explanation) from None
        return {"published": name, "id": None if position is None else str(position)}


def _unsubscribe(request: Members, socket: Socket) -> Members:
    name = request["unsubscribe"]
    store = _find(socket, name)
    if store is None:
        raise RequestError(409, f"you have not subscribed to {name!r:.80}")
    socket.unfollow(store)
    return {"unsubscribed": name}


def _find(socket: Socket, name: Any) -> BaseStore | None:
    return next((store for store in socket.stores if store.channel == name), None)


def _parse(text: str) -> Members:
    try:
        request = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestError(400, "this is JSON nested too deeply") from None
    except ValueError as error:
        raise RequestError(400, f"this is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise RequestError(400, f"a request is a JSON object with one of {', '.join(REQUESTS)}")
    return request


def _verb(request: Members) -> str:
    """What `request` asks for, if it has nothing in it that it may not have."""
    verbs = [verb for verb in REQUESTS if verb in request]
    if len(verbs) != 1:
        raise RequestError(400, f"a request has one of {', '.join(REQUESTS)}")
    # What was misspelt would go unnoticed, and with a last_event_id so would the messages that are missed.
    unknown = request.keys() - REQUESTS[verbs[0]] - {verbs[0], "ref"}
    if unknown:
        raise RequestError(400, f"{verbs[0]} does not go with {min(unknown)!r:.80}")
    if not isinstance(name := request[verbs[0]], str):
        raise RequestError(400, f"{verbs[0]} names one channel, a text, not {name!r:.80}")
    return verbs[0]


def _ref(request: Members) -> Members:
    if "ref" not in request:
        return {}
    ref = request["ref"]
    if not isinstance(ref, str | int):  # of other values not all can be repeated: 1e999 is read, but not written
        raise RequestError(400, "ref is a text or a whole number")
    return {"ref": ref}


def _text(request: Members, member: str) -> str | None:
    value = request.get(member)
    if value is not None and not isinstance(value, str):
        raise RequestError(400, f"{member} is a text, not {value!r:.80}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
