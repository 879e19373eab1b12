"""Keras models, in `.keras` and `.h5` files: Keras 3 runs them on torch, and torch exports what it runs."""

from __future__ import annotations

import inspect
import keyword
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelError, UsageError, install_command
from edgepack.model.layer import distinct
from edgepack.model.model import Model, NativeName
from edgepack.model.scheme import Format
from edgepack.model.types import TensorSpec
from edgepack.sources.inputs import LARGEST, GivenInput, shown, with_shapes, with_usual_sides
from edgepack.sources.keras_file import HINT, SUFFIXES, check_file
from edgepack.sources.source import file_stem
from edgepack.sources.torch import PACKAGES, export_program, program_model
from edgepack.torchgraph.run import first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

BACKEND = "torch"


class KerasFile:
    """`model.keras` or `model.h5`: see `Source`."""

    name = "keras"
    title = "Keras models"
    forms: tuple[str, ...] = ("model.keras", "model.h5")
    advice: str | None = None
    native: NativeName = "torch"
    packages: tuple[str, ...] = (*PACKAGES, "keras", "h5py")
    install = install_command("keras")
    runs_code = False

    def prepare(self) -> None:
        """See `Source.prepare`."""
        import_keras()

    def takes(self, spec: str) -> bool:
        """By its suffix."""
        return Path(spec).suffix.lower() in SUFFIXES

    def stem(self, spec: str) -> str:
        """That of the file."""
        return file_stem(spec)

    def open(
        self, spec: str, name: str, work: Path, formats: Collection[Format], given: Sequence[GivenInput] = ()
    ) -> Model:
        """See `Source.open`."""
        model = load_keras(Path(spec))
        inputs = known_inputs(model, spec, given)
        program = export_keras(model, example_inputs(inputs, spec))
        batched = frozenset(one.name for one in inputs if one.shape[:1] == (None,))
        return replace(program_model(spec, name, self.name, program, work, formats), batched=batched)


def import_keras() -> Any:
    """Keras 3 on its torch backend. Neither the environment nor the user's folders know of it afterwards.

    Raises:
        UsageError: this process has imported it on another backend.
    """
    with _environment({"KERAS_BACKEND": BACKEND, "KERAS_HOME": os.devnull}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    if (found := keras.backend.backend()) != BACKEND:
        raise UsageError(
            f"Keras was imported on its {found} backend in this process, torch was expected",
            hint="set KERAS_BACKEND=torch before the first import of keras, or save the model and give its file to "
            "edgepack build",
        )
    return keras


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def is_keras(model: object) -> bool:
    """Whether it is a `keras.Model`; nothing is imported."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


def load_keras(path: Path) -> Any:
    """The `keras.Model` of a file, uncompiled.

    It is built without memory first: sizes that its weights do not have are refused before they are allocated.

    Raises:
        ModelError: see `check_file`; or Keras cannot build it, or its weights do not fit.
        UsageError: see `import_keras`.
    """
    keras = import_keras()
    check_file(path)
    custom = {"DepthwiseConv2D": _older_depthwise(keras)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for device in ("meta", "cpu"):
                with keras.device(device):
                    model = keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=True)
    except Exception as err:
        raise ModelError(f"{path}: Keras cannot load it: {first_line(err)[:300]}", hint=HINT) from err
    return model


def _older_depthwise(keras: Any) -> type:
    """The layer, for files of older versions that state its one group."""

    def from_config(cls: Any, config: dict[str, Any]) -> Any:
        return cls(**{name: value for name, value in config.items() if (name, value) != ("groups", 1)})

    return type("DepthwiseConv2D", (keras.layers.DepthwiseConv2D,), {"from_config": classmethod(from_config)})


def export_keras(model: Any, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The torch program of a `keras.Model` on the torch backend: see `as_torch`.

    Raises:
        ModelError: torch.export cannot trace it.
    """
    return export_program(as_torch(model), inputs, tidied=True)


def known_inputs(model: Any, spec: str, given: Sequence[GivenInput]) -> list[TensorSpec]:
    """Its inputs, of which no more is open than the number of samples.

    Args:
        model: a `keras.Model`.
        spec: what the user called it.
        given: shapes of inputs that it leaves open.

    Raises:
        ModelError: it has no inputs, or leaves more open than the number of samples and what images have.
        UsageError: it takes no such inputs as are given.
    """
    if not model.inputs:
        raise ModelError(f"{spec}: the model takes no inputs, or was saved before it knew their shapes", hint=HINT)
    names = _input_names(model)
    known = [
        TensorSpec(name, tuple(one.shape), np.dtype(one.dtype)) for name, one in zip(names, model.inputs, strict=True)
    ]
    taken = [with_usual_sides(one) for one in with_shapes(known, given)]
    for one in taken:
        if None in one.shape[1:]:
            fixed = shown(one).replace("?", "1", 1).replace("?", "64")
            raise ModelError(
                f"{spec}: the model leaves its input {one.name!r} open: {shown(one)}",
                hint=f"give its shape, such as --input {one.name}={fixed}",
            )
    return taken


def example_inputs(inputs: Sequence[TensorSpec], spec: str) -> tuple[Tensor, ...]:
    """Examples of a model's inputs, one sample each.

    Raises:
        ModelError: one is too large.
    """
    import torch

    sizes = [tuple(side or 1 for side in one.shape) for one in inputs]
    if max(map(prod, sizes)) >= LARGEST:
        raise ModelError(f"{spec}: an input of {max(map(prod, sizes))} numbers, at most {LARGEST - 1} are taken")
    return tuple(torch.from_numpy(np.zeros(size, one.dtype)) for one, size in zip(inputs, sizes, strict=True))


def as_torch(model: Any) -> Module:
    """A module that computes what a `keras.Model` on the torch backend does at inference.

    Its parameters are called as the model's layers, its inputs as the model's. Layers that torch has an operator for
    are computed by that one.
    """
    import keras
    import torch

    names = _parameter_names(model)
    inputs = _input_names(model)

    class KerasModel(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, variable in zip(names, model.variables, strict=True):
                self.register_parameter(name, torch.nn.Parameter(variable.value.detach(), requires_grad=False))
            # Names of arguments are those of the file's inputs.
            self.forward = _with_names(self.compute, inputs)

        def compute(self, *values: Tensor) -> Any:
            state = [(variable, getattr(self, name)) for name, variable in zip(names, model.variables, strict=True)]
            given = list(values) if len(values) > 1 else values[0]
            with keras.StatelessScope(state_mapping=state), _by_operators(model):
                return model(given, training=False)

    return KerasModel().eval()


def _with_names(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    def named(*values: Any) -> Any:
        return function(*values)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return named


def _layers(model: Any) -> list[Any]:
    """Those of a model, and of models and wrappers in it, in order."""
    return list(model._flatten_layers(include_self=False))


def _input_names(model: Any) -> list[str]:
    return distinct(_identifier(given.name) for given in model.inputs)


def _parameter_names(model: Any) -> list[str]:
    """Of each variable: the first of a layer is called as the layer, with the names of those around it where another
    one is called alike."""
    names: dict[str, str] = {}
    layers = _layers(model)
    alike = [layer.name for layer in layers]
    for layer in layers:
        own = layer.name if alike.count(layer.name) == 1 else layer.path or layer.name
        for number, variable in enumerate(layer._trainable_variables + layer._non_trainable_variables):
            names.setdefault(variable.path, own if number == 0 else f"{own}_{variable.name}")
    return distinct(_identifier(names.get(variable.path, variable.path)) for variable in model.variables)


def _identifier(name: str) -> str:
    """A name as Python has them, since torch writes and runs source with it."""
    import torch

    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    taken = not plain.isidentifier() or keyword.iskeyword(plain) or hasattr(torch.nn.Module(), plain)
    return f"_{plain}" if taken or plain == "self" else plain


@contextmanager
def _by_operators(model: Any) -> Iterator[None]:
    """Within the block some layers of the model are computed by torch's own operator for them, and all in the precision
    of their weights."""
    import keras

    kinds = {getattr(keras.layers, name): compute for name, compute in _OPERATORS.items()}
    replaced = [layer for layer in _layers(model) if type(layer) in kinds]
    mixed = [layer for layer in (model, *_layers(model)) if layer.compute_dtype != layer.variable_dtype]
    policies = [(layer, layer.dtype_policy) for layer in mixed]
    for layer in mixed:
        layer.dtype_policy = layer.variable_dtype
    for layer in replaced:
        vars(layer)["call"] = _bound(kinds[type(layer)], layer)
    try:
        yield
    finally:
        for layer in replaced:
            del vars(layer)["call"]
        for layer, policy in policies:
            layer.dtype_policy = policy


def _bound(compute: Callable[..., Any], layer: Any) -> Callable[..., Any]:
    def call(x: Tensor, **options: Any) -> Any:
        own = type(layer).call
        made = compute(layer, x, **options)
        return own(layer, x, **options) if made is None else made

    return call


def _dense(layer: Any, x: Tensor, **options: Any) -> Tensor | None:
    import torch
    from torch.nn.functional import linear

    if layer.quantization_mode is not None:
        return None
    made = linear(x, torch.t(layer.kernel), None if layer.bias is None else layer.bias.value)
    return made if layer.activation is None else layer.activation(made)


def _einsum_dense(layer: Any, x: Tensor, **options: Any) -> Tensor | None:
    """Of products over the last axes of the input and the first of the kernel, as those of attention are."""
    from torch.nn.functional import linear

    given, kernel, made = re.split(",|->", layer.equation.replace(" ", ""))
    summed = len(set(given) & set(kernel))
    last = kernel[summed:]
    bias = None if layer.bias is None else layer.bias.value
    if layer.quantization_mode is not None or not last or "." in given or given[-summed:] != kernel[:summed]:
        return None
    weight = layer.kernel.value.flatten(0, summed - 1).flatten(1)
    if made != given[:-summed] + last or (bias is not None and bias.numel() != weight.shape[1]):
        return None
    found = linear(x.flatten(-summed), weight.t(), None if bias is None else bias.flatten())
    found = found.unflatten(-1, layer.kernel.shape[summed:])
    return found if layer.activation is None else layer.activation(found)


def _batch_norm(layer: Any, x: Tensor, **options: Any) -> Tensor:
    from torch.nn.functional import batch_norm

    rank, axis = x.dim(), layer.axis % x.dim()
    order = [0, axis, *(one for one in range(1, rank) if one != axis)]
    scale, shift = (None if one is None else one.value for one in (layer.gamma, layer.beta))
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    made = batch_norm(x.permute(order), mean, variance, scale, shift, eps=layer.epsilon)
    return made.permute([order.index(one) for one in range(rank)])


def _layer_norm(layer: Any, x: Tensor, **options: Any) -> Tensor | None:
    from torch.nn.functional import layer_norm

    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes not in ([-1], [x.dim() - 1]):
        return None
    scale, shift = (None if one is None else one.value for one in (layer.gamma, layer.beta))
    return layer_norm(x, x.shape[-1:], scale, shift, layer.epsilon)


def _lstm(layer: Any, x: Tensor, initial_state: Any = None, mask: Any = None, **options: Any) -> Any:
    import torch

    if not _is_plain(layer, mask):
        return None
    weights = _recurrent_weights(layer, lambda one: one)
    states = initial_state or [x.new_zeros(x.shape[0], layer.units)] * 2
    states = [one.unsqueeze(0) for one in states]
    steps, *last = torch.lstm(_steps_first(layer, x), states, weights, len(weights) > 2, 1, 0.0, False, False, False)
    return _recurrent_results(layer, steps, last)


def _gru(layer: Any, x: Tensor, initial_state: Any = None, mask: Any = None, **options: Any) -> Any:
    import torch

    if not (_is_plain(layer, mask) and layer.reset_after):
        return None

    def ordered(columns: Tensor) -> Tensor:
        """Torch has the reset gate before the update gate."""
        update, reset, new = columns.split(layer.units, -1)
        return torch.cat([reset, update, new], -1)

    weights = _recurrent_weights(layer, ordered)
    state = (
        x.new_zeros(x.shape[0], layer.units) if not initial_state else torch.utils._pytree.tree_leaves(initial_state)[0]
    )
    given = _steps_first(layer, x)
    steps, *last = torch.gru(given, state.unsqueeze(0), weights, len(weights) > 2, 1, 0.0, False, False, False)
    return _recurrent_results(layer, steps, last)


def _is_plain(layer: Any, mask: Any) -> bool:
    """Whether a recurrent layer is what torch has an operator for."""
    import keras

    known = keras.activations.tanh, keras.activations.sigmoid
    return (layer.activation, layer.recurrent_activation) == known and mask is None and not layer.stateful


def _recurrent_weights(layer: Any, ordered: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Of the input and of the state, and a bias for each where there is one; gates in torch's order."""
    cell = layer.cell
    kernels = [ordered(one.value).t() for one in (cell.kernel, cell.recurrent_kernel)]
    if cell.bias is None:
        return kernels
    biases = ordered(cell.bias.value)
    return [*kernels, *(biases if biases.dim() == 2 else (biases, biases * 0.0))]


def _steps_first(layer: Any, x: Tensor) -> Tensor:
    """The steps of a recurrent layer in the order in which it takes them, on the first axis: as ONNX has them."""
    given = x.permute(1, 0, 2)
    return given.flip(0) if layer.go_backwards else given


def _recurrent_results(layer: Any, steps: Tensor, last: Sequence[Tensor]) -> Any:
    states = [one.squeeze(0) for one in last]
    found = steps.permute(1, 0, 2) if layer.return_sequences else states[0]
    return (found, *states) if layer.return_state else found


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "LSTM": _lstm,
    "GRU": _gru,
}
"""By the name of a layer of Keras: what torch's own operator gives for it, None where it has none for these options."""
