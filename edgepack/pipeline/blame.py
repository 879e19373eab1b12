"""When no plan meets the budget: which layers are to blame, measured one at a time."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.backends.onnx.schemes import CONSTEXPR, FP32, SCHEMES
from edgepack.errors import BudgetError
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.plan.file_scheme import file_label
from edgepack.types import LayerPlan

MOST_LAYERS = 16
"""Layers that are measured, largest loss of energy first, then most weights."""
NAMED = 3


def unmet_budget(evaluator: Evaluator, onnx: OnnxFiles, attempts: Mapping[Format, Attempt]) -> BudgetError | None:
    """The error for a build that found nothing within the budget, None if it did."""
    limit = evaluator.options.drop_limit
    worst = max(attempts.values(), key=lambda attempt: attempt.lost)
    if limit is None or worst.within(limit):
        return None
    costs = _costs(evaluator, onnx, worst)
    names = ", ".join(f"{_what(plan)} (alone it drops {drop:.2f})" for plan, drop in costs[:NAMED])
    metric = worst.drop.metric if worst.drop else "the metric"
    scheme = file_label(worst.layers, worst.scheme)
    return BudgetError(
        f"no plan keeps the drop within {limit:g}: the best {worst.fmt} file ({scheme}) drops {worst.lost:.2f}"
        f" in {metric}; most to blame: {names}",
        hint="the best attempt is written; allow more with --max-drop, a higher --rank, or --precision fp32",
    )


def _costs(evaluator: Evaluator, onnx: OnnxFiles, attempt: Attempt) -> list[tuple[LayerPlan, float]]:
    """Drop of the dense fp32 model with only one layer changed, largest first."""
    plans = sorted(attempt.layers, key=lambda p: (-_loss(p), -p.dense_parameters))[:MOST_LAYERS]
    factors = evaluator.replacements.factors(attempt.layers, attempt.scheme)
    path = evaluator.workspace.folder / "blame.onnx"
    costs = []
    for index, plan in enumerate(plans):
        evaluator.workspace.progress("find the layers to blame", index, len(plans))
        own = {plan.layer: factors[plan.layer]} if plan.layer in factors else {}
        onnx.write(own, FileScheme.of(FP32), path, {plan.layer: _onnx_scheme(plan.scheme_in(attempt.scheme))})
        costs.append((plan, evaluator.prover.drop_of(path, "onnx").value))
    return sorted(costs, key=lambda cost: -cost[1])


def _loss(plan: LayerPlan) -> float:
    return plan.lost_energy_share if plan.predicted is None else plan.predicted.loss


def _onnx_scheme(scheme: Scheme) -> Scheme:
    """A scheme of the same arithmetic in ONNX, where single layers are measured."""
    if scheme.backend == "onnx":
        return scheme
    if scheme.is_constexpr:
        return CONSTEXPR
    alike = [one for one in SCHEMES if one.bits == scheme.bits and one.is_static == scheme.is_static]
    return alike[0]


def _what(plan: LayerPlan) -> str:
    if plan.alternative is not None:
        return f"{plan.layer} by {plan.alternative.method} at {plan.alternative.share:.3g} of its bytes"
    rank = "dense" if plan.rank is None else f"at rank {plan.rank}"
    return f"{plan.layer} {rank} in {plan.scheme}"
