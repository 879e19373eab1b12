"""What a layer loses with another weight, exactly: tr(G ΔW C ΔWᵀ), in the unit of `edgepack.plan.loss`."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.quantize.energy import output_energy
from edgepack.quantize.lattice import decoded, grid_of, lattice, nearest
from edgepack.types import Array


def exact_loss(layer: View, weight: Array, covariance: Array | None, gradient: Array | None) -> float:
    """The loss of another weight in the layer's place, its bias corrected.

    Args:
        weight: (out, in).
        covariance: (in, in) C of the layer's input; None for I, where nothing is known of it.
        gradient: (out, out) G; None for I / (output energy of the layer).
    """
    lost = max(output_energy(layer.weight - weight, covariance, gradient), 0.0)
    if gradient is not None:
        return lost
    whole = output_energy(layer.weight, covariance)
    return lost / whole if whole > 0 else 0.0


def pair_losses(
    layer: View,
    pair: Replacement,
    covariance: Array | None,
    gradient: Array | None,
    schemes: Sequence[Scheme],
    *,
    largest: int,
) -> dict[Scheme, float]:
    """`exact_loss` of a pair in each scheme, both factors rounded to nearest on its grids; by scheme.

    What is rounded at run time, the input and the latent, is left out.
    """
    found = {}
    for scheme in schemes:
        A, B = (_rounded(factor, scheme, largest) for factor in (pair.A, pair.B))
        found[scheme] = exact_loss(layer, A @ B, covariance, gradient)
    return found


def _rounded(matrix: Array, scheme: Scheme, largest: int) -> Array:
    grid = grid_of(scheme, matrix.shape[1], largest=largest if scheme.saturates else scheme.qmax)
    if grid is None:
        return matrix
    on = lattice(matrix, grid)
    return decoded(nearest(matrix, on), on)
