"""`waterspout connect`: a line server, by hand."""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator
from typing import Final

import click

from ._lines import Lines
from ._options import fail, say

PORT: Final = 5567

_ADDRESS: Final = re.compile(
    r"(?:(?P<scheme>tcp|tls)://)?(?:\[(?P<ipv6>[^]\s]+)]|(?P<host>[^][:/@\s]+))(?::(?P<port>[0-9]{1,5}))?"
)

CONNECT_TIMEOUT: Final = 10.0

LAST_WORDS: Final = 2.0
"""Seconds without a word after which a server has answered what was said before the end."""


@click.command()
@click.argument("address", metavar="[HOST[:PORT]]", default="localhost")
@click.option("--tls", is_flag=True, help="Connect by TLS; SSL_CERT_FILE names certificates to trust.")
def connect(address: str, tls: bool) -> None:
    """Talk to a line server: what you type is sent, line by line, and what it says is printed meanwhile.

    EXIT, or the end of the input, disconnects. HOST is localhost, and PORT 5567, unless named. Before
    them tls:// may stand, as `waterspout serve` prints it, and means --tls.

    \b
    SUBSCRIBE               messages of the default channel
    SUBSCRIBE news          messages of the channel news
    PUBLISH news Hello      a message to all of its subscribers
    """
    try:
        scheme, host, port = _parse(address)
        sys.exit(asyncio.run(_connect(host, port, tls or scheme == "tls")))
    except ValueError as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone; let nothing be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)


def _parse(address: str) -> tuple[str | None, str, int]:
    """Scheme (if there is one), host and port. Raises ValueError."""
    found = _ADDRESS.fullmatch(address)
    port = int(found["port"] or PORT) if found else 0
    if not found or not 0 < port < 65536:
        raise ValueError(f"an address is HOST, HOST:PORT or tls://HOST:PORT, not {address!r}")
    return found["scheme"], found["ipv6"] or found["host"], port


async def _connect(host: str, port: int, tls: bool) -> int:
    """The exit status."""
    lines = Lines()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            context = ssl.create_default_context() if tls else None
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except OSError as error:
        fail(f"cannot connect to {host}:{port}: {str(error) or 'no answer'}", status=1)
    say(f"connected to {host}:{port}; EXIT disconnects")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    hearing = asyncio.ensure_future(_hear(reader, decoder))
    speaking = asyncio.ensure_future(_speak(lines, writer))
    try:
        done, _ = await asyncio.wait([hearing, speaking], return_when=asyncio.FIRST_COMPLETED)
        if speaking in done and speaking.result():
            hearing.cancel()
            await asyncio.wait([hearing])
            broken = await _hear(reader, decoder, silence=LAST_WORDS)
            if broken is None:
                return 0
        else:
            broken = hearing.result() if hearing in done else None
        say(f"the server has closed the connection{f': {broken}' if broken else ''}")
        return 1
    finally:
        writer.transport.abort()


async def _hear(
    reader: asyncio.StreamReader, decoder: codecs.IncrementalDecoder, silence: float | None = None
) -> OSError | None:
    """Print what the server says, until it closes, or says nothing for so many seconds. Returns what broke it off."""
    while True:
        try:
            async with asyncio.timeout(silence):
                data = await reader.read(65536)
        except TimeoutError:
            return None
        except OSError as error:  # a reset, or what TLS has against it
            return error
        if not data:
            return None
        click.echo(decoder.decode(data).replace("\r\n", "\n"), nl=False)


async def _speak(lines: Lines, writer: asyncio.StreamWriter) -> bool:
    """Send what is typed; whether that ended before the connection. Raises `BadMessage` for what is no text."""
    try:
        async for line in _typed(lines):
            writer.write(f"{line}\r\n".encode())
            await writer.drain()
        writer.write(b"QUIT\r\n")
        await writer.drain()
    except (ConnectionError, ssl.SSLError):
        return False
    return True


async def _typed(lines: Lines) -> AsyncIterator[str]:
    """All lines up to EXIT."""
    while batch := await lines.take():
        for line in batch:
            if line in ("EXIT", "QUIT"):
                return
            yield line
