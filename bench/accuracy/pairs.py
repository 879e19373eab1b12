"""Ways to make a layer a pair on integer grids, each one step further than the one before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from accuracy.study import LARGEST, SEED, Study, moments_of, seen_spectrum
from edgepack.factorize import svd, whitened
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Spectrum
from edgepack.pipeline.rounding import ROUNDS
from edgepack.quantize.alternate import alternate
from edgepack.quantize.bias import corrected_pair
from edgepack.quantize.grids import WeightGrid, grid_of
from edgepack.quantize.rotation import BETA, LatentRotation, search_latent_rotation, turned

Pair = Callable[[Study, str, int, Scheme], Replacement]
"""(study, layer's name, rank, scheme) → the pair, on its grids or for the writer to round to nearest."""


def plain(study: Study, name: str, rank: int, scheme: Scheme) -> Replacement:
    """Truncated SVD of the weight, √Σ to both sides; its bias stays."""
    del scheme
    spectrum = study.plain[name]
    return turned(svd.factors(study.layers[name], spectrum, rank), spectrum, LatentRotation(BETA, None), seed=SEED)


def weighted(study: Study, name: str, rank: int, scheme: Scheme) -> Replacement:
    """Centred whitening: A = U_r with orthonormal columns, B = U_rᵀ W, the bias corrected."""
    del scheme
    return whitened.factors(study.layers[name], study.seen[name], rank)


def rotated(study: Study, name: str, rank: int, scheme: Scheme) -> Replacement:
    """The same product in the basis that rounds best to nearest."""
    spectrum, pair = study.seen[name], weighted(study, name, rank, scheme)
    latent_rotation = search_latent_rotation(
        pair, spectrum, grids(study.layers[name], rank, scheme), seed=SEED, rounding="nearest"
    )
    return turned(pair, spectrum, latent_rotation, seed=SEED)


def alternated(study: Study, name: str, rank: int, scheme: Scheme) -> Replacement:
    """Both factors rounded in turns, each with the other one in mind."""
    return rounded(study.layers[name], study.seen[name], rank, scheme)


PAIRS: Mapping[str, Pair] = {
    "plain SVD": plain,
    "whitened": weighted,
    "+ latent rotation": rotated,
    "+ alternation": alternated,
}


def rounded(layer: View, spectrum: Spectrum, rank: int, scheme: Scheme) -> Replacement:
    """As a build rounds pairs: the latent rotation for GPTQ, the alternation, the bias corrected."""
    pair = whitened.factors(layer, spectrum, rank)
    both = grids(layer, rank, scheme)
    pair = turned(pair, spectrum, search_latent_rotation(pair, spectrum, both, seed=SEED), seed=SEED)
    rounds = next(count for width, count in ROUNDS if layer.in_features <= width)
    found = alternate(layer.weight, pair, shrunk_covariance(moments_of(layer)), both, rounds=rounds)
    return corrected_pair(pair, found.factors(None), moments_of(layer).mean)


def rounded_product(layer: View, pair: Replacement, scheme: Scheme) -> Replacement:
    """A pair that was trained: its product, of the same rank, rounded as if it were the layer's weight."""
    product = np.asarray(pair.A.astype(np.float64) @ pair.B, np.float32)
    bias = layer.bias if pair.bias is None else pair.bias
    trained = replace(layer, weight=product, bias=bias)
    return rounded(trained, seen_spectrum(trained), pair.rank, scheme)


def grids(layer: View, rank: int, scheme: Scheme) -> tuple[WeightGrid, WeightGrid]:
    """Of A and of B.

    Raises:
        ValueError: the scheme has none.
    """
    first = grid_of(scheme, rank, qmax=LARGEST)
    second = grid_of(scheme, layer.in_features, qmax=LARGEST)
    if first is None or second is None:
        raise ValueError(f"{scheme} has no integer grid")
    return first, second
