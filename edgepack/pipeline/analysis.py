"""What the data say of a model's layers: their spectra, the moments behind these, and what each layer matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack.model.layer import Layer, View
from edgepack.model.types import Array, Spectrum
from edgepack.pipeline.activations import Covariances, Subject
from edgepack.pipeline.decompositions import decompose
from edgepack.pipeline.gradients import Sensitivity, by_noise, make_sensitivity
from edgepack.workspace import Workspace


@dataclass(frozen=True)
class Analysis:
    """A model as the data show it.

    Attributes:
        subject: the model and the data.
        method: the factorizer of the spectra.
        spectra: of the layers' views, by name.
        unseen: views whose input the data never reached.
        covariances: of the layers' inputs.
        gradients: G by layer name, where the method factors by it.
        sensitivity: what the layers' outputs matter.
        qmax: largest weight code of per-channel int8 in ONNX.
        key: digest of the model, the data, and how the spectra came about.
    """

    subject: Subject
    method: str
    spectra: Mapping[str, Spectrum]
    unseen: tuple[str, ...]
    covariances: Covariances
    gradients: Mapping[str, Array] | None
    sensitivity: Sensitivity
    qmax: int
    key: str

    @property
    def layers(self) -> Sequence[Layer]:
        """Of the model."""
        return self.subject.opened.layers

    @property
    def views(self) -> tuple[View, ...]:
        """The matrices of the layers."""
        return self.subject.views


@dataclass(frozen=True)
class Question:
    """How layers are to be looked at.

    Attributes:
        method: the factorizer.
        metric: of the validation set: what the answers are compared by.
        qmax: largest weight code of per-channel int8 in ONNX.
        most: by view name, the largest rank that will be asked for.
        key: digest of all of it, and of the model and the data.
    """

    method: str
    metric: str
    qmax: int
    most: Mapping[str, int]
    key: str


def analyze(
    subject: Subject, source: Subject, gradients: Mapping[str, Array] | None, question: Question, workspace: Workspace
) -> Analysis:
    """Decomposes every layer, and finds what each matters. What the user should hear of it is among the warnings.

    Args:
        source: the model as torch can run it, where it can.
        gradients: of `weighed`.

    Raises:
        DataError: a value in the model is not finite.
        DeviceError: the workers failed.
    """
    found, unseen = decompose(subject, question.method, workspace, gradients=gradients, most=question.most)
    spectra = {view.name: spectrum for view, spectrum in zip(subject.views, found, strict=True)}
    sensitivity = make_sensitivity(source, spectra, question.metric, question.key, workspace, moments=gradients)
    if not sensitivity.known:
        sensitivity = by_noise(subject, spectra, question.key, workspace) or sensitivity
    return Analysis(
        subject,
        question.method,
        spectra,
        unseen,
        Covariances(subject, workspace),
        gradients,
        sensitivity,
        question.qmax,
        question.key,
    )
