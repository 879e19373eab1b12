"""Weights in integers that the runtime decodes at load: how a graph holds them, and what they come to.

Codes of 8 bits stand as they are, those of 4 bits two to a byte, which Gather takes apart; Cast and Mul follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.onnx.constants import constant_tensor
from edgepack.model.scheme import INT8_BITS
from edgepack.model.types import Array
from edgepack.quantize.grids import PAIRS

if TYPE_CHECKING:
    import onnx_ir as ir

SUFFIX = ".decoded"
"""Of the name of a decoded matrix, behind that of its codes."""
_UNPACKING = (["Cast", "Gather", "Reshape"], ["Cast", "Gather", "Reshape", "Slice", "Reshape"])
"""From two codes a byte to a matrix of codes; of an odd number of them the last one is cut off."""


@dataclass(frozen=True)
class Decoded:
    """A matrix that is decoded at load.

    Attributes:
        codes: the value that holds its codes.
        tensor: what it holds.
        sides: of the matrix.
        bits: of a code.
        scales: float32; they broadcast against the codes.
        dtype: of the matrix.
    """

    codes: ir.Value
    tensor: ir.TensorProtocol
    sides: tuple[int, ...]
    bits: int
    scales: Array
    dtype: np.dtype[Any]

    @property
    def matrix(self) -> Array:
        """To the bit as the runtime decodes it."""
        codes = np.asarray(self.tensor.numpy())
        if self.bits < INT8_BITS:
            codes = PAIRS[codes].reshape(-1)[: prod(self.sides)].reshape(self.sides)
        return np.asarray((codes.astype(np.float32) * self.scales).astype(self.dtype))


def decoded(value: ir.Value | None) -> Decoded | None:
    """What a value is decoded from; None for any other one, whatever its name."""
    import onnx_ir as ir

    if value is None or not (value.name or "").endswith(SUFFIX):
        return None
    chain = _chain(value)
    kinds = [node.op_type for node in chain]
    narrowed = kinds[-2:] == ["Mul", "Cast"]
    dtype = _cast_to(chain[-1]) if narrowed else ir.DataType.FLOAT
    steps = kinds[: -2 if narrowed else -1]
    scaling = chain[len(steps)] if chain else None
    if scaling is None or scaling.op_type != "Mul" or not dtype.is_floating_point():
        return None
    codes, scales = chain[0].inputs[0], _second(scaling)
    tensor = tensor_of(codes)
    if codes is None or tensor is None or scales is None or not tensor.dtype.is_integer() or steps[-1:] != ["Cast"]:
        return None
    sides, bits = tuple(int(side) for side in tensor.shape.numpy()), INT8_BITS
    if len(steps) > 1:
        wanted = _second(chain[len(steps) - 2]) if steps[:-1] in _UNPACKING else None
        if wanted is None or not _is_pairs(chain[1]) or tensor.dtype != ir.DataType.UINT8:
            return None
        sides, bits = tuple(int(side) for side in wanted.numpy()), 4
        if min(sides, default=0) < 1 or not 0 <= 2 * tensor.size - prod(sides) <= 1:
            return None
    if not broadcasts(tuple(int(side) for side in scales.shape.numpy()), sides):
        return None
    return Decoded(codes, tensor, sides, bits, np.asarray(scales.numpy(), np.float32), dtype.numpy())


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node, None for all else."""
    node = None if value is None else value.producer()
    if node is not None:
        return constant_tensor(node) if node.op_type == "Constant" else None
    return None if value is None else value.const_value


def _chain(value: ir.Value) -> list[ir.Node]:
    """The nodes between a stored tensor and a value, the tensor's reader first."""
    found: list[ir.Node] = []
    current: ir.Value | None = value
    while current is not None and (node := current.producer()) is not None and node.op_type != "Constant":
        found.insert(0, node)
        place = 1 if node.op_type == "Gather" else 0
        current = node.inputs[place] if len(node.inputs) > place else None
    return found


def _second(node: ir.Node) -> ir.TensorProtocol | None:
    return tensor_of(node.inputs[1]) if len(node.inputs) > 1 else None


def _cast_to(node: ir.Node) -> ir.DataType:
    import onnx_ir as ir

    return ir.DataType(node.attributes.get_int("to", 0))


def _is_pairs(node: ir.Node) -> bool:
    table = tensor_of(node.inputs[0])
    return table is not None and np.array_equal(table.numpy(), PAIRS)


def broadcasts(scales: tuple[int, ...], sides: tuple[int, ...]) -> bool:
    """Whether scales take no more room than the codes."""
    try:
        return np.broadcast_shapes(scales, sides) == sides
    except ValueError:
        return False
