"""What a broker's leases owe to the locks that stand on them."""

from __future__ import annotations

import asyncio
import time

from .contract import BrokerContract, eventually

LONG = 60.0
SHORT = 0.2


class LeaseContract(BrokerContract):
    """A name is one token's at a time, for a while, and then that of whoever has waited longest."""

    def test_a_lease_is_one_tokens_until_it_is_given_back(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                name = self.name()
                assert await here.leases.claim(name, "a", LONG)
                assert not await there.leases.claim(name, "b", LONG)
                assert not await there.leases.renew(name, "b", LONG)
                assert not await there.leases.release(name, "b")
                assert await there.leases.claim(self.name(), "b", LONG)
                assert await here.leases.renew(name, "a", LONG)
                assert await here.leases.release(name, "a")
                assert not await here.leases.release(name, "a")
                assert not await here.leases.renew(name, "a", LONG)
                assert await there.leases.claim(name, "b", LONG)

        self.run(use())

    def test_of_many_who_claim_at_once_one_has_it(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                name = self.name()
                claims = [(here, there)[number % 2].leases.claim(name, str(number), LONG) for number in range(100)]
                assert sum(await asyncio.gather(*claims)) == 1

        self.run(use())

    def test_a_lease_ends_by_itself_and_not_before(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                name = self.name()
                begun = time.monotonic()
                assert await here.leases.claim(name, "a", SHORT)
                await eventually(lambda: there.leases.claim(name, "b", LONG))
                # The broker's clock counts in milliseconds.
                assert time.monotonic() - begun >= SHORT - 0.002
                assert not await here.leases.renew(name, "a", LONG)
                assert not await here.leases.release(name, "a")

        self.run(use())

    def test_renewing_or_claiming_once_more_prolongs_it(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                for prolong in (here.leases.renew, here.leases.claim):
                    name, other = self.name(), self.name()
                    await here.leases.claim(name, "a", SHORT)
                    assert await prolong(name, "a", LONG)
                    await here.leases.claim(other, "a", SHORT)  # begins later
                    await eventually(lambda other=other: there.leases.claim(other, "b", LONG))  # type: ignore[misc]
                    assert not await there.leases.claim(name, "b", LONG)
                    assert await here.leases.release(name, "a")

        self.run(use())

    def test_who_waits_gets_it_in_order_of_arrival(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                name = self.name()
                await here.leases.claim(name, "a", LONG)
                for token in ("b", "c"):
                    assert not await there.leases.claim(name, token, LONG, wait=LONG)
                await here.leases.release(name, "a")
                # The one that has just had it does not have it again, nor does who comes by.
                assert not await here.leases.claim(name, "a", LONG, wait=LONG)
                assert not await here.leases.claim(name, "d", LONG)
                for last, token in (("", "b"), ("b", "c"), ("c", "a")):
                    await here.leases.release(name, last)
                    for other in {"a", "b", "c"} - {last, token}:
                        assert not await here.leases.claim(name, other, LONG)  # without giving up its place
                    assert await there.leases.claim(name, token, LONG, wait=LONG)

        self.run(use())

    def test_who_does_not_ask_again_in_time_waits_no_more(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                name = self.name()
                await here.leases.claim(name, "a", LONG)
                assert not await there.leases.claim(name, "gone", LONG, wait=SHORT)
                assert not await there.leases.claim(name, "b", LONG, wait=LONG)
                await here.leases.release(name, "a")
                begun = time.monotonic()
                await eventually(lambda: there.leases.claim(name, "b", LONG, wait=LONG))
                assert time.monotonic() - begun < SHORT + 1

        self.run(use())

    def test_a_place_in_line_can_be_given_up(self) -> None:
        async def use() -> None:
            async with self.open_pubsub() as here, self.open_pubsub() as there:
                name = self.name()
                await here.leases.claim(name, "a", LONG)
                assert not await there.leases.claim(name, "b", LONG, wait=LONG)
                assert not await there.leases.release(name, "b")
                await here.leases.release(name, "a")
                assert await here.leases.claim(name, "c", LONG)

        self.run(use())
