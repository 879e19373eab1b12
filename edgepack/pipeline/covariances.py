"""Covariances of every layer's input, kept in the cache: what rounding looks at after the spectra are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data import Samples
from edgepack.executor import Workers
from edgepack.pipeline.moments import observe
from edgepack.pipeline.shrinking import with_shrinkage
from edgepack.types import Array, Moments
from edgepack.workspace import Cache, Progress, digest

if TYPE_CHECKING:
    import onnx_ir as ir

VERSION = 2


@dataclass
class Covariances:
    """Moments by layer name: from the cache, or for all layers by one pass over the data.

    Attributes:
        names: of all layers.
        calibration: None where there are no data, and so no moments.
        key: digest of the model and the data.
    """

    model: ir.Model
    names: Sequence[str]
    calibration: Samples | None
    key: str
    cache: Cache
    progress: Progress
    workers: Workers | None
    _unseen: set[str] = field(default_factory=set)
    _observed: bool = False

    def observe(self) -> Mapping[str, Moments]:
        """Moments of all layers whose input was seen, in one pass over the data.

        Raises:
            DataError: a value in the model is not finite.
            DeviceError: the workers failed.
        """
        if self.calibration is None:
            return {}
        seen = observe(self.model, self.names, self.calibration, self.progress, self.workers)
        seen = with_shrinkage(self.model, self.calibration, seen, self.progress, self.workers)
        for name, moments in seen.items():
            self.cache.keep_arrays("moments", self._entry(name), _packed(moments))
        self._unseen = set(self.names) - set(seen)
        self._observed = True
        return seen

    def of(self, name: str) -> Moments | None:
        """Moments of one layer; None where its input was never seen."""
        if self.calibration is None:
            return None
        # What this object has kept is good also where nothing older is to be read; and always read, so that the bits
        # are the same however the moments came about.
        kept = Cache(self.cache.root) if self._observed else self.cache
        known = kept.known_arrays("moments", self._entry(name))
        if known is None and name not in self._unseen:
            self.observe()
            known = Cache(self.cache.root).known_arrays("moments", self._entry(name))
        return None if known is None else _loaded(known)

    def _entry(self, name: str) -> str:
        return digest("moments", VERSION, self.key, name)


def _packed(moments: Moments) -> dict[str, Array]:
    # The covariance, not the raw moment: in float32 a large mean would leave it no digits.
    shrinkage = np.nan if moments.shrinkage is None else moments.shrinkage
    spread = np.array([moments.count, moments.low, moments.high, moments.row_range, shrinkage])
    return {"mean": moments.mean, "covariance": moments.covariance.astype(np.float32), "spread": spread}


def _loaded(arrays: Mapping[str, Array]) -> Moments:
    count, low, high, row_range, shrinkage = map(float, arrays["spread"])
    second = arrays["covariance"].astype(np.float64) + np.outer(arrays["mean"], arrays["mean"])
    kept = None if np.isnan(shrinkage) else shrinkage
    return Moments(int(count), arrays["mean"], second, low, high, row_range, kept)
