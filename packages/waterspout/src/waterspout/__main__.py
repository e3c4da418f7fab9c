"""`python -m waterspout` is the `waterspout` command."""

from .cli import main

main(prog_name="waterspout")
