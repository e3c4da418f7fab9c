"""The fixtures that start real Redis servers, for all tests below, where the Redis client is installed."""

import gc
import signal
from importlib.util import find_spec

import pytest

# The handlers and the channels are also tested alone, without the Redis client.
pytest_plugins = ["waterspout_redis.testing.plugin"] if find_spec("waterspout_redis") else []


def pytest_configure() -> None:
    """Who is started in the background of a script ignores Ctrl-C, and so would what tests start, and end by it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was collected stays: many tests collect garbage, and shall not look through all tests for it each time."""
    gc.collect()
    gc.freeze()
