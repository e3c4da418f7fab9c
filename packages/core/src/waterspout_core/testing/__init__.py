"""For tests of what is built on the core: the contracts of stores and brokers, and the delivery ledger. Needs pytest.

A contract is a class of tests. Subclass it, say how to open what is to be tested, and pytest does the rest:

>>> from waterspout_core import History, MemoryBroker, MemoryPubSub, Message, QueueStore
>>> from waterspout_core.testing import ChannelContract, Ledger, PubSubContract, StoreContract
>>> class TestMyStore(StoreContract):
...     def open_store(self, **bounds):
...         return QueueStore(**bounds)
>>> class TestMyBroker(PubSubContract, ChannelContract):
...     broker = MemoryBroker()
...     def open_pubsub(self, *, protocol=None, history=0):
...         return MemoryPubSub(self.broker, protocol=protocol, history=History(history) if history else None)
>>> TestMyStore().test_a_burst_arrives_in_order_and_once()  # as pytest does
>>> TestMyBroker().test_globs_match_as_in_redis()

The ledger holds what was published against what each reader got, whatever happened in between:

>>> import asyncio
>>> async def lose_something():
...     ledger, store = Ledger(), QueueStore(max_messages=2)
...     reader = ledger.reader("news", "slow reader")
...     async with store.subscribe() as entries:
...         for text in ("a", "b", "c"):
...             await ledger.submit(store, "news", text)
...         async for entry in entries:
...             reader.got(entry, entries.position)
...             if entries.position == await store.position():
...                 ledger.check()
...                 return entry, reader.entries[0][0]
>>> asyncio.run(lose_something())
(Message('c'), Gap(missed=1))
>>> ledger = Ledger()
>>> reader = ledger.reader("news", "deaf reader")
>>> sent = ledger.published("news", Message("a")), ledger.published("news", Message("b"))
>>> reader.got(Message("b"))
>>> ledger.check()  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
waterspout_core.testing.ledger.Unreconciled: news: 'deaf reader' differs at its entry 0: one message passed over...
  published  > 0 'a' | 1 'b'
  received   > 0 'b'
"""

from .contract import PAYLOADS, Contract
from .contract_channels import ChannelContract
from .contract_leases import LeaseContract
from .contract_logs import StoreContract
from .contract_pubsub import PubSubContract
from .contract_stores import DataStoreContract
from .ledger import Account, Ledger, Sent, Unreconciled

__all__ = [
    "PAYLOADS",
    "Account",
    "ChannelContract",
    "Contract",
    "DataStoreContract",
    "LeaseContract",
    "Ledger",
    "PubSubContract",
    "Sent",
    "StoreContract",
    "Unreconciled",
]
