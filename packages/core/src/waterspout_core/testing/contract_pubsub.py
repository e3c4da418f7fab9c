"""What a broker's `PubSub` owes to its clients: the interface of pulsar's, as Redis behaves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from .._protocols import JSONProtocol
from .._pubsub import PubSub
from .contract import BrokerContract, Listener, eventually

GLOBS = [
    # pattern, what it matches, what it does not match
    ("", [], ["a"]),
    ("*", ["", "a", "a.b/c"], []),
    ("h?llo", ["hello", "h.llo"], ["hllo", "heello"]),
    ("h*llo", ["hllo", "heeello"], ["hll"]),
    ("h[ae]llo", ["hallo", "hello"], ["hillo"]),
    ("h[^e]llo", ["hallo"], ["hello"]),
    ("h[a-c]llo", ["hallo", "hbllo"], ["hdllo"]),
    ("h[c-a]llo", ["hbllo"], ["hdllo"]),
    (r"h\*llo", ["h*llo"], ["hello"]),
    (r"h[\]]llo", ["h]llo"], ["hello"]),
    ("a.b+(c)|$", ["a.b+(c)|$"], ["axbb(c)|$"]),
    ("??", ["é", "ab"], ["a", "éa"]),  # bytes, not letters
    ("A", ["A"], ["a"]),
]


class PubSubContract(BrokerContract):
    """Clients, subscriptions, and what is published."""

    def test_d4_every_client_gets_what_is_subscribed_in_order(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                clients, other = [Listener(), Listener()], Listener()
                for client in clients:
                    here.add_client(client)
                    here.add_client(client)  # twice is once
                there.add_client(other)
                a, b, c = self.name("a"), self.name("b"), self.name("c")
                await asyncio.gather(here.subscribe(a, b), there.subscribe(b, c))
                for number in range(100):
                    await there.publish((a, b, c)[number % 3], str(number))
                everything = [((a, b, c)[number % 3], str(number).encode()) for number in range(100)]
                for client in clients:
                    assert await client.until(67) == [pair for pair in everything if pair[0] != c]
                assert await other.until(66) == [pair for pair in everything if pair[0] != a]

        self.run(use())

    def test_d4_a_client_that_is_removed_gets_nothing_more(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                gone, stays, channel = Listener(), Listener(), self.name()
                for client in (gone, stays):
                    pubsub.add_client(client)
                assert gone in pubsub
                await pubsub.subscribe(channel)
                await pubsub.publish(channel, "a")
                await asyncio.gather(gone.until(1), stays.until(1))
                pubsub.remove_client(gone)
                pubsub.remove_client(gone)
                assert gone not in pubsub
                assert stays in pubsub
                await pubsub.publish(channel, "b")
                assert await stays.until(2) == [(channel, b"a"), (channel, b"b")]
                assert gone.got == [(channel, b"a")]

        self.run(use())

    @pytest.mark.parametrize("error", [RuntimeError, OSError])
    def test_d5_a_client_that_fails_is_removed_and_harms_no_other(
        self, error: type[Exception], caplog: pytest.LogCaptureFixture
    ) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                calls, client, channel = [], Listener(), self.name()

                def failing(channel: str, message: Any) -> None:
                    calls.append(message)
                    raise error("broken on purpose")

                pubsub.add_client(failing)
                pubsub.add_client(client)
                await pubsub.subscribe(channel)
                with caplog.at_level(logging.ERROR):
                    await pubsub.publish(channel, "a")
                    await pubsub.publish(channel, "b")
                    assert await client.until(2) == [(channel, b"a"), (channel, b"b")]
                assert calls == [b"a"]
                assert failing not in pubsub
                # Who was writing to somebody that has gone is no news.
                assert ("broken on purpose" in caplog.text) is (error is not OSError)

        self.run(use())

    def test_d6_a_protocol_encodes_and_decodes_and_what_it_cannot_decode_is_dropped(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def use() -> None:
            async with self.open_pubsub(protocol=JSONProtocol()) as pubsub, self.open_pubsub() as raw:
                decoded, payloads, channel = Listener(), Listener(), self.name()
                pubsub.add_client(decoded)
                raw.add_client(payloads)
                await asyncio.gather(pubsub.subscribe(channel), raw.subscribe(channel))
                assert isinstance(pubsub.protocol, JSONProtocol)
                assert raw.protocol is None
                for message in ({"goals": 1}, 0, "", None, False):  # F39
                    await pubsub.publish(channel, message)
                with caplog.at_level(logging.WARNING):
                    await raw.publish(channel, b"{not JSON")
                    await pubsub.publish(channel, "end")
                    got = await decoded.until(6)
                assert [repr(message) for _, message in got] == ["{'goals': 1}", "0", "''", "None", "False", "'end'"]
                assert "cannot be decoded" in caplog.text
                texts = [b'{"goals":1}', b"0", b'""', b"null", b"false", b"{not JSON", b'"end"']
                assert await payloads.until(7) == [(channel, text) for text in texts]

        self.run(use())

    def test_without_a_protocol_bytes_are_bytes(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                client, channel = Listener(), self.name()
                pubsub.add_client(client)
                await pubsub.subscribe(channel)
                payloads: list[Any] = [
                    "žluťoučký",
                    b"\x00\xff\r\n",
                    b"",
                    bytearray(b"x"),
                    memoryview(b"y"),
                    b"z" * 100_000,
                ]
                for payload in payloads:
                    await pubsub.publish(channel, payload)
                expected = [payload.encode() if isinstance(payload, str) else bytes(payload) for payload in payloads]
                assert [payload for _, payload in await client.until(6)] == expected

        self.run(use())

    def test_d7_f31_who_has_awaited_subscribe_is_subscribed(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                client = Listener()
                here.add_client(client)
                for number in range(1, 20):
                    channel = self.name()
                    await here.subscribe(channel)
                    assert here.health.state == "connected"
                    assert await there.publish(channel, "x") == 1
                    await here.psubscribe(channel + ".*")
                    assert await there.publish(channel + ".x", "x") == 1
                    assert (await client.until(2 * number))[-2:] == [(channel, b"x"), (channel + ".x", b"x")]

        self.run(use())

    def test_d8_unsubscribing_needs_no_awaiting_and_without_names_means_all(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                client, prefix = Listener(), self.name()
                pubsub.add_client(client)
                names = [f"{prefix}.{letter}" for letter in "abc"]
                await pubsub.subscribe(*names)
                await pubsub.psubscribe(prefix + ".[ab]", prefix + ".c")
                assert [await pubsub.publish(name, "1") for name in names] == [2, 2, 2]
                pubsub.unsubscribe(names[0], "unknown")
                pubsub.punsubscribe(prefix + ".c", "unknown")
                await asyncio.gather(pubsub.unsubscribe(), pubsub.subscribe(names[2]))
                await eventually(lambda: self._receive(pubsub, names, [1, 1, 1]))
                pubsub.punsubscribe()
                await eventually(lambda: self._receive(pubsub, names, [0, 0, 1]))
                await pubsub.unsubscribe()
                await eventually(lambda: self._receive(pubsub, names, [0, 0, 0]))
                # F40: it goes on after the last one.
                await pubsub.subscribe(names[1])
                assert await pubsub.publish(names[1], "again") == 1
                while (names[1], b"again") not in client.got:
                    await client.until(len(client.got) + 1)

        self.run(use())

    async def _receive(self, pubsub: PubSub, names: list[str], receivers: list[int]) -> bool:
        return [await pubsub.publish(name, "?") for name in names] == receivers

    def test_d9_a_pattern_brings_the_name_of_the_channel_once_for_each_match(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                client, prefix = Listener(), self.name()
                pubsub.add_client(client)
                await pubsub.psubscribe(prefix + ".*", prefix + "*.eu")
                await pubsub.subscribe(prefix + ".eu")
                assert await pubsub.publish(prefix + ".eu", "x") == 3
                assert await pubsub.publish(prefix + ".us", "y") == 1
                assert await client.until(4) == [(prefix + ".eu", b"x")] * 3 + [(prefix + ".us", b"y")]

        self.run(use())

    def test_globs_match_as_in_redis(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                for pattern, matching, others in GLOBS:
                    prefix = self.name() + ":"
                    await pubsub.psubscribe(prefix + pattern)
                    names = [prefix + name for name in matching + others]
                    receivers = [await pubsub.publish(name, "x") for name in names]
                    assert receivers == [1] * len(matching) + [0] * len(others), pattern
                    await pubsub.subscribe(*names)
                    assert set(await pubsub.channels(prefix + pattern)) == set(names[: len(matching)]), pattern

        self.run(use())

    def test_d10_publish_tells_how_many_connections_receive_it(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as a, self.open_pubsub() as b, self.open_pubsub() as c:
                channel = self.name()
                assert await a.publish(channel, "x") == 0
                for number, pubsub in enumerate((a, b, c), 1):
                    pubsub.add_client(Listener())
                    pubsub.add_client(Listener())
                    await pubsub.subscribe(channel)
                    assert await a.publish(channel, "x") == number

        self.run(use())

    def test_d10_an_event_is_published_with_its_name_and_its_data(self) -> None:
        async def use() -> None:
            async with self.open_pubsub(protocol=JSONProtocol()) as pubsub, self.open_pubsub() as raw:
                client, channel = Listener(), self.name()
                pubsub.add_client(client)
                await pubsub.subscribe(channel)
                for data in ({"goals": 1}, 0, "", None):
                    assert await pubsub.publish_event(channel, "goal", data) == 1
                    envelope = {"event": "goal", "channel": channel, "data": data}
                    assert (await client.until(1)).pop() == (channel, envelope)
                with pytest.raises(ValueError, match="protocol"):
                    await raw.publish_event(channel, "goal", "x")

        self.run(use())

    def test_d11_channels_and_patterns_are_counted_for_the_whole_broker(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                prefix = self.name()
                a, b, c = (f"{prefix}.{letter}" for letter in "abc")
                await asyncio.gather(here.subscribe(a, b), there.subscribe(b))
                assert await there.count(a, b, c) == {a: 1, b: 2, c: 0}
                assert await there.count() == {}
                assert sorted(await there.channels(prefix + ".*")) == [a, b]
                assert await there.channels(prefix + ".[bc]") == [b]
                assert {a, b} <= set(await there.channels())

                async def two_more() -> bool:  # than before; other tests' last ones may be on their way out
                    await here.punsubscribe()
                    before = await there.count_patterns()
                    await here.psubscribe(prefix + ".1*", prefix + ".2*")
                    return await there.count_patterns() == before + 2

                await eventually(two_more)

        self.run(use())

    def test_d12_a_closed_one_gives_up_its_subscriptions_and_calls_nobody(self) -> None:
        async def use() -> None:
            before = asyncio.all_tasks()
            async with self.open_pubsub() as there:
                here, client, channel = self.open_pubsub(), Listener(), self.name()
                here.add_client(client)
                await here.subscribe(channel)
                await here.psubscribe(channel + "*")
                assert await there.publish(channel, "a") == 2
                await client.until(2)
                await here.close()

                async def gone() -> bool:
                    return await there.publish(channel, "b") == 0

                await eventually(gone)
                assert client.got == [(channel, b"a")] * 2
                await here.aclose()  # twice is once
            assert asyncio.all_tasks() == before

        self.run(use())

    def test_a_client_may_publish_and_subscribe_while_it_is_told(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                first, second, listener = self.name(), self.name(), Listener()
                pending = []

                def client(channel: str, message: Any) -> None:
                    if channel == first:
                        pending.append(pubsub.publish(second, message + b"!"))

                pubsub.add_client(client)
                pubsub.add_client(listener)
                await pubsub.subscribe(first, second)
                for letter in "abc":
                    await pubsub.publish(first, letter)
                got = await listener.until(6)
                for channel, end in ((first, b""), (second, b"!")):
                    assert [text for name, text in got if name == channel] == [
                        letter + end for letter in (b"a", b"b", b"c")
                    ]
                assert await asyncio.gather(*pending) == [1, 1, 1]

        self.run(use())

    def test_thousands_of_channels_are_subscribed_at_once(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as pubsub:
                client, prefix = Listener(), self.name()
                pubsub.add_client(client)
                names = [f"{prefix}.{number}" for number in range(5000)]
                await asyncio.gather(*[pubsub.subscribe(name) for name in names])
                assert len(await pubsub.channels(prefix + ".*")) == 5000
                assert await asyncio.gather(*[pubsub.publish(name, "x") for name in names]) == [1] * 5000
                assert await client.until(5000) == [(name, b"x") for name in names]
                pubsub.unsubscribe(*names[1:])
                await pubsub.unsubscribe()
                assert await pubsub.channels(prefix + ".*") == []

        self.run(use())
