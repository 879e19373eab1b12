"""LSTM and GRU of ONNX on their way through pnnx, which hands them through under their names.

It leaves out what a node does not have, so that nobody can tell a last state from an output. So the nodes get all of
their outputs before, and keep nothing but what the functions here compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgepack.errors import ModelError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch import Tensor

DIRECTIONS = ("forward", "reverse", "bidirectional")
_ORDER: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
"""Of torch's gates, where they stand in ONNX."""
_STATES: Mapping[str, int] = {"LSTM": 2, "GRU": 1}
_DEFAULTS: Mapping[str, tuple[str, ...]] = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}
_KEPT = ("hidden_size", "direction", "linear_before_reset")
_BIAS, _LENGTHS, _FIRST_STATE = 3, 4, 5
"""Places among the inputs, behind the sequence and its two weights."""


def complete(model: ModelProto, name: str, hint: str) -> None:
    """Give LSTM and GRU nodes all outputs, a bias, and no attributes or lengths of sequences that mean nothing.

    Args:
        model: changed.
        name: the file's, for messages.
        hint: for an error.

    Raises:
        ModelError: names the node that torch has no counterpart for, and why.
    """
    for number, node in enumerate(model.graph.node):
        if node.op_type in _ORDER and node.domain in ("", "ai.onnx"):
            if (reason := _refused(node, model)) is not None:
                label = node.name or next(filter(None, node.output), "")
                raise ModelError(f"{name}: node {label!r} ({node.op_type}) has {reason}", hint=hint)
            _complete(node, model, f"recurrent.{number}")


def _refused(node: NodeProto, model: ModelProto) -> str | None:
    """What torch has no counterpart for, in a few words."""
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    given = [*node.input, *[""] * 8]
    states = given[_FIRST_STATE : _FIRST_STATE + _STATES[node.op_type]]
    activations = [each.decode().lower() for each in values.get("activations", ())]
    expected = [*_DEFAULTS[node.op_type]] * (2 if values.get("direction") == b"bidirectional" else 1)
    if activations not in ([], expected) or {"activation_alpha", "activation_beta", "clip"} & set(values):
        return "activations of its own"
    if values.get("layout") or values.get("input_forget"):
        return "its sequences first, or coupled gates"
    if node.op_type == "GRU" and not values.get("linear_before_reset"):
        return "its reset gate in front of the product"
    if node.op_type == "LSTM" and given[_FIRST_STATE + 2]:
        return "weights of the cell for its gates"
    if given[_LENGTHS] and not _is_whole(given[0], given[_LENGTHS], model):
        return "lengths of sequences"
    if any(states) and not all(states):
        return "one first state of two"
    return None if {given[1], given[2]} <= constants else "weights that are computed"


def _is_whole(x: str, lengths: str, model: ModelProto) -> bool:
    """Whether the lengths of sequences are constants, and those of the input."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {each.name: each.type.tensor_type.shape.dim for each in (*graph.input, *graph.value_info)}
    values = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == lengths]
    return x in sizes and any((value == sizes[x][0].dim_value).all() for value in values)


def _complete(node: NodeProto, model: ModelProto, prefix: str) -> None:
    import numpy as np
    import onnx

    given = [*node.input, *[""] * 8]
    states = given[_FIRST_STATE : _FIRST_STATE + _STATES[node.op_type]]
    if not given[_BIAS]:
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == given[1])
        zeros = np.zeros((weight.dims[0], 2 * weight.dims[1]), onnx.helper.tensor_dtype_to_np_dtype(weight.data_type))
        given[_BIAS] = f"{prefix}.bias"
        model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, given[_BIAS]))
    node.input[:] = [*given[:_LENGTHS], *(["", *states] if any(states) else [])]
    outputs = [*node.output, *[""] * _STATES[node.op_type]][: 1 + _STATES[node.op_type]]
    node.output[:] = [output or f"{prefix}.output.{place}" for place, output in enumerate(outputs)]
    kept = [attribute for attribute in node.attribute if attribute.name in _KEPT]
    del node.attribute[:]
    node.attribute.extend(kept)


def lstm(x: Tensor, *given: Tensor, hidden_size: int, direction: str = "forward") -> tuple[Tensor, ...]:
    """ONNX LSTM.

    Args:
        x: (steps, sequences, features).
        given: weights of input and state, biases, and the first output and cell state if the node has them.
        hidden_size: known from the weights.
        direction: one of `DIRECTIONS`.

    Returns:
        Outputs (steps, directions, sequences, units), last output and cell state (directions, sequences, units).
    """
    import torch

    return _applied(torch.lstm, "LSTM", x, given, direction)


def gru(
    x: Tensor, *given: Tensor, hidden_size: int, linear_before_reset: int, direction: str = "forward"
) -> tuple[Tensor, ...]:
    """ONNX GRU with its reset gate behind the product: outputs and last output, as of an LSTM."""
    import torch

    return _applied(torch.gru, "GRU", x, given, direction)


def first(results: tuple[Tensor, ...], count: int) -> Tensor | tuple[Tensor, ...]:
    """Those that pnnx has names for: it leaves out the last ones where nothing reads them."""
    return results[:count] if count > 1 else results[0]


def _applied(run: Any, name: str, x: Tensor, given: Sequence[Tensor], direction: str) -> tuple[Tensor, ...]:
    import torch

    w, r, b, *states = given
    directions, units = len(r), r.shape[-1]
    flat = [
        torch.cat([matrix.chunk(len(_ORDER[name]))[place] for place in _ORDER[name]])
        for way in range(directions)
        for matrix in (w[way], r[way], *b[way].chunk(2))
    ]
    zeros = x.new_zeros(directions, x.shape[1], units)
    states = states or [zeros] * _STATES[name]
    turned, both = direction == "reverse", direction == "bidirectional"
    begin = states if len(states) > 1 else states[0]
    y, *last = run(x.flip(0) if turned else x, begin, flat, True, 1, 0.0, False, both, False)
    y = y.flip(0) if turned else y
    return (y.unflatten(-1, (directions, units)).swapaxes(1, 2), *last)
