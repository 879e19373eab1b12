"""How often each symbol comes, in a few bytes: the static model of the range coder.

Square roots of frequencies are stored, in 8 bits: the loss of a code is quadratic in their error (to second order the
Kullback-Leibler divergence is 2 Σ (√p − √q)²), so that frequent and rare symbols are equally well off. Weights on an
integer grid are smooth in between, so that every 2nd to 16th root is enough there; the two outermost symbols, where a
symmetric grid puts the largest weight of every row, stand for themselves. All arithmetic is in whole numbers: both
ends of the wire come to the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgepack.types import Array

STEPS = (1, 2, 4, 8, 16)
_LARGEST = 255
_SIGNED = 128
_HEADER_BYTES = 3


@dataclass(frozen=True)
class Histogram:
    """Frequencies of the symbols `low` … `high`.

    Attributes:
        flip: 128 where the symbols are signed bytes: they are counted after an exclusive or with it, which puts them in
            the order of their values. Else 0.
        step: between the symbols whose roots are stored.
        roots: uint8; of the lowest and the highest symbol, then of every `step`-th one between them.
    """

    flip: int
    low: int
    high: int
    step: int
    roots: Array

    @property
    def frequencies(self) -> Array:
        """(high − low + 1,) int64, at least 1."""
        inner = _between(self.roots[2:].astype(np.int64), self.step, max(self.high - self.low - 1, 0))
        ends = self.roots[:2].astype(np.int64) * self.step
        scaled = np.concatenate([ends[:1], inner, ends[1:]])[: self.high - self.low + 1]
        return np.asarray(scaled * scaled + 1)

    def to_bytes(self) -> bytes:
        """Lowest and highest symbol, step with the flip, and the roots."""
        return bytes([self.low, self.high, self.step | self.flip]) + self.roots.astype(np.uint8).tobytes()

    def cost_bytes(self, counts: Array) -> float:
        """Of the model itself and of symbols that come so often.

        Args:
            counts: (256,) of all symbols, before the flip; none outside of low … high.
        """
        counts = _flipped(counts, self.flip)
        frequencies = self.frequencies.astype(np.float64)
        bits = float(counts[self.low : self.high + 1] @ (math.log2(frequencies.sum()) - np.log2(frequencies)))
        return _HEADER_BYTES + len(self.roots) + bits / 8


def from_bytes(data: bytes) -> tuple[Histogram, int]:
    """A model and how many bytes it took.

    Raises:
        ValueError: no such model.
    """
    if len(data) < _HEADER_BYTES:
        raise ValueError(f"a histogram of {len(data)} bytes, expected {_HEADER_BYTES} or more")
    low, high, step = data[:_HEADER_BYTES]
    flip, step = step & _SIGNED, step & ~_SIGNED
    if low > high or step not in STEPS:
        raise ValueError(f"a histogram of the symbols {low} to {high} in steps of {step}")
    end = _HEADER_BYTES + 2 + _nodes(high - low - 1, step)
    if len(data) < end:
        raise ValueError(f"a histogram of {len(data)} bytes, expected {end}")
    return Histogram(flip, low, high, step, np.frombuffer(data, np.uint8, end - _HEADER_BYTES, _HEADER_BYTES)), end


def fitted(counts: Array) -> Histogram:
    """The model with which symbols that come so often cost least.

    Args:
        counts: (256,), not all 0.
    """
    candidates = [model for flip in (0, _SIGNED) for model in _candidates(_flipped(counts, flip), flip)]
    return min(candidates, key=lambda model: model.cost_bytes(counts))


def _flipped(counts: Array, flip: int) -> Array:
    return np.roll(counts, flip)


def _candidates(counts: Array, flip: int) -> Iterator[Histogram]:
    present = np.flatnonzero(counts)
    low, high = int(present[0]), int(present[-1])
    roots = np.sqrt(counts[low : high + 1] / counts.max())
    for step in STEPS:
        inner = roots[1:-1]
        if step > 1 and len(inner) < 2 * step:
            return
        nodes = _nodes(len(inner), step)
        # The mean of the symbols around a node, so that noise of single counts averages out.
        near = np.abs(np.arange(len(inner))[None, :] - step * np.arange(nodes)[:, None]) <= step // 2
        means = (near @ np.square(inner)) / np.maximum(near.sum(axis=1), 1)
        stored = np.rint(_LARGEST * np.concatenate([roots[:1], roots[-1:], np.sqrt(means)]))
        yield Histogram(flip, low, high, step, stored.astype(np.uint8))


def _nodes(inner: int, step: int) -> int:
    """How many roots are stored for so many symbols between the outermost ones."""
    return 0 if inner <= 0 else -(-(inner - 1) // step) + 1


def _between(nodes: Array, step: int, count: int) -> Array:
    """(count,) int64: `step` times the straight lines between nodes."""
    if count == 0:
        return np.zeros(0, np.int64)
    place, rest = np.divmod(np.arange(count), step)
    after = nodes[np.minimum(place + 1, len(nodes) - 1)]
    return np.asarray(nodes[place] * (step - rest) + after * rest)
