"""An onnxruntime session as everything here runs it: CPU only, quiet, no spinning threads."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.onnx.file import EXTERNAL_BYTES, save, to_bytes
from edgepack.backends.onnx.tensors import weight_bytes
from edgepack.errors import ModelError
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

_FATAL = 4  # what goes wrong is raised here; the runtime need not print it too
_UNKNOWN_OP = re.compile(
    r"(?P<domain>[\w.\-]*):(?P<op>\w+)\(-?\d+\) is not a registered function/op"
    r"|No Op registered for (?P<bare>\w+) with domain_version"
    r"|No opset import for domain:? '?(?P<only_domain>[\w.\-]+)"
    r"|Could not find an implementation for (?P<missing>\w+)\(\d+\)"
)


@dataclass(frozen=True)
class Profile:
    """The record of every operator that a session runs.

    Attributes:
        prefix: of the path of the record, whose whole name the session says when it ends.
        elsewhere: leave out what the runtime does for this very CPU, and keep 8-bit activations as on another one.
        unsigned: whether these are unsigned there.
    """

    prefix: Path
    elsewhere: bool
    unsigned: bool


def session(
    model_or_path: ir.Model | Path | bytes,
    *,
    threads: int = 1,
    optimized_path: Path | None = None,
    exact: bool = False,
    profile: Profile | None = None,
) -> ort.InferenceSession:
    """Open a session.

    Args:
        model_or_path: a model, a serialized model, or the path of a file.
        threads: threads of one operator.
        optimized_path: where to write the graph as the runtime has optimised it.
        exact: sum int8 products without saturation, as Arm and VNNI do; x86 CPUs without VNNI are faster when they
            don't.
        profile: for a record of what is run.

    Raises:
        ModelError: the runtime does not take the model; operators that it does not know are named.
    """
    import onnx_ir as ir

    if isinstance(model_or_path, ir.Model):
        if weight_bytes(model_or_path) <= EXTERNAL_BYTES:
            return _open(to_bytes(model_or_path), threads, optimized_path, exact, profile)
        with tempfile.TemporaryDirectory() as folder:
            save(model_or_path, Path(folder) / "model.onnx")
            return _open(str(Path(folder) / "model.onnx"), threads, optimized_path, exact, profile)
    source = model_or_path if isinstance(model_or_path, bytes) else str(model_or_path)
    return _open(source, threads, optimized_path, exact, profile)


def _open(
    source: bytes | str, threads: int, optimized_path: Path | None, exact: bool, profile: Profile | None
) -> ort.InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile.prefix)
        if profile.elsewhere:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.add_session_config_entry("session.qdqisint8allowed", "0" if profile.unsigned else "1")
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _refusals() as err:
        raise _refusal(str(err)) from err


def run(opened: ort.InferenceSession, outputs: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
    """Run one inference; all outputs for None.

    Raises:
        ModelError: the runtime cannot run the model on these inputs.
    """
    try:
        return [_array(value) for value in opened.run(None if outputs is None else list(outputs), dict(feed))]
    except _refusals() as err:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feed.items())
        reason = str(err).strip().splitlines()[0].rpartition("Status Message: ")[2]
        raise ModelError(
            f"the model does not run on inputs of shape {shapes}: {reason}",
            hint=f"give real inputs with --data, or shapes that it takes, here with other sides: {_option(feed)}",
        ) from err


def _option(feed: Mapping[str, Array]) -> str:
    """The option of the command line that gives these shapes."""
    return " ".join(f"--input {name}={'x'.join(map(str, one.shape))}" for name, one in feed.items() if one.ndim)


def _array(value: Any) -> Array:
    """An output as an array: classifiers of other libraries give a list of maps from class to share; the numbers of a
    sequence of tensors are one row; an optional one that is absent has none."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([[row[name] for name in value[0]] for row in value], np.float32)
    if isinstance(value, list):
        rows = [one.reshape(1, -1) for one in map(np.asarray, value) if one.dtype.kind in "biuf"]
        return np.concatenate(rows, axis=1) if rows else np.zeros(0, np.float32)
    return np.zeros(0, np.float32) if value is None else np.asarray(value)


def _refusals() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel, state.NoSuchFile,
        state.NotImplemented, state.RuntimeException, state.NotFound, RuntimeError, ValueError,
    )  # fmt: skip


def _refusal(message: str) -> ModelError:
    found = _UNKNOWN_OP.search(message)
    if found is None:
        return ModelError(f"onnxruntime cannot open the model: {message.strip().splitlines()[0]}")
    if found["missing"] is not None:
        return ModelError(
            f"onnxruntime cannot run {found['missing']} with the types that it has in this model",
            hint="convert the model anew with types that it runs: activations in uint8 and weights in int8",
        )
    op = found["op"] or found["bare"]
    domain = found["domain"] or found["only_domain"]
    what = " of ".join(part for part in (op and f"the operator {op}", domain and f"the domain {domain}") if part)
    return ModelError(
        f"onnxruntime does not know {what}",
        hint="a custom operator needs its own library, which cannot be loaded here; export the model without it",
    )
