"""Model files of one layer with random weights: what a layer's cost is counted and timed on.

No target changes them. They are small graphs as edgepack emits them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgepack.backends.registry import backend
from edgepack.model.point import Point, layer_of
from edgepack.model.scheme import Format
from edgepack.sealed import is_whole, note_digest
from edgepack.workspace import Progress, atomic_path, default_root, digest, silent, tool_versions


def layer_files(points: Iterable[Point], progress: Progress = silent) -> dict[Point, Path]:
    """The file of every point in the cache folder, written where it is not there, or damaged.

    Args:
        points: what to write.
        progress: told of every file.

    Raises:
        ModelError: a scheme cannot be written, or what writes it is not installed.
        OutputError: the cache folder cannot be written.
    """
    wanted = list(points)
    folders = {fmt: _folder(fmt) for fmt in {point.format for point in wanted}}
    paths = {point: folders[point.format] / _name(point) for point in wanted}
    missing = sorted((point for point, path in paths.items() if not is_whole(path, _noted(path))), key=_order)
    for fmt in sorted({point.format for point in missing}):
        own = [point for point in missing if point.format == fmt]
        for done, layer in enumerate(backend(fmt).one_ops(own), start=1):
            with atomic_path(paths[layer.point]) as out:
                backend(fmt).one_op.run(layer, out)
                with atomic_path(_noted(paths[layer.point])) as noted:
                    note_digest(out, noted)
            progress(f"one-layer files, {fmt}", done, len(own))
    return paths


def _folder(fmt: Format) -> Path:
    """Names of these files are for people: what else they depend on stands in the folder's name."""
    step = backend(fmt).one_op
    return default_root() / step.name / digest(step.version, tool_versions(step.tools))[:12]


def _noted(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _name(point: Point) -> str:
    sides = "x".join(map(str, (point.out_features, point.in_features, *point.kernel)))
    structure = "-".join(map(str, (point.structure.name, *point.structure.ranks)))
    return f"{sides}.{structure}.batch{point.batch}.{point.scheme}.{point.format}"


def _order(point: Point) -> tuple[Any, ...]:
    rows, columns, batch, kernel = layer_of(point)
    return point.format, kernel, batch, rows, columns, point.rank or 0, point.structure.name, point.scheme.name
