"""`edgepack targets calibrate`: measures a device for one model, or for models yet unknown."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepack.cost.measure import QUICK, STANDARD, measure_points, points_for, standard_points
from edgepack.cost.measured import MeasuredTable, measured_path
from edgepack.cost.select import Shape
from edgepack.devices.device import Device
from edgepack.errors import ModelError, TargetsError
from edgepack.model.point import point_record
from edgepack.model.scheme import Format
from edgepack.pipeline.latency_estimates import layer_uses
from edgepack.sources import open_model
from edgepack.targets.target import Target
from edgepack.workspace import Progress, silent

SEED = 0
"""Of the inputs that show how many rows each layer multiplies."""


@dataclass(frozen=True)
class Calibrated:
    """What is known of a device.

    Attributes:
        table: everything that was ever measured on it at this number of threads.
        path: where the table is kept.
        points: how many the call asked for.
    """

    table: MeasuredTable
    path: Path
    points: int

    def record(self) -> dict[str, Any]:
        """All of it as plain data, for reports and machines."""
        table = self.table
        return {
            "target": table.target,
            "threads": table.threads,
            "path": str(self.path),
            "asked": self.points,
            "measured_at": table.measured_at,
            "fingerprint": {**asdict(table.fingerprint), "digest": table.fingerprint.digest},
            "calls": {fmt: asdict(call) for fmt, call in table.calls.items()},
            "layers": [{**point_record(point), **asdict(entry)} for point, entry in table.entries.items()],
            "refused": [{**point_record(point), "reason": why} for point, why in table.refused.items()],
        }


def calibrate_target(
    device: Device,
    target: Target,
    *,
    model: str | None = None,
    formats: Sequence[Format] | None = None,
    threads: int = 1,
    quick: bool = False,
    progress: Progress = silent,
) -> Calibrated:
    """Measures a device at the layers of a model, or at the standard grid; what is known already is not repeated.

    Args:
        device: where to measure; the caller closes it.
        target: what it is measured as.
        model: as for `edgepack build`; None for the standard grid.
        formats: to measure in; by default all that the target has a runtime for.
        threads: of the inference.
        quick: fewer and shorter turns; a later call without it measures these points again.
        progress: told of every group of layers.

    Raises:
        TargetsError: the target has no runtime for a format, or the device is not of its kind.
        ModelError: the model cannot be opened, or has no linear layer.
        DeviceError: the device failed; what was measured before is kept.
        OutputError: the cache folder cannot be written.
    """
    chosen = target.formats if formats is None else formats
    for fmt in chosen:
        target.require_format(fmt)
    if not chosen:
        raise TargetsError(f"target {target.name} has no runtime: {target.no_runtime_reason}", hint="choose another")
    points = standard_points(chosen) if model is None else points_for(_shapes(model, progress), chosen)
    table = measure_points(device, target, points, threads, progress=progress, turns=QUICK if quick else STANDARD)
    return Calibrated(table, measured_path(target.name, table.fingerprint, threads), len(points))


def _shapes(model: str, progress: Progress) -> list[Shape]:
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
        progress("open model")
        opened = open_model(model, Path(folder))
        uses = layer_uses(opened, None, SEED)
    if not opened.layers:
        raise ModelError(f"{model}: no linear layer found; there is nothing to measure")
    found = [(a.out_features, a.in_features, uses[a.name].rows) for a in opened.layers if a.name in uses]
    return list(dict.fromkeys(found))
