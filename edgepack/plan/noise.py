"""The integer grids of every form, and the noise of rounding onto them: independent uniform errors of step²/12."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgepack.formats import WEIGHT_BITS
from edgepack.quantize.blocks import block_for, zero_point
from edgepack.quantize.gauge import ACTIVATION_STEPS
from edgepack.quantize.grid import WEIGHT_MAX
from edgepack.quantize.lattice import INT4_MAX
from edgepack.types import Array

Activations = Literal["static", "dynamic"]


@dataclass(frozen=True)
class Grid:
    """The integer grids of a form.

    Attributes:
        largest: largest weight code.
        blocks: whether runs of weights share a scale, instead of all weights of an output channel.
        activations: how inputs are quantized: on a range known beforehand, or on one found at run time.
    """

    largest: int
    blocks: bool
    activations: Activations


GRIDS: Mapping[str, Grid] = {
    "int8-dynamic": Grid(WEIGHT_MAX, False, "dynamic"),
    "int8-static-qdq": Grid(WEIGHT_MAX, False, "static"),
    "nbits8": Grid(zero_point(8), True, "dynamic"),
    "nbits4": Grid(zero_point(4), True, "dynamic"),
    "int8-dynamic-range": Grid(WEIGHT_MAX, False, "dynamic"),
    "int8-static": Grid(WEIGHT_MAX, False, "static"),
    "int4-dynamic-range": Grid(INT4_MAX, False, "dynamic"),
}
"""Integer forms; the forms that are not here are exact. nbits quantizes inputs per block at run time: no worse than
per row. Of its two grids for weights the better one rounds like one with the code 8, or 128, on both sides: measured
8.1 on normal and on Laplace weights in blocks of 32, 134 … 135 with 8 bits."""


def grid_of_form(form: str, largest: int) -> Grid:
    """The grid of an integer form where the largest code of per-channel int8 is this one."""
    grid = GRIDS[form]
    of_target = WEIGHT_BITS[form] == 8 and not grid.blocks
    return replace(grid, largest=largest) if of_target else grid


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
    uniform = np.square(peaks / grid.largest) / 12 * np.add.reduceat(power, starts)
    whole = np.add.reduceat(np.square(weight) * power.astype(np.float32), starts, axis=1)
    return np.asarray(np.minimum(uniform, whole).sum(axis=1))
