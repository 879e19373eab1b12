"""How much the model's answer depends on each layer's output: gradients of its first output, where torch can run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepack.cache import Cache, digest
from edgepack.data import Samples, feeds
from edgepack.errors import ModelError
from edgepack.pipeline.opened import Opened
from edgepack.progress import Progress
from edgepack.types import Array, Spectrum

if TYPE_CHECKING:
    from edgepack.torchgraph.gradients import Curvature

SAMPLES = 64
"""Of calibration. Half as many order plans as well."""

MOST_BYTES = 1 << 30
"""The second moments of all layers' gradients are held at once; models for which they take more do without them."""


class Sensitivity:
    """Curvature at every layer of one model, computed when it is first asked for."""

    def __init__(
        self,
        opened: Opened,
        spectra: Sequence[Spectrum],
        calibration: Samples | None,
        metric: str,
        seed: int,
        key: str,
        cache: Cache,
        progress: Progress,
    ) -> None:
        """`key` is a digest of the model, the data, and how the spectra came about."""
        self._opened, self._calibration, self._metric, self._seed = opened, calibration, metric, seed
        self._spectra = {layer.name: spectrum for layer, spectrum in zip(opened.layers, spectra, strict=True)}
        self._key, self._cache, self._progress = key, cache, progress

    @property
    def known(self) -> bool:
        """Whether there are gradients for every layer: losses with and without them do not compare.

        There are none without a torch program or data, where they would take too much memory, where an operator has no
        derivative, and where a layer has no part in the first output.
        """
        return bool(self._summary["known"])

    @property
    def problem(self) -> str | None:
        """Why the gradients could not be computed, None where they could or were not tried."""
        problem: str | None = self._summary["problem"]
        return problem

    @cached_property
    def _summary(self) -> dict[str, Any]:
        moments_bytes = sum(8 * layer.out_features**2 for layer in self._opened.layers)
        if self._opened.program_path is None or self._calibration is None or moments_bytes > MOST_BYTES:
            return {"known": False, "problem": None}

        def measure() -> dict[str, Any]:
            try:
                return {"known": set(self._measured) == set(self._spectra), "problem": None}
            except ModelError as err:
                return {"known": False, "problem": err.message}

        key = digest("gradients", 2, self._key, self._metric, self._seed, SAMPLES)
        return dict(self._cache.record("gradients", key, measure))

    @property
    def curvatures(self) -> Mapping[str, Curvature]:
        """By layer name; empty unless `known`."""
        return self._measured if self.known else {}

    @cached_property
    def _measured(self) -> Mapping[str, Curvature]:
        from edgepack.torchgraph.gradients import curvatures

        program = self._opened.program_path
        if program is None or self._calibration is None:
            return {}
        self._progress("output gradients")
        return curvatures(
            program,
            self._opened.layers,
            self._spectra,
            self._inputs(self._calibration),
            self._seed,
            kind="vector" if self._metric == "cosine" else "classes",
            samples=SAMPLES,
        )

    def _inputs(self, calibration: Samples) -> Iterator[Mapping[str, Array]]:
        for feed, _ in feeds(calibration.head(SAMPLES), self._opened.inputs):
            yield feed
