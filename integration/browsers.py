"""A real browser for the tests: where it is, and how it is started so that it asks nobody but our server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

TIMEOUT: Final = 15_000
"""Milliseconds for whatever is waited for."""

expect.set_options(timeout=TIMEOUT)

BROWSERS: Final = ["chromium", "chromium-browser", "google-chrome"]

FLAGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser() -> str:
    """The path of a browser; without one the test is skipped, and fails in CI."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        explanation = f"no browser on PATH: looked for {', '.join(BROWSERS)}"
        if os.environ.get("CI"):
            pytest.fail(explanation)
        pytest.skip(f"{explanation}; install chromium to run these")
    return path


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser, which ends with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield browser
        browser.close()
