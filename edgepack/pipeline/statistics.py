"""Calibration statistics and spectra of all layers, each computed once and kept in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.cache import Cache, digest
from edgepack.calibrate import moments
from edgepack.data import Samples
from edgepack.factorize import factorizer
from edgepack.pipeline.observe import Observation, joined
from edgepack.progress import Progress
from edgepack.types import Array, LinearLayer, Moments, Spectrum

if TYPE_CHECKING:
    import onnx_ir as ir

FALLBACK = "svd"


def decompose(
    model: ir.Model,
    layers: Sequence[LinearLayer],
    method: str,
    calibration: Samples | None,
    key: str,
    cache: Cache,
    progress: Progress,
) -> tuple[tuple[Spectrum, ...], tuple[str, ...]]:
    """Spectrum of every layer by `method`, and the names of layers whose input was never seen: plain SVD for those.

    Args:
        key: digest of the model and the calibration data.
    """
    needs = factorizer(method).needs_moments
    keys = [digest("spectrum", 1, key, method, layer.name) for layer in layers]

    @functools.cache
    def seen() -> Mapping[str, Moments]:
        """Of all layers at once, and only if the cache lacks one: a damaged entry shows when it is read."""
        if not needs or calibration is None:
            return {}
        return _observe(model, [layer.name for layer in layers], calibration, progress)

    spectra, unobserved = [], []
    for index, (layer, layer_key) in enumerate(zip(layers, keys, strict=True)):
        progress("factorize", index, len(layers))
        arrays = cache.arrays("spectra", layer_key, functools.partial(_arrays, layer, method, seen))
        mean = arrays["mean"] if arrays["mean"].size else None
        if needs and mean is None:
            unobserved.append(layer.name)
        spectra.append(Spectrum(arrays["basis"], arrays["energies"], mean))
    progress("factorize", len(layers), len(layers))
    return tuple(spectra), tuple(unobserved)


def _observe(model: ir.Model, names: Sequence[str], samples: Samples, progress: Progress) -> dict[str, Moments]:
    observation = Observation(model, names)

    def counted() -> Iterator[Mapping[str, Array]]:
        for index, rows in enumerate(observation.rows(samples)):
            progress("calibrate", index, 0)
            yield rows

    by_key = moments(counted())
    return {name: by_key[joined(key)] for name, key in observation.keys.items() if joined(key) in by_key}


def _arrays(layer: LinearLayer, method: str, seen: Callable[[], Mapping[str, Moments]]) -> dict[str, Array]:
    algorithm = factorizer(method)
    found = seen().get(layer.name)
    if algorithm.needs_moments and (found is None or not found.variance.sum() > 0):
        algorithm = factorizer(FALLBACK)
    spectrum = algorithm.spectrum(replace(layer, moments=found))
    mean = np.zeros(0) if spectrum.mean is None else spectrum.mean
    return {"basis": spectrum.basis, "energies": spectrum.energies, "mean": mean}
