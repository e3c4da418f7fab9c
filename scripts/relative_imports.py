"""Checks that the Redis client imports itself relatively only, so that its folder works under any name."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "waterspout_redis"
SOURCES = Path(__file__).resolve().parent.parent / "packages" / "redis-client" / "src" / PACKAGE


def absolute_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each import of the package by its own name."""
    for node in ast.walk(ast.parse(path.read_bytes(), path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == PACKAGE)


def main() -> int:
    modules = sorted(SOURCES.rglob("*.py"))
    if not modules:
        print(f"no modules in {SOURCES}")
        return 1
    found = [(path, line, name) for path in modules for line, name in absolute_imports(path)]
    for path, line, name in found:
        print(f"{path}:{line}: {name} must be imported relatively, so that the folder can be vendored")
    if not found:
        print(f"{PACKAGE}: {len(modules)} modules, relative imports only")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
