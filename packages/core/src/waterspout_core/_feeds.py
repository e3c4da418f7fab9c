"""What a channel's stores stand on: the channel's log in this process, and how the broker fills it."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from ._envelope import decoded
from ._log import Log
from ._message import Entry, Gap
from ._stores import BaseStore, pieces

if TYPE_CHECKING:
    from ._history import History
    from ._pubsub import PubSub


class Feed(abc.ABC):
    """One channel of a broker, as this process has it: one log, shared by all stores of the channel.

    A store joins it, and leaves it in the end. A broker that has to be asked for the channel is asked when the first
    one joins, and told when the last one has left.
    """

    __slots__ = ("__weakref__", "_stores", "history", "log", "topic")

    def __init__(self, topic: str, log: Log, history: History | None) -> None:
        self.topic = topic  # the broker's name for the channel
        self.log = log
        self.history = history
        self._stores: tuple[BaseStore, ...] = ()  # never changed: a store may leave while it is told

    @property
    @abc.abstractmethod
    def begun(self) -> bool:
        """Whether the broker has confirmed that it sends us the channel, and the log has all that came since."""

    @property
    def covered(self) -> bool:
        """Whether what is published from now on gets into the log, or is told as a gap."""
        return self.begun

    @abc.abstractmethod
    def join(self, store: BaseStore, pubsub: PubSub) -> asyncio.Future[None]:
        """From now on `store` is told when the log has grown. The Future is done when it has `begun`, and
        raises `BrokerError` if the broker refuses."""

    @abc.abstractmethod
    def leave(self, store: BaseStore, pubsub: PubSub) -> None:
        """Tell `store` no more."""

    async def reach(self, offsets: Mapping[str, int], pubsub: PubSub) -> None:  # noqa: B027  # a hook: most have all there is
        """Fetch what the broker keeps and the log does not hold, for a reader at `offsets` (by epoch).
        Raises `BrokerError`."""

    def read_early(self) -> None:  # noqa: B027  # a hook: who has begun from the beginning misses nothing
        """Somebody reads already. If it is not `covered`, what is published until it has `begun` is told as a gap."""

    def earliest(self, limit: int | None = None) -> int:
        """The cursor from which all is read that is kept for those who come later, or the newest `limit` of that."""
        log = self.log
        if self.history is None:
            return log.top
        # By position: what was published without history, or in an earlier epoch, is none of it.
        epoch, top = log.position
        most = self.history.messages if limit is None else min(max(limit, 0), self.history.messages)
        return max(log.cursor({epoch: max(top - most, 0)}), log.start - 1)

    def put(self, entries: Sequence[Entry]) -> None:
        """Put `entries` into the log, and tell the stores."""
        for piece in pieces(self.log, entries):
            self.log.extend(piece)
            self.grown()

    def grown(self) -> None:
        """The log has grown: tell the stores."""
        for store in self._stores:
            store.grown()


class RemoteBroker(Protocol):
    """What a feed needs of a broker that is elsewhere, and so has to be asked and may be away."""

    def attach(self, feed: RemoteFeed) -> None:
        """Ask for the feed's channel, give the feed what comes there, and tell it what the broker says."""

    def detach(self, feed: RemoteFeed) -> None:
        """The feed wants nothing any more."""


class RemoteFeed(Feed):
    """A channel that a broker elsewhere is asked for once, however many stores it has in this process."""

    __slots__ = ("_early", "_loop", "_waiting")

    def __init__(self, topic: str, log: Log, history: History | None) -> None:
        super().__init__(topic, log, history)
        self._early = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[asyncio.Future[None]] | None = None

    def join(self, store: BaseStore, pubsub: PubSub) -> asyncio.Future[None]:
        first = not self._stores
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Who waited in another loop, and what came there, ended with it.
            self._stopped()
            self._loop, self._waiting, first = loop, None, True
        self._stores = (*self._stores, store)
        if self.begun:
            future: asyncio.Future[None] = loop.create_future()
            future.set_result(None)
        else:
            future = self._wait()
        if first:
            _remote(pubsub).attach(self)
        return future

    def leave(self, store: BaseStore, pubsub: PubSub) -> None:
        self._stores = tuple(other for other in self._stores if other is not store)
        if not self._stores:
            self._stopped()
            _remote(pubsub).detach(self)

    def read_early(self) -> None:
        self._early = self._early or not self.covered

    def refused(self, error: BaseException) -> None:
        """The server does not give it: tell who waits."""
        waiting, self._waiting = self._waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_exception(error)

    @abc.abstractmethod
    def confirmed(self, broker: RemoteBroker) -> None:
        """The server sends it from now on."""

    @abc.abstractmethod
    def take(self, payloads: Sequence[bytes], broker: RemoteBroker) -> None:
        """These have come."""

    @abc.abstractmethod
    def broken(self) -> bool:
        """Something may have been lost. True if that is to be looked for in the history, else it has been told."""

    @abc.abstractmethod
    def _stopped(self) -> None:
        """Nothing comes any more."""

    def _wait(self) -> asyncio.Future[None]:
        """Done with the next `_tell_ready`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = [*(self._waiting or ()), future]
        return future

    def _tell_ready(self) -> None:
        self._early = False
        waiting, self._waiting = self._waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_result(None)


class PlainFeed(RemoteFeed):
    """What is published is what there is: who was not there has missed it."""

    __slots__ = ("_begun",)

    def __init__(self, topic: str, log: Log) -> None:
        super().__init__(topic, log, None)
        self._begun = False

    @property
    def begun(self) -> bool:
        return self._begun

    def confirmed(self, broker: RemoteBroker) -> None:
        if self._early:
            self.put((Gap(),))
        self._begun = True
        self._tell_ready()

    def take(self, payloads: Sequence[bytes], broker: RemoteBroker) -> None:
        self.put([entry for entry in map(decoded, payloads) if entry is not None])

    def broken(self) -> bool:
        self.put((Gap(),))
        return False

    def _stopped(self) -> None:
        self._early = self._early or self._begun  # whoever goes on with this log has missed something
        self._begun = False


def feed_log(history: History | None, channel: str, max_messages: int, max_bytes: int) -> Log:
    """A log with these bounds, or what `history` asks for beyond them."""
    if history is None:
        return Log(max_messages=max_messages, max_bytes=max_bytes, channel=channel)
    return Log(
        max_messages=max(max_messages, history.messages),
        max_bytes=max_bytes,
        max_age=history.retention,
        channel=channel,
    )


def _remote(pubsub: PubSub) -> RemoteBroker:
    """The one that made the feed."""
    return cast("RemoteBroker", pubsub)
