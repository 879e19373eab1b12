"""The dense baselines: fp32, and int8 by the format's own quantizer in the scheme that is fastest on the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepack.backends.backend import Writer
from edgepack.errors import ModelError
from edgepack.metrics import Drop
from edgepack.model.scheme import Scheme
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.pricing import Prices
from edgepack.plan import cost


@dataclass(frozen=True)
class Baseline:
    """The dense model in one format.

    Attributes:
        chosen_by: what the scheme of the int8 file was chosen by.
        limit: drop that the build allows, None for any.
    """

    fp32: Path
    int8: Path
    scheme: Scheme
    quantizer: str
    chosen_by: str
    fp32_drop: Drop | None
    int8_drop: Drop | None
    limit: float | None

    @property
    def is_rival(self) -> bool:
        """Whether the int8 file meets the budget: one that does not is no rival, however fast."""
        return _within(self.int8_drop, self.limit)


def make_baseline(evaluator: Evaluator, files: Writer, prices: Prices) -> Baseline:
    """Dense fp32 and dense int8 files of one format.

    Raises:
        ModelError: no int8 baseline runs.
    """
    fmt, work, prover, limit = files.fmt, evaluator.workspace.folder, evaluator.prover, evaluator.options.drop_limit
    evaluator.workspace.progress(f"baseline {fmt}")
    fp32 = work / f"baseline.fp32.{fmt}"
    files.write_dense(fp32)
    schemes, chosen_by = _order(evaluator, files, prices)
    paths = {scheme: work / f"baseline.{scheme}.{fmt}" for scheme in schemes}
    quantizers: dict[Scheme, str] = {}
    drops: dict[Scheme, Drop | None] = {}
    for scheme in schemes:
        quantizer = files.write_baseline(scheme, paths[scheme])
        try:
            drops[scheme] = prover.drop(prover.guard.answers(paths[scheme], fmt))
        except ModelError as err:
            evaluator.workspace.warn(f"the dense {scheme} baseline does not run: {err.message}")
            continue
        quantizers[scheme] = quantizer
        if not evaluator.measures_here and _within(drops[scheme], limit):
            break
    if not quantizers:
        raise ModelError(f"no dense int8 {fmt} baseline runs", hint="leave this format out with --formats")
    good = [scheme for scheme in quantizers if _within(drops[scheme], limit)]
    if not good:  # none is a rival: the one that loses least is shown
        good = [min(quantizers, key=lambda scheme: _lost(drops[scheme]))]
    measures = evaluator.measures_here and len(good) > 1
    measured = evaluator.latencies({scheme.name: paths[scheme] for scheme in good}, fmt) if measures else {}
    scheme = cost.fastest(good, {scheme: measured[scheme.name] for scheme in good} if measured else {})
    fp32_drop = prover.drop(prover.guard.answers(fp32, fmt))
    chosen_by = cost.MEASURED if measured else chosen_by
    return Baseline(fp32, paths[scheme], scheme, quantizers[scheme], chosen_by, fp32_drop, drops[scheme], limit)


def _order(evaluator: Evaluator, files: Writer, prices: Prices) -> tuple[tuple[Scheme, ...], str]:
    """Int8 schemes of the dense model, fastest first by the best source before a file is measured, and its name."""
    stated = cost.preferred(files.fmt, calibrated=files.calibrated)
    costs = {scheme: prices.dense_latency_s(scheme) for scheme in stated}
    known = {scheme: latency for scheme, latency in costs.items() if latency is not None}
    if len(known) < len(stated):
        return stated, cost.STATED
    return cost.ordered(known), prices.source_name(files.fmt)


def _lost(drop: Drop | None) -> float:
    return 0.0 if drop is None else drop.value


def _within(drop: Drop | None, limit: float | None) -> bool:
    return limit is None or drop is None or drop.value <= limit
