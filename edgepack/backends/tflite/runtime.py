"""Run .tflite files by the names of their signature, or of their tensors where they have none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.tflite.read import operators
from edgepack.errors import ModelError
from edgepack.model.types import Array, TensorSpec


def load(path: Path, *, threads: int) -> Session:
    """See `Backend.load`. Files of one layer and segments have no signature: there tensors name the inputs."""
    made = interpreter(path, threads)
    if not made.get_signature_list():
        specs = tuple(_spec(detail["name"], detail) for detail in made.get_input_details())
        return Session(specs, lambda feed: _run_tensors(made, specs, feed))
    inputs = tuple(_signature_of(made)[1].values())
    return Session(inputs, lambda feed: run(made, feed))


def interpreter(path: Path | str, threads: int = 1) -> Any:
    """A ready interpreter for the file: ai-edge-litert's, or tflite-runtime's where only that is installed.

    Raises:
        ModelError: no such file, or the runtime refuses it.
    """
    import warnings

    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError:
        from tflite_runtime.interpreter import Interpreter
    operators(path)
    try:
        with warnings.catch_warnings(), _without_native_log():
            warnings.simplefilter("ignore")
            made = Interpreter(model_path=str(path), num_threads=threads)
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


def run(made: Any, inputs: Mapping[str, Array]) -> list[Array]:
    """Run one inference.

    Args:
        made: from `interpreter`.
        inputs: by the names of the file's signature; int64 and float64 are narrowed to the file's own type (the
            converter writes 64-bit inputs as 32-bit ones).

    Returns:
        Copies of the outputs, in the order of the signature.

    Raises:
        ModelError: names or shapes that the file does not have, or an operator that refuses its inputs.
    """
    key, names = _signature_of(made)
    runner = made.get_signature_runner(key)
    fed = _fed(inputs, names)
    try:
        results = runner(**fed)
    except (RuntimeError, ValueError) as err:
        raise ModelError(f"the TFLite runtime stopped: {str(err).strip()}") from err
    return [np.array(results[name]) for name in _ordered(runner.get_output_details(), made.get_output_details())]


def _run_tensors(made: Any, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> list[Array]:
    """One inference of a file without a signature; see `run`."""
    fed = _fed(inputs, {spec.name: spec for spec in specs})
    try:
        for detail in made.get_input_details():
            made.set_tensor(detail["index"], fed[detail["name"]])
        made.invoke()
    except (RuntimeError, ValueError) as err:
        raise ModelError(f"the TFLite runtime stopped: {str(err).strip()}") from err
    return [np.array(made.get_tensor(detail["index"])) for detail in made.get_output_details()]


def _fed(inputs: Mapping[str, Array], names: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """The inputs in the file's own types."""
    if set(inputs) != set(names):
        raise ModelError(f"inputs {sorted(inputs)} were given, the file has {sorted(names)}")
    fed = {}
    for name, spec in names.items():
        value = np.asarray(inputs[name])
        if value.shape != spec.shape:
            raise ModelError(f"input {name!r} has shape {value.shape}, the file's is {spec.shape}")
        fed[name] = value.astype(spec.dtype, copy=False)
    return fed


def signature(path: Path | str) -> tuple[str, dict[str, TensorSpec]]:
    """The key of the file's first signature and its inputs by name, in order.

    Raises:
        ModelError: unreadable file, or one without a signature.
    """
    return _signature_of(interpreter(path))


def _signature_of(made: Any) -> tuple[str, dict[str, TensorSpec]]:
    signatures: Mapping[str, Mapping[str, Sequence[str]]] = made.get_signature_list()
    if not signatures:
        raise ModelError("the TFLite file has no signature, so its inputs have no names")
    key = next(iter(signatures))
    details = made.get_signature_runner(key).get_input_details()
    return key, {name: _spec(name, details[name]) for name in _ordered(details, made.get_input_details())}


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name, tuple(int(n) for n in detail["shape"]), np.dtype(detail["dtype"]))


def _ordered(named: Mapping[str, Mapping[str, Any]], tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of a signature in the order of the graph's own inputs or outputs; the runtime lists them by alphabet."""
    places = {int(tensor["index"]): place for place, tensor in enumerate(tensors)}
    return sorted(named, key=lambda name: places.get(int(named[name]["index"]), len(places)))
