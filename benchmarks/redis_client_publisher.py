"""Publishes for other benchmarks, as cheaply as it can: HOST PORT CHANNEL BYTES CPU…, and a count on each line."""

from __future__ import annotations

import os
import socket
import sys
from typing import Final

AT_ONCE: Final = 500


def main(host: str, port: str, channel: str, size: str, *cpus: str) -> None:
    if cpus:
        os.sched_setaffinity(0, map(int, cpus))
    name, message = channel.encode(), b"x" * int(size)
    command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(message), message)
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as replies:
        for line in sys.stdin:
            left = int(line)
            while left:
                count = min(left, AT_ONCE)
                connection.sendall(command * count)
                for _ in range(count):
                    if replies.readline() != b":1\r\n":
                        sys.exit("nobody or more than one is listening")
                left -= count


if __name__ == "__main__":
    main(*sys.argv[1:])
