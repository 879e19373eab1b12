"""A thin pair beside a dense matrix in 4 bits, against the dense matrix in 4 and in 8 bits and a pair of as many bytes.

What is lost is measured on samples that rounding never saw; time is that of one layer in onnxruntime, in turns.
`python bench/measure_residual.py` keeps it in bench/results/residual.json.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import load_target
from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4, NBITS8
from edgepack.backends.schemes import CORRECTED
from edgepack.cost.measure import QUICK, STANDARD, measure_points
from edgepack.cost.sizes import size_bytes
from edgepack.devices.local import LocalDevice
from edgepack.factorize import whitened
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.kinds import views_of
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.layer import View
from edgepack.model.point import linear_point_in
from edgepack.model.scheme import Scheme
from edgepack.model.structure import DENSE as DENSE_LAYER
from edgepack.model.structure import Structure, low_rank, low_rank_correction
from edgepack.model.types import Moments
from edgepack.pipeline.activations import observe
from edgepack.pipeline.datasets import load_data
from edgepack.pipeline.rounding import Correction, rounded_correction
from edgepack.plan.candidates import correction_ranks
from edgepack.quantize.alternate import alternate
from edgepack.quantize.gptq import gptq, round_to_nearest, row_errors
from edgepack.quantize.grids import WeightGrid, grid_of
from edgepack.quantize.rotation import balanced
from edgepack.sources import open_model
from edgepack.targets.target import HOST
from edgepack.workers import one_thread
from edgepack.workspace import Cache, Workspace

DENSE = (INT8_DYNAMIC, NBITS8, NBITS4)
MODELS = Path(__file__).parent / "models"
SEED = 0


@dataclass(frozen=True)
class _Case:
    """Some layers of a model; `rows` that one inference multiplies."""

    title: str
    model: str
    layers: tuple[int, ...]
    rows: int


CASES = (
    _Case("MNIST MLP", "mnist_mlp.py:recipe", (0,), 1),
    _Case("MiniLM", "minilm.py:recipe", (3, 4, 5), 64),
    _Case("1024x1024, decaying", "layer_4096.py:recipe_1024", (0,), 1),
)


def measure(*, quick: bool = False) -> dict[str, Any]:
    """`layers`: bytes and lost share of every way to write some layers; `times`: seconds of each shape."""
    losses = [row for case in CASES[: 2 if quick else None] for row in _losses(case, quick=quick)]
    shapes = dict.fromkeys((row["out"], row["in"], row["rows"]) for row in losses)
    return {"quick": quick, "layers": losses, "times": _times(list(shapes), quick=quick)}


def _losses(case: _Case, *, quick: bool) -> Iterator[dict[str, Any]]:
    spec = str(MODELS / case.model)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder, one_thread():
        opened = open_model(spec, Path(folder))
        data = load_data(None, opened, spec, SEED)
        views = views_of(opened.layers)
        layers = [views[index] for index in (case.layers[:2] if quick else case.layers)]
        names = [layer.name for layer in layers]
        if data.calibration is None:
            raise ValueError(f"{spec} brings no samples")
        workspace = Workspace(Cache(Path(folder)), Path(folder))
        seen, held = (observe(opened, names, part, workspace) for part in (data.calibration, data.validation))
        for layer in layers:
            ways = dict(_ways(layer, seen[layer.name], held[layer.name]))
            sides = {"out": layer.out_features, "in": layer.in_features, "rows": case.rows}
            yield {"model": case.title, "layer": layer.name, **sides, "ways": ways}


def _ways(layer: View, seen: Moments, held: Moments) -> Iterator[tuple[str, dict[str, float]]]:
    """Name → bytes in the file and share of the output energy lost on samples that were held out."""
    covariance, sides = shrunk_covariance(seen), (layer.out_features, layer.in_features)
    exact = layer.weight.astype(np.float64)
    whole = float(row_errors(exact, held.covariance).sum())

    def row(scheme: Scheme, structure: Structure, weight: npt.NDArray[Any]) -> dict[str, float]:
        lost = float(row_errors(weight - exact, held.covariance).sum()) / whole
        return {"size_bytes": _size(layer, scheme, structure), "lost_share": float(f"{lost:.4g}")}

    for scheme in DENSE:
        grid = _grid(scheme, layer.in_features)
        yield f"dense {scheme}, nearest", row(scheme, DENSE_LAYER, round_to_nearest(layer.weight, grid).weight)
        yield f"dense {scheme}, GPTQ", row(scheme, DENSE_LAYER, gptq(layer.weight, covariance, grid).weight)
    ranks = correction_ranks(*sides)
    for rank in ranks:
        both = rounded_correction(Correction(layer, seen, NBITS4, rank, SEED))
        weight = both.base + both.A.astype(np.float64) @ both.B
        yield f"dense nbits4 + rank {rank} nbits8", row(NBITS4, low_rank_correction(rank), weight)
    for rank in ranks:
        own = _rank_of(layer, _size(layer, NBITS4, low_rank_correction(rank)))
        yield f"pair nbits8 of as many bytes as with rank {rank}", row(NBITS8, low_rank(own), _pair(layer, seen, own))


def _size(layer: View, scheme: Scheme, structure: Structure) -> int:
    """Bytes in the file."""
    return size_bytes(scheme, linear_ops(layer.out_features, layer.in_features, structure, 1), layer.bias)


def _rank_of(layer: View, size: int) -> int:
    """The largest multiple of 8 at which a pair in 8 bits takes no more bytes."""
    ranks = range(8, min(layer.weight.shape) + 1, 8)
    return max(rank for rank in ranks if _size(layer, NBITS8, low_rank(rank)) <= size)


def _pair(layer: View, seen: Moments, rank: int) -> npt.NDArray[np.float64]:
    spectrum = whitened.spectrum(replace(layer, moments=seen))
    pair = balanced(whitened.factors(layer, spectrum, rank), spectrum, seed=SEED)
    grids = _grid(NBITS8, rank), _grid(NBITS8, layer.in_features)
    found = alternate(layer.weight, pair, shrunk_covariance(seen), grids, rounds=0).factors(None)
    return np.asarray(found.A.astype(np.float64) @ found.B)


def _grid(scheme: Scheme, columns: int) -> WeightGrid:
    grid = grid_of(scheme, columns)
    if grid is None:
        raise ValueError(f"{scheme} has no grid")
    return grid


def _times(shapes: list[tuple[int, int, int]], *, quick: bool) -> list[dict[str, Any]]:
    """Seconds of one layer of each shape in every scheme, the call of the runtime taken off."""
    points = [
        linear_point_in(scheme, structure, (rows, columns), batch)
        for rows, columns, batch in shapes
        for scheme, structures in (
            *((scheme, (DENSE_LAYER,)) for scheme in DENSE),
            *((scheme, map(low_rank_correction, correction_ranks(rows, columns))) for scheme in CORRECTED["onnx"]),
            (NBITS8, map(low_rank, correction_ranks(rows, columns))),
        )
        for structure in structures
    ]
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        turns = QUICK if quick else STANDARD
        table = measure_points(LocalDevice(), load_target(HOST), points, turns=turns, cache=Cache(Path(folder)))
    return [
        {
            "out": point.out_features,
            "in": point.in_features,
            "rows": point.batch,
            "form": point.scheme.name,
            "structure": point.structure.name,
            "rank": point.rank,
            "seconds": float(f"{table.entries[point].seconds:.4g}"),
            "spread_share": float(f"{table.entries[point].spread_share:.2g}"),
        }
        for point in points
    ]


if __name__ == "__main__":
    from figures_file import store

    store("residual", measure(quick="--quick" in sys.argv))
