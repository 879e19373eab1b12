"""What stands in the place of a layer: the arrangement of its products, and each product by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

OpKind = Literal["matmul", "conv", "gather", "recurrent"]

RANK_TILE = 8
"""Kernels work on tiles of this many rows: ranks between two multiples cost as much as the upper one."""


@dataclass(frozen=True)
class Structure:
    """How a layer is arranged.

    Attributes:
        name: "dense", "low-rank", "shared-input", "low-rank-correction", "constexpr", or one that a kind of layer has
            beside these.
        ranks: of its low-rank factors, in the order in which they are multiplied; empty where there are none.
    """

    name: str
    ranks: tuple[int, ...] = ()

    @property
    def rank(self) -> int | None:
        """The rank of its low-rank factors, None where there are none."""
        return self.ranks[0] if self.ranks else None

    @property
    def is_dense(self) -> bool:
        """Whether it is one product."""
        return self.name == "dense"

    @property
    def is_low_rank(self) -> bool:
        """Whether two factors stand in the place of one matrix, and nothing else."""
        return self.name == "low-rank" or self.is_shared

    @property
    def is_shared(self) -> bool:
        """Whether the first of its two factors is that of other layers as well."""
        return self.name == "shared-input"

    @property
    def is_correction(self) -> bool:
        """Whether low-rank factors stand beside a dense matrix."""
        return self.name == "low-rank-correction"

    @property
    def in_place(self) -> bool:
        """Whether low-rank factors stand in the place of a layer, however many, and nothing else."""
        return bool(self.ranks) and not self.is_correction

    @property
    def of_a_matrix(self) -> bool:
        """Whether any matrix can be so; other structures need to know how its columns come about."""
        return self.is_dense or self.is_low_rank or self.is_correction or self.is_constexpr

    @property
    def is_constexpr(self) -> bool:
        """Whether weights are computed from stored constants."""
        return self.name == "constexpr"

    @property
    def shown(self) -> str | None:
        """Its ranks for people, `32`, `32 shared` or `tucker-2 16×24`; None where there are none."""
        ranks = "×".join(map(str, self.ranks))
        if not ranks or self.is_shared:
            return f"{ranks} shared" if ranks else None
        return ranks if self.of_a_matrix else f"{self.name} {ranks}"

    def __str__(self) -> str:
        return " ".join([self.name, *map(str, self.ranks)])


DENSE = Structure("dense")
"""The layer as it is: one product."""
CONSTEXPR = Structure("constexpr")
"""Weights that a few standard operators compute from stored constants, or products with these constants."""


def low_rank(rank: int) -> Structure:
    """Two thin products, A (B x), in the place of W x."""
    return Structure("low-rank", (rank,))


def shared_input(rank: int) -> Structure:
    """Two thin products of which layers with the same input have the first in common, y_i = A_i (B x)."""
    return Structure("shared-input", (rank,))


def low_rank_correction(rank: int) -> Structure:
    """A dense product and two thin ones beside it, W x + A (B x)."""
    return Structure("low-rank-correction", (rank,))


def structure_of(name: str, rank: int | None) -> Structure:
    """The structure of a matrix that a table names.

    Raises:
        ValueError: there is none of that name and rank.
    """
    known = {one.name: one for one in (DENSE, CONSTEXPR)}
    known |= {} if rank is None else {one.name: one for one in (low_rank(rank), low_rank_correction(rank))}
    if name not in known or (rank is None) != (not known[name].ranks):
        raise ValueError(f"no structure {name!r} of rank {rank}")
    return known[name]


@dataclass(frozen=True)
class Op:
    """One product of a structure with a constant matrix.

    Attributes:
        role: of its weight in the `Replacement`: "weight", "A", "B", "base".
        kind: of operator.
        rows, columns: of the matrix: outputs and inputs; of a convolution, its channels.
        vectors: that one inference multiplies by it.
        kernel: sizes of a convolution's kernel, empty for any other operator.
        corrects: whether its result is added to that of a dense matrix.
    """

    role: str
    kind: OpKind
    rows: int
    columns: int
    vectors: int = 1
    kernel: tuple[int, ...] = ()
    corrects: bool = False

    @property
    def inputs(self) -> int:
        """Length of the vectors that the matrix multiplies: columns at every place of the kernel."""
        return self.columns * prod(self.kernel)

    @property
    def weights(self) -> int:
        """Elements of the matrix."""
        return self.rows * self.inputs

    @property
    def macs(self) -> int:
        """Multiplications of one inference; a lookup has none."""
        return 0 if self.kind == "gather" else self.weights * self.vectors


def as_matrix(op: Op) -> Op:
    """The product as one of a plain matrix: a convolution multiplies every patch of its input by its own, recurrent
    cells multiply their input at every step."""
    return replace(op, kind="matmul", columns=op.inputs, kernel=()) if op.kind in ("conv", "recurrent") else op


def is_depthwise(op: Op) -> bool:
    """Whether it takes every channel by itself, as `patches` has it: for that runtimes have kernels of their own."""
    return op.kind == "conv" and op.rows == op.columns == 1


def copied(op: Op) -> int:
    """Values of an input that are laid out in patches before they are multiplied, as kernels of several places need."""
    return op.vectors * op.inputs if prod(op.kernel) > 1 else 0


def patches(outputs: int, columns: int, kernel: Sequence[int], places: Sequence[int], groups: int) -> tuple[Op, ...]:
    """A convolution by its matrix, which multiplies every patch of its input; nothing for a kernel of one place, which
    is a linear layer.

    Args:
        outputs: channels that it gives.
        columns: channels that each of them looks at.
        kernel: its sizes.
        places: sizes of what it gives.
        groups: into which its channels are divided.
    """
    if prod(kernel) == 1:
        return ()
    return (Op("weight", "conv", outputs // groups, columns, prod(places) * groups, tuple(kernel)),)
