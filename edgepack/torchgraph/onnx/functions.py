"""Operators that ONNX defines by others: their bodies, from the definitions that the onnx package holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto
from torch import Tensor

from edgepack.torchgraph.onnx.types import element_of


@dataclass(frozen=True)
class Body:
    """What an operator is made of.

    Attributes:
        inputs, outputs: their names in it.
        nodes: in order, with the values of the operator's attributes.
        versions: of operator sets, by domain.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[NodeProto]
    versions: Mapping[str, int]


def body_of(proto: NodeProto, version: int, inputs: Sequence[Tensor | None]) -> Body | None:
    """The body of a node's operator, None where ONNX defines none.

    Args:
        proto: of ONNX' own domain.
        version: of the operator set.
        inputs: examples, for operators whose body depends on types and ranks.
    """
    if not onnx.defs.has(proto.op_type, version):
        return None
    schema: Any = onnx.defs.get_schema(proto.op_type, version)
    if schema.has_function:
        function = schema.function_body
    elif schema.has_context_dependent_function:
        types = [_type(tensor).SerializeToString() for tensor in inputs]
        function = FunctionProto()
        function.ParseFromString(schema.get_context_dependent_function(proto.SerializeToString(), types))
    else:
        return None
    given = {name: each.default_value for name, each in schema.attributes.items() if each.default_value.type}
    given |= {each.name: each for each in proto.attribute}
    nodes = [_with_values(node, given) for node in function.node]
    versions = {entry.domain: entry.version for entry in function.opset_import}
    return Body(list(function.input), list(function.output), nodes, {"": version, **versions})


def _type(tensor: Tensor | None) -> TypeProto:
    if tensor is None:
        return TypeProto()
    return onnx.helper.make_tensor_type_proto(element_of(tensor.dtype), list(tensor.shape))


def _with_values(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    """A copy of a body's node, in which attributes have the values that the operator's have; unset ones go."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.append(_inner(attribute, given))
        elif attribute.ref_attr_name in given:
            value = AttributeProto()
            value.CopyFrom(given[attribute.ref_attr_name])
            value.name = attribute.name
            copy.attribute.append(value)
    return copy


def _inner(attribute: AttributeProto, given: Mapping[str, AttributeProto]) -> AttributeProto:
    if attribute.type != AttributeProto.GRAPH:
        return attribute
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    nodes = [_with_values(node, given) for node in attribute.g.node]
    del copy.g.node[:]
    copy.g.node.extend(nodes)
    return copy
