"""Settings of the site. `./dev docs` builds it into docs/_build and takes every warning for an error."""

import re
from typing import Any

import waterspout

project = "Waterspout"
author = "The Waterspout authors"
copyright = author
version = release = waterspout.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Waterspout"

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# The included READMEs are written for the repository: their links to its files lead nowhere on the site.
suppress_warnings = ["myst.xref_missing"]

BACKTICKS = re.compile(r"(?<![`:])`([^`]+)`(?!`)(?=(\w?))")


def double_backticks(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A word in backticks is code in the docstrings, as in Markdown; reStructuredText wants two of each for that."""
    text = BACKTICKS.sub(lambda found: f"``{found[1]}``" + ("\\ " if found[2] else ""), "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", double_backticks)
