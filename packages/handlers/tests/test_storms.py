"""Storms: readers that stop, trickle, vanish, and come back by the thousand. The ledger knows what each is to get."""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from waterspout_core import Entry, Gap, Log, Message, Position, QueueStore, from_id
from waterspout_core.testing import Account, Ledger
from waterspout_handlers import Connections, EventSource, LineServer, LongPoll, WebSocketSubscriber

KiB: Final = 1024
DEADLINE: Final = 100.0
TINY: Final = 4 * KiB
"""Bytes of a socket's buffer that hold a few messages."""

DOORS: Final = ("events", "ndjson", "websocket", "lines")
AT_EACH_DOOR: Final = pytest.mark.parametrize("door", DOORS)

_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1


class NamedQueue(QueueStore):
    """A queue that its readers know by a name."""

    def __init__(self, channel: str, **bounds: int) -> None:
        self._channel = channel
        super().__init__(**bounds)

    def _make_log(self) -> Log:
        log = super()._make_log()
        log.channel = self._channel
        return log


class Queues:
    """A source of them."""

    def __init__(self, **bounds: int) -> None:
        self.stores: dict[str, NamedQueue] = {}
        self._bounds = bounds

    def open(self, channel: str) -> NamedQueue:
        if channel not in self.stores:
            self.stores[channel] = NamedQueue(channel, **self._bounds)
        return self.stores[channel]


# Wire formats, read by what knows nothing of the code under test


class HTTPBody:
    """What comes in whole chunks behind the head of a response (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self.head = b""
        self.ended = False
        self._raw = b""

    def feed(self, data: bytes) -> bytes:
        self._raw += data
        if not self.head:
            self.head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                self.head = b""
                return b""
            assert self.head.startswith(b"HTTP/1.1 200 "), self.head
            self._raw = rest
        body = []
        while True:
            size, found, rest = self._raw.partition(b"\r\n")
            if not found or len(rest) < (length := int(size, 16)) + 2:
                return b"".join(body)
            assert not self.ended, "something behind the last chunk"
            assert rest[length : length + 2] == b"\r\n"
            self.ended = not length
            body.append(rest[:length])
            self._raw = rest[length + 2 :]


class Told(NamedTuple):
    """A message as a client is told of it."""

    channel: str | None
    entry: Entry
    id: str


class Wire(abc.ABC):
    """What comes on one connection: each message as `Told`, and answers as they are."""

    @abc.abstractmethod
    def feed(self, data: bytes) -> list[Any]: ...


class EventWire(Wire):
    def __init__(self, parser: Any) -> None:
        self._body, self._parser = HTTPBody(), parser()

    def feed(self, data: bytes) -> list[Any]:
        events = self._parser.feed(self._body.feed(data))
        return [
            Told(None, Gap(json.loads(data)["missed"]) if type == "gap" else Message(data), id)
            for data, id, type in events
        ]


class JSONLineWire(Wire):
    def __init__(self, parser: Any) -> None:
        self._body, self._line = HTTPBody(), b""

    def feed(self, data: bytes) -> list[Any]:
        *lines, self._line = (self._line + self._body.feed(data)).split(b"\n")
        return [told_by(line) for line in lines if line]


class WebSocketWire(Wire):
    def __init__(self, parser: Any) -> None:
        self._raw = b""
        self._upgraded = False

    def feed(self, data: bytes) -> list[Any]:
        self._raw += data
        if not self._upgraded:
            head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                return []
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._raw, self._upgraded = rest, True
        told = []
        while (frame := self._frame()) is not None:
            first, payload = frame
            if first == 0x81 and b'"data":' in payload:
                told.append(told_by(payload))
            elif first == 0x81:
                told.append(json.loads(payload))
            elif first == 0x88:
                told.append({"closed": int.from_bytes(payload[:2], "big")})
            else:
                assert first == 0x89, hex(first)
        return told

    def _frame(self) -> tuple[int, bytes] | None:
        raw = self._raw
        if len(raw) < 2:
            return None
        begin = {126: 4, 127: 10}.get(raw[1], 2)
        if len(raw) < begin:
            return None
        end = begin + (int.from_bytes(raw[2:begin], "big") if begin > 2 else raw[1])
        if len(raw) < end:
            return None
        self._raw = raw[end:]
        return raw[0], raw[begin:end]


class LineWire(Wire):
    def __init__(self, parser: Any) -> None:
        self._line = b""

    def feed(self, data: bytes) -> list[Any]:
        *lines, self._line = (self._line + data).split(b"\r\n")
        told = []
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"MESSAGE":
                told.append(told_by(rest))
            else:
                told.append(line.decode())
        return told


def told_by(text: bytes) -> Told:
    told = json.loads(text)
    gap = told.get("event") == "gap"
    return Told(told["channel"], Gap(told["data"]["missed"]) if gap else Message(told["data"]), told["id"])


def ask(door: str, channel: str, id: str, *, times: int = 1) -> bytes:
    """What a client sends to be let in at a door, where it reads `channel`, named so many times, from `id` on."""
    if door == "lines":
        return f"SUBSCRIBE {channel} FROM {id}\r\n".encode() * times
    channels = "&".join([f"channel={channel}"] * times)
    if door == "websocket":
        key = base64.b64encode(os.urandom(16)).decode()
        path = f"/ws?{channels}&last_event_id={id}"
        fields = (
            f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        )
    else:
        path = f"/events?{channels}" + ("&format=ndjson" if door == "ndjson" else "")
        fields = f"Last-Event-ID: {id}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode()


WIRES: Final[dict[str, type[Wire]]] = dict(zip(DOORS, (EventWire, JSONLineWire, WebSocketWire, LineWire), strict=True))


class House:
    """A server with four doors, its readers, and the ledger of what they get."""

    def __init__(self, ports: dict[str, int], source: Queues, connections: Connections, parser: Any) -> None:
        self.ports = ports
        self.source = source
        self.connections = connections
        self.parser = parser
        self.ledger = Ledger()
        self.stack = contextlib.ExitStack()
        self._numbers = itertools.count()

    def reader(self, door: str, channel: str = "a") -> Reader:
        """One that is not there yet; it is to get what is published from now on."""
        return Reader(self, door, self.source.open(channel), f"{door} {next(self._numbers)}")

    async def publish(self, text: str, channel: str = "a") -> None:
        """Publish, and let it be sent."""
        await self.ledger.submit(self.source.open(channel), channel, text)
        await asyncio.sleep(0)


def place_in(log: Log, id: str) -> Position:
    """Where one stands in `log` who stands at `id`."""
    return Position(log.epoch, from_id(id)[log.epoch])


class Reader:
    """A client that notes all it gets, and comes back where it stopped."""

    def __init__(self, house: House, door: str, store: NamedQueue, name: str) -> None:
        self.house, self.door, self.store = house, door, store
        self.after = store.log.position
        self.account: Account = house.ledger.reader(store.channel or "", name, self.after)
        self.sock: socket.socket
        self.wire: Wire
        self.answers: list[Any] = []

    async def come(self, *, receive_buffer: int | None = None, times: int = 1) -> None:
        """Connect, for the first time or again."""
        self.sock = self.house.stack.enter_context(socket.socket())
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setblocking(False)
        self.wire = WIRES[self.door](self.house.parser)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.sock, ("127.0.0.1", self.house.ports[self.door]))
        await loop.sock_sendall(self.sock, ask(self.door, self.store.channel or "", str(self.after), times=times))

    async def read(self, size: int = 65536) -> bytes:
        """What comes next; empty at the end."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, size)
        for told in self.wire.feed(data):
            if isinstance(told, Told):
                self.after = place_in(self.store.log, told.id)
                self.account.got(told.entry, self.after)
            else:
                self.answers.append(told)
        return data

    async def catch_up(self) -> None:
        """Read all that was published."""
        while self.after != self.store.log.position:
            assert await self.read(), "it was cut off"

    async def trickle(self, pause: float) -> None:
        """Read byte by byte."""
        while await self.read(1):  # noqa: ASYNC110  # this is its manner, it waits for nothing
            await asyncio.sleep(pause)

    @property
    def gaps(self) -> int:
        return sum(isinstance(entry, Gap) for entry, _ in self.account.entries)

    def go(self, *, reset: bool = False) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@pytest.fixture
def open_house(event_parser: Any) -> Callable[..., contextlib.AbstractAsyncContextManager[House]]:
    """`async with open_house(max_messages=…) as house`; with `tiny` its sockets have buffers of a few messages."""

    @contextlib.asynccontextmanager
    async def open_house(
        *,
        tiny: bool = False,
        connections: Connections | None = None,
        source: Queues | None = None,
        when_behind: Any = "gap",
        **bounds: int,
    ) -> AsyncIterator[House]:
        source = source or Queues(**bounds)
        connections = Connections(heartbeat=0) if connections is None else connections
        doors = {"/events": EventSource, "/ws": WebSocketSubscriber, "/poll": LongPoll}
        routes = [(path, door, {"source": source, "when_behind": when_behind}) for path, door in doors.items()]
        http = HTTPServer(Application(routes, waterspout_connections=connections))
        lines = LineServer(source=source, connections=connections, when_behind=when_behind)
        ports = []
        for server in (http, lines):
            [sock] = bind_sockets(0, "127.0.0.1", backlog=1024)  # or the system makes a storm wait for a second
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF) if tiny else ():
                sock.setsockopt(socket.SOL_SOCKET, buffer, TINY)  # every accepted one inherits it
            server.add_sockets([sock])
            ports.append(sock.getsockname()[1])
        house = House(dict.fromkeys(DOORS, ports[0]) | {"lines": ports[1]}, source, connections, event_parser)
        try:
            async with asyncio.timeout(DEADLINE):
                with house.stack:
                    yield house
        finally:
            http.stop()
            lines.stop()
            await http.close_all_connections()
            for outlet in connections:
                outlet.close()
            await asyncio.sleep(0)  # the close callbacks

    return open_house


# Slow readers


@AT_EACH_DOOR
async def test_f53_however_little_sockets_take_at_a_time_all_arrives_in_order_and_once(
    open_house: Any, until: Any, door: str
) -> None:
    dice = random.Random(53)
    async with open_house(tiny=True) as house:
        readers = [house.reader(door) for _ in range(20)]
        for reader in readers:
            await reader.come(receive_buffer=TINY)
        await until(lambda: len(house.connections) == len(readers))

        async def nibble(reader: Reader, pace: random.Random) -> None:
            while len(reader.account.entries) < 600:
                assert await reader.read(pace.choice((1, 10, 500, 5000)))

        nibbling = [asyncio.ensure_future(nibble(reader, random.Random(n))) for n, reader in enumerate(readers)]
        behind = set()
        for number in range(600):
            await house.publish(f"{number} ž\n" + "x" * dice.choice((0, 100, 1000, 5000)))
            behind |= {outlet for outlet in house.connections if outlet._cursors is not None}
        await asyncio.gather(*nibbling)
        house.ledger.check()
        assert len(behind) == len(readers)
        assert house.connections.counts.gaps == 0
        await until(lambda: all(outlet._cursors is None for outlet in house.connections))


@AT_EACH_DOOR
async def test_f50_f51_f53_one_that_stops_and_one_that_trickles_hold_up_nobody_and_are_told_what_they_missed(
    open_house: Any, until: Any, door: str
) -> None:
    async with open_house(tiny=True, max_messages=50) as house:
        stops, trickles, fast = (house.reader(door) for _ in range(3))
        for reader in (stops, trickles):
            await reader.come(receive_buffer=TINY)
        await fast.come()
        await until(lambda: len(house.connections) == 3)
        sizes = set()
        async with asyncio.TaskGroup() as group:
            trickling = group.create_task(trickles.trickle(0.001))  # a byte a second, in time-lapse
            for number in range(1500):
                await house.publish(f"{number:>1000}")
                await fast.catch_up()  # it has each before the next one is published
                sizes.add(max(len(outlet._stream._write_buffer or b"") for outlet in house.connections))
            trickling.cancel()
        # What is kept for them is one run that had begun, and the log is what it is.
        assert max(sizes) < 128 * KiB
        assert len(fast.store.log) == 50
        assert fast.gaps == 0
        await stops.catch_up()
        await trickles.catch_up()
        house.ledger.check()
        assert stops.gaps >= 1
        assert trickles.gaps >= 1
        assert house.connections.counts.gaps == stops.gaps + trickles.gaps


@AT_EACH_DOOR
async def test_e5_who_wants_the_latest_only_is_spared_what_it_was_too_slow_for(
    open_house: Any, until: Any, door: str
) -> None:
    async with open_house(tiny=True, when_behind="latest") as house:
        reader = house.reader(door)
        await reader.come(receive_buffer=TINY)
        await until(lambda: len(house.connections) == 1)
        async with asyncio.TaskGroup() as group:
            trickling = group.create_task(reader.trickle(0))
            for number in range(1500):
                await house.publish(f"{number:>1000}")
            trickling.cancel()
        await reader.catch_up()
        got = [int(entry.data) for entry, _ in reader.account.entries]
        assert got == sorted(set(got))
        assert got[-1] == 1499
        assert house.connections.counts.skipped == 1500 - len(got) > 1000


@AT_EACH_DOOR
async def test_one_reset_in_the_middle_of_anything_comes_back_and_has_missed_nothing(
    open_house: Any, until: Any, door: str
) -> None:
    """F35: the connection breaks behind each byte of a message, and wherever it happens to while there are many."""
    dice = random.Random(35)
    async with open_house(tiny=True) as house:
        reader = house.reader(door)
        await reader.come()
        for cut in range(150):
            for number in range(3):
                await house.publish(f"{cut}.{number}")
            if cut % 10 == 0:
                for number in range(10):
                    await house.publish(f"{number:>5000}")
            left = cut if cut < 100 else dice.randrange(60_000)
            while left > 0 and reader.after != reader.store.log.position:
                left -= len(await reader.read(left))
            reader.go(reset=True)
            await reader.come()
        await reader.catch_up()
        house.ledger.check()
        assert reader.gaps == 0
        reader.go()
        await until(lambda: len(house.connections) == 0)


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("there", ["before", "after"])
async def test_a_poll_ends_with_its_answer_however_little_of_that_the_socket_takes_at_once(
    open_house: Any, until: Any, version: str, there: str
) -> None:
    """Whether what it waits for was there before it came, or is published when it is there."""
    async with open_house(tiny=True) as house:
        reader = house.reader("events")
        texts = [f"{number:>5000}" for number in range(20)]  # one run
        if there == "before":
            for text in texts:
                await house.publish(text)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", house.ports["events"]))
            await loop.sock_sendall(
                sock, f"GET /poll?channel=a&last_event_id={reader.after} {version}\r\nHost: localhost\r\n\r\n".encode()
            )
            if there == "after":
                await until(lambda: reader.store.subscribers)
                for text in texts:
                    house.source.open("a").submit(text)  # all in one turn
            heard = await loop.sock_recv(sock, 10)
            await until(lambda: not reader.store.subscribers)
            house.source.open("a").submit("too late")
            while piece := await loop.sock_recv(sock, 65536):
                heard += piece
        body = HTTPBody().feed(heard) if version == "HTTP/1.1" else heard.partition(b"\r\n\r\n")[2]
        assert [message["data"] for message in json.loads(body)["messages"]] == texts
        await until(lambda: len(house.connections) == 0)


# Gone readers


@AT_EACH_DOOR
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
async def test_f52_who_goes_is_noticed_at_once_though_nothing_is_published(
    open_house: Any, until: Any, door: str, reset: bool
) -> None:
    async with open_house() as house:
        stays, goes = house.reader(door), house.reader(door)
        await stays.come()
        await goes.come()
        await until(lambda: len(house.connections) == len(stays.store.subscribers) == 2)
        goes.go(reset=reset)
        goes.account.leave()
        await until(lambda: len(house.connections) == len(stays.store.subscribers) == 1)
        await house.publish("who is there?")
        await stays.catch_up()
        house.ledger.check()


def in_a_network_of_its_own(main: Callable[[Callable[[bool], None]], Coroutine[Any, Any, None]]) -> None:
    """Run `main` where there is no network but a loopback of its own, which it may switch off and on."""

    def switch(on: bool) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP if on else 0))

    def run() -> bool:
        unshare = getattr(ctypes.CDLL(None), "unshare", None)
        if unshare is None or unshare(_CLONE_NEWNET):
            return False
        switch(True)
        asyncio.run(main(switch))
        return True

    # A network belongs to a thread, and ends with it.
    with ThreadPoolExecutor(1) as thread:
        if not thread.submit(run).result():
            pytest.skip("making a network takes Linux and the right to do so")


@pytest.mark.parametrize("noticed_by", ["heartbeat", "keepalive"])
def test_f52_who_vanishes_without_a_word_is_noticed_though_nothing_is_published(
    open_house: Any, until: Any, noticed_by: str
) -> None:
    """Its power has failed: there is neither FIN nor RST, and nobody who would acknowledge anything."""

    async def vanish(switch: Callable[[bool], None]) -> None:
        connections = Connections(heartbeat=0.2 if noticed_by == "heartbeat" else 0, user_timeout=1)
        # Lines have no heartbeat: the system asks whether the peer is there.
        doors = DOORS[:3] if noticed_by == "heartbeat" else DOORS
        async with open_house(connections=connections) as house:
            for door in doors:
                await house.reader(door).come()
            await until(lambda: len(house.source.open("a").subscribers) == len(doors))
            for outlet in connections if noticed_by == "keepalive" else ():
                for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                    outlet._stream.socket.setsockopt(socket.IPPROTO_TCP, name, 1)
            switch(False)
            await until(lambda: len(connections) == 0)
            assert not house.source.open("a").subscribers
            assert connections.counts.closed == len(doors)

    in_a_network_of_its_own(vanish)


@AT_EACH_DOOR
async def test_who_takes_nothing_for_the_user_timeout_is_given_up_and_has_missed_nothing_when_it_comes_back(
    open_house: Any, until: Any, door: str
) -> None:
    """RFC 5482: the peer's system is there, but all its buffers are full, and nobody reads."""
    async with open_house(tiny=True, connections=Connections(heartbeat=0, user_timeout=0.5)) as house:
        reader = house.reader(door)
        await reader.come(receive_buffer=TINY)
        await until(lambda: len(house.connections) == 1)
        for number in range(50):
            await house.publish(f"{number:>1000}")
        await until(lambda: len(house.connections) == 0)
        with contextlib.suppress(ConnectionError):
            while await reader.read():
                pass
        await reader.come()
        await reader.catch_up()
        house.ledger.check()
        assert reader.gaps == 0


# Those who come and go


async def test_ten_thousand_come_and_go_and_each_gets_all_that_was_published_while_it_was_there(
    open_house: Any, until: Any
) -> None:
    """At all doors at once, leaving in all ways; of each ten one comes back once and one stays to the end."""
    dice = random.Random(10_000)
    async with open_house() as house:
        stay: list[Reader] = []

        async def visit(number: int) -> None:
            reader = house.reader(DOORS[number % 4])
            await reader.come()
            match number % 10:
                case 0:  # it has gone before it is let in
                    reader.account.leave()
                    return reader.go(reset=number % 20 == 0)
                case 1:
                    await reader.read()
                    reader.go(reset=True)
                    await reader.come()
                case 2:
                    if number < 2000:
                        stay.append(reader)
                        return None
            await reader.read(dice.randrange(1, 1000))
            await reader.catch_up()
            reader.account.leave()
            return reader.go(reset=number % 3 == 0)

        for wave in range(100):
            visits = [asyncio.ensure_future(visit(wave * 100 + number)) for number in range(100)]
            for number in range(3):
                await house.publish(f"{wave}.{number}")
                await asyncio.sleep(0.002)
            await asyncio.gather(*visits)
        for reader in stay:
            await reader.catch_up()
        house.ledger.check()
        assert house.connections.counts.gaps == 0
        assert house.connections.counts.refused == 0
        await until(lambda: len(house.connections) == len(house.source.open("a").subscribers) == len(stay))
        assert house.connections.counts.opened > 9000


@AT_EACH_DOOR
async def test_a_thousand_that_come_back_at_once_each_get_exactly_what_they_missed(
    open_house: Any, until: Any, door: str
) -> None:
    async with open_house(max_messages=40) as house:
        readers = []
        for number in range(60):  # they went at many places, a third of them before the log begins
            readers += [house.reader(door) for _ in range(17)]
            await house.publish(str(number))

        async def come_back(reader: Reader) -> None:
            await reader.come()
            await reader.catch_up()

        storm = [asyncio.ensure_future(come_back(reader)) for reader in readers]
        await until(lambda: len(house.connections) > 100)
        await house.publish("in the middle of it")
        await asyncio.gather(*storm)
        await until(lambda: len(house.connections) == len(readers))
        await house.publish("behind it")
        for reader in readers:
            await reader.catch_up()
        house.ledger.check()
        # Twenty messages were given up before the storm, and one more in the middle of it.
        assert {reader.gaps for reader in readers[: 20 * 17]} == {1}
        assert {reader.gaps for reader in readers[21 * 17 :]} == {0}


async def test_e8_f54_when_a_server_gives_way_to_another_under_load_nobody_misses_anything(
    open_house: Any, until: Any
) -> None:
    async with open_house() as old, open_house(source=old.source) as new, asyncio.TaskGroup() as group:
        readers = [old.reader(DOORS[number % 4]) for number in range(120)]

        async def stay(reader: Reader) -> None:
            """Read, and go where it is told to."""
            await reader.come()
            while True:
                if not await reader.read() or {"closed": 1012} in reader.answers:
                    reader.go()
                    reader.house = new
                    reader.answers.clear()
                    await reader.come()

        staying = [group.create_task(stay(reader)) for reader in readers]
        await until(lambda: len(old.connections) == len(readers))
        draining = group.create_task(old.connections.drain(grace=10))
        for number in itertools.count():
            await old.publish(str(number))
            await asyncio.sleep(0.01)
            if draining.done():
                break
        await until(lambda: len(new.connections) == len(readers))
        await old.publish("the last")
        await until(lambda: all(reader.after == reader.store.log.position for reader in readers))
        old.ledger.check()
        assert {reader.gaps for reader in readers} == {0}
        assert old.connections.counts.closed == len(readers)
        for task in staying:
            task.cancel()


# Those who ask and ask


class Talker(Reader):
    """One that reads many channels on one connection, and changes its mind all the time."""

    def __init__(self, house: House, door: str) -> None:
        super().__init__(house, door, house.source.open("0"), "")
        self.account.leave()
        self.accounts: dict[str, Account] = {}  # of what it reads now
        self.places: dict[str, Position] = {}  # where it stands, or stood when it left
        self.waiting: set[str] = set()  # for answers
        self.turns = 0

    async def turn(self, channel: str) -> None:
        """Read `channel` no more, or again where it stopped."""
        if channel in self.waiting:
            return
        self.waiting.add(channel)
        self.turns += 1
        verb, id = ("unsubscribe", None) if channel in self.accounts else ("subscribe", self.places.get(channel))
        if self.door == "lines":
            request = f"{verb.upper()} {channel}{f' FROM {id}' if id else ''}\r\n".encode()
        else:
            request = text_frame({verb: channel} | ({"last_event_id": str(id)} if id else {}))
        await asyncio.get_running_loop().sock_sendall(self.sock, request)

    async def listen(self) -> None:
        """Hear what comes. Only what it has asked for may come, and each id says where it stands in all of that."""
        while data := await asyncio.get_running_loop().sock_recv(self.sock, 5000):
            for told in self.wire.feed(data):
                if isinstance(told, Told):
                    stands = from_id(told.id).keys()
                    # An answer that it reads a channel no more may be behind the first ids without that.
                    assert {self.log(channel).epoch for channel in self.accounts.keys() - self.waiting} <= stands
                    assert stands <= {self.log(channel).epoch for channel in self.accounts}
                    place = self.places[told.channel] = place_in(self.log(told.channel), told.id)
                    self.accounts[told.channel].got(told.entry, place)
                else:
                    self.hear(told)

    def hear(self, answer: Any) -> None:
        """Hear an answer."""
        if self.door == "lines":
            word, channel, *ids = answer.split()
            assert word == "CONFIRMED", answer
        else:
            channel = answer.get("subscribed") or answer["unsubscribed"]
            ids = [answer["id"]] if "id" in answer else []
        self.waiting.discard(channel)
        if ids:
            self.begin(channel, ids[0])
        else:
            self.accounts.pop(channel).leave()

    def begin(self, channel: str, id: str) -> None:
        """From now on it reads `channel`, from `id` on."""
        place = place_in(self.log(channel), id)
        assert self.places.setdefault(channel, place) == place, "it was to go on where it stood"
        self.accounts[channel] = self.house.ledger.reader(channel, f"{self.door}, turn {self.turns}", place)

    def log(self, channel: str) -> Log:
        return self.house.source.open(channel).log

    def is_up_to_date(self) -> bool:
        return not self.waiting and all(self.places[name] == self.log(name).position for name in self.accounts)


def text_frame(request: dict[str, Any]) -> bytes:
    """One message of a client, masked with zeros (RFC 6455, 5.3)."""
    payload = json.dumps(request).encode()
    assert len(payload) < 126
    return bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload


ASKING: Final = pytest.mark.parametrize("door", ["websocket", "lines"])


@ASKING
async def test_e2_who_subscribes_and_unsubscribes_all_the_time_gets_all_that_it_reads_and_nothing_else(
    open_house: Any, until: Any, door: str
) -> None:
    dice = random.Random(2)
    async with open_house(tiny=True) as house, asyncio.TaskGroup() as group:
        talker = Talker(house, door)
        await talker.come(receive_buffer=TINY)
        if door == "lines":
            talker.waiting.add("0")
        else:  # what is named in the address has no answer
            talker.begin("0", str(talker.after))
        listening = group.create_task(talker.listen())
        channels = [str(number) for number in range(20)]
        behind = 0
        for _ in range(1500):
            await talker.turn(dice.choice(channels))
            for _ in range(dice.randrange(3)):
                await house.publish("x" * dice.choice((0, 10, 1000, 5000)), dice.choice(channels))
            behind += any(outlet._cursors is not None for outlet in house.connections)
        await until(talker.is_up_to_date)
        house.ledger.check()
        assert behind > 100
        assert talker.turns > 200
        assert house.connections.counts.gaps == 0
        subscribed = {name for name in channels if house.source.open(name).subscribers}
        assert subscribed == talker.accounts.keys()
        listening.cancel()
        await asyncio.wait([listening])
        talker.go()
        await until(lambda: len(house.connections) == 0)
        assert not house.connections._audiences  # of the hundreds that there were, one for each choice of channels


@AT_EACH_DOOR
async def test_f34_a_channel_named_twice_is_told_once(open_house: Any, until: Any, door: str) -> None:
    async with open_house() as house:
        reader = house.reader(door)
        await reader.come(times=3)
        await until(lambda: reader.store.subscribers)
        for number in range(10):
            await house.publish(str(number))
        await reader.catch_up()
        house.ledger.check()
        assert len(reader.account.entries) == 10
        assert len(reader.store.subscribers) == 1
        assert reader.answers[1:] == (["ALREADY SUBSCRIBED a"] * 2 if door == "lines" else [])


@ASKING
async def test_f34_who_subscribes_to_what_it_reads_is_told_so_and_hears_all_of_it_once(
    open_house: Any, until: Any, door: str
) -> None:
    """Wherever it asks to begin: it has one place in a channel."""
    async with open_house() as house:
        reader = house.reader(door)
        await reader.come()
        for number in range(10):
            await house.publish(str(number))
            after = str(Position(reader.store.log.epoch, 0))
            request = (
                ask("lines", "a", after) if door == "lines" else text_frame({"subscribe": "a", "last_event_id": after})
            )
            await asyncio.get_running_loop().sock_sendall(reader.sock, request)
        await reader.catch_up()
        while len(reader.answers) < (11 if door == "lines" else 10):
            assert await reader.read()
        house.ledger.check()
        assert len(reader.account.entries) == 10
        answers = reader.answers[-10:]
        assert all(
            answer == "ALREADY SUBSCRIBED a" if door == "lines" else "already" in answer["error"] for answer in answers
        )


@pytest.mark.parametrize(
    ("door", "ask_for", "answer"),
    [
        ("websocket", lambda number: b"\x89\x86%b%06d" % (bytes(4), number), lambda number: b"\x8a\x06%06d" % number),
        ("lines", lambda number: b"PING %06d\r\n" % number, lambda number: b"PONG %06d\r\n" % number),
    ],
    ids=["websocket", "lines"],
)
async def test_f50_who_asks_and_does_not_read_the_answers_is_not_listened_to_until_it_does(
    open_house: Any, until: Any, door: str, ask_for: Callable[[int], bytes], answer: Callable[[int], bytes]
) -> None:
    async with open_house(tiny=True) as house:
        reader = house.reader(door)
        await reader.come(receive_buffer=TINY)
        await until(lambda: reader.store.subscribers)
        await reader.read()  # the head, or what was confirmed
        [outlet] = house.connections
        reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TINY)
        flood = b"".join(ask_for(number) for number in range(20_000))
        sent = idle = 0
        while idle < 100:  # turns in which nothing could be sent
            await asyncio.sleep(0)
            try:
                sent += reader.sock.send(memoryview(flood)[sent : sent + 5000])
                idle = 0
            except BlockingIOError:
                idle += 1
        assert sent < len(flood)
        assert len(outlet._stream._write_buffer) < 64 * KiB
        asked = sent // len(ask_for(0))
        expected = b"".join(answer(number) for number in range(asked))
        heard = b""
        while len(heard) < len(expected):
            heard += await asyncio.get_running_loop().sock_recv(reader.sock, 65536)
        assert heard == expected
