"""How much each layer matters where torch cannot run the model: noise is put into its weights, and the answers are held
against those without.

What comes of it has the form of output gradients, alike in all directions: G = c I, where c turns the energy of an
error at the layer's output into a share of the variance of the model's outputs. It takes one session of the model's own
runtime for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.metrics.values import r2
from edgepack.model.kinds import conv, linear
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import dense
from edgepack.model.types import Array, Spectrum
from edgepack.natives import native
from edgepack.pipeline.activations import Subject, first_feeds
from edgepack.workspace import Keyed, Step, Workspace

SAMPLES = 4
"""Of calibration; fewer where that keeps it within `MOST_MACS`."""
MOST_MACS = 300e9
"""For all layers, a minute or so; beyond it they stay unweighed. By the clock a busy machine would give other plans."""
STEPS = 63
"""Of a weight's largest value: noise as of a grid of 7 bits, so that it stands out from that of float32."""
KINDS = (linear.NAME, conv.NAME)


@dataclass(frozen=True)
class _Probe:
    opened: Model
    calibration: Samples
    spectra: Mapping[str, Spectrum]
    seed: int


def measured_weights(
    subject: Subject, spectra: Mapping[str, Spectrum], key: str, workspace: Workspace
) -> Mapping[str, float]:
    """c by layer name; empty where a layer is of another kind than `KINDS` or changes nothing, there are no data, or it
    takes too many multiplications.

    Args:
        subject: the model and the data.
        spectra: of its layers, by name, with what is known of their inputs.
        key: digest of the model, the data, and how the spectra came about.
    """
    opened, calibration = subject.opened, subject.calibration
    known = all(name in spectra and spectra[name].inputs is not None for name in (one.name for one in opened.layers))
    if calibration is None or not known or not all(layer.kind in KINDS for layer in opened.layers):
        return {}
    workspace.progress("weigh layers")
    task = _Probe(opened, calibration, spectra, workspace.seed)
    return workspace.cached(PERTURBATION, Keyed([key, workspace.seed, SAMPLES, STEPS], lambda: task))


def _weights(task: _Probe) -> dict[str, float]:
    """See `measured_weights`."""
    opened, given = task.opened, list(first_feeds(task.opened, task.calibration, SAMPLES))
    macs = native(opened.native).macs(opened.content, given[0])
    affordable = 0 if macs is None else int(MOST_MACS / max(macs * len(opened.layers), 1))
    if not affordable:
        return {}
    given = given[:affordable]
    plain = _answers(opened, {}, given)
    found: dict[str, float] = {}
    for number, layer in enumerate(opened.layers):
        weight, energy = _noisy(layer, task.spectra[layer.name], np.random.default_rng([task.seed, number]))
        try:
            answers = _answers(opened, {layer.name: weight}, given)
        except ModelError:  # its runtime takes no other weight there
            return {}
        found[layer.name] = _error(answers, plain) / energy if energy > 0 else 0.0
    return found if all(found.values()) else {}


def _noisy(layer: Layer, spectrum: Spectrum, rng: np.random.Generator) -> tuple[Array, float]:
    """The weight with noise of a grid for each output, and the energy that it is expected to have at the output."""
    assert spectrum.inputs is not None
    variance = np.square(np.abs(layer.weight).max(axis=1, keepdims=True) / STEPS) / 12
    noise = rng.standard_normal(layer.weight.shape) * np.sqrt(variance)
    power = spectrum.inputs.variance + (0.0 if spectrum.mean is None else np.square(spectrum.mean))
    return (layer.weight + noise).astype(np.float32), float((np.square(noise) @ power).sum())


def _answers(opened: Model, weights: Mapping[str, Array], given: Sequence[Mapping[str, Array]]) -> list[Array]:
    """All samples' answers, by output: (samples, …)."""
    biases = {layer.name: layer.bias for layer in opened.layers}
    parts = {name: dense(weight, biases[name]) for name, weight in weights.items()}
    session = native(opened.native).session(opened.content, parts, threads=1)
    return [np.stack(output) for output in zip(*map(session.run, given), strict=True)]


def _error(answers: Sequence[Array], plain: Sequence[Array]) -> float:
    """Sum over the outputs of the share of its variance that an error has, channel by channel."""
    pairs = [pair for pair in zip(answers, plain, strict=True) if pair[1].dtype.kind == "f" and pair[1].size]
    return sum(1.0 - float(r2(answer, expected, None).mean()) / 100 for answer, expected in pairs)


PERTURBATION: Step[_Probe, dict[str, float]] = Step("perturbation", 2, _weights)
