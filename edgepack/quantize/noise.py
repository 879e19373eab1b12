"""The integer grid of a scheme, and the noise of rounding onto them: independent uniform errors of step²/12."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.model.scheme import Activations, Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import block_for
from edgepack.quantize.rotation import ACTIVATION_STEPS


@dataclass(frozen=True)
class Grid:
    """The integer grids of a scheme.

    Attributes:
        qmax: largest weight code, the same on both sides of zero.
        blocks: whether runs of weights share a scale, instead of all weights of an output channel.
        activations: how inputs are quantized, if they are: on a range known beforehand, or on one found at run time.
    """

    qmax: int
    blocks: bool
    activations: Activations


def grid_of_scheme(scheme: Scheme, qmax: int) -> Grid | None:
    """The grid of a scheme on a target whose kernels allow this largest code; None for a scheme that is exact.

    Blocks quantize inputs at run time, per block: no worse than per row. Of their two grids for weights the better one
    rounds like one with the code 8, or 128, on both sides: measured 8.1 on normal and on Laplace weights in blocks of
    32, 134 … 135 with 8 bits.
    """
    if scheme.is_float or scheme.is_constexpr:
        return None
    if scheme.granularity == "block":
        return Grid(scheme.qmax + 1, True, scheme.activations)
    return Grid(scheme.qmax_within(qmax), False, scheme.activations)


def activation_noise(span: float, power: Array) -> Array:
    """Variance per element of an int8 grid over `span`. 0 is on every grid, so rounding never moves x by more than |x|:
    a feature that is always 0 stays exact.
    """
    return np.asarray(np.minimum((span / ACTIVATION_STEPS) ** 2 / 12, power))


def weight_noise(weight: Array, power: Array, grid: Grid) -> Array:
    """(rows,) Σ_j E[δ_ij²] power_j of the rounding errors δ of each row.

    At most what zeros instead of weights would lose: beside an outlier they are what most weights become.
    """
    columns = weight.shape[1]
    starts = np.arange(0, columns, block_for(columns) if grid.blocks else columns)
    peaks = np.maximum.reduceat(np.abs(weight), starts, axis=1).astype(np.float64)
    uniform = np.square(peaks / grid.qmax) / 12 * np.add.reduceat(power, starts)
    whole = np.add.reduceat(np.square(weight) * power.astype(np.float32), starts, axis=1)
    return np.asarray(np.minimum(uniform, whole).sum(axis=1))
