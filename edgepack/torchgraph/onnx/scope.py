"""Names of a graph, what they stand for, and the nodes that use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto
from torch import Tensor

from edgepack.errors import ModelError
from edgepack.torchgraph.onnx.node import HINT, Node


@dataclass(frozen=True)
class Value:
    """What a name in the graph stands for: a tensor, and the number of its slot, None if it is a constant.

    Attributes:
        natural: of a slot, whether its numbers are known not to be negative.
    """

    tensor: Tensor
    slot: int | None = None
    natural: bool = False


def names_read(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, those within its graphs among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from names_read(inner)


def read_node(proto: NodeProto, version: int, label: str, graphs: Sequence[str] = ()) -> Node:
    """What an operator's function is told of a node; `graphs` are attributes that are no values.

    Raises:
        ModelError: another attribute that is neither number, word nor tensor.
    """
    values = {each.name: _attribute(each, label) for each in proto.attribute if each.name not in graphs}
    return Node(proto.op_type, version, label, values, len(proto.output))


def _attribute(attribute: AttributeProto, label: str) -> Any:
    """Its value: a number, a word, a tensor of the file, or a list of the former two."""
    kinds = AttributeProto
    if attribute.ref_attr_name:
        raise ModelError(f"{label} has an attribute that refers to a function's: {attribute.name[:80]!r}", hint=HINT)
    match attribute.type:
        case kinds.INT | kinds.FLOAT | kinds.TENSOR | kinds.INTS | kinds.FLOATS:
            return onnx.helper.get_attribute_value(attribute)
        case kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        case kinds.STRINGS:
            return [text.decode("utf-8", "replace") for text in attribute.strings]
    raise ModelError(
        f"{label} has an attribute that is neither number, word nor tensor: {attribute.name[:80]!r}", hint=HINT
    )
