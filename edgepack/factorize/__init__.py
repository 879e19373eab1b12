"""Factorizers: algorithms that turn one layer into two thin ones. Chosen by name; plug-ins are entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Protocol

from edgepack.errors import UsageError
from edgepack.factorize import svd, whitened
from edgepack.types import Factors, LinearLayer, Spectrum

ENTRY_POINT_GROUP = "edgepack.factorizers"


class Factorizer(Protocol):
    """A module or object with these two functions and one fact is a factorizer."""

    needs_moments: bool
    """Whether layers must carry `moments`."""

    def spectrum(self, layer: LinearLayer) -> Spectrum:
        """Decompose once: the error curve over all ranks."""

    def factors(self, layer: LinearLayer, spectrum: Spectrum, rank: int) -> Factors:
        """Factors at one rank, 1 ≤ rank ≤ len(spectrum.energies), cheap after `spectrum`."""


FACTORIZERS: Mapping[str, Factorizer] = {"svd": svd, "whitened": whitened}
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
