"""Emits a plan and measures what its file loses and how large it is; a plan is never probed twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgepack import workspace
from edgepack.backends.backend import Writer
from edgepack.backends.schemes import FP32
from edgepack.metrics import Drop
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.ladder import LayerPlans, Step
from edgepack.pipeline.options import BuildOptions
from edgepack.plan.file_scheme import base_scheme, exceptions
from edgepack.workspace import Keyed


@dataclass(frozen=True)
class Probe:
    """A plan that was emitted.

    Attributes:
        scheme: of the file.
        latency_s: predicted, of the linear layers.
        size_bytes: of the emitted file.
    """

    fmt: Format
    scheme: FileScheme
    layers: LayerPlans
    drop: Drop
    loss: float
    latency_s: float
    size_bytes: int


def beside_code(options: BuildOptions, files: Writer) -> Scheme:
    """The scheme of a file whose layers are all in code, by which other weights go: int8 unless fp32 was asked for."""
    return FP32[files.fmt] if options.precision == "fp32" else files.probe_scheme.layers


def probe_scheme(files: Writer, layers: LayerPlans, in_code: Scheme) -> FileScheme:
    """The scheme that a plan is probed in: weights beside linear layers in int8, decoded at load, where there are any.

    Tables in 4 bits, where they are possible, are tried with the file that is written.

    Args:
        in_code: of `beside_code`.
    """
    schemes = files.rest(base_scheme(layers, in_code))
    return next((scheme for scheme in reversed(schemes) if scheme.others != scheme.layers), schemes[0])


def probe(evaluator: Evaluator, files: Writer, step: Step) -> Probe:
    """What the plan's file loses on the guard."""
    scheme = probe_scheme(files, step.layers, beside_code(evaluator.options, files))
    key = [evaluator.key, evaluator.analysis.largest, files.fmt, str(scheme), step.choices]
    task = Keyed(key, lambda: _Emission(evaluator, files, step.layers, scheme))
    drop, size_bytes = evaluator.workspace.cached(PROBE, task)
    return Probe(files.fmt, scheme, step.layers, drop, step.loss, step.latency_s, size_bytes)


@dataclass(frozen=True)
class _Emission:
    """A plan to be emitted in a scheme."""

    evaluator: Evaluator
    files: Writer
    layers: LayerPlans
    scheme: FileScheme


def _probed(task: _Emission) -> tuple[Drop, int]:
    """The drop and the size of the file."""
    evaluator, files, layers, scheme = task.evaluator, task.files, task.layers, task.scheme
    out = evaluator.workspace.folder / f"probe.{files.fmt}"
    files.write(files.takes(evaluator.replacements.draft(layers, scheme)), scheme, out, exceptions(layers, scheme))
    drop, size = evaluator.prover.drop_of(out, files.fmt), out.stat().st_size
    out.unlink()
    return drop, size


def _packed(probed: tuple[Drop, int]) -> dict[str, Any]:
    return {"drop": asdict(probed[0]), "size_bytes": probed[1]}


def _unpacked(record: Mapping[str, Any]) -> tuple[Drop, int]:
    return Drop(**record["drop"]), record["size_bytes"]


PROBE = workspace.Step("probes", 5, _probed, workspace.record_store(_packed, _unpacked), tools=workspace.TOOLS)
