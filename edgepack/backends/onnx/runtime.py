"""ONNX files in ONNX Runtime, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.backend import Session
from edgepack.errors import ModelError
from edgepack.model.types import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort


def load(path: Path, *, threads: int, exact: bool) -> Session:
    """See `Backend.load`."""
    from edgepack.backends.onnx.session import run, session

    opened = _exact_session(path, threads) if exact else session(path, threads=threads)
    made = Session(_session_inputs(opened), lambda feed: run(opened, None, feed), lambda: made)
    return made


def _exact_session(path: Path, threads: int) -> ort.InferenceSession:
    """A session without saturation, also where int8 weights are shared or stand outside of their branch.

    On x86 CPUs without VNNI the runtime widens int8 constants, but only those of the very graph that uses them, and it
    trips over those that are used twice, as it does itself where what is decoded of one has several uses; where a scale
    per channel has no zero points it makes a single one, which it refuses then. Copies of them and zero points, made in
    memory, are all that it needs.
    """
    from edgepack.backends.onnx.file import read
    from edgepack.backends.onnx.session import session

    opened = None
    try:
        opened = session(path, threads=threads, exact=True)
    except ModelError as err:
        if "Attempt to replace the existing tensor" not in str(err.__cause__):
            raise
    model = read(path)
    changed = [_zero_points(model), _own_int8_constants(model)]
    if any(changed) or opened is None:
        opened = session(model, threads=threads, exact=True)
    return opened


def _zero_points(model: ir.Model) -> bool:
    """Give scales per channel of int8 constants zero points, all zero, where they have none; whether any had none."""
    import onnx_ir as ir

    from edgepack.backends.onnx.other_ops import add_initializer

    changed = False
    for home in model.graphs():
        for node in [node for node in home if node.op_type == "DequantizeLinear" and not any(node.inputs[2:3])]:
            codes, scale = node.inputs[:2]
            steps = None if scale is None else scale.const_value
            if codes is not None and codes.dtype == ir.DataType.INT8 and steps is not None and len(steps.shape) > 0:
                zeros = np.zeros(steps.numpy().shape, np.int8)
                node.resize_inputs(3)
                node.replace_input_with(2, add_initializer(home, f"{node.outputs[0].name}.zeros", zeros))
                changed = True
    return changed


def _own_int8_constants(model: ir.Model) -> bool:
    """Give every use of an int8 constant its own copy in its own graph; whether there was any to copy."""
    import onnx_ir as ir

    changed = _own_decoders(model)
    for home in model.graphs():
        for value in [v for v in home.initializers.values() if v.dtype == ir.DataType.INT8]:
            for number, (node, index) in enumerate(list(value.uses())):
                graph = node.graph
                if value.const_value is None or not isinstance(graph, ir.Graph) or (graph is home and number == 0):
                    continue
                tensor = ir.Tensor(value.const_value.numpy(), name=f"{value.name}.use{number}")
                copy = ir.Value(name=tensor.name, type=value.type, shape=value.shape, const_value=tensor)
                graph.register_initializer(copy)
                node.replace_input_with(index, copy)
                changed = True
    return changed


def _own_decoders(model: ir.Model) -> bool:
    """Give every use of a decoded int8 constant its own DequantizeLinear; whether any had several uses."""
    import onnx_ir as ir

    changed = False
    for home in model.graphs():
        for node in [node for node in home if node.op_type == "DequantizeLinear"]:
            constant = node.inputs[0]
            if constant is None or constant.const_value is None or constant.dtype != ir.DataType.INT8:
                continue
            for number, (user, index) in enumerate(list(node.outputs[0].uses())[1:], start=1):
                attributes = list(node.attributes.values())
                copy = ir.Node(node.domain, node.op_type, node.inputs, attributes, version=node.version)
                copy.outputs[0].name = f"{node.outputs[0].name}.use{number}"
                home.insert_after(node, copy)
                user.replace_input_with(index, copy.outputs[0])
                changed = True
    return changed


_ORT_DTYPES = {"float": "float32", "double": "float64"}


def _session_inputs(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    specs = []
    for value in session.get_inputs():
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(d if isinstance(d, int) and d > 0 else None for d in value.shape)
        specs.append(TensorSpec(value.name, shape, np.dtype(_ORT_DTYPES.get(kind, kind))))
    return tuple(specs)
