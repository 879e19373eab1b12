"""The samples of a distillation: some to train on, in seeded order, and some held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from edgepack.distill.runs import as_runs
from edgepack.errors import DataError
from edgepack.model.types import Array
from edgepack.workspace import digest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

    from edgepack.distill.student import Student

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 256


@dataclass(frozen=True, eq=False)
class Data:
    """Runs of a program.

    Attributes:
        inputs: (runs, *input's shape) each.
        training: indices of the runs to train on.
        held_out: indices of those that are not.
        size: runs per step.
    """

    inputs: Sequence[Tensor]
    training: Array
    held_out: Array
    size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every run comes up once; the last one may be smaller."""
        return ceil(len(self.training) / self.size)

    def batch(self, step: int) -> list[Tensor]:
        """Inputs of a step: a function of the seed and the step alone."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, len(self.training))
        return self.take(self.training[order[place * self.size : (place + 1) * self.size]])

    def held_out_batches(self) -> list[list[Tensor]]:
        """Inputs of the held-out runs."""
        return [
            self.take(self.held_out[start : start + self.size]) for start in range(0, len(self.held_out), self.size)
        ]

    def take(self, indices: Array) -> list[Tensor]:
        """Inputs of these runs."""
        import torch

        return [values[torch.from_numpy(indices)] for values in self.inputs]

    def key(self, student: Student, settings: Sequence[object]) -> str:
        """Digest of all that decides what a run comes to."""
        dense = [value.detach().numpy() for _, value in sorted(student.stages[-1].teacher.named_parameters())]
        start = [part for name, value in sorted(student.start.items()) for part in (name, value)]
        return digest("distill", 2, list(settings), *start, *dense, *[values.numpy() for values in self.inputs])


def make_data(module: GraphModule, inputs: Mapping[str, Array], batch: int, seed: int) -> Data:
    """Divide calibration samples.

    Args:
        module: the program; its first output says how many samples a run has.
        batch: samples per step, at least one run.

    Raises:
        DataError: the arrays do not fit the program, or make fewer than two runs.
    """
    runs = as_runs(module, inputs)
    count = len(runs[0])
    if count < 2:
        raise DataError(
            f"the calibration samples make {count} run of the program, distillation takes at least 2",
            hint="give a few hundred samples or more",
        )
    output = next(node for node in module.graph.nodes if node.op == "output")
    shape = output.args[0][0].meta["val"].shape
    per_run = int(shape[0]) if len(shape) > 1 else 1
    held_out = min(max(1, round(HELD_OUT_SHARE * count)), max(1, MOST_HELD_OUT // per_run))
    order = np.random.default_rng([seed, count]).permutation(count)
    training = np.sort(order[held_out:])
    size = min(max(1, batch // per_run), len(training))
    return Data(runs, training, np.sort(order[:held_out]), size, seed)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Array:
    return np.random.default_rng([seed, count, epoch]).permutation(count)
