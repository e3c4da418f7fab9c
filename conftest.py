"""The fixtures that start real Redis servers, for all tests below, where the Redis client is installed."""

import gc
from importlib.util import find_spec

import pytest

# The handlers and the channels are also tested alone, without the Redis client.
pytest_plugins = ["waterspout_redis.testing.plugin"] if find_spec("waterspout_redis") else []


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was collected stays: many tests collect garbage, and shall not look through all tests for it each time."""
    gc.collect()
    gc.freeze()
