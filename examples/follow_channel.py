"""Follow a channel through Redis and miss nothing while this program is not running: it keeps its position in a file.

redis-cli FCALL waterspout_publish 1 news Hello
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from waterspout_core import Gap, RedisStore

url = sys.argv[1] if len(sys.argv) > 1 else "redis://localhost"
place = Path(sys.argv[2] if len(sys.argv) > 2 else "news.position")


after = place.read_text() if place.exists() else "earliest"


def keep(position: object) -> None:
    place.write_text(str(position))


async def main() -> None:
    async with RedisStore("news", url) as store, store.subscribe(after=after) as messages:
        async for message in messages:
            print("some were lost" if isinstance(message, Gap) else message.text, flush=True)
            keep(messages.position)


with suppress(KeyboardInterrupt):
    asyncio.run(main())
