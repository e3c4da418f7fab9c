"""A drop-in for pulsar's lock: one holder among all processes, old ones with pulsar itself included."""

from __future__ import annotations

import waterspout_channels
from waterspout_channels import LockError
from waterspout_core import Leases

from ._errors import builtin_errors

__all__ = ["Lock", "LockError"]


class Lock(waterspout_channels.Lock):
    """The lock `name`, which is its key at the server, too.

    It is free `timeout` seconds after it was got. Without one it is held until it is released, and yet not for ever:
    it is renewed meanwhile, so it is free half a minute after its holder has died. `blocking` is whether to wait for
    it, or for how many seconds; it is asked for every `sleep` seconds.
    """

    def __init__(
        self,
        leases: Leases,
        name: str,
        timeout: float | None = None,
        blocking: bool | float = True,
        sleep: float = 0.2,
    ) -> None:
        if blocking:
            sleep = min(sleep, blocking)
        super().__init__(leases, name, timeout, blocking, sleep, renew=timeout is None, key=name)

    async def acquire(self, blocking: bool | float | None = None) -> bool:
        """Whether it is ours now. Raises `ConnectionError` where the server is away to the end."""
        with builtin_errors():
            return await super().acquire(blocking)

    async def release(self) -> bool:  # type: ignore[override]  # pulsar tells what went without saying
        """True, or `LockError` if it is not held or was lost. Raises `ConnectionError` where the server is away."""
        with builtin_errors():
            await super().release()
        return True

    async def __aexit__(self, *exc_info: object) -> None:
        if self.locked() or self.lost.is_set():  # else it was released on the way, which pulsar does not mind
            await self.release()
