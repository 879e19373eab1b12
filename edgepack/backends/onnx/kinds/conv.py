"""Convolutions in ONNX: Conv of one group and a constant kernel, along one axis or two, but for those that are linear.
Of several groups only stages are found again, where they were put into a model in memory.

Its weights are float32, or integers that are decoded at load. Integer kernels of a whole file come from the runtime's
own quantizer (`edgepack.backends.onnx.ort_quantizer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgepack.backends.onnx.constants import root_of
from edgepack.backends.onnx.kinds.kind import Storing
from edgepack.backends.onnx.matching import Use, is_float, is_linear_conv, is_stage, mark_stage, with_own_bias
from edgepack.backends.onnx.schemes import FP32, WEIGHTS4, WEIGHTS8
from edgepack.errors import ModelError
from edgepack.model.kinds.conv import ConvGeometry, conv_layer, geometry_of, kernels_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import quantize_matrix

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.constants import Reader
    from edgepack.backends.onnx.rewrite import Build, Builder
    from edgepack.backends.onnx.sites import Placement, Site

RANKS = (3, 4)
"""Of kernels along one axis and two."""


class OnnxConv:
    """See `OnnxKind`."""

    schemes: tuple[Scheme, ...] = (FP32, WEIGHTS8, WEIGHTS4)
    operators: Mapping[str, tuple[int, ...]] = {"Conv": (1,)}
    factors: Mapping[str, tuple[int, ...]] = {
        **operators,
        "ConvInteger": (1,),
        "QLinearConv": (3,),
        "FusedConv": (1,),
    }

    def match(self, node: ir.Node, reader: Reader) -> Use | None:
        """See `OnnxKind`."""
        if node.domain != "" or node.op_type != "Conv" or any(one.is_ref() for one in node.attributes.values()):
            return None
        if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
            return None
        kernel, root = reader.read(node.inputs[1]), root_of(node.inputs[1])
        if kernel is None or root is None or root_of(node.inputs[0]) is not None:
            return None
        if kernel.ndim not in RANKS or kernel.size == 0:
            return None
        if node.attributes.get_int("group", 1) != 1 and not is_stage(node):
            return None
        if is_linear_conv(node, kernel) or not is_float(kernel, root):
            return None
        weight = reader.derive(kernel, ("Reshape", (len(kernel), prod(kernel.shape[1:])), True))
        if weight is None:
            return None
        geometry = _geometry(node, kernel.shape[2:])
        use = Use(node, "conv", weight, root, 0, spatial=kernel.ndim - 2, alike=(geometry,))
        return with_own_bias(use, reader, rank=kernel.ndim)

    def layer(self, name: str, use: Use, bias: Array | None, uses: int) -> Layer:
        """See `OnnxKind`."""
        geometry = cast("ConvGeometry", use.alike[0])
        return conv_layer(name, np.asarray(use.weight, np.float32), bias, geometry, uses)

    def sides(self, node: ir.Node, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Of a kernel as one matrix: outputs, and channels by places; of one group, or of every channel by itself."""
        if len(shape) not in RANKS or (node.attributes.get_int("group", 1) != 1 and shape[1] != 1):
            return None
        return shape[0], prod(shape[1:])

    def bias(self, node: ir.Node, index: int, constant: Array) -> Array | None:
        """None: it has a constant to itself."""
        return None

    def refuses(self, layer: Layer, scheme: Scheme) -> str | None:
        """None: every scheme takes every kernel."""
        return None

    def replace(self, site: Site, part: Replacement) -> Build:
        """The convolutions of the structure in a row, the last one with the bias.

        Of code that is the weight that it comes to: no file has it, but references of other weights are made so.

        Raises:
            ModelError: a convolution has no such structure, or the tensors do not fit the layer.
        """
        layer = site.layer
        bias = layer.bias if part.bias is None else part.bias
        if bias is not None and bias.shape != (layer.out_features,):
            raise ModelError(f"{layer.name}: found a bias {bias.shape}, expected {(layer.out_features,)}")
        try:
            found = kernels_of(layer, part)
        except ValueError as err:
            raise ModelError(f"{layer.name}: {err}") from err

        def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
            for stage, kernel in found:
                own = bias if stage is found[-1][0] else None
                x = _conv(builder, x, site.put(builder, kernel, stage.role), site, own, _attributes(stage.geometry))
                if stage.geometry.groups > 1:
                    mark_stage(x.producer())
            return x

        return build

    def stored(self, site: Site, scheme: Scheme, storing: Storing) -> Build | None:
        """See `OnnxKind`."""
        if scheme.is_float or scheme not in self.schemes:
            return None
        layer = site.layer
        codes, scales = quantize_matrix(layer.weight, qmax=scheme.qmax_within(storing.qmax))

        def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
            kernel = np.ascontiguousarray(_kernel_of(codes, layer))
            steps = scales.reshape(-1, *(1,) * (kernel.ndim - 1)) if scales.ndim else scales
            weight = builder.decoded(kernel, steps, layer.name, site.dtype, scheme.bits)
            return _conv(builder, x, weight, site, layer.bias, _attributes(geometry_of(layer)))

        return build


def _geometry(node: ir.Node, kernel: tuple[int, ...]) -> ConvGeometry:
    axes, attributes = len(kernel), node.attributes
    return ConvGeometry(
        "Conv",
        kernel,
        tuple(attributes.get_ints("strides", (1,) * axes)),
        tuple(attributes.get_ints("dilations", (1,) * axes)),
        tuple(attributes.get_ints("pads", (0,) * 2 * axes)),
        attributes.get_string("auto_pad", "NOTSET"),
        attributes.get_int("group", 1),
    )


def _attributes(geometry: ConvGeometry) -> dict[str, Any]:
    """Of an operator that goes over its input like that; none where it takes every place by itself."""
    if {*geometry.kernel, *geometry.strides} == {1} and not any(geometry.pads):
        return {}
    found: dict[str, Any] = {"strides": list(geometry.strides), "dilations": list(geometry.dilations)}
    found |= {"group": geometry.groups} if geometry.groups > 1 else {}
    if geometry.auto_pad == "NOTSET":
        return {**found, "pads": list(geometry.pads)}
    return {**found, "auto_pad": geometry.auto_pad}


def _kernel_of(matrix: Array, layer: Layer) -> Array:
    """A matrix (out, in · places) as a kernel (out, in, *sizes)."""
    return matrix.reshape(len(matrix), -1, *geometry_of(layer).kernel)


def _conv(
    builder: Builder, x: ir.Value, weight: ir.Value, site: Site, bias: Array | None, attributes: Mapping[str, Any]
) -> ir.Value:
    inputs = [x, weight] if bias is None else [x, weight, site.put(builder, bias, "bias")]
    return builder.op("Conv", inputs, attributes)
