"""What models are the truth in. Their code is imported when it is asked for. A new one is a line in `native`."""

from __future__ import annotations

from functools import cache

from edgepack.model.model import NativeName
from edgepack.natives.protocol import Native


@cache
def native(name: NativeName) -> Native:
    """The native of a model, by `Model.native`."""
    match name:
        case "onnx":
            from edgepack.natives.onnx import OnnxNative

            return OnnxNative()
        case "torch":
            from edgepack.natives.torch import TorchNative

            return TorchNative()
        case "tflite":
            from edgepack.natives.tflite import TfliteNative

            return TfliteNative()
