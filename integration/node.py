"""`Channels` in a process of its own: each line that comes is a command in JSON, each that goes tells something.

python integration/node.py redis://127.0.0.1:6379 <name of the node>
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from waterspout_channels import Channel, Channels, StatusType
from waterspout_core import BrokerError, open_pubsub


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Node:
    """What can be asked for are its methods."""

    def __init__(self, url: str, name: str) -> None:
        # A link in a black hole is soon given up; and none is tested by channels of its own, which would be seen.
        options: dict[str, Any] = {"health_check_interval": 1.0, "connect_timeout": 1.0, "silence": 300.0}
        pubsub = open_pubsub(url, history=100, retention=60.0, **options)
        self.channels = Channels(pubsub, node=name, linger=0.1)
        self.channels.add_status_listener(lambda status: tell(status=status.name))
        self._callbacks: dict[str, Callable[..., object]] = {}
        self._registered: dict[str, Channel] = {}

    def _callback(self, label: str) -> Callable[..., object]:
        def fired(channel: Channel, event: str, data: Any) -> None:
            tell(fired=[label, channel.name, event, data])

        async def fired_later(channel: Channel, event: str, data: Any) -> None:
            await asyncio.sleep(0)
            fired(channel, event, data)

        return self._callbacks.setdefault(label, fired_later if label.startswith("async") else fired)

    async def connect(self, seconds: float) -> None:
        await self.channels.connect(seconds)

    async def register(self, channel: str, event: str, label: str) -> None:
        self._registered[channel] = self.channels.register(channel, event, self._callback(label))

    async def unregister(self, channel: str, event: str, label: str) -> None:
        assert self.channels.unregister(channel, event, self._callback(label)) is not None

    async def ready(self, channel: str) -> None:
        """The broker has confirmed `channel`, which is registered, or the status channel."""
        await self._registered.get(channel, self.channels.status_channel).ready()

    async def publish(self, channel: str, event: str, data: Any) -> str:
        return str(await self.channels.publish(channel, event, data))

    async def registered(self) -> list[str]:
        return list(self.channels)

    async def status(self) -> str:
        return self.channels.status.name

    async def close(self) -> list[str]:
        """Close the channels; the tasks and timers that are left."""
        await self.channels.close()
        assert self.channels.status is StatusType.closed
        loop: Any = asyncio.get_running_loop()
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return [repr(left) for left in (*tasks, *timers)]


async def main(url: str, name: str) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    node = Node(url, name)
    while line := await commands.readline():
        verb, *args = json.loads(line)
        try:
            tell(answer=await getattr(node, verb)(*args))
        except BrokerError as error:
            tell(error=str(error))


if __name__ == "__main__":
    logging.basicConfig()
    asyncio.run(main(*sys.argv[1:]))
