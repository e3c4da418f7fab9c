"""The publisher of `fanout_redis.py`, as another web process would publish: through channels of its own."""

from __future__ import annotations

import asyncio
import sys

from fanout_servers import payload

from waterspout_channels import Channels


async def main(broker: str, history: int, names: list[str], rate: float, seconds: float) -> None:
    """Publish to the channels in turn, `rate` messages a second in all; print how many each has got."""
    loop = asyncio.get_running_loop()
    channels = Channels(broker, history=history)
    count = round(rate * seconds / len(names))
    begin = loop.time()
    for number in range(1, count + 1):
        for place, name in enumerate(names):
            due = begin + ((number - 1) * len(names) + place) / rate
            await asyncio.sleep(due - loop.time())
            await channels.publish(name, payload(number))
    await channels.aclose()
    print(count)


if __name__ == "__main__":
    broker, history, rate, seconds, *names = sys.argv[1:]
    asyncio.run(main(broker, int(history), names, float(rate), float(seconds)))
