"""What lives in Redis keeps the same contract as what lives in one process (E7), on every server found."""

from __future__ import annotations

import pytest

from waterspout_core import BaseStore, PubSub, PubSubProtocol, RedisStore, open_pubsub
from waterspout_core.testing import ChannelContract, PubSubContract, StoreContract
from waterspout_redis.testing import RunningServer


class InRedis:
    """The server that all tests share: they have channels of their own."""

    url: str
    reopens = False

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RunningServer) -> None:
        self.url = redis_server.url

    def open_pubsub(self, *, protocol: PubSubProtocol | None = None, history: int = 0) -> PubSub:
        return open_pubsub(self.url, protocol=protocol, history=history)


class TestRedisStoreWithHistory(InRedis, StoreContract):
    def open_store(self, **bounds: int) -> BaseStore:
        return RedisStore(self.name(), self.url, history=bounds.get("max_messages", 1000), **bounds)


class TestRedisStoreWithoutHistory(InRedis, StoreContract):
    keeps = False

    def open_store(self, **bounds: int) -> BaseStore:
        return RedisStore(self.name(), self.url, history=0, **bounds)


class TestPubSub(InRedis, PubSubContract):
    pass


class TestChannels(InRedis, ChannelContract):
    pass
