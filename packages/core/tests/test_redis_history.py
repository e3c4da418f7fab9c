"""The history of channels in Redis: what the one script promises, on every server found, in both of its forms."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import waterspout_core
from waterspout_core import BadMessage, Position
from waterspout_core._history import History, Past
from waterspout_core._redis._history import RedisHistory
from waterspout_core._redis._keys import idempotency_key, keys_of
from waterspout_core._redis._publisher import MAX_PAYLOAD
from waterspout_redis import (
    CallTimeout,
    Client,
    ClosedError,
    ConnectionLost,
    OutOfMemoryError,
    PubSubClient,
    PubSubMessage,
    ResponseError,
    WrongTypeError,
)
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually, run

META, LOG = keys_of("news")


@asynccontextmanager
async def history(
    url: str, messages: int = 1000, retention: float = 3600.0, **options: Any
) -> AsyncIterator[RedisHistory]:
    async with Client(url, **options) as client:
        made = RedisHistory(client, History(messages, retention))
        yield made
        await made.aclose()


async def everything(kept: RedisHistory, topic: str = "news") -> list[bytes]:
    past = await kept.read(topic, Position("0", 0))
    return [payload for payload, _ in past.payloads]


def publish(server: RunningServer, *args: Any) -> str:
    """As another program does it."""
    return server.call("FCALL", "waterspout_publish", 1, *args).decode()


class Listener:
    """What comes live on a channel."""

    def __init__(self, link: PubSubClient) -> None:
        self.got: list[bytes] = []
        self._link = link

    async def listen(self) -> None:
        async for batch in self._link.batches():
            self.got += [item.data for item in batch if isinstance(item, PubSubMessage)]


@asynccontextmanager
async def listener(server: RunningServer, channel: str = "news") -> AsyncIterator[Listener]:
    async with PubSubClient(server.url) as link:
        await link.subscribe(channel)
        made = Listener(link)
        task = asyncio.create_task(made.listen())
        yield made
        task.cancel()
        await asyncio.wait((task,))


@pytest.fixture(params=["function", "script"])
def either_server(request: pytest.FixtureRequest, redis_binary: ServerBinary) -> Iterator[RunningServer]:
    """A server that has functions, and one that has none."""
    options = (
        () if request.param == "function" else ("--rename-command", "FCALL", "", "--rename-command", "FUNCTION", "")
    )
    with RunningServer(redis_binary, *options) as server:
        yield server


def test_messages_are_numbered_in_order_kept_and_published(either_server: RunningServer) -> None:
    async def use() -> None:
        async with listener(either_server) as live, history(either_server.url) as kept:
            first, second = await asyncio.gather(kept.publish("news", b"a"), kept.publish("news", b"b"))
            third = await kept.publish("news", b"\xff\x00")
            assert [first.offset, second.offset, third.offset] == [1, 2, 3]
            assert first.epoch == second.epoch == third.epoch
            assert either_server.call("TTL", META) > 7 * 86400
            past = await kept.read("news", first)
            assert (past.epoch, past.top) == third
            assert [payload for payload, _ in past.payloads] == [b"b", b"\xff\x00"]
            assert all(0 <= age < 10 for _, age in past.payloads)
            assert await eventually(lambda: live.got[2:]) == [b"\x1e%s\n\xff\x00" % str(third).encode()]

    run(use())


def test_the_calls_of_one_turn_of_the_loop_are_one_call_of_the_script(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url) as kept:
            await kept.publish("news", b"the server knows the script")
            either_server.call("CONFIG", "RESETSTAT")
            positions = await asyncio.gather(*(kept.publish("news", b"%d" % i) for i in range(100)))
            assert [position.offset for position in positions] == list(range(2, 102))
            stats = either_server.call("INFO", "commandstats").decode()
            assert "cmdstat_fcall:calls=1," in stats or "cmdstat_evalsha:calls=1," in stats

    run(use())


def test_a_new_channel_has_a_position_to_come_back_with(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url) as kept:
            past = await kept.read("news")
            assert past == Past(past.epoch, 0, [])
            assert past.epoch
            assert await kept.publish("news", b"a") == Position(past.epoch, 1)
            assert [payload for payload, _ in (await kept.read("news", past.position)).payloads] == [b"a"]

    run(use())


def test_nothing_is_read_without_a_position_and_all_with_one_of_another_epoch(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url) as kept:
            await asyncio.gather(*(kept.publish("news", b"%d" % i) for i in range(5)))
            assert (await kept.read("news")).payloads == []
            assert await everything(kept) == [b"0", b"1", b"2", b"3", b"4"]
            limited = await kept.read("news", Position("0", 0), limit=2)
            assert [payload for payload, _ in limited.payloads] == [b"3", b"4"]
            beyond = await kept.read("news", Position(limited.epoch, 99))
            assert beyond == Past(limited.epoch, 5, [])

    run(use())


def test_the_tops_of_many_channels_are_asked_in_one_pipeline(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url, decode="utf-8") as kept:
            position = await kept.publish("news", b"a")
            redis_server.call("HSET", keys_of("broken")[0], "a", "b")
            assert await kept.tops(["news", "other", "broken", "news"]) == [position, None, None, position]
            assert await kept.tops([]) == []

    run(use())


# Order


def test_positions_are_without_a_hole_with_four_publishers_at_once(redis_server: RunningServer) -> None:
    async def publish_from(name: str) -> list[Position]:
        async with history(redis_server.url) as kept:
            positions = []
            for turn in range(20):
                positions += await asyncio.gather(
                    *(kept.publish("news", f"{name} {turn * 10 + i}".encode()) for i in range(10))
                )
            return positions

    async def use() -> None:
        async with listener(redis_server) as live, history(redis_server.url) as kept:
            names = ["a", "b", "c", "d"]
            positions = await asyncio.gather(*map(publish_from, names))
            assert sorted(position.offset for each in positions for position in each) == list(range(1, 801))
            payloads = await everything(kept)
            await eventually(lambda: len(live.got) == 800)
            epoch = positions[0][0].epoch
            assert live.got == [b"\x1e%s-%d\n%s" % (epoch.encode(), i, p) for i, p in enumerate(payloads, 1)]
            for name, given in zip(names, positions, strict=True):
                mine = [payload for payload in payloads if payload.startswith(name.encode())]
                assert mine == [b"%s %d" % (name.encode(), i) for i in range(200)]
                assert [payloads[position.offset - 1] for position in given] == mine

    run(use())


def test_f33_many_messages_in_one_millisecond_are_all_kept(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url, messages=5000) as kept:
            positions = await asyncio.gather(*(kept.publish("news", b"%d" % i) for i in range(3000)))
            assert [position.offset for position in positions] == list(range(1, 3001))
            assert await everything(kept) == [b"%d" % i for i in range(3000)]

    run(use())


def test_large_and_small_messages_stay_in_the_order_of_the_calls(redis_server: RunningServer) -> None:
    payloads = [b"a", b"b" * MAX_PAYLOAD, b"c", *[b"%d" % i * 1000 for i in range(1500)], b"d" * 300_000, b"e"]

    async def use() -> None:
        async with history(redis_server.url, messages=5000) as kept:
            answers = [kept.publish("news", payload, "key" if payload == b"c" else None) for payload in payloads]
            positions = await asyncio.gather(*answers)
            assert [position.offset for position in positions] == list(range(1, len(payloads) + 1))
            assert await everything(kept) == payloads

    run(use())


def test_a_message_that_is_too_large_is_refused_and_holds_up_nothing(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url) as kept:
            refused, taken = kept.publish("news", b"x" * (MAX_PAYLOAD + 1)), kept.publish("news", b"y" * MAX_PAYLOAD)
            with pytest.raises(BadMessage, match="1048577 bytes, the limit is 1048576"):
                await refused
            assert (await taken).offset == 1

    run(use())


@pytest.mark.parametrize("topic", ["a{b}c", "{a}", "a", "a}b", "{}a", "{", "}{", "grüße/🌍", "x" * 255])
def test_any_name_has_a_history_of_its_own(redis_server: RunningServer, topic: str) -> None:
    others = ["a{b}", "b", "{a}b}", "{{a}}", "a}", "news"]

    async def use() -> None:
        async with history(redis_server.url) as kept:
            await asyncio.gather(*(kept.publish(other, b"other", "key") for other in others))
            assert (await kept.publish(topic, b"mine", "key")).offset == 1
            assert await everything(kept, topic) == [b"mine"]
            await kept.load()
            assert publish(redis_server, topic, "theirs").endswith("-2")
            assert await everything(kept, topic) == [b"mine", b"theirs"]
            assert publish(redis_server, topic, "twice", "KEY", "key").endswith("-1")

    run(use())


def test_names_with_and_without_braces_never_share_a_key() -> None:
    names = ["a", "{a}", "{{a}}", "a}b", "{a}b}", "a{b}", "{a{b}}", "{}", "{{}}"]
    assert len({keys_of(name) for name in names}) == len(names)
    assert idempotency_key("a", "b c") != idempotency_key("a b", "c")


# Bounds (F61)


def test_f61_no_more_messages_are_kept_than_the_history_has(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url, messages=5) as kept:
            for i in range(0, 600, 60):
                await asyncio.gather(*(kept.publish("news", b"%d" % (i + j)) for j in range(60)))
            assert await everything(kept) == [b"%d" % i for i in range(595, 600)]
            # The stream is cut by whole nodes.
            assert either_server.call("XLEN", LOG) < 5 + 200

    run(use())


def test_f61_no_message_is_kept_for_longer_than_retention(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url, retention=1.0) as kept:
            last = await kept.publish("news", b"a")
            assert await everything(kept) == [b"a"]
            assert 1000 <= either_server.call("PTTL", LOG) <= 1100
            await eventually(lambda: not either_server.call("EXISTS", LOG))
            past = await kept.read("news", Position(last.epoch, 0))
            assert past == Past(last.epoch, 1, [])  # the meta key outlives the stream
            assert either_server.call("PTTL", META) > 6 * 86400 * 1000
            assert await kept.publish("news", b"b") == Position(last.epoch, 2)

    run(use())


def test_f61_retention_holds_in_a_busy_channel_too(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url, messages=1_000_000, retention=1.0) as kept:
            loop = asyncio.get_running_loop()
            published = 0
            first = await kept.publish("news", b"first")
            end = loop.time() + 2.5
            while loop.time() < end:
                await asyncio.gather(*(kept.publish("news", b"x") for _ in range(20)))
                published += 20
            assert redis_server.call("PTTL", LOG) >= 900  # of the last one
            past = await kept.read("news", first)
            assert 0 < len(past.payloads) < published * 0.7
            assert all(age <= 1.0 for _, age in past.payloads)
            assert redis_server.call("XLEN", LOG) < published * 0.7

    run(use())


def test_the_stream_lives_on_while_somebody_publishes(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url, retention=1.0) as kept:
            await kept.publish("news", b"a")
            redis_server.call("PEXPIRE", LOG, 100_000)  # so it is seen when it is renewed
            await kept.publish("news", b"b")
            assert redis_server.call("PTTL", LOG) > 1100

            async with asyncio.timeout(5):
                while redis_server.call("PTTL", LOG) > 1100:
                    await kept.publish("news", b"c")

    run(use())


# Idempotency keys


def test_the_same_key_publishes_once_and_answers_the_first_position(either_server: RunningServer) -> None:
    async def use() -> None:
        async with listener(either_server) as live, history(either_server.url) as kept:
            first = await kept.publish("news", b"a", "k1")
            assert await kept.publish("news", b"again", "k1") == first
            batch = [kept.publish("news", b"%d" % i, key) for i, key in enumerate(["k1", "k2", "k2", "k3", "k1"])]
            assert [position.offset for position in await asyncio.gather(*batch)] == [1, 2, 2, 3, 1]
            assert (await kept.publish("other", b"a", "k1")).offset == 1
            last = await kept.publish("news", b"z")
            assert await everything(kept) == [b"a", b"1", b"3", b"z"]
            await eventually(lambda: b"\nz" in b"".join(live.got))
            assert len(live.got) == last.offset == 4
            assert 0 < either_server.call("TTL", idempotency_key("news", "k1")) <= 300

    run(use())


def test_a_key_is_known_whoever_publishes_it(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url) as here, history(redis_server.url) as there:
            positions = await asyncio.gather(
                *(kept.publish("news", b"%d" % i, f"k{i}") for i in range(50) for kept in (here, there))
            )
            assert positions[::2] == positions[1::2]
            assert sorted(position.offset for position in positions[::2]) == list(range(1, 51))

    run(use())


def test_a_message_with_a_key_whose_answer_is_lost_is_published_once(either_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(either_server.port) as proxy, history(proxy.url) as kept:
            first = await kept.publish("news", b"a", "k0")
            proxy.to_client.faults = Faults(black_hole=True)
            answers = [kept.publish("news", b"%d" % i, f"k{i}") for i in range(1, 4)]
            await eventually(lambda: either_server.call("EXISTS", idempotency_key("news", "k3")))
            behind = kept.publish("news", b"behind", "k4")  # it may be lost with the others
            proxy.reset()
            proxy.heal()
            positions = await asyncio.gather(*answers)
            assert positions == [Position(first.epoch, offset) for offset in (2, 3, 4)]
            assert await behind == Position(first.epoch, 5)
            assert await everything(kept) == [b"a", b"1", b"2", b"3", b"behind"]

    run(use())


def test_without_a_key_the_error_tells_that_it_may_have_been_published(either_server: RunningServer) -> None:
    async def use() -> None:
        async with FaultProxy(either_server.port) as proxy, history(proxy.url) as kept:
            first = await kept.publish("news", b"a")
            proxy.to_client.faults = Faults(black_hole=True)
            answer = kept.publish("news", b"b")
            await eventually(lambda: either_server.call("XLEN", LOG) == first.offset + 1)
            proxy.reset()
            proxy.heal()
            with pytest.raises(ConnectionLost) as lost:
                await answer
            assert lost.value.maybe_executed
            assert await everything(kept) == [b"a", b"b"]

    run(use())


def test_sending_again_ends_after_a_while_and_with_the_client(
    fresh_redis_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waterspout_core._redis._publisher._TRY_AGAIN", 0.3)

    async def use() -> None:
        async with FaultProxy(fresh_redis_server.port) as proxy, history(proxy.url, timeout=0.2) as kept:
            await kept.publish("news", b"a", "k0")
            proxy.to_client.faults = Faults(black_hole=True)
            with pytest.raises(CallTimeout) as lost:
                await kept.publish("news", b"b", "k1")
            assert lost.value.maybe_executed
            await eventually(lambda: not kept._publisher._tasks)
            answer = kept.publish("news", b"c", "k2")
            task = await eventually(lambda: set(kept._publisher._tasks))
            await kept.aclose()
            with pytest.raises(ClosedError) as ended:
                await answer
            assert ended.value.maybe_executed
            assert not task & asyncio.all_tasks()

    run(use())


# What goes wrong


def test_a_server_that_has_forgotten_the_functions_gets_them_again(either_server: RunningServer) -> None:
    flush = ("SCRIPT", "FLUSH")

    async def use() -> None:
        async with history(either_server.url) as kept:
            for turn in range(5):
                await kept.publish("news", b"%d" % (3 * turn))
                await kept.publish("other", b"x")
                either_server.call(*flush)
                if "fcall" in either_server.call("INFO", "commandstats").decode():
                    either_server.call("FUNCTION", "FLUSH")
                await asyncio.gather(
                    kept.publish("news", b"%d" % (3 * turn + 1)),
                    kept.publish("news", b"%d" % (3 * turn + 2), f"key{turn}"),
                    kept.publish("other", b"y"),
                    kept.read("news", Position("0", 0)),
                )
            assert await everything(kept) == [b"%d" % i for i in range(15)]

    run(use())


def test_the_functions_are_brought_for_all_channels_together(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url) as kept:
            either_server.call("CONFIG", "RESETSTAT")
            positions = await asyncio.gather(*(kept.publish(f"channel{i}", b"a") for i in range(300)))
            assert {position.offset for position in positions} == {1}
            stats = either_server.call("INFO", "commandstats").decode()
            # Once more, if a last refusal and the news that they are there come in one read.
            assert 1 <= sum(map(int, re.findall(r"cmdstat_(?:function|script)\|load:calls=(\d+),", stats))) <= 3

    run(use())


def test_a_channel_that_cannot_be_used_is_no_obstacle_to_others(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url) as kept:
            either_server.call("SET", keys_of("broken")[0], "not ours")
            answers = [kept.publish(topic, b"a") for topic in ("before", "broken", "behind", "broken")]
            results = await asyncio.gather(*answers, return_exceptions=True)
            assert [type(result) for result in results] == [Position, ResponseError, Position, ResponseError]
            assert "the meta key of the channel holds something else" in str(results[1])
            with pytest.raises(UnicodeEncodeError):
                kept.publish("\ud800", b"a")
            assert (await kept.publish("before", b"b")).offset == 2

    run(use())


def test_an_acl_without_functions_is_no_obstacle(fresh_redis_server: RunningServer) -> None:
    commands = ["client", "script", "evalsha", "get", "set", "del", "time", "publish", "pexpire"]
    commands += ["xadd", "xdel", "xtrim", "xrevrange"]
    rights = ["~waterspout:*", "&*", "-@all", *(f"+{command}" for command in commands)]
    fresh_redis_server.call("ACL", "SETUSER", "ada", "on", ">secret", *rights)
    url = fresh_redis_server.url.replace("//", "//ada:secret@")

    async def use() -> None:
        async with history(url) as kept:
            await kept.load()  # nothing to be done about it
            await kept.publish("news", b"a")
            assert (await kept.publish("news", b"b", "k")).offset == 2
            assert await everything(kept) == [b"a", b"b"]
        fresh_redis_server.call("ACL", "SETUSER", "ada", "+fcall", "+fcall_ro")  # to call, but not to load
        async with history(url) as kept:
            await kept.load()
            assert (await kept.publish("news", b"c")).offset == 3

    run(use())


def test_after_a_restart_with_its_data_a_channel_counts_on(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(fresh_redis_server.url) as kept:
            first = await kept.publish("news", b"a")
            fresh_redis_server.call("SAVE")
            fresh_redis_server.kill()
            fresh_redis_server.start()
            assert await kept.publish("news", b"b", "k") == Position(first.epoch, 2)
            assert await everything(kept) == [b"a", b"b"]

    run(use())


def test_after_a_restart_without_its_data_a_channel_has_a_new_epoch(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(fresh_redis_server.url) as kept:
            first = await kept.publish("news", b"a")
            fresh_redis_server.kill()
            fresh_redis_server.start()
            again = await kept.publish("news", b"b", "k")
            assert again.offset == 1
            assert again.epoch != first.epoch
            assert await everything(kept) == [b"b"]

    run(use())


def test_a_channel_whose_meta_key_was_evicted_begins_anew(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url) as kept:
            first = await kept.publish("news", b"a")
            redis_server.call("DEL", META)
            again = await kept.publish("news", b"b")
            assert (again.offset, again.epoch == first.epoch) == (1, False)
            assert await everything(kept) == [b"b"]
            assert redis_server.call("XLEN", LOG) == 1
            redis_server.call("DEL", META)
            assert (await kept.read("news", again)).payloads == []
            assert not redis_server.call("EXISTS", LOG)

    run(use())


def test_a_channel_whose_stream_was_evicted_counts_on_and_shows_the_hole(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url) as kept:
            first, *_ = await asyncio.gather(*(kept.publish("news", b"%d" % i) for i in range(3)))
            redis_server.call("DEL", LOG)
            assert (await kept.read("news", first)) == Past(first.epoch, 3, [])
            assert await kept.publish("news", b"3") == Position(first.epoch, 4)
            assert [payload for payload, _ in (await kept.read("news", first)).payloads] == [b"3"]

    run(use())


def test_what_is_read_ends_where_an_entry_is_missing(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url) as kept:
            await asyncio.gather(*(kept.publish("news", b"%d" % i) for i in range(5)))
            entries = redis_server.call("XRANGE", LOG, "-", "+")
            redis_server.call("XDEL", LOG, entries[2][0].decode())
            assert await everything(kept) == [b"3", b"4"]

    run(use())


@pytest.mark.parametrize("key", [META, LOG])
def test_a_key_of_a_wrong_type_is_an_error_and_nothing_is_half_done(either_server: RunningServer, key: str) -> None:
    async def use() -> None:
        async with listener(either_server) as live, history(either_server.url) as kept:
            first = await kept.publish("news", b"a")
            saved = either_server.call("GET", META)
            either_server.call("DEL", key)
            either_server.call("HSET", key, "not", "ours")
            with pytest.raises(WrongTypeError):
                await asyncio.gather(kept.publish("news", b"b"), kept.publish("news", b"c"))
            either_server.call("DEL", key)
            either_server.call("SET", META, saved)
            assert await kept.publish("news", b"d") == Position(first.epoch, 2)
            await eventually(lambda: live.got[1:])
            assert [payload.partition(b"\n")[2] for payload in live.got] == [b"a", b"d"]

    run(use())


def test_an_idempotency_key_of_a_wrong_type_leaves_nothing_half_done(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url) as kept:
            redis_server.call("HSET", idempotency_key("news", "k2"), "not", "ours")
            answers = [kept.publish("news", b"a", "k1"), kept.publish("news", b"b", "k2")]
            for answer in answers:
                with pytest.raises(WrongTypeError):
                    await answer
            assert redis_server.call("EXISTS", LOG, META, idempotency_key("news", "k1")) == 0

    run(use())


def test_a_server_out_of_memory_refuses_and_nothing_is_half_done(fresh_redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(fresh_redis_server.url) as kept:
            first = await kept.publish("news", b"a")
            fresh_redis_server.call("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(OutOfMemoryError):
                await kept.publish("news", b"b")
            assert await everything(kept) == [b"a"]  # reading goes on
            fresh_redis_server.call("CONFIG", "SET", "maxmemory", "0")
            assert await kept.publish("news", b"c") == Position(first.epoch, 2)

    run(use())


@pytest.mark.parametrize("forbidden", ["-publish", "-set", "-xadd"])
def test_what_the_acl_forbids_leaves_nothing_half_done(fresh_redis_server: RunningServer, forbidden: str) -> None:
    async def use() -> None:
        async with history(fresh_redis_server.url) as kept:
            fresh_redis_server.call("ACL", "SETUSER", "ada", "on", ">s", "~*", "&*", "+@all", forbidden)
            async with history(fresh_redis_server.url.replace("//", "//ada:s@")) as other:
                with pytest.raises(ResponseError):
                    await asyncio.gather(other.publish("news", b"x"), other.publish("news", b"y"))
                assert fresh_redis_server.call("EXISTS", META) == 0
                assert fresh_redis_server.call("XLEN", LOG) == 0
                first = await kept.publish("news", b"a")
                with pytest.raises(ResponseError):
                    await other.publish("news", b"x", "k")
                assert await kept.tops(["news"]) == [first]
                assert await everything(kept) == [b"a"]
                assert await kept.publish("news", b"b", "k") == Position(first.epoch, 2)

    run(use())


# A failover that lost the tail


def test_f37_numbers_of_lost_messages_are_not_given_to_others(either_server: RunningServer) -> None:
    async def use() -> None:
        async with history(either_server.url) as kept:
            top = await kept.publish("news", b"a")
            await kept.renew("news", top)  # nothing is lost
            await kept.renew("news", Position("0" * 10, 99))  # of another epoch
            assert await kept.tops(["news"]) == [top]
            seen = Position(top.epoch, 3)
            await asyncio.gather(*(kept.renew("news", seen) for _ in range(3)))
            renewed = await kept.read("news", seen)
            assert (renewed.top, renewed.payloads) == (0, [])
            assert renewed.epoch != top.epoch
            await kept.renew("news", seen)  # by somebody who is late
            assert await kept.publish("news", b"b") == Position(renewed.epoch, 1)
            assert await everything(kept) == [b"b"]

    run(use())


_PUBLISHER = """
import asyncio, sys
from waterspout_core._history import History
from waterspout_core._redis._history import RedisHistory
from waterspout_redis import Client

async def main():
    async with Client(sys.argv[1]) as client:
        kept = RedisHistory(client, History(1_000_000))
        batch = 0
        while True:
            batch += 1
            await asyncio.gather(*(kept.publish("news", b"%d %d" % (batch, i)) for i in range(100)))
            print(batch, flush=True)

asyncio.run(main())
"""


def test_f37_of_a_publisher_that_is_killed_each_batch_is_there_whole_or_not_at_all(
    fresh_redis_server: RunningServer,
) -> None:
    for batches in (1, 7):
        fresh_redis_server.call("FLUSHALL")
        with subprocess.Popen(
            [sys.executable, "-c", _PUBLISHER, fresh_redis_server.url], stdout=subprocess.PIPE, text=True
        ) as publisher:
            assert publisher.stdout is not None
            while int(publisher.stdout.readline()) < batches:
                pass
            publisher.send_signal(signal.SIGKILL)
            publisher.wait()
            confirmed = int((publisher.stdout.read().splitlines() or [batches])[-1])

        async def use() -> tuple[Past, list[bytes]]:
            async with history(fresh_redis_server.url, messages=1_000_000) as kept:
                await kept.publish("news", b"last")
                past = await kept.read("news", Position("0", 0))
                return past, [payload for payload, _ in past.payloads]

        past, payloads = run(use())
        whole, rest = divmod(len(payloads) - 1, 100)
        assert rest == 0
        assert whole >= int(confirmed)
        assert payloads == [b"%d %d" % (n, i) for n in range(1, whole + 1) for i in range(100)] + [b"last"]
        assert past.top == len(payloads)


# Other programs


def test_another_program_publishes_with_history_by_fcall(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with listener(redis_server) as live, history(redis_server.url) as kept:
            redis_server.call("FUNCTION", "FLUSH")
            await kept.load()
            first = publish(redis_server, "news", "Hello")
            assert first == str((await kept.read("news")).position)
            publish(redis_server, "news", '{"a": [1, -2.5e3, "x\\"nan"]}', "json")
            publish(redis_server, "news", "[]", "EVENT", "goal", "JSON")
            publish(redis_server, "news", 'a "quoted" grüße', "event", "goal")
            publish(redis_server, "news", "\x1elike an envelope")
            publish(redis_server, "news", b"\xff\xfe".decode("latin-1").encode("latin-1"))
            payloads = await everything(kept)
            assert payloads == [
                b"Hello",
                b'\x1e{"data":{"a": [1, -2.5e3, "x\\"nan"]}}\n',
                b'\x1e{"event":"goal","data":[]}\n',
                '\x1e{"event":"goal","data":"a \\"quoted\\" grüße"}\n'.encode(),
                b'\x1e{"data":"\\u001elike an envelope"}\n',
                b"\xff\xfe",
            ]
            await eventually(lambda: len(live.got) == 6)
            assert live.got[0] == b"\x1e%s\nHello" % first.encode()

    run(use())


def test_another_program_may_give_an_idempotency_key_and_bounds(redis_server: RunningServer) -> None:
    async def use() -> None:
        async with history(redis_server.url, messages=7, retention=60.0) as kept:
            await kept.load()
            assert publish(redis_server, "other", "a").endswith("-1")
            assert redis_server.call("GET", keys_of("other")[0]).endswith(b" 1000 3600000")
            await kept.publish("news", b"a")
            assert publish(redis_server, "news", "b", "KEY", "k") == publish(redis_server, "news", "c", "KEY", "k")
            assert redis_server.call("GET", META).endswith(b" 7 60000")  # as they were
            publish(redis_server, "news", "d", "HISTORY", "20", "RETENTION", "1.5")
            assert redis_server.call("GET", META).endswith(b" 20 1500")
            assert 1500 <= redis_server.call("PTTL", LOG) <= 1700
            assert (await kept.publish("news", b"e", "k")).offset == 2

    run(use())


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ([], "wrong number of arguments"),
        (["x", "COLOUR", "red"], "unknown option 'COLOUR'; there are JSON, EVENT name, KEY key"),
        (["x", "KEY"], "KEY needs a value"),
        (["x", "KEY", ""], "an idempotency key is 1 to 255 bytes"),
        (["x", "EVENT", "a\nb"], "an event name is 1 to 255 bytes of UTF-8 without control characters"),
        (["x", "EVENT", "gap"], "'gap' is reserved"),
        (["x", "HISTORY", "0"], "HISTORY is a number above 0"),
        (["x", "HISTORY", "many"], "HISTORY is a number above 0"),
        (["x", "RETENTION", "-1"], "RETENTION is a number above 0"),
        (["x", "RETENTION", "1e999"], "RETENTION is a number above 0"),
        (["{", "JSON"], "not JSON"),
        (["[0x1f]", "JSON"], "not JSON"),
        (["[nan]", "JSON"], "not JSON"),
        (["[01]", "JSON"], "not JSON"),
        ([b'"\xff"', "JSON"], "not JSON"),
        ([b"\xed\xa0\x80", "EVENT", "goal"], "must be text in UTF-8"),
        (["x" * (MAX_PAYLOAD + 1)], "a message of 1048577 bytes, the limit is 1048576"),
    ],
)
def test_another_program_is_told_what_is_wrong(redis_server: RunningServer, args: list[Any], error: str) -> None:
    async def load() -> None:
        async with history(redis_server.url) as kept:
            await kept.load()

    run(load())
    with pytest.raises(RuntimeError, match=r"^ERR ") as refused:
        publish(redis_server, "news", *args)
    assert error in str(refused.value)
    assert "user_function" not in str(refused.value)
    assert redis_server.call("DBSIZE") == 0


@pytest.mark.parametrize("name", ["", "a b", "a\nb", b"\xff", "x" * 256])
def test_another_program_is_told_what_names_a_channel_can_have(redis_server: RunningServer, name: Any) -> None:
    async def load() -> None:
        async with history(redis_server.url) as kept:
            await kept.load()

    run(load())
    with pytest.raises(RuntimeError, match="the name of a channel"):
        publish(redis_server, name, "x")


def test_newer_functions_are_left_as_they_are(redis_server: RunningServer) -> None:
    newer = """#!lua name=waterspout
redis.register_function({
    function_name = 'waterspout_version', callback = function() return 99 end, flags = { 'no-writes' }
})"""
    redis_server.call("FUNCTION", "LOAD", "REPLACE", newer)

    async def use() -> None:
        async with history(redis_server.url) as kept:
            await kept.load()
            assert redis_server.call("FCALL", "waterspout_version", 0) == 99
            older = newer.replace("99", "0")
            redis_server.call("FUNCTION", "LOAD", "REPLACE", older)
            await kept.load()
            assert publish(redis_server, "news", "x").endswith("-1")

    run(use())


def test_in_a_cluster_all_keys_of_a_channel_are_in_the_slot_of_its_name(redis_binary: ServerBinary) -> None:
    with RunningServer(redis_binary, "--cluster-enabled", "yes") as server:
        server.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def use() -> None:
            await eventually(lambda: b"cluster_state:ok" in server.call("CLUSTER", "INFO"))
            async with history(server.url) as kept:
                await kept.load()
                for topic in ("news", "a{b}c", "{", "{user1}.news"):
                    assert (await kept.publish(topic, b"a", "k")).offset == 1
                    assert publish(server, topic, "b", "KEY", "k2").endswith("-2")
                    assert await everything(kept, topic) == [b"a", b"b"]
                assert (await kept.publish("a}b", b"a", "k")).offset == 1

        run(use())


def test_it_can_be_used_in_one_loop_after_the_other(redis_server: RunningServer) -> None:
    client = Client(redis_server.url)
    kept = RedisHistory(client, History())

    async def use(*, close: bool) -> int:
        lost = kept.publish("news", b"nobody waits for this one") if not close else None
        answer = await kept.publish("other", b"a")
        if close:
            await client.aclose()
        else:
            client.disconnect()
        if lost is not None and not lost.done():
            lost.cancel()
        return answer.offset

    assert run(use(close=False)) == 1
    assert run(use(close=True)) == 2


def test_other_programs_can_bring_the_functions_themselves(redis_server: RunningServer) -> None:
    library = Path(waterspout_core.__path__[0]) / "_redis" / "waterspout.lua"
    redis_server.call("FUNCTION", "FLUSH")
    assert redis_server.call("FUNCTION", "LOAD", "REPLACE", library.read_bytes()) == b"waterspout"
    assert redis_server.call("FCALL", "waterspout_publish", 1, "news", "Hello").endswith(b"-1")
