"""Models of operator sets in which nothing can be quantized: they are brought to a newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.backends.onnx.file import EXTERNAL_BYTES, from_proto, to_proto
from edgepack.backends.onnx.tensors import weight_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

QUANTIZED = 11
"""The first operator set with every operator of dense int8 with dynamic activations."""
NEWER = 13
"""What older ones become: it has scales by channel as well."""


def in_newer_opset(model: ir.Model) -> ir.Model | None:
    """The model in opset `NEWER`; None where its own will do, or ONNX's converter cannot bring it there."""
    from onnx import shape_inference, version_converter

    if model.opset_imports.get("", NEWER) >= QUANTIZED or weight_bytes(model) > EXTERNAL_BYTES:
        return None
    try:
        return from_proto(version_converter.convert_version(to_proto(model), NEWER))
    except (RuntimeError, version_converter.ConvertError, shape_inference.InferenceError):  # no way for an operator
        return None
