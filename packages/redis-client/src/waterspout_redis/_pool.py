"""Clients that are lent out, one user each, and kept for the next one."""

from __future__ import annotations

import asyncio
import time
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, Unpack

from ._dedicated import DedicatedClient
from ._errors import ClosedError, PoolTimeout, UsageError
from ._options import ConnectionKeywords, ConnectionOptions, Limits, check_options


class Poolable(Protocol):
    """What a pool asks of a client."""

    async def connect(self) -> None:
        """Connect if it is not connected."""

    def disconnect(self) -> None:
        """Give the connection back at once."""

    async def aclose(self) -> None:
        """Give the connection back, and return when that is done."""

    @property
    def connected_at(self) -> float | None:
        """When it was connected, by `time.monotonic`; None where it is not connected."""

    @property
    def is_clean(self) -> bool:
        """Whether the next user would find nothing left on the connection."""

    def renewed(self) -> Self:
        """The same for its next user, where the last one may still hold this object."""


Lent = TypeVar("Lent", bound=Poolable)


class Pool(Generic[Lent]):
    """At most `max_size` clients (None: no bound), made by `make` when needed.

    One that has been connected for `client_timeout` seconds is not used again; with `autoclose` it is closed even if
    nobody asks. Who has to wait for one is served in order, and waits for `wait_timeout` seconds at most.
    """

    def __init__(
        self,
        make: Callable[[], Lent],
        max_size: int | None = None,
        client_timeout: float | None = None,
        autoclose: bool = False,
        *,
        wait_timeout: float | None = None,
    ) -> None:
        if max_size is not None and max_size < 1:
            raise ValueError("the pool must have room for one client at least")
        if client_timeout is not None and not client_timeout > 0:
            raise ValueError("client_timeout must be above 0 seconds, or None")
        if autoclose and client_timeout is None:
            raise ValueError("autoclose needs a client_timeout")
        self._make, self._max_size, self._client_timeout = make, max_size, client_timeout
        self._autoclose, self._wait_timeout = autoclose, wait_timeout
        self._closed = False
        self._loop: AbstractEventLoop | None = None
        self.forget()

    def forget(self) -> None:
        """Begin anew in another event loop; what belonged to the old one died with it."""
        self._idle: deque[Lent] = deque()
        self._lent: set[Lent] = set()
        self._waiters: deque[Future[Lent]] = deque()
        self._sweep: asyncio.TimerHandle | None = None

    def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            self.forget()
        self._loop = loop

    def __len__(self) -> int:
        """How many clients there are, lent or idle."""
        return len(self._lent) + len(self._idle)

    # Taking and giving back

    def get_client_nowait(self) -> Lent | None:
        """A client, connected or not, or None when all are lent. The caller has to release it.

        Raises ClosedError.
        """
        if self._closed:
            raise ClosedError("the pool is closed")
        while self._idle:
            client = self._idle.popleft()
            if self._usable(client):
                self._lent.add(client)
                return client
            client.disconnect()
        if self._max_size is not None and len(self._lent) >= self._max_size:
            return None
        client = self._make()
        self._lent.add(client)
        return client

    async def get_connected_client(self) -> Lent:
        """A connected client: the one that is idle longest, or a new one. The caller has to release it.

        Raises ConnectError, PoolTimeout, ClosedError; then there is nothing to release.
        """
        self._enter()
        client = self.get_client_nowait() or await self._next_released()
        try:
            await client.connect()
        except BaseException:
            self.release_client(client)
            raise
        return client

    async def _next_released(self) -> Lent:
        waiter: Future[Lent] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._wait_timeout):
                return await waiter
        except BaseException as error:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It came in the moment of giving up: the next one waits for it.
                self.release_client(waiter.result())
            if isinstance(error, TimeoutError) and self._wait_timeout is not None:
                raise PoolTimeout(self._wait_timeout, self._max_size or 0) from None
            raise

    def release_client(self, client: Lent) -> None:
        """Give a client back. One that is not connected, is too old, or has something left on it is closed.

        Raises UsageError for a client that is not lent, as one that was released already.
        """
        if client not in self._lent:
            raise UsageError("this client is not lent by this pool: was it released twice?")
        self._lent.remove(client)
        if not self._closed and client.is_clean and self._usable(client):
            self._idle.append(client.renewed())
            self._sweep_later()
        else:
            client.disconnect()
        while self._waiters and not self._closed:
            waiter = self._waiters.popleft()
            if not waiter.done():
                next_client = self.get_client_nowait()
                assert next_client is not None
                waiter.set_result(next_client)
                break

    @asynccontextmanager
    async def connected_client(self) -> AsyncIterator[Lent]:
        """``async with pool.connected_client() as client``: released at the end, however it ends."""
        client = await self.get_connected_client()
        try:
            yield client
        finally:
            if client in self._lent:
                self.release_client(client)

    async def preconnect(self, size: int | None = None) -> None:
        """Have `size` clients connected, or as many as there may be. Raises as `get_connected_client` does."""
        self._enter()
        if size is None:
            size = self._max_size
        if size is None:
            raise UsageError("give preconnect() a size, or the pool a max_size")
        wanted = size - len(self) if self._max_size is None else min(size, self._max_size) - len(self)
        clients = [self._make() for _ in range(wanted)]
        # Now, not when they are connected: others take clients meanwhile.
        self._lent.update(clients)
        try:
            results = await asyncio.gather(*(client.connect() for client in clients), return_exceptions=True)
        finally:
            for client in clients:
                self.release_client(client)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # Its end, and that of old clients

    def _usable(self, client: Lent) -> bool:
        connected_at = client.connected_at
        if connected_at is None:
            return False
        return self._client_timeout is None or time.monotonic() - connected_at < self._client_timeout

    def _sweep_later(self) -> None:
        if self._autoclose and self._client_timeout is not None and self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(self._client_timeout / 10, self._close_old)

    def _close_old(self) -> None:
        self._sweep = None
        idle, self._idle = self._idle, deque()
        for client in idle:
            if self._usable(client):
                self._idle.append(client)
            else:
                client.disconnect()
        if self._idle:
            self._sweep_later()

    def disconnect(self) -> None:
        """Close all connections, those that are lent too. Who waits gets ClosedError."""
        for client in (*self._idle, *self._lent):
            client.disconnect()
        self._idle.clear()
        self._fail_waiters("the client was disconnected")

    def destroy(self) -> None:
        """Close it: the idle clients now, each that is lent when it is released. Who waits gets ClosedError."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.popleft().disconnect()
        self._fail_waiters("the pool is closed")

    def _fail_waiters(self, reason: str) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(ClosedError(reason))

    async def aclose(self) -> None:
        """Close it and all its clients, those that are lent too, and return when the sockets are given back."""
        clients = [*self._idle, *self._lent]
        self.destroy()
        for client in clients:
            await client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class ClientPool(Pool[DedicatedClient]):
    """Clients of one connection each, for whoever wants to tell for himself which connection a command takes::

        pool = ClientPool("redis://localhost", max_size=10)
        async with pool.connected_client() as client:
            await client.call("SELECT", 3)

    The options are those of `Pool` and of `Client`. One `Client` does without a pool what most people have one for.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        max_size: int | None = None,
        client_timeout: float | None = None,
        autoclose: bool = False,
        wait_timeout: float | None = None,
        decode: str | None = None,
        timeout: float | None = 10.0,
        **connection: Unpack[ConnectionKeywords],
    ) -> None:
        check_options(
            self,
            connection,
            url=url,
            max_size=max_size,
            client_timeout=client_timeout,
            autoclose=autoclose,
            wait_timeout=wait_timeout,
            decode=decode,
            timeout=timeout,
        )
        options, limits = ConnectionOptions.parse(url, **connection), Limits(timeout)
        self.address = options.address
        super().__init__(
            lambda: DedicatedClient(options, limits, decode),
            max_size,
            client_timeout,
            autoclose,
            wait_timeout=wait_timeout,
        )
