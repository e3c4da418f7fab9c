"""Redis for code that blocks: connections that live in a thread of their own, made with redis-py's options."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ssl
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from waterspout_core import Entry, Gap, Message
from waterspout_redis import Client, ClosedError, ConnectError, ConnectionLost, PubSubClient, PubSubMessage

T = TypeVar("T")

_OPEN_TIMEOUT: Final = 10.0
"""Seconds in which a server that answers must have confirmed the subscription."""

_RECHECK: Final = 1.0
"""Seconds after which a hand-over looks whether the loop that it waits for is still there."""


class RedisThread:
    """Subscribed to `channel` when it is made, with `options` of redis-py, and until `close`.

    `receive` is called with what comes, in order, in the event loop `home`; without one, it is dropped. While that loop
    is busy nothing more is read from Redis. Raises `ConnectionError` at once if nobody answers, TimeoutError,
    ResponseError, and TypeError or ValueError for the options.
    """

    def __init__(self, channel: str, options: Mapping[str, Any], receive: Callable[[Sequence[Entry]], object]) -> None:
        timeout, connection = client_options(options)
        # Who blocks wants to know at once that nobody is there.
        self._client = Client(retry=0, **timeout, **connection)
        self._pubsub = PubSubClient(**connection)
        self._receive = receive
        self._listening: asyncio.Task[None] | None = None
        self.home = running_loop()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="waterspout.tornadose", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        try:
            self._wait(self._open, channel)
        except BaseException:
            self.close()
            raise

    def call(self, *command: Any) -> Any:
        """The reply to `command`. Blocks; raises `ConnectionError`, TimeoutError or ResponseError."""
        return self._wait(self._call, *command)

    def close(self) -> None:
        """End the thread and give the sockets back. Twice is once."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._wait(self._aclose)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _wait(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        if not self._thread.is_alive():
            # In the child of a fork nobody would ever answer.
            raise RuntimeError("the store was shut down, or made before a fork: make one in each process")
        try:
            return asyncio.run_coroutine_threadsafe(function(*args), self._loop).result()
        except (ConnectError, ConnectionLost, ClosedError) as error:
            raise ConnectionError(str(error)) from error

    # In the thread

    async def _open(self, channel: str) -> None:
        await self._client.call("PING")
        async with asyncio.timeout(_OPEN_TIMEOUT):  # should it go away just now: this would wait until it is back
            await self._pubsub.subscribe(channel)
        self._listening = asyncio.create_task(self._listen())

    async def _call(self, *command: Any) -> Any:
        return await self._client.call(*command)

    async def _aclose(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait((self._listening,))
        await self._pubsub.aclose()
        await self._client.aclose()

    async def _listen(self) -> None:
        async for batch in self._pubsub.batches():
            entries = [_message(item.data) if isinstance(item, PubSubMessage) else Gap() for item in batch]
            await self._hand_over(entries)

    async def _hand_over(self, entries: Sequence[Entry]) -> None:
        """Return when `home` has taken them, or will never."""
        home, taken = self.home, asyncio.Event()

        def take() -> None:
            try:
                self._receive(entries)
            finally:
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    self._loop.call_soon_threadsafe(taken.set)

        if home is None:
            return
        with contextlib.suppress(RuntimeError):  # that loop is closed
            home.call_soon_threadsafe(take)
        while not (taken.is_set() or home.is_closed() or home is not self.home):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECHECK):
                    await taken.wait()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _message(payload: bytes) -> Message:
    """Text, whoever published it; what is none stays bytes."""
    try:
        return Message(payload.decode())
    except UnicodeDecodeError:
        return Message(payload)


# What redis-py's options are called here.
_NAMES: Final = {
    "client_name": "client_name",
    "db": "db",
    "health_check_interval": "health_check_interval",
    "host": "host",
    "password": "password",
    "port": "port",
    "protocol": "protocol",
    "socket_connect_timeout": "connect_timeout",
    "unix_socket_path": "unix_socket_path",
    "username": "username",
}

# What makes no difference here: the client does it anyway, or in its own way.
_IGNORED: Final = frozenset(
    {
        "decode_responses",  # messages are text in any case
        "encoding_errors",
        "errors",
        "lib_name",
        "lib_version",
        "max_connections",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
        "single_connection_client",
        "socket_keepalive",
        "socket_keepalive_options",
        "socket_read_size",
    }
)

_TLS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
    }
)

_VERIFY: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def client_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """redis-py's `options` as those of `Client`: its time-out, and those that `PubSubClient` has too.

    None is as good as not given. Raises TypeError for what is not taken, ValueError for an encoding other than UTF-8.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in {*_NAMES, *_IGNORED, *_TLS, "charset", "encoding", "socket_timeout", "ssl"}:
            raise TypeError(f"RedisStore does not take redis-py's option {name!r}")
    for name in ("charset", "encoding"):
        if given.get(name, "utf-8").lower() not in ("utf-8", "utf8"):
            raise ValueError(f"messages are UTF-8, not {given[name]}")
    connection = {_NAMES[name]: value for name, value in given.items() if name in _NAMES}
    for name in connection.keys() & {"port", "db"}:
        connection[name] = int(connection[name])
    if "unix_socket_path" in connection:  # it wins there
        connection.pop("host", None)
        connection.pop("port", None)
    if not connection.get("health_check_interval"):  # 0 is "none" there
        connection.pop("health_check_interval", None)
    if given.get("ssl"):
        connection["ssl"] = _context(given) if given.keys() & _TLS else given["ssl"]
    if "socket_timeout" not in given:
        return {}, connection
    connection.setdefault("connect_timeout", given["socket_timeout"])
    return {"timeout": given["socket_timeout"]}, connection


def _context(given: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=given.get("ssl_ca_certs"), capath=given.get("ssl_ca_path"), cadata=given.get("ssl_ca_data")
    )
    verify = given.get("ssl_cert_reqs", ssl.CERT_REQUIRED)
    verify = _VERIFY[verify] if isinstance(verify, str) else verify
    context.check_hostname = verify != ssl.CERT_NONE and given.get("ssl_check_hostname", True)
    context.verify_mode = verify
    if "ssl_certfile" in given:
        context.load_cert_chain(given["ssl_certfile"], given.get("ssl_keyfile"), given.get("ssl_password"))
    return context
