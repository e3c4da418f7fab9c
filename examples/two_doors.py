"""One store behind two doors, HTTP and TCP, which share their limits and say goodbye to all before they close.

curl -N http://127.0.0.1:9000/events
nc localhost 5567, and then: SUBSCRIBE
"""

import asyncio
import signal
import time

from tornado.httpserver import HTTPServer
from tornado.ioloop import PeriodicCallback
from tornado.web import Application

from waterspout_core import QueueStore
from waterspout_handlers import Connections, EventSource, LineServer

store = QueueStore()
connections = Connections(max_connections=20_000, max_per_address=100, max_age=3600)


async def main() -> None:
    http = HTTPServer(Application([("/events", EventSource, {"store": store})], waterspout_connections=connections))
    http.listen(9000, "127.0.0.1")
    lines = LineServer(store, connections=connections)
    lines.listen(5567, "127.0.0.1")
    PeriodicCallback(lambda: store.submit(time.ctime()), 1000).start()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    http.stop()
    lines.stop()
    await connections.drain(grace=10)


asyncio.run(main())
