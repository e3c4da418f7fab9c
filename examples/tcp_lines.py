"""Lines over TCP: a server for everything that has a socket, and the client that comes back by itself.

nc localhost 5567, and then: SUBSCRIBE
"""

import asyncio
import sys

from waterspout import LineClient, LineServer, QueueStore

store = QueueStore()


async def main(port: int) -> None:
    server = LineServer(store, allow_publish=True)
    server.listen(port, "127.0.0.1")
    store.submit("what came before")
    async with LineClient("127.0.0.1", port) as client:
        await client.publish("updates", "two\nlines are one message")
        async for message in client.subscribe("updates", after="earliest"):
            print(message.data)
            if message.data.startswith("two"):
                break
    await server.drain()


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5567))
