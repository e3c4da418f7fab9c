"""One command to Redis, and its answer: python examples/redis_ping.py [redis://localhost]"""

import asyncio
import sys

from waterspout_redis import Client

client = Client(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost")


async def main() -> None:
    async with client:
        print(await client.call("PING", decode="utf-8"))


asyncio.run(main())
