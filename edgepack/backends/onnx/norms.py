"""Normalizations by stored statistics behind a convolution: they are folded into its kernel and bias.

What is written for a layer is then fitted to the answers that count, and nothing stands between integer kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.constants import Reader, root_of
from edgepack.backends.onnx.folded import INITIALIZERS_APART, initializer
from edgepack.backends.onnx.rewrite import drop_unused
from edgepack.backends.onnx.tensors import all_graphs
from edgepack.backends.onnx.values import Names, take_over
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

EPSILON = 1e-5
"""Of a normalization that states none."""


def fold_norms(model: ir.Model) -> bool:
    """Fold them in place, and say whether there were any. Of files older than IR version 4 all stays as it is.

    Those of convolutions in float32 with constants alone, whose result and whose kernel nothing else takes: a kernel
    that stands in several places would be another one in each.
    """
    if model.ir_version < INITIALIZERS_APART:
        return False
    reader, names, graphs = Reader(), Names(model), set(model.graphs())
    made: list[tuple[ir.Value, str]] = []
    for graph in all_graphs(model):
        for norm in list(graph):
            conv = _convolution(norm)
            root = None if conv is None else root_of(_given(conv, 1))
            arrays = None if conv is None else _constants(conv, norm, reader)
            if conv is None or root is None or root.graph not in graphs or arrays is None or len(root.uses()) > 1:
                continue
            kernel, bias = _folded(arrays, norm)
            old = [value for value in (*conv.inputs[1:], *norm.inputs[1:]) if value is not None]
            conv.resize_inputs(3)
            for index, array, name in ((1, kernel, root.name or "kernel"), (2, bias, f"{root.name}.bias")):
                made.append((initializer(root, array, names.unique("folded")), name))
                conv.replace_input_with(index, made[-1][0])
            take_over(norm.outputs[0], conv.outputs[0])
            graph.remove(norm, safe=True)
            for value in old:
                drop_unused(value)
    names = Names(model)
    for value, name in made:
        value.name = names.unique(name)
    return bool(made)


def _convolution(norm: ir.Node) -> ir.Node | None:
    """The convolution that a node normalizes alone, by what is stored."""
    if norm.domain != "" or norm.op_type != "BatchNormalization" or len(norm.inputs) != 5 or len(norm.outputs) != 1:
        return None
    if any(one.is_ref() for one in norm.attributes.values()) or norm.attributes.get_int("training_mode", False):
        return None
    x = norm.inputs[0]
    node = None if x is None else x.producer()
    if x is None or node is None or (node.domain, node.op_type) != ("", "Conv") or node.graph is not norm.graph:
        return None
    return node if len(x.uses()) == 1 and not x.is_graph_output() else None


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.op_type} has no input {index}")
    return value


def _constants(conv: ir.Node, norm: ir.Node, reader: Reader) -> list[Array] | None:
    """Kernel, scale, offset, mean, variance, and the bias where there is one; None where one is no constant of float32,
    or they do not fit each other."""
    values = [conv.inputs[1], *norm.inputs[1:], *(bias for bias in conv.inputs[2:] if bias is not None)]
    read = [None if value is None else reader.read(value) for value in values]
    arrays = [array for array in read if array is not None and array.dtype == np.float32]
    if len(arrays) != len(values) or any(array.shape != arrays[0].shape[:1] for array in arrays[1:]):
        return None
    return arrays if (arrays[4] >= 0).all() else None


def _folded(arrays: list[Array], norm: ir.Node) -> tuple[Array, Array]:
    """Kernel and bias of the convolution with the normalization in it."""
    kernel, scale, offset, mean, variance, *rest = (array.astype(np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", EPSILON))
    bias = ((rest[0] if rest else 0.0) - mean) * factor + offset
    return (kernel * factor.reshape(-1, *(1,) * (kernel.ndim - 1))).astype(np.float32), bias.astype(np.float32)
