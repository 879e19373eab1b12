"""A torch module that walks a list of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx.traceback import annotate

from edgepack.torchgraph.onnx.node import Node
from edgepack.torchgraph.parity import ORIGIN


@dataclass(frozen=True)
class Slot:
    """An earlier value of a run, by its number."""

    number: int


@dataclass(frozen=True)
class Weight:
    """A tensor of the module, by its name there."""

    name: str


@dataclass(frozen=True)
class Step:
    """A node that is computed at every run.

    Attributes:
        run: the function of its operator.
        node: what the function is told of it.
        arguments: earlier values, weights, arrays, numbers, and None for what is not given.
        results: numbers of its values, in order; there may be more values than that.
        names: that the graph gives these values, in order.
        finished: numbers of values that nothing reads behind it.
    """

    run: Callable[..., Any]
    node: Node
    arguments: tuple[Any, ...]
    results: tuple[int, ...]
    names: tuple[str, ...]
    finished: tuple[int, ...] = ()


class OnnxModule(nn.Module):  # type: ignore[misc]
    """Walks its steps.

    Attributes:
        steps: in order.
        outputs: what it returns.
    """

    def __init__(self, steps: Sequence[Step], outputs: Sequence[Slot | Weight], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.steps, self.outputs = tuple(steps), tuple(outputs)
        for name, tensor in weights.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the graph, in its order."""
        return self.watched(inputs, None)

    def watched(
        self, inputs: Sequence[Tensor], watch: Callable[[Step, Sequence[Tensor]], None] | None
    ) -> tuple[Tensor, ...]:
        """As `forward`; `watch` is shown each step with its values."""
        values: dict[int, Tensor] = dict(enumerate(inputs))
        for step in self.steps:
            with annotate({ORIGIN: step.node.label.partition(": ")[2]}):
                results = several(step.run(step.node, *(self._value(each, values) for each in step.arguments)))
            values |= zip(step.results, results, strict=False)
            if watch is not None:
                watch(step, results[: len(step.results)])
            for number in step.finished:
                del values[number]
        return tuple(self._value(each, values) for each in self.outputs)

    def _value(self, argument: Any, values: Mapping[int, Tensor]) -> Any:
        match argument:
            case Slot(number=number):
                return values[number]
            case Weight(name=name):
                return getattr(self, name)
        return argument


def several(results: Any) -> list[Tensor]:
    """What an operator's function gives, as a list."""
    return [results] if isinstance(results, Tensor) else list(results)
