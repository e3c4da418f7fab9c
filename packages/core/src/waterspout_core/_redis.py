"""The broker in Redis: one connection receives for the whole process, another one publishes."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import waterspout_redis
from waterspout_redis import Client, PubSubClient, RedisError

from ._errors import BrokerError
from ._message import Gap
from ._pubsub import PubSub, PubSubProtocol

T = TypeVar("T")


class RedisPubSub(PubSub):
    """A `PubSub` on a Redis or Valkey server, by its plain pub/sub.

    What is subscribed stays so: after any break all of it is restored, and then every client is told of a `Gap` on
    every channel (on a pattern, under the pattern's name), since messages may have passed meanwhile.
    """

    def __init__(self, url: str, *, protocol: PubSubProtocol | None = None, **options: Any) -> None:
        super().__init__(protocol)
        options.setdefault("client_name", "waterspout")  # what CLIENT LIST shows
        self._client = Client(url, **options)
        self._link = PubSubClient(url, **options)
        self._listening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return str(self._client.address)

    def start(self) -> None:
        self._link.start()
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen())

    def subscribe(self, *channels: str) -> asyncio.Future[None]:
        self.start()
        return _translated(self._link.subscribe(*channels))

    def psubscribe(self, *patterns: str) -> asyncio.Future[None]:
        self.start()
        return _translated(self._link.psubscribe(*patterns))

    def unsubscribe(self, *channels: str) -> asyncio.Future[None]:
        return _translated(self._link.unsubscribe(*channels))

    def punsubscribe(self, *patterns: str) -> asyncio.Future[None]:
        return _translated(self._link.punsubscribe(*patterns))

    def publish(self, channel: str, message: Any) -> asyncio.Future[int]:
        return _translated(self._client.call("PUBLISH", channel, self._encode(message)))

    async def count(self, *channels: str) -> dict[str, int]:
        answer = await _translated(self._client.call("PUBSUB", "NUMSUB", *channels, decode="utf-8"))
        return dict(zip(answer[::2], answer[1::2], strict=True))

    async def count_patterns(self) -> int:
        return int(await _translated(self._client.call("PUBSUB", "NUMPAT")))

    async def channels(self, pattern: str = "*") -> list[str]:
        return list(await _translated(self._client.call("PUBSUB", "CHANNELS", pattern, decode="utf-8")))

    async def aclose(self) -> None:
        await self._link.aclose()
        await self._client.aclose()
        if self._listening is not None:
            await asyncio.wait((self._listening,))

    async def _listen(self) -> None:
        async for batch in self._link.batches():
            for item in batch:
                if isinstance(item, waterspout_redis.Gap):
                    for name in self._link.channels | self._link.patterns:
                        self._tell(_text(name), Gap())
                else:
                    self._broadcast(_text(item.channel), item.data)


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _translated(answer: asyncio.Future[T]) -> asyncio.Future[T]:
    """`answer`, with the Redis client's errors as the core's. It need not be awaited, and may be cancelled."""
    translated: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def answered(answer: asyncio.Future[T]) -> None:
        error = None if answer.cancelled() else answer.exception()
        if translated.done():
            return
        if answer.cancelled():
            translated.cancel()
        elif error is None:
            translated.set_result(answer.result())
        elif isinstance(error, RedisError):
            translated.set_exception(BrokerError(str(error), maybe_done=error.maybe_executed))
        else:
            translated.set_exception(error)

    answer.add_done_callback(answered)
    return translated
