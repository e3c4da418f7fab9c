"""A pytest plugin: every test that asks for `redis_server` or `fresh_redis_server` runs on every server found here.

Load it from the root conftest.py: ``pytest_plugins = ["waterspout_redis.testing.plugin"]``. With ONE_REDIS_SERVER set
in the environment they run on the first one only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .servers import HOW_TO_GET_ONE, RunningServer, ServerBinary, find_servers


def pytest_report_header() -> list[str]:
    return [f"server: {binary} ({binary.path})" for binary in find_servers()] or [f"server: {HOW_TO_GET_ONE}"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_redis_server: run on the first Redis server found, and not on all")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "redis_binary" in metafunc.fixturenames:
        found = find_servers()
        # For who wants a shorter run, and for tests of which others cover how the servers differ.
        one = os.environ.get("ONE_REDIS_SERVER") or metafunc.definition.get_closest_marker("one_redis_server")
        servers: list[ServerBinary | None] = [*(found[:1] if one else found)] or [None]
        metafunc.parametrize(
            "redis_binary",
            servers,
            ids=[str(server or "no-server") for server in servers],
            indirect=True,
            scope="session",
        )


@pytest.fixture(scope="session")
def redis_binary(request: pytest.FixtureRequest) -> ServerBinary:
    """Each server program found, in turn."""
    binary: ServerBinary | None = request.param
    if binary is None:
        pytest.fail(HOW_TO_GET_ONE, pytrace=False)
    return binary


@pytest.fixture(scope="session")
def session_redis_server(redis_binary: ServerBinary) -> Iterator[RunningServer]:
    """The server behind `redis_server`."""
    with RunningServer(redis_binary) as server:
        yield server


@pytest.fixture
def redis_server(session_redis_server: RunningServer) -> RunningServer:
    """A server, empty at the start of the test, that many tests share: do not stop it."""
    session_redis_server.call("FLUSHALL")
    return session_redis_server


@pytest.fixture
def fresh_redis_server(redis_binary: ServerBinary) -> Iterator[RunningServer]:
    """A server of the test's own, to kill, restart, suspend or configure."""
    with RunningServer(redis_binary) as server:
        yield server
