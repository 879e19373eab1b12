"""The leading eigenvectors of a large matrix, where few of them are wanted: products with thin blocks instead of all of
its decomposition.

Block Lanczos with full reorthogonalization and Rayleigh-Ritz (Golub and Underwood, "The block Lanczos method for
computing eigenvalues", 1977; for how fast a random start converges, Musco and Musco, "Randomized Block Krylov Methods
for Stronger and Faster Approximate Singular Value Decomposition", NeurIPS 2015).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgepack.model.types import Array

BLOCK = 64
"""Columns of a block: a product with fewer reads the matrix more often than it computes."""
TOLERANCE = 1e-4
"""Of what is left beyond each rank: it ends when a block adds less to what the rank captures. The blocks after it would
add less still: in decaying spectra hundreds of times less."""
ROUNDING = 1e-14
"""Likewise as a share of the whole, where next to nothing is left."""
COLLAPSED = 1e-10
"""Share of its largest column at which one of a block is rounding."""
LEAST_SIDE, FEW, MOST = 2048, 8, 0.5
"""Smaller sides are decomposed in a second or two. An eighth of the vectors takes about a quarter of the side in
blocks; half of it takes as long as the whole decomposition, and is given up."""


def pays(side: int, rank: int) -> bool:
    """Whether so few vectors of so large a matrix are wanted that the whole decomposition would take longer."""
    return side >= LEAST_SIDE and FEW * rank <= side


def leading(
    product: Callable[[Array], Array], side: int, rank: int, total: float, *, whole: int | None = None, seed: int = 0
) -> tuple[Array, Array] | None:
    """Eigenvalues (rank,), descending, and eigenvectors (side, rank) of a positive semidefinite matrix G, in float64.

    The first r vectors capture what the best r capture, less a ten-thousandth of what these leave, for every r up to
    `rank`. None where that would take too many products, as in spectra that hardly fall.

    Args:
        product: (side, k) ↦ G times it.
        side: of G.
        rank: how many are wanted.
        total: tr G.
        whole: side of the matrix that would be decomposed instead, where that is not G.
        seed: of the first block.
    """
    random = np.random.default_rng([seed, side, rank])
    basis, inner = np.zeros((side, 0)), np.zeros((0, 0))
    block = random.standard_normal((side, BLOCK))
    captured = np.zeros(rank)
    while basis.shape[1] + BLOCK <= MOST * (whole or side):
        block = _beside(basis, block, random)
        image = product(block)
        basis = np.hstack([basis, block])
        along = basis.T @ image
        inner = np.block([[inner, along[: len(inner)]], [along.T]])
        block = image - basis @ along
        if len(inner) < rank + BLOCK:
            continue
        values, turn = np.linalg.eigh(inner)
        before, captured = captured, np.cumsum(values[::-1][:rank])
        if (captured - before <= TOLERANCE * (total - captured) + ROUNDING * total).all():
            return values[::-1][:rank].copy(), basis @ turn[:, ::-1][:, :rank]
    return None


def _beside(basis: Array, block: Array, random: np.random.Generator) -> Array:
    """Orthonormal columns beside the basis that span the block; random ones for those that nothing is left of."""
    q, r = np.linalg.qr(block)
    sizes = np.abs(np.diag(r))
    gone = sizes <= COLLAPSED * sizes.max(initial=0.0)
    q[:, gone] = random.standard_normal((len(q), int(gone.sum())))
    for _ in range(2):  # twice is enough (Parlett, "The Symmetric Eigenvalue Problem", 1980)
        q, _ = np.linalg.qr(q - basis @ (basis.T @ q))
    return np.asarray(q)
