"""The operators of a model file as its runtime executes them: what each multiplies, how, and how long it takes here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Literal

from edgepack.model.layer import WEIGHT
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Op, patches

Doubt = Literal[
    "blocks",
    "integer convolution",
    "signed inputs",
    "unsigned weights",
    "float behind integers",
    "decoded",
    "unrolled",
]
"""What makes an operator slow on some CPUs or on all: weights in blocks that the kernel may have to decode; a
convolution of integers alone; inputs in int8 or weights in uint8 where kernels want them otherwise; integers that are
decoded for an operator in float at every inference, be they activations or weights; one step of a recurrence that was
unrolled."""

UNROLLED = 4
"""Products with the same matrix from which on they are the steps of a recurrence; twins and tied weights are fewer."""

SPENT_S = 0.02
"""On one operator that is timed by itself, unless a single call takes longer."""


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: in the file; fused ones have the runtime's name.
        kind: as the runtime calls it.
        products: with constant matrices, in order; empty for any other operator, and where shapes are not known.
        scheme: of these; None where no scheme multiplies so.
        doubt: see `Doubt`; None for nothing.
        seconds: of all its runs in one inference on this machine; None where it was not timed.
    """

    name: str
    kind: str
    products: tuple[Op, ...] = ()
    scheme: Scheme | None = None
    doubt: Doubt | None = None
    seconds: float | None = None

    @property
    def macs(self) -> int:
        """Multiplications by constant matrices in one inference."""
        return sum(op.macs for op in self.products)


def matrix_product(rows: int, weights: int, outputs: int) -> tuple[Op, ...]:
    """A product by a matrix of so many rows and weights, which gives so many numbers in all; nothing where these do not
    fit each other."""
    if rows < 1 or weights % rows or outputs % rows:
        return ()
    return (Op(WEIGHT, "matmul", rows, weights // rows, outputs // rows),)


def convolution(
    outputs: int, columns: int, kernel: tuple[int, ...], places: tuple[int, ...], groups: int
) -> tuple[Op, ...]:
    """A convolution as of `patches`, and of a single place and group as well."""
    if prod(kernel) == 1 and groups == 1:
        return (Op(WEIGHT, "conv", outputs, columns, prod(places), kernel),)
    return patches(outputs, columns, kernel, places, groups)


def typical_s(run: Callable[[], object]) -> float:
    """Seconds of a call: the median of as many as `SPENT_S` has room for, three at least, behind one that warms up."""
    run()
    spent: list[float] = []
    while len(spent) < 3 or sum(spent) < SPENT_S:
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return median(spent)
