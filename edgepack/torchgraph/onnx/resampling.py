"""Operators that read an image between its pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import Node, Operator, bounded, listed, operator

_POLICIES = ("stretch", "not_larger", "not_smaller")
_COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
    *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
)
_ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class _Axis:
    """One axis of an image that is made larger or smaller.

    Attributes:
        before, after: its sizes.
        scale: what coordinates are divided by; sizes are rounded.
        start, end: of the part that is taken, as shares (tf_crop_and_resize).
    """

    before: int
    after: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    def coordinates(self, mode: str) -> Array:
        """Where in the input each place of the output is (float64)."""
        places = np.arange(self.after, dtype=np.float64)
        exact = self.scale * self.before
        match mode:
            case "align_corners":
                return places * ((self.before - 1) / (exact - 1)) if exact != 1 else places * 0
            case "asymmetric":
                return places / self.scale
            case "tf_half_pixel_for_nn":
                return (places + 0.5) / self.scale
            case "tf_crop_and_resize":
                last = self.before - 1
                if self.after == 1:
                    return places + 0.5 * (self.start + self.end) * last
                return self.start * last + places * (self.end - self.start) * last / (self.after - 1)
            case "pytorch_half_pixel" if self.after == 1:
                return places * 0 - 0.5 if exact == 1 and self.scale == 1 else places * 0
        shift = self.before / 2 * (1 - self.after / exact) if mode == "half_pixel_symmetric" else 0.0
        half: Array = (places + 0.5) / self.scale - 0.5 + shift
        return half


def _linear(a: float, stretch: float, distance: Array) -> Array:
    return np.maximum(0.0, 1 - stretch * np.abs(distance))


def _cubic(a: float, stretch: float, distance: Array) -> Array:
    d = stretch * np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _resize(
    node: Node, x: Tensor, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> Tensor:
    if node.version < 11:
        roi, scales = None, roi
    mode = node.text("mode", "nearest", ("nearest", "linear", "cubic", "bilinear", "bicubic"))
    default = "asymmetric" if node.version < 11 else "half_pixel"
    how = node.text("coordinate_transformation_mode", default, _COORDINATES)
    rounding = node.text("nearest_mode", "floor" if node.version < 11 else "round_prefer_floor", _ROUNDINGS)
    cubic, outside = node.number("cubic_coeff_a", -0.75), node.number("extrapolation_value", 0.0)
    excluded, smooth = node.flag("exclude_outside"), node.flag("antialias")
    axes = [axis % x.dim() for axis in node.integers("axes", range(x.dim()))]
    wanted = _wanted(node, x, axes, roi, scales, sizes)
    bounded(node, [wanted[at].after if at in wanted else size for at, size in enumerate(x.shape)])
    moved = {at: axis for at, axis in wanted.items() if axis.after != axis.before or how == "tf_crop_and_resize"}
    if mode == "nearest":
        return _nearest(x, {at: _nearest_places(axis, how, _ROUNDINGS[rounding]) for at, axis in moved.items()})
    if mode.endswith("linear") and not smooth and (fast := _bilinear(x, moved, how)) is not None:
        return fast
    kernel, reach = (_linear, 1.0) if mode.endswith("linear") else (_cubic, 2.0)
    outer = np.zeros([1] * x.dim(), np.bool_)
    for at, axis in moved.items():
        coordinates = axis.coordinates(how)
        stretch = min(axis.scale, 1.0) if smooth else 1.0
        weights = _weights(axis, coordinates, partial(kernel, cubic, stretch), reach / stretch, excluded)
        x = torch.movedim(torch.matmul(torch.movedim(x, at, -1), torch.from_numpy(weights.T).to(x.dtype)), -1, at)
        lost = (coordinates < 0) | (coordinates > axis.before - 1)
        outer = outer | lost.reshape([-1 if each == at else 1 for each in range(x.dim())])
    if how == "tf_crop_and_resize" and outer.any():
        return torch.where(torch.from_numpy(outer), torch.full_like(x, outside), x)
    return x


def _wanted(
    node: Node, x: Tensor, axes: list[int], roi: Array | None, scales: Array | None, sizes: Array | None
) -> dict[int, _Axis]:
    """By axis, in order."""
    before = [x.shape[axis] for axis in axes]
    parts = [float(each) for each in roi.reshape(-1)] if roi is not None and roi.size else []
    starts, ends = parts[: len(axes)] or [0.0] * len(axes), parts[len(axes) :] or [1.0] * len(axes)
    policy = node.text("keep_aspect_ratio_policy", "stretch", _POLICIES)
    given = node.numbers("scales") if node.has("scales") else scales if scales is None else list(map(float, scales))
    if sizes is not None and sizes.size:
        after = listed(sizes)
        factors = [new / old for new, old in zip(after, before, strict=True)]
        if policy != "stretch":
            factor = (min if policy == "not_larger" else max)(factors)
            factors, after = [factor] * len(axes), [math.floor(factor * old + 0.5) for old in before]
    elif given:
        factors, after = given, [math.floor(factor * old) for factor, old in zip(given, before, strict=True)]
    else:
        raise node.error("has neither scales nor sizes")
    if any(not factor > 0 for factor in factors):
        raise node.error(f"has scales {factors}, positive ones were expected")
    each = zip(before, after, factors, starts, ends, strict=True)
    return {at: _Axis(*sides) for at, sides in sorted(zip(axes, each, strict=True))}


def _nearest_places(axis: _Axis, how: str, rounding: Callable[[Array], Array]) -> Array:
    places: Array = np.clip(rounding(axis.coordinates(how)), 0, axis.before - 1).astype(np.int64)
    return places


def _nearest(x: Tensor, places: Mapping[int, Array]) -> Tensor:
    sizes = {at: len(each) for at, each in places.items()}
    usual = all(np.array_equal(p, np.arange(len(p)) * x.shape[at] // len(p)) for at, p in places.items())
    if x.dim() == 4 and x.is_floating_point() and sizes and set(sizes) <= {2, 3} and usual:
        return functional.interpolate(x, [sizes.get(2, x.shape[2]), sizes.get(3, x.shape[3])], mode="nearest")
    for at, each in places.items():
        x = x.index_select(at, torch.from_numpy(each))
    return x


def _bilinear(x: Tensor, moved: Mapping[int, _Axis], how: str) -> Tensor | None:
    """By torch's own operator, where it has the same coordinates."""
    if x.dim() != 4 or x.dtype != torch.float32 or not moved or not set(moved) <= {2, 3}:
        return None
    exact = all(abs(axis.scale * axis.before - axis.after) < 1e-4 for axis in moved.values())
    if how not in ("half_pixel", "pytorch_half_pixel", "align_corners") or not exact:
        return None
    if any(axis.after == 1 for axis in moved.values()):
        return None
    size = [moved[at].after if at in moved else x.shape[at] for at in (2, 3)]
    return functional.interpolate(x, size, mode="bilinear", align_corners=how == "align_corners")


def _weights(axis: _Axis, coordinates: Array, kernel: Callable[[Array], Array], reach: float, excluded: bool) -> Array:
    """(after, before): what each place of the output is made of; outside stands what is at the edge, or nothing."""
    taps = np.arange(math.floor(-reach), math.ceil(reach) + 1)
    places = np.floor(coordinates)[:, None] + taps
    shares = kernel(places - coordinates[:, None])
    if excluded:
        shares = np.where((places < 0) | (places > axis.before - 1), 0.0, shares)
    shares = shares / shares.sum(1, keepdims=True)
    weights = np.zeros((axis.after, axis.before))
    rows = np.broadcast_to(np.arange(axis.after)[:, None], places.shape)
    np.add.at(weights, (rows, np.clip(places, 0, axis.before - 1).astype(np.int64)), shares)
    return weights


def _upsample(node: Node, x: Tensor, scales: Array | None = None) -> Tensor:
    return _resize(node, x, scales)


_SAMPLED = {"linear": "bilinear", "cubic": "bicubic"} | {name: name for name in ("bilinear", "bicubic", "nearest")}


def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = _SAMPLED[node.text("mode", "linear", _SAMPLED)]
    padding = node.text("padding_mode", "zeros", ("zeros", "border", "reflection"))
    return functional.grid_sample(x, grid, mode, padding, node.flag("align_corners"))


def _affine_grid(node: Node, theta: Tensor, size: Array) -> Tensor:
    return functional.affine_grid(theta, listed(size), node.flag("align_corners"))


RESAMPLING: Mapping[str, Operator] = {
    "AffineGrid": operator(_affine_grid, 1),
    "GridSample": operator(_grid_sample),
    "Resize": operator(_resize, 1, 2, 3),
    "Upsample": operator(_upsample, 1),
}
