"""Recognises one node as a linear layer: Gemm, MatMul with a constant matrix, 1×1 Conv."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgepack.backends.onnx.constants import FLOATS, Key, Reader, array_key, is_noted, known_rank, root_of
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

Kind = Literal["rows", "columns", "conv"]
_STAGE = "edgepack.stage"


@dataclass(frozen=True, eq=False)
class Use:
    """One node that multiplies by a constant matrix.

    Attributes:
        node: the Gemm, MatMul or Conv.
        kind: where the features are: last axis, last but one, or axis 1.
        weight: (out, in), with Gemm's alpha in it; of other kinds than linear as the layer has it, outputs first.
        root: the initializer or Constant output that holds the weight.
        x_index: which of the node's inputs is the layer's input.
        swapped: the layer's input is that value with its two axes exchanged (Gemm's transA or transB).
        bias: (out,) float32 or None.
        add: the Add node that carries the bias, where it is not an input of the node itself.
        extra_index: the node's own input that must be added after a rewrite as it cannot be the bias; None if none.
        scale: the factor on the node's own third input (Gemm's beta).
        spatial: number of spatial axes of a convolution, else 0.
        alike: what else is equal where two nodes are one layer.
    """

    node: ir.Node
    kind: Kind
    weight: Array
    root: ir.Value
    x_index: int
    swapped: bool = False
    bias: Array | None = None
    add: ir.Node | None = None
    extra_index: int | None = None
    scale: float = 1.0
    spatial: int = 0
    alike: tuple[object, ...] = ()

    @property
    def key(self) -> Key:
        """Equal for two uses of the same matrix, with the features on the same axis, in the same way."""
        return (id(self.root), self.kind, *array_key(self.weight), self.alike)


def match(node: ir.Node, reader: Reader) -> Use | None:
    """The node as a linear layer, or None if it is anything else."""
    if node.domain != "" or any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    if node.op_type == "MatMul":
        return _matmul(node, reader)
    if node.op_type == "Gemm":
        return _gemm(node, reader)
    return _conv(node, reader) if node.op_type == "Conv" else None


def is_unsure(use: Use, reader: Reader) -> bool:
    """Whether an Add that follows would be the bias if only the rank were known."""
    middle = use.node.outputs[0]
    if use.node.op_type != "MatMul" or use.add is not None or is_noted(middle) or len(middle.uses()) != 1:
        return False
    if known_rank(use.node.inputs[use.x_index]) is not None:
        return False
    return any(_with_add(use, reader, rank).add is not None for rank in (1, 2, 3, 4))


def _matmul(node: ir.Node, reader: Reader) -> Use | None:
    found = _constant_matrix(node, reader)
    if found is None:
        return None
    side, weight, root = found
    rank = known_rank(node.inputs[1 - side]) or known_rank(node.outputs[0])
    if side == 1:
        return _with_add(Use(node, "rows", weight.T, root, 0), reader, rank)
    return _with_add(Use(node, "columns", weight, root, 1), reader, rank)


def _gemm(node: ir.Node, reader: Reader) -> Use | None:
    found = _constant_matrix(node, reader)
    if found is None:
        return None
    side, weight, root = found
    transposed = [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]
    if transposed[side] == (side == 0):  # Aᵀ stands on the left as W, B on the right as Wᵀ
        weight = weight.T
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if alpha != 1.0:
        scaled = reader.derive(weight, ("Scale", alpha))
        if scaled is None:
            return None
        weight = scaled
    kind: Kind = "rows" if side == 1 else "columns"
    use = Use(node, kind, weight, root, 1 - side, swapped=transposed[1 - side], scale=beta)
    return with_own_bias(use, reader, rank=2)


def _conv(node: ir.Node, reader: Reader) -> Use | None:
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    kernel, root = reader.read(node.inputs[1]), root_of(node.inputs[1])
    if kernel is None or root is None or root_of(node.inputs[0]) is not None:
        return None
    if not (is_linear_conv(node, kernel) and is_float(kernel, root)):
        return None
    weight = reader.derive(kernel, ("Reshape", kernel.shape[:2], True))
    if weight is None:
        return None
    return with_own_bias(Use(node, "conv", weight, root, 0, spatial=kernel.ndim - 2), reader, rank=kernel.ndim)


def mark_stage(node: ir.Node | None) -> None:
    """Notes on a convolution over every channel by itself that it was put in the place of a layer, with others."""
    if node is not None:
        node.meta[_STAGE] = True


def is_stage(node: ir.Node) -> bool:
    """Whether `mark_stage` was called for it; a model that was read from a file knows nothing of it."""
    return _STAGE in node.meta


def mark_as_in(other: ir.Model, model: ir.Model) -> None:
    """Notes the same in a model as in another one, of convolutions that give what is called the same in both."""
    stages = {node.outputs[0].name for node in other.graph.all_nodes() if is_stage(node)}
    for node in model.graph.all_nodes():
        if node.op_type == "Conv" and node.outputs[0].name in stages:
            mark_stage(node)


def is_linear_conv(node: ir.Node, kernel: Array) -> bool:
    """Whether a Conv with this kernel multiplies the features at every position of its input, each once."""
    pointwise = kernel.ndim >= 3 and set(kernel.shape[2:]) == {1} and kernel.size > 0
    return (
        pointwise
        and node.attributes.get_int("group", 1) == 1
        and set(node.attributes.get_ints("strides", ())) <= {1}
        and set(node.attributes.get_ints("pads", ())) <= {0}  # automatic padding of a 1×1 kernel is zero too
    )


def _constant_matrix(node: ir.Node, reader: Reader) -> tuple[int, Array, ir.Value] | None:
    """Which of the two inputs is a constant matrix, the matrix, and the value that holds it."""
    side = _constant_side(node)
    value = None if side is None else node.inputs[side]
    weight, root = _matrix(value, reader), None if value is None else root_of(value)
    return None if side is None or weight is None or root is None else (side, weight, root)


def _constant_side(node: ir.Node) -> int | None:
    """0 or 1: which one of the two factors is constant; None unless it is exactly one."""
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    constant = [root_of(node.inputs[0]) is not None, root_of(node.inputs[1]) is not None]
    return constant.index(True) if constant[0] != constant[1] else None


def _matrix(value: ir.Value | None, reader: Reader) -> Array | None:
    array, root = (None, None) if value is None else (reader.read(value), root_of(value))
    if array is None or root is None or array.ndim != 2 or array.size == 0 or not is_float(array, root):
        return None
    return array


def is_float(array: Array, root: ir.Value) -> bool:
    """Computed in a float type and stored in one: a cast integer is somebody's quantization."""
    import onnx_ir as ir

    stored = root.dtype
    return ir.DataType.from_numpy(array.dtype).name in FLOATS and (stored is None or stored.name in FLOATS)


def with_own_bias(use: Use, reader: Reader, rank: int) -> Use:
    """Take the node's third input as the bias if it is one, keep it apart if it is not."""
    third = use.node.inputs[2] if len(use.node.inputs) > 2 else None
    if third is None or use.scale == 0.0:
        return _with_add(use, reader, rank)
    array = reader.read(third)
    if array is not None and use.kind == "conv":
        array = array.reshape(-1, *(1,) * (rank - 2))
    vector = None if array is None else _vector(array, use.kind, len(use.weight), rank)
    if vector is None:
        return replace(use, extra_index=2)
    return replace(use, bias=vector if use.scale == 1.0 else (vector * use.scale).astype(np.float32))


def _with_add(use: Use, reader: Reader, rank: int | None) -> Use:
    """Take a following constant Add as the bias if nothing else sees the value between."""
    middle = use.node.outputs[0]
    if middle.is_graph_output() or len(middle.uses()) != 1:
        return use
    ((add, index),) = middle.uses()
    if add.op_type != "Add" or add.domain != "" or add.graph is not use.node.graph:
        return use
    other = add.inputs[1 - index]
    array = None if other is None else reader.read(other)
    vector = None if array is None else _vector(array, use.kind, len(use.weight), rank)
    return use if vector is None else replace(use, bias=vector, add=add)


def _vector(array: Array, kind: Kind, out: int, rank: int | None) -> Array | None:
    """`array` as a bias (out,) float32 if adding it to a value of this rank only adds one number per feature."""
    if kind == "columns" and rank == 1:
        kind = "rows"
    if rank is None and (array.ndim > 1 or (kind == "columns" and array.size > 1)):
        return None  # the sum might have more axes than the layer's output
    if rank is not None and array.ndim > rank:
        return None
    axis = {"rows": 1, "columns": 2, "conv": (rank or 0) - 1}[kind]  # counted from the end
    for distance, dim in enumerate(reversed(array.shape), start=1):
        if dim not in ((1, out) if distance == axis else (1,)):
            return None
    return np.broadcast_to(np.asarray(array, np.float32).ravel(), (out,))
