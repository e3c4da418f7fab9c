"""Settings of the site. `./dev docs` builds it into docs/_build and takes every warning for an error."""

import re
from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref

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

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = (REPOSITORY, *REPOSITORY.glob("packages/*"))  # where a README may stand
PAGES = {f"packages/{name}/README.md": f"packages/{name}" for name in ("channels", "core", "handlers", "waterspout")}
PAGES["packages/redis-client/README.md"] = "packages/redis"

BACKTICKS = re.compile(r"(?<![`:])`([^`]+)`(?!`)(?=(\w?))")


def double_backticks(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A word in backticks is code in the docstrings, as in Markdown; reStructuredText wants two of each for that."""
    text = BACKTICKS.sub(lambda found: f"``{found[1]}``" + ("\\ " if found[2] else ""), "\n".join(lines))
    lines[:] = text.split("\n")


def follow_the_repository(app: Any, doctree: Any) -> None:
    """The included READMEs are written for the repository: their links lead to the page that shows the file. Where none
    does they are no links here, and what leads to no file at all is a mistake, which myst tells."""
    for node in tuple(doctree.findall(pending_xref)):
        target, _, anchor = node["reftarget"].partition("#")
        folder = next((folder for folder in FOLDERS if (folder / target).exists()), None)
        if node["reftype"] != "myst" or node["refdomain"] == "doc" or not target or folder is None:
            continue
        file = (folder / target).resolve().relative_to(REPOSITORY).as_posix()
        page = PAGES.get(file, file.removeprefix("docs/").removesuffix(".md"))
        if page in app.env.found_docs:
            node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", page, anchor or None
        else:
            node.replace_self(node.children)


def setup(app: Any) -> None:
    app.connect("doctree-read", follow_the_repository)
    app.connect("autodoc-process-docstring", double_backticks)
