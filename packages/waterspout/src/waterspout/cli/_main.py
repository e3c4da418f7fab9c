"""The command and its subcommands."""

from __future__ import annotations

import logging
from typing import Final

import click

from .. import __version__
from ._connect import connect
from ._publish import publish
from ._serve import serve
from ._tail import tail

SILENCE: Final = logging.NullHandler()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="waterspout")
def main() -> None:
    """Realtime publish/subscribe: a push server, and the tools to talk to it."""
    # What is wrong with a connection these tools tell themselves, once; `serve` has a log, where Tornado is heard too.
    logging.getLogger("tornado.general").addHandler(SILENCE)


main.add_command(serve)
main.add_command(publish)
main.add_command(tail)
main.add_command(connect)
