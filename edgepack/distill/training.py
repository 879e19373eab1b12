"""One optimizer step and one look at the held-out samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.distill.graphs import thin_index
from edgepack.distill.loss import LAYER_WEIGHT, TaskLoss, class_loss, feature_loss, layer_loss
from edgepack.distill.runs import COMPARED, Call, choose_call
from edgepack.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule
    from torch.nn import Parameter
    from torch.optim import AdamW

    from edgepack.distill.samples import Data
    from edgepack.distill.student import Stage, Student

RELATIVE_RATE = 0.006
"""Peak learning rate as a share of a parameter's root mean square: factors of one model differ by decades, and their
basis is free."""

WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Trainer:
    """What steps need, beside the samples.

    Attributes:
        call: runs a graph on several runs' inputs.
        task_loss: of the first output, (runs × batch, …) float32.
        answers: the teacher's first output for each held-out batch.
        parameters: what is trained.
        optimizer: one group per parameter, whose `peak` is its peak learning rate.
    """

    call: Call
    task_loss: TaskLoss
    answers: Sequence[Tensor]
    parameters: Sequence[Parameter]
    optimizer: AdamW

    def step(self, stage: Stage, inputs: Sequence[Tensor], *, rate: float) -> float:
        """Train on one batch and return its loss; a batch whose gradients are not finite changes nothing."""
        import torch

        loss = self.gradients(stage, inputs)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        if bool(torch.isfinite(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            self.optimizer.step()
        return loss

    def gradients(self, stage: Stage, inputs: Sequence[Tensor]) -> float:
        """Set the parameters' gradients and return the loss of a batch."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad(), torch_errors():
            with torch.no_grad():
                wanted = self.call(stage.teacher, inputs)
            found = self.call(stage.student, inputs)
            loss = self.task_loss(rows(found[0]), rows(wanted[0])) + LAYER_WEIGHT * layer_loss(found[1:], wanted[1:])
            loss.backward()
        return float(loss.detach())

    def held_out(self, graph: GraphModule, data: Data) -> float:
        """Mean loss of the first output over the held-out samples."""
        import torch

        total = 0.0
        with torch.no_grad(), torch_errors():
            for inputs, wanted in zip(data.held_out_batches(), self.answers, strict=True):
                total += float(self.task_loss(rows(self.call(graph, inputs)[0]), rows(wanted))) * len(wanted)
        return total / len(data.held_out)


def make_trainer(student: Student, data: Data, *, classes: bool) -> Trainer:
    """A trainer for these samples.

    Raises:
        ModelError: the program cannot be run on them.
    """
    import torch

    last = student.stages[-1]
    with torch.no_grad(), torch_errors():
        call = choose_call((last.teacher, last.student), data.take(data.training[:COMPARED]))
        answers = [call(last.teacher, inputs)[0] for inputs in data.held_out_batches()]
    reference = rows(torch.cat(answers))
    task_loss = class_loss(reference) if classes else feature_loss(reference)
    parameters = student.parameters
    return Trainer(call, task_loss, answers, list(parameters.values()), make_optimizer(parameters))


@contextmanager
def torch_errors() -> Iterator[None]:
    """Turn what torch raises for shapes and missing derivatives into a ModelError."""
    try:
        yield
    except (RuntimeError, TypeError, IndexError) as err:
        line = next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
        raise ModelError(
            f"the model cannot be trained: {line}",
            hint="an operator may have no derivative, or work in place; build without --distill",
        ) from err


def rows(output: Tensor) -> Tensor:
    """(runs, batch, …) → (runs × batch, …) float32; outputs without a batch axis keep their runs."""
    return (output.flatten(0, 1) if output.dim() > 2 else output).float()


def make_optimizer(parameters: Mapping[str, Parameter]) -> AdamW:
    """AdamW with a learning rate for every parameter in proportion to its size, and no decay of vectors."""
    import torch

    groups = []
    for name, parameter in parameters.items():
        decay = 0.0 if name.endswith("_bias") or thin_index(name) is None else WEIGHT_DECAY
        peak = RELATIVE_RATE * _size(name, parameters)
        groups.append({"params": [parameter], "lr": 0.0, "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def _size(name: str, parameters: Mapping[str, Parameter]) -> float:
    """Root mean square of a parameter; a bias, which may be zero, is as large as the matrix whose output it joins."""
    values = [parameters[name]]
    if thin_index(name) is not None and name.endswith("_bias"):
        values.append(parameters[f"{name.removesuffix('_bias')}_A"])
    return max(float(value.detach().square().mean().sqrt()) for value in values) or RELATIVE_RATE


@contextmanager
def reproducible(threads: int | None, seed: int) -> Iterator[None]:
    """A seed for programs that draw, deterministic algorithms where torch has them, and so many threads.

    Afterwards all is as before.
    """
    import warnings

    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=warn_only)
