"""What a manifest says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepack.metrics import Drop
from edgepack.model.scheme import Format
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.baselines import Baseline
from edgepack.pipeline.distill import Outcome, outcome_record
from edgepack.pipeline.prepare import Prepared
from edgepack.pipeline.probing import Probe
from edgepack.plan.cost import MEASURED
from edgepack.plan.file_scheme import file_label
from edgepack.quantize.split import Split
from edgepack.types import Candidate, Contents, LayerPlan
from edgepack.workspace import file_digest, tool_versions


def build_record(ready: Prepared, probes: Sequence[Probe]) -> dict[str, Any]:
    """Everything that does not depend on a single file."""
    options, opened, data, guard = ready.evaluator.options, ready.opened, ready.data, ready.guard
    return {
        "model": {
            "name": opened.name,
            "source": Path(options.model).name,
            "kind": opened.kind,
            "sha256": opened.sha256,
        },
        "target": {"name": options.target.name},
        "options": {
            "rank": options.rank,
            "precision": options.precision,
            "refit": options.refit,
            "max_drop": options.drop_limit,
            "formats": list(options.chosen_formats),
            "flash_bytes": options.flash_bytes,
            "ram_bytes": options.ram_bytes,
            "latency_s": options.latency_s,
            "pick": list(options.pick),
            "recover": None if options.recover is None else str(options.recover),
            "largest_onnx_weight_code": ready.evaluator.replacements.rounder.largest,
        },
        "seed": options.seed,
        "versions": tool_versions(),
        "method": options.method or ready.evaluator.analysis.method,
        "cross_validation": None if ready.cross_validation is None else ready.cross_validation.record(),
        "loss_weighted_by": "output gradients" if ready.evaluator.analysis.sensitivity.known else "output energy",
        "cost_sources": {fmt: ready.prices.source_name(fmt) for fmt in ready.files},
        "metric": {"name": guard.metric, "guarded": guard.guarded},
        "data": {
            "origin": data.origin,
            "calibration_samples": 0 if data.calibration is None else len(data.calibration),
            "guard_samples": len(data.guard) if guard.guarded else 0,
            "labelled": data.guard.labels is not None,
            "split_seed": options.seed,
        },
        "probes": [
            {
                "format": probe.fmt,
                "scheme": file_label(probe.layers, probe.scheme),
                "size_bytes": probe.size_bytes,
                "predicted_latency_s": probe.latency_s,
                "predicted_loss": probe.loss,
                "weight_parameters": sum(choice.weight_parameters for choice in probe.layers),
                "ranks": {choice.layer: choice.rank for choice in probe.layers if choice.rank is not None},
                "drop": drop_record(probe.drop),
            }
            for probe in probes
        ],
    }


def chosen_by(source: str, *, measured: bool) -> str:
    """What a file was chosen by: the costs of its layers, and times of whole files where these were compared."""
    return f"{MEASURED}, among plans by costs: {source}" if measured else source


def pack_file(
    attempt: Attempt,
    source: Contents,
    chosen_by: str,
    test: float | None,
    splits: Mapping[str, Split],
    outcome: Outcome | None,
) -> dict[str, Any]:
    """The entry of `model.<format>`.

    Args:
        chosen_by: where the choice of its scheme comes from.
        splits: by layer name, what is lost of its output.
        outcome: of training its pairs.
    """
    dense = sum(a * b for a, b, _ in source.weights)
    saved = sum(p.dense_parameters - p.weight_parameters for p in attempt.layers)
    return {
        **_file(attempt.path, attempt.fmt, file_label(attempt.layers, attempt.scheme), attempt.drop, test),
        "scheme_chosen_by": chosen_by,
        "recovery": None if outcome is None else outcome_record(outcome),
        "matrix_parameters": dense - saved,
        "matrix_parameters_share": (dense - saved) / dense if dense else 1.0,
        "layers": [
            {**layer_record(choice), "lost_shares": _shares(splits.get(choice.layer))} for choice in attempt.layers
        ],
        "proofs": {p.name: {"passed": p.passed, "detail": p.detail} for p in attempt.proofs},
    }


def layer_record(plan: LayerPlan) -> dict[str, Any]:
    """What became of one layer, its schemes by name."""
    return {
        "layer": plan.layer,
        "out_features": plan.dense[-1].rows,
        "in_features": plan.dense[0].columns,
        "structure": plan.structure.name,
        "rank": plan.rank,
        "break_even_rank": plan.break_even_rank,
        "lost_energy_share": plan.lost_energy_share,
        "reason": plan.reason,
        "alternative": None if plan.alternative is None else asdict(plan.alternative),
        "scheme": None if plan.scheme is None else plan.scheme.name,
        "weight_parameters": plan.weight_parameters,
        "predicted": None if plan.predicted is None else _candidate_record(plan.predicted),
        "others": [_candidate_record(other) for other in plan.others],
    }


def _candidate_record(candidate: Candidate) -> dict[str, Any]:
    return {
        "scheme": candidate.scheme.name,
        "structure": candidate.structure.name,
        "rank": candidate.structure.rank,
        "loss": candidate.loss,
        "size_bytes": candidate.size_bytes,
        "ram_bytes": candidate.ram_bytes,
        "latency_s": candidate.latency_s,
        "source": candidate.source,
        "alternative": None if candidate.alternative is None else asdict(candidate.alternative),
    }


def _shares(split: Split | None) -> dict[str, float] | None:
    return None if split is None else {**asdict(split), "total": split.total}


def baseline_files(fmt: Format, baseline: Baseline, tests: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The entries of `baseline/fp32.<format>` and `baseline/int8.<format>`."""
    int8 = _file(baseline.int8, fmt, baseline.scheme.name, baseline.int8_drop, tests.get(f"baseline/int8.{fmt}"))
    return {
        f"baseline/fp32.{fmt}": _file(
            baseline.fp32, fmt, "fp32", baseline.fp32_drop, tests.get(f"baseline/fp32.{fmt}")
        ),
        f"baseline/int8.{fmt}": {**int8, "quantizer": baseline.quantizer, "scheme_chosen_by": baseline.chosen_by},
    }


def _file(path: Path, fmt: Format, scheme: str, drop: Drop | None, test: float | None) -> dict[str, Any]:
    """A file's facts. `metric` is the untouched test's score where there is one, else the guard's."""
    guarded = None if drop is None else drop.emitted
    return {
        "metric": guarded if test is None else test,
        "scored_on": "test" if test is not None else ("guard" if drop is not None else None),
        "format": fmt,
        "scheme": scheme,
        "size_bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "guard": None if drop is None else drop_record(drop),
        "test": test,
    }


def drop_record(drop: Drop) -> dict[str, Any]:
    """A drop with the figures behind it, in the metric's unit."""
    return {**asdict(drop), "drop": drop.value}
