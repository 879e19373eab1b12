"""Convolutions whose kernels have more than one place, or that skip or pad what they take: y = W x + b for every patch
x of the input.

Low-rank factors in their place are a convolution of the same kernel to r channels, and a 1×1 convolution behind it
(channel SVD). Other structures take a kernel apart: see `edgepack.model.kinds.stages`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from edgepack.model.kinds.kind import RankGrid, Rows
from edgepack.model.kinds.matrix import OneMatrix
from edgepack.model.kinds.stages import INPUT_SVD, SPATIAL_SVD, TUCKER_2, Stage, composed, kernels, stage_ops, stages
from edgepack.model.layer import WEIGHT, Array, Geometry, Layer
from edgepack.model.replacement import Replacement
from edgepack.model.structure import Op, Structure

NAME = "conv"

MOST_PATCHES = 256
"""Of one image: neighbours overlap, so that more of them tell little more about their covariance."""


@dataclass(frozen=True)
class ConvGeometry(Geometry):
    """How a convolution goes over its input; tuples have an entry per spatial axis.

    Attributes:
        kernel: its sizes.
        strides: steps between patches.
        dilations: steps between the places of a patch.
        pads: zeros around the input: those before each axis, then those behind each, as ONNX has them.
        auto_pad: "NOTSET" for `pads`; "SAME_UPPER" and "SAME_LOWER" for as many as give ⌈size / stride⌉ patches, the
            odd one behind or before; "VALID" for none.
        groups: into which its channels are divided; of a layer one, of a stage also as many as there are channels.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1


@dataclass(frozen=True)
class Patches:
    """What a convolution multiplies at every place that it gives, as `Rows`: channels by places of the kernel."""

    geometry: ConvGeometry

    def __call__(self, activations: Array) -> Array:
        """See `Rows`: up to `MOST_PATCHES` of each image, spread evenly over it."""
        geometry, spatial = self.geometry, len(self.geometry.kernel)
        images = activations.reshape(-1, *activations.shape[-spatial - 1 :])
        pads, sizes = self._pads(images.shape[1:-1]), self._sizes(images.shape[1:-1])
        count = prod(sizes)
        features = images.shape[-1] * prod(geometry.kernel)
        if not count or not len(images):
            return np.zeros((0, features), activations.dtype)
        padded = np.pad(images, [(0, 0), *pads, (0, 0)])
        axes = tuple(range(1, spatial + 1))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self._extents, axes)
        chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_PATCHES)).astype(np.int64))
        along = zip(np.unravel_index(chosen, sizes), geometry.strides, strict=True)
        where: tuple[Any, ...] = (slice(None), *(indices * step for indices, step in along), ...)
        places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in geometry.dilations))
        patches: Array = windows[places][where]
        return patches.reshape(-1, features)

    def count(self, activations: Array) -> int:
        """See `Rows`."""
        spatial = len(self.geometry.kernel)
        return prod(activations.shape[: -spatial - 1]) * prod(self._sizes(activations.shape[-spatial - 1 : -1]))

    @property
    def _extents(self) -> tuple[int, ...]:
        """What a kernel spans along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.geometry.kernel, self.geometry.dilations, strict=True))

    def _pads(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Zeros before and behind each axis of an input of these sizes."""
        geometry, spatial = self.geometry, len(sizes)
        if geometry.auto_pad == "NOTSET":
            return list(zip(geometry.pads[:spatial], geometry.pads[spatial:], strict=True))
        if geometry.auto_pad == "VALID":
            return [(0, 0)] * spatial
        found = []
        for size, extent, step in zip(sizes, self._extents, geometry.strides, strict=True):
            total = max((-(-size // step) - 1) * step + extent - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if geometry.auto_pad == "SAME_UPPER" else (more, less))
        return found

    def _sizes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """How many patches there are along each axis of an input of these sizes."""
        axes = zip(sizes, self._pads(sizes), self._extents, self.geometry.strides, strict=True)
        return tuple(max((size + sum(pads) - extent) // step + 1, 0) for size, pads, extent, step in axes)


def conv_layer(name: str, kernel: Array, bias: Array | None, geometry: ConvGeometry, uses: int = 1) -> Layer:
    """A layer of this kind.

    Args:
        name: see `Layer`.
        kernel: (out, in, *sizes) float32, or the same as a matrix (out, in · places).
        bias: (out,) float32 or None.
        geometry: see there.
        uses: how many nodes share the weight.
    """
    return Layer(name, NAME, {WEIGHT: kernel.reshape(len(kernel), -1)}, bias, geometry, uses)


def geometry_of(layer: Layer) -> ConvGeometry:
    """The geometry of a layer of this kind.

    Raises:
        ValueError: it is of another kind.
    """
    match layer.geometry:
        case ConvGeometry() as geometry:
            return geometry
    raise ValueError(f"{layer.name}: found a {layer.kind} layer, expected a convolution")


def channels_of(layer: Layer) -> int:
    """That it takes.

    Raises:
        ValueError: it is no convolution.
    """
    return layer.in_features // prod(geometry_of(layer).kernel)


def kernels_of(layer: Layer, part: Replacement) -> tuple[tuple[Stage, Array], ...]:
    """The convolutions that a replacement puts in a layer's place, in their order, each with its kernel.

    Raises:
        ValueError: it is no convolution, has no such structure, or its tensors do not fit.
    """
    return kernels(part, layer.out_features, channels_of(layer), geometry_of(layer))


class Conv(OneMatrix):
    """See `LayerKind`. The matrix is (out, in · places of the kernel), channel by channel."""

    def rows(self, layer: Layer, view: str) -> Rows:
        """Patches of the input."""
        return Patches(geometry_of(layer))

    def structures(self, layer: Layer, grid: RankGrid) -> Iterator[Structure]:
        """Dense, channel SVD, and what takes the kernel apart."""
        yield from super().structures(layer, grid)
        first, *others = geometry_of(layer).kernel
        places = first * prod(others)
        outputs, channels = layer.out_features, layer.in_features // places
        if places == 1:
            return
        if first > 1 and prod(others) > 1:
            ranks = grid.stage(outputs * prod(others), channels * first)
            yield from (Structure(SPATIAL_SVD, (rank,)) for rank in ranks)
        yield from (Structure(INPUT_SVD, (rank,)) for rank in grid.stage(outputs * places, channels))
        for ranks in grid.tucker(outputs, channels, places):
            structure = Structure(TUCKER_2, ranks)
            if max(ranks) > places * min(ranks):
                continue  # one side can have no more directions than the kernel makes of the other
            if sum(op.weights for op in self.ops(layer, structure, 1)) < layer.weight.size:
                yield structure

    def ops(self, layer: Layer, structure: Structure, vectors: int) -> tuple[Op, ...]:
        """Those of the matrix, of which what takes the layer's input has its kernel; or those of each stage."""
        if not structure.of_a_matrix:
            found = stages(structure, layer.out_features, channels_of(layer), geometry_of(layer))
            return stage_ops(found, vectors)
        kernel, channels = geometry_of(layer).kernel, channels_of(layer)
        return tuple(
            op if op.role == "A" else replace(op, kind="conv", columns=channels, kernel=kernel)
            for op in super().ops(layer, structure, vectors)
        )

    def effective(self, layer: Layer, replacement: Replacement) -> Mapping[str, Array]:
        """That of the matrix, or what the stages multiply up to."""
        if replacement.structure.of_a_matrix:
            return super().effective(layer, replacement)
        return {WEIGHT: composed(replacement)}
