"""Connections: who may come, who is still there, and how all of them go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tornado.iostream import IOStream
from tornado.web import Application

from waterspout_core import QueueStore
from waterspout_handlers import Connections, Draining, Outlet, TooManyConnections, connections_of
from waterspout_handlers._formats import EVENT_STREAMS
from waterspout_handlers._goodbye import RESTART

CHUNKED = EVENT_STREAMS[False, True]

Connect = Callable[..., tuple[Outlet, socket.socket]]


@contextlib.asynccontextmanager
async def connecting(connections: Connections, store: QueueStore) -> AsyncIterator[Connect]:
    with contextlib.ExitStack() as stack:

        def connect(address: str = "", *, small: bool = False) -> tuple[Outlet, socket.socket]:
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            if small:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            theirs.setblocking(False)
            outlet = Outlet(IOStream(ours), CHUNKED, connections, address=address)
            stack.callback(outlet.close)
            outlet.open({store: store.cursor()})
            return outlet, theirs

        yield connect


async def hear(sock: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(sock, 65536)


async def rest(sock: socket.socket) -> bytes:
    heard = b""
    while piece := await hear(sock):
        heard += piece
    return heard


# Limits


async def test_there_are_no_more_than_may_be_and_room_is_made_by_those_who_go() -> None:
    connections = Connections(max_connections=2)
    async with connecting(connections, QueueStore()) as connect:
        connect()
        outlet, _ = connect()
        with pytest.raises(TooManyConnections, match="2 connections") as refusal:
            connections.check("")
        assert 5 <= refusal.value.retry <= 15
        assert connections.counts.refused == 1
        outlet.close()
        connections.check("")
        assert len(connections) == 1


async def test_one_address_has_no_more_than_its_share() -> None:
    connections = Connections(max_per_address=1)
    async with connecting(connections, QueueStore()) as connect:
        outlet, _ = connect("192.0.2.1")
        with pytest.raises(TooManyConnections, match=r"from 192\.0\.2\.1"):
            connections.check("192.0.2.1")
        connections.check("192.0.2.2")
        outlet.close()
        connections.check("192.0.2.1")
        assert not connections._addresses


async def test_who_was_let_in_while_others_came_first_is_sent_away_in_order() -> None:
    """Between the check and the end of a handshake others may come."""
    connections = Connections(max_connections=1)
    store = QueueStore()
    async with connecting(connections, store) as connect:
        connect()
        _, late = connect()
        said = await rest(late)
        assert b"retry: " in said
        assert said.endswith(b"0\r\n\r\n")
        assert len(connections) == 1
        assert len(store.subscribers) == 1


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"max_connections": 0}, ValueError, "max_connections is a whole number of 1 or more, not 0"),
        ({"max_connections": 1.5}, TypeError, "max_connections is a whole number of 1 or more, not 1.5"),
        ({"max_channels": 0}, ValueError, "max_channels is a whole number of 1 or more, not 0"),
        ({"max_per_address": 0}, ValueError, "max_per_address is a whole number of 1 or more or None, not 0"),
        ({"heartbeat": -1}, ValueError, "heartbeat is a number of seconds, 0 or more, not -1"),
        ({"heartbeat": "25"}, TypeError, "heartbeat is a number of seconds, 0 or more, not '25'"),
        ({"heartbeat": None}, TypeError, "heartbeat is a number of seconds, 0 or more, not None"),
        ({"heartbeat": float("nan")}, ValueError, "heartbeat is a number of seconds, 0 or more, not nan"),
        ({"max_age": 0}, ValueError, "max_age is a number of seconds above 0 or None, not 0"),
        ({"max_age": -1}, ValueError, "max_age is a number of seconds above 0 or None, not -1"),
        ({"user_timeout": -1}, ValueError, "user_timeout is a number of seconds, 0 or more, not -1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        Connections(**wrong)


def test_an_application_has_one_of_its_own_unless_its_settings_name_one() -> None:
    application = Application()
    assert connections_of(application) is connections_of(application)
    mine = Connections()
    assert connections_of(Application(waterspout_connections=mine)) is mine
    assert connections_of(Application(connections="to a database")) is not mine
    with pytest.raises(TypeError, match="waterspout_connections"):
        connections_of(Application(waterspout_connections=5))


# Heartbeats and deadlines


async def test_f52_all_who_are_idle_hear_a_heartbeat_and_not_at_one_moment() -> None:
    connections = Connections(heartbeat=0.5)
    async with connecting(connections, QueueStore()) as connect:
        begin = time.monotonic()
        peers = [connect()[1] for _ in range(40)]
        times = []

        async def first_beat(peer: socket.socket) -> None:
            assert await hear(peer) == b"3\r\n:\n\n\r\n"
            times.append(time.monotonic() - begin)

        await asyncio.gather(*map(first_beat, peers))
        assert max(times) - min(times) > 0.05
        assert await hear(peers[0]) == b"3\r\n:\n\n\r\n"  # and again


async def test_no_heartbeat_is_put_behind_what_a_stalled_reader_has_not_read() -> None:
    store = QueueStore()
    connections = Connections(heartbeat=0.05)
    async with connecting(connections, store) as connect:
        outlet, peer = connect(small=True)
        for number in range(100):
            store.submit(f"{number:>1000}")
        await asyncio.sleep(0)
        before = len(outlet._stream._write_buffer)
        assert before
        await asyncio.sleep(0.2)  # some heartbeats long
        assert len(outlet._stream._write_buffer) == before
        while b"99\n" not in (heard := await hear(peer)):
            assert b"\n:\n" not in heard


async def test_without_heartbeats_none_is_sent() -> None:
    connections = Connections(heartbeat=0)
    async with connecting(connections, QueueStore()) as connect:
        _, peer = connect()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.get_running_loop().sock_recv(peer, 1)


async def test_e8_a_connection_ends_in_order_when_it_is_old_enough() -> None:
    connections = Connections(max_age=0.2, heartbeat=0.5)
    async with connecting(connections, QueueStore()) as connect:
        begin = time.monotonic()
        outlet, peer = connect()
        assert (await rest(peer)).endswith(b"0\r\n\r\n")
        assert time.monotonic() - begin >= 0.18  # a tenth earlier or later than said
        assert outlet.closed


async def test_the_timer_ends_with_the_last_connection(until: Any) -> None:
    connections = Connections(heartbeat=0.05)
    async with connecting(connections, QueueStore()) as connect:
        outlet, _ = connect()
        assert connections._loop is not None
        outlet.close()
        await until(lambda: connections._loop is None)


# The way out


async def test_e8_f54_a_drain_spreads_goodbyes_and_ends_when_all_have_gone() -> None:
    connections = Connections()
    async with connecting(connections, QueueStore()) as connect:
        peers = [connect()[1] for _ in range(50)]
        times = []

        async def leave(peer: socket.socket) -> int:
            said = await rest(peer)
            times.append(time.monotonic())
            assert said.endswith(b"0\r\n\r\n")
            return int(said.partition(b"retry: ")[2].partition(b"\n")[0])

        leaving = asyncio.gather(*map(leave, peers))
        begin = time.monotonic()
        await connections.drain(grace=5)
        took = time.monotonic() - begin
        retries = await leaving
        assert 0.3 < max(times) - min(times) < 3  # a hundred a second
        assert took < 4
        assert len(set(retries)) > 25
        assert len(connections) == 0


async def test_f55_a_drain_is_over_after_its_grace_whoever_stalls() -> None:
    store = QueueStore()
    connections = Connections()
    async with connecting(connections, store) as connect:
        outlet, _ = connect(small=True)
        for number in range(100):
            store.submit(f"{number:>1000}")
        await asyncio.sleep(0)
        begin = time.monotonic()
        await connections.drain(grace=0.3)
        assert 0.25 < time.monotonic() - begin < 1.5
        assert outlet.closed
        assert not store.subscribers


async def test_a_drain_lets_nobody_in_any_more() -> None:
    connections = Connections()
    await connections.drain(grace=1)
    with pytest.raises(Draining):
        connections.check("")
    async with connecting(connections, QueueStore()) as connect:
        _, late = connect()  # its handshake had begun
        assert (await rest(late)).endswith(b"0\r\n\r\n")


async def test_a_drain_of_nobody_takes_no_time() -> None:
    begin = time.monotonic()
    await Connections().drain(grace=60)
    assert time.monotonic() - begin < 1


async def test_what_was_published_before_the_drain_is_heard_before_the_goodbye() -> None:
    store = QueueStore()
    connections = Connections()
    async with connecting(connections, store) as connect:
        _, peer = connect()
        store.submit("last words")
        draining = asyncio.ensure_future(connections.drain(grace=5))
        said = await rest(peer)
        await draining
        assert said.index(b"last words") < said.index(b"retry: ")


async def test_counts_tell_who_came_and_went() -> None:
    connections = Connections()
    async with connecting(connections, QueueStore()) as connect:
        outlets = [connect()[0] for _ in range(3)]
        outlets[0].close()
        outlets[0].close()
        assert (connections.counts.opened, connections.counts.closed, len(connections)) == (3, 1, 2)
        assert set(connections) == set(outlets[1:])


async def test_connections_hold_nobody_who_has_gone(until: Any) -> None:
    store = QueueStore()
    connections = Connections(max_age=1000, max_per_address=100)
    gc.collect()
    async with connecting(connections, store) as connect:
        for _ in range(100):
            outlet, _ = connect("192.0.2.1")
            outlet.end(RESTART)
        del outlet
        await until(lambda: len(connections) == 0)
        held = (*connections._parts, connections._deadlines, connections._behind, connections._addresses)
        assert not any(held)
        assert all(not audience.stores for audience in connections._audiences.values())
