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
    return session(interpreter(path, threads))


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


def session(made: Any) -> Session:
    """An interpreter, as a session of its first signature, or of its tensors where it has none.

    A run raises `ModelError` for names or shapes that the file does not have, and where an operator refuses its inputs.
    int64 and float64 are narrowed to the file's own type: the converter writes 64-bit inputs as 32-bit ones.
    """
    inputs, outputs = made.get_input_details(), made.get_output_details()
    known = {int(tensor["index"]) for tensor in (*inputs, *outputs)}
    takes = {str(tensor["name"]): tensor for tensor in inputs}
    gives = list(outputs)
    if made.get_signature_list():
        key, specs = _signature_of(made)
        runner = made.get_signature_runner(key)
        named, results = runner.get_input_details(), runner.get_output_details()
        takes = {name: named[name] for name in specs}
        order = _ordered(results, outputs)
        gives = [results[name] for name in order]
        if not {int(tensor["index"]) for tensor in (*takes.values(), *gives)} <= known:  # of another subgraph
            return Session(tuple(specs.values()), lambda feed: _run_signature(runner, order, specs, feed))
    specs = {name: _spec(name, detail) for name, detail in takes.items()}
    return Session(tuple(specs.values()), lambda feed: _run_tensors(made, takes, gives, _fed(feed, specs)))


def _run_signature(
    runner: Any, order: Sequence[str], specs: Mapping[str, TensorSpec], inputs: Mapping[str, Array]
) -> list[Array]:
    fed = _fed(inputs, specs)
    with _stopping():
        results = runner(**fed)
    return [np.array(results[name]) for name in order]


def _run_tensors(
    made: Any, takes: Mapping[str, Any], gives: Sequence[Mapping[str, Any]], inputs: Mapping[str, Array]
) -> list[Array]:
    """The runtime's own calls: a signature runner looks every tensor up by name at every inference."""
    with _stopping():
        for name, detail in takes.items():
            made.set_tensor(detail["index"], inputs[name])
        made.invoke()
        return [made.get_tensor(detail["index"]) for detail in gives]


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as err:
        raise ModelError(f"the TFLite runtime stopped: {str(err).strip()}") from err


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
