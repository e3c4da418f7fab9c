"""Every example runs, and the README shows what is run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.clients import DEADLINE, EventStream, request

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@contextmanager
def running(name: str, port: int, *args: str) -> Iterator[str]:
    """The example as a process, on a port of ours in place of its own; its URL."""
    source = (EXAMPLES / name).read_text()
    assert source.count("listen(9000") == 1
    with subprocess.Popen(
        [sys.executable, "-c", source.replace("listen(9000", f"listen({port}"), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        url = f"http://127.0.0.1:{port}"
        limit = time.monotonic() + DEADLINE
        while True:
            try:
                request(f"{url}/there-is-no-such-page")
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() > limit:
                    process.kill()
                    pytest.fail(f"{name} does not listen: {process.communicate()[0]}")
                time.sleep(0.02)
            except ValueError:  # an answer, though not in JSON
                break
        yield url
        process.kill()


def run(name: str, *args: str) -> str:
    """What the example prints until it ends by itself."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_data_store_and_an_event_source_in_ten_lines(free_port: int) -> None:
    with running("datastore_eventsource.py", free_port) as url, EventStream(url) as events:
        values = [float(text) for text in events.data(3)]
    assert len(set(values)) == 3
    assert all(0 <= value < 1 for value in values)


def test_channels_in_an_application_of_ones_own(free_port: int, redis_server: Any) -> None:
    with running("own_application.py", free_port, redis_server.url) as url:
        with EventStream(f"{url}/live?channel=scores") as events:
            status, answer = request(f"{url}/publish/scores", "Malmö 1:0 Gent".encode())
            assert (status, answer["channel"]) == (200, "scores")
            assert events.data(1) == ["Malmö 1:0 Gent"]


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in source


def test_the_readme_shows_what_is_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    programs = [re.sub(r'\A""".*?"""\n+', "", path.read_text(), flags=re.DOTALL) for path in EXAMPLES.glob("*.py")]
    assert blocks
    for block in blocks:
        assert block in programs, f"no example is:\n{block}"
