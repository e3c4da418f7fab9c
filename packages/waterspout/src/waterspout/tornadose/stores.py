"""A drop-in for ``tornadose.stores``: a store gives what is submitted to it to all who have registered.

Who registers is woken (``wake(store)``, as `waterspout_core` does it), or is given each message by ``submit(message)``,
as tornadose's handlers are, and awaited if that is a coroutine. Here the slow ones delay nobody, and nothing is kept
for them but their place in the store's log.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from typing import Any, Final

from tornado import gen

import waterspout_core
from waterspout_core import BadMessage, Log, Message, MiB, Position

from ._reader import Reader
from ._redis import RedisThread, running_loop

__all__ = ["BaseStore", "DataStore", "QueueStore", "RedisStore"]

logger: Final = logging.getLogger("waterspout.tornadose")


class BaseStore(waterspout_core.BaseStore):
    """What a store of one's own is made from: set up in `initialize`, and write `submit` and `publish`.

    `subscribers` is the set of those who have registered.
    """

    def register(self, subscriber: Any, *, by: Any = None) -> None:
        """From now on `subscriber` gets what is published. Twice is once."""
        assert hasattr(subscriber, "submit") or hasattr(subscriber, "wake"), f"{subscriber!r} is no subscriber"
        super().register(subscriber, by=by)

    def deregister(self, subscriber: Any) -> None:
        """Forget `subscriber`, known or not."""
        if subscriber not in self.subscribers and subscriber not in self._woken:
            logger.debug("this subscriber is not registered: %r", subscriber)
        super().deregister(subscriber)

    def submit(self, message: Any, event: str | None = None) -> Awaitable[Position | None]:
        """To be written: take in a new message."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does with submitted data")

    def publish(self) -> Any:
        """To be written: give the subscribers what was submitted. Nobody calls it but the store itself."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it publishes")


@dataclass(frozen=True, slots=True)
class _Submitted(Awaitable[Position | None]):
    """It has been submitted; to be awaited or left alone."""

    position: Position | None = None

    def __await__(self) -> Generator[Any, None, Position | None]:
        yield from ()
        return self.position


class LogStore(BaseStore):
    """A store with a log, out of which each subscriber reads at its own pace. Publishing happens by itself."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if inspect.iscoroutinefunction(cls.publish) or gen.is_coroutine_function(cls.publish):
            # tornadose started one loop, and that was it; here it would be one more after each burst.
            raise TypeError(f"{cls.__name__}.publish is called after each burst: it cannot be a coroutine")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._readers: dict[Any, Reader] = {}
        super().__init__(*args, **kwargs)

    def register(self, subscriber: Any, *, by: Any = None) -> None:
        # `wake` wins: whoever has it as well reads for itself.
        if not hasattr(subscriber, "wake"):
            by = self._readers.get(subscriber) or Reader(self, subscriber)
            self._readers[subscriber] = by
        super().register(subscriber, by=by)

    def deregister(self, subscriber: Any) -> None:
        super().deregister(subscriber)
        if reader := self._readers.pop(subscriber, None):
            reader.leave()
            waterspout_core.BaseStore.deregister(self, reader)

    def publish(self) -> None:
        """Wake every subscriber now. Happens by itself after each burst."""
        waterspout_core.BaseStore.publish(self)

    async def aclose(self) -> None:
        """End the reading for those who have not read all yet."""
        await super().aclose()
        tasks = [reader.task for reader in self._readers.values() if reader.task and not reader.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def wakes(store: waterspout_core.BaseStore) -> bool:
    """Whether `store` wakes those who register, which is all that waterspout's own handlers need. A store that
    registers or publishes in its own way calls `submit`, or `publish`."""
    if not isinstance(store, BaseStore):
        return True
    ways = (type(store).register, type(store).deregister, type(store).publish)
    return isinstance(store, LogStore) and all(way.__module__ == __name__ for way in ways)


class DataStore(LogStore):
    """The latest value only. Who comes later gets nothing until it changes."""

    _data: Any = None

    def initialize(self, initial_data: Any = None) -> None:
        self.log = Log(max_messages=1, when_behind="latest")
        if initial_data is not None:
            self.set_data(initial_data)

    @property
    def data(self) -> Any:
        """The current value; setting it publishes it."""
        return self._data

    @data.setter
    def data(self, new_data: Any) -> None:
        self.set_data(new_data)

    def set_data(self, new_data: Any, event: str | None = None) -> None:
        """Set and publish the current value."""
        message = message_of(new_data, event)
        self._data = new_data
        self.append(message)

    def submit(self, message: Any, event: str | None = None) -> Awaitable[Position | None]:
        """Set and publish the current value: `message` as a str."""
        if event is None:  # a `set_data` that was overridden need not know of events: tornadose has none
            self.data = str(message)
        else:
            self.set_data(str(message), event)
        return _Submitted(self.log.position)


class QueueStore(LogStore):
    """Every message to every subscriber, in order.

    A subscriber that lags by more than `max_messages` or `max_bytes` loses the oldest, and a warning is logged.
    """

    def initialize(self, *, max_messages: int = 10_000, max_bytes: int = 16 * MiB) -> None:
        self.log = Log(max_messages=max_messages, max_bytes=max_bytes)

    def submit(self, message: Any, event: str | None = None) -> Awaitable[Position | None]:
        """Publish `message`. It need not be awaited."""
        self.append(message_of(message, event))
        return _Submitted(self.log.position)


class RedisStore(LogStore):
    """What is published on the Redis channel `channel`, by whomever, as text; bytes only where it is none.

    `options` are redis-py's; those for its own ways of connecting (``connection_pool``, ``credential_provider``,
    ``redis_connect_func`` …) raise TypeError. It connects and subscribes when it is made, in a thread of its own, and
    raises `ConnectionError` if nobody answers. Every call of it blocks until Redis has answered, as in tornadose:
    `waterspout_core.RedisStore` does not.
    """

    def initialize(self, channel: str = "tornadose", **options: Any) -> None:
        self.log = Log(channel=channel)
        self._redis = RedisThread(channel, options, self.extend)

    def register(self, subscriber: Any, *, by: Any = None) -> None:
        super().register(subscriber, by=by)
        self._redis.home = running_loop() or self._redis.home

    def submit(self, message: Any, debug: Any = False) -> Awaitable[Position | None]:
        """PUBLISH `message`; with `debug`, also log it and keep it for 5 s under the channel's name.

        Raises `ConnectionError`, TimeoutError, or ResponseError.
        """
        payload = message if isinstance(message, bytes | bytearray | memoryview) else message_of(message).text
        self._redis.call("PUBLISH", self.channel, payload)
        if debug:
            logger.debug("%s", message)
            self._redis.call("SETEX", self.channel, 5, payload)
        return _Submitted()

    def shutdown(self) -> None:
        """Receive and publish nothing any more: the connections are closed, and the thread ends."""
        self._redis.close()

    async def aclose(self) -> None:
        """The same, and as other stores do it."""
        self.shutdown()
        await super().aclose()


def message_of(data: Any, event: str | None = None) -> Message:
    """`data`; as a str if JSON cannot carry it, since so it would have been shown there. Raises `BadMessage`."""
    try:
        return Message(data, event)
    except BadMessage:
        return Message(str(data), event)
