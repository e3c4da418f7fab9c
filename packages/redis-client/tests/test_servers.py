"""The kit itself: servers are found, started, ended exactly."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from waterspout_redis.testing import RunningServer, find_servers


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_every_server_found_is_another_program() -> None:
    servers = find_servers()
    assert servers
    assert len({os.path.realpath(server.path) for server in servers}) == len(servers)
    assert all(server.name in ("redis", "valkey") and server.version[0].isdigit() for server in servers)


def test_a_server_starts_stops_and_starts_again_on_its_port(redis_binary: Any) -> None:
    with RunningServer(redis_binary) as server:
        assert server.call("PING") == b"PONG"
        port, pid = server.port, server.pid
        for end in (server.stop, server.kill):
            end()
            assert server.pid is None
            with pytest.raises(OSError, match="refused"):
                server.call("PING")
            server.start()
            assert server.port == port
            assert server.pid != pid
            assert server.call("SET", "k", 1) == b"OK"
            assert server.call("EXISTS", "k", "none") == 1
        last = server.pid
    assert last is not None
    with pytest.raises(OSError, match="No such process"):
        os.kill(last, 0)


def test_nothing_is_kept_from_one_start_to_the_next(redis_binary: Any) -> None:
    with RunningServer(redis_binary) as server:
        server.call("SET", "k", "v")
        server.stop()
        server.start()
        assert server.call("GET", "k") is None


def test_an_error_reply_is_raised(redis_server: RunningServer) -> None:
    with pytest.raises(RuntimeError, match="unknown command"):
        redis_server.call("NOSUCHCOMMAND")


def test_a_server_that_does_not_start_says_why(redis_binary: Any) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1.*no-such-option"):
        RunningServer(redis_binary, "--no-such-option", "1").start()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_no_server_outlives_a_test_run_that_is_killed(redis_binary: Any) -> None:
    script = f"""
        import os, signal
        from waterspout_redis.testing import RunningServer, ServerBinary
        server = RunningServer(ServerBinary("x", "1", {redis_binary.path!r}))
        server.start()
        print(server.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    pid = int(answer.stdout)
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
