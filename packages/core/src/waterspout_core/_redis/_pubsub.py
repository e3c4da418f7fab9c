"""The broker in Redis: one connection receives for the whole process, another one publishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

from waterspout_redis import Client, LinkState, PubSubClient, PubSubMessage, RedisError
from waterspout_redis import Item as LinkItem

from .._envelope import ENVELOPE
from .._feeds import PlainFeed, RemoteFeed, feed_log
from .._history import History, Past
from .._message import Gap, Message
from .._position import Position
from .._pubsub import Health, HealthListener, PubSub, PubSubProtocol, check_key
from ._errors import translated, translated_error
from ._feeds import HistoryFeed
from ._history import RedisHistory
from ._leases import RedisLeases
from ._publisher import BATCH_BYTES
from ._recovery import Recovery, is_running
from ._watchdog import Watchdog

logger: Final = logging.getLogger("waterspout.core")

_RETRY: Final = 5.0
"""Seconds after which a channel is asked for again that the server has refused when all was restored."""


class RedisPubSub(PubSub):
    """A `PubSub` on a Redis or Valkey server.

    What is subscribed stays so: after any break all of it is restored, and then every client is told of a `Gap` on
    every channel (on a pattern, under the pattern's name), since messages may have passed meanwhile. Stores with a
    `history` are not: what passed is read there.

    A link on which nothing comes for `silence` seconds is tested by publishing to itself, and made anew if that does
    not come back. What is published or asked has `timeout` seconds for its answer; None is for ever. `on_health` is the
    first of its health listeners. `options`, such as ``connect_timeout``, are those of both connections.
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: PubSubProtocol | None = None,
        history: History | None = None,
        silence: float = 15.0,
        timeout: float | None = 10.0,
        on_health: HealthListener | None = None,
        **options: Any,
    ) -> None:
        super().__init__(protocol, history)
        options.setdefault("client_name", "waterspout")  # what CLIENT LIST shows
        self._client = Client(url, timeout=timeout, **options)
        self._link = PubSubClient(url, on_state=self._link_changed, **options)
        self._watchdog = Watchdog(self._link, self._client, silence, self._tell_health)
        if on_health is not None:
            self.add_health_listener(on_health)
        self._history = None if history is None else RedisHistory(self._client, history)
        self._recovery = None if self._history is None else Recovery(self._history, self._is_connected)
        self._leases = RedisLeases(self._client)
        self._names: set[bytes] = set()  # what clients have subscribed
        self._feeds: WeakValueDictionary[str, RemoteFeed] = WeakValueDictionary()
        self._open: dict[bytes, RemoteFeed] = {}
        self._listening: asyncio.Task[None] | None = None
        self._asking_again: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return str(self._client.address)

    @property
    def health(self) -> Health:
        return self._watchdog.health

    def start(self) -> None:
        self._link.start()
        if self._link.state is not LinkState.CLOSED and not is_running(self._listening):
            self._watchdog.start()
            self._listening = asyncio.create_task(self._listen())

    # What clients want

    def subscribe(self, *channels: str) -> asyncio.Future[None]:
        self.start()
        self._names.update(map(str.encode, channels))
        return translated(self._link.subscribe(*channels))

    def psubscribe(self, *patterns: str) -> asyncio.Future[None]:
        self.start()
        return translated(self._link.psubscribe(*patterns))

    def unsubscribe(self, *channels: str) -> asyncio.Future[None]:
        names = set(map(str.encode, channels)) or self._names.copy()
        self._names -= names
        if gone := names - self._open.keys():
            return translated(self._link.unsubscribe(*gone))
        return translated(_done())

    def punsubscribe(self, *patterns: str) -> asyncio.Future[None]:
        return translated(self._link.punsubscribe(*patterns))

    def publish(self, channel: str, message: Any) -> asyncio.Future[int]:
        return translated(self._client.call("PUBLISH", channel, self._encode(message)))

    async def count(self, *channels: str) -> dict[str, int]:
        answer: list[Any] = await translated(self._client.call("PUBSUB", "NUMSUB", *channels, decode="utf-8"))
        return dict(zip(answer[::2], answer[1::2], strict=True))

    async def count_patterns(self) -> int:
        return int(await translated(self._client.call("PUBSUB", "NUMPAT")))

    async def channels(self, pattern: str = "*") -> list[str]:
        return list(await translated(self._client.call("PUBSUB", "CHANNELS", pattern, decode="utf-8")))

    async def aclose(self) -> None:
        self._watchdog.close()
        if self._asking_again is not None:
            self._asking_again.cancel()
        if self._recovery is not None and self._history is not None:
            await self._recovery.aclose()
            await self._history.aclose()
        await self._link.aclose()
        await self._client.aclose()
        if self._listening is not None and is_running(self._listening):
            await asyncio.wait((self._listening,))

    # What stores stand on

    def feed(self, topic: str, *, channel: str, max_messages: int, max_bytes: int) -> RemoteFeed:
        feed = self._feeds.get(topic)
        if feed is None:
            log = feed_log(self.history, channel, max_messages, max_bytes)
            made = PlainFeed(topic, log) if self.history is None else HistoryFeed(topic, log, self.history)
            feed = self._feeds[topic] = made
        return feed

    def submit(self, topic: str, message: Message, *, key: str | None = None) -> asyncio.Future[Position | None]:
        check_key(key, self.history)
        payload = ENVELOPE.encode(message)
        if self._history is None:
            return translated(self._client.call("PUBLISH", topic, payload), lambda receivers: None)
        if len(payload) > BATCH_BYTES and isinstance(feed := self._open.get(topic.encode()), HistoryFeed):
            feed.overtaken()
        return translated(self._history.publish(topic, payload, key))

    @property
    def leases(self) -> RedisLeases:
        return self._leases

    def attach(self, feed: RemoteFeed) -> None:
        """From now on `feed` is given what comes on its channel, and told when the server has confirmed that."""
        self.start()
        topic = feed.topic.encode()
        self._open[topic] = feed
        if isinstance(feed, HistoryFeed) and not feed.covered and self._is_connected():
            assert self._history is not None
            feed.ask(self._history.meta(feed.topic))

        def confirmed(answer: asyncio.Future[None]) -> None:
            if answer.cancelled():
                return
            error = answer.exception()  # which is looked at, though nobody may want it any more
            if self._open.get(topic) is not feed:
                return
            if error is None:
                feed.confirmed(self)
            else:
                feed.refused(translated_error(error))

        self._link.subscribe(topic).add_done_callback(confirmed)

    def detach(self, feed: RemoteFeed) -> None:
        """It wants nothing any more."""
        topic = feed.topic.encode()
        if self._open.get(topic) is not feed:
            return
        del self._open[topic]
        if self._recovery is not None and isinstance(feed, HistoryFeed):
            self._recovery.drop(feed)
        if topic not in self._names:
            self._link.unsubscribe(topic)

    def recover(self, feeds: Iterable[HistoryFeed]) -> None:
        """They may lack something that the history has."""
        assert self._recovery is not None
        self._recovery.add(feeds)

    async def read(self, topic: str, after: Position) -> Past:
        """What the history has behind `after`. Raises `BrokerError`."""
        assert self._history is not None
        try:
            return await self._history.read(topic, after)
        except RedisError as error:
            raise translated_error(error) from error

    async def top(self, topic: str) -> Position | None:
        """Where the channel stands, if anybody knows. Raises `BrokerError`."""
        assert self._history is not None
        try:
            [top] = await self._history.tops([topic])
        except RedisError as error:
            raise translated_error(error) from error
        return top

    # What comes

    async def _listen(self) -> None:
        async for batch in self._link.batches():
            self._watchdog.heard()
            self._dispatch(batch)

    def _dispatch(self, batch: list[LinkItem]) -> None:
        arrived: dict[bytes, list[bytes]] = {}
        for item in batch:
            if isinstance(item, PubSubMessage):
                channel, data, pattern = item
                if pattern is None:
                    if (payloads := arrived.get(channel)) is not None:
                        payloads.append(data)
                    elif channel in self._open:
                        arrived[channel] = [data]
                if self._clients and (pattern is not None or channel in self._names):
                    self._broadcast(_text(channel), data)
            else:
                self._deliver(arrived)
                arrived.clear()
                self._broken()
        self._deliver(arrived)

    def _deliver(self, arrived: dict[bytes, list[bytes]]) -> None:
        for channel, payloads in arrived.items():
            feed = self._open.get(channel)
            if feed is None:
                continue  # one of those before has closed it
            try:
                feed.take(payloads, self)
            except Exception:  # the other channels are not to become deaf for it
                logger.exception("%d messages on %r were not taken", len(payloads), feed.topic)

    def _broken(self) -> None:
        """Something may have been lost on every channel."""
        lacking = [feed for feed in self._open.values() if feed.broken() and isinstance(feed, HistoryFeed)]
        if lacking:
            self.recover(lacking)
        for name in self._names | self._link.patterns:
            self._tell(_text(name), Gap())

    def _ask_again(self) -> None:
        """Ask for the channels that were refused when they were restored, and that somebody still wants."""
        missing = self._open.keys() - self._link.channels
        for topic in missing:
            self._link.subscribe(topic).add_done_callback(partial(self._answered_again, self._open[topic]))
        if missing:
            self._ask_again_later()

    def _answered_again(self, feed: RemoteFeed, answer: asyncio.Future[None]) -> None:
        if answer.cancelled() or answer.exception() is not None or self._open.get(feed.topic.encode()) is not feed:
            return
        if feed.broken() and isinstance(feed, HistoryFeed):
            self.recover((feed,))

    def _ask_again_later(self) -> None:
        if self._asking_again is not None:
            self._asking_again.cancel()
        self._asking_again = asyncio.get_running_loop().call_later(_RETRY, self._ask_again)

    def _is_connected(self) -> bool:
        return self._link.state is LinkState.CONNECTED

    def _link_changed(self, state: LinkState, error: RedisError | None) -> None:
        was_up = self.health.state in ("connected", "deaf")
        self._watchdog.link_changed(state)
        if was_up and state is LinkState.DISCONNECTED:
            for feed in self._open.values():
                if isinstance(feed, HistoryFeed):
                    feed.away()
        if state is LinkState.CONNECTED:
            if self._open.keys() - self._link.channels:
                self._ask_again_later()
            if self._recovery is not None:
                self._recovery.add(())


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _done() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future
