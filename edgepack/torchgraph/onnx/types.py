"""Types and arrays of ONNX as torch's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from edgepack.errors import ModelError
from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import HINT

WIDE = (torch.uint16, torch.uint32, torch.uint64)
"""Types for which torch has hardly any arithmetic: computed in int64."""
_DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.INT64: torch.int64,
}
_IN_BYTES: Mapping[int, type[np.generic]] = {
    TensorProto.INT4: np.int8,
    TensorProto.UINT4: np.uint8,
    TensorProto.INT2: np.int8,
    TensorProto.UINT2: np.uint8,
}
"""Types of less than a byte: of weights alone, whose codes are the same in bytes."""


def signed(value: Any) -> Any:
    """A tensor of a type in `WIDE` in int64, anything else as it is."""
    return value.long() if isinstance(value, Tensor) and value.dtype in WIDE else value


def dtype_of(element: int, label: str) -> torch.dtype:
    """torch's type of ONNX' number for it.

    Raises:
        ModelError: TFLite files have no such type.
    """
    if element not in _DTYPES:
        known = element in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(element).lower() if known else str(element)
        raise ModelError(f"{label} holds {name}, which cannot go into the TFLite file", hint=HINT)
    return _DTYPES[element]


def element_of(dtype: torch.dtype) -> int:
    """ONNX' number of a type of torch's; 0 for one that it has not."""
    return next((element for element, each in _DTYPES.items() if each == dtype), 0)


def tensor_of(proto: TensorProto, label: str) -> Tensor:
    """The values of a tensor of a file, in memory of its own.

    Raises:
        ModelError: strings, a type that TFLite files do not have, or data that do not fit the shape.
    """
    if proto.data_type not in _IN_BYTES:
        dtype_of(proto.data_type, label)
    try:
        values: Array = onnx.numpy_helper.to_array(proto)
    except (TypeError, ValueError) as err:
        raise ModelError(f"{label} cannot be read: {err}", hint=HINT) from err
    if proto.data_type in _IN_BYTES:
        values = values.astype(_IN_BYTES[proto.data_type])
    if proto.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(values, order="C"))


def array_of(tensor: Tensor) -> Array:
    """The values of a constant as an array; of bfloat16, which numpy does not have, as float32."""
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
