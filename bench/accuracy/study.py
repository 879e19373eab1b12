"""A model opened, its layers observed and decomposed, its files written and scored."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accuracy.subjects import Subject
from edgepack.backends.backend import THREADS
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import load, predict
from edgepack.data import Samples
from edgepack.factorize import svd, whitened
from edgepack.model.kinds import views_of
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array, InputSpread, Moments, Spectrum
from edgepack.pipeline.activations import observe
from edgepack.pipeline.datasets import load_data
from edgepack.plan.candidates import asked_rank
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace

Row = dict[str, Any]
"""A file: how it was made, and lists with an entry per seed of what was found."""

SEED = 0
LARGEST = 127
"""Of int8 codes. Files are scored in exact integer arithmetic, as on the targets."""


@dataclass(frozen=True)
class Study:
    """A model at work.

    Attributes:
        layers: by name, with the moments of their inputs on the calibration samples.
        plain, seen: spectra of plain SVD and of centred whitening, by layer name.
        calibration: samples for all that is fitted: moments, GPTQ, distillation.
        validation: samples of the same data that nothing is fitted to: what is chosen is chosen by them.
        held_out: covariances of the layers' inputs on the validation samples, by layer name.
        references: answers of the dense fp32 file on validation and test.
    """

    subject: Subject
    opened: Model
    layers: Mapping[str, View]
    plain: Mapping[str, Spectrum]
    seen: Mapping[str, Spectrum]
    files: OnnxWriter
    calibration: Samples
    validation: Samples
    held_out: Mapping[str, Array]
    references: tuple[Array, Array]
    work: Path

    def ranks(self, level: int | float) -> dict[str, int]:
        """By layer name, for the layers in which a pair saves weights at that rank, or share of weights."""
        asked = {name: asked_rank(layer.out_features, layer.in_features, level) for name, layer in self.layers.items()}
        return {name: rank for name, rank in asked.items() if isinstance(rank, int)}

    def write(
        self, parts: Mapping[str, Replacement], scheme: Scheme, schemes: Mapping[str, Scheme] | None = None
    ) -> Path:
        """A file with these parts in place; other weights are int8 as well wherever linear layers are no fp32."""
        path = self.work / "candidate.onnx"
        self.files.write(parts, self.files.rest(scheme)[0], path, schemes)
        return path

    def row(self, path: Path, way: str, bits: int, level: int | float | None = None) -> Row:
        """A file's bytes, its scores on the test samples, and how far its answers on the validation samples are off."""
        validation, test = self.answers(path)
        labels = self.subject.test.labels
        return {
            "way": way,
            "bits": bits,
            "level": level,
            "size_bytes": [path.stat().st_size],
            "scores": {
                name: [round(score(test, self.references[1], labels), 5)] for name, score in self.subject.scores.items()
            },
            "validation_off": [float(f"{off(validation, self.references[0], classes=self.subject.classes):.3g}")],
        }

    def answers(self, path: Path) -> tuple[Array, Array]:
        """On validation and test."""
        running = load(path, "onnx", threads=THREADS)
        return predict(running, self.validation), predict(running, self.subject.test)


def off(outputs: Array, reference: Array, *, classes: bool) -> float:
    """Mean KL divergence of class scores from the reference's in nats, or mean of 1 − cosine of features."""
    from measure_loss_order import cosine_distance, kl_divergence

    if not classes:
        return cosine_distance(reference, outputs)
    return kl_divergence(*(_logits(scores) for scores in (reference, outputs)))


def _logits(scores: Array) -> Array:
    """Class scores as they are, class shares as their logarithms."""
    shares = bool((scores >= 0).all()) and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-2)
    return np.log(np.maximum(scores, 1e-12)) if shares else scores


@contextmanager
def opened_study(subject: Subject, model: str) -> Iterator[Study]:
    """One of the subject's models; its files end with the block."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        yield _study(subject, model, Path(folder))


def _study(subject: Subject, model: str, work: Path) -> Study:
    opened = open_model(model, work)
    data = load_data(subject.data, opened, model, SEED)
    if data.calibration is None:
        raise ValueError(f"{model}: no samples to calibrate on")
    files = OnnxWriter(opened.content, data.calibration, qmax=LARGEST)
    files.write_dense(work / "dense.fp32.onnx")
    running = load(work / "dense.fp32.onnx", "onnx", threads=THREADS)
    workspace = Workspace(Cache(work / "cache"), work, SEED)
    layers = _observed(opened, data.calibration, workspace)
    held_out = _observed(opened, data.validation, workspace)
    return Study(
        subject=subject,
        opened=opened,
        layers=layers,
        plain={name: svd.spectrum(layer) for name, layer in layers.items()},
        seen={name: seen_spectrum(layer) for name, layer in layers.items()},
        files=files,
        calibration=data.calibration,
        validation=data.validation,
        held_out={name: moments_of(layer).covariance for name, layer in held_out.items()},
        references=(predict(running, data.validation), predict(running, subject.test)),
        work=work,
    )


def seen_spectrum(layer: View) -> Spectrum:
    """Of centred whitening, with what the latent rotation needs to know of the layer's input.

    Raises:
        ValueError: the layer carries no moments.
    """
    moments = moments_of(layer)
    inputs = InputSpread(moments.variance, moments.low, moments.high, moments.row_range)
    return replace(whitened.spectrum(layer), inputs=inputs)


def _observed(opened: Model, samples: Samples, workspace: Workspace) -> dict[str, View]:
    seen = observe(opened, [layer.name for layer in opened.layers], samples, workspace)
    return {view.name: replace(view, moments=seen.get(view.name)) for view in views_of(opened.layers)}


def moments_of(layer: View) -> Moments:
    """Of the layer's input.

    Raises:
        ValueError: it was never seen.
    """
    if layer.moments is None:
        raise ValueError(f"{layer.name}: its input was never seen")
    return layer.moments
