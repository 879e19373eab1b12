"""Proofs on every emitted file, from what was read back of it and what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from edgepack.metrics import sqnr_db
from edgepack.types import Array, Contents, LayerPlan, Proof

MIN_SQNR_DB: Mapping[str, float] = {
    "fp32": 60.0,
    "int8-dynamic": 10.0,
    "int8-dynamic-range": 10.0,
    "int8-static-qdq": 10.0,
    "int8-static": 10.0,
}
"""Tolerance of a form: signal to noise of its outputs against the fp32 factored reference. Integers carry the noise of
every layer they pass, and no more than a third of the signal may be noise; what that costs is for the metric to say."""

PADDING = 16
"""Blocked layouts of a runtime round channels up to at most a multiple of this."""


def same_outputs(outputs: Array, reference: Array, form: str) -> Proof:
    """The file loads in its runtime and answers like the fp32 factored reference, within its form's tolerance."""
    if outputs.shape != reference.shape:
        return Proof("outputs", False, f"shape {outputs.shape}, the reference has {reference.shape}")
    noise = sqnr_db(outputs, reference)
    least = MIN_SQNR_DB[form.partition("+")[0]]
    passed = bool(np.isfinite(outputs).all()) and noise >= least
    return Proof("outputs", passed, f"{noise:.1f} dB against the fp32 factored model, at least {least:.0f} dB")


def two_thin_matmuls(optimized: Contents, layers: Sequence[LayerPlan]) -> Proof:
    """After the runtime's own optimisation every factored layer is two thin matmuls and no dense matrix is back."""
    found = Counter((a, b) for a, b, _ in optimized.weights)
    dense = Counter(_sides(p.out_features, p.in_features) for p in layers if p.rank is None)
    thin = Counter(side for p in layers if p.rank is not None for side in _thin(p))
    missing = [f"{a}×{b}" for a, b in _missing(thin, found)]
    gone = {_sides(p.out_features, p.in_features) for p in layers if p.rank is not None}
    back = [f"{a}×{b}" for a, b in gone if found[a, b] > dense[a, b] + thin[a, b]]
    detail = f"{sum(thin.values())} thin matrices in the runtime's graph" if not missing and not back else ""
    if missing:
        detail += f"missing: {', '.join(missing)} "
    if back:
        detail += f"dense again: {', '.join(back)}"
    return Proof("two-thin-matmuls", not missing and not back, detail.strip())


def _thin(plan: LayerPlan) -> tuple[tuple[int, int], tuple[int, int]]:
    rank = plan.rank or 0
    return _sides(plan.out_features, rank), _sides(rank, plan.in_features)


def _sides(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


def _missing(wanted: Counter[tuple[int, int]], found: Counter[tuple[int, int]]) -> list[tuple[int, int]]:
    """Wanted sides without a matrix of their own: an exact one first, else a padded one that nothing else needs."""
    spare = found - wanted
    missing = []
    for a, b in sorted((wanted - found).elements(), reverse=True):
        padded = [s for s in spare.elements() if a <= s[0] < a + PADDING and b <= s[1] < b + PADDING]
        if padded:
            spare[min(padded)] -= 1
        else:
            missing.append((a, b))
    return missing


def weights_as_planned(emitted: Contents, source: Contents, layers: Sequence[LayerPlan], weight_bytes: int) -> Proof:
    """The file holds exactly the matrix elements of the plan, each in the form's width.

    Args:
        emitted: of the emitted file, not optimized.
        source: of the dense fp32 file.
        weight_bytes: bytes per weight in the form.
    """
    elements = sum(a * b for a, b, _ in source.weights)
    elements += sum(p.weight_parameters - p.out_features * p.in_features for p in layers)
    found = sum(a * b for a, b, _ in emitted.weights)
    wide = sum(a * b * (width - weight_bytes) for a, b, width in emitted.weights if width > weight_bytes)
    detail = f"{found} matrix elements, {elements} planned, {elements * weight_bytes} bytes"
    if wide:
        detail += f" + {wide} bytes for matrices that the form leaves wider"
    return Proof("weight-bytes", found == elements, detail)


def biases_intact(emitted: Contents, biases: Mapping[str, Array]) -> Proof:
    """The bias of every layer stands in the file: as it is, times a folded-in constant, or on an integer grid."""
    lost = [name for name, bias in biases.items() if not any(_is_bias(v, bias) for v in emitted.vectors)]
    detail = f"{len(biases)} biases found" if not lost else f"lost: {', '.join(lost)}"
    return Proof("biases", not lost, detail)


def _is_bias(vector: Array, bias: Array) -> bool:
    """Whether `vector` is a multiple of `bias`: converters fold an attention's 1/√d into a layer, a sign into a Sub."""
    norm = float(np.dot(vector, vector)) if vector.shape == bias.shape else 0.0
    if norm == 0.0 or not np.isfinite(norm):
        return False
    fitted = float(np.dot(bias, vector)) / norm * vector
    return bool(np.abs(fitted - bias).max() <= 2e-3 * float(np.abs(bias).max()) + 1e-6)
