"""What a layer loses with another weight, exactly: tr(G ΔW C ΔWᵀ), in the unit of `edgepack.plan.loss`."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.formats import FORMS
from edgepack.quantize.energy import output_energy
from edgepack.quantize.grid import WEIGHT_MAX
from edgepack.quantize.lattice import decoded, grid_of, lattice, nearest
from edgepack.types import Array, Factors, LinearLayer


def exact_loss(layer: LinearLayer, weight: Array, covariance: Array | None, gradient: Array | None) -> float:
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
    layer: LinearLayer,
    pair: Factors,
    covariance: Array | None,
    gradient: Array | None,
    forms: Sequence[str],
    *,
    largest: int,
) -> dict[str, float]:
    """`exact_loss` of a pair in each form, both factors rounded to nearest on its grids; by form.

    What is rounded at run time, the input and the latent, is left out.
    """
    found = {}
    for form in forms:
        A, B = (_rounded(factor, form, largest) for factor in (pair.A, pair.B))
        found[form] = exact_loss(layer, A @ B, covariance, gradient)
    return found


def _rounded(matrix: Array, form: str, largest: int) -> Array:
    grid = grid_of(form, matrix.shape[1], largest=largest if form in FORMS["onnx"] else WEIGHT_MAX)
    if grid is None:
        return matrix
    on = lattice(matrix, grid)
    return decoded(nearest(matrix, on), on)
