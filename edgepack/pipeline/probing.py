"""Emits a plan and measures what its file loses and how large it is; a plan is never probed twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgepack.cache import digest
from edgepack.formats import Format, plain_form
from edgepack.metrics import Drop
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.ladder import LayerPlans, Step
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.task import Task
from edgepack.plan.forms import base_form, exceptions
from edgepack.versions import tool_versions


@dataclass(frozen=True)
class Probe:
    """A plan that was emitted.

    Attributes:
        form: of the file.
        latency_s: predicted, of the linear layers.
        size_bytes: of the emitted file.
    """

    fmt: Format
    form: str
    layers: LayerPlans
    drop: Drop
    loss: float
    latency_s: float
    size_bytes: int


def beside_code(options: BuildOptions, files: ModelFiles) -> str:
    """The form of a file whose layers are all in code, by which other weights go: int8 unless fp32 was asked for."""
    return "fp32" if options.precision == "fp32" else plain_form(files.probe_form)


def probe_form(files: ModelFiles, layers: LayerPlans, in_code: str = "fp32") -> str:
    """The form that a plan is probed in: weights beside linear layers in int8, decoded at load, where there are any.

    Tables in 4 bits, where they are possible, are tried with the file that is written.

    Args:
        in_code: of `beside_code`.
    """
    forms = files.rest(base_form(layers, in_code))
    return next((form for form in reversed(forms) if "+" in form), forms[0])


def probe(task: Task, files: ModelFiles, step: Step) -> Probe:
    """What the plan's file loses on the guard."""
    form = probe_form(files, step.layers, beside_code(task.options, files))

    def measure() -> dict[str, object]:
        out = task.work / f"probe.{files.fmt}"
        files.write(files.takes(task.draft(step.layers, form)), form, out, exceptions(step.layers, form))
        drop, size = task.prover.drop_of(out, files.fmt), out.stat().st_size
        out.unlink()
        return {"drop": asdict(drop), "size_bytes": size}

    key = digest("probe", 4, task.key, task.rounder.largest, files.fmt, form, step.choices, tool_versions())
    found = task.cache.record("probes", key, measure)
    drop = Drop(**found["drop"])
    return Probe(files.fmt, form, step.layers, drop, step.loss, step.latency_s, found["size_bytes"])
