"""Several commands in one round trip: python examples/redis_pipeline.py [redis://localhost]"""

import asyncio
import sys

from waterspout_redis import Client, Pipeline

client = Client(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost", decode="utf-8")


async def main() -> None:
    pipeline = Pipeline()
    pipeline.stack_call("SET", "waterspout:key", "value")
    pipeline.stack_call("GET", "waterspout:key")
    pipeline.stack_call("DEL", "waterspout:key")
    async with client:
        print(await client.call(pipeline))


asyncio.run(main())
