"""What plans are tried with: it makes their weights, proves and scores their files, and times these on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgepack.backends.registry import TOOLS
from edgepack.backends.runtime import load
from edgepack.cost.model import interleaved_s
from edgepack.data import example, rename
from edgepack.model.layer import Layer
from edgepack.model.scheme import Format
from edgepack.model.types import Aim, Spectrum
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.evaluate import EvaluationSet, FileEvaluator, FileTrial
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.replacements import Replacements
from edgepack.targets.target import HOST
from edgepack.workspace import Keyed, Step, Workspace, file_digest

_Runs = Sequence[tuple[str, Callable[[], object]]]


@dataclass(frozen=True)
class Evaluator:
    """One build's model, and what its plans are tried with.

    Attributes:
        replacements: makes what a plan writes for the layers.
        file_evaluator: proves files, and measures what they lose on the validation samples.
        confirmation: samples that only chosen plans are scored on; None where none were kept back.
        aim: what is least in the chosen plan.
        key: digest of all that decides what a plan's file answers: model, data, method, metric, seed, arithmetic.
    """

    options: BuildOptions
    analysis: Analysis
    replacements: Replacements
    file_evaluator: FileEvaluator
    confirmation: EvaluationSet | None
    aim: Aim
    key: str
    workspace: Workspace

    @property
    def spectra(self) -> Mapping[str, Spectrum]:
        """Of the layers' views, by name."""
        return self.analysis.spectra

    @property
    def layers(self) -> Sequence[Layer]:
        """Of the model."""
        return self.analysis.layers

    @property
    def measures_here(self) -> bool:
        """Whether the target is this machine, so that latencies of files can be measured during the build."""
        return self.options.target.name == HOST

    def confirmed(self, trial: FileTrial, share: float = 1 / 2) -> FileTrial:
        """The trial with its drop on the samples that were kept back.

        Args:
            trial: chosen on the validation samples.
            share: of the allowed error that this look spends; those of all looks at one format come to 1 at most, so
                that together they hold the confidence (Bonferroni): also that of the bound that is stated, since a plan
                that is kept was chosen by its bound.
        """
        confirmation, limit = self.confirmation, self.options.drop_limit
        if confirmation is None:
            return trial
        outputs = confirmation.answers(trial.path, trial.fmt)
        if limit is None or not confirmation.has_data:
            return replace(trial, confirmation=confirmation.drop(outputs))
        scale = confirmation.scale
        strict = replace(scale, confidence=1.0 - (1.0 - scale.confidence) * share).drop(outputs)
        return replace(trial, confirmation=replace(strict, confidence=scale.confidence))

    def latencies(self, paths: Mapping[str, Path], fmt: Format) -> dict[str, float]:
        """Seconds per inference of files on this machine: medians of `turns_s`."""
        return {name: float(np.median(turns)) for name, turns in self.turns_s(paths, fmt).items()}

    def turns_s(self, paths: Mapping[str, Path], fmt: Format) -> dict[str, list[float]]:
        """Seconds per inference of files on this machine, round by round; kept in the cache.

        Each is loaded twice, in the order and backwards: where a session lies in memory alone makes some per cent.
        """
        files = [[name, file_digest(path)] for name, path in paths.items()]

        def run_of(path: Path) -> Callable[[], object]:
            model = load(path, fmt, exact=False)
            inputs = rename(self.file_evaluator.validation.samples, model.inputs)
            feed = example(inputs, model.inputs, self.workspace.seed)
            return lambda: model.run(feed)

        def runs() -> _Runs:
            once = list(paths.items())
            return [(name, run_of(path)) for name, path in (*once, *reversed(once))]

        return self.workspace.cached(LATENCY, Keyed([files, repr(self.options.target)], runs))


LATENCY: Step[_Runs, dict[str, list[float]]] = Step("latency", 5, interleaved_s, tools=TOOLS)
