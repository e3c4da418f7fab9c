"""Builds every package and checks the wheels as a user gets them.

Each wheel is built from its sdist and installed into an empty environment of its own, its siblings from the
wheels just built. There every module is imported: what it needs and does not declare is missing, and shows.
At last the integration tests run with all the wheels in place of the sources. Arguments go to pytest.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "scripts" / "probe.py"
PACKAGES = ("redis-client", "core", "handlers", "channels", "waterspout")
UV = os.environ.get("HATCH_UV", "uv")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that was built, and the name of its distribution."""

    distribution: str
    file: Path

    @property
    def requirement(self) -> str:
        return f"{self.distribution} @ {self.file.as_uri()}"


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True)


def build(package: str, place: Path) -> Wheel:
    folder = ROOT / "packages" / package
    distribution = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]["name"]
    run(UV, "build", "--quiet", "--out-dir", place, folder)
    [file] = place.glob(f"{distribution.replace('-', '_')}-*.whl")
    print(f"{file.name} {file.stat().st_size / 1024:.0f} KiB", flush=True)
    return Wheel(distribution, file)


def install(place: Path, wheels: Sequence[Wheel], *requirements: str) -> Path:
    """Make an empty environment with the requirements and what they declare; answer its Python."""
    # A requirement of a sibling means the wheel just built, whatever an index has under that name.
    siblings = place.with_suffix(".txt")
    siblings.write_text("".join(f"{wheel.requirement}\n" for wheel in wheels), "utf-8")
    run(UV, "venv", "--quiet", "--python", sys.executable, place)
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, "--constraints", siblings, *requirements)
    return python


def main() -> None:
    # The environment that runs this script has no place in those it makes.
    for name in ("VIRTUAL_ENV", "PYTHONPATH"):
        os.environ.pop(name, None)

    with tempfile.TemporaryDirectory(prefix="waterspout wheels ") as folder:
        place = Path(folder)
        say("building")
        wheels = [build(package, place) for package in PACKAGES]

        for wheel in wheels:
            say(f"{wheel.distribution} alone")
            python = install(place / wheel.distribution, wheels, wheel.requirement)
            run(python, "-I", PROBE, wheel.distribution)

        say("integration tests with the wheels in place of the sources")
        # With the extras that the pages' examples need.
        wanted = {"waterspout": "test", "waterspout-redis": "commands"}
        files = {wheel.distribution: wheel.file.as_uri() for wheel in wheels}
        python = install(place / "all", wheels, *(f"{name}[{extra}] @ {files[name]}" for name, extra in wanted.items()))
        run(python, "-I", PROBE, "waterspout")
        run(python, "-I", "-m", "pytest", "integration", *sys.argv[1:])


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"\nfailed with status {error.returncode}: {' '.join(error.cmd)}")
