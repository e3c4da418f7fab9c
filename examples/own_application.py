"""Channels in an application of your own; start it on as many machines as you like, all on one Redis.

curl -N 'http://127.0.0.1:9000/live?channel=scores'
curl -d 'Malmö 1:0 Gent' http://127.0.0.1:9000/publish/scores
"""

import asyncio
import sys
from contextlib import suppress

from tornado.web import Application

from waterspout import Channels, EventSource, PublishHandler, WebSocketSubscriber


async def main(broker: str) -> None:
    async with Channels(broker) as channels:
        source = {"source": channels}
        Application(
            [
                (r"/live", EventSource, source),
                (r"/live/ws", WebSocketSubscriber, source),
                (r"/publish/(.+)", PublishHandler, source),
            ]
        ).listen(9000, "127.0.0.1")
        await asyncio.Event().wait()


with suppress(KeyboardInterrupt):
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://"))
