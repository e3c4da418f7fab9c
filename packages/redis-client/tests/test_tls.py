"""Both clients over TLS, on the event loops of asyncio and of uvloop."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from waterspout_redis import Client, ConnectError, ConnectionLost, PubSubClient, PubSubMessage
from waterspout_redis.testing import FaultProxy, Faults, RunningServer, ServerBinary, eventually

Run = Callable[[Coroutine[Any, Any, None]], None]

BLACK_HOLE = Faults(black_hole=True)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs an async test in an event loop of either kind."""
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main, 30))

    return run


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a client who trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def certified(authority: trustme.CA, host: str = "127.0.0.1") -> ssl.SSLContext:
    """The context of a server whose certificate is for `host`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def serving(authority: trustme.CA) -> ssl.SSLContext:
    return certified(authority)


@asynccontextmanager
async def over_tls(
    server: RunningServer, serving: ssl.SSLContext, trusting: ssl.SSLContext, **options: Any
) -> AsyncIterator[tuple[FaultProxy, Client]]:
    """A client whose way to the server leads through a proxy, with TLS."""
    async with FaultProxy(server.port, ssl=serving) as proxy:
        async with Client(proxy.url, ssl=trusting, **options) as client:
            yield proxy, client
        # Whoever closed a client has left nothing behind.
        await eventually(lambda: not proxy.live)


# What comes through


def test_every_caller_gets_its_own_answer_with_many_records_waiting(
    redis_server: RunningServer, serving: ssl.SSLContext, trusting: ssl.SSLContext, run: Run
) -> None:
    async def main() -> None:
        async with over_tls(redis_server, serving, trusting) as (proxy, client):
            await client.call("PING")
            for round in range(3):
                proxy.to_client.faults = BLACK_HOLE
                calls = []
                for number in range(round * 16, round * 16 + 16):
                    # Each answered before the next one is asked, so that each answer is a record of its own.
                    calls.append(client.call("INCR", "n"))
                    await eventually(lambda number=number: redis_server.call("GET", "n") == b"%d" % (number + 1))
                proxy.heal()
                assert await asyncio.gather(*calls) == list(range(round * 16 + 1, round * 16 + 17))

    run(main())


def test_every_message_arrives(
    redis_server: RunningServer, serving: ssl.SSLContext, trusting: ssl.SSLContext, run: Run
) -> None:
    async def main() -> None:
        async with (
            FaultProxy(redis_server.port, ssl=serving) as proxy,
            PubSubClient(proxy.url, ssl=trusting) as pubsub,
            Client(redis_server.url) as publisher,
        ):
            await pubsub.subscribe("a")
            proxy.to_client.faults = BLACK_HOLE
            messages = [b"%d" % number * 200 for number in range(200)]
            for message in messages:
                assert await publisher.call("PUBLISH", "a", message) == 1
            proxy.heal()
            assert [await anext(pubsub) for _ in messages] == [PubSubMessage(b"a", message) for message in messages]

    run(main())


def test_large_values_go_both_ways(
    redis_server: RunningServer, serving: ssl.SSLContext, trusting: ssl.SSLContext, run: Run
) -> None:
    async def main() -> None:
        async with over_tls(redis_server, serving, trusting) as (_, client):
            value = b"".join(b"%07d\n" % number for number in range(128 * 1024))
            assert await client.call("SET", "k", value) == b"OK"
            assert redis_server.call("GET", "k") == value
            assert await client.call("GET", "k", bulk=True) == value
            assert await asyncio.gather(*(client.call("GET", "k") for _ in range(4))) == [value] * 4

    run(main())


def test_what_blocks_has_a_tls_connection_of_its_own(
    redis_server: RunningServer, serving: ssl.SSLContext, trusting: ssl.SSLContext, run: Run
) -> None:
    async def main() -> None:
        async with over_tls(redis_server, serving, trusting) as (proxy, client):
            popped = client.call("BLPOP", "queue", 10)
            assert await client.call("PING") == b"PONG"
            await eventually(lambda: b"blocked_clients:1" in redis_server.call("INFO", "clients"))
            assert await client.call("LPUSH", "queue", "x") == 1
            assert await popped == [b"queue", b"x"]
            assert proxy.connections == 2

    run(main())


def test_a_server_with_tls_of_its_own(
    redis_binary: ServerBinary, authority: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path, run: Run
) -> None:
    pem = str(tmp_path / "server.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--tls-port", str(port), "--tls-cert-file", pem, "--tls-key-file", pem, "--tls-auth-clients", "no"]
    server = RunningServer(redis_binary, *options)

    async def main() -> None:
        url = f"rediss://127.0.0.1:{port}"
        async with Client(url, ssl=trusting) as client, PubSubClient(url, ssl=trusting) as pubsub:
            await pubsub.subscribe("a")
            value = bytes(range(256)) * 4096
            assert await client.call("SET", "k", value) == b"OK"
            assert await asyncio.gather(*(client.call("ECHO", n) for n in range(500))) == [
                b"%d" % n for n in range(500)
            ]
            assert await client.call("GET", "k", bulk=True) == value
            assert await client.call("PUBLISH", "a", value) == 1
            assert await anext(pubsub) == PubSubMessage(b"a", value)
        with pytest.raises(ConnectError, match="HELLO failed: "):
            await connect(host="127.0.0.1", port=port, retry=0)

    with closing(server):
        try:
            server.start()
        except RuntimeError as error:
            if "TLS support" not in str(error):
                raise
            pytest.skip(f"{redis_binary} was built without TLS")
        run(main())


# What does not


async def connect(url: str | None = None, **options: Any) -> None:
    async with Client(url, **options):
        pass


async def subscribe(url: str) -> None:
    async with PubSubClient(url) as pubsub:
        await pubsub.subscribe("a")


@pytest.mark.parametrize("use", [connect, subscribe])
def test_a_certificate_that_is_not_trusted_fails_at_once(
    redis_server: RunningServer, serving: ssl.SSLContext, use: Callable[[str], Coroutine[Any, Any, None]], run: Run
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port, ssl=serving) as proxy:
            with pytest.raises(ConnectError, match="give ssl= an SSLContext that trusts") as caught:
                await use(proxy.url)
            assert (caught.value.step, caught.value.hopeless, proxy.connections) == ("TLS", True, 1)
            # Also where several wait for the same.
            assert str(caught.value.again()) == str(caught.value)

    run(main())


def test_a_certificate_for_another_host_fails_at_once(
    redis_server: RunningServer, authority: trustme.CA, trusting: ssl.SSLContext, run: Run
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port, ssl=certified(authority, "redis.test")) as proxy:
            with pytest.raises(ConnectError, match=r"not valid for '127\.0\.0\.1'") as caught:
                await connect(proxy.url, ssl=trusting)
            assert (caught.value.step, caught.value.hopeless, proxy.connections) == ("TLS", True, 1)
            # Trusting it would be the wrong advice.
            assert "give ssl=" not in str(caught.value)

    run(main())


def test_a_plain_client_is_refused_by_a_tls_port(
    redis_server: RunningServer, serving: ssl.SSLContext, run: Run
) -> None:
    async def main() -> None:
        async with FaultProxy(redis_server.port, ssl=serving) as proxy:
            with pytest.raises(ConnectError, match=r"closed it|reset") as caught:
                await connect(host="127.0.0.1", port=proxy.port, retry=0)
            assert caught.value.step == "HELLO"

    run(main())


@pytest.mark.parametrize(
    ("answer", "step", "message"),
    # Redis takes the beginning of TLS for a command: it depends on chance whether that has an end.
    [(b"-ERR unknown command\r\n", "TLS", "TLS failed: "), (b"", "connect", r"timed out, .*is it a port for TLS\?")],
)
def test_a_tls_client_is_refused_by_a_plain_port(
    trusting: ssl.SSLContext, answer: bytes, step: str, message: str, run: Run
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            await reader.read(1)
            writer.write(answer)
            await reader.read()

    async def main() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ConnectError, match=message) as caught:
                await connect(host="127.0.0.1", port=port, ssl=trusting, retry=0, connect_timeout=0.3)
            assert caught.value.step == step

    run(main())


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_cut_within_a_record_is_lost_and_made_again(
    redis_server: RunningServer, serving: ssl.SSLContext, trusting: ssl.SSLContext, reset: bool, run: Run
) -> None:
    async def main() -> None:
        async with over_tls(redis_server, serving, trusting) as (proxy, client):
            await client.call("PING")
            proxy.to_client.cut_after(10, reset=reset)
            with pytest.raises(ConnectionLost) as caught:
                await client.call("INCR", "n")
            assert caught.value.maybe_executed
            # It reads only, so it is asked again.
            proxy.to_client.cut_after(10, reset=reset)
            assert await client.call("GET", "n") == b"1"
            assert proxy.connections == 3

    run(main())
