"""A chat with rooms. Start it as often as you like, on as many machines, all on one Redis: it is one chat.

python examples/chat.py 9000 redis://localhost
python examples/chat.py 9001 redis://localhost

curl -N 'http://127.0.0.1:9000/live?channel=lobby&last_event_id=earliest'
curl -d 'Hello from a shell' http://127.0.0.1:9001/rooms/lobby
"""

import asyncio
import signal
import sys
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application, StaticFileHandler

from waterspout import Channels, Connections, EventSource, PublishHandler, WebSocketSubscriber

WEEK = 7 * 24 * 3600.0


async def main(port: str = "9000", broker: str = "memory://") -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    connections = Connections(max_per_address=1_000)
    async with Channels(broker, namespace="chat:", history=500, retention=WEEK) as channels:
        rooms = {"source": channels}
        application = Application(
            [
                (r"/live/ws", WebSocketSubscriber, {**rooms, "allow_publish": True}),
                # For curl, and for browsers where a WebSocket does not get through.
                (r"/live", EventSource, rooms),
                (r"/rooms/(.+)", PublishHandler, {**rooms, "max_body": 16 * 1024}),
                (r"/()", StaticFileHandler, {"path": Path(__file__).parent, "default_filename": "chat.html"}),
            ],
            waterspout_connections=connections,
            websocket_max_message_size=16 * 1024,
        )
        http = HTTPServer(application)
        http.listen(int(port), "127.0.0.1")
        print(f"The chat is at http://127.0.0.1:{port}/")
        await stopped.wait()
        http.stop()
        await connections.drain(grace=5)  # all are told to come back, to this process or to another one


asyncio.run(main(*sys.argv[1:]))
