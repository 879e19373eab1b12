"""Where the files that ship beside the Python code are: `targets.yaml` and `runtimes/`.

In a wheel they lie inside the package; in a checkout they lie at its top. Both are plain folders.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from edgepack.errors import StableDeviceError


def shipped(name: str) -> Path:
    """Path of a shipped file, such as `"targets.yaml"` or `"runtimes/runner.py"`.

    Raises:
        StableDeviceError: the file is missing from this installation.
    """
    package = files("edgepack")
    installed = package.joinpath(*name.split("/"))
    if installed.is_file():
        with as_file(installed) as path:  # a folder install: the path stays valid after the block
            return path
    checkout = Path(__file__).resolve().parent.parent / name
    if checkout.is_file():
        return checkout
    raise StableDeviceError(
        f"edgepack's own file {name} is missing: found neither {installed} nor {checkout}",
        hint="reinstall edgepack: this installation is incomplete",
    )
