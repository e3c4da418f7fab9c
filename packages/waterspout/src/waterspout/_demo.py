"""Something real to look at: this machine's load, memory and network, published once a second."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import psutil

from waterspout_channels import Channels
from waterspout_core import BrokerError, TooManyChannels

PERIOD: Final = 1.0


async def publish_figures(channels: Channels) -> None:
    """Publish to `demo.load`, `demo.memory` and `demo.network` until cancelled."""
    psutil.cpu_percent()  # what it returns is the use since the last call: begin here
    before = psutil.net_io_counters()
    while True:
        await asyncio.sleep(PERIOD)
        now = psutil.net_io_counters()
        figures = {"demo.load": _load(), "demo.memory": _memory(), "demo.network": _network(before, now)}
        before = now
        # A broker that is away tells of it elsewhere, and the next figures come in a second.
        with contextlib.suppress(BrokerError, TooManyChannels):
            await asyncio.gather(*(channels.open(name).submit(data) for name, data in figures.items()))


def _load() -> dict[str, Any]:
    return {"cpu_percent": psutil.cpu_percent(), "load_1min": round(psutil.getloadavg()[0], 2)}


def _memory() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "used_percent": memory.percent,
        "used_bytes": memory.total - memory.available,
        "total_bytes": memory.total,
    }


def _network(before: Any, now: Any) -> dict[str, Any]:
    return {
        "received_bytes_per_second": round((now.bytes_recv - before.bytes_recv) / PERIOD),
        "sent_bytes_per_second": round((now.bytes_sent - before.bytes_sent) / PERIOD),
    }
