"""Factors as they are written: in the basis that their integer grids suit best, and rounded onto them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgepack.factorize import factorizer
from edgepack.factorize.two_sided import damped
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, dense
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.pipeline.beside import beside, rounded_beside
from edgepack.pipeline.covariances import Covariances
from edgepack.pipeline.losses import factors_at
from edgepack.pipeline.parts import packed_part, unpacked_pair
from edgepack.quantize.alternate import alternate
from edgepack.quantize.bias import corrected_bias, corrected_pair
from edgepack.quantize.energy import output_energy
from edgepack.quantize.gauge import LatentGrid, search_gauge, turned
from edgepack.quantize.gptq import gptq
from edgepack.quantize.lattice import WeightGrid, grid_of
from edgepack.types import Array, Moments, Spectrum
from edgepack.workspace import digest

VERSION = 2
ROUNDS = ((1024, 6), (2048, 2), (1 << 62, 0))
"""By the width of a layer: one round takes seconds at 2048 inputs, ten at 4096. Without rounds each factor is rounded
once, by GPTQ."""


@dataclass
class Rounder:
    """Makes what is written for a layer in a scheme; what lies on integer grids is kept in the cache.

    Attributes:
        covariances: of the layers' inputs; a layer without one is rounded to nearest by whoever writes it.
        method: the factorizer.
        seed: of the rotations.
        largest: largest code of per-channel int8 in ONNX; TFLite always has 127.
        gradients: G by layer name, for a method that factors by it: roundings are weighed by it as well.
    """

    covariances: Covariances
    method: str
    seed: int
    largest: int
    gradients: Mapping[str, Array] = field(default_factory=dict)
    _last: dict[str, Replacement] = field(default_factory=dict)
    _dense: dict[str, Replacement] = field(default_factory=dict)
    _energies: dict[str, float] = field(default_factory=dict)

    def factors(self, layer: View, spectrum: Spectrum, structure: Structure, scheme: Scheme) -> Replacement:
        """A pair whose weights lie on the grids of the scheme, so that every quantizer leaves them as they are."""
        rank = structure.ranks[0]
        if structure.is_correction:
            return self._residual(layer, spectrum, rank, scheme)
        if spectrum.mean is None:  # nothing is known of the layer's input
            return self.plain(layer, spectrum, rank)
        grids = self._grid(scheme, rank), self._grid(scheme, layer.in_features)
        if grids[0] is None or grids[1] is None:
            return self.plain(layer, spectrum, rank)
        latent = latent_grid(scheme)
        key = digest(
            *("rounded", VERSION, self.covariances.key, self.method, layer.name, rank, self.seed, latent),
            *((grid.largest, grid.block) for grid in grids if grid is not None),
            *(() if spectrum.dual is None else (spectrum.basis, spectrum.dual)),
        )
        both = grids[0], grids[1]
        return self._kept(key, lambda: self._made(layer, spectrum, rank, both, latent))

    def trained(self, layer: View, pair: Replacement, scheme: Scheme) -> Replacement:
        """A trained pair for a scheme; training knew of per-channel int8, which is left to the writer."""
        grids = self._grid(scheme, pair.rank), self._grid(scheme, layer.in_features)
        moments = self.covariances.of(layer.name)
        if grids[0] is None or grids[1] is None or moments is None or scheme.per_channel_int8:
            return pair
        rounds = _rounds(layer)
        product = (pair.A.astype(np.float64) @ pair.B).astype(np.float32)
        rounded = alternate(product, pair, shrunk_covariance(moments), (grids[0], grids[1]), rounds=rounds)
        return corrected_pair(pair, rounded.factors(None), moments.mean)

    def energy(self, layer: View, covariance: Array) -> float:
        """tr(W C Wᵀ) of a layer with the covariance of its input: a product of wide matrices, made once."""
        if layer.name not in self._energies:
            self._energies[layer.name] = output_energy(layer.weight, covariance)
        return self._energies[layer.name]

    def largest_of(self, scheme: Scheme) -> int:
        """Largest int8 weight code of a per-channel scheme."""
        return self.largest if scheme.backend == "onnx" else scheme.qmax

    def dense(self, layer: View, scheme: Scheme, *, only_bits: int | None = None) -> Replacement | None:
        """The layer's own weight on the grid of a scheme; None where there is none, or nothing is known of the input.

        A layer without a bias, or with zeros, gets none: it is rounded on the second moment of its input instead.
        With `only_bits` all other widths are left to the writer.
        """
        moments = self.covariances.of(layer.name)
        grid = None if moments is None else self._grid(scheme, layer.in_features)
        if moments is None or grid is None or not moments.variance.sum() > 0 or only_bits not in (None, grid.bits):
            return None
        key = digest("dense", VERSION, self.covariances.key, layer.name, grid.largest, grid.block)
        if key not in self._dense:
            known = self.covariances.cache.arrays("rounded", key, lambda: _dense_arrays(layer, moments, grid))
            self._dense[key] = dense(known["weight"], known["bias"] if known["bias"].size else None)
        return self._dense[key]

    def _grid(self, scheme: Scheme, in_features: int) -> WeightGrid | None:
        return grid_of(scheme, in_features, largest=self.largest_of(scheme))

    def _residual(self, layer: View, spectrum: Spectrum, rank: int, scheme: Scheme) -> Replacement:
        """A pair and the dense matrix beside it, all on their grids."""
        moments = self.covariances.of(layer.name)
        if moments is None:
            return beside(layer, self.plain(layer, spectrum, rank))
        parts = (scheme.name, self.covariances.key, self.method, layer.name, rank, self.seed)
        key = digest("rounded beside", VERSION, *parts)
        return self._kept(key, lambda: packed_part(rounded_beside(layer, moments, scheme, rank, seed=self.seed)))

    def _kept(self, key: str, make: Callable[[], Mapping[str, Array]]) -> Replacement:
        if key not in self._last:
            self._last[key] = unpacked_pair(self.covariances.cache.arrays("rounded", key, make))
        return self._last[key]

    def draft(self, layer: View, spectrum: Spectrum, structure: Structure, scheme: Scheme) -> Replacement:
        """`plain`, or `factors` where a dense matrix in 4 bits stands beside the pair."""
        if structure.is_correction:
            return self._residual(layer, spectrum, structure.ranks[0], scheme)
        return self.plain(layer, spectrum, structure.ranks[0])

    def plain(self, layer: View, spectrum: Spectrum, rank: int) -> Replacement:
        """A pair in the basis that quantizes well without a search, for whoever writes it to round."""
        return factors_at(layer, spectrum, rank, self.method, self.seed)

    def _made(
        self,
        layer: View,
        spectrum: Spectrum,
        rank: int,
        grids: tuple[WeightGrid, WeightGrid],
        latent: LatentGrid,
    ) -> Mapping[str, Array]:
        pair = factorizer(self.method).factors(layer, spectrum, rank)
        known = self.gradients.get(layer.name)
        gradient = None if known is None else damped(layer, known)
        gauge = search_gauge(pair, spectrum, grids, seed=self.seed, latent=latent, gradient=gradient)
        pair = turned(pair, spectrum, gauge, seed=self.seed)
        moments = self.covariances.of(layer.name)
        if moments is not None:
            found = shrunk_covariance(moments)
            rounded = alternate(layer.weight, pair, found, grids, gradient=gradient, rounds=_rounds(layer))
            pair = corrected_pair(pair, rounded.factors(None), moments.mean)
        return packed_part(pair)


def _rounds(layer: View) -> int:
    return next(count for size, count in ROUNDS if layer.in_features <= size)


def latent_grid(scheme: Scheme) -> LatentGrid:
    """How an integer scheme rounds what flows between the two factors."""
    return "static" if scheme.is_static else "dynamic"


def _dense_arrays(layer: View, moments: Moments, grid: WeightGrid) -> Mapping[str, Array]:
    covariance = shrunk_covariance(moments)
    if layer.bias is None or not layer.bias.any():
        weight = gptq(layer.weight, covariance + np.outer(moments.mean, moments.mean), grid).weight
        return {"weight": weight, "bias": np.zeros(0, np.float32) if layer.bias is None else layer.bias}
    weight = gptq(layer.weight, covariance, grid).weight
    return {"weight": weight, "bias": corrected_bias(layer.bias, layer.weight, weight, moments.mean)}
