"""Looks at an installed distribution from inside: is it whole, and does it need only what it declares?

Runs in an environment that has nothing but the distribution, so it uses the standard library only.
"""

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib import metadata


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def optional(distribution: str) -> set[str]:
    """The names of what the distribution needs for its extras only."""
    lines = metadata.requires(distribution) or []
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in lines if "extra ==" in line}


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def wants(error: ImportError) -> str:
    """The name of the distribution that is missing, as far as it is told."""
    names = [cause.name for cause in chain(error) if isinstance(cause, ImportError) and cause.name]
    return normal(names[-1].partition(".")[0]) if names else ""


def check(distribution: str) -> None:
    package = importlib.import_module(distribution.replace("-", "_"))
    files = {str(path) for path in metadata.files(distribution) or []}
    assert "site-packages" in str(package.__file__), f"{package.__file__} is no installed wheel"
    assert package.__version__ == metadata.version(distribution), "__version__ is not the built one"
    assert f"{package.__name__}/py.typed" in files, "py.typed is missing"
    assert any(file.endswith("/licenses/LICENSE") for file in files), "LICENSE is missing"

    extras = optional(distribution)
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [name for name in found if not name.endswith(".__main__")]  # which would run
    waiting = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            # Only an extra may be missed.
            if wants(error) not in extras:
                raise
            waiting.append(f"{module} (for {wants(error)})")
    installed = sorted(normal(each.name) for each in metadata.distributions())
    print(f"  installed: {', '.join(installed)}")
    print(f"  imported:  {package.__name__} {package.__version__}, {len(modules) + 1 - len(waiting)} modules")
    if waiting:
        print(f"  not there without an extra: {', '.join(waiting)}")


if __name__ == "__main__":
    check(sys.argv[1])
