"""What is to be subscribed, what the server has been asked for, and who waits for which confirmation.

No I/O here. The desired state is changed by the user alone; links to the server come and go (`link_lost`), and each
new one is asked for all of it. One `Subscriptions` is for channels, others for patterns and shard channels.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ._errors import RedisError, ResponseError

# Names in one command: large enough to cost little, small enough not to hold up the server.
_NAMES_PER_COMMAND: Final = 1000


class Request:
    """One call of subscribe() or unsubscribe(): done when every command that concerns its names is."""

    __slots__ = ("future", "names", "remaining")

    def __init__(self, names: Iterable[bytes], future: Future[None]) -> None:
        self.names, self.future, self.remaining = frozenset(names), future, 0

    def finish(self) -> None:
        if self._awaited:
            self.future.set_result(None)

    def fail(self, error: RedisError) -> None:
        if self._awaited:
            self.future.set_exception(error)

    @property
    def _awaited(self) -> bool:
        # Who waited in another loop ended with it, unanswered.
        return not self.future.done() and not self.future.get_loop().is_closed()


class Command:
    """One command that was sent, such as ``SUBSCRIBE a b c``, and the requests that wait for it."""

    __slots__ = ("names", "requests", "verb")

    def __init__(self, verb: bytes, names: list[bytes]) -> None:
        self.verb, self.names = verb, names
        self.requests: list[Request] = []


class Subscriptions:
    """The names of one kind. `subscribe` and `unsubscribe` are the verbs the server knows for it."""

    def __init__(self, subscribe: bytes, unsubscribe: bytes) -> None:
        self._subscribe, self.unsubscribe = subscribe, unsubscribe
        # Dictionaries without values keep the order in which names came.
        self.desired: dict[bytes, None] = {}
        self._changed: dict[bytes, None] = {}
        self._asked: set[bytes] = set()
        # The newest command about each name, and all commands: a name's older one still has those who wait for it.
        self._unconfirmed: dict[bytes, Command] = {}
        self._sent: dict[Command, None] = {}
        self._requests: list[Request] = []

    def want(self, names: list[bytes], future: Future[None]) -> None:
        """These are desired from now on."""
        added = dict.fromkeys(names)
        self.desired.update(added)
        self._changed.update(added)
        self._requests.append(Request(names, future))

    def unwant(self, names: list[bytes], future: Future[None]) -> None:
        """These are not desired any more."""
        for name in names:
            self.desired.pop(name, None)
        self._changed.update(dict.fromkeys(names))
        self._requests.append(Request(names, future))

    def asked(self, name: bytes) -> bool:
        """Whether the server has been asked for `name` on this link, and not to end it."""
        return name in self._asked

    @property
    def awaits_answers(self) -> bool:
        """Whether the server has been told something on this link that it has not answered yet."""
        return bool(self._sent)

    def commands(self) -> list[Command]:
        """What to send now, so that the server gets to the desired state. They count as sent."""
        subscribe = [name for name in self._changed if name in self.desired and name not in self._asked]
        unsubscribe = [name for name in self._changed if name not in self.desired and name in self._asked]
        self._changed.clear()
        self._asked.update(subscribe)
        self._asked.difference_update(unsubscribe)
        commands = [Command(self._subscribe, names) for names in _chunks(subscribe)]
        commands += [Command(self.unsubscribe, names) for names in _chunks(unsubscribe)]
        for command in commands:
            self._sent[command] = None
            self._unconfirmed.update(dict.fromkeys(command.names, command))
        requests, self._requests = self._requests, []
        for request in requests:
            awaited = {self._unconfirmed[name] for name in request.names if name in self._unconfirmed}
            request.remaining = len(awaited)
            for command in awaited:
                command.requests.append(request)
            if not awaited:
                request.finish()
        return commands

    def settle_without_link(self) -> None:
        """There is no link: what is not desired is not subscribed either, so who waits for that is done."""
        waiting: list[Request] = []
        for request in self._requests:
            # Not `isdisjoint`: it walks the larger side, and of a dictionary that was emptied all its old places.
            if any(name in self.desired for name in request.names):
                waiting.append(request)
            else:
                request.finish()
        self._requests = waiting

    def confirmed(self, command: Command) -> None:
        """The server has done all of `command`."""
        self._sent.pop(command, None)
        for name in command.names:
            if self._unconfirmed.get(name) is command:
                del self._unconfirmed[name]
        for request in command.requests:
            _one_less(request)

    def refused(self, command: Command, error: ResponseError) -> list[Command]:
        """The server has done nothing of `command`: what to send instead, so that one name does not spoil it for
        the others. A single name that is refused is not desired any more."""
        self._sent.pop(command, None)
        current = [name for name in command.names if self._unconfirmed.get(name) is command]
        for name in current:
            del self._unconfirmed[name]
        if len(command.names) == 1:
            for name in current:
                self.desired.pop(name, None)
                self._asked.discard(name)
            for request in command.requests:
                request.fail(type(error)(str(error)))
            return []
        # A name that was asked for again, or not any more, has a newer command of its own.
        single = {name: Command(command.verb, [name]) for name in current}
        self._unconfirmed.update(single)
        self._sent.update(dict.fromkeys(single.values()))
        for request in command.requests:
            mine = request.names & single.keys()
            request.remaining += len(mine)
            for name in mine:
                single[name].requests.append(request)
            _one_less(request)
        return list(single.values())

    def link_lost(self) -> None:
        """The server has forgotten all; the next link is asked for everything that is desired."""
        waiting = {request: None for command in self._sent for request in command.requests}
        self._requests = [request for request in waiting if not request.future.done()] + self._requests
        self._sent.clear()
        self._unconfirmed.clear()
        self._asked.clear()
        self._changed = dict(self.desired)
        self.settle_without_link()

    def fail_requests(self, error: Callable[[], RedisError]) -> None:
        """Who waits waits in vain: each is told with an error of its own. What is desired stays so."""
        requests, self._requests = self._requests, []
        for request in requests:
            request.fail(error())
            # Subscribing without waiting for it is common, and the link tells of its trouble in other ways too.
            if request.future.done() and not request.future.cancelled():
                request.future.exception()

    def close(self, error: Callable[[], RedisError]) -> None:
        """Nothing will be confirmed any more."""
        self.link_lost()
        self.fail_requests(error)


def _one_less(request: Request) -> None:
    request.remaining -= 1
    if request.remaining == 0:
        request.finish()


def _chunks(names: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(names), _NAMES_PER_COMMAND):
        yield names[start : start + _NAMES_PER_COMMAND]
