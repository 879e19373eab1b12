"""Puts `targets.yaml` and `runtimes/`, which lie at the top of the repository, inside the package in a wheel.

Everything else about the project is in pyproject.toml.
"""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TOP = Path(__file__).parent
SHIPPED = ("targets.yaml", "runtimes")
VENDORED = "runtimes/browser/vendor/versions.json"


def shipped_files() -> list[Path]:
    """Paths from the top of the repository, sorted."""
    found = [path for name in SHIPPED for path in (TOP / name, *(TOP / name).rglob("*")) if path.is_file()]
    return sorted(path.relative_to(TOP) for path in found if path.suffix != ".pyc")


class BuildWithShipped(build_py):
    """Copies the shipped files into the built package; an editable install reads them where they are."""

    def run(self) -> None:
        """See setuptools."""
        if not self.editable_mode and not (TOP / VENDORED).is_file():
            sys.exit(f"{VENDORED} is missing: a wheel has the runtimes of the browser's page. Fetch them: make vendor")
        super().run()
        if self.editable_mode:
            return
        for path in shipped_files():
            target = Path(self.build_lib) / "edgepack" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(TOP / path), str(target))


setup(cmdclass={"build_py": BuildWithShipped})
