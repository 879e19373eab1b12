"""Constants of a graph seen through the views that exporters put around them, and ranks that it does not state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.onnx.values import MAP, quiet
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

VIEWS = frozenset({"Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze"})
"""Operators that only show their first input in another way."""

FLOATS = frozenset({"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"})
"""Element types in which a linear layer computes."""

Key = tuple[object, ...]
_Step = tuple[Any, ...]

_RANK = "edgepack.rank"


def root_of(value: ir.Value) -> ir.Value | None:
    """The initializer or Constant output behind `value`, through views; None if it is not a constant.

    An initializer that is also a graph input (every initializer is, before IR version 4) counts as a constant: that a
    caller may override a weight is a possibility of the file format, not a use of it.
    """
    while True:
        if value.is_initializer():
            return value if value.const_value is not None else None
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type == "Constant":
            return value if constant_tensor(node) is not None else None
        if node.op_type not in VIEWS or not node.inputs or node.inputs[0] is None:
            return None
        value = node.inputs[0]


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node, or None where it is sparse, text or given by a function's attribute."""
    import onnx_ir as ir

    for name, kind in (("value", None), ("value_float", np.float32), ("value_floats", np.float32)):
        attribute = node.attributes.get(name)
        if attribute is not None and not attribute.is_ref():
            return attribute.as_tensor() if kind is None else ir.tensor(np.asarray(attribute.value, kind))
    for name in ("value_int", "value_ints"):
        attribute = node.attributes.get(name)
        if attribute is not None and not attribute.is_ref():
            return ir.tensor(np.asarray(attribute.value, np.int64))
    return None


def views_of(value: ir.Value) -> Iterator[ir.Node]:
    """The view nodes between `value` and its root, the nearest first."""
    node = value.producer()
    while node is not None and node.op_type in VIEWS and node.inputs and node.inputs[0] is not None:
        yield node
        node = node.inputs[0].producer()


class Reader:
    """Reads constants as arrays, each root once and views as numpy views wherever numpy allows.

    Two values that show the same root in the same way give the same array object or an equal `key`, so that a weight
    which several nodes reach through views of their own is known to be one weight.
    """

    def __init__(self) -> None:
        self._roots: dict[int, Array] = {}
        self._steps: dict[Key, Array] = {}
        self._owners: list[ir.Value] = []  # ids stay unique only while their objects live

    def read(self, value: ir.Value) -> Array | None:
        """The array behind `value`; None where it is not a constant or a view of it cannot be followed."""
        root = root_of(value)
        if root is None:
            return None
        array = self._root(root)
        for node in reversed(list(views_of(value))):
            step = self.describe(node)
            if array is None or step is None:
                return None
            array = self.derive(array, step)
        return array

    def _root(self, root: ir.Value) -> Array | None:
        if id(root) not in self._roots:
            node = root.producer()
            tensor = root.const_value if node is None else constant_tensor(node)
            if tensor is None:
                return None
            self._roots[id(root)] = tensor.numpy()
            self._owners.append(root)
        return self._roots[id(root)]

    def derive(self, array: Array, step: _Step) -> Array | None:
        """`array` after one step: ("Transpose", perm), ("Reshape", shape), ("Cast", dtype) or ("Scale", factor)."""
        key = (array_key(array), step)
        if key not in self._steps:
            derived = _apply(array, step)
            if derived is None:
                return None
            self._steps[key] = derived
        return self._steps[key]

    def describe(self, node: ir.Node) -> _Step | None:
        """What a view does to its first input, as `derive` takes it; None where that is not known."""
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        if node.op_type == "Identity":
            return ("Identity",)
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm")
            return ("Transpose", None if perm is None else tuple(perm))
        if node.op_type == "Cast":
            return _cast_step(node)
        if node.op_type == "Reshape":
            shape = self._integers(node, 1)
            return None if shape is None else ("Reshape", shape, bool(node.attributes.get_int("allowzero", 0)))
        axes = tuple(node.attributes.get_ints("axes", ())) or self._integers(node, 1)
        return None if axes is None and node.op_type == "Unsqueeze" else (node.op_type, axes)

    def _integers(self, node: ir.Node, index: int) -> tuple[int, ...] | None:
        value = node.inputs[index] if len(node.inputs) > index else None
        array = None if value is None else self.read(value)
        return None if array is None else tuple(int(i) for i in array.ravel())


def array_key(array: Array) -> Key:
    """Equal for two arrays that show the same memory in the same way."""
    return (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str)


def _cast_step(node: ir.Node) -> _Step | None:
    import onnx_ir as ir

    to = ir.DataType(node.attributes.get_int("to", 0))
    return ("Cast", to.numpy()) if to.name in FLOATS else None


def _apply(array: Array, step: _Step) -> Array | None:
    op: str = step[0]
    argument: Any = step[1] if len(step) > 1 else None
    changed: Any = array
    try:
        if op == "Transpose":
            changed = np.transpose(array, argument)
        elif op == "Reshape":
            changed = array.reshape(_target_shape(array, step))
        elif op == "Cast":
            changed = array.astype(argument, copy=False)
        elif op == "Squeeze":
            changed = np.squeeze(array, argument)
        elif op == "Unsqueeze":
            changed = np.expand_dims(array, argument)
        elif op == "Scale":
            changed = (array * np.asarray(argument, np.float64)).astype(array.dtype)
    except ValueError:  # a view that the runtime would refuse too
        return None
    return np.asarray(changed)


def _target_shape(array: Array, step: _Step) -> tuple[int, ...]:
    """Reshape's target with its zeros ("as in the input") filled in."""
    target: tuple[int, ...] = step[1]
    if step[2]:
        return target
    return tuple(array.shape[i] if dim == 0 and i < array.ndim else dim for i, dim in enumerate(target))


def known_rank(value: ir.Value | None) -> int | None:
    """Rank of a value where the model states it or `note_ranks` found it."""
    if value is None:
        return None
    rank: int | None = value.meta.get(_RANK) if value.shape is None else len(value.shape)
    return rank


def is_noted(value: ir.Value) -> bool:
    """Whether asking shape inference once more would tell nothing new."""
    return value.shape is not None or _RANK in value.meta


def note_ranks(model: ir.Model) -> None:
    """Infer shapes on a copy and note the ranks at the values of the model, whose own shapes stay as they are."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    inferred = model.clone()
    twins = list(zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True))
    _without_maps(inferred.graph)
    with quiet("onnx_ir"), suppress(ir.serde.SerdeError):  # what cannot be inferred, or is a map inside, is not known
        ShapeInferencePass(check_type=False, strict_mode=False)(inferred)
    for node, twin in twins:
        for value, found in zip(node.outputs, twin.outputs, strict=True):
            if value.shape is None:
                value.meta[_RANK] = None if found.shape is None else len(found.shape)


def _without_maps(graph: ir.Graph) -> None:
    """Remove the nodes that make maps of a graph's outputs: the library has no such type."""
    for index in reversed(range(len(graph.outputs))):
        node = graph.outputs[index].producer()
        if MAP in graph.outputs[index].meta and node is not None and len(node.outputs) == 1:
            del graph.outputs[index]
            graph.remove(node, safe=True)
