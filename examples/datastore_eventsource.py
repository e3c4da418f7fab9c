"""A value that changes every second, and everybody who wants to see it: curl -N http://127.0.0.1:9000/"""

import asyncio
import random
from contextlib import suppress

from tornado.ioloop import PeriodicCallback
from tornado.web import Application

from waterspout import DataStore, EventSource

store = DataStore()


async def main() -> None:
    Application([(r"/", EventSource, {"store": store})]).listen(9000, "127.0.0.1")
    PeriodicCallback(lambda: store.set_data(random.random()), 1000).start()
    await asyncio.Event().wait()


with suppress(KeyboardInterrupt):
    asyncio.run(main())
