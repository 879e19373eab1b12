"""One module per kind of layer: how it is found in an ONNX graph, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from edgepack.backends.onnx.kinds.conv import OnnxConv
from edgepack.backends.onnx.kinds.embedding import OnnxEmbedding
from edgepack.backends.onnx.kinds.kind import LookupKind, OnnxKind
from edgepack.backends.onnx.kinds.linear import OnnxLinear
from edgepack.backends.onnx.kinds.recurrent import OnnxRecurrent
from edgepack.model.kinds import conv, embedding, linear, recurrent
from edgepack.model.layer import Layer
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

KINDS: Mapping[str, OnnxKind] = {
    linear.NAME: OnnxLinear(),
    conv.NAME: OnnxConv(),
    recurrent.NAME: OnnxRecurrent(),
}
"""Of layers that multiply vectors, by the name that a `Layer` carries."""

LOOKUPS: Mapping[str, LookupKind] = {embedding.NAME: OnnxEmbedding()}
"""Of all others."""


def _joined(tables: Iterable[Mapping[str, tuple[int, ...]]]) -> Mapping[str, tuple[int, ...]]:
    found: dict[str, set[int]] = {}
    for table in tables:
        for operator, inputs in table.items():
            found.setdefault(operator, set()).update(inputs)
    return {operator: tuple(sorted(inputs)) for operator, inputs in found.items()}


OPERATORS = _joined(kind.operators for kind in KINDS.values())
"""Operator → inputs that may hold the weight of a layer of any kind."""

FACTORS = _joined(kind.factors for kind in KINDS.values())
"""Likewise, of the operators of emitted files and of what a runtime makes of them."""


def refuses(layer: Layer, scheme: Scheme) -> str | None:
    """Why a layer cannot be stored in a scheme; None if it can."""
    every: Mapping[str, OnnxKind | LookupKind] = {**KINDS, **LOOKUPS}
    takers = [name for name, kind in every.items() if scheme in kind.schemes]
    if layer.kind not in takers:
        return f"{scheme} is for {' and '.join(takers)} layers, this one is {layer.kind}"
    return every[layer.kind].refuses(layer, scheme)


def sides(node: ir.Node, shape: tuple[int, ...] = ()) -> tuple[int, int] | None:
    """Both sides of the matrix that a node multiplies by, of a constant of this shape.

    None for what is no matrix of any kind, and without a shape where the node does not say it by itself.
    """
    found = (kind.sides(node, shape) for kind in KINDS.values() if node.op_type in kind.factors)
    return next((one for one in found if one is not None), None)


def bias(node: ir.Node, index: int, constant: Array) -> Array | None:
    """What a constant of a product adds to it, where it has a bias within something larger: (out,)."""
    found = (kind.bias(node, index, constant) for kind in KINDS.values() if node.op_type in kind.factors)
    return next((one for one in found if one is not None), None)
