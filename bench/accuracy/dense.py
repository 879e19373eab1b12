"""Dense layers on integer grids, by GPTQ with their inputs in mind; without it whoever writes the file rounds them."""

from __future__ import annotations

from accuracy.study import LARGEST, moments_of
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, dense
from edgepack.model.scheme import Scheme
from edgepack.quantize.bias import corrected_bias
from edgepack.quantize.gptq import gptq
from edgepack.quantize.grids import grid_of


def rounded_dense(layer: View, scheme: Scheme) -> Replacement:
    """With the mean output put right where there is a bias, else on the raw second moment.

    Raises:
        ValueError: the scheme has no integer grid.
    """
    grid = grid_of(scheme, layer.in_features, qmax=LARGEST)
    if grid is None:
        raise ValueError(f"{scheme} has no integer grid")
    moments = moments_of(layer)
    if layer.bias is None:
        return dense(gptq(layer.weight, moments.second, grid).weight, None)
    weight = gptq(layer.weight, shrunk_covariance(moments), grid).weight
    return dense(weight, corrected_bias(layer.bias, layer.weight, weight, moments.mean))
