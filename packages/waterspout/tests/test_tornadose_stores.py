"""The drop-in for tornadose's stores, row by row (B1 to B14, B25, B26), with real loops and against real servers."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from tornado import gen, ioloop
from tornado.queues import Queue

import waterspout_core
import waterspout_redis
from waterspout.tornadose import stores
from waterspout.tornadose._redis import client_options
from waterspout.tornadose.stores import BaseStore, DataStore, QueueStore, RedisStore
from waterspout_redis.testing import FaultProxy, RunningServer, eventually, run


class Handler:
    """As tornadose 0.3 and later have it: `submit` is a coroutine of Tornado, which puts it on a queue."""

    def __init__(self, store: BaseStore) -> None:
        self.store = store
        self.messages: Queue[Any] = Queue()
        self.got: list[Any] = []
        store.register(self)

    @gen.coroutine
    def submit(self, message: Any) -> Iterator[Any]:
        yield self.messages.put(message)
        self.got.append(message)

    async def until(self, *messages: Any) -> None:
        await eventually(lambda: len(self.got) >= len(messages))
        assert self.got == list(messages)


class Slow(Handler):
    """Takes one message and is busy with it until it is let go."""

    def __init__(self, store: BaseStore) -> None:
        super().__init__(store)
        self.free = asyncio.Event()

    async def submit(self, message: Any) -> None:  # type: ignore[override]
        self.got.append(message)
        await self.free.wait()


class Woken:
    """As the handlers of waterspout are: a cursor."""

    def __init__(self, store: BaseStore) -> None:
        self.got: list[Any] = []
        self.after = store.cursor()
        store.register(self)

    def wake(self, store: BaseStore) -> None:
        first, entries = store.log.read(self.after)
        self.after = first + len(entries) - 1
        self.got += [entry.data if isinstance(entry, waterspout_core.Message) else entry for entry in entries]


class Custom(BaseStore):
    """A store as the documentation of tornadose tells to write one."""

    def initialize(self, shout: bool = False) -> None:
        self.shout = shout
        self.messages: Queue[str] = Queue()

    def register(self, subscriber: Any) -> None:
        super().register(subscriber)
        if len(self.subscribers) == 1:
            self.publish()

    async def submit(self, message: str) -> None:  # type: ignore[override]
        await self.messages.put(message.upper() if self.shout else message)

    @gen.coroutine
    def publish(self) -> Iterator[Any]:
        while (message := (yield self.messages.get())) is not None:
            yield [subscriber.submit(message) for subscriber in self.subscribers]


async def a_few_turns() -> None:
    """Enough for whatever is under way in this process to be delivered, so that what is not there does not come."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextmanager
def redis_store(server: RunningServer | FaultProxy, channel: str = "tornadose", **options: Any) -> Iterator[RedisStore]:
    store = RedisStore(channel, port=server.port, **options)
    try:
        yield store
    finally:
        store.shutdown()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# What all stores share


def test_b1_a_base_store_has_a_hook_and_a_set_and_leaves_the_rest_to_its_subclasses() -> None:
    given: list[Any] = []

    class Mine(BaseStore):
        def initialize(self, *args: Any, **kwargs: Any) -> None:
            given.extend([args, kwargs, self.subscribers])

    store = Mine(1, 2, three=3)
    assert given == [(1, 2), {"three": 3}, set()]
    with pytest.raises(NotImplementedError, match="Mine"):
        store.submit("x")
    with pytest.raises(NotImplementedError, match="Mine"):
        store.publish()
    assert {issubclass(kind, BaseStore) for kind in (DataStore, QueueStore, RedisStore)} == {True}
    assert issubclass(BaseStore, waterspout_core.BaseStore)  # so that the handlers of waterspout take it
    assert set(stores.__all__) == {"BaseStore", "DataStore", "QueueStore", "RedisStore"}


def test_b2_registering_twice_is_once_and_a_stranger_may_leave(caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        store = QueueStore()
        handler = Handler(store)
        store.register(handler)
        assert store.subscribers == {handler}
        await store.submit("once")
        await handler.until("once")
        with caplog.at_level(logging.DEBUG):
            store.deregister(handler)
            assert "not registered" not in caplog.text
            store.deregister(handler)
            assert "not registered" in caplog.text
        assert store.subscribers == set()
        with pytest.raises(AssertionError, match="no subscriber"):
            store.register("hello")
        await store.submit("twice")
        await a_few_turns()
        assert handler.got == ["once"]

    run(use())


AT_MODULE_LEVEL = (DataStore("first"), QueueStore())


def test_b3_stores_of_a_module_publish_by_themselves_in_whichever_loop_runs() -> None:
    async def use(data: DataStore, queue: QueueStore) -> None:
        handlers = Handler(data), Handler(queue)
        data.data = "second"
        queue.submit("third")
        await handlers[0].until("second")
        await handlers[1].until("third")
        for handler in handlers:
            handler.store.deregister(handler)

    for _ in range(2):
        run(use(*AT_MODULE_LEVEL))

    loop = ioloop.IOLoop(make_current=False)  # and in Tornado's own way
    loop.run_sync(lambda: use(*AT_MODULE_LEVEL))
    loop.close()


def test_a_subscriber_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Handler):
        def submit(self, message: Any) -> None:  # type: ignore[override]  # a plain function
            self.got.append(message)
            raise OSError("gone")

    async def use() -> None:
        store = QueueStore()
        failing, handler = Failing(store), Handler(store)
        for message in "ab":
            await store.submit(message)
        await handler.until("a", "b")
        assert (failing.got, store.subscribers) == (["a"], {handler})

    run(use())
    assert "gone" in caplog.text


def test_who_leaves_in_the_middle_of_a_message_gets_no_further_one() -> None:
    class Once(Handler):
        async def submit(self, message: Any) -> None:  # type: ignore[override]
            self.got.append(message)
            self.store.deregister(self)

    async def use() -> None:
        store = QueueStore()
        once, handler = Once(store), Handler(store)
        for message in "ab":
            store.submit(message)
        await handler.until("a", "b")
        assert (once.got, store.subscribers) == (["a"], {handler})
        store.register(once)
        store.submit("c")
        await handler.until("a", "b", "c")
        assert once.got == ["a", "c"]

    run(use())


def test_one_store_serves_tornadoses_subscribers_and_waterspouts() -> None:
    async def use() -> None:
        store = QueueStore()
        handler, woken = Handler(store), Woken(store)
        async with store.subscribe() as messages:
            await store.submit({"a": (1, 2)})
            await handler.until({"a": [1, 2]})
            assert woken.got == handler.got
            assert (await anext(messages)).data == {"a": [1, 2]}
        failing = Woken(store)
        failing.wake = lambda store: 1 / 0  # type: ignore[method-assign,assignment]
        await store.submit("b")
        await handler.until({"a": [1, 2]}, "b")
        assert store.subscribers == {handler, woken}

    run(use())


def test_an_audience_is_woken_once_for_all_who_are_in_it(caplog: pytest.LogCaptureFixture) -> None:
    class Audience:
        woken = 0

        def wake(self, store: BaseStore) -> None:
            self.woken += 1

    async def use() -> None:
        store, audience = QueueStore(), Audience()
        members = [Woken(store) for _ in range(3)]
        for member in members:
            store.deregister(member)
            store.register(member, by=audience)
        assert store.subscribers == set(members)
        await store.submit("a")
        await a_few_turns()
        assert (audience.woken, [member.got for member in members]) == (1, [[], [], []])
        with caplog.at_level(logging.DEBUG):
            for member in members:
                store.deregister(member)
            store.deregister(audience)
        assert "not registered" not in caplog.text
        handler = Handler(store)
        await store.submit("b")
        await handler.until("b")
        assert audience.woken == 1

    run(use())


def test_whoever_can_be_woken_is_not_given_the_messages_as_well() -> None:
    class Either(Woken):
        def submit(self, message: Any) -> None:
            raise AssertionError(message)

    async def use() -> None:
        store = QueueStore()
        either, handler = Either(store), Handler(store)
        for message in "ab":
            await store.submit(message)
        await handler.until("a", "b")
        assert (either.got, store.subscribers) == (["a", "b"], {either, handler})

    run(use())


@pytest.mark.parametrize("leaves", ["while it waits", "while it is busy"])
def test_who_has_left_is_read_for_no_more(leaves: str) -> None:
    async def use() -> None:
        store = QueueStore()
        slow = Slow(store)
        if leaves == "while it is busy":
            await store.submit("a")
            await eventually(lambda got=slow.got: got)
        store.deregister(slow)
        await store.submit("b")
        slow.free.set()
        await a_few_turns()
        assert slow.got == (["a"] if leaves == "while it is busy" else [])
        assert len(asyncio.all_tasks()) == 1
        known = weakref.ref(slow)
        del slow
        gc.collect()
        assert known() is None

    run(use())


def test_a_closed_store_leaves_no_task_behind() -> None:
    async def use() -> None:
        async with QueueStore() as store:
            slow = Slow(store)
            await store.submit("a")
            await eventually(lambda: slow.got)
        assert len(asyncio.all_tasks()) == 1

    run(use())


# DataStore


def test_b4_a_data_store_has_its_value_by_data_set_data_and_as_a_str_by_submit() -> None:
    async def use() -> None:
        assert DataStore().data is None
        store = DataStore("a")
        handler = Handler(store)
        assert store.data == "a"
        expected: list[Any] = []
        for change, value in [
            (lambda: store.set_data({"b": 0}), {"b": 0}),
            (lambda: setattr(store, "data", 0), 0),
            (lambda: store.submit(0), "0"),
            (lambda: store.submit({"c": 1}), "{'c': 1}"),
            (lambda: store.set_data(None), None),
            (lambda: setattr(store, "data", b"\xff"), b"\xff"),
        ]:
            change()
            expected.append(value)
            assert store.data == value
            await handler.until(*expected)

    run(use())


def test_b4_what_json_cannot_carry_is_delivered_as_it_would_have_been_shown() -> None:
    async def use() -> None:
        data, queue = DataStore(), QueueStore()
        handlers = Handler(data), Handler(queue)
        data.data = queue.data = complex(1, 2)  # type: ignore[attr-defined]
        queue.submit(queue.data)  # type: ignore[attr-defined]
        for handler in handlers:
            await handler.until("(1+2j)")
        assert data.data == complex(1, 2)

    run(use())


def test_b5_of_what_is_set_in_one_turn_only_the_latest_goes_out() -> None:
    async def use() -> None:
        store = DataStore()
        handler, woken = Handler(store), Woken(store)
        for value in "abc":
            store.data = value
        await handler.until("c")
        await a_few_turns()
        assert handler.got == woken.got == ["c"]

    run(use())


def test_b6_who_comes_late_gets_nothing_until_the_next_change() -> None:
    async def use() -> None:
        store = DataStore("initial")
        early, woken = Handler(store), Woken(store)
        messages = store.subscribe()
        await a_few_turns()
        assert (early.got, woken.got) == ([], [])
        store.data = "a"
        await early.until("a")
        late = Handler(store)
        await a_few_turns()
        assert late.got == []
        store.data = "b"
        await late.until("b")
        await early.until("a", "b")
        assert woken.got == ["a", "b"]
        assert (await anext(messages)).data == "b"
        # Whoever comes back with a position is not late.
        known = store.log.position
        store.data = "c"
        assert (await anext(store.subscribe(known))).data == "c"

    run(use())


def test_b7_a_value_set_during_the_fan_out_is_not_lost() -> None:
    async def use() -> None:
        store = DataStore()
        slow, handler = Slow(store), Handler(store)
        store.data = "a"
        await eventually(lambda: slow.got and handler.got)
        store.register(slow)  # which changes nothing
        store.data = "b"
        await handler.until("a", "b")  # and nobody waits for the slow one
        store.data = "c"
        await handler.until("a", "b", "c")
        slow.free.set()
        await slow.until("a", "c")

    run(use())


# QueueStore


def test_b8_every_message_comes_to_every_subscriber_in_order_and_submit_may_be_awaited() -> None:
    async def use() -> None:
        store = QueueStore()
        await store.submit("nobody is there")
        handlers = [Handler(store) for _ in range(3)]
        messages = [{"number": number} for number in range(2500)]
        for message in messages[:2000]:
            store.submit(message)
        for message in messages[2000:]:
            assert isinstance(await store.submit(message), waterspout_core.Position)
        for handler in handlers:
            await handler.until(*messages)

    run(use())


def test_b8_submit_from_another_thread() -> None:
    async def use() -> None:
        store = QueueStore()
        handler = Handler(store)
        await asyncio.to_thread(lambda: [store.submit_threadsafe(number).result(5) for number in range(3)])
        await handler.until(0, 1, 2)

    run(use())


def test_b9_what_a_slow_subscriber_has_not_taken_is_bounded_and_its_loss_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def use() -> None:
        store = QueueStore(max_messages=10)
        slow, handler = Slow(store), Handler(store)
        for number in range(100):
            store.submit(number)
            await eventually(lambda: len(handler.got) > number)  # noqa: B023  # it is awaited here
        assert len(store.log) == 10
        assert slow.got == [0]
        slow.free.set()
        await slow.until(0, *range(90, 100))
        assert handler.got == list(range(100))

    run(use())
    assert "89 messages were lost" in caplog.text


def test_b9_the_bound_is_one_of_bytes_too() -> None:
    async def use() -> None:
        store = QueueStore(max_bytes=100_000)
        slow = Slow(store)
        for _ in range(1000):
            store.submit("x" * 1000)
            await asyncio.sleep(0)
        assert len(slow.got) == 1
        assert store.log.size <= 100_000
        await store.aclose()

    run(use())


# RedisStore


def test_b10_the_channel_is_tornadose_and_options_are_redis_pys(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server
    server.call("CONFIG", "SET", "requirepass", "secret")
    store = RedisStore(
        host="127.0.0.1",
        port=str(server.port),
        db=3,
        password="secret",
        socket_timeout=7,
        decode_responses=True,
        socket_keepalive=True,
        max_connections=10,
        encoding="utf-8",
        username=None,
        health_check_interval=0,
    )
    assert store.channel == "tornadose"
    store.submit("x", debug=True)

    async def look() -> Any:
        async with waterspout_redis.Client(port=server.port, password="secret", db=3) as client:
            return await client.call("GET", "tornadose"), await client.call("PUBSUB", "CHANNELS")

    assert run(look()) == (b"x", [b"tornadose"])
    store.shutdown()


def test_b10_it_connects_by_a_unix_socket(fresh_redis_server: RunningServer, tmp_path: Path) -> None:
    path = str(tmp_path / "redis.sock")
    with RunningServer(fresh_redis_server.binary, "--unixsocket", path) as server:
        store = RedisStore(channel="c", unix_socket_path=path, host="localhost", port=1)
        assert server.call("PUBSUB", "NUMSUB", "c") == [b"c", 1]
        store.shutdown()


def test_b10_nobody_answers_is_a_connection_error_at_once(free_port: int) -> None:
    def make() -> float:
        begun = time.monotonic()
        with pytest.raises(ConnectionError, match=str(free_port)):
            RedisStore(port=free_port)
        return time.monotonic() - begun

    async def use() -> float:
        return make()

    assert max(make(), run(use())) < 1  # it does not try again
    assert [thread for thread in threading.enumerate() if thread.name == "waterspout.tornadose"] == []


def test_b10_it_tries_only_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        visits: list[int] = []

        def turn_away() -> None:
            with suppress(OSError):  # it is closed at the end
                while True:
                    listening.accept()[0].close()
                    visits.append(1)

        doorman = threading.Thread(target=turn_away)
        doorman.start()
        with pytest.raises(ConnectionError):
            RedisStore(port=listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        doorman.join()
        assert visits == [1]


def test_b10_tls_is_asked_for_with_redis_pys_options(redis_server: RunningServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    trusted, own = str(tmp_path / "ca.pem"), str(tmp_path / "own.pem")
    authority.cert_pem.write_to_path(trusted)
    authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(own)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("somewhere.else").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    def use(**options: Any) -> None:
        options = {"ssl": True, "ssl_ca_certs": trusted, **options}
        store = RedisStore(host="127.0.0.1", port=proxy.port, **options)
        store.submit("x")
        store.shutdown()

    async def main() -> None:
        nonlocal proxy
        async with FaultProxy(redis_server.port, ssl=context) as proxy:
            await asyncio.to_thread(use, ssl_certfile=own, ssl_check_hostname=False)
            await asyncio.to_thread(use, ssl_certfile=own, ssl_cert_reqs="none", ssl_ca_certs=None)
            with pytest.raises(ConnectionError, match="TLS failed"):
                await asyncio.to_thread(use, ssl_certfile=own)
            with pytest.raises(ConnectionError):  # the server misses a certificate
                await asyncio.to_thread(use, ssl_check_hostname=False)

    proxy: FaultProxy
    run(main())


def test_b10_the_time_out_of_the_socket_is_that_of_connecting_too() -> None:
    assert client_options({"socket_timeout": 2}) == ({"timeout": 2}, {"connect_timeout": 2})
    assert client_options({"socket_connect_timeout": 3, "socket_timeout": 2})[1] == {"connect_timeout": 3}
    assert client_options({"socket_timeout": None, "ssl": False}) == ({}, {})


def test_b10_a_wrong_password_or_a_channel_that_is_forbidden_is_told(fresh_redis_server: RunningServer) -> None:
    server = fresh_redis_server
    server.call("ACL", "SETUSER", "some", "on", ">right", "+@all", "~*", "&allowed")
    with pytest.raises(ConnectionError, match="WRONGPASS"):
        RedisStore(port=server.port, username="some", password="wrong")
    with pytest.raises(waterspout_redis.NoPermissionError):
        RedisStore("forbidden", port=server.port, username="some", password="right")
    RedisStore("allowed", port=server.port, username="some", password="right").shutdown()
    assert [thread for thread in threading.enumerate() if thread.name == "waterspout.tornadose"] == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"connection_pool": "of connections"}, TypeError),
        ({"credential_provider": "of credentials"}, TypeError),
        ({"hots": "localhost"}, TypeError),
        ({"encoding": "latin-1"}, ValueError),
        ({"port": 0}, ValueError),
    ],
    ids=repr,
)
def test_b10_what_makes_no_sense_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options)) if error is TypeError else "UTF-8|port"):
        RedisStore(**options)


def test_b11_submit_blocks_until_it_is_published_with_or_without_a_loop(redis_server: RunningServer) -> None:
    with redis_store(redis_server, "news") as here, redis_store(redis_server, "news") as there:

        async def use() -> None:
            handlers = Handler(here), Handler(there)
            here.submit("a")
            await here.submit("b")
            await asyncio.to_thread(here.submit, "c")
            here.submit(b"\xff")
            here.submit(5)
            here.submit({"d": [0]})
            for handler in handlers:
                await handler.until("a", "b", "c", b"\xff", "5", '{"d":[0]}')
            assert redis_server.call("EXISTS", "news") == 0

        run(use())


def test_b11_with_debug_it_is_logged_and_kept_for_five_seconds(
    redis_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_store(redis_server, "news") as store, caplog.at_level(logging.DEBUG, "waterspout.tornadose"):
        store.submit("100 %s", debug=True)
        assert redis_server.call("GET", "news") == b"100 %s"  # and no loop runs
        assert 0 < redis_server.call("TTL", "news") <= 5
    assert "100 %s" in caplog.text


def test_b11_anything_may_publish_from_outside_and_what_goes_out_is_plain(redis_server: RunningServer) -> None:
    async def use() -> None:
        with redis_store(redis_server) as store:
            handler, woken = Handler(store), Woken(store)
            # From the moment on that somebody has registered.
            assert redis_server.call("PUBLISH", "tornadose", "grüße") == 1
            redis_server.call("PUBLISH", "tornadose", b'\x1e{"data":1}\n')
            await handler.until("grüße", '\x1e{"data":1}\n')
            assert woken.got == handler.got
            async with waterspout_redis.PubSubClient(redis_server.url) as outside:
                await outside.subscribe("tornadose")
                for message in ("text", b"\x00\xff", 1.5):
                    store.submit(message)
                payloads = [(await anext(outside)).data for _ in range(3)]  # type: ignore[union-attr]
            assert payloads == [b"text", b"\x00\xff", b"1.5"]

    run(use())


def test_b12_the_reader_goes_on_after_a_break_of_the_link(redis_server: RunningServer) -> None:
    async def use() -> None:
        with redis_store(redis_server) as store:
            handler, woken = Handler(store), Woken(store)
            store.submit("before")
            await handler.until("before")
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda: waterspout_core.Gap() in woken.got)
            store.submit("after")
            await handler.until("before", "after")
            assert woken.got == ["before", waterspout_core.Gap(), "after"]

    run(use())


def test_b12_while_redis_is_away_submit_says_so_and_goes_on_afterwards(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        with redis_store(fresh_redis_server) as store:
            handler = Handler(store)
            fresh_redis_server.kill()
            begun = time.monotonic()
            with pytest.raises(ConnectionError):
                store.submit("lost")
            assert time.monotonic() - begun < 1
            fresh_redis_server.start()
            await eventually(lambda: _published(store, "back") and handler.got)
            assert handler.got[-1] == "back"
            assert "lost" not in handler.got

    run(use())


def _published(store: RedisStore, message: str) -> bool:
    try:
        store.submit(message)
    except ConnectionError:
        return False
    return True


def test_b12_a_store_made_before_any_loop_serves_one_loop_after_the_other(redis_server: RunningServer) -> None:
    with redis_store(redis_server) as store:

        async def use(message: str) -> None:
            handler = Handler(store)
            redis_server.call("PUBLISH", "tornadose", message)
            await handler.until(message)
            store.deregister(handler)

        run(use("a"))
        run(use("b"))


class BusyLoop(asyncio.SelectorEventLoop):
    """Counts what other threads want of it; it does nothing of it while it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = 0

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
        self.wanted += 1
        return super().call_soon_threadsafe(*args, **kwargs)


async def handler_of(store: BaseStore) -> Handler:
    return Handler(store)


def test_b12_while_the_loop_is_busy_no_more_is_read_from_redis(redis_server: RunningServer) -> None:
    numbers = [str(number) for number in range(20)]
    loop = BusyLoop()
    with redis_store(redis_server) as store, redis_store(redis_server) as other:
        handler = loop.run_until_complete(handler_of(store))

        async def publish() -> None:
            witness = Handler(other)
            for place, number in enumerate(numbers, 1):
                redis_server.call("PUBLISH", "tornadose", number)
                await eventually(lambda: len(witness.got) == place)  # noqa: B023  # it is awaited here

        run(publish())
        assert loop.wanted == 1
        loop.run_until_complete(handler.until(*numbers))
    loop.close()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "stopped"])
def test_b12_a_loop_that_ended_holds_up_nobody(
    redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    monkeypatch.setattr("waterspout.tornadose._redis._RECHECK", 0.01)
    loop = BusyLoop()

    async def use(store: RedisStore) -> None:
        store.submit("lost with its loop")
        await eventually(lambda: loop.wanted == 1)
        if closed:
            loop.close()
            store.submit("nobody is there")
            await eventually(lambda: loop.wanted == 2)  # it has been tried
        handler = Handler(store)
        await eventually(lambda: _published(store, "next") and handler.got)
        assert set(handler.got) == {"next"}

    with redis_store(redis_server) as store:
        loop.run_until_complete(handler_of(store))
        run(use(store))
    loop.close()


def test_b13_messages_are_text_and_not_bytes(redis_server: RunningServer) -> None:
    async def use() -> None:
        for options in ({}, {"decode_responses": False}, {"decode_responses": True}):
            with redis_store(redis_server, **options) as store:
                handler = Handler(store)
                store.submit("ä")
                redis_server.call("PUBLISH", "tornadose", b"from outside")
                redis_server.call("PUBLISH", "tornadose", b"\xff")
                await handler.until("ä", "from outside", b"\xff")

    run(use())


def test_b14_shutdown_closes_the_connections_and_ends_the_thread(redis_server: RunningServer) -> None:
    def ours() -> int:
        return redis_server.call("CLIENT", "LIST").count(b"name=mine ")

    def threads() -> int:
        return sum(thread.name == "waterspout.tornadose" for thread in threading.enumerate())

    async def use() -> None:
        store = RedisStore(port=redis_server.port, client_name="mine")
        handler = Handler(store)
        assert (ours(), threads()) == (2, 1)
        store.submit("a")
        store.shutdown()
        store.shutdown()
        await eventually(lambda: ours() == 0)
        assert threads() == 0
        with pytest.raises(RuntimeError, match="shut down"):
            store.submit("b")
        async with RedisStore(port=redis_server.port, client_name="mine") as other:
            assert (other.channel, ours()) == ("tornadose", 2)
        await eventually(lambda: ours() == 0)
        assert threads() == 0
        assert len(asyncio.all_tasks()) == 1
        assert set(handler.got) <= {"a"}

    run(use())


def test_b14_a_program_that_forgets_to_shut_down_ends_all_the_same(redis_server: RunningServer) -> None:
    program = (
        "import atexit, threading\n"
        "atexit.register(lambda: print(threading.active_count()))\n"
        "from waterspout.tornadose.stores import RedisStore\n"
        f"RedisStore('c', port={redis_server.port}).submit('published', debug=True)\n"
    )
    ended = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, [b"1"], b"")
    assert redis_server.call("GET", "c") == b"published"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_store_made_before_a_fork_says_so_in_the_child(redis_server: RunningServer) -> None:
    program = (
        "import os\n"
        "from waterspout.tornadose.stores import RedisStore\n"
        f"store = RedisStore(port={redis_server.port})\n"
        "if os.fork():\n"
        "    raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "try:\n"
        "    store.submit('x')\n"
        "except RuntimeError as error:\n"
        "    raise SystemExit(7 if 'fork' in str(error) else 8)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 7


# Stores of one's own


def test_b25_a_store_written_as_tornadose_tells_to_delivers() -> None:
    async def use() -> None:
        store = Custom(shout=True)
        handlers = Handler(store), Handler(store)
        await store.submit("hello")
        for handler in handlers:
            await handler.until("HELLO")
        await store.messages.put(None)  # type: ignore[arg-type]

    run(use())


def test_b25_what_a_subclass_overrides_is_called() -> None:
    called: list[str] = []

    class Data(DataStore):
        def initialize(self, initial_data: Any = None, name: str = "") -> None:
            super().initialize(initial_data)
            called.append(f"initialize {name}")

        def set_data(self, new_data: Any) -> None:  # type: ignore[override]  # as tornadose has it
            called.append(f"set_data {new_data}")
            super().set_data(new_data)

        def register(self, subscriber: Any) -> None:
            called.append("register")
            super().register(subscriber)

        def deregister(self, subscriber: Any) -> None:
            called.append("deregister")
            super().deregister(subscriber)

        def publish(self) -> None:
            called.append("publish")
            super().publish()

    class Shouting(QueueStore):
        def submit(self, message: str) -> Awaitable[Any]:  # type: ignore[override]
            return super().submit(message.upper())

    async def use() -> None:
        data, shouting = Data("a", name="n"), Shouting()
        handlers = Handler(data), Handler(shouting)
        data.data = "b"
        data.submit(3)
        await shouting.submit("c")
        await handlers[0].until("3")
        await handlers[1].until("C")
        data.deregister(handlers[0])

    run(use())
    assert called == [
        *("set_data a", "initialize n", "register", "set_data b", "set_data 3", "publish", "deregister"),
    ]


def test_b25_a_redis_store_may_be_subclassed(redis_server: RunningServer) -> None:
    class Mine(RedisStore):
        def initialize(self, **options: Any) -> None:  # type: ignore[override]
            super().initialize(channel="mine", port=redis_server.port, **options)

        def submit(self, message: Any, debug: bool = False) -> Awaitable[Any]:
            return super().submit(f"<{message}>", debug=debug)

    async def use() -> None:
        async with Mine(socket_timeout=5) as store:
            handler = Handler(store)
            store.submit("a")
            await handler.until("<a>")

    run(use())


async def _an_async_loop(self: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("publish", [_an_async_loop, gen.coroutine(_an_async_loop)], ids=["async", "coroutine"])
@pytest.mark.parametrize("kind", [DataStore, QueueStore, RedisStore])
def test_b26_a_publish_that_nobody_would_await_is_refused(kind: type, publish: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"Mine\.publish .* cannot be a coroutine"):
        type("Mine", (kind,), {"publish": publish})


def test_b26_every_store_delivers(redis_server: RunningServer) -> None:
    async def use() -> None:
        with redis_store(redis_server) as in_redis:
            for store in (DataStore(), QueueStore(), in_redis):
                handler = Handler(store)
                store.submit("delivered")
                await handler.until("delivered")

    run(use())
