"""What lives in one process keeps the contract."""

from __future__ import annotations

from functools import cached_property

from waterspout_core import (
    BaseStore,
    ChannelStore,
    DataStore,
    History,
    MemoryBroker,
    MemoryPubSub,
    PubSub,
    PubSubProtocol,
    QueueStore,
)
from waterspout_core.testing import ChannelContract, DataStoreContract, PubSubContract, StoreContract


class TestDataStore(DataStoreContract):
    def open_store(self, **bounds: int) -> BaseStore:
        return DataStore()


class TestQueueStore(StoreContract):
    def open_store(self, **bounds: int) -> BaseStore:
        return QueueStore(**bounds)


class TestChannelStoreWithoutHistory(StoreContract):
    keeps = False

    def open_store(self, **bounds: int) -> BaseStore:
        return ChannelStore(self.name(), MemoryPubSub(), **bounds)


class TestChannelStoreWithHistory(StoreContract):
    def open_store(self, **bounds: int) -> BaseStore:
        return ChannelStore(self.name(), MemoryPubSub(history=History(bounds.get("max_messages", 1000))), **bounds)


class InProcess:
    """One broker for each test."""

    @cached_property
    def broker(self) -> MemoryBroker:
        return MemoryBroker()

    def open_pubsub(self, *, protocol: PubSubProtocol | None = None, history: int = 0) -> PubSub:
        return MemoryPubSub(self.broker, protocol=protocol, history=History(history) if history else None)


class TestPubSub(InProcess, PubSubContract):
    pass


class TestChannels(InProcess, ChannelContract):
    pass
