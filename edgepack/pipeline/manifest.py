"""What the manifest of a build says: the pipeline's values as its entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from edgepack.backends.registry import TOOLS
from edgepack.cost.model import MEASURED
from edgepack.metrics.drop import Drop
from edgepack.model.scheme import Format
from edgepack.model.types import Contents
from edgepack.pack.manifest import (
    CornerEntry,
    CrossValidationEntry,
    DataEntry,
    DenseFile,
    DistillationEntry,
    DropEntry,
    File,
    FoldsRow,
    HeldOutLoss,
    JudgeEntry,
    LayerEntry,
    LostShares,
    Manifest,
    MetricEntry,
    ModelEntry,
    OptionsEntry,
    PackedFile,
    ProofEntry,
    TargetEntry,
    TrialEntry,
)
from edgepack.pipeline.baselines import Baseline
from edgepack.pipeline.crossval import CrossValidation
from edgepack.pipeline.distill import Outcome
from edgepack.pipeline.evaluate import EvaluationSet, FileTrial
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.pareto import Corner
from edgepack.pipeline.prepare import Prepared
from edgepack.pipeline.recipe_score import RECIPE
from edgepack.pipeline.search import PlanTrial
from edgepack.pipeline.tables import as_stored
from edgepack.plan.candidates import file_label
from edgepack.quantize.error_breakdown import Split
from edgepack.workspace import file_bytes, file_digest, tool_versions


@dataclass(frozen=True)
class Results:
    """What a build came to beyond what it was asked.

    Attributes:
        files: by path in the pack.
        latency_s: measured while choosing, by format and file.
    """

    files: Mapping[str, File]
    latency_s: Mapping[str, float]
    budget_met: bool
    warnings: tuple[str, ...]


def make_manifest(ready: Prepared, plan_trials: Sequence[PlanTrial], results: Results) -> Manifest:
    """The manifest of a build."""
    options, opened, data, validation = ready.evaluator.options, ready.opened, ready.data, ready.validation
    found, kept_back = ready.cross_validation, ready.evaluator.confirmation
    return Manifest(
        model=ModelEntry(opened.name, Path(options.model).name, opened.kind, opened.sha256),
        target=TargetEntry(options.target.name),
        options=_options(options, ready.evaluator.replacements.rounder.qmax),
        seed=options.seed,
        versions=tool_versions(TOOLS),
        method=options.method or ready.evaluator.analysis.method,
        cross_validation=None if found is None else _cross_validation(found),
        loss_weighted_by=ready.evaluator.analysis.sensitivity.by,
        cost_sources={fmt: ready.estimates.source_name(fmt) for fmt in ready.files},
        metric=_metric(validation),
        data=DataEntry(
            origin=data.origin,
            calibration_samples=0 if data.calibration is None else len(data.calibration),
            validation_samples=len(data.validation) if validation.has_data and validation.recipe is None else 0,
            confirmation_samples=0 if kept_back is None else len(kept_back.samples),
            labelled=data.validation.labels is not None,
            split_seed=options.seed,
        ),
        trials=tuple(map(_trial_entry, plan_trials)),
        files=results.files,
        latency_s=results.latency_s,
        budget_met=results.budget_met,
        warnings=results.warnings,
    )


def _metric(validation: EvaluationSet) -> MetricEntry:
    if validation.recipe is not None:
        return MetricEntry(RECIPE, "it was asked for", validated=True, outputs=())
    judges = validation.scale.judges
    return MetricEntry(
        name=validation.metric,
        why=judges[0].why,
        validated=validation.has_data,
        outputs=tuple(JudgeEntry(judge.output, judge.metric.name, judge.labelled, judge.why) for judge in judges),
    )


def _options(options: BuildOptions, qmax: int) -> OptionsEntry:
    return OptionsEntry(
        rank=options.rank,
        precision=options.precision,
        refit=options.refit,
        max_drop=options.drop_limit,
        formats=options.chosen_formats,
        max_size_bytes=options.max_size_bytes,
        max_memory_bytes=options.max_memory_bytes,
        max_latency_s=options.max_latency_s,
        pick=options.pick,
        distill=None if options.distill is None else str(options.distill),
        keep=options.keep,
        only=options.only,
        largest_onnx_weight_code=qmax,
    )


def _cross_validation(found: CrossValidation) -> CrossValidationEntry:
    return CrossValidationEntry(
        metric="accuracy",
        percent=found.percent,
        best=found.best,
        threshold=found.threshold,
        folds=found.folds,
        samples=found.samples,
        table=tuple(FoldsRow(row.rank, row.scores, row.mean, row.standard_error) for row in found.table),
    )


def _trial_entry(plan_trial: PlanTrial) -> TrialEntry:
    return TrialEntry(
        format=plan_trial.fmt,
        scheme=file_label(plan_trial.layers, plan_trial.scheme),
        size_bytes=plan_trial.size_bytes,
        predicted_latency_s=plan_trial.latency_s,
        predicted_loss=plan_trial.loss,
        weight_parameters=sum(choice.weight_parameters for choice in plan_trial.layers),
        ranks={choice.layer: choice.rank for choice in plan_trial.layers if choice.rank is not None},
        drop=DropEntry.of(plan_trial.drop),
    )


def chosen_by(source: str, *, measured: bool) -> str:
    """What a file was chosen by: the costs of its layers, and times of whole files where these were compared."""
    return f"{MEASURED}, among plans by costs: {source}" if measured else source


def pack_file(
    trial: FileTrial,
    source: Contents,
    chosen_by: str,
    test: float | None,
    splits: Mapping[str, Split],
) -> PackedFile:
    """The entry of `model.<format>`.

    Args:
        chosen_by: where the choice of its scheme comes from.
        splits: by layer name, what is lost of its output.
    """
    dense = sum(a * b for a, b, _ in source.weights)
    saved = sum(p.dense_parameters - p.weight_parameters for p in trial.layers)
    metric, scored_on = _scored(trial.drop, trial.confirmation, test)
    return PackedFile(
        format=trial.fmt,
        scheme=file_label(trial.layers, trial.scheme),
        size_bytes=file_bytes(trial.path),
        sha256=file_digest(trial.path),
        metric=metric,
        scored_on=scored_on,
        validation=_entry(trial.drop),
        confirmation=_entry(trial.confirmation),
        test=test,
        scheme_chosen_by=chosen_by,
        distillation=None if trial.distillation is None else _distillation(trial.distillation),
        matrix_parameters=dense - saved,
        matrix_parameters_share=(dense - saved) / dense if dense else 1.0,
        layers=tuple(LayerEntry.of(choice, _shares(splits.get(choice.layer))) for choice in trial.layers),
        proofs={p.name: ProofEntry(p.passed, p.detail) for p in trial.proofs},
        tables=_tables(trial),
    )


def _tables(trial: FileTrial) -> tuple[LayerEntry, ...] | None:
    """None where the file has none as planned: it may have been written with all of them in 8 bits."""
    if as_stored(trial.scheme, trial.tables) != trial.scheme:
        return None
    return tuple(map(LayerEntry.of, trial.tables)) or None


def corner_entries(corners: Sequence[Corner], size_bytes: int) -> tuple[CornerEntry, ...] | None:
    """The corners of a plan, its own first, held against the bytes of its file; None where there are none."""
    more = size_bytes - corners[0].size_bytes if corners else 0
    return tuple(CornerEntry(one.aim, one.size_bytes + more, one.latency_s) for one in corners) or None


def _distillation(outcome: Outcome) -> DistillationEntry:
    loss = HeldOutLoss(*outcome.held_out)
    return DistillationEntry(outcome.steps, loss, outcome.missing, outcome.samples, outcome.kept)


def _shares(split: Split | None) -> LostShares | None:
    return None if split is None else LostShares(**asdict(split), total=split.total)


def baseline_files(fmt: Format, baseline: Baseline, tests: Mapping[str, float]) -> dict[str, DenseFile]:
    """The entries of `baseline/fp32.<format>` and `baseline/int8.<format>`."""
    fp32, int8 = (f"baseline/{precision}.{fmt}" for precision in ("fp32", "int8"))
    return {
        fp32: _dense(baseline.fp32, fmt, "fp32", (baseline.fp32_drop, baseline.fp32_stated), tests.get(fp32)),
        int8: replace(
            _dense(
                baseline.int8,
                fmt,
                baseline.scheme.name,
                (baseline.int8_drop, baseline.int8_stated),
                tests.get(int8),
            ),
            quantizer=baseline.quantizer,
            scheme_chosen_by=baseline.chosen_by,
        ),
    }


def _dense(
    path: Path, fmt: Format, scheme: str, drops: tuple[Drop | None, Drop | None], test: float | None
) -> DenseFile:
    metric, scored_on = _scored(*drops, test)
    return DenseFile(
        format=fmt,
        scheme=scheme,
        size_bytes=file_bytes(path),
        sha256=file_digest(path),
        metric=metric,
        scored_on=scored_on,
        validation=_entry(drops[0]),
        confirmation=_entry(drops[1]),
        test=test,
    )


def _entry(drop: Drop | None) -> DropEntry | None:
    return None if drop is None else DropEntry.of(drop)


def _scored(
    validation: Drop | None, confirmation: Drop | None, test: float | None
) -> tuple[float | None, Literal["validation", "confirmation", "test"] | None]:
    """A file's score, and on what: the untouched test where there is one, else the samples that were kept back, else
    those that it was chosen on."""
    if test is not None:
        return test, "test"
    if confirmation is not None:
        return confirmation.score, "confirmation"
    return (None, None) if validation is None else (validation.score, "validation")
