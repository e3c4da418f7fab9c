"""One store behind three doors.

curl -N http://127.0.0.1:9000/events
curl -d 'Hello' http://127.0.0.1:9000/publish
"""

import asyncio
from contextlib import suppress

from tornado.web import Application

from waterspout_core import QueueStore
from waterspout_handlers import EventSource, PublishHandler, WebSocketSubscriber

store = {"store": QueueStore()}


async def main() -> None:
    routes = [
        (r"/events", EventSource, store),
        (r"/ws", WebSocketSubscriber, store),
        (r"/publish", PublishHandler, store),
    ]
    Application(routes).listen(9000, "127.0.0.1")
    await asyncio.Event().wait()


with suppress(KeyboardInterrupt):
    asyncio.run(main())
