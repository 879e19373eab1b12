"""One module per kind of layer: which operators of a TFLite file it is, and how it is replaced there."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.backends.tflite.kinds.conv import TfliteConvKind
from edgepack.backends.tflite.kinds.kind import Operands, TfliteKind
from edgepack.backends.tflite.kinds.linear import TfliteLinearKind
from edgepack.backends.tflite.kinds.recurrent import TfliteRecurrentKind
from edgepack.model.kinds import conv, linear, recurrent
from edgepack.model.layer import Layer
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array

KINDS: Mapping[str, TfliteKind] = {
    linear.NAME: TfliteLinearKind(),
    conv.NAME: TfliteConvKind(),
    recurrent.NAME: TfliteRecurrentKind(),
}
"""By the name that a `Layer` carries."""

OPERATORS: Mapping[str, Operands] = {
    operator: inputs for kind in KINDS.values() for operator, inputs in kind.operators.items()
}
"""Operator → which of its inputs are the activations, the weight and the bias."""


def matrix(operator: str, weight: Array) -> Array | None:
    """A constant that an operator multiplies by, as (out, in); None for what is no layer of any kind."""
    found = (kind.matrix(operator, weight) for kind in KINDS.values() if operator in kind.operators)
    return next((one for one in found if one is not None), None)


def refuses(layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
    """Why a layer cannot be written in a structure and a scheme; None if it can."""
    if layer.kind in KINDS:
        return KINDS[layer.kind].refuses(layer, structure, scheme)
    return None if structure.is_dense else f"{layer.kind} layers of a TFLite file stay as they are"
