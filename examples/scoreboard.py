"""The score-board of "Real time Python via TCP", with doors for all: whoever says it, everybody sees it.

python examples/scoreboard.py 9000 5567 redis://localhost

redis-cli PUBLISH updates 'Malmö 1:0 Gent'
nc localhost 5567, and then: SUBSCRIBE, or: PUBLISH updates Malmö 2:0 Gent
"""

import asyncio
import re
import signal
import sys
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application, StaticFileHandler

from waterspout import Channel, Channels, Connections, DataStore, EventSource, LineServer

MOST = 50  # matches on the board

matches: dict[tuple[str, str], list[int]] = {}
board = DataStore([])


def keep(channel: Channel, event: str, line: object) -> None:
    """Put a line such as "Malmö 1:0 Gent" on the board; whoever comes later to this process sees it."""
    found = re.fullmatch(r"(\S.{0,39}) (\d{1,3}):(\d{1,3}) (\S.{0,39})", str(line))
    if found:
        home, *goals, away = found.groups()
        matches[home, away] = [int(number) for number in goals]
        if len(matches) > MOST:
            del matches[next(iter(matches))]
        board.set_data([{"home": home, "away": away, "goals": goals} for (home, away), goals in matches.items()])


async def main(http_port: str = "9000", tcp_port: str = "5567", broker: str = "memory://") -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    connections = Connections(max_per_address=1_000)
    # Without a history a line is at Redis what it is everywhere, and any program can send or read it.
    async with Channels(broker, history=0) as channels:
        channels.register("updates", "*", keep)
        await channels.connect()
        application = Application(
            [
                (r"/board", EventSource, {"store": board}),
                (r"/()", StaticFileHandler, {"path": Path(__file__).parent, "default_filename": "scoreboard.html"}),
            ],
            waterspout_connections=connections,
        )
        http = HTTPServer(application)
        http.listen(int(http_port), "127.0.0.1")
        lines = LineServer(source=channels, connections=connections, allow_publish=True)
        lines.listen(int(tcp_port), "127.0.0.1")
        print(f"The score-board is at http://127.0.0.1:{http_port}/, its lines at 127.0.0.1:{tcp_port}")
        await stopped.wait()
        http.stop()
        lines.stop()
        await connections.drain(grace=5)


asyncio.run(main(*sys.argv[1:]))
