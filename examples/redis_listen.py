"""What is published on a channel, for ever: python examples/redis_listen.py [redis://localhost]"""

import asyncio
import sys
from contextlib import suppress

from waterspout_redis import Gap, PubSubClient, PubSubMessage


async def main(url: str) -> None:
    async with PubSubClient(url) as pubsub:
        await pubsub.subscribe("news")  # returns when the server has confirmed
        async for item in pubsub:  # or: async for batch in pubsub.batches()
            match item:
                case PubSubMessage(channel, data):
                    print(channel.decode(), data.decode(), flush=True)
                case Gap(seconds):
                    print(f"the link was away for {seconds:.1f} s: something may have been missed", flush=True)


with suppress(KeyboardInterrupt):
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost"))
