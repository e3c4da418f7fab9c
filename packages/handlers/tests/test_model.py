"""Random lives: outlets with sockets that take little follow stores, stall, go and come, and the ledger is right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
from pathlib import Path
from typing import Any, Final

import pytest
from tornado.iostream import IOStream, SSLIOStream

from waterspout_core import BaseStore, Gap, Message, Position, QueueStore
from waterspout_core.testing import Account, Ledger
from waterspout_handlers import Connections, Outlet
from waterspout_handlers._formats import JSON_LINES

DEADLINE: Final = 60.0
CERTIFICATE: Final = Path(__file__).parent / "localhost.pem"
STEPS: Final = 500
LARGE: Final = 20_000
"""More characters than a socket of ours takes at once."""


class Parting(Outlet):
    """One that does something when it is closed, as the `on_close` of a handler may."""

    __slots__ = ("world",)

    world: World

    def left(self) -> None:
        self.world.go_wild()


class Client:
    """The other end of an outlet: what it reads it books. A mark tells it from where on a store is read, or is not."""

    def __init__(self, world: World, number: int, outlet: Parting, sock: socket.socket) -> None:
        self.world = world
        self.number = number
        self.outlet = outlet
        self.sock = sock
        self.marks: dict[int, tuple[str, Account | None]] = {}  # that are on their way
        self.stalled = False
        self._marked = 0
        self._booked: list[Account] = []
        self._accounts: dict[str, Account] = {}  # of what is read here
        self._begun = b""

    def follow(self, store: BaseStore, back: int) -> None:
        if self.outlet.closed or store in self.outlet.stores:
            return
        cursor = max(store.log.top - back, store.log.start - 1)
        name = f"{self.number}, for the {self._marked}th time"
        self._booked.append(self.world.ledger.reader(store.channel, name, store.log.position_at(cursor)))
        self._mark(store, self._booked[-1])
        self.outlet.follow(store, cursor)

    def unfollow(self, store: BaseStore) -> None:
        if not self.outlet.closed and store in self.outlet.stores:
            self._mark(store, None)
            self.outlet.unfollow(store)

    def read(self, most: int) -> bool:
        """Whether there was anything."""
        try:
            piece = self.sock.recv(most)
        except OSError:  # nothing yet, or its end
            return False
        *lines, self._begun = (self._begun + piece).split(b"\n")
        for line in lines:
            if line:
                self._take(json.loads(line))
        return bool(piece)

    def leave(self, how: str) -> None:
        for account in self._booked:
            account.leave()
        if how == "vanish":
            self.sock.close()
        elif how == "break":
            self.outlet._stream.close()
        else:
            getattr(self.outlet, how)()

    def _mark(self, store: BaseStore, account: Account | None) -> None:
        self._marked += 1
        self.marks[self._marked] = store.channel, account
        self.outlet.say(b'{"mark":%d}\n' % self._marked)

    def _take(self, members: dict[str, Any]) -> None:
        if "mark" in members:
            channel, account = self.marks.pop(members["mark"])
            if account is None:
                self._accounts.pop(channel).leave()
            else:
                assert channel not in self._accounts
                self._accounts[channel] = account
            return
        channel, data = members["channel"], members["data"]
        places = self.world.places(members["id"])
        self._accounts[channel].got(
            Gap(data["missed"]) if members.get("event") == "gap" else Message(data), places[channel]
        )
        # Of the other channels, too, the id says what was read here so far: no more, and no less.
        assert places == {channel: account._position for channel, account in self._accounts.items()}


class World:
    """All clients, and the stores there are."""

    def __init__(self, seed: int, *, period: float, tls: bool) -> None:
        self.random = random.Random(seed)
        self.connections = Connections(heartbeat=0.05)
        self.ledger = Ledger()
        self.clients: list[Client] = []
        self.gone: list[Client] = []
        self.calm = False
        self.stores = [QueueStore(max_messages=bound) for bound in (3, 10, 50, 1000)]
        for number, store in enumerate(self.stores):
            store.log.channel = f"c{number}"
        self._channels = {store.log.epoch: store.channel for store in self.stores}
        self._period = period
        self._depth = 0
        self._tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(CERTIFICATE)
            self._tls = context, ssl.create_default_context(cafile=str(CERTIFICATE))

    def places(self, id: str) -> dict[str, Position]:
        """What is in an id, by channel."""
        tokens = (token.split("-") for token in id.split(","))
        return {self._channels[epoch]: Position(epoch, int(offset)) for epoch, offset in tokens}

    async def connect(self) -> None:
        theirs, ours = socket.socketpair()
        for sock in theirs, ours:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
            sock.setblocking(False)
        if self._tls is None:
            stream = IOStream(ours)
        else:
            server, client = self._tls
            stream = SSLIOStream(
                server.wrap_socket(ours, server_side=True, do_handshake_on_connect=False), ssl_options=server
            )
            theirs = client.wrap_socket(theirs, server_hostname="localhost", do_handshake_on_connect=False)
            shaken = asyncio.ensure_future(stream.wait_for_handshake())
            while not shaken.done():
                with contextlib.suppress(ssl.SSLWantReadError):
                    theirs.do_handshake()
                await asyncio.sleep(0)
        outlet = Parting(stream, JSON_LINES[False], self.connections, period=self._period)
        outlet.world = self
        outlet.open({})
        self.clients.append(Client(self, len(self.clients) + len(self.gone), outlet, theirs))

    def submit(self, store: BaseStore, characters: int) -> None:
        message = Message(f"{self.random.random()}{'x' * characters}")
        sent = self.ledger.published(store.channel, message)
        sent.position = store.submit(message.data).position

    def send_away(self, *ways: str) -> Client:
        client = self.clients.pop(self.random.randrange(len(self.clients)))
        self.gone.append(client)
        client.leave(self.random.choice(ways))
        return client

    async def step(self) -> None:
        """Something happens."""
        choose, what = self.random.choice, self.random.random()
        if (what < 0.03 and len(self.clients) < 12) or not self.clients:
            await self.connect()
        elif what < 0.35:
            stores = choose([[choose(self.stores)], self.stores])
            for _ in range(choose([1, 1, 1, 2, 5, 20])):
                self.submit(choose(stores), choose([0, 0, 10, 3000, LARGE]))
        elif what < 0.5:
            choose(self.clients).follow(choose(self.stores), choose([0, 0, 1, 5]))
        elif what < 0.58:
            choose(self.clients).unfollow(choose(self.stores))
        elif what < 0.62:
            client = choose(self.clients)
            client.stalled = not client.stalled
        elif what < 0.65 and len(self.clients) > 1:
            gone = self.send_away("vanish", "break", "close", "finish")
            if choose([True, False]):  # before the loop has told anybody
                for store in tuple(gone.outlet.stores):
                    self.submit(store, choose([0, LARGE]))
                    choose(self.clients).follow(store, 1)
                    store.publish()
        elif what < 0.68:
            await self.settle()
        elif what < 0.8:
            await asyncio.sleep(choose([0, 0, 0, 0.001]))
        for client in tuple(self.clients):
            if not client.stalled and choose([True, False]):
                client.read(choose([1, 100, 5000, 65536]))

    def go_wild(self) -> None:
        """What is done when somebody is found gone, in the middle of whatever that is."""
        if self.calm or self._depth == 4:
            return
        self._depth += 1
        for _ in range(3):
            store, what = self.random.choice(self.stores), self.random.random()
            if what < 0.6:
                for _ in range(self.random.choice([1, 3])):
                    self.submit(store, 0)
            elif what < 0.7:
                store.publish()
            elif what < 0.8 and self.clients:
                self.random.choice(self.clients).follow(store, 1)
            elif what < 0.9 and self.clients:
                self.random.choice(self.clients).unfollow(store)
            elif len(self.clients) > 3:
                self.send_away("close", "finish")
        self._depth -= 1

    async def settle(self) -> None:
        """Return when all have read all there is."""
        quiet = 0
        while quiet < 2:  # in the first turn something may be on its way still
            await asyncio.sleep(self._period + 0.001 if quiet else 0)
            heard = [client.read(65536) for client in self.clients for _ in range(4)]
            level = all(client.outlet._cursors is None for client in self.clients)
            quiet = quiet + 1 if level and not any(heard) else 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("period", [0.0, 0.004])
@pytest.mark.parametrize("seed", range(2))
async def test_whoever_comes_stalls_and_goes_each_gets_all_it_reads_in_order_or_is_told_what_it_missed(
    seed: int, period: float, tls: bool, until: Any
) -> None:
    world = World(seed, period=period, tls=tls)
    async with asyncio.timeout(DEADLINE):
        for _ in range(STEPS):
            await world.step()
        await world.settle()
    for client in world.clients:
        assert not client.outlet.closed
        assert not client.marks
    world.ledger.check()
    assert len(world.gone) > 2
    assert world.connections.counts.gaps

    world.calm = True
    for client in [*world.clients, *world.gone]:
        client.outlet.close()
        client.sock.close()
    await until(lambda: not len(world.connections))
    assert not world.connections._behind
    assert not world.connections._deadlines
    assert not world.connections._audiences
    assert not any(store.subscribers or store._woken for store in world.stores)
