"""The layer that stands in a linear layer's place during the schedule, and the pair that stands there afterwards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from edgepack.errors import UsageError
from edgepack.model.replacement import Replacement
from edgepack.training.constexpr import ConstexprLinear, structure_of, zeros

ALPHA = "alpha"
STRUCTURE = "constexpr._extra_state"


class CompressedLinear(nn.Module):  # type: ignore[misc]
    """y = α W x + (1 − α) f(x) + b + (1 − α) c, with c what the compressor adds to the bias.

    f(x) is A B x, or what the module `constexpr` computes from numbers in code. The layer is in one of three stages, to
    be told by which of its parameters are there: dense (`weight`), blended (`weight`, and `A`, `B` or those of
    `constexpr`) and compressed (without `weight`). `bias` is the layer's own all along; `shift` is c, a constant. In
    the first stage the module holds the very parameters of the layer that it replaces, under the same names.

    The two products are blended, not the two weights: A B is never formed, and what the layer computes at α = 0 is what
    the finished layer computes, operation by operation.

    Args:
        layer: the layer to replace.
        rank: of the factors to come; None where only the method will tell what comes.
    """

    def __init__(self, layer: nn.Linear, rank: int | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = layer.in_features, layer.out_features, rank
        self.alpha = 1.0
        self.incomplete = False
        # The order is kept for good: optimizers number their parameters by it.
        self._parameters.update(weight=layer.weight, bias=layer.bias, A=None, B=None)
        self.register_module("constexpr", None)
        self.register_buffer("shift", None)
        self.trainable = bool(layer.weight.requires_grad)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """(out, in): the weight in effect, for code that reads a layer's weight instead of calling the layer."""
        dense = self._parameters["weight"]
        if not self.small or (self.alpha == 1.0 and dense is not None):
            return dense
        product = (1.0 - self.alpha) * (self.A @ self.B if self.constexpr is None else self.constexpr.weight)
        return product if dense is None else self.alpha * dense + product

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None: the bias in effect, b + (1 − α) c."""
        own = self.own_bias
        if self.shift is None or self.alpha == 1.0:
            return own
        return (1.0 - self.alpha) * self.shift if own is None else own + (1.0 - self.alpha) * self.shift

    @property
    def dense(self) -> Any:
        """The dense weight, a parameter; None once α has reached 0."""
        return self._parameters["weight"]

    @property
    def own_bias(self) -> Any:
        """The layer's own bias b, a parameter; None if it has none."""
        return self._parameters["bias"]

    @property
    def small(self) -> dict[str, nn.Parameter]:
        """What stands in for the dense weight, by name in this module; empty before the schedule begins."""
        if self.constexpr is not None:
            return {f"constexpr.{name}": parameter for name, parameter in self.constexpr.named_parameters()}
        return {} if self.A is None else {"A": self.A, "B": self.B}

    @property
    def structure(self) -> int | str | None:
        """What `restore` needs: a rank, or the structure of `constexpr`; None before the schedule begins."""
        if self.constexpr is not None:
            found: str = self.constexpr.structure
            return found
        return None if self.A is None else self.rank

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if self.incomplete:
            raise UsageError(
                "the schedule was restored, the factors were not", hint="load the model's state_dict as well"
            )
        bias = self.own_bias
        if self.alpha == 1.0 or (self.A is None and self.constexpr is None):
            return linear(x, self.dense, bias)
        shifted = bias if self.shift is None else self.shift if bias is None else bias + self.shift
        low = self._low(x, shifted)
        if self.alpha == 0.0:
            return low
        return self.alpha * linear(x, self.dense, bias) + (1.0 - self.alpha) * low

    def _low(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(linear(x, self.B), self.A, bias) if self.constexpr is None else self.constexpr.product(x, bias)

    def begin(self, part: Replacement, frozen: Collection[str] = ()) -> None:
        """Take up what the compressor made; nothing changes while α is 1.

        Args:
            part: factors, or a layer stored in code.
            frozen: its float constants that are not to be trained, see `ConstexprLinear`.
        """
        if part.structure.is_constexpr:
            bare = replace(part, bias=None)
            self.constexpr = ConstexprLinear(bare, frozen=frozen, like=self.dense, trainable=self.trainable)
        else:
            self._make_factors(part.rank)
            with torch.no_grad():
                self.A.copy_(torch.from_numpy(part.A))
                self.B.copy_(torch.from_numpy(part.B))
        if part.bias is not None:
            shift = torch.from_numpy(part.bias).to(self.dense)
            self.shift = shift if self.own_bias is None else shift - self.own_bias.detach()

    def drop_dense(self) -> None:
        """Let go of the dense weight: α is 0."""
        self.alpha = 0.0
        if self.dense is not None:
            self.dense.grad = None
        self._parameters["weight"] = None

    def restore(self, *, factors: bool, dense: bool, structure: int | str | None = None) -> None:
        """Get the parameters of a later stage; their values are expected from the model's own state.

        Args:
            factors: whether what replaces the dense weight is there in that stage.
            dense: whether the dense weight is.
            structure: see the property; by default factors of the rank that was asked for.
        """
        if factors and self.A is None and self.constexpr is None:
            if isinstance(structure, str):
                self.constexpr = zeros(structure, like=self.dense, trainable=self.trainable)
            else:
                self._make_factors(self.rank or structure)
            self.incomplete = True
        if not dense:
            self.drop_dense()

    def _make_factors(self, rank: int) -> None:
        like, self.rank = self.dense, rank
        shapes = {"A": (self.out_features, rank), "B": (rank, self.in_features)}
        for name, shape in shapes.items():
            value = torch.zeros(shape, dtype=like.dtype, device=like.device)
            self._parameters[name] = nn.Parameter(value, requires_grad=self.trainable)

    def extra_repr(self) -> str:
        """Sizes and α, for print(model)."""
        rank = "" if self.rank is None else f"rank={self.rank}, "
        return f"in_features={self.in_features}, out_features={self.out_features}, {rank}alpha={self.alpha}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.small and self.dense is not None:
            # Part of what the layer computes; no buffer, which a cast to another dtype would round.
            destination[prefix + ALPHA] = torch.tensor(self.alpha, dtype=torch.float64)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Follows a state of a later stage, so that a model restores itself whoever loads it first."""
        structure = _structure(state_dict, prefix)
        if structure is not None:
            self.restore(factors=True, dense=prefix + "weight" in state_dict, structure=structure)
            self.incomplete = False
            shift = state_dict.get(prefix + "shift")
            if shift is not None and self.shift is None:
                like = next(iter(self.small.values()))
                self.shift = torch.zeros_like(shift, dtype=like.dtype, device=like.device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + ALPHA in state_dict and self.dense is not None:
            self.alpha = float(state_dict[prefix + ALPHA])
            if prefix + ALPHA in unexpected_keys:
                unexpected_keys.remove(prefix + ALPHA)


class FactoredLinear(nn.Sequential):  # type: ignore[misc]
    """Two linear layers in a row, `0` (in → r, no bias) and `1` (r → out), in the place of one.

    An `nn.Sequential` with the attributes that code reads off an `nn.Linear`.
    """

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return int(self[0].in_features)

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return int(self[1].out_features)

    @property
    def weight(self) -> Tensor:
        """(out, in): the product of the factors; forward() never forms it."""
        return self[1].weight @ self[0].weight

    @property
    def bias(self) -> Tensor | None:
        """(out,) or None."""
        return self[1].bias


def finished(layer: CompressedLinear) -> FactoredLinear | ConstexprLinear:
    """What stays of a layer in its last stage; it holds the layer's own parameters, so optimizers stay valid."""
    made = _pair(layer) if layer.constexpr is None else layer.constexpr
    last = made[1] if isinstance(made, FactoredLinear) else made
    if layer.own_bias is not None:
        last.bias = layer.own_bias
        if layer.shift is not None:
            with torch.no_grad():
                last.bias += layer.shift
    elif layer.shift is not None:
        last.bias = nn.Parameter(layer.shift.clone(), requires_grad=layer.trainable)
    made.train(layer.training)
    return made


def dense_again(layer: CompressedLinear) -> nn.Linear:
    """The plain layer with the same parameters, before anything replaced its weight."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.own_bias is not None, device="meta")
    made.weight = layer.dense
    if layer.own_bias is not None:
        made.bias = layer.own_bias
    return made.train(layer.training)


def _pair(layer: CompressedLinear) -> FactoredLinear:
    rank = layer.A.shape[1]
    first = nn.Linear(layer.in_features, rank, bias=False, device="meta")
    second = nn.Linear(rank, layer.out_features, bias=layer.own_bias is not None, device="meta")
    first.weight, second.weight = layer.B, layer.A
    return FactoredLinear(first, second)


def _structure(state: Mapping[str, Any], prefix: str) -> int | str | None:
    """Of what a saved layer holds in its dense weight's place."""
    if prefix + STRUCTURE in state:
        return structure_of(state[prefix + STRUCTURE])
    if prefix + "A" in state and prefix + "B" in state:
        return int(state[prefix + "A"].shape[1])
    return None
