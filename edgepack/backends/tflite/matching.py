"""Which operator of a .tflite file is which matrix: converters rename, scale and fold, but keep the order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.model.kinds.stages import composed
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.torchgraph.match import weight_digest

if TYPE_CHECKING:
    from edgepack.backends.tflite.read import TfliteLinear

TOLERANCE = 1e-4
"""Of a scaled matrix, relative: what folding in float32 leaves; two different weights are about 1 apart."""

_LEAST_ROWS = 4
"""Below, a bias is too short to tell one shift from another."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A matrix to look for.

    Attributes:
        name: unique.
        weight: (out, in) float32.
        uses: how many operators share it.
    """

    name: str
    weight: Array
    uses: int = 1


@dataclass(frozen=True, eq=False)
class Found:
    """An operator that multiplies by rows[:, None] · weight · columns.

    Attributes:
        op: the operator.
        rows: (out,) float64: what the converter folded in from behind, such as attention's 1/√d or a batch norm.
        columns: (in,) float64: what it folded in from before, such as a layer norm's scale.
        sure: False where only shape and order speak for the operator; then both are ones.
    """

    op: TfliteLinear
    rows: Array
    columns: Array
    sure: bool = True

    @property
    def plain_columns(self) -> bool:
        """Nothing is folded in from before."""
        return bool((self.columns == 1.0).all())


def match(ops: Sequence[TfliteLinear], wanted: Sequence[Wanted]) -> dict[str, tuple[Found, ...]]:
    """The operators of each matrix, by name: equal values first, then scaled ones, then the rest by shape and order.

    Equal matrices (clones before training) share their operators out in order, each taking as many as it has uses.

    Args:
        ops: of a float32 file, in order of execution.
        wanted: in order of execution as far as that is known.

    Returns:
        Names without an operator are absent.
    """
    state = _Matching(list(ops), {want.name: [] for want in wanted})
    state.take_equal(wanted)
    state.take_scaled(wanted, beyond_uses=False)
    state.take_scaled(wanted, beyond_uses=True)
    state.take_by_order(wanted)
    return {name: tuple(found) for name, found in state.found.items() if found}


@dataclass
class _Matching:
    left: list[TfliteLinear]
    found: dict[str, list[Found]]

    def take_equal(self, wanted: Sequence[Wanted]) -> None:
        alike: dict[str, list[Wanted]] = {}
        for want in wanted:
            alike.setdefault(weight_digest(want.weight), []).append(want)
        shapes = {want.weight.shape for want in wanted}
        same: dict[str, list[TfliteLinear]] = {}
        for op in self.left:
            if op.weight.shape in shapes:
                same.setdefault(weight_digest(op.weight), []).append(op)
        for digest, clones in alike.items():
            ops = same.get(digest, [])
            for index, want in enumerate(clones):
                count = len(ops) if index == len(clones) - 1 else want.uses
                for op in ops[:count]:
                    self._take(want, op, _ones(op))
                ops = ops[count:]

    def take_scaled(self, wanted: Sequence[Wanted], *, beyond_uses: bool) -> None:
        for want in wanted:
            for op in [op for op in self.left if op.weight.shape == want.weight.shape]:
                if len(self.found[want.name]) >= want.uses and not beyond_uses:
                    break
                scales = scaling(op.weight, want.weight)
                if scales is not None:
                    self._take(want, op, scales)

    def take_by_order(self, wanted: Sequence[Wanted]) -> None:
        """Only where as many operators of a shape are left as matrices need."""
        missing = [want for want in wanted if not self.found[want.name]]
        for shape in dict.fromkeys(want.weight.shape for want in missing):
            needs = [want for want in missing if want.weight.shape == shape for _ in range(want.uses)]
            ops = [op for op in self.left if op.weight.shape == shape]
            if len(needs) == len(ops):
                for want, op in zip(needs, ops, strict=True):
                    self._take(want, op, _ones(op), sure=False)

    def _take(self, want: Wanted, op: TfliteLinear, scales: tuple[Array, Array], sure: bool = True) -> None:
        self.found[want.name].append(Found(op, *scales, sure=sure))
        self.left = [other for other in self.left if other is not op]


def _ones(op: TfliteLinear) -> tuple[Array, Array]:
    return np.ones(op.weight.shape[0]), np.ones(op.weight.shape[1])


def scaling(have: Array, weight: Array) -> tuple[Array, Array] | None:
    """Rows (out,) and columns (in,), float64, with `have` = rows[:, None] · `weight` · columns; None if there are none.

    The simplest that holds: one factor (as rows), rows alone, columns alone, both.
    """
    rows, columns = weight.shape
    squares = np.einsum("ij,ij->", weight, weight, dtype=np.float64)
    if squares == 0.0 or have.shape != weight.shape or not np.any(have):
        return None
    for left, right in _proposals(have, weight, float(squares)):
        if not (np.isfinite(left).all() and np.isfinite(right).all() and left.any() and right.any()):
            continue
        if _distance(have, weight, left, right) < TOLERANCE:
            return np.broadcast_to(left, (rows,)).copy(), np.broadcast_to(right, (columns,)).copy()
    return None


def _proposals(have: Array, weight: Array, squares: float) -> Iterator[tuple[Array, Array]]:
    """Least squares for one factor, rows, columns, both; not those that would fit any matrix of this shape."""
    out, size = weight.shape
    one = np.ones(1)
    product = have.astype(np.float64) * weight
    if weight.size >= 2:
        yield np.array([product.sum() / squares]), one
    square = np.square(weight.astype(np.float64))
    if size >= 2:
        yield _ratio(product.sum(axis=1), square.sum(axis=1)), one
    if out >= 2:
        yield one, _ratio(product.sum(axis=0), square.sum(axis=0))
    if out >= 3 and size >= 3:
        left = _row_sizes(have, weight)
        for _ in range(4):  # alternating least squares from a start that is exact but for zeros in the weight
            right = _ratio(left @ product, np.square(left) @ square)
            left = _ratio(product @ right, square @ np.square(right))
        yield left, right


def _row_sizes(have: Array, weight: Array) -> Array:
    """Rows of have / weight as rows · columns, up to one factor: means of logarithms, signs from the fullest column."""
    known = (weight != 0) & (have != 0)
    ratio = np.divide(have, weight, out=np.ones(have.shape), where=known)
    signs = np.sign(ratio[:, int(known.sum(axis=0).argmax())])
    return np.asarray(signs * np.exp(np.log(np.abs(ratio)).mean(axis=1)))


def _ratio(product: Array, square: Array) -> Array:
    """product / square, 1 where a row of zeros leaves the factor open."""
    return np.divide(product, square, out=np.ones_like(product), where=square > 0)


def _distance(have: Array, weight: Array, left: Array, right: Array) -> float:
    fitted = left[:, None] * weight * right
    return float(np.linalg.norm(have - fitted) / np.linalg.norm(have))


@dataclass(frozen=True, eq=False)
class Fold:
    """An operator of y = W x + b, written for other values: x = scale · x' + shift, y' = gain · y + …

    Attributes:
        op: the operator.
        rows: (out,) and columns: (in,) float64, the operator's weight is rows[:, None] · W · columns.
        gain: (out,) float64; None where it is not known, then the bias may not change.
        shift: (in,) float64 or None for zeros.
        integers: whether the operator computes in integers; its `op` has the bias in float32 then.
    """

    op: TfliteLinear
    rows: Array
    columns: Array
    gain: Array | None
    shift: Array | None
    integers: bool = False

    def bias(self, layer: Layer, part: Replacement) -> Array | None:
        """(out,) float32: the bias of the operator with W and b replaced by the part's; None for none.

        Raises:
            ValueError: the bias changes and the gain is not known.
        """
        written = None if self.op.bias is None else self.op.bias.astype(np.float64)
        change = bias_of(part.bias, layer) - bias_of(layer.bias, layer)
        if self.shift is not None:
            change += _product(part, self.shift) - layer.weight.astype(np.float64) @ self.shift
        if not change.any():
            return self.op.bias
        if self.gain is None:
            raise ValueError("the gain is not known")
        changed = self.gain * change
        return np.asarray(changed if written is None else written + changed, dtype=np.float32)

    def takes(self, layer: Layer, part: Replacement) -> bool:
        """Whether `bias` is known for this part, and a rounded weight stays on its grid."""
        if part.structure.is_dense and not (self.columns == 1.0).all():
            return False
        return self.gain is not None or np.array_equal(bias_of(part.bias, layer), bias_of(layer.bias, layer))


def shifts_by_size(vectors: Sequence[Array]) -> dict[int, Array]:
    """(k, n) float64 by n: the vectors that may have been folded into a bias, such as a layer norm's shift."""
    groups: dict[int, list[Array]] = {}
    for vector in vectors:
        groups.setdefault(vector.size, []).append(vector.reshape(-1).astype(np.float64))
    return {size: np.stack(found) for size, found in groups.items()}


def fold(found: Found, layer: Layer, shifts: Mapping[int, Array]) -> Fold | None:
    """How the layer's bias came into the operator, None where that cannot be told from the two biases.

    With x = scale · x' + shift before the layer, gain behind it, the operator's bias is gain · (b + W shift). One
    shift is looked for among those of the model, and taken only where it gives the operator's bias.

    Args:
        found: the operator.
        layer: with its bias as the source model has it.
        shifts: from `shifts_by_size`, of the source model's constant vectors.
    """
    op, rows, columns = found.op, found.rows, found.columns
    if not found.sure:
        return None
    bias = bias_of(layer.bias, layer)
    gain = rows if found.plain_columns else None
    if op.bias is None or not np.any(op.bias):
        return Fold(op, rows, columns, gain, None)
    if gain is not None and _near(op.bias, gain * bias):
        return Fold(op, rows, columns, gain, None)
    if len(bias) < _LEAST_ROWS or np.ptp(rows) > TOLERANCE * np.abs(rows).max():
        return None
    known = shifts.get(layer.in_features, np.zeros((0, layer.in_features)))
    tried = np.concatenate([np.zeros((1, layer.in_features)), known])
    shifted = bias + tried @ layer.weight.astype(np.float64).T
    squares = np.einsum("ij,ij->i", shifted, shifted)
    factors = np.divide(shifted @ op.bias.astype(np.float64), squares, out=np.zeros(len(tried)), where=squares > 0)
    errors = np.linalg.norm(factors[:, None] * shifted - op.bias, axis=1) / np.linalg.norm(op.bias)
    best = int(errors.argmin())
    if errors[best] > TOLERANCE or (gain is not None and not _near(gain[:1], factors[best : best + 1])):
        return None
    return Fold(op, rows, columns, np.full(len(bias), factors[best]), tried[best] if best else None)


def _near(have: Array, want: Array) -> bool:
    return float(np.linalg.norm(have - want)) <= TOLERANCE * float(np.linalg.norm(want))


def _product(part: Replacement, x: Array) -> Array:
    if not part.structure.of_a_matrix:
        return np.asarray(composed(part).astype(np.float64) @ x)
    if part.structure.ranks:
        return np.asarray(part.A.astype(np.float64) @ (part.B @ x))
    return np.asarray(part.weight.astype(np.float64) @ x)


def bias_of(bias: Array | None, layer: Layer) -> Array:
    """(out,) float64, of zeros where a layer has none."""
    return np.zeros(layer.out_features) if bias is None else bias.astype(np.float64)
