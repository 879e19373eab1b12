"""Factors as they are written: in the basis that their integer grids suit best, and rounded onto them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgepack.cache import digest
from edgepack.factorize import factorizer
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.pipeline.beside import beside, rounded_beside
from edgepack.pipeline.covariances import Covariances
from edgepack.pipeline.losses import factors_at
from edgepack.quantize.alternate import alternate
from edgepack.quantize.bias import corrected_pair
from edgepack.quantize.gauge import LatentGrid, search_gauge, turned
from edgepack.quantize.grid import WEIGHT_MAX
from edgepack.quantize.lattice import WeightGrid, grid_of
from edgepack.types import FORMS, RESIDUAL_FORMS, Array, Factors, LinearLayer, Spectrum

VERSION = 1
ROUNDS = ((1024, 6), (2048, 2), (1 << 62, 0))
"""By the width of a layer: one round takes seconds at 2048 inputs, ten at 4096. Without rounds each factor is rounded
once, by GPTQ."""
_STATIC = ("int8-static-qdq", "int8-static")


@dataclass
class Rounder:
    """Makes the factors of a layer at a rank for a form; those of integer forms are kept in the cache.

    Attributes:
        covariances: of the layers' inputs; a layer without one is rounded to nearest by whoever writes it.
        method: the factorizer.
        seed: of the rotations.
        largest: largest code of per-channel int8 in ONNX; TFLite always has 127.
    """

    covariances: Covariances
    method: str
    seed: int
    largest: int
    _last: dict[str, Factors] = field(default_factory=dict)

    def factors(self, layer: LinearLayer, spectrum: Spectrum, rank: int, form: str) -> Factors:
        """A pair whose weights lie on the grids of the form, so that every quantizer leaves them as they are."""
        if form in RESIDUAL_FORMS:
            return self._residual(layer, spectrum, rank, form)
        if spectrum.mean is None:  # nothing is known of the layer's input
            return self.plain(layer, spectrum, rank)
        largest = self.largest if form in FORMS["onnx"] else WEIGHT_MAX
        grids = grid_of(form, rank, largest=largest), grid_of(form, layer.in_features, largest=largest)
        if grids[0] is None or grids[1] is None:
            return self.plain(layer, spectrum, rank)
        latent: LatentGrid = "static" if form in _STATIC else "dynamic"
        key = digest(
            *("rounded", VERSION, self.covariances.key, self.method, layer.name, rank, self.seed, latent),
            *((grid.largest, grid.block) for grid in grids if grid is not None),
        )
        if key not in self._last:
            known = self.covariances.cache.known_arrays("rounded", key)
            if known is None:
                made = self._made(layer, spectrum, rank, (grids[0], grids[1]), latent)
                known = self.covariances.cache.keep_arrays("rounded", key, made)
            self._last[key] = _loaded(known)
        return self._last[key]

    def _residual(self, layer: LinearLayer, spectrum: Spectrum, rank: int, form: str) -> Factors:
        """A pair and the dense matrix beside it, all on their grids."""
        moments = self.covariances.of(layer.name)
        if moments is None:
            return self.draft(layer, spectrum, rank, form)
        parts = (form, self.covariances.key, self.method, layer.name, rank, self.seed)
        key = digest("rounded beside", VERSION, *parts)
        if key not in self._last:
            known = self.covariances.cache.known_arrays("rounded", key)
            if known is None:
                found = rounded_beside(layer, moments, form, rank, seed=self.seed)
                known = self.covariances.cache.keep_arrays("rounded", key, _packed(found))
            self._last[key] = _loaded(known)
        return self._last[key]

    def draft(self, layer: LinearLayer, spectrum: Spectrum, rank: int, form: str | None) -> Factors:
        """`plain`; where a dense matrix stands beside the pair, with what the pair leaves of the weight."""
        pair = self.plain(layer, spectrum, rank)
        return beside(layer, pair) if form in RESIDUAL_FORMS else pair

    def plain(self, layer: LinearLayer, spectrum: Spectrum, rank: int) -> Factors:
        """A pair in the basis that quantizes well without a search, for whoever writes it to round."""
        return factors_at(layer, spectrum, rank, self.method, self.seed)

    def _made(
        self,
        layer: LinearLayer,
        spectrum: Spectrum,
        rank: int,
        grids: tuple[WeightGrid, WeightGrid],
        latent: LatentGrid,
    ) -> Mapping[str, Array]:
        pair = factorizer(self.method).factors(layer, spectrum, rank)
        gauge = search_gauge(pair, spectrum, grids, seed=self.seed, latent=latent)
        pair = turned(pair, spectrum, gauge, seed=self.seed)
        moments = self.covariances.of(layer.name)
        if moments is not None:
            rounds = next(count for size, count in ROUNDS if layer.in_features <= size)
            rounded = alternate(layer.weight, pair, shrunk_covariance(moments), grids, rounds=rounds)
            pair = corrected_pair(pair, rounded.factors(None), moments.mean)
        return _packed(pair)


def _packed(pair: Factors) -> dict[str, Array]:
    arrays = {"A": pair.A, "B": pair.B, "bias": np.zeros(0, np.float32) if pair.bias is None else pair.bias}
    return arrays if pair.base is None else arrays | {"base": pair.base}


def _loaded(arrays: Mapping[str, Array]) -> Factors:
    bias = arrays["bias"] if arrays["bias"].size else None
    return Factors(arrays["A"], arrays["B"], bias, arrays.get("base"))
