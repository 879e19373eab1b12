"""Rounding that knows the inputs: the error of each weight is made up for by the weights that are rounded after it.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023) minimises tr(ΔW H ΔWᵀ) greedily, one column after the other. With the Cholesky factor
H = L Lᵀ that is Babai's nearest plane algorithm (Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's
Nearest Plane Algorithm", 2025; Chee et al., "QuIP", NeurIPS 2023, theorem 6): from the last column to the first, column
j is rounded at w_j + Σ_{k>j} Δ_k L_kj / L_jj, and what is left there costs L_jj² each. No inverse of H is needed.

If outputs matter by a metric G as well, tr(G ΔW H ΔWᵀ), the same holds for rows (Tseng, Sun and De Sa,
"Model-Preserving Adaptive Rounding", 2025): rows are rounded in groups, each at its target moved by what the groups
before it left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgepack.errors import DataError
from edgepack.model.types import Array
from edgepack.quantize.grids import Lattice, WeightGrid, decoded, lattice, nearest

DAMPING = 0.01
"""Share of the mean diagonal that is added to the hessian."""

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Steps that are tried for 4-bit weights: to cut off the largest weights costs less than coarse steps for all."""

SHIFTS = (0.0, -0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4)
"""Rows of few weights are rounded on several steps, with the largest weight so many steps off its code: of some draws
of rounding errors the smallest is kept."""

FEW_COLUMNS = 128
PANEL_ROWS = 512
"""Of a product with a wide matrix that is only summed up."""

LEAF = 16
ROW_GROUPS = 4


@dataclass(frozen=True)
class Rounded:
    """A matrix on an integer grid.

    Attributes:
        weight: (out, in) float32, codes × scales exactly. A quantizer that rounds it to nearest with scales from the
            largest weight of each run gives it back to the bit.
        codes: (out, in) int8, without a zero point.
        scales: (out, runs) float32: one run per output channel, or one per block.
    """

    weight: Array
    codes: Array
    scales: Array


@dataclass(frozen=True)
class Planes:
    """A hessian as rounding needs it: made once, used for any number of matrices.

    Attributes:
        hessian: (in, in) float32, as given but for its scale.
        order: (in,) the columns; the last is rounded first.
        lower: (in, in) float32, L with its columns divided by their diagonal, of the damped hessian in that order.
        costs: (in,) float32, L_jj² in that order.
    """

    hessian: Array
    order: Array
    lower: Array
    costs: Array


def planes(hessian: Array, *, damping: float = DAMPING) -> Planes:
    """Cholesky factor of the damped hessian, columns of much energy to be rounded first (act-order).

    Args:
        hessian: (in, in), symmetric and positive semidefinite: the covariance of the inputs where the bias is corrected
            afterwards, else their second moment. One of zeros counts as the identity.
        damping: share of the mean diagonal that is added to the diagonal; more where the factor does not exist yet.

    Raises:
        DataError: the hessian is not finite.
    """
    found = _factor(hessian, damping)
    if found is None:
        identity = np.eye(len(hessian), dtype=np.float32)
        return Planes(identity, np.arange(len(hessian)), identity, np.ones(len(hessian), np.float32))
    lower, order, diagonal = found
    scaled = np.divide(hessian, _level(hessian), out=np.empty_like(hessian, np.float32), casting="same_kind")
    unit = np.divide(lower, diagonal, out=np.empty_like(lower, np.float32), casting="same_kind")
    return Planes(scaled, order, unit, np.square(diagonal).astype(np.float32))


def innovation(hessian: Array) -> float:
    """Share of the energy of features that those rounded after them do not predict: Σ L_jj² / tr H, at most 1.

    What this rounding is expected to leave of the error of rounding to nearest, if all steps are alike.

    Raises:
        DataError: the hessian is not finite.
    """
    found = _factor(hessian, DAMPING)
    return 1.0 if found is None else min(float(np.square(found[2]).astype(np.float32).mean()), 1.0)


def _level(hessian: Array) -> float:
    return float(np.trace(hessian)) / len(hessian)


def _factor(hessian: Array, damping: float) -> tuple[Array, Array, Array] | None:
    """Cholesky factor of the damped hessian in units of its mean diagonal, the order of its columns, and its diagonal;
    None for a hessian of zeros. Matrices of wide layers are large: there is one copy.

    Raises:
        DataError: the hessian is not finite.
    """
    from scipy.linalg import LinAlgError, cholesky

    size = len(hessian)
    if not np.isfinite(hessian).all():
        raise DataError(f"the second moment of {size} features is not finite", hint="look for NaN in the inputs")
    level = _level(hessian)
    if level <= 0:
        return None
    # Divided by its mean diagonal, so that float32 holds it whatever its unit.
    order = np.argsort(np.diag(hessian), kind="stable")
    while True:
        shuffled = hessian[np.ix_(order, order)].astype(np.float64, copy=False)
        shuffled /= level
        shuffled[np.diag_indices(size)] += damping
        try:
            # Transposed, as LAPACK wants columns in a row: it then works in place.
            lower = cholesky(shuffled.T, lower=True, overwrite_a=True, check_finite=False)
            return lower, order, np.diag(lower).copy()
        except LinAlgError:
            damping = max(10 * damping, DAMPING)  # not quite positive semidefinite: rounding errors of the moments


def gptq(
    weight: Array,
    hessian: Array | Planes,
    grid: WeightGrid,
    *,
    outputs: Array | None = None,
    shrinks: tuple[float, ...] | None = None,
) -> Rounded:
    """Round to a grid so that tr(G ΔW H ΔWᵀ) is small, never worse than round to nearest.

    Args:
        weight: (out, in) float32.
        hessian: (in, in) H, or what `planes` made of it.
        grid: per matrix, per output channel or in blocks. Runs of zeros stay zeros, unless `outputs` couples them to
            others.
        outputs: (out, out) G, None for the identity: then every output is rounded by itself, and each is no worse than
            rounded to nearest, but for rows that share a step: they are so together.
        shrinks: of the steps; default: none with 8 bits, `SHRINKS` with 4. Chosen per run, or for all that share a
            step, by the error of rounding to nearest weighted by what it costs here.
    """
    weight = np.asarray(weight, np.float32)
    ready = hessian if isinstance(hessian, Planes) else planes(hessian)
    if shrinks is None:
        shrinks = SHRINKS if grid.bits < 8 else (1.0,)
    on = _one_step(weight, ready, grid, shrinks)

    def rows(part: Array, index: Array | slice) -> Rounded:
        if on is None:
            return _rows(part, ready, grid, shrinks)
        own = on.take(index)
        return _best_rows(part, ready, own, (own,))

    metric = None if outputs is None else planes(outputs)
    found = rows(weight, slice(None)) if metric is None else _coupled_rows(weight, metric, rows)
    if metric is None and on is None:
        return found
    plain = round_to_nearest(weight, grid)
    errors = [_error(one.weight - weight, ready, metric) for one in (found, plain)]
    return found if errors[0] <= errors[1] else plain


def round_to_nearest(weight: Array, grid: WeightGrid) -> Rounded:
    """What every quantizer does: the largest weight of a run gives its scale, each weight its nearest code."""
    on = lattice(weight, grid)
    return _rounded(nearest(weight, on), on)


def row_errors(delta: Array, hessian: Array) -> Array:
    """(out,) of each row of ΔW (out, in): δ H δᵀ, in the number type of the arguments."""
    return np.asarray(((delta @ hessian) * delta).sum(axis=1))


def _rows(weight: Array, ready: Planes, grid: WeightGrid, shrinks: tuple[float, ...]) -> Rounded:
    """Every row by itself: per row the best of round to nearest and of this rounding on a few steps."""
    on = lattice(weight, grid)
    steps = _best_shrink(weight, ready, on, shrinks)
    shifts = SHIFTS if weight.shape[1] <= FEW_COLUMNS else SHIFTS[:1]
    tried = (on.shrunk(steps * np.float32(grid.qmax / (grid.qmax + shift))) for shift in shifts)
    return _best_rows(weight, ready, on, tried)


def _best_rows(weight: Array, ready: Planes, on: Lattice, tried: Iterable[Lattice]) -> Rounded:
    """Per row the best of round to nearest on one lattice, and of this rounding on others."""
    best = _rounded(nearest(weight, on), on)
    least = row_errors(best.weight - weight, ready.hessian)
    for lattice_tried in tried:
        one = _rounded(_nearest_planes(weight, ready, lattice_tried), lattice_tried)
        errors = row_errors(one.weight - weight, ready.hessian)
        better = errors < least
        least = np.where(better, errors, least)
        best = _merged(best, one, better)
    return best


def _merged(first: Rounded, second: Rounded, rows: Array) -> Rounded:
    """The first, but these rows from the second."""
    pairs = ((first.weight, second.weight), (first.codes, second.codes), (first.scales, second.scales))
    return Rounded(*(np.where(rows[:, None], there, here) for here, there in pairs))


def _rounded(codes: Array, on: Lattice) -> Rounded:
    # Zero times a negative step is −0.0, which not every quantizer keeps.
    return Rounded(decoded(codes, on) + np.float32(0), codes.astype(np.int8), np.ascontiguousarray(on.steps.T))


def _one_step(weight: Array, ready: Planes, grid: WeightGrid, shrinks: tuple[float, ...]) -> Lattice | None:
    """The lattice that all rows share; None where each has its own."""
    if not grid.shared:
        return None
    on = lattice(weight, grid)
    return on.shrunk(_best_shrink(weight, ready, on, shrinks, together=True))


def _best_shrink(
    weight: Array, ready: Planes, whole: Lattice, shrinks: tuple[float, ...], *, together: bool = False
) -> Array:
    """(runs, out) of `shrinks`, or (1, 1) where there is one, or one for all runs `together`."""
    costs = np.empty_like(ready.costs)
    costs[ready.order] = ready.costs
    best, least = np.full((1, 1), shrinks[0], np.float32), np.zeros((1, 1))
    for index, shrink in enumerate(shrinks if len(shrinks) > 1 else ()):
        on = whole.shrunk(shrink)
        squares = np.square(decoded(nearest(weight, on), on) - weight) * costs
        errors = np.add.reduceat(squares, np.arange(0, weight.shape[1], on.size), axis=1).T
        errors = errors.sum(keepdims=True) if together else errors
        better = (errors < least) | (index == 0)
        best, least = np.where(better, np.float32(shrink), best), np.where(better, errors, least)
    return best


def _nearest_planes(weight: Array, ready: Planes, on: Lattice) -> Array:
    """(out, in) float32 codes, by halves: the right half first, then all it left is taken to the left half at once."""
    order, lower = ready.order, ready.lower
    exact = np.ascontiguousarray(weight.T[order])
    target, delta = exact.copy(), np.empty_like(exact)
    codes = np.empty_like(exact)
    inverse = 1 / on.steps
    pinned = _pinned(on, len(exact))

    def column(i: int) -> None:
        j = int(order[i])
        run = j // on.size
        found = np.rint(target[i] * inverse[run])
        np.clip(found, on.low[run], on.high[run], out=found)
        if j in pinned:
            rows, held = pinned[j]
            found[rows] = held
        codes[i] = found
        delta[i] = exact[i] - found * on.steps[run]

    def solve(start: int, stop: int) -> None:
        if stop - start <= LEAF:
            for i in range(stop - 1, start - 1, -1):
                if i + 1 < stop:
                    target[i] += lower[i + 1 : stop, i] @ delta[i + 1 : stop]
                column(i)
            return
        middle = (start + stop) // 2
        solve(middle, stop)
        target[start:middle] += lower[middle:stop, start:middle].T @ delta[middle:stop]
        solve(start, middle)

    solve(0, len(exact))
    back = np.empty_like(codes)
    back[order] = codes
    return np.ascontiguousarray(back.T)


def _pinned(on: Lattice, columns: int) -> dict[int, tuple[Array, Array]]:
    """By column: the rows whose pin it is, and the codes they have there."""
    runs, rows = np.nonzero(on.pins >= 0)
    at = on.pins[runs, rows]
    by_column = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[by_column], np.arange(columns + 1))
    found = {}
    for j in range(columns):
        here = by_column[starts[j] : starts[j + 1]]
        if len(here):
            found[j] = rows[here], on.pinned[runs[here], rows[here]]
    return found


def _coupled_rows(weight: Array, metric: Planes, round_rows: Callable[[Array, Array], Rounded]) -> Rounded:
    """Rows in groups, each at its target moved by Σ_K (L_KI L_II⁻¹)ᵀ Δ_K over the groups K before it.

    `round_rows` takes the targets of some rows, and which rows they are.
    """
    from scipy.linalg import solve_triangular

    rows = metric.order
    lower = metric.lower * np.sqrt(metric.costs)
    groups = np.array_split(np.arange(len(rows)), min(ROW_GROUPS, len(rows)))
    delta = np.zeros_like(weight)
    parts: list[Rounded] = []
    for group in reversed(groups):
        first, end = group[0], group[-1] + 1
        block = lower[first:end, first:end]
        moved = weight[rows[group]]
        if end < len(rows):
            # X L_II = L_KI, solved as L_IIᵀ Xᵀ = L_KIᵀ.
            through = solve_triangular(block, lower[end:, first:end].T, lower=True, trans="T", check_finite=False)
            moved = moved + np.asarray(through, np.float32) @ delta[end:]
        one = round_rows(moved, rows[group])
        delta[first:end] = weight[rows[group]] - one.weight
        parts.insert(0, one)
    back = np.argsort(rows, kind="stable")
    stacked = [np.concatenate(arrays) for arrays in zip(*((p.weight, p.codes, p.scales) for p in parts), strict=True)]
    return Rounded(*(array[back] for array in stacked))


def _error(delta: Array, ready: Planes, metric: Planes | None) -> float:
    seen = delta @ ready.hessian
    return float((seen * (delta if metric is None else metric.hessian @ delta)).sum(dtype=np.float64))


def output_energy(matrix: Array, covariance: Array | None, gradient: Array | None = None) -> float:
    """tr(G M C Mᵀ), in float64: of a layer what its output varies, of a difference of weights what is lost by it.

    Args:
        matrix: (out, in) M.
        covariance: (in, in) C of the inputs; None for the identity.
        gradient: (out, out) G; None for the identity.
    """
    if gradient is not None or covariance is None:
        wide = np.asarray(matrix, np.float64)
        seen = wide if covariance is None else wide @ covariance
        return float(np.vdot(seen, wide if gradient is None else gradient @ wide))
    energy = 0.0
    for start in range(0, len(matrix), PANEL_ROWS):  # nothing of the size of a wide layer is made
        rows = np.asarray(matrix[start : start + PANEL_ROWS], np.float64)
        energy += float(np.vdot(rows @ covariance, rows))
    return energy
