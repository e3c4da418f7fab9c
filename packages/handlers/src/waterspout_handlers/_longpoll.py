"""The door for clients that can do no more than ask again and again: long-polling."""

from __future__ import annotations

import re
from typing import Final

from ._formats import POLLS, Body
from ._requests import RequestError
from ._streams import StreamHandler

MAX_WAIT: Final = 60
"""Seconds that a client may ask us to wait: what stands in between gives up after that."""

WAIT: Final = 25
"""Seconds to wait where the client does not say."""


class LongPoll(StreamHandler):
    """Answers with `{"messages": […]}` as soon as there are any, or with none after `?timeout=` seconds (1 to 60).

    Each message is an object with `data` and `id`, and `channel` and `event` where there are any. The next request
    names the last `id` as `?last_event_id=` (or in `Last-Event-ID`), and misses nothing; a client that got no message
    names what the header `Last-Event-ID` of the answer says. Route it with `{"store": store}` or
    `{"source": channels}`; the channels are named by `?channel=`.
    """

    def choose_format(self, *, chunked: bool) -> Body:
        return POLLS[chunked]

    async def get(self, *args: str, **kwargs: str) -> None:
        await self.begin(self._wait())

    def check_request(self) -> None:
        super().check_request()
        self._wait()

    def _wait(self) -> int:
        asked = self.get_query_argument("timeout", str(WAIT))
        if not re.fullmatch("[0-9]{1,2}", asked) or not 1 <= int(asked) <= MAX_WAIT:
            raise RequestError(400, f"timeout is a whole number of seconds from 1 to {MAX_WAIT}, not {asked!r:.40}")
        return int(asked)
