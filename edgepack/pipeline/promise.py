"""The promise: a pack is never larger, nor measurably slower, than the dense int8 build."""

from __future__ import annotations

from edgepack.backends.backend import Writer
from edgepack.backends.schemes import FP32
from edgepack.errors import ModelError
from edgepack.model.kinds import kind_of
from edgepack.model.layer import Layer
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import DENSE
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.baselines import Baseline
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.memory import peak_ram_bytes
from edgepack.pipeline.options import BuildOptions
from edgepack.plan import cost
from edgepack.plan.candidates import break_even_rank
from edgepack.types import LayerPlan


def is_automatic(options: BuildOptions) -> bool:
    """Whether edgepack chooses. What was asked for by the user stands as it is."""
    return options.rank == "auto" and options.precision in ("auto", "int8") and not options.pick


def keep_promise(evaluator: Evaluator, files: Writer, attempt: Attempt, baseline: Baseline) -> Attempt:
    """The attempt, or the dense int8 baseline in its place where the attempt is larger, loses too much, or is measured
    slower here."""
    if not is_automatic(evaluator.options) or not baseline.is_rival or not _fits(evaluator, baseline, attempt.fmt):
        return attempt
    if not attempt.within(evaluator.options.drop_limit):
        return _dense(
            evaluator, files, baseline, f"the best plan drops {attempt.lost:.2f}, dense int8 meets the budget"
        )
    sizes = attempt.path.stat().st_size, baseline.int8.stat().st_size
    if sizes[0] > sizes[1]:
        return _dense(evaluator, files, baseline, f"the planned file has {sizes[0]} bytes, dense int8 {sizes[1]}")
    if evaluator.measures_here and evaluator.aim == "latency":
        turns = evaluator.turns_s({"pack": attempt.path, "dense int8": baseline.int8}, attempt.fmt)
        by = cost.slower_by(turns["pack"], turns["dense int8"])
        if by:
            return _dense(evaluator, files, baseline, f"the plan took {1 + by:.2f} times as long as dense int8 here")
    return attempt


def dense_instead(evaluator: Evaluator, files: Writer, baseline: Baseline, reason: str) -> Attempt:
    """The dense int8 file where no plan could be written and proved; the dense fp32 file where that one fails as well.

    Raises:
        ModelError: neither can be proved.
    """
    fp32 = FP32[files.fmt]
    failures = []
    for scheme, path in ((baseline.scheme, baseline.int8), (fp32, baseline.fp32)):
        layers = tuple(_dense_plan(layer, scheme, reason) for layer in evaluator.layers)
        attempt = evaluator.prover.measure(files, layers, {}, FileScheme.of(scheme), path)
        if attempt.sound and (attempt.within(evaluator.options.drop_limit) or scheme == fp32):
            return attempt
        failures.append(f"dense {scheme}: {attempt.failure or f'it drops {attempt.lost:.2f}'}")
    raise ModelError(f"no {files.fmt} file could be proved: {'; '.join(failures)}")


def _fits(evaluator: Evaluator, baseline: Baseline, fmt: Format) -> bool:
    """Whether the dense int8 file meets the user's own limits; whether it is fast enough is only known here."""
    options = evaluator.options
    if options.flash_bytes is not None and baseline.int8.stat().st_size > options.flash_bytes:
        return False
    if options.latency_s is not None and not evaluator.measures_here:
        return False
    if (
        options.latency_s is not None
        and evaluator.latencies({"model": baseline.int8}, fmt)["model"] > options.latency_s
    ):
        return False
    return options.ram_bytes is None or peak_ram_bytes(baseline.int8, fmt, evaluator.workspace) <= options.ram_bytes


def _dense(evaluator: Evaluator, files: Writer, baseline: Baseline, reason: str) -> Attempt:
    """The baseline's own file as the pack's model, proved like any other."""
    layers = tuple(_dense_plan(layer, baseline.scheme, reason) for layer in evaluator.layers)
    return evaluator.prover.measure(files, layers, {}, FileScheme.of(baseline.scheme), baseline.int8)


def _dense_plan(layer: Layer, scheme: Scheme, reason: str) -> LayerPlan:
    ops = kind_of(layer).ops(layer, DENSE, 1)
    break_even = break_even_rank(layer.out_features, layer.in_features)
    return LayerPlan(layer.name, ops, DENSE, ops, break_even, 0.0, reason, scheme=scheme)
