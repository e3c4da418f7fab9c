"""The drop-in for pulsar's stores, row by row (D1 to D3), and for its Redis client, against real servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from waterspout.pulsar import (
    BadStoreURL,
    ImproperlyConfigured,
    Json,
    MemoryStore,
    NoSuchStore,
    RedisStore,
    ResponseError,
    Store,
    create_store,
    data_stores,
    parse_store_url,
    register_store,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, eventually, run


class OwnStore(Store):
    """As a program would write one."""

    def _init(self, colour: str = "none", **options: Any) -> None:
        self.colour = colour


def with_store(use: Callable[[RedisStore], Awaitable[None]], url: str, **options: Any) -> None:
    async def main() -> None:
        store = create_store(url, **options)
        assert isinstance(store, RedisStore)
        try:
            await use(store)
        finally:
            await store.close()

    run(main())


# D1: URLs


def test_d1_a_url_is_a_scheme_a_host_and_all_the_rest_by_name() -> None:
    assert parse_store_url("redis://user:password@host:6500/11?namespace=x") == (
        "redis",
        ("host", 6500),
        {"user": "user", "password": "password", "database": "11", "namespace": "x"},
    )
    assert parse_store_url("redis://host") == ("redis", "host", {})
    assert parse_store_url("redis://user@[::1]:6379/") == ("redis", ("::1", 6379), {"user": "user"})
    assert parse_store_url("memory://") == ("memory", "", {})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1",
        "redis://127.0.0.1:6379/1#fragment",
        "redis://127.0.0.1:6379/1/2",
        "redis://u:p@ss@127.0.0.1",
        "redis://u:p:q@127.0.0.1",
        "redis://u:p#p@ss@127.0.0.1",
        "redis://u:1/p@ss@127.0.0.1",
        "redis://u:p?p@ss@127.0.0.1",
        "redis://one:6379,two:6379",
        "unix:///run/redis.sock",
        "redis://127.0.0.1:port",
    ],
)
def test_d1_a_url_that_makes_no_sense_is_refused_without_telling_the_password(url: str) -> None:
    for error in (BadStoreURL, ImproperlyConfigured, AssertionError):  # the last one is what pulsar raises
        with pytest.raises(error) as refused:
            create_store(url)
        assert "p@ss" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "options", "why"),
    [
        ("redis://host:0", {}, "port"),
        ("redis://host/-1", {}, "database"),
        ("redis://host?db=3", {}, "not db"),
        ("redis://host?pool_size=x", {}, "'x'"),
        ("redis://host?timeout=soon", {}, "'soon'"),
        ("redis://host?colour=red", {}, "colour"),
        ("redis://host", {"db": 3}, "not db"),
        ("redis://host", {"pool_size": 0}, "pool"),
        ("redis://host", {"ssl": "yes"}, "ssl"),
        ("redis://host", {"retry": 0}, "retry"),
        ("redis://host", {"encoding": "utf-99", "decode_responses": True}, "utf-99"),
    ],
)
def test_d1_what_cannot_be_used_is_told_at_once(url: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=why):
        create_store(url, **options)


@pytest.mark.parametrize(("query", "options"), [("?timeout=0.2", {}), ("", {"timeout": 0.2})])
def test_d1_a_timeout_is_that_of_every_answer(redis_server: RunningServer, query: str, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port) as proxy:
            store = create_store(proxy.url + query, **options)
            client, pubsub = store.client(), store.pubsub()
            await client.ping()
            await pubsub.subscribe("chat")
            await pubsub.publish("chat", "Hello")
            proxy.disturb(Faults(black_hole=True))
            for ask in (client.ping(), pubsub.publish("chat", "Hello")):
                with pytest.raises(TimeoutError):
                    await ask
            await pubsub.close()
            await store.close()

    run(main())


def test_d1_a_password_needs_a_user() -> None:
    with pytest.raises(ImproperlyConfigured, match="user"):
        create_store("redis://:secret@127.0.0.1:6379")
    with pytest.raises(ImproperlyConfigured, match="user"):
        create_store("redis://127.0.0.1:6379", password="secret")
    assert create_store("redis://user@127.0.0.1:6379", password="secret").dns == "redis://user:secret@127.0.0.1:6379"


def test_d1_options_win_over_the_url() -> None:
    store = create_store("redis://user:old@h:1/2?namespace=a", database=3, password="new", namespace="b")
    assert store.dns == "redis://user:new@h:1/3?namespace=b"


def test_d1_a_store_is_its_own() -> None:
    store = create_store("redis://127.0.0.1:6379")
    assert create_store(store) is store


def test_d1_a_scheme_that_nobody_has_registered_is_no_store() -> None:
    with pytest.raises(NoSuchStore, match="mongodb://"):
        create_store("mongodb://127.0.0.1")
    assert issubclass(NoSuchStore, ImproperlyConfigured)


@pytest.mark.parametrize("separator", [":", "."])
def test_d1_a_registered_store_is_made_with_the_options_of_its_url(
    separator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data_stores, "own", "")  # to be forgotten afterwards
    register_store("own", f"{__name__}{separator}OwnStore")
    store = create_store("own://host:1/2?colour=red")
    assert type(store).__name__ == "OwnStore"
    assert (vars(store)["colour"], store.name, store.database) == ("red", "own", 2)
    with pytest.raises(NotImplementedError):
        store.client()


def test_d1_a_registered_path_where_nothing_is_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("no.such.module:Store", f"{__name__}:Missing", "nothing"):
        monkeypatch.setitem(data_stores, "own", path)
        with pytest.raises(ImproperlyConfigured, match="no store at"):
            create_store("own://host")


def test_d1_redis_tls_and_memory_are_registered() -> None:
    made = [type(create_store(url)) for url in ("redis://h:1", "rediss://h:1", "memory://")]
    assert made == [RedisStore, RedisStore, MemoryStore]


# D2: what a store tells of itself


def test_d2_a_store_tells_its_name_url_database_encoding_and_namespace() -> None:
    store = create_store("redis://127.0.0.1:6379/9?namespace=test")
    assert (store.name, store.database, store.encoding) == ("redis", 9, "utf-8")
    assert store.urlparams == {"namespace": "test"}
    assert store.namespace == "test:"
    assert store.dns == store.dsn == str(store) == "redis://127.0.0.1:6379/9?namespace=test"
    assert create_store("redis://127.0.0.1:6379").namespace == ""
    assert create_store("redis://127.0.0.1:6379", encoding="latin-1").encoding == "latin-1"


def test_d2_the_url_follows_the_database() -> None:
    store = create_store("redis://127.0.0.1:6379/8")
    store.database = 10
    assert (store.database, store.dns) == (10, "redis://127.0.0.1:6379/10")
    store.database = 0
    assert store.dns == "redis://127.0.0.1:6379"
    with pytest.raises(ImproperlyConfigured, match="'x'"):
        create_store("redis://127.0.0.1/x")


def test_d2_the_url_makes_the_same_store_again_whatever_the_password() -> None:
    store = create_store("redis://127.0.0.1:6379", user="us er", password="p@:/?#%", namespace="a&b")
    again = create_store(store.dns)
    assert again.dns == store.dns
    assert parse_store_url(store.dns)[2] == {"user": "us er", "password": "p@:/?#%", "namespace": "a&b"}


def test_d2_a_store_that_is_printed_does_not_tell_the_password() -> None:
    store = create_store("redis://user:secret@127.0.0.1:6379")
    assert str(store) == "redis://user:***@127.0.0.1:6379"
    assert repr(store) == 'Store(dns="redis://user:***@127.0.0.1:6379")'


def test_d2_another_database_is_used_from_then_on(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        client = store.client()
        await client.set("key", "zero")
        store.database = 1
        assert await client.get("key") is None
        await client.set("key", "one")
        store.database = 0
        assert await client.get("key") == b"zero"

    with_store(use, redis_server.url)


# D3: what comes from a store


def test_d3_a_store_gives_a_client_a_pipeline_a_pubsub_and_channels(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        assert await store.ping() is True
        client = store.client()
        assert (client.store, client.pubsub().store, store.pubsub().store) == (store, store, store)
        assert await client.set("key", "value") is True
        pipeline = store.pipeline()
        pipeline.get("key")
        assert await pipeline.commit() == [b"value"]
        pubsub = store.pubsub(protocol=Json())
        assert await pubsub.publish("channel", {"a": 1}) == 0
        await pubsub.close()
        channels = store.channels(protocol=Json(), namespace="ns", status_channel="here")
        assert (channels.namespace, "here" in channels) == ("ns_", True)
        await channels.close()
        assert await store.flush() is True
        assert await client.exists("key") is False

    with_store(use, redis_server.url)


def test_d1_a_store_may_be_valkey_too(redis_server: RunningServer) -> None:
    async def main() -> None:
        store = create_store(redis_server.url.replace("redis://", "valkey://"))
        assert await store.client().ping()
        pubsub = store.pubsub()
        await pubsub.subscribe("news")
        assert await pubsub.publish("news", "text") == 1
        await pubsub.close()
        await store.close()

    run(main())


def test_d3_closing_a_store_closes_its_connections_and_it_may_be_used_again(redis_server: RunningServer) -> None:
    async def main() -> None:
        store = create_store(redis_server.url)
        client = store.client()
        assert await client.ping()
        assert await client.lock("held", blocking=False).acquire()
        await store.close()
        clients = redis_server.call("CLIENT", "LIST").decode().splitlines()
        assert len(clients) == 1  # who asks
        assert await client.ping()
        await store.close()

    run(main())


def test_d3_blocking_commands_have_as_many_connections_as_the_pool_and_hold_up_nobody(
    redis_server: RunningServer,
) -> None:
    async def use(store: RedisStore) -> None:
        client = store.client()
        tasks = [asyncio.ensure_future(client.blpop("list", 0)) for _ in range(2)]
        assert await client.ping()  # not behind those that wait
        assert await client.rpush("list", "a", "b") == 2
        assert {await task for task in tasks} == {(b"list", b"a"), (b"list", b"b")}

    with_store(use, redis_server.url, pool_size="2")


def test_d3_blocking_commands_wait_for_one_another_where_the_pool_is_smaller(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        client = store.client()
        first, second = (asyncio.ensure_future(client.blpop(key, 0)) for key in ("first", "second"))
        await client.rpush("second", "b")
        await eventually(lambda: b"blocked_clients:1" in redis_server.call("INFO", "clients"))
        assert not second.done()  # though it has something to give
        await client.rpush("first", "a")
        assert [await first, await second] == [(b"first", b"a"), (b"second", b"b")]

    with_store(use, redis_server.url, pool_size=1)


def test_d3_ten_blocking_commands_have_a_connection_each_where_nothing_is_said(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        client = store.client()
        tasks = [asyncio.ensure_future(client.blpop("list", 0)) for _ in range(11)]
        await eventually(lambda: b"blocked_clients:10\r" in redis_server.call("INFO", "clients"))
        await client.rpush("list", *range(11))
        assert {value for _, value in await asyncio.gather(*tasks)} == {b"%d" % number for number in range(11)}

    with_store(use, redis_server.url)


def test_d3_replies_are_text_where_that_is_asked_for(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        client = store.client()
        assert await client.set("key", "é") is True
        assert await client.get("key") == "é"
        assert await client.type("key") == "string"
        assert await client.ping() is True

    with_store(use, redis_server.url, decode_responses=True)


@pytest.mark.parametrize(
    ("user", "options", "who"), [("anybody:secret", {}, b"default"), ("app:pass", {"username": "app"}, b"app")]
)
def test_d3_only_the_password_is_sent_as_in_pulsar_unless_a_username_is_given(
    fresh_redis_server: RunningServer, user: str, options: dict[str, str], who: bytes
) -> None:
    fresh_redis_server.call("ACL", "SETUSER", "app", "on", ">pass", "~*", "&*", "+@all")
    fresh_redis_server.call("CONFIG", "SET", "requirepass", "secret")

    async def use(store: RedisStore) -> None:
        assert await store.client().acl("whoami") == who
        pubsub = store.pubsub()
        await pubsub.subscribe("channel")
        assert await pubsub.count("channel") == {b"channel": 1}
        await pubsub.close()

    with_store(use, f"redis://{user}@127.0.0.1:{fresh_redis_server.port}", **options)


def test_d3_a_server_that_is_away_is_a_connection_error(fresh_redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        fresh_redis_server.kill()
        with pytest.raises(ConnectionRefusedError):
            await store.client().get("key")
        with pytest.raises(ConnectionRefusedError):
            await store.ping()

    with_store(use, fresh_redis_server.url)


def test_d3_a_store_in_memory_has_no_commands() -> None:
    async def main() -> None:
        store = create_store("memory://")
        assert await store.ping() is True
        assert await store.flush() is True
        for ask in (store.client, store.pipeline, store.execute):
            with pytest.raises(NotImplementedError, match="memory://"):
                ask()
        await store.close()

    run(main())


# The client of D3


def test_d3_a_client_makes_of_replies_what_pulsar_makes(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        c = store.client()
        assert repr(c).startswith("RedisClient(redis://")
        assert await c.mset("a", 1, "b", 2) is True
        assert [await c.exists("a"), await c.exists("z"), await c.expire("a", 10)] == [True, False, True]
        assert await c.delete("a") == 1
        assert await c.type("b") == "string"
        assert [await c.incr("n"), await c.incr("n", 5), await c.decr("n"), await c.decrby("n", 2)] == [1, 6, 5, 3]
        assert [await c.incrbyfloat("f", 0.5), await c.incrbyfloat("f")] == [0.5, 1.5]
        assert await c.hmset("h", {"x": 1, "y": 2}) is True
        assert await c.hmget("h", "x", "z") == {"x": b"1", "z": None}
        assert await c.hgetall("h") == {b"x": b"1", b"y": b"2"}
        assert await c.sadd("s", 1, 2) == 2
        assert await c.smembers("s") == {b"1", b"2"}
        assert await c.zadd("z", 1.1, "a", 2, "b", c=3) == 3
        assert await c.zrange("z", 0, 1) == [b"a", b"b"]
        assert await c.zrange("z", 0, 1, withscores=True) == [(1.1, b"a"), (2.0, b"b")]
        assert await c.zrevrange("z", 0, 0, withscores=True) == [(3.0, b"c")]
        assert await c.zrangebyscore("z", 1, 3, offset=1, count=1) == [b"b"]
        assert await c.zrevrangebyscore("z", 3, 2) == [b"c", b"b"]
        assert await c.zrevrangebyscore("z", "+inf", 1, withscores=True, offset=1, count=1) == [(2.0, b"b")]
        assert [await c.zscore("z", "b"), await c.zscore("z", "?")] == [2.0, None]
        assert await c.zunionstore("u", ["z", "z"], weights=[1, 2], aggregate="MAX") == 3
        assert await c.zinterstore("i", ["z", "s"]) == 0
        assert await c.zscore("u", "b") == 4.0
        assert await c.rpush("l", 3, 1, 2) == 3
        assert await c.sort("l", desc=True, start=0, num=2) == [b"3", b"2"]
        assert await c.mset("w1", "b", "w2", "a", "w3", "c") is True
        assert await c.sort("l", by="w*", get=("#", "w*"), alpha=True, groups=True) == [
            (b"2", b"a"),
            (b"1", b"b"),
            (b"3", b"c"),
        ]
        assert await c.blpop("l") == (b"l", b"3")
        assert await c.brpop(["none", "l"], None) == (b"l", b"2")
        assert await c.blpop("none", 0.01) is None
        assert await c.brpoplpush("l", "m") == b"1"
        assert await c.eval("return {KEYS, ARGV}", ("a",), ("b", "c")) == [[b"a"], [b"b", b"c"]]
        sha = await c.script("LOAD", "return 1")
        assert await c.evalsha(sha) == 1
        seconds, microseconds = await c.time()
        assert abs(time.time() - seconds) < 60
        assert 0 <= microseconds < 1_000_000
        info = await c.info()
        assert info["tcp_port"] == redis_server.port
        assert info["db0"]["keys"] > 5

    with_store(use, redis_server.url)


def test_d3_set_has_the_options_of_pulsar(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        c = store.client()
        assert [await c.set("k", 1, xx=True), await c.set("k", 1, nx=True), await c.set("k", 2, nx=True)] == [
            False,
            True,
            False,
        ]
        assert await c.set("k", 1, ex=timedelta(seconds=100)) is True
        assert 90 < await c.ttl("k") <= 100
        assert await c.set("k", 1, px=timedelta(seconds=1.5)) is True
        assert 0 < await c.pttl("k") <= 1500

    with_store(use, redis_server.url)


def test_d3_wrong_arguments_and_refusals_are_told(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        c = store.client()
        with pytest.raises(ValueError, match="members"):
            c.zadd("z", 1)
        with pytest.raises(ValueError, match="start"):
            c.sort("l", start=1)
        with pytest.raises(ValueError, match="groups"):
            c.sort("l", get="#", groups=True)
        with pytest.raises(ResponseError):
            await c.expire("key", "bla")
        with pytest.raises(AttributeError):
            c._secret  # noqa: B018

    with_store(use, redis_server.url)


def test_d3_a_pipeline_is_a_transaction_and_empty_afterwards(redis_server: RunningServer) -> None:
    async def use(store: RedisStore) -> None:
        pipeline = store.client().pipeline()
        assert pipeline.set("a", 1) is None
        pipeline.hmset("h", {"x": 1})
        pipeline.hgetall("h")
        assert await pipeline.immediate_execute("EXISTS", "a") is False
        assert await pipeline.commit() == [True, True, {b"x": b"1"}]
        assert await pipeline.commit() == []
        pipeline.incr("h")
        pipeline.get("a")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await pipeline.commit()
        pipeline.incr("h")
        pipeline.get("a")
        error, value = await pipeline.commit(raise_on_error=False)
        assert isinstance(error, ResponseError)
        assert value == b"1"
        pipeline.set("new", 1)
        pipeline.execute("get")
        with pytest.raises(ResponseError, match="EXECABORT"):
            await pipeline.commit()
        assert redis_server.call("EXISTS", "new") == 0  # all or nothing

    with_store(use, redis_server.url)
