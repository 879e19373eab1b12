"""Run .tflite files by the names of their signature, or of their tensors where they have none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.tflite.read import operators
from edgepack.data import turned
from edgepack.errors import ModelError
from edgepack.model.types import Array, TensorSpec

_Named = tuple[str, Mapping[str, Any]]
"""What the runtime says of a tensor, behind its name."""


def load(path: Path, *, threads: int) -> Session:
    """See `Backend.load`. Files of one layer and segments have no signature: there tensors name the inputs."""
    return replace(session(interpreter(path, threads)), again=lambda: load(path, threads=1))


def interpreter(path: Path | str, threads: int = 1, *, watched: bool = False) -> Any:
    """A ready interpreter for the file: ai-edge-litert's, or tflite-runtime's where only that is installed.

    Args:
        path: of the file.
        threads: of an inference.
        watched: whether every tensor is to be there after a run; LiteRT's own kernels compute them then, as a delegate
            keeps to itself what flows between its operators.

    Raises:
        ModelError: no such file, or the runtime refuses it.
    """
    import warnings

    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ModuleNotFoundError:
        from tflite_runtime.interpreter import Interpreter, OpResolverType
    operators(path)
    own_kernels = {
        "experimental_preserve_all_tensors": True,
        "experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    }
    try:
        with warnings.catch_warnings(), _without_native_log():
            warnings.simplefilter("ignore")
            made = Interpreter(model_path=str(path), num_threads=threads, **(own_kernels if watched else {}))
            made.allocate_tensors()
    except (ValueError, RuntimeError) as err:
        raise ModelError(f"{path}: the TFLite runtime refuses the file: {str(err).strip()}") from err
    return made


@contextmanager
def _without_native_log() -> Iterator[None]:
    """Keep the runtime's own notes ("Created … delegate") off stderr: they are written below Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def session(made: Any) -> Session:
    """An interpreter, as a session of its first signature, or of its tensors where it has none.

    A run raises `ModelError` for names or shapes that the file does not have, and where an operator refuses its inputs.
    int64 and float64 are narrowed to the file's own type: the converter writes 64-bit inputs as 32-bit ones. Images are
    given with channels first also where the file takes them last.
    """
    inputs, outputs = made.get_input_details(), made.get_output_details()
    takes, gives = ([(str(tensor["name"]), tensor) for tensor in tensors] for tensors in (inputs, outputs))
    runner = None
    if keys := list(made.get_signature_list()):
        runner = made.get_signature_runner(keys[0])
        takes, gives = _in_order(runner.get_input_details(), inputs), _in_order(runner.get_output_details(), outputs)
    specs = tuple(_spec(name, tensor) for name, tensor in takes)
    told = [tensor for _, tensor in gives]
    main = {(tensor["index"], tensor["name"]) for tensor in (*inputs, *outputs)}
    if runner is None or {(tensor["index"], tensor["name"]) for _, tensor in (*takes, *gives)} <= main:
        return Session(specs, lambda feed: _run_tensors(made, takes, gives, _fed(feed, specs)), None, _numbers_of(told))
    return Session(specs, lambda feed: _run_signature(made, runner, gives, _fed(feed, specs)), None, _numbers_of(told))


def _numbers_of(outputs: Sequence[Mapping[str, Any]]) -> Callable[[Sequence[Array]], list[Array]]:
    """What `Session.numbers` is of outputs of which the runtime says this."""
    return lambda values: [numbers(*pair) for pair in zip(values, outputs, strict=True)]


def _run_signature(made: Any, runner: Any, gives: Sequence[_Named], inputs: Mapping[str, Array]) -> list[Array]:
    """Of a signature whose tensors are not those of the main subgraph."""
    with _stopping():
        made.reset_all_variables()  # an inference sees nothing of the one before
        results = runner(**inputs)
    return [np.array(results[name]) for name, _ in gives]


def _run_tensors(
    made: Any, takes: Sequence[_Named], gives: Sequence[_Named], inputs: Mapping[str, Array]
) -> list[Array]:
    """The runtime's own calls: a signature runner looks every tensor up by name at every inference."""
    with _stopping():
        made.reset_all_variables()
        for name, tensor in takes:
            made.set_tensor(tensor["index"], inputs[name])
        made.invoke()
        return [made.get_tensor(tensor["index"]) for _, tensor in gives]


def numbers(value: Array, detail: Mapping[str, Any]) -> Array:
    """A tensor's value in float32, scaled from its grid where it has one.

    Args:
        value: of the tensor.
        detail: what the runtime says of it.
    """
    grid = detail["quantization_parameters"]
    if value.dtype.kind == "f" or not len(grid["scales"]):
        return value
    return np.asarray((value.astype(np.float32) - grid["zero_points"][0]) * grid["scales"][0], np.float32)


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as err:
        raise ModelError(f"the TFLite runtime stopped: {str(err).strip()}") from err


def _fed(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs in the file's own types."""
    if set(inputs) != {spec.name for spec in specs}:
        raise ModelError(f"inputs {sorted(inputs)} were given, the file has {sorted(spec.name for spec in specs)}")
    fed = {}
    for spec in specs:
        value = turned(np.asarray(inputs[spec.name]), spec.shape)
        if value.shape != spec.shape:
            raise ModelError(f"input {spec.name!r} has shape {value.shape}, the file's is {spec.shape}")
        fed[spec.name] = value.astype(spec.dtype, copy=False)
    return fed


def signature(path: Path | str) -> tuple[str, dict[str, TensorSpec]]:
    """The key of the file's first signature and its inputs by name, in order.

    Raises:
        ModelError: unreadable file, or one without a signature.
    """
    made = interpreter(path)
    keys = list(made.get_signature_list())
    if not keys:
        raise ModelError("the TFLite file has no signature, so its inputs have no names")
    named = made.get_signature_runner(keys[0]).get_input_details()
    return keys[0], {name: _spec(name, tensor) for name, tensor in _in_order(named, made.get_input_details())}


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name, tuple(int(n) for n in detail["shape"]), np.dtype(detail["dtype"]))


def _in_order(named: Mapping[str, Mapping[str, Any]], tensors: Sequence[Mapping[str, Any]]) -> list[_Named]:
    """Tensors of a signature in the order of the graph's own inputs or outputs; the runtime lists them by alphabet."""
    places = {int(tensor["index"]): place for place, tensor in enumerate(tensors)}
    return sorted(named.items(), key=lambda one: places.get(int(one[1]["index"]), len(places)))
