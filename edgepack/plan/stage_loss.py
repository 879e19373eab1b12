"""What the structures that take a convolution's kernel apart are predicted to lose, with the noise of integer grids.

What stands behind the first stage is a layer: its losses are predicted like those of any other. To these comes what the
first stage leaves out, which is exact, and the noise of its weights and of its own input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.factorize.first_stage import Behind, Patches, strips
from edgepack.model.kinds.stages import taken_first
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Activations, Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array, Curvature, Spectrum
from edgepack.plan.loss import Wanted, layer_losses
from edgepack.quantize.gptq import innovation
from edgepack.quantize.noise import activation_noise, grid_of_scheme, weight_noise


@dataclass(frozen=True)
class Staged:
    """A structure of one layer, in float32.

    Attributes:
        structure: of the layer.
        first: B (r, in · places that it takes).
        rest: what stands behind it.
        inner: what that becomes.
        spectrum: of it, with what is known of its input.
    """

    structure: Structure
    first: Array
    rest: Behind
    inner: Structure
    spectrum: Spectrum


@dataclass(frozen=True)
class Convolution:
    """A layer as its structures see it.

    Attributes:
        layer: with its kernel.
        patches: of its input.
        spans: what an int8 grid of its input covers, by how it is quantized.
        metric: (out, out) G, or I / (output energy of the layer).
    """

    layer: View
    patches: Patches
    spans: dict[Activations, float]
    metric: Array


def staged_losses(
    layer: Convolution, staged: Staged, schemes: tuple[Scheme, ...], factors: Replacement | None, *, qmax: int
) -> dict[tuple[Scheme, Structure], float]:
    """Predicted loss of a structure in every scheme, in the unit of `edgepack.plan.loss.layer_losses`.

    Args:
        layer: see there.
        staged: one of its structures.
        schemes: of all stages alike.
        factors: in the place of what stands behind the first stage, as they will be quantized; None where it is one
            matrix.
        qmax: largest weight code of per-channel int8.
    """

    def factors_at(rank: int) -> Replacement:
        if factors is None or factors.rank != rank:
            raise ValueError(f"found {factors}, expected factors of rank {rank}")
        return factors

    rest, wanted = staged.rest.view, Wanted(schemes, staged.inner.ranks)
    behind = layer_losses(rest, staged.spectrum, Curvature(layer.metric), wanted, factors_at, qmax=qmax)
    missed = max(float((layer.metric * staged.rest.lost).sum()), 0.0)
    return {
        (scheme, staged.structure): missed + behind[scheme, staged.inner] + _entered(layer, staged, scheme, qmax)
        for scheme in schemes
    }


def _entered(layer: Convolution, staged: Staged, scheme: Scheme, qmax: int) -> float:
    """Noise of the first stage's weights and of the layer's input, through all that is behind them."""
    grid = grid_of_scheme(scheme, qmax)
    if grid is None:
        return 0.0
    weight, rank = staged.rest.view.weight.astype(np.float64), len(staged.first)
    costs = (weight * (layer.metric @ weight)).sum(axis=0).reshape(rank, -1).sum(axis=1)
    seen = strips(layer.patches.covariance, layer.layer.kernel, taken_first(staged.structure))
    noise = innovation(seen) * float(costs @ weight_noise(staged.first, np.diag(seen), grid))
    if grid.activations == "float":
        return noise
    power = np.diag(layer.patches.covariance) + np.square(layer.patches.mean)
    whole = layer.layer.weight.astype(np.float64)  # what the stages come to, nearly
    sensitivity = (whole * (layer.metric @ whole)).sum(axis=0)
    return noise + float(sensitivity @ activation_noise(layer.spans[grid.activations], power))
