"""What is written for a layer instead of its own weight: tensors by role, in one of the structures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from edgepack.model import structure as structures
from edgepack.model.structure import Structure

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Instruction:
    """One operator of the program of a constexpr layer.

    Attributes:
        op: one of `edgepack.model.constexpr.OPERATORS`, which says what it takes.
        inputs: names of constants, of earlier outputs, or "x" for the layer's input.
        output: its name.
        attributes: whole numbers, tuples of them, or the name of a dtype.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, int | str | tuple[int, ...]]

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute of whole numbers; one alone as a tuple of one."""
        value = self.attributes[name]
        if isinstance(value, str):
            raise ValueError(f"{self.op}: {name} is {value!r}, numbers were expected")
        return value if isinstance(value, tuple) else (value,)

    def number(self, name: str) -> int:
        """An attribute of one whole number."""
        return self.numbers(name)[0]


@dataclass(frozen=True)
class Replacement:
    """What is written for a layer.

    Attributes:
        structure: how its products are arranged.
        tensors: float32 by the role of an `Op`: "weight" (out, in) of a dense layer; "A" (out, r) and "B" (r, in) of
            low-rank factors, W ≈ A B; and "base" (out, in) where they correct a dense matrix, W ≈ base + A B. Where a
            matrix lies on the grid of the layer's scheme, no quantizer changes it any more. Of a constexpr layer the
            stored constants by name: float32, int8, uint8 or int32.
        bias: (out,) float32, corrected for what the weight misses; None where the layer has none.
        program: of a constexpr layer: what is computed from the constants and the input "x" (rows, in); the last
            instruction gives (rows, out). What does not depend on "x" runs once, when the model is loaded.
        decoded: (out, in) float32 of a constexpr layer: what its program comes to as one matrix.
    """

    structure: Structure
    tensors: Mapping[str, Array]
    bias: Array | None = None
    program: tuple[Instruction, ...] = ()
    decoded: Array | None = field(default=None, repr=False)

    @property
    def A(self) -> Array:
        """(out, r), the second of the low-rank factors."""
        return self.tensors["A"]

    @property
    def B(self) -> Array:
        """(r, in), the first of the low-rank factors."""
        return self.tensors["B"]

    @property
    def base(self) -> Array:
        """(out, in), the dense matrix that low-rank factors correct."""
        return self.tensors["base"]

    @property
    def rank(self) -> int:
        """Of the low-rank factors.

        Raises:
            ValueError: there are none.
        """
        if self.structure.rank is None:
            raise ValueError(f"a {self.structure} layer has no rank")
        return self.structure.rank

    @property
    def weight(self) -> Array:
        """(out, in) float32: the matrix that it comes to, as far as that is stored or known without a product.

        Raises:
            ValueError: it is the product of low-rank factors.
        """
        if self.structure == structures.DENSE:
            return self.tensors["weight"]
        if self.decoded is None:
            raise ValueError(f"the matrix of a {self.structure} layer is not stored")
        return self.decoded


def dense(weight: Array, bias: Array | None) -> Replacement:
    """A layer that is one product, y = W x + b."""
    return Replacement(structures.DENSE, {"weight": weight}, bias)


def low_rank(A: Array, B: Array, bias: Array | None) -> Replacement:
    """Low-rank factors in the place of a layer: y = A (B x) + b, `A` (out, r), `B` (r, in)."""
    return Replacement(structures.low_rank(int(A.shape[1])), {"A": A, "B": B}, bias)


def low_rank_correction(A: Array, B: Array, bias: Array | None, base: Array) -> Replacement:
    """A dense matrix with low-rank factors beside it: y = base x + A (B x) + b."""
    return Replacement(structures.low_rank_correction(int(A.shape[1])), {"A": A, "B": B, "base": base}, bias)


def constexpr(
    constants: Mapping[str, Array], program: tuple[Instruction, ...], decoded: Array, bias: Array | None
) -> Replacement:
    """A layer with weights computed from stored constants, y = f(x) + b; `decoded` (out, in) is what f comes to."""
    return Replacement(structures.CONSTEXPR, constants, bias, program, decoded)


def of_structure(parts: Mapping[str, Replacement], *names: str) -> dict[str, Replacement]:
    """Those whose structure has one of these names, by layer name."""
    return {layer: part for layer, part in parts.items() if part.structure.name in names}


def in_place(parts: Mapping[str, Replacement]) -> dict[str, Replacement]:
    """Those that are low-rank factors in the place of a layer, by layer name."""
    return {layer: part for layer, part in parts.items() if part.structure.in_place}
