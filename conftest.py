"""The fixtures that start real Redis servers, for all tests below, where the Redis client is installed."""

from importlib.util import find_spec

# The handlers and the channels are also tested alone, without the Redis client.
pytest_plugins = ["waterspout_redis.testing.plugin"] if find_spec("waterspout_redis") else []
