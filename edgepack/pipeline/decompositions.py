"""Spectra of all views of layers, each computed once and kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

import numpy as np

from edgepack.factorize import whitened
from edgepack.factorize.leading import pays
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.methods.registry import DEFAULT, factorizer, needs_gradients, spectrum_of, usable
from edgepack.model.layer import View
from edgepack.model.types import Array, InputSpread, Moments, Spectrum
from edgepack.pipeline.activations import Covariances, Subject
from edgepack.quantize.gptq import innovation
from edgepack.workspace import Keyed, Step, Workspace, arrays_store

FALLBACK = "svd"


def decompose(
    subject: Subject,
    method: str,
    workspace: Workspace,
    *,
    gradients: Mapping[str, Array] | None = None,
    most: Mapping[str, int] = MappingProxyType({}),
) -> tuple[tuple[Spectrum, ...], tuple[str, ...]]:
    """Spectrum of every view by `method`, and the names of those whose input was never seen: plain SVD for these.

    Every spectrum is stored as soon as it is there: an interrupt loses only what runs.

    Args:
        gradients: G by layer name, for a method that weighs by it; a layer without is whitened.
        most: by view name, the largest rank that will be looked at; of a view without one, all of them.

    Raises:
        DataError: a value in the model is not finite.
        DeviceError: the workers failed.
    """
    needs = factorizer(method).needs_moments
    weights = (gradients or {}) if needs_gradients(method) else {}

    @cache
    def seen() -> Mapping[str, Moments]:
        return Covariances(subject, workspace).observe() if needs else {}

    def entry(layer: View) -> Keyed[_Layer]:
        gradient = weights.get(layer.name)
        rank = most.get(layer.name)
        rank = rank if rank is not None and pays(min(layer.weight.shape), rank) else None
        return Keyed(
            [subject.key, method, layer.name, gradient, rank],
            lambda: _Layer(layer, method, seen().get(layer.name), gradient, rank),
        )

    spectra = tuple(workspace.map(SPECTRUM, [entry(view) for view in subject.views], "factorize"))
    names = (view.name for view in subject.views)
    unobserved = [name for name, spectrum in zip(names, spectra, strict=True) if spectrum.mean is None]
    return spectra, tuple(unobserved if needs else ())


def decompose_views(
    views: Sequence[View], most: Sequence[int], key: object, workspace: Workspace
) -> tuple[Spectrum, ...]:
    """Whitened spectra of matrices that are no layer's own.

    Args:
        views: with their moments.
        most: of each, the largest rank that will be looked at.
        key: digest of all that they depend on beside their names.

    Raises:
        DeviceError: the workers failed.
    """

    def entry(view: View, rank: int) -> Keyed[_Layer]:
        most = rank if pays(min(view.weight.shape), rank) else None
        layer = replace(view, moments=None)
        return Keyed([key, DEFAULT, view.name, most], lambda: _Layer(layer, DEFAULT, view.moments, None, most))

    entries = [entry(*each) for each in zip(views, most, strict=True)]
    return tuple(workspace.map(SPECTRUM, entries, "factorize")) if entries else ()


@dataclass(frozen=True)
class _Layer:
    """A layer to decompose.

    Attributes:
        layer: without its moments.
        seen: its moments, where there are any.
        gradient: G, where there is one.
        most: the largest rank that will be looked at, where it is small enough to make a difference.
    """

    layer: View
    method: str
    seen: Moments | None
    gradient: Array | None
    most: int | None


def _decomposed(task: _Layer) -> Spectrum:
    spread = None if task.seen is None else _spread(task.seen)
    if factorizer(task.method).needs_moments and (task.seen is None or not task.seen.variance.sum() > 0):
        return replace(spectrum_of(FALLBACK, task.layer, None), inputs=spread)
    method = usable(task.method, task.gradient)
    layer = replace(task.layer, moments=task.seen)
    found = whitened.spectrum(layer, task.most) if method == DEFAULT else spectrum_of(method, layer, task.gradient)
    return replace(found, inputs=spread)


def _spread(seen: Moments) -> InputSpread:
    share = innovation(shrunk_covariance(seen))
    return InputSpread(seen.variance, float(seen.low), float(seen.high), float(seen.row_range), float(share))


def _cost(task: _Layer) -> float:
    """Floating-point operations: W C Wᵀ, and eigendecompositions that take as long as ten products of their size."""
    m, n = task.layer.out_features, task.layer.in_features
    return 2.0 * m * n * (m + n) + 20.0 * (min(m, n) ** 3 + (n**3 if m > n else 0))


def _memory(task: _Layer) -> float:
    """Bytes: C and its copy, W in float64, its product and a basis, the matrix that is decomposed and its workspace."""
    m, n = task.layer.out_features, task.layer.in_features
    return 8.0 * (2 * n * n + 3 * m * n + 4 * min(m, n) ** 2)


def _packed(spectrum: Spectrum) -> dict[str, Array]:
    inputs = spectrum.inputs
    mean = np.zeros(0) if spectrum.mean is None else spectrum.mean
    dual = {} if spectrum.dual is None else {"dual": spectrum.dual}
    spread = [] if inputs is None else [inputs.low, inputs.high, inputs.row_range, inputs.innovation]
    variance = np.zeros(0) if inputs is None else inputs.variance
    arrays = {"basis": spectrum.basis, "energies": spectrum.energies, "mean": mean, **dual}
    return arrays | {"rest": np.array(spectrum.rest), "variance": variance, "range": np.array(spread)}


def _unpacked(arrays: Mapping[str, Array]) -> Spectrum:
    inputs = None
    if arrays["range"].size:
        inputs = InputSpread(arrays["variance"], *map(float, arrays["range"]))
    mean = arrays["mean"] if arrays["mean"].size else None
    return Spectrum(arrays["basis"], arrays["energies"], mean, inputs, arrays.get("dual"), float(arrays["rest"]))


SPECTRUM: Step[_Layer, Spectrum] = Step(
    "spectra", 5, _decomposed, arrays_store(_packed, _unpacked), cost=_cost, memory=_memory
)
