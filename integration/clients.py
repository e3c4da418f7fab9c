"""Clients from the standard library and from others: what a browser or curl would see."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import urllib.request
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

DEADLINE: Final = 20.0


class EventStream:
    """A reader of server-sent events as plain as curl: the standard library's HTTP client."""

    def __init__(self, url: str, *, last_event_id: str | None = None) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=DEADLINE)
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        self._connection.request("GET", f"{parts.path or '/'}?{parts.query}", headers=headers)
        self.response = self._connection.getresponse()
        self.last_id: str | None = last_event_id

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Go away without a word, as a closing laptop lid does."""
        self._connection.close()
        self.response.close()

    def next(self) -> dict[str, str] | None:
        """The next event with its fields; None when the stream has ended."""
        fields: dict[str, str] = {}
        while line := self.response.readline().decode():
            line = line.rstrip("\n")
            if not line:  # an event without data is none, but its id counts
                self.last_id = fields.get("id", self.last_id)
                if "data" in fields:
                    return fields
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data" and "data" in fields:
                fields["data"] += "\n" + value
            elif name:
                fields[name] = value
            else:
                fields.clear()
        return None

    def data(self, count: int) -> list[str]:
        """The data of the next `count` events."""
        events = [self.next() for _ in range(count)]
        return [event["data"] if event else "the stream has ended" for event in events]


class Proxy:
    """A TCP proxy whose connections can be cut while both ends live."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection that there is."""
        cut, self._open = self._open, []
        for end in cut:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._open += (near, far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_RDWR)
        source.close()


def request(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """The status and the JSON of an answer; a POST if there is a `body`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(url, data=body, headers=named, method="GET" if body is None else "POST")
    try:
        with urllib.request.urlopen(asked, timeout=DEADLINE) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def publish(url: str, channel: str, text: str, event: str | None = None) -> str:
    """Publish `text` by `POST`; the message's id."""
    query = f"?event={quote(event)}" if event else ""
    status, answer = request(
        f"{url}/channels/{quote(channel, safe='')}{query}", text.encode(), Content_Type="text/plain"
    )
    assert status == 200, answer
    assert answer["channel"] == channel
    return str(answer["id"])
