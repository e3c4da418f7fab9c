"""Clients that are lent out and kept for the next one."""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, Future, Task
from types import TracebackType
from typing import Any, Final, Self

from .._errors import ClosedError
from .._pool import Pool
from ._client import Client
from ._errors import ClientError

logger: Final = logging.getLogger("waterspout.redis")


class ClientPool:
    """At most ``max_size`` clients (-1: no bound), made with ``client_kwargs`` when needed.

    One that has been connected for ``client_timeout`` seconds (-1: no bound) is not used again; with ``autoclose`` it
    is closed even if nobody asks. So is one that was released with something left on its connection: a transaction
    begun, a key watched, another database or user.
    """

    def __init__(
        self, max_size: int = -1, client_timeout: float = -1, autoclose: bool = False, **client_kwargs: Any
    ) -> None:
        self.max_size, self.client_timeout, self.autoclose = max_size, client_timeout, autoclose
        self.client_kwargs = client_kwargs
        # Options that make no sense show here and now.
        self._settings = Client(**client_kwargs)._settings
        self._pool: Pool[_Seat] = Pool(
            lambda: _Seat(Client(**client_kwargs)),
            None if max_size == -1 else max_size,
            client_timeout if client_timeout > 0 else None,
            autoclose and client_timeout > 0,
        )
        self._lent: dict[Client, _Seat] = {}
        self._loop: AbstractEventLoop | None = None

    def _enter(self) -> Pool[_Seat]:
        """The pool for this event loop; what belonged to another one died with it."""
        loop = self._settings.loop()
        if loop is not self._loop:
            if self._loop is not None:
                self._pool.forget()
                self._lent.clear()
            self._loop = loop
        return self._pool

    def _lend(self, seat: _Seat) -> Client:
        self._lent[seat.client] = seat
        return seat.client

    # Taking and giving back

    def get_connected_client(self) -> Future[Client | ClientError]:
        """A connected client, as soon as there is one; the caller has to release it. Where it cannot connect the
        result is a ClientError, and there is nothing to release.

        Cancel the Future to wait no longer. Tornado's ``with_timeout`` does not; `connected_client` bears with it.
        """
        return self._settings.loop().create_task(self._get_connected_client())

    async def _get_connected_client(self) -> Client | ClientError:
        try:
            return self._lend(await self._enter().get_connected_client())
        except ClientError as error:
            return error
        except ClosedError:
            return ClientError("the pool is destroyed")

    def get_client_nowait(self) -> Client | None:
        """A client, connected or not, which the caller has to release; None when all are lent, or after `destroy`."""
        try:
            seat = self._enter().get_client_nowait()
        except ClosedError:
            return None
        return None if seat is None else self._lend(seat)

    def release_client(self, client: Client | ClientError) -> None:
        """Give a client back. What is not lent, as one that was given back already, is left alone, and logged."""
        if isinstance(client, ClientError):
            return
        seat = self._lent.pop(client, None)
        if seat is None:
            logger.warning("%r is not lent by this pool: was it released twice?", client)
        else:
            self._enter().release_client(seat)

    def connected_client(self) -> Borrowing:
        """A client for the length of a ``with``, or a ClientError where it cannot connect::

        with (yield pool.connected_client()) as client:   # or: with (await pool.connected_client()) as client:
            reply = yield client.call("PING")

        async with pool.connected_client() as client:
            reply = await client.call("PING")
        """
        return Borrowing(self)

    def preconnect(self, size: int = -1) -> Future[ClientError | None]:
        """Have ``size`` clients connected, or as many as there may be. The Future raises ClientError where that is not
        known; its result is a ClientError if one could not connect."""
        return self._settings.loop().create_task(self._preconnect(size))

    async def _preconnect(self, size: int) -> ClientError | None:
        if size == -1 and self.max_size == -1:
            raise ClientError("size=-1 not allowed with pool max_size=-1")
        try:
            await self._enter().preconnect(None if size == -1 else size)
        except ClientError as error:
            return error
        return None

    def destroy(self) -> None:
        """Close it: the idle clients now, each that is lent when it is released. Who waits gets a ClientError."""
        self._pool.destroy()


class Borrowing(Task["Loan"]):
    """What `ClientPool.connected_client` gives: the Future of a context manager, and an asynchronous one by itself."""

    def __init__(self, pool: ClientPool) -> None:
        self._pool = pool
        super().__init__(self._borrow(), loop=pool._settings.loop())

    async def _borrow(self) -> Loan:
        return Loan(self._pool, await self._pool._get_connected_client())

    async def __aenter__(self) -> Client | ClientError:
        return (await self).__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.result().__exit__(kind, error, traceback)


class Loan:
    """A client that is released at the end of a ``with``, or when nobody can begin it any more."""

    def __init__(self, pool: ClientPool, client: Client | ClientError) -> None:
        self._pool, self._client = pool, client
        self._ended = False

    def __enter__(self) -> Client | ClientError:
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        if self._client in self._pool._lent:
            self._pool.release_client(self._client)

    def __del__(self) -> None:
        # Who wanted it has stopped waiting. The garbage collector may have come by in any thread.
        loop = self._pool._loop
        if not self._ended and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._pool.release_client, self._client)


class _Seat:
    """A client as `Pool` wants it: one that raises."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def connect(self) -> None:
        if not await self.client.connect():
            raise ClientError(f"can't connect to {self.client.title}")

    def disconnect(self) -> None:
        self.client.disconnect()

    async def aclose(self) -> None:
        self.client.disconnect()

    @property
    def connected_at(self) -> float | None:
        return self.client.connected_at

    @property
    def is_clean(self) -> bool:
        return self.client.is_clean

    def renewed(self) -> Self:
        """Itself: the objects that tornadis hands out are always the same."""
        return self
