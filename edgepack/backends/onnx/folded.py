"""Weights of recurrent operators that a graph puts together from constants, as exporters do that order gates anew.

They are folded into constants, so that they are weights like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.constants import VIEWS, Reader, root_of
from edgepack.backends.onnx.decoded import broadcasts
from edgepack.backends.onnx.tensors import all_graphs
from edgepack.backends.onnx.values import Names
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
WEIGHTS = (1, 2, 3)
"""Inputs of these operators: the weights of the input and of the state, and the biases."""
_SCALING = frozenset({"DequantizeLinear", "Mul", "Sub"})
"""Operators that make numbers of integers, with Cast."""
DEEPEST = 32
"""Steps from a weight back to its constants, at most."""
INITIALIZERS_APART = 4
"""From this IR version on an initializer need not be a graph input as well."""


def fold_weights(model: ir.Model) -> bool:
    """Fold them in place, and say whether there were any; what nothing uses any more is gone.

    Of files older than IR version 4 all stays as it is.

    A folded weight stands in the graph of its constants, once for all operators that use it, and takes their name.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    if model.ir_version < INITIALIZERS_APART:
        return False
    folder, names = Folder(model), Names(model)
    made: dict[tuple[int, str, tuple[int, ...], bytes], tuple[ir.Value, str]] = {}
    for graph in all_graphs(model):
        for node in graph:
            if node.domain != "" or node.op_type not in RECURRENT:
                continue
            for index, value in enumerate(node.inputs):
                if index not in WEIGHTS or value is None or root_of(value) is not None:
                    continue
                array = folder.array(value)
                home = None if array is None else folder.home(value)
                if array is None or home is None:
                    continue
                key = id(home.graph), array.dtype.str, array.shape, array.tobytes()
                if key not in made:
                    made[key] = initializer(home, array, names.unique("folded")), home.name or "folded"
                node.replace_input_with(index, made[key][0])
    if made:
        RemoveUnusedNodesPass()(model)
        names = Names(model)
        for value, name in made.values():
            value.name = names.unique(name)
    return bool(made)


def initializer(home: ir.Value, array: Array, name: str) -> ir.Value:
    """A constant in the graph of another one."""
    import onnx_ir as ir

    if home.graph is None:
        raise ValueError(f"{home.name!r} stands in no graph")
    tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    home.graph.register_initializer(value)
    return value


class Folder:
    """Values of a model as far as constants, views, slices, scales and what joins these tell them; each is found
    once."""

    def __init__(self, model: ir.Model) -> None:
        self._reader = Reader()
        self._graphs = set(model.graphs())
        self._known: dict[ir.Value, Array | None] = {}

    def array(self, value: ir.Value | None, depth: int = 0) -> Array | None:
        """A value; None where it is not known."""
        if value is None or depth > DEEPEST:
            return None
        if value not in self._known:
            self._known[value] = self._found(value, depth)
        return self._known[value]

    def home(self, value: ir.Value) -> ir.Value | None:
        """The largest constant that a value is put together from; None where they stand in several graphs, or in the
        body of a function."""
        roots = list(self._roots(value))
        graphs = {id(root.graph) for root in roots}
        if len(graphs) != 1 or roots[0].graph is None or roots[0].graph not in self._graphs:
            return None
        sizes = [0 if (array := self.array(root)) is None else array.size for root in roots]
        return roots[sizes.index(max(sizes))]

    def _roots(self, value: ir.Value) -> Iterator[ir.Value]:
        """Every constant that is not the argument of a view."""
        root, node = root_of(value), value.producer()
        if root is not None:
            yield root
        elif node is not None:
            for one in node.inputs[:1] if node.op_type != "Concat" else dict.fromkeys(node.inputs):
                if one is not None:
                    yield from self._roots(one)

    def _found(self, value: ir.Value, depth: int) -> Array | None:
        read, node = self._reader.read(value), value.producer()
        if read is not None or node is None or node.domain != "":
            return read
        if any(one.is_ref() for one in node.attributes.values()):
            return None
        parts = [self.array(one, depth + 1) for one in node.inputs if one is not None]
        if not parts or any(part is None for part in parts):
            return None
        arrays = [part for part in parts if part is not None]
        if node.op_type in _SCALING:
            return _scaled(node, arrays)
        if node.op_type in VIEWS:
            step = self._reader.describe(node)
            return None if step is None else self._reader.derive(arrays[0], step)
        if node.op_type == "Slice":
            return _sliced(node, arrays)
        axis = node.attributes.get_int("axis", 0)
        alike = len({array.ndim for array in arrays}) == 1 and -arrays[0].ndim <= axis < arrays[0].ndim
        return np.concatenate(arrays, axis) if node.op_type == "Concat" and alike and _joins(arrays, axis) else None


def _scaled(node: ir.Node, arrays: list[Array]) -> Array | None:
    """Integers as the numbers that they stand for, or one step towards these; nothing grows."""
    codes = arrays[0]
    if node.op_type == "DequantizeLinear":
        axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
        parts = [along(part, codes, axis, block) for part in arrays[1:]]
    else:
        parts = list(arrays[1:]) if len(arrays) == 2 else []
    known = [part for part in parts if part is not None and broadcasts(part.shape, codes.shape)]
    if not known or len(known) != len(parts):
        return None
    if node.op_type == "Sub":
        return np.asarray(codes - known[0])
    dtype = known[0].dtype
    if dtype.kind != "f":
        return None
    wide = np.result_type(dtype, np.float32)
    zero = known[1].astype(wide) if len(known) > 1 else wide.type(0)
    return np.asarray(((codes.astype(wide) - zero) * known[0].astype(wide)).astype(dtype))


def along(part: Array, codes: Array, axis: int, block: int = 0) -> Array | None:
    """Scales or zero points, so that they broadcast against codes: one for all, one a slice, or one a block."""
    if part.size == 1:
        return part.reshape(())
    if not -codes.ndim <= axis < codes.ndim:
        return None
    if part.ndim == 1 and len(part) == codes.shape[axis]:
        return part.reshape([-1 if at == axis % codes.ndim else 1 for at in range(codes.ndim)])
    if part.ndim != codes.ndim or not 0 < block <= codes.shape[axis] or part.shape[axis] * block < codes.shape[axis]:
        return None
    return np.take(part, np.arange(codes.shape[axis]) // block, axis)


def _joins(arrays: list[Array], axis: int) -> bool:
    """Whether all sides but that of the axis are equal."""
    return len({tuple(np.delete(array.shape, axis)) for array in arrays}) == 1


def _sliced(node: ir.Node, arrays: list[Array]) -> Array | None:
    """Of a Slice with its bounds as inputs, as since opset 10, none of which is left out but those at the end."""
    data, *bounds = arrays
    if len(bounds) < 2 or len(arrays) != len(node.inputs):
        return None
    starts, ends, *rest = ([int(one) for one in np.ravel(bound)] for bound in bounds)
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or any(step < 1 for step in steps):
        return None
    if any(not -data.ndim <= axis < data.ndim for axis in axes):
        return None
    where = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(start, end, step)
    return data[tuple(where)]
