"""Make `images/console.png`: the console page of a real server with real messages. Run `python docs/screenshot.py`."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGE = Path(__file__).parent / "images" / "console.png"
SECONDS = 125  # the plot shows two minutes: fill it
CHANNELS = ["demo.load", "demo.memory", "demo.network", "orders", "scores", "logs"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

CITIES = ["Utrecht", "Lisbon", "Kyoto", "Tallinn", "Valparaíso"]
PLAYERS = ["Okafor", "Lindqvist", "Moreau", "Tanaka"]
PATHS = ["/", "/shop", "/shop/lamps", "/shop/lamps/42", "/basket", "/live"]


def main() -> None:
    """Start a server, publish to it for two minutes, and take the picture."""
    browser_path = next(filter(None, map(shutil.which, ["chromium", "google-chrome"])), None)
    if browser_path is None:
        sys.exit("no browser found: install chromium")
    server = subprocess.Popen(
        [sys.executable, "-m", "waterspout", "serve", "--demo", "--port", "0", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        listening = re.search(r"http://\S+", server.stdout.readline())
        assert listening is not None, "the server has not started"
        take_picture(browser_path, listening[0])
    finally:
        server.terminate()
        server.wait(10)


def take_picture(browser_path: str, url: str) -> None:
    """Open the page, let messages come in, and save what it looks like then."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5, color_scheme="light")
        page.goto(f"{url}/?{'&'.join(f'channel={channel}' for channel in CHANNELS)}")
        page.locator("#status", has_text="Live").wait_for()
        publish_for(SECONDS, url)
        page.fill("#publish-channel", "orders")
        page.fill("#publish-event", "created")
        page.get_by_label("JSON").check(force=True)
        page.fill("#publish-body", '{"order": 4950, "total": 59.9}')
        page.locator("#publish-body").blur()
        IMAGE.parent.mkdir(exist_ok=True)
        page.screenshot(path=IMAGE)
        browser.close()
    print(f"{IMAGE}: {IMAGE.stat().st_size // 1024} KiB")


def publish_for(seconds: float, url: str) -> None:
    """Publish what a shop, a match and a web server would, now more and now less."""
    chance = random.Random(7)
    home = away = order = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        post(url, "logs", f"GET {chance.choice(PATHS)} 200 {chance.uniform(0.3, 9):.2f} ms")
        if chance.random() < 0.4:
            order += 1
            total = round(chance.lognormvariate(3.5, 0.6), 2)
            post(url, "orders", {"order": 4700 + order, "total": total, "city": chance.choice(CITIES)}, "created")
        if chance.random() < 0.08:
            points = chance.choice([1, 2, 2, 3])
            home, away = (home + points, away) if chance.random() < 0.5 else (home, away + points)
            post(url, "scores", {"home": home, "away": away, "scorer": chance.choice(PLAYERS)}, "basket")
        time.sleep(chance.expovariate(5))


def post(url: str, channel: str, data: object, event: str = "") -> None:
    """Publish one message."""
    body, kind = (data, "text/plain") if isinstance(data, str) else (json.dumps(data), "application/json")
    address = f"{url}/channels/{channel}" + (f"?event={event}" if event else "")
    request = urllib.request.Request(address, body.encode(), {"Content-Type": kind})
    urllib.request.urlopen(request, timeout=10).close()


if __name__ == "__main__":
    main()
