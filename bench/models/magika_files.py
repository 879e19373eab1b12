"""Real files of this machine as inputs of magika, Google's file type detector, whose model comes inside its package."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgepack.model.types import Array

CALIBRATION, TESTED = 512, 500
BLOCK, SIDE, PADDING = 4096, 1024, 256
PER_SUFFIX = 60


def features(path: Path) -> Array:
    """(2048,) int32: what magika reads of a file, its first and last bytes without white space around."""
    with path.open("rb") as stream:
        head = stream.read(BLOCK)
        stream.seek(-min(BLOCK, path.stat().st_size), os.SEEK_END)
        tail = stream.read(BLOCK)
    first, last = head.lstrip()[:SIDE], tail.rstrip()[-SIDE:]
    row = np.full(2 * SIDE, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * SIDE - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def some_files(per_suffix: int) -> Iterator[Path]:
    """Files of the Python installation, its packages and the system, few of each kind, in a fixed order."""
    seen: Counter[str] = Counter()
    for root in (sysconfig.get_path("platlib"), sysconfig.get_path("stdlib"), "/usr/share", "/usr/lib", "/usr/bin"):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - {"__pycache__"})
            for name in sorted(names):
                path = Path(folder, name)
                if seen[path.suffix] < per_suffix and path.is_file() and path.stat().st_size >= 16:
                    seen[path.suffix] += 1
                    yield path


def rows(per_suffix: int = PER_SUFFIX) -> Array:
    """(N, 2048) int32: files that differ from each other, shuffled."""
    unique = np.unique(np.stack([features(path) for path in some_files(per_suffix)]), axis=0)
    return np.random.default_rng(0).permutation(unique)


def model_path() -> Path:
    """The model of the installed package.

    Raises:
        ModuleNotFoundError: magika is not installed.
    """
    spec = importlib.util.find_spec("magika")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("magika is not installed", name="magika")
    return Path(spec.submodule_search_locations[0]) / "models" / "standard_v3_3" / "model.onnx"


def write_data(folder: Path) -> tuple[Path, Path]:
    """`.npz` files to calibrate and to test on, of different files.

    Raises:
        ValueError: this machine has too few files.
    """
    found = rows()
    if len(found) < CALIBRATION + TESTED:
        raise ValueError(f"{len(found)} files that differ, expected {CALIBRATION + TESTED} or more")
    calibration, test = folder / "calibration.npz", folder / "test.npz"
    np.savez(calibration, bytes=found[:CALIBRATION])
    np.savez(test, bytes=found[CALIBRATION : CALIBRATION + TESTED])
    return calibration, test
