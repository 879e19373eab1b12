"""What goes into a model and what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import ModelError
from edgepack.types import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir


def input_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must give; initializers that are listed as inputs are not among them.

    Raises:
        ModelError: an input is not a tensor or does not state its shape.
    """
    return tuple(_spec(value, "input") for value in model.graph.inputs if not value.is_initializer())


def output_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The outputs. One that does not state its shape has the shape ().

    Raises:
        ModelError: an output is not a tensor.
    """
    return tuple(_spec(value, "output") for value in model.graph.outputs)


def _spec(value: ir.Value, role: str) -> TensorSpec:
    import onnx_ir as ir

    name = value.name or ""
    if not isinstance(value.type, ir.TensorType) or value.type.dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            f"the {role} {name!r} is {value.type}, expected a tensor", hint="export the model with plain tensors"
        )
    if value.shape is None and role == "input":
        raise ModelError(
            f"the input {name!r} does not state its shape",
            hint="export the model with the shape; axes that vary may have a name instead of a number",
        )
    dims = () if value.shape is None else value.shape.dims
    shape = tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in dims)
    return TensorSpec(name, shape, value.type.dtype.numpy())
