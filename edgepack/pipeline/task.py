"""What every part of a build works on: one model, one target, one set of options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.cache import Cache, digest, file_digest
from edgepack.data import example
from edgepack.executor import one_thread
from edgepack.inference import load, rename
from edgepack.pipeline.attempt import Prover
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.rounding import Rounder
from edgepack.plan.cost import interleaved_latency_s
from edgepack.progress import Progress
from edgepack.targets import HOST
from edgepack.types import Factors, Format, LayerPlan, LinearLayer, Spectrum
from edgepack.versions import tool_versions


@dataclass
class Task:
    """One build's model and tools.

    Attributes:
        key: digest of all that decides what a plan's file answers: model, data, method, metric, seed, arithmetic.
        rounder: makes factors.
        work: temporary folder.
        warnings: what the user should hear; each once.
    """

    options: BuildOptions
    layers: Sequence[LinearLayer]
    spectra: Sequence[Spectrum]
    method: str
    prover: Prover
    cache: Cache
    key: str
    rounder: Rounder
    work: Path
    progress: Progress
    warnings: list[str] = field(default_factory=list)

    @property
    def measures_here(self) -> bool:
        """Whether the target is this machine, so that latencies of files can be measured during the build."""
        return self.options.target.name == HOST

    def warn(self, message: str) -> None:
        """Keeps a warning, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def draft(self, plan: Sequence[LayerPlan]) -> dict[str, Factors]:
        """Factors of every layer that the plan factors, quickly: what a form rounds to nearest."""
        return self._each(plan, self.rounder.draft)

    def factors(self, plan: Sequence[LayerPlan], form: str) -> dict[str, Factors]:
        """Factors of every layer that the plan factors, on the grids of its form; `form` is that of the file."""
        own = form.partition("+")[0]
        return self._each(
            plan, lambda layer, spectrum, rank, form: self.rounder.factors(layer, spectrum, rank, form or own)
        )

    def _each(
        self, plan: Sequence[LayerPlan], make: Callable[[LinearLayer, Spectrum, int, str | None], Factors]
    ) -> dict[str, Factors]:
        with one_thread():  # the same bytes on machines with more cores
            return {
                layer.name: make(layer, spectrum, choice.rank, choice.form)
                for layer, spectrum, choice in zip(self.layers, self.spectra, plan, strict=True)
                if choice.rank is not None
            }

    def latencies(self, paths: Mapping[str, Path], fmt: Format) -> dict[str, float]:
        """Seconds per inference of files on this machine, measured in turns and kept in the cache."""
        files = [[name, file_digest(path)] for name, path in paths.items()]
        key = digest("latency", 1, files, repr(self.options.target), tool_versions())

        def measure() -> dict[str, float]:
            runs = {}
            for name, path in paths.items():
                model = load(path, fmt, exact=False)
                feed = example(rename(self.prover.guard.samples, model.inputs), model.inputs, self.options.seed)
                runs[name] = lambda model=model, feed=feed: model.run(feed)
            return interleaved_latency_s(runs)

        return dict(self.cache.record("latency", key, measure))
