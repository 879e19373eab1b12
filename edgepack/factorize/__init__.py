"""Factorizers: algorithms that turn one layer into two thin ones. Chosen by name; plug-ins are entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from edgepack.errors import UsageError
from edgepack.factorize import fisher, svd, two_sided, whitened
from edgepack.types import Array, Factors, LinearLayer, Spectrum

ENTRY_POINT_GROUP = "edgepack.factorizers"


class Factorizer(Protocol):
    """A module or object with these two functions and one fact is a factorizer."""

    needs_moments: bool
    """Whether layers must carry `moments`."""

    def spectrum(self, layer: LinearLayer) -> Spectrum:
        """Decompose once: the error curve over all ranks."""

    def factors(self, layer: LinearLayer, spectrum: Spectrum, rank: int) -> Factors:
        """Factors at one rank, 1 ≤ rank ≤ len(spectrum.energies), cheap after `spectrum`."""


@runtime_checkable
class GradientFactorizer(Protocol):
    """A factorizer that weighs outputs by their gradients: it has one fact more, and its `spectrum` one argument."""

    needs_gradients: bool
    """Whether `spectrum` must be given G."""

    def spectrum(self, layer: LinearLayer, gradient: Array | None = None) -> Spectrum:
        """Decompose once; `gradient` is G, (out, out) float64, the second moment of the loss gradient at the output."""


FACTORIZERS: Mapping[str, Factorizer] = {"svd": svd, "whitened": whitened, "two-sided": two_sided, "fisher": fisher}
DEFAULT = "whitened"


def factorizer(name: str) -> Factorizer:
    """The factorizer called `name`, built in or from the entry-point group `edgepack.factorizers`.

    Raises:
        UsageError: there is none of that name.
    """
    if name in FACTORIZERS:
        return FACTORIZERS[name]
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in plugins:
        raise UsageError(f"unknown method {name!r}; there are {', '.join([*FACTORIZERS, *plugins])}")
    loaded: Factorizer = plugins[name].load()
    return loaded


def needs_gradients(name: str) -> bool:
    """Whether the spectra of this factorizer are weighed by output gradients.

    Raises:
        UsageError: there is none of that name.
    """
    chosen = factorizer(name)
    return isinstance(chosen, GradientFactorizer) and chosen.needs_gradients


def spectrum_of(name: str, layer: LinearLayer, gradient: Array | None = None) -> Spectrum:
    """The layer's spectrum by the factorizer called `name`, which is given `gradient` if it asks for it.

    Raises:
        UsageError: there is none of that name.
        DataError: the layer, or `gradient`, lacks what the factorizer needs.
    """
    chosen = factorizer(name)
    if isinstance(chosen, GradientFactorizer) and chosen.needs_gradients:
        return chosen.spectrum(layer, gradient)
    return chosen.spectrum(layer)
