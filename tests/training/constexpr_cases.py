"""Small layers stored in code, written by hand: one per kind of operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgepack.model.constexpr import Writer, X
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array


def codebook(m: int, n: int, bias: Array | None, seed: int = 0) -> Replacement:
    """Rows of m × n in blocks of two numbers, out of seven blocks."""
    rng = np.random.default_rng(seed)
    w = Writer()
    codes = w.step("cast", w.constant("codes", rng.integers(0, 7, (m, n // 2)).astype(np.uint8)), to="int32")
    blocks = w.constant("type", rng.normal(size=(7, 2)).astype(np.float32))  # a name that modules have already
    return w.decoded(w.step("reshape", w.step("gather", blocks, codes, axis=0), shape=(m, n)), bias)


def sparse(m: int, n: int, bias: Array | None, seed: int = 0) -> Replacement:
    """Every third number is there, at positions stored as gaps."""
    rng = np.random.default_rng(seed)
    w, count = Writer(), m * n // 3
    gaps = w.step("cast", w.constant("kept.gaps", np.full(count, 2, np.uint8)), to="int32")
    one = w.constant("kept.one", np.array([1], np.int32))
    positions = w.step("sub", w.step("cumsum", w.step("add", gaps, one)), one)
    values = w.constant("kept.values", rng.normal(size=count).astype(np.float32))
    flat = w.step("scatter", positions, values, size=m * n)
    return w.decoded(w.step("reshape", flat, shape=(m, n)), bias)


def hashed(m: int, n: int, bias: Array | None, seed: int = 0) -> Replacement:
    """Eleven shared numbers with signs."""
    rng = np.random.default_rng(seed)
    w = Writer()
    places = w.step("range", count=m * n)
    index = w.step("bucket", places, seed=seed, buckets=11)
    numbers = w.step("gather", w.constant("shared", rng.normal(size=11).astype(np.float32)), index, axis=0)
    parity = w.step("bucket", places, seed=seed + 1, buckets=2)
    signs = w.step("gather", w.constant("signs", np.array([-1, 1], np.float32)), parity, axis=0)
    return w.decoded(w.step("reshape", w.step("mul", numbers, signs), shape=(m, n)), bias)


def relaid(m: int, n: int, bias: Array | None, seed: int = 0) -> Replacement:
    """A product of rank 2 and width 5, read flat: DeepThin's."""
    rng = np.random.default_rng(seed)
    w = Writer()
    rows = w.constant("rows", rng.normal(size=(-(-m * n // 5), 2)).astype(np.float32))
    product = w.step("matmul", rows, w.constant("filters", rng.normal(size=(2, 5)).astype(np.float32)))
    return w.decoded(w.step("reshape", w.step("head", product, count=m * n), shape=(m, n)), bias)


def blocks(m: int, n: int, bias: Array | None, seed: int = 0) -> Replacement:
    """Blocks of the input projected alike, then mixed: nothing is decoded."""
    rng = np.random.default_rng(seed)
    w = Writer()
    x = w.step("pad", X, before=0, after=-n % 4)
    cut = w.step("reshape", x, shape=(-1, 4))
    small = w.constant("projection", rng.normal(size=(4, 2)).astype(np.float32))
    short = w.step("reshape", w.step("matmul", cut, small), shape=(-1, 2 * -(-n // 4)))
    left = w.constant("left", rng.normal(size=(m, 2 * -(-n // 4))).astype(np.float32))
    w.step("matmul", short, w.step("transpose", left, perm=(1, 0)))
    return w.direct(n, bias)


def convolved(m: int, n: int, bias: Array | None, seed: int = 0) -> Replacement:
    """Windows of the input times three filters, gathered, weighted and summed."""
    rng = np.random.default_rng(seed)
    w = Writer()
    filters = w.constant("filters", rng.normal(size=(3, 4)).astype(np.float32))
    responses = w.step("conv1d", w.step("pad", X, before=3, after=1), filters)
    window = w.constant("window", rng.integers(0, n + 1, (m, 2)).astype(np.int32))
    weights = w.constant("weights", rng.normal(size=(m, 2, 3)).astype(np.float32))
    w.step("sum", w.step("mul", w.step("gather", responses, window, axis=1), weights), axes=(2, 3))
    return w.direct(n, bias)


Make = Callable[[int, int, Array | None, int], Replacement]

DECODED: dict[str, Make] = {"codebook": codebook, "sparse": sparse, "hashed": hashed, "relaid": relaid}
CASES: dict[str, Make] = {**DECODED, "blocks": blocks, "convolved": convolved}


def as_method(make: Make) -> Callable[..., Replacement]:
    """A method by share that looks neither at the weight nor at the share."""

    def method(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement:
        return make(layer.out_features, layer.in_features, layer.bias, seed)

    method.__qualname__ = make.__name__
    return method
