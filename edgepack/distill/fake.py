"""Straight-through fake quantization: rounded values forward, the identity backward (Bengio et al., 2013).

The grids are those of `edgepack.quantize.grids`: what is trained here is what the file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.quantize.grids import WEIGHT_MAX, ZERO_WEIGHT, WeightGrid, grid_of, zero_point

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATION_STEPS = 255


@dataclass(frozen=True)
class Rounding:
    """How a file rounds a thin layer.

    Attributes:
        weights: grids of its factors, by their roles; those without one are floats.
        activations: whether what flows into each factor is rounded as well.
    """

    weights: Mapping[str, WeightGrid]
    activations: bool


def rounding_of(scheme: Scheme, part: Replacement, *, qmax: int = WEIGHT_MAX) -> Rounding:
    """What a scheme makes of the factors in the place of a layer; `qmax` is that of `grid_of`."""
    grids = {role: grid_of(scheme, part.tensors[role].shape[1], qmax=qmax) for role in sorted(part.tensors)}
    weights = {role: grid for role, grid in grids.items() if grid is not None}
    return Rounding(weights, not scheme.computes_in_float)


def fake_weight(weight: Tensor, qmax: int = WEIGHT_MAX, block: int | None = None) -> Tensor:
    """A weight (out, …) to nearest on the grid of each output channel or block; gradients pass unchanged.

    Args:
        weight: to round.
        largest, block: see `WeightGrid`.
    """
    import torch

    values = weight.detach()
    if block is not None:
        rounded = _in_blocks(values.flatten(1), WeightGrid(qmax, block).bits, block)
        return _straight_through(weight, rounded.view_as(values))
    peak = values.abs().amax(dim=tuple(range(1, values.dim())), keepdim=True)
    scale = torch.where(peak > 0, (peak / qmax).clamp_min(torch.finfo(values.dtype).tiny), 1.0)
    rounded = torch.round(values / scale).clamp(-qmax, qmax) * scale
    return _straight_through(weight, rounded)


def fake_activation(x: Tensor, runs: int = 1) -> Tensor:
    """A tensor on 256 steps between its own extremes, with an exact zero; gradients pass unchanged.

    Every run has its own grid, as on a device that sees one run at a time: under `torch.func.vmap`, and where `runs`
    equal parts of the first axis are of one run each.
    """
    import torch

    values = x.detach().reshape(runs, -1)
    low, high = (end[:, None] for end in (values.amin(1).clamp_max(0.0), values.amax(1).clamp_min(0.0)))
    spread = high - low
    scale = torch.where(spread > 0, (spread / ACTIVATION_STEPS).clamp_min(torch.finfo(values.dtype).tiny), 1.0)
    zero = torch.round(-128 - low / scale).clamp(-128, 127)
    codes = (torch.round(values / scale) + zero).clamp(-128, 127)
    return _straight_through(x, ((codes - zero) * scale).view(x.shape))


def _in_blocks(values: Tensor, bits: int, block: int) -> Tensor:
    """Values (out, in) as `quantize_blocks` rounds them: each block on the better one of two grids."""
    import torch

    top = zero_point(bits)
    blocks = torch.nn.functional.pad(values, (0, -values.shape[1] % block)).reshape(len(values), -1, block)
    peak = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    shares = blocks / torch.where(peak.abs() > ZERO_WEIGHT, peak, float("inf"))  # blocks of zeros stay zeros
    even = torch.round(shares * (top - 1))
    finer = torch.round(shares * -top).clamp_(-top, top - 1)
    is_finer = _error(finer / -top, shares) < _error(even / (top - 1), shares)
    steps = peak / torch.where(is_finer, -top, top - 1)
    return (torch.where(is_finer, finer, even) * steps).flatten(1)[:, : values.shape[1]]


def _error(rounded: Tensor, shares: Tensor) -> Tensor:
    return (rounded - shares).square_().sum(-1, keepdim=True)


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    # x − x.detach() is exactly 0, so that the value is `rounded` to the last bit.
    return rounded + (x - x.detach())
