"""A model under compression: the schedule moves with every optimizer step and ends in small plain layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import UsageError
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.training.compressors import Method
from edgepack.training.schedule import Schedule
from edgepack.training.selection import Chosen, place

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from edgepack.training.inputs import InputSums
    from edgepack.training.modules import CompressedLinear

STATE_VERSION = 1


class Compression:
    """A model under compression; made by `apply_compression`.

    Attributes:
        schedule: when what happens.
        skipped: linear layers that are left as they are, by name, and why.
    """

    def __init__(
        self,
        model: Module,
        schedule: Schedule,
        method: Method,
        selected: tuple[Chosen, ...],
        skipped: Mapping[str, str],
        optimizer: Optimizer | None,
    ) -> None:
        from edgepack.training.modules import CompressedLinear

        self.schedule, self.skipped = schedule, dict(skipped)
        self._model, self._method = model, method
        # Neither keeps a dense weight alive: the layers give theirs up at α = 0, and this dict is emptied then.
        self._layers: dict[str, CompressedLinear] = {}
        self._weights: dict[str, Tensor] = {}
        self._places = {item.name: item.places for item in selected}
        self._sizes = {item.name: item.rank for item in selected}
        self._left: dict[str, str] = {}
        self._optimizers: list[Optimizer] = []
        self._sums: dict[str, InputSums] = {}
        self._hooks: list[RemovableHandle] = []
        self._steps = 0
        self._finished = False
        if optimizer is not None:
            self.attach(optimizer)
        for item in selected:
            layer = CompressedLinear(item.layer, item.rank if isinstance(item.rank, int) else None)
            place(layer, item.places)
            self._layers[item.name], self._weights[item.name] = layer, item.layer.weight
        self._watch_if_due()
        if schedule.begin_step == 0:
            self._move_to(0)

    @property
    def steps(self) -> int:
        """Optimizer steps counted so far."""
        return self._steps

    @property
    def alpha(self) -> float:
        """Share of the dense weights in what the layers compute."""
        return self.schedule.alpha(self._steps)

    @property
    def ranks(self) -> dict[str, int | float]:
        """Rank by layer name; the share where the compressor works by share."""
        return {name: self._sizes[name] for name in self._layers}

    def attach(self, optimizer: Optimizer) -> None:
        """Let an optimizer take part: factors will join the groups that hold their dense weights, which will leave.

        Raises:
            UsageError: it is no torch optimizer, or of a kind that takes no new parameters.
        """
        from edgepack.training.optimizers import check_optimizer

        check_optimizer(optimizer)
        if not any(known is optimizer for known in self._optimizers):
            self._optimizers.append(optimizer)
        self._update_optimizers()

    def step(self) -> None:
        """Count one optimizer step and do what is due; call it after every `optimizer.step()`.

        Raises:
            UsageError: no attached optimizer holds a weight or factor that is to be trained; after `finish`; a
                compressor's result does not fit. Nothing has changed then.
            DataError: a compressor that looks at inputs saw none, or NaN.
        """
        if self._finished:
            raise UsageError("step() after finish()", hint="stop calling step() once the model is finished")
        self._check_held()
        self._move_to(self._steps + 1)

    def finish(self) -> Module:
        """Put a plain pair of linear layers or a `ConstexprLinear` for every compressed layer; returns the model.

        They hold the trained parameters themselves, so an optimizer can go on.

        Raises:
            UsageError: α is not 0 yet.
        """
        from edgepack.training.modules import finished

        if self._finished:
            return self._model
        if self.alpha > 0:
            raise UsageError(
                f"finish() at step {self._steps}, where alpha is {self.alpha:.3g}: it is 0 from step "
                f"{self.schedule.end_step} on",
                hint="train on, or begin earlier, or take a larger alpha_decrement or a smaller frequency",
            )
        for name, places in self._places.items():
            place(finished(self._layers[name]), places)
        self._layers, self._places, self._finished = {}, {}, True
        return self._model

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, in plain values and tensors; weights and factors are in the model's own state."""
        from edgepack.training.inputs import sums_state

        state = {**self._identity(), "steps": self._steps, "inputs": {n: sums_state(s) for n, s in self._sums.items()}}
        if self._method.by_share:
            state |= {"parts": {n: layer.structure for n, layer in self._layers.items()}, "left": dict(self._left)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: training resumes to the bit.

        Load the model's state as well, before or after; load the state of optimizers after this.

        Raises:
            UsageError: the state is of other layers, ranks or settings, or of an earlier stage than this object's.
        """
        from edgepack.training.inputs import load_sums

        for key, own in self._identity().items():
            if state.get(key) != own:
                raise UsageError(f"saved state: {key} is {state.get(key)!r}, {own!r} was expected")
        steps = int(state["steps"])
        alpha = self.schedule.alpha(steps)
        factored = steps >= self.schedule.begin_step
        if self._steps >= self.schedule.begin_step and steps < self._steps:
            raise UsageError(
                f"saved state of step {steps}, this training is at step {self._steps}",
                hint="apply the compression to a fresh model, then load",
            )
        for name, why in state.get("left", {}).items():
            if name in self._layers:
                self._leave(name, why)
        self._steps = steps
        self._watch_if_due()
        for name, sums in self._sums.items():
            load_sums(sums, state["inputs"][name], name)
        for name, layer in self._layers.items():
            layer.restore(factors=factored, dense=alpha > 0, structure=state.get("parts", {}).get(name))
            layer.alpha = alpha
        self._update_optimizers()

    def _identity(self) -> dict[str, Any]:
        schedule = self.schedule
        settings = [schedule.begin_step, schedule.frequency, schedule.alpha_decrement]
        sizes = dict(self._sizes)
        return {"version": STATE_VERSION, "schedule": settings, "compressor": self._method.name, "ranks": sizes}

    def _move_to(self, steps: int) -> None:
        """Set the layers to what holds after so many steps, the next one or the first."""
        if steps == self.schedule.begin_step:
            self._begin()
        alpha = self.schedule.alpha(steps)
        self._steps = steps
        self._watch_if_due()
        for layer in self._layers.values():
            layer.alpha = alpha
            if alpha == 0.0:
                layer.drop_dense()
        if alpha == 0.0 or steps == self.schedule.begin_step:
            self._update_optimizers()
        if alpha == 0.0:
            self._weights.clear()

    def _begin(self) -> None:
        _refuse_several_processes()
        parts = {name: self._part(name, layer) for name, layer in self._layers.items()}
        left = {name: part for name, part in parts.items() if isinstance(part, str)}
        if len(left) == len(parts):
            raise UsageError("no layer can be compressed: " + "; ".join(f"{name}: {why}" for name, why in left.items()))
        for name, why in left.items():
            self._leave(name, why)
        for name, part in parts.items():
            if not isinstance(part, str):
                self._layers[name].begin(part, self._method.frozen)

    def _leave(self, name: str, why: str) -> None:
        """Put a layer that has not begun back as it was."""
        from edgepack.training.modules import dense_again

        place(dense_again(self._layers.pop(name)), self._places.pop(name))
        del self._weights[name]
        self._left[name] = self.skipped[name] = why

    def _part(self, name: str, layer: CompressedLinear) -> Replacement | str:
        weight = layer.dense.detach().float().cpu().numpy()
        bias = None if layer.own_bias is None else layer.own_bias.detach().float().cpu().numpy()
        if not np.isfinite(weight).all():
            raise UsageError(f"{name}: its weight holds NaN or infinity at step {self._steps}, no factors can be made")
        moments = self._sums[name].moments(name) if name in self._sums else None
        return self._method.factors(View(name, weight, bias, moments), self._sizes[name])

    def _watch_if_due(self) -> None:
        """Begin, or end, to count layer inputs in."""
        from edgepack.training.inputs import WINDOW, empty_sums, watch

        begin = self.schedule.begin_step
        due = self._method.needs_moments and begin - WINDOW <= self._steps < begin
        if due and not self._hooks:
            self._sums = {name: empty_sums(layer) for name, layer in self._layers.items()}
            self._hooks = [watch(layer, self._sums[name]) for name, layer in self._layers.items()]
        elif not due:
            for hook in self._hooks:
                hook.remove()
            self._hooks, self._sums = [], {}

    def _check_held(self) -> None:
        from edgepack.training.optimizers import unheld

        lost = unheld(self._optimizers, self._layers)
        if lost:
            raise UsageError(
                f"no attached optimizer has {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}: not trained",
                hint="call compression.attach(optimizer), or set requires_grad to False before apply_compression",
            )

    def _update_optimizers(self) -> None:
        from edgepack.training.optimizers import add_factors, remove

        for name, weight in self._weights.items():
            layer = self._layers[name]
            for optimizer in self._optimizers:
                add_factors(optimizer, layer, weight)
                if layer.dense is None:
                    remove(optimizer, weight)


def _refuse_several_processes() -> None:
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UsageError(
            f"{distributed.get_world_size()} processes train together: factors that appear during the training would "
            "not be kept equal between them",
            hint="compress in one process",
        )
