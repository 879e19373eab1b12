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

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4, NBITS8
from edgepack.bench.devices.local import LocalDevice
from edgepack.executor import one_thread
from edgepack.factorize import whitened
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.kinds import views_of
from edgepack.model.kinds.linear import linear_ops
from edgepack.model.layer import View
from edgepack.model.scheme import Scheme
from edgepack.model.structure import DENSE, Structure, low_rank, low_rank_correction
from edgepack.pipeline.beside import rounded_beside
from edgepack.pipeline.guarding import load_data
from edgepack.pipeline.measuring import QUICK, STANDARD, measure_points
from edgepack.pipeline.moments import observe
from edgepack.pipeline.opened import open_model
from edgepack.plan.candidates import residual_ranks
from edgepack.plan.sizes import size_bytes
from edgepack.plan.table import linear_point_in
from edgepack.progress import silent
from edgepack.quantize.alternate import alternate
from edgepack.quantize.gauge import balanced
from edgepack.quantize.gptq import gptq, round_to_nearest, row_errors
from edgepack.quantize.lattice import WeightGrid, grid_of
from edgepack.targets import HOST, get_target
from edgepack.types import Moments

DENSE_SCHEMES = (INT8_DYNAMIC, NBITS8, NBITS4)
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
        seen, held = (observe(opened.model, names, part, silent, None) for part in (data.calibration, data.guard))
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
        return {"size_bytes": _size(scheme, structure, sides), "lost_share": float(f"{lost:.4g}")}

    for scheme in DENSE_SCHEMES:
        grid = _grid(scheme, layer.in_features)
        yield f"dense {scheme}, nearest", row(scheme, DENSE, round_to_nearest(layer.weight, grid).weight)
        yield f"dense {scheme}, GPTQ", row(scheme, DENSE, gptq(layer.weight, covariance, grid).weight)
    ranks = residual_ranks(*sides)
    for rank in ranks:
        both = rounded_beside(layer, seen, NBITS4, rank, seed=SEED)
        weight = both.base + both.A.astype(np.float64) @ both.B
        yield f"dense nbits4 + rank {rank} nbits8", row(NBITS4, both.structure, weight)
    for rank in ranks:
        own = _rank_of(_size(NBITS4, low_rank_correction(rank), sides), sides)
        yield f"pair nbits8 of as many bytes as with rank {rank}", row(NBITS8, low_rank(own), _pair(layer, seen, own))


def _size(scheme: Scheme, structure: Structure, sides: tuple[int, int]) -> int:
    """Bytes in the file, with a bias."""
    return size_bytes(scheme, linear_ops(*sides, structure, 1), np.zeros(sides[0], np.float32))


def _rank_of(size: int, sides: tuple[int, int]) -> int:
    """The largest multiple of 8 at which a pair in 8 bits takes no more bytes."""
    ranks = range(8, min(sides) + 1, 8)
    return max(rank for rank in ranks if _size(NBITS8, low_rank(rank), sides) <= size)


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
            *((scheme, [DENSE]) for scheme in DENSE_SCHEMES),
            (NBITS4, map(low_rank_correction, residual_ranks(rows, columns))),
            (NBITS8, map(low_rank, residual_ranks(rows, columns))),
        )
        for structure in structures
    ]
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        turns = QUICK if quick else STANDARD
        table = measure_points(LocalDevice(), get_target(HOST), points, turns=turns, root=Path(folder))
    return [
        {
            "out": point.out_features,
            "in": point.in_features,
            "rows": point.batch,
            "form": f"{point.scheme}-residual" if point.structure.is_correction else point.scheme.name,
            "rank": point.rank,
            "seconds": float(f"{table.entries[point].seconds:.4g}"),
            "spread_share": float(f"{table.entries[point].spread_share:.2g}"),
        }
        for point in points
    ]


if __name__ == "__main__":
    from figures import store

    store("residual", measure(quick="--quick" in sys.argv))
