"""Emits a plan and measures what its file loses and how large it is; a plan is never probed twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgepack.backends.schemes import FP32
from edgepack.metrics import Drop
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.ladder import LayerPlans, Step
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.task import Task
from edgepack.plan.file_scheme import base_scheme, exceptions
from edgepack.workspace import digest, tool_versions


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


def beside_code(options: BuildOptions, files: ModelFiles) -> Scheme:
    """The scheme of a file whose layers are all in code: other weights in 8 bits as well, unless fp32 was asked for."""
    return FP32[files.fmt] if options.precision == "fp32" else files.probe_scheme.layers


def probe_scheme(files: ModelFiles, layers: LayerPlans, in_code: Scheme) -> FileScheme:
    """The scheme that a plan is probed in: weights beside linear layers in int8, decoded at load, where there are any.

    Tables in 4 bits, where they are possible, are tried with the file that is written.

    Args:
        in_code: of `beside_code`.
    """
    schemes = files.rest(base_scheme(layers, in_code))
    return next((scheme for scheme in reversed(schemes) if scheme.others != scheme.layers), schemes[0])


def probe(task: Task, files: ModelFiles, step: Step) -> Probe:
    """What the plan's file loses on the guard."""
    scheme = probe_scheme(files, step.layers, beside_code(task.options, files))

    def measure() -> dict[str, object]:
        out = task.work / f"probe.{files.fmt}"
        files.write(files.takes(task.draft(step.layers, scheme)), scheme, out, exceptions(step.layers, scheme))
        drop, size = task.prover.drop_of(out, files.fmt), out.stat().st_size
        out.unlink()
        return {"drop": asdict(drop), "size_bytes": size}

    key = digest("probe", 4, task.key, task.rounder.largest, files.fmt, str(scheme), step.choices, tool_versions())
    found = task.cache.record("probes", key, measure)
    drop = Drop(**found["drop"])
    return Probe(files.fmt, scheme, step.layers, drop, step.loss, step.latency_s, found["size_bytes"])
