"""ONNX schemes with block-wise weights of 8 or 4 bits: the operator MatMulNBits of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgepack.emit.onnx_axes import enter, leave
from edgepack.quantize.blocks import block_for, pack, quantize_blocks

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.onnxgraph.rewrite import Builder
    from edgepack.onnxgraph.sites import Placement, Site

DOMAIN = "com.microsoft"

INT8_COMPUTE = 4
"""Accuracy level: the kernel rounds the input to int8, block by block, where the CPU has such a kernel."""


def nbits(site: Site, bits: int) -> Callable[[Builder, ir.Value, Placement], ir.Value]:
    """One MatMulNBits with the bias as its own input.

    A 1×1 convolution becomes the same product between two Transposes: the operator knows no other place for features.
    The kernels do not saturate, so codes use their whole range on every target.

    Args:
        site: the layer.
        bits: 4 or 8.
    """
    layer = site.layer
    block = block_for(layer.in_features)
    codes, scales = quantize_blocks(layer.weight, bits, block)
    packed = pack(codes, bits)
    attributes = {
        "K": layer.in_features,
        "N": layer.out_features,
        "bits": bits,
        "block_size": block,
        "accuracy_level": INT8_COMPUTE,
    }

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = enter(builder, x, placement, site.dtype, convolutions=True)
        inputs: list[ir.Value | None] = [
            x,
            builder.constant(packed, f"{layer.name}.int{bits}"),
            builder.constant(scales, f"{layer.name}.scale"),
        ]
        if layer.bias is not None:
            inputs += [None, None, builder.constant(np.asarray(layer.bias, np.float32), f"{layer.name}.bias")]
        y = builder.op("MatMulNBits", inputs, attributes, domain=DOMAIN)
        return leave(builder, y, placement, site.dtype, convolutions=True)

    return build
