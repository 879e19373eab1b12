"""Gradients of the model's first output at its layers' outputs, where torch can run it: how much each layer matters.

Their second moments G are what some methods factor by, so they are had before the spectra. With the spectra they weigh
what layers are predicted to lose.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from edgepack.data import Samples, example
from edgepack.errors import ModelError, UsageError, install_hint
from edgepack.methods.registry import needs_gradients
from edgepack.model.kinds import recurrent
from edgepack.model.model import Model
from edgepack.model.types import Array, Curvature, Spectrum, WeightedBy
from edgepack.natives import native
from edgepack.pipeline.activations import Subject, first_feeds
from edgepack.pipeline.perturbation import measured_weights
from edgepack.pipeline.programs import with_program
from edgepack.torchgraph.draws import Kind
from edgepack.workspace import ARRAYS, Keyed, Step, Workspace

MOMENT_SAMPLES = 256
"""Of calibration, for G that layers are factored by: factors follow its small directions too."""

CURVE_SAMPLES = 64
"""Of calibration, for weighing losses. Half as many order plans as well."""

MOST_BYTES = 1 << 30
"""The second moments of all layers' gradients are held at once; for models of which they take more there are none."""

MOST_MACS = 200_000_000
"""Of one inference of a model that is converted for its gradients alone: those of a larger one take half a minute and
gigabytes."""

CLASSES = ("accuracy", "top5", "agreement")
"""Metrics of outputs that are scores of classes, one of which counts."""

_HINT = "use --method whitened"


def moments_bytes(opened: Model) -> int:
    """What G of all layers takes in memory."""
    return sum(8 * layer.out_features**2 for layer in opened.layers)


def gradient_kind(metric: str) -> Kind:
    """What the model's first output is to the metric."""
    return "classes" if metric in CLASSES else "vector"


def weighed(
    subject: Subject, method: str, metric: str, workspace: Workspace
) -> tuple[Subject, Mapping[str, Array] | None]:
    """The model as torch can run it, and G of its layers, None where the method does not ask for it.

    G is (out, out) float64, by layer name; layers that no gradient reaches are absent. Where the method does not ask
    for G the model may stay one that torch cannot run: its layers are weighed by their output energy then.

    Raises:
        UsageError: the method asks for G, and there are no gradients.
    """
    if subject.calibration is None:
        return subject, None
    if not needs_gradients(method):
        return replace(subject, opened=_with_program_if_any(subject.opened, subject.calibration, workspace)), None
    workspace.progress("output gradients")
    source = replace(subject, opened=differentiable(subject.opened, method, subject.calibration, workspace))
    kind, seed = gradient_kind(metric), workspace.seed
    task = _Gradients(source.opened, method, subject.calibration, kind, seed)
    return source, workspace.cached(GRADIENTS, Keyed([subject.key, kind, seed, MOMENT_SAMPLES], lambda: task))


def _with_program_if_any(opened: Model, samples: Samples, workspace: Workspace) -> Model:
    """The model with a torch program where it has one or its graph can soon be converted here, else as it is.

    Models with recurrent layers stay as they are: torch ends the process in the gradient of an LSTM that was converted.
    """
    if opened.program is not None or importlib.util.find_spec("torch") is None or moments_bytes(opened) > MOST_BYTES:
        return opened
    if any(layer.kind == recurrent.NAME for layer in opened.layers):
        return opened
    feed = example(samples, opened.inputs, workspace.seed)
    macs = native(opened.native).macs(opened.content, feed)
    if macs is None or macs > MOST_MACS:
        return opened
    try:
        return with_program(opened, samples, workspace)
    except ModelError:
        return opened


def differentiable(opened: Model, method: str, samples: Samples, workspace: Workspace) -> Model:
    """The model with a torch program: its own, or, for an ONNX source, one that is proved to answer alike.

    Raises:
        UsageError: torch cannot run the model, so that the method cannot be used.
    """
    if opened.program is not None:
        return opened
    _require_torch(method)
    try:
        return with_program(opened, samples, workspace)
    except ModelError as err:
        raise UsageError(
            f"--method {method} needs output gradients, for which torch has to run the model: {err.message}",
            hint=f"{_HINT}, or give the torch model",
        ) from err


def _require_torch(method: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            f"--method {method} needs output gradients, and torch is not installed",
            hint=f"{install_hint('tflite')}, or {_HINT}",
        )


@dataclass(frozen=True)
class _Gradients:
    """What G is made from.

    Attributes:
        opened: with a torch program.
        method: the factorizer that asks for it, for messages.
    """

    opened: Model
    method: str
    calibration: Samples
    kind: Kind
    seed: int


def _moments(task: _Gradients) -> dict[str, Array]:
    from edgepack.torchgraph.gradients import Sampling, gradient_moments

    opened, method = task.opened, task.method
    if opened.program is None:
        raise ValueError("there is no torch program")
    needed = moments_bytes(opened)
    if needed > MOST_BYTES:
        raise UsageError(
            f"--method {method}: the output gradients of all layers would take {needed / 2**30:.1f} GiB, "
            f"at most {MOST_BYTES / 2**30:.0f} GiB are held",
            hint=_HINT,
        )
    feed = first_feeds(opened, task.calibration, MOMENT_SAMPLES)
    sampling = Sampling(task.kind, task.seed, samples=MOMENT_SAMPLES)
    try:
        found = gradient_moments(opened.program, opened.layers, feed, sampling)
    except ModelError as err:
        raise UsageError(f"--method {method}: {err.message}", hint=_HINT) from err
    if not found:
        raise UsageError(
            f"--method {method} needs output gradients, and none reaches a layer from the model's first output",
            hint=_HINT,
        )
    return found


GRADIENTS: Step[_Gradients, dict[str, Array]] = Step("gradients", 3, _moments, ARRAYS)


@dataclass(frozen=True)
class Sensitivity:
    """How much the model's answer depends on each layer's output.

    Attributes:
        known: whether there are gradients for every layer: losses with and without them do not compare. There are none
            without a torch program or data, where they would take too much memory, where an operator has no derivative,
            and where a layer has no part in the first output.
        problem: why the gradients could not be computed, None where they could or were not tried.
    """

    known: bool
    problem: str | None
    _read: Callable[[], Mapping[str, Curvature]]
    _forget: Callable[[], None] = lambda: None
    _by: WeightedBy = "output gradients"

    @property
    def by(self) -> WeightedBy:
        """What losses are weighed by."""
        return self._by if self.known else "output energy"

    @property
    def curvatures(self) -> Mapping[str, Curvature]:
        """By layer name; empty unless `known`. Computed when they are first asked for."""
        return self._read() if self.known else {}

    def forget(self) -> None:
        """Let the matrices go, which of wide layers are large. Whoever asks for them again waits for them again."""
        self._forget()


def make_sensitivity(
    subject: Subject,
    spectra: Mapping[str, Spectrum],
    metric: str,
    key: str,
    workspace: Workspace,
    *,
    moments: Mapping[str, Array] | None = None,
) -> Sensitivity:
    """Curvature at every layer, once somebody asks for it.

    Args:
        subject: the model as torch can run it, where it can.
        spectra: of its layers' views, by name.
        metric: that files are scored by.
        key: digest of the model, the data, and how the spectra came about.
        moments: G by layer name, where it is known.
    """
    opened, calibration = subject.opened, subject.calibration
    program = opened.program
    if program is None or calibration is None or moments_bytes(opened) > MOST_BYTES:
        return Sensitivity(False, None, dict)

    @cache
    def read() -> Mapping[str, Curvature]:
        from edgepack.torchgraph.gradients import Sampling, curvatures

        workspace.progress("output gradients")
        feed = first_feeds(opened, calibration, CURVE_SAMPLES)
        sampling = Sampling(gradient_kind(metric), workspace.seed, samples=CURVE_SAMPLES)
        return curvatures(program, opened.layers, spectra, feed, sampling, moments=moments)

    task = Keyed([key, metric, workspace.seed, CURVE_SAMPLES], lambda: _Reach(tuple(spectra), read))
    return Sensitivity(**workspace.cached(SENSITIVITY, task), _read=read, _forget=read.cache_clear)


def by_noise(subject: Subject, spectra: Mapping[str, Spectrum], key: str, workspace: Workspace) -> Sensitivity | None:
    """As of gradients that are alike in all directions, from what noise in each layer does to the answers; None where
    that is not known either. Arguments as of `make_sensitivity`."""
    layers = subject.opened.layers
    weights = measured_weights(subject, spectra, key, workspace) if moments_bytes(subject.opened) <= MOST_BYTES else {}
    if not weights:
        return None

    def read() -> Mapping[str, Curvature]:
        return {layer.name: Curvature(weights[layer.name] * np.eye(layer.out_features)) for layer in layers}

    return Sensitivity(True, None, read, _by="measured noise")


@dataclass(frozen=True)
class _Reach:
    views: tuple[str, ...]
    read: Callable[[], Mapping[str, Curvature]]


def _reach(task: _Reach) -> dict[str, Any]:
    """Whether gradients reach every layer, and a matrix at its output."""
    try:
        return {"known": set(task.read()) == set(task.views), "problem": None}
    except ModelError as err:
        return {"known": False, "problem": err.message}


SENSITIVITY: Step[_Reach, dict[str, Any]] = Step("sensitivity", 2, _reach)
