"""Where `waterspout publish` sends messages: to a server by HTTP, or straight to Redis."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPResponse

from waterspout_channels import Channels
from waterspout_core import BadMessage, BrokerError, Payload, to_json

from ._options import check_url


class Refused(Exception):
    """The other side understood, and will not have it: trying again is no use."""


class TooLarge(Refused):
    """The message is larger than the other side takes; the next one may not be."""


class Away(Exception):
    """The other side cannot be reached or cannot do it now; `sent` messages of the batch were taken."""

    def __init__(self, reason: str, sent: int = 0) -> None:
        super().__init__(reason)
        self.sent = sent


class Target(Protocol):
    """Where messages go."""

    async def send(self, batch: list[Payload]) -> None:
        """Publish all of `batch`, in order. Raises `Refused` or `Away`."""

    async def aclose(self) -> None:
        """Let go of connections."""


class ServerTarget:
    """A running Waterspout server, by HTTP."""

    def __init__(self, url: str, channel: str, event: str | None) -> None:
        check_url(url)
        query = "?" + urlencode({"event": event}) if event else ""
        self._url = url
        self._address = f"{url.rstrip('/')}/channels/{quote(channel, safe='')}{query}"
        self._http = AsyncHTTPClient()
        # What is sent again does not arrive twice. A server without a history would not know, and refuses keys.
        self._run: str | None = secrets.token_hex(8)
        self._batch = 0
        self._taken = 0  # of this batch

    async def send(self, batch: list[Payload]) -> None:
        response = await self._post(batch)
        if response.code == 400 and self._run is not None:
            self._run = None
            response = await self._post(batch)
        answer = _answer(response)
        explanation = f"{self._url} answered {response.code}: {answer.get('error', response.reason)}"
        if response.code >= 500 or response.code == 429:
            sent = int(answer.get("published", 0))
            self._taken += sent
            raise Away(explanation, sent)
        self._batch, self._taken = self._batch + 1, 0
        if response.code == 413:
            raise TooLarge(explanation)
        if response.code != 200:
            raise Refused(explanation)

    async def _post(self, batch: list[Payload]) -> HTTPResponse:
        headers = {"Content-Type": "application/x-ndjson"}
        if self._run is not None:
            headers["Idempotency-Key"] = f'"{self._run}-{self._batch}"'
        # A line's number is part of its key: empty ones stand for those that were taken.
        body = "\n" * self._taken + "".join(to_json(payload) + "\n" for payload in batch)
        try:
            return await self._http.fetch(
                self._address, method="POST", body=body, headers=headers, raise_error=False, request_timeout=30.0
            )
        except (OSError, HTTPError) as error:
            raise Away(f"no answer from {self._url}: {error}") from None

    async def aclose(self) -> None:
        self._http.close()


class RedisTarget:
    """A Redis server that Waterspout servers listen to."""

    def __init__(self, url: str, channel: str, event: str | None, history: int, retention: float) -> None:
        self._channels = Channels(url, history=history, retention=retention)
        self._channel = channel
        self._event = event
        # Where there is a history, what is sent again does not arrive twice.
        self._run = secrets.token_hex(8) if history else None
        self._taken = 0

    async def send(self, batch: list[Payload]) -> None:
        publishing = [
            self._channels.publish(self._channel, self._event, payload, key=self._key(number))
            for number, payload in enumerate(batch, self._taken)
        ]
        results = await asyncio.gather(*publishing, return_exceptions=True)
        for sent, result in enumerate(results):
            if isinstance(result, BrokerError):
                self._taken += sent
                raise Away(str(result), sent) from None
            if isinstance(result, BadMessage):  # it is alone, as all that are large
                self._taken += 1
                raise TooLarge(str(result)) from None
            if isinstance(result, BaseException):
                raise result
        self._taken += len(batch)

    def _key(self, number: int) -> str | None:
        return None if self._run is None else f"{self._run}-{number}"

    async def aclose(self) -> None:
        await self._channels.aclose()


def _answer(response: HTTPResponse) -> dict[str, Any]:
    try:
        answer = json.loads(response.body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
