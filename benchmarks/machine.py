"""On which cores of this machine what runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def cpus(place: str) -> tuple[list[int], list[int]]:
    """Those of the server, and those of the clients."""
    if not hasattr(os, "sched_getaffinity"):
        return [], []
    every = sorted(os.sched_getaffinity(0))
    first, others = every[:1], every[1:] or every
    return {"server": (first, every), "apart": (first, others), "together": (first, first), "free": (every, every)}[
        place
    ]


@contextmanager
def started_on(cpus: list[int]) -> Iterator[None]:
    """What is started inside of it runs on these."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
