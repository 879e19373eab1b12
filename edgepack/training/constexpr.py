"""A layer stored in code as a torch module: its float numbers are trained, its codes, gaps and hashes stay."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from edgepack.errors import UsageError
from edgepack.model.constexpr import X, depending, effective_weight, is_decoded, listed, unlisted, values
from edgepack.model.replacement import Instruction, Replacement, constexpr
from edgepack.model.types import Array
from edgepack.training.torch_operators import TORCH_OPERATORS

PART_OF_THE_METHOD = frozenset({"signs"})
"""Float constants that are never trained, as single numbers are not: they belong to the method, not to the model."""

_ROWS_AT_ONCE = 16
"""Of the identity that a layer is applied to: steps may widen each row to many times the layer's sides."""


class ConstexprLinear(nn.Module):  # type: ignore[misc]
    """y = f(x) + b, where f is the steps of a `Replacement` on its constants; x is (…, in), y (…, out).

    Float constants are parameters, below `constants`; integer ones are buffers there. What hangs on neither the input
    nor a parameter (positions, bucket indices, signs) is computed once and not saved.

    Args:
        part: the layer; its numbers are where training starts.
        frozen: names of float constants that are not to be trained, beside single numbers and `signs`.
        like: where the parameters are to live, and their dtype; by default float32 in main memory.
        trainable: False freezes everything.

    Raises:
        UsageError: nothing in it can be trained; a step of it cannot be computed in torch.
    """

    def __init__(
        self,
        part: Replacement,
        *,
        frozen: Collection[str] = (),
        like: Tensor | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        like = torch.empty(0) if like is None else like
        self.out_features, self.in_features = (int(side) for side in part.weight.shape)
        self.steps = part.program
        self.decoded = is_decoded(part)
        self.constants = nn.Module()
        self._keys: dict[str, str] = {}
        trained = trained_constants(part, frozen)
        for name, array in part.tensors.items():
            key = name.replace(".", "_")
            while hasattr(self.constants, key):
                key += "_"
            self._keys[name] = key
            value = _tensor(array, like)
            if name in trained:
                self.constants.register_parameter(key, nn.Parameter(value, requires_grad=trainable))
            else:
                self.constants.register_buffer(key, value)
        self.bias = None if part.bias is None else nn.Parameter(_tensor(part.bias, like), requires_grad=trainable)
        self._dtypes = {name: array.dtype for name, array in part.tensors.items()}
        self._live, self._fixed = _split(part, trained)
        for index in range(len(self._fixed)):
            self.register_buffer(f"fixed{index}", None, persistent=False)
        self.compute_fixed()
        self.register_load_state_dict_post_hook(_loaded)

    @property
    def weight(self) -> Tensor:
        """(out, in): what the steps come to as one matrix; differentiable."""
        if self.decoded:
            return self._run(None)[self.steps[-1].inputs[1]].T
        identity = torch.eye(self.in_features, dtype=self._like.dtype, device=self._like.device)
        return torch.cat([self._run(rows)[self.steps[-1].output] for rows in identity.split(_ROWS_AT_ONCE)]).T

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """f(x) + bias, with a bias in place of the layer's own."""
        if self.decoded:
            return linear(x, self.weight, bias)
        y = self._run(x.reshape(-1, self.in_features))[self.steps[-1].output]
        y = y.reshape(*x.shape[:-1], self.out_features)
        if torch.is_autocast_enabled(x.device.type):  # the type that a linear layer gives
            y = y.to(torch.get_autocast_dtype(x.device.type))
        return y if bias is None else y + bias.to(y.dtype)

    def constant(self, name: str) -> Tensor:
        """A constant by its name in the `Replacement`."""
        found: Tensor = getattr(self.constants, self._keys[name])
        return found

    def to_constexpr(self) -> Replacement:
        """The layer as it is now, to be written: the same steps, the trained numbers in float32."""
        constants = {name: _array(self.constant(name), self._dtypes[name]) for name in self._keys}
        sides = np.zeros((self.out_features, self.in_features), np.float32)
        bias = None if self.bias is None else _array(self.bias, np.dtype(np.float32))
        made = constexpr(constants, self.steps, sides, bias)
        return replace(made, decoded=effective_weight(made))

    @property
    def structure(self) -> str:
        """All but the numbers, as JSON: `zeros` makes a layer of it that a saved state fits."""
        return json.dumps(
            {
                "sides": [self.out_features, self.in_features],
                "steps": listed(self.steps),
                "constants": {name: [self._dtypes[name].name, list(self.constant(name).shape)] for name in self._keys},
                "frozen": [name for name, key in self._keys.items() if key not in self.constants._parameters],
            },
            default=int,  # numpy's integers
        )

    def get_extra_state(self) -> Tensor:
        """The structure as bytes in a tensor, which every format of checkpoints can hold."""
        return torch.tensor(list(self.structure.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuses the state of another structure.

        Raises:
            UsageError: it is one.
        """
        if json.loads(structure_of(state)) != json.loads(self.structure):
            raise UsageError("saved state: the layer is stored in other steps or constants than this one")

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        count = sum(p.numel() for p in self.constants.parameters())
        return f"in_features={self.in_features}, out_features={self.out_features}, numbers={count}"

    @property
    def _like(self) -> Tensor:
        return next(self.constants.parameters())

    def _run(self, x: Tensor | None) -> dict[str, Tensor]:
        found = {} if x is None else {X: x}
        found |= {name: getattr(self, f"fixed{index}") for index, name in enumerate(self._fixed)}
        found |= {name: self.constant(name) for name in self._keys}
        for step in self._live:
            if all(name in found for name in step.inputs):
                inputs = (found[name] for name in step.inputs)
                found[step.output] = TORCH_OPERATORS[step.op](*inputs, **step.attributes)
        return found

    def compute_fixed(self) -> None:
        """Bring what hangs on buffers alone up to date with them."""
        constants = {
            name: _array(self.constant(name), self._dtypes[name])
            for name, key in self._keys.items()
            if key in self.constants._buffers
        }
        found = values(constants, self.steps)
        for index, name in enumerate(self._fixed):
            setattr(self, f"fixed{index}", _tensor(found[name], self._like))


def trained_constants(part: Replacement, frozen: Collection[str] = ()) -> set[str]:
    """Names of the constants that training changes.

    Raises:
        UsageError: there are none; one of `frozen` is no constant.
    """
    unknown = set(frozen) - set(part.tensors)
    if unknown:
        raise UsageError(f"frozen: no constant {min(unknown)!r}; there are {', '.join(part.tensors)}")
    still = PART_OF_THE_METHOD.union(frozen)
    trained = {n for n, a in part.tensors.items() if a.dtype == np.float32 and a.size > 1 and n not in still}
    if not trained:
        raise UsageError(
            "a layer stored in code without float vectors or matrices: there is nothing to train",
            hint="numbers are put in 8 bits after the training",
        )
    return trained


def _split(part: Replacement, trained: Collection[str]) -> tuple[tuple[Instruction, ...], tuple[str, ...]]:
    """Steps that hang on the input or on trained constants, and the results of other steps that they take."""
    live = depending(part.program, {X, *trained})
    for step in live:
        if step.op not in TORCH_OPERATORS:
            raise UsageError(f"{step.op} of numbers that are trained, or of the input, has no torch form")
    known = {X, *part.tensors, *(step.output for step in live)}
    taken = dict.fromkeys(name for step in live for name in step.inputs)
    return live, tuple(name for name in taken if name not in known)


def _tensor(array: Array, like: Tensor) -> Tensor:
    """A copy; floats with the dtype of `like`."""
    made = torch.tensor(array, device=like.device)
    return made.to(like.dtype) if made.is_floating_point() else made


def _array(tensor: Tensor, dtype: np.dtype[Any]) -> Array:
    """A copy in main memory."""
    whole = tensor.detach().cpu()
    return np.array((whole.float() if whole.is_floating_point() else whole).numpy(), dtype)


def _loaded(module: nn.Module, incompatible: object) -> None:
    module.compute_fixed()


def structure_of(state: Tensor) -> str:
    """The text in an extra state."""
    return bytes(state.cpu().numpy()).decode()


def zeros(structure: str, *, like: Tensor, trainable: bool) -> ConstexprLinear:
    """A layer of this structure, its numbers all zero, to load a state into.

    Raises:
        UsageError: it is no structure of a layer.
    """
    try:
        read = json.loads(structure)
        constants = {name: np.zeros(shape, np.dtype(kind)) for name, (kind, shape) in read["constants"].items()}
        steps = unlisted(read["steps"])
        sides = np.zeros(read["sides"], np.float32)
        return ConstexprLinear(
            constexpr(constants, steps, sides, None), frozen=read["frozen"], like=like, trainable=trainable
        )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise UsageError("saved state: the structure of a layer stored in code is damaged") from err
