"""Layers stored in code: a few operators that ONNX and TFLite both have, what they mean, and how to write them down.

A layer's steps split in two: those that do not depend on its input decode stored numbers and run once, at load; the
others are what an inference costs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgepack.model.replacement import Instruction, Replacement, constexpr
from edgepack.model.types import Array

X = "x"
"""The name of a layer's input in its steps: (rows, in) float32."""

_ROWS_AT_ONCE = 16
"""Of the identity that a layer is applied to: steps may widen each row to many times the layer's sides."""

PRIMES = (2654435761, 2246822519, 3266489917, 668265263, 374761393)


def xxh32(values: Array, seed: int) -> Array:
    """uint32 of the values' shape: the xxHash-32 of each value's four little-endian bytes.

    Args:
        values: whole numbers, 0 … 2³² − 1.
        seed: 0 … 2³² − 1.

    Source: the xxHash fast digest algorithm specification, version 0.1.1, for an input of four bytes.
    """
    mask = np.uint64(0xFFFFFFFF)
    h = (
        np.asarray(values).astype(np.uint64) * np.uint64(PRIMES[2]) + np.uint64((seed + PRIMES[4] + 4) & 0xFFFFFFFF)
    ) & mask
    h = ((h << np.uint64(17)) | (h >> np.uint64(15))) & mask
    h = (h * np.uint64(PRIMES[3])) & mask
    h = ((h ^ (h >> np.uint64(15))) * np.uint64(PRIMES[1])) & mask
    h = ((h ^ (h >> np.uint64(13))) * np.uint64(PRIMES[2])) & mask
    return (h ^ (h >> np.uint64(16))).astype(np.uint32)


def _scatter(positions: Array, values: Array, *, size: int) -> Array:
    flat = np.zeros(size, values.dtype)
    flat[positions] = values
    return flat


def _conv1d(rows: Array, filters: Array) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(rows, filters.shape[1], axis=-1)
    return windows @ filters.T


def _pad(a: Array, *, before: int, after: int) -> Array:
    return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(before, after)])


OPERATORS: Mapping[str, Callable[..., Array]] = {
    "cast": lambda a, to: a.astype(to),
    "gather": lambda a, indices, axis: np.take(a, indices, axis=axis),
    "reshape": lambda a, shape: a.reshape(shape),
    "transpose": lambda a, perm: a.transpose(perm),
    "matmul": lambda a, b: a @ b,
    "mul": lambda a, b: a * b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "div": lambda a, by: a // np.int32(by),
    "mod": lambda a, by: a % np.int32(by),
    "cumsum": lambda a: np.cumsum(a, dtype=a.dtype),
    "scatter": _scatter,
    "head": lambda a, count: a.reshape(-1)[:count],
    "pad": _pad,
    "conv1d": _conv1d,
    "sum": lambda a, axes: a.sum(axis=axes),
    "range": lambda count: np.arange(count, dtype=np.int32),
    "bucket": lambda a, seed, buckets: (xxh32(a, seed) % np.uint32(buckets)).astype(np.int32),
}
"""What a step may do, and what it means in numpy; attributes are keywords.

cast(a; to): "float32" or "int32".
gather(a, indices; axis): rows, or slices along an axis, by int32 indices of any shape.
reshape(a; shape): one size may be −1.
transpose(a; perm). mul, add, sub(a, b): of one dtype, broadcast.
matmul(a, b): (…, k) times (k, n).
div(a; by), mod(a; by): quotient and remainder of int32 ≥ 0 by one whole number > 0, int32.
cumsum(a): of (k,) int32.
scatter(positions, values; size): zeros (size,) with values (k,) float32 at positions (k,) int32, each at most once.
head(a; count): the first numbers of a, flat.
pad(a; before, after): zeros along the last axis.
conv1d(rows, filters): (rows, length) with (r, q) → (rows, length − q + 1, r): sums of windows times filters.
sum(a; axes): over some axes, which go.
range(; count): 0 … count − 1, int32.
bucket(a; seed, buckets): xxh32 of each int32 ≥ 0, modulo the number of buckets, int32."""


@dataclass
class Writer:
    """Writes a layer down, step by step; every method gives the name of its result.

    Example:
        w = Writer()
        codes = w.step("cast", w.constant("codes", codes), to="int32")
        blocks = w.step("gather", w.constant("codebook", codebook), codes, axis=0)
        return w.decoded(w.step("reshape", blocks, shape=weight.shape), layer.bias)
    """

    constants: dict[str, Array] = field(default_factory=dict)
    steps: list[Instruction] = field(default_factory=list)

    def constant(self, name: str, value: Array) -> str:
        """A stored array: float32, int8, uint8 or int32."""
        if name in self.constants or name == X:
            raise ValueError(f"two constants called {name!r}")
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def step(self, op: str, *inputs: str, **attributes: int | str | tuple[int, ...]) -> str:
        """One operator of `OPERATORS`."""
        if op not in OPERATORS:
            raise ValueError(f"there is no operator {op!r}; there are {', '.join(OPERATORS)}")
        output = f"{op}{len(self.steps)}"
        self.steps.append(Instruction(op, inputs, output, attributes))
        return output

    def decoded(self, weight: str, bias: Array | None) -> Replacement:
        """The layer whose matrix (out, in) was decoded: a dense product with it is what an inference costs."""
        self.step("matmul", X, self.step("transpose", weight, perm=(1, 0)))
        found = values(self.constants, self.steps)[weight]
        return constexpr(self.constants, tuple(self.steps), np.asarray(found, np.float32), bias)

    def direct(self, in_features: int, bias: Array | None) -> Replacement:
        """The layer whose last step gives its output, for the input `X` of (rows, in_features)."""
        made = constexpr(self.constants, tuple(self.steps), np.zeros((0, in_features), np.float32), bias)
        return replace(made, decoded=effective_weight(made))


def values(constants: Mapping[str, Array], steps: Sequence[Instruction], x: Array | None = None) -> dict[str, Array]:
    """Everything that is computed, by name; without `x` what does not depend on it."""
    found = dict(constants) if x is None else {**constants, X: x}
    for step in steps:
        if all(name in found for name in step.inputs):
            found[step.output] = OPERATORS[step.op](*(found[name] for name in step.inputs), **step.attributes)
    return found


def evaluate(part: Replacement, x: Array) -> Array:
    """(rows, out) float32 of (rows, in): what the steps give, without the bias."""
    return values(part.tensors, part.program, x)[part.program[-1].output]


def listed(steps: Iterable[Instruction]) -> list[list[Any]]:
    """Steps as lists and plain values, for JSON."""
    return [[step.op, list(step.inputs), step.output, dict(step.attributes)] for step in steps]


def unlisted(rows: Iterable[Sequence[Any]]) -> tuple[Instruction, ...]:
    """What `listed` was given, after its way through JSON.

    Raises:
        ValueError, TypeError, AttributeError: it is something else.
    """
    return tuple(_step(*row) for row in rows)


def _step(op: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any]) -> Instruction:
    exact = {name: tuple(value) if isinstance(value, list) else value for name, value in attributes.items()}
    return Instruction(op, tuple(inputs), output, exact)


def plain(weight: Array, bias: Array | None) -> Replacement:
    """A dense layer in the guise of one in code: to write another weight in float32."""
    writer = Writer()
    return writer.decoded(writer.step("reshape", writer.constant("weight", weight), shape=weight.shape), bias)


def effective_weight(part: Replacement) -> Array:
    """(out, in) float32: what the steps come to as one matrix."""
    loaded = values(part.tensors, part.program)
    if is_decoded(part):
        return np.ascontiguousarray(loaded[part.program[-1].inputs[1]].T)
    features = part.weight.shape[1]
    own = depending(part.program, {X})
    columns = []
    for start in range(0, features, _ROWS_AT_ONCE):
        x = np.eye(min(_ROWS_AT_ONCE, features - start), features, k=start, dtype=np.float32)
        columns.append(values(loaded, own, x)[part.program[-1].output])
    return np.ascontiguousarray(np.concatenate(columns).T)


def depending(steps: Iterable[Instruction], names: Collection[str]) -> tuple[Instruction, ...]:
    """The steps that take one of these names, or what comes of it; nothing is computed."""
    behind, found = set(names), []
    for step in steps:
        if behind.intersection(step.inputs):
            behind.add(step.output)
            found.append(step)
    return tuple(found)


def at_load(part: Replacement) -> frozenset[str]:
    """Outputs of the steps that do not depend on the layer's input: they are computed once."""
    return frozenset(step.output for step in part.program) - {step.output for step in depending(part.program, {X})}


def is_decoded(part: Replacement) -> bool:
    """Whether all that an inference does is one product with a matrix of the layer's own size: only bytes are saved."""
    own = depending(part.program, {X})
    return [step.op for step in own] == ["matmul"] and own[0].inputs[0] == X


def decoded_from(part: Replacement, constant: str) -> tuple[Array, ...]:
    """What an inference takes of the values that come of a constant at load: a file may hold these in its place."""
    behind = {constant, *(step.output for step in depending(part.program, {constant}))}
    taken = dict.fromkeys(name for step in depending(part.program, {X}) for name in step.inputs)
    loaded = values(part.tensors, part.program)
    return tuple(loaded[name] for name in taken if name in behind and name in loaded)


def operand_sides(part: Replacement) -> tuple[tuple[int, int], ...]:
    """(smaller, larger) side of every matrix that a product takes, at load or at an inference, as a file or a runtime
    may hold it."""
    loaded = values(part.tensors, part.program)
    own = [step for step in part.program if step.op in ("matmul", "conv1d")]
    shapes = [loaded[name].shape for step in own for name in step.inputs if name in loaded]
    return tuple((min(shape), max(shape)) for shape in shapes if len(shape) == 2)


def stored_bytes(part: Replacement) -> int:
    """Bytes of the constants, bias apart."""
    return sum(array.nbytes for array in part.tensors.values())


def stored_numbers(part: Replacement) -> int:
    """Numbers that are stored, of any width, bias apart."""
    return sum(array.size for array in part.tensors.values())
