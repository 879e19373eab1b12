"""Calibration statistics and spectra of all layers, each computed once and kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data import Samples
from edgepack.executor import Workers, map_tasks
from edgepack.factorize import DEFAULT, factorizer, needs_gradients, spectrum_of
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.pipeline.covariances import Covariances
from edgepack.quantize.gptq import innovation
from edgepack.types import Array, InputSpread, Moments, Spectrum
from edgepack.workspace import Cache, Progress, digest

if TYPE_CHECKING:
    import onnx_ir as ir

FALLBACK = "svd"
VERSION = 3


def decompose(
    model: ir.Model,
    layers: Sequence[View],
    method: str,
    calibration: Samples | None,
    key: str,
    cache: Cache,
    progress: Progress,
    executor: Workers | None = None,
    *,
    gradients: Mapping[str, Array] | None = None,
) -> tuple[tuple[Spectrum, ...], tuple[str, ...]]:
    """Spectrum of every layer by `method`, and the names of layers whose input was never seen: plain SVD for those.

    Every spectrum is stored as soon as it is there: an interrupt loses only what runs.

    Args:
        key: digest of the model and the calibration data.
        executor: where to compute; None for this process. The result is the same.
        gradients: G by layer name, for a method that weighs by it; a layer without is whitened.

    Raises:
        DataError: a value in the model is not finite.
        DeviceError: the workers failed.
    """
    needs = factorizer(method).needs_moments
    weights = (gradients or {}) if needs_gradients(method) else {}
    keys = [
        digest("spectrum", VERSION, key, method, layer.name, *([weights[layer.name]] if layer.name in weights else []))
        for layer in layers
    ]
    found = {
        index: arrays
        for index, entry in enumerate(keys)
        if (arrays := cache.known_arrays("spectra", entry)) is not None
    }
    missing = [index for index in range(len(layers)) if index not in found]
    seen: Mapping[str, Moments] = {}
    if missing and needs and calibration is not None:
        names = [layer.name for layer in layers]
        seen = Covariances(model, names, calibration, key, cache, progress, executor).observe()
    progress("factorize", len(found), len(layers))
    named = [(layers[index], layers[index].name) for index in missing]
    tasks = [_task(layer, method, seen.get(name), weights.get(name)) for layer, name in named]
    costs, needed = [_cost(layer) for layer, *_ in tasks], [_memory(layer) for layer, *_ in tasks]
    for position, arrays in map_tasks(executor, _spectrum, tasks, costs, memory=needed):
        index = missing[position]
        arrays |= _spread(seen.get(layers[index].name))
        found[index] = cache.keep_arrays("spectra", keys[index], arrays)
        progress("factorize", len(found), len(layers))
    spectra = tuple(_loaded(found[index]) for index in range(len(layers)))
    unobserved = [layer.name for layer, spectrum in zip(layers, spectra, strict=True) if spectrum.mean is None]
    return spectra, tuple(unobserved if needs else ())


def _task(layer: View, method: str, seen: Moments | None, gradient: Array | None) -> tuple[View, str, Array | None]:
    if factorizer(method).needs_moments and (seen is None or not seen.variance.sum() > 0):
        return replace(layer, moments=None), FALLBACK, None
    own = DEFAULT if needs_gradients(method) and gradient is None else method
    return replace(layer, moments=seen), own, gradient


def _spectrum(layer: View, method: str, gradient: Array | None) -> dict[str, Array]:
    """A task: may run on another machine."""
    spectrum = spectrum_of(method, layer, gradient)
    mean = np.zeros(0) if spectrum.mean is None else spectrum.mean
    dual = {} if spectrum.dual is None else {"dual": spectrum.dual}
    return {"basis": spectrum.basis, "energies": spectrum.energies, "mean": mean, **dual}


def _spread(seen: Moments | None) -> dict[str, Array]:
    if seen is None:
        return {"variance": np.zeros(0), "range": np.zeros(0)}
    share = innovation(shrunk_covariance(seen))
    return {"variance": seen.variance, "range": np.array([seen.low, seen.high, seen.row_range, share])}


def _loaded(arrays: Mapping[str, Array]) -> Spectrum:
    inputs = None
    if arrays["range"].size:
        inputs = InputSpread(arrays["variance"], *map(float, arrays["range"]))
    mean = arrays["mean"] if arrays["mean"].size else None
    return Spectrum(arrays["basis"], arrays["energies"], mean, inputs, arrays.get("dual"))


def _cost(layer: View) -> float:
    """Floating-point operations: W C Wᵀ, and eigendecompositions that take as long as ten products of their size."""
    m, n = layer.out_features, layer.in_features
    return 2.0 * m * n * (m + n) + 20.0 * (min(m, n) ** 3 + (n**3 if m > n else 0))


def _memory(layer: View) -> float:
    """Bytes: C and its copy, W in float64 and its product, the matrix that is decomposed and its workspace."""
    m, n = layer.out_features, layer.in_features
    return 8.0 * (2 * n * n + 2 * m * n + 4 * min(m, n) ** 2)
