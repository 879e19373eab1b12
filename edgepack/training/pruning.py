"""Pruning while a model trains: fewer and fewer weights by a cubic schedule, least salient first.

Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression" (2017), equation 1:
the share of zeros is s_f (1 − (1 − (t − t₀) / (t₁ − t₀))³). Saliency is the weight's magnitude, or the first-order
Taylor term (g w)² of the loss, summed over the batches since the last update (Molchanov, Mallya, Tyree, Frosio and
Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8). A weight that is out stays out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from edgepack.errors import UsageError
from edgepack.training.selection import Layers, choose

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module
    from torch.utils.hooks import RemovableHandle

Saliency = Literal["magnitude", "gradient"]


class Pruning:
    """A model whose linear layers are pruned; they stay plain `torch.nn.Linear` all along.

    Args:
        model: changed in place.
        final_share: of each layer's weights, those that stay, or by layer name.
        begin_step: optimizer steps before the first weights go.
        end_step: the step at which the final share is reached.
        frequency: steps between two updates.
        saliency: "magnitude", or "gradient" for (g w)².
        layers: names, or a predicate on name and module; None takes every linear layer that is fit.

    Attributes:
        skipped: linear layers that are left as they are, by name, and why.

    Raises:
        UsageError: arguments out of range; no layer to prune.
    """

    def __init__(
        self,
        model: Module,
        final_share: float | Mapping[str, float],
        begin_step: int,
        end_step: int,
        frequency: int = 10,
        saliency: Saliency = "magnitude",
        layers: Layers = None,
    ) -> None:
        import torch

        if not (0 <= begin_step < end_step and frequency >= 1):
            raise UsageError(
                f"begin_step={begin_step}, end_step={end_step}, frequency={frequency}: 0 ≤ begin < end was expected, "
                "and a frequency of at least 1"
            )
        if saliency not in ("magnitude", "gradient"):
            raise UsageError(f"saliency={saliency!r}: 'magnitude' or 'gradient' was expected")
        for share in final_share.values() if isinstance(final_share, Mapping) else (final_share,):
            if not isinstance(share, float) or not 0 < share < 1:
                raise UsageError(f"final_share={share!r}: a share of the weights between 0 and 1 was expected")
        chosen, self.skipped = choose(model, layers, final_share, by_share=True)
        self._model, self._saliency = model, saliency
        self._begin, self._end, self._frequency = begin_step, end_step, frequency
        self._layers: dict[str, Linear] = {item.name: item.layer for item in chosen}
        self._shares = {item.name: float(item.rank) for item in chosen}
        self._masks = {n: torch.ones_like(layer.weight, dtype=torch.bool) for n, layer in self._layers.items()}
        self._sums: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._steps, self._finished = 0, False
        if saliency == "gradient":
            for name, layer in self._layers.items():
                self._sums[name] = torch.zeros_like(layer.weight, dtype=torch.float32)
                self._hooks.append(layer.weight.register_hook(self._adder(name)))

    @property
    def steps(self) -> int:
        """Optimizer steps counted so far."""
        return self._steps

    @property
    def shares(self) -> dict[str, float]:
        """The share of each layer's weights that is still there."""
        return {name: float(mask.float().mean()) for name, mask in self._masks.items()}

    def step(self) -> None:
        """Count one optimizer step, prune what is due, and zero what is pruned; call it after `optimizer.step()`.

        Raises:
            UsageError: after `finish`.
        """
        if self._finished:
            raise UsageError("step() after finish()", hint="stop calling step() once the model is finished")
        self._steps += 1
        since = self._steps - self._begin
        if self._steps == self._end or (since >= 0 and self._steps < self._end and since % self._frequency == 0):
            self._update()
        self._apply()

    def finish(self) -> Module:
        """The model, its pruned weights exactly zero; nothing of the pruning stays with it.

        Raises:
            UsageError: the final share is not reached yet.
        """
        if not self._finished:
            if self._steps < self._end:
                raise UsageError(f"finish() at step {self._steps}: the final share is reached at step {self._end}")
            self._apply()
            for hook in self._hooks:
                hook.remove()
            self._finished = True
        return self._model

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; weights are in the model's own state."""
        masks, sums = ({n: t.clone() for n, t in tensors.items()} for tensors in (self._masks, self._sums))
        return {**self._identity(), "steps": self._steps, "masks": masks, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load the model's state as well.

        Raises:
            UsageError: the state is of other layers or settings.
        """
        for key, own in self._identity().items():
            if state.get(key) != own:
                raise UsageError(f"saved state: {key} is {state.get(key)!r}, {own!r} was expected")
        for own, saved in ((self._masks, state["masks"]), (self._sums, state["sums"])):
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        self._steps = int(state["steps"])

    def _identity(self) -> dict[str, Any]:
        schedule = [self._begin, self._end, self._frequency]
        return {"schedule": schedule, "saliency": self._saliency, "shares": dict(self._shares)}

    def _adder(self, name: str) -> Any:
        def add(gradient: Tensor) -> None:
            term = (gradient.detach() * self._layers[name].weight.detach()).float().square()
            if term.isfinite().all():  # a loss scaler skips such a batch, too
                self._sums[name] = self._sums[name].to(term.device) + term

        return add

    def _update(self) -> None:
        import torch

        left = 1 - (self._steps - self._begin) / (self._end - self._begin)
        for name, layer in self._layers.items():
            share = 1 - (1 - self._shares[name]) * (1 - left**3)
            mask = self._masks[name].to(layer.weight.device)
            salient = self._sums[name] if self._sums else layer.weight.detach().abs().float()
            # Those that are out come last; a stable order makes ties the same everywhere.
            order = salient.to(mask.device).masked_fill(~mask, -1.0).flatten().argsort(descending=True, stable=True)
            kept = torch.zeros_like(mask.flatten())
            kept[order[: round(share * mask.numel())]] = True
            self._masks[name] = kept.reshape(mask.shape)
            if self._sums:
                self._sums[name].zero_()

    def _apply(self) -> None:
        import torch

        with torch.no_grad():
            for name, layer in self._layers.items():
                layer.weight.mul_(self._masks[name].to(layer.weight.device))
