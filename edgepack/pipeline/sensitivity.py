"""How much the model's answer depends on each layer's output: gradients of its first output, where torch can run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.pipeline.opened import Opened
from edgepack.pipeline.output_gradients import MOST_BYTES, first_feeds, gradient_kind, moments_bytes
from edgepack.types import Array, Spectrum
from edgepack.workspace import Cache, Progress, digest

if TYPE_CHECKING:
    from edgepack.torchgraph.gradients import Curvature

SAMPLES = 64
"""Of calibration. Half as many order plans as well."""


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
        *,
        moments: Mapping[str, Array] | None = None,
    ) -> None:
        """`key` is a digest of the model, the data, and how the spectra came about; `moments` G where it is known."""
        self._moments = moments
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
        no_data = self._opened.program_path is None or self._calibration is None
        if no_data or moments_bytes(self._opened) > MOST_BYTES:
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
            first_feeds(self._opened, self._calibration, SAMPLES),
            self._seed,
            kind=gradient_kind(self._metric),
            samples=SAMPLES,
            moments=self._moments,
        )
