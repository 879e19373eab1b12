"""The dense baselines: fp32, and int8 by the format's own quantizer in the form that is fastest on the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import ModelError
from edgepack.metrics import Drop
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.pricing import Prices
from edgepack.pipeline.task import Task
from edgepack.plan import cost


@dataclass(frozen=True)
class Baseline:
    """The dense model in one format.

    Attributes:
        chosen_by: what the form of the int8 file was chosen by.
        limit: drop that the build allows, None for any.
    """

    fp32: Path
    int8: Path
    form: str
    quantizer: str
    chosen_by: str
    fp32_drop: Drop | None
    int8_drop: Drop | None
    limit: float | None

    @property
    def is_rival(self) -> bool:
        """Whether the int8 file meets the budget: one that does not is no rival, however fast."""
        return _within(self.int8_drop, self.limit)


def make_baseline(task: Task, files: ModelFiles, prices: Prices) -> Baseline:
    """Dense fp32 and dense int8 files of one format.

    Raises:
        ModelError: no int8 baseline runs.
    """
    fmt, work, prover, limit = files.fmt, task.work, task.prover, task.options.drop_limit
    task.progress(f"baseline {fmt}")
    fp32 = work / f"baseline.fp32.{fmt}"
    files.write_dense(fp32)
    forms, chosen_by = _order(task, files, prices)
    paths = {form: work / f"baseline.{form}.{fmt}" for form in forms}
    quantizers: dict[str, str] = {}
    drops: dict[str, Drop | None] = {}
    for form in forms:
        quantizer = files.write_baseline(form, paths[form])
        try:
            drops[form] = prover.drop(prover.guard.answers(paths[form], fmt))
        except ModelError as err:
            task.warn(f"the dense {form} baseline does not run: {err.message}")
            continue
        quantizers[form] = quantizer
        if not task.measures_here and _within(drops[form], limit):
            break
    if not quantizers:
        raise ModelError(f"no dense int8 {fmt} baseline runs", hint="leave this format out with --formats")
    good = [form for form in quantizers if _within(drops[form], limit)]
    if not good:  # none is a rival: the one that loses least is shown
        good = [min(quantizers, key=lambda form: _lost(drops[form]))]
    measures = task.measures_here and len(good) > 1
    measured = task.latencies({form: paths[form] for form in good}, fmt) if measures else {}
    form = cost.fastest(good, measured)
    fp32_drop = prover.drop(prover.guard.answers(fp32, fmt))
    chosen_by = cost.MEASURED if measured else chosen_by
    return Baseline(fp32, paths[form], form, quantizers[form], chosen_by, fp32_drop, drops[form], limit)


def _order(task: Task, files: ModelFiles, prices: Prices) -> tuple[tuple[str, ...], str]:
    """Int8 forms of the dense model, fastest first by the best source before a file is measured, and its name."""
    stated = cost.preferred(files.fmt, calibrated=files.calibrated)
    costs = {form: prices.dense_latency_s(files.fmt, form) for form in stated}
    known = {form: latency for form, latency in costs.items() if latency is not None}
    if len(known) < len(stated):
        return stated, cost.STATED
    return cost.ordered(known), prices.source_name(files.fmt)


def _lost(drop: Drop | None) -> float:
    return 0.0 if drop is None else drop.value


def _within(drop: Drop | None, limit: float | None) -> bool:
    return limit is None or drop is None or drop.value <= limit
