"""Straight-through fake quantization: rounded values forward, the identity backward (Bengio et al., 2013).

The grids are those of `edgepack.quantize.grids`: what is trained here is what the int8 file holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.quantize.grids import WEIGHT_MAX

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATION_STEPS = 255


def fake_weight(weight: Tensor, largest: int = WEIGHT_MAX) -> Tensor:
    """A weight (out, …) on the symmetric int8 grid of each output channel; gradients pass unchanged.

    Args:
        weight: to round.
        largest: largest code: 127, or 63 where the target's int8 dot products saturate.
    """
    import torch

    values = weight.detach()
    peak = values.abs().amax(dim=tuple(range(1, values.dim())), keepdim=True)
    scale = torch.where(peak > 0, (peak / largest).clamp_min(torch.finfo(values.dtype).tiny), 1.0)
    rounded = torch.round(values / scale).clamp(-largest, largest) * scale
    return _straight_through(weight, rounded)


def fake_activation(x: Tensor) -> Tensor:
    """A tensor on the 256 steps between its own extremes, with an exact zero; gradients pass unchanged.

    Under `torch.func.vmap` every run has its own grid, as on a device that sees one run at a time.
    """
    import torch

    values = x.detach()
    low, high = values.amin().clamp_max(0.0), values.amax().clamp_min(0.0)
    spread = high - low
    scale = torch.where(spread > 0, (spread / ACTIVATION_STEPS).clamp_min(torch.finfo(values.dtype).tiny), 1.0)
    zero = torch.round(-128 - low / scale).clamp(-128, 127)
    codes = (torch.round(values / scale) + zero).clamp(-128, 127)
    return _straight_through(x, (codes - zero) * scale)


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    # x − x.detach() is exactly 0, so that the value is `rounded` to the last bit.
    return rounded + (x - x.detach())
