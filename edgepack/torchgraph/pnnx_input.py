"""An ONNX graph in which no word is a stranger's: what pnnx may be given.

pnnx copies names and strings of the file into the text that it writes. So they are neutral before it runs: tensors and
nodes are numbered, documentation, metadata and local functions are dropped, and a string attribute has one of the
values that ONNX defines for it, or the file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgepack.errors import ModelError
from edgepack.torchgraph.pnnx_operators import HINT, is_equation
from edgepack.torchgraph.pnnx_recurrent import DIRECTIONS

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

DOMAINS = ("", "ai.onnx")
_AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_ACTIVATIONS = (
    *("Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Sigmoid", "Softplus", "Softsign"),
    *("Tanh", "ThresholdedRelu"),
)
_LOSSES = ("none", "sum", "mean")
_SCATTERED = ("none", "add", "mul", "max", "min")
_BLOCKS = ("DCR", "CRD")
# Every string attribute of ONNX whose value may go to pnnx: the values that some version of the operator defines.
_STRINGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "auto_pad": dict.fromkeys(
        ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv"), _AUTO_PAD
    ),
    "approximate": {"Gelu": ("none", "tanh")},
    "direction": {**dict.fromkeys(("GRU", "LSTM", "RNN"), DIRECTIONS), "BitShift": ("LEFT", "RIGHT")},
    "activations": dict.fromkeys(("GRU", "LSTM", "RNN"), (*_ACTIVATIONS, *(a.lower() for a in _ACTIVATIONS))),
    "mode": {
        "DepthToSpace": _BLOCKS,
        "SpaceToDepth": _BLOCKS,
        "GridSample": ("bilinear", "nearest", "bicubic", "linear", "cubic"),
        "Pad": ("constant", "reflect", "edge", "wrap"),
        "Resize": ("nearest", "linear", "cubic"),
        "RoiAlign": ("avg", "max"),
        "TensorScatter": ("linear", "circular"),
        "Upsample": ("nearest", "linear", "bilinear"),
    },
    "padding_mode": {"GridSample": ("zeros", "border", "reflection")},
    "coordinate_transformation_mode": {
        "Resize": (
            *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
            *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
        ),
        "RoiAlign": ("half_pixel", "output_half_pixel"),
    },
    "nearest_mode": {"Resize": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")},
    "keep_aspect_ratio_policy": {"Resize": ("stretch", "not_larger", "not_smaller")},
    "reduction": {
        "NegativeLogLikelihoodLoss": _LOSSES,
        "SoftmaxCrossEntropyLoss": _LOSSES,
        "ScatterElements": _SCATTERED,
        "ScatterND": _SCATTERED,
    },
    "round_mode": dict.fromkeys(("Cast", "CastLike"), ("up", "down", "nearest")),
}


def neutral(model: ModelProto, name: str) -> dict[str, str]:
    """Make a graph neutral in place.

    Args:
        model: with all its data inside the file.
        name: the file's, for messages.

    Returns:
        The new name of every input, weight and result by its old one.

    Raises:
        ModelError: names the node that is no operator of ONNX, or has a string or another attribute that ONNX does not
            define.
    """
    graph = model.graph
    if len(graph.sparse_initializer):
        raise ModelError(f"{name}: sparse weights cannot go into the TFLite file", hint=HINT)
    version = max((entry.version for entry in model.opset_import if entry.domain in DOMAINS), default=1)
    for node in graph.node:
        _check(node, version, f"{name}: node {node.name or ', '.join(node.output)!r}")
    for tensor in graph.initializer:
        _check_numbers(tensor, f"{name}: weight {tensor.name!r}")
    names = _numbered(graph)
    _rename(graph, names)
    _strip(model)
    return names


def _check(node: NodeProto, version: int, label: str) -> None:
    import onnx

    if node.domain not in DOMAINS or not onnx.defs.has(node.op_type, version):
        raise ModelError(f"{label} is {node.domain}.{node.op_type!r}, an operator outside of ONNX", hint=HINT)
    defined = onnx.defs.get_schema(node.op_type, version).attributes
    for attribute in node.attribute:
        where = f"{label} ({node.op_type})"
        if attribute.name not in defined or attribute.ref_attr_name:
            raise ModelError(f"{where} has an attribute that ONNX does not define: {attribute.name!r}", hint=HINT)
        _check_attribute(attribute, node.op_type, where)


def _check_attribute(attribute: AttributeProto, operator: str, where: str) -> None:
    import onnx

    kinds = onnx.AttributeProto
    if attribute.type in (kinds.INT, kinds.INTS, kinds.FLOAT, kinds.FLOATS):
        return
    if attribute.type == kinds.TENSOR:
        _check_numbers(attribute.t, f"{where}: {attribute.name!r}")
        return
    if attribute.type not in (kinds.STRING, kinds.STRINGS):
        kind = kinds.AttributeType.Name(attribute.type)
        raise ModelError(f"{where}: attribute {attribute.name!r} is a {kind.lower()}, data was expected", hint=HINT)
    for value in [attribute.s] if attribute.type == kinds.STRING else attribute.strings:
        text = value.decode("utf-8", "replace")
        defined = _STRINGS.get(attribute.name, {}).get(operator, ())
        if text not in defined and not (operator == "Einsum" and attribute.name == "equation" and is_equation(text)):
            expected = f"one of {', '.join(defined)} was expected" if defined else "which is not supported"
            raise ModelError(f"{where}: {attribute.name} is {text[:80]!r}, {expected}", hint=HINT)


def _check_numbers(tensor: Any, where: str) -> None:
    import onnx

    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"{where} holds strings, which cannot go into the TFLite file", hint=HINT)


def _numbered(graph: GraphProto) -> dict[str, str]:
    given = [*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)]
    made = [output for node in graph.node for output in node.output]
    # No name stands for "not given", and stays that.
    return {old: f"t{number}" for number, old in enumerate(dict.fromkeys(old for old in (*given, *made) if old))}


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.initializer, *graph.output):
        value.name = names[value.name]
    noted = [value for value in graph.value_info if value.name in names]
    for value in noted:
        value.name = names[value.name]
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        node.input[:] = [names[old] if old else "" for old in node.input]
        node.output[:] = [names[old] if old else "" for old in node.output]


def _strip(model: ModelProto) -> None:
    """Drop every other field that a name or a text could be in."""
    graph = model.graph
    model.DiscardUnknownFields()
    _keep([model], "ir_version opset_import graph")
    others = [entry for entry in model.opset_import if entry.domain not in DOMAINS]
    for entry in others:
        model.opset_import.remove(entry)
    _keep([graph], "node initializer input output value_info")
    graph.name = "graph"
    _keep(graph.node, "input output name op_type domain attribute")
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    _keep(attributes, "name type i f s t ints floats strings")
    constants = [attribute.t for attribute in attributes if attribute.HasField("t")]
    for tensor in constants:
        tensor.ClearField("name")
    data = "dims data_type float_data int32_data int64_data double_data uint64_data raw_data"
    _keep(constants, data)
    _keep(graph.initializer, f"{data} name")
    for values in (graph.input, graph.output, graph.value_info):
        unclear = [value for value in values if not re.fullmatch(r"t\d+", value.name)]
        for value in unclear:
            values.remove(value)
        _keep(values, "name type")
        _keep([value.type for value in values], "tensor_type")
        _keep([size for value in values for size in value.type.tensor_type.shape.dim], "dim_value")


def _keep(messages: Iterable[Any], fields: str) -> None:
    """Clear all fields but these."""
    kept = fields.split()
    for message in messages:
        for field in message.DESCRIPTOR.fields:
            if field.name not in kept:
                message.ClearField(field.name)
