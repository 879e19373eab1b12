"""`edgepack.inspect`: what there is to gain in a model, and what its operators take on a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, overload

from edgepack.api.given import GivenModel, GivenSamples, given_inputs, named_model, named_samples
from edgepack.api.progress import Wanted, heard
from edgepack.api.results import Inspection, OperatorInspection
from edgepack.api.target import load_target
from edgepack.errors import UsageError
from edgepack.pipeline.inspect import InspectOptions
from edgepack.pipeline.inspect import inspect as run
from edgepack.pipeline.operators import inspect_operators
from edgepack.targets.target import Target


@overload
def inspect(
    model: GivenModel,
    *,
    target: None = None,
    data: GivenSamples | None = None,
    example_inputs: Sequence[Any] | None = None,
    method: str | None = None,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    progress: Wanted = True,
) -> Inspection: ...


@overload
def inspect(
    model: GivenModel,
    *,
    target: str | Target,
    data: GivenSamples | None = None,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    progress: Wanted = True,
) -> OperatorInspection: ...


def inspect(
    model: GivenModel,
    *,
    target: str | Target | None = None,
    data: GivenSamples | None = None,
    example_inputs: Sequence[Any] | None = None,
    method: str | None = None,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    progress: Wanted = True,
) -> Inspection | OperatorInspection:
    """Every layer of a model: its share of bytes and multiplications, its break-even rank, and the ranks it needs.

    Args:
        model, data, example_inputs, progress: see `build`.
        target: a target of `load_target`, for every operator of a model file instead: what it takes there, and which
            run in a slow kernel. Such a file is the path of an ONNX or TFLite file, or an `onnx.ModelProto`.
        method: factorizer that the ranks are by; None for whitened with data and svd without.
        inputs: shapes of inputs that the model leaves open, by name.

    Raises:
        UsageError, InputError: bad arguments, model or data.
        TargetsError: there is no such target, or it has no runtime for the file.
    """
    if target is not None and not (isinstance(model, str | PathLike) or hasattr(model, "SerializeToString")):
        raise UsageError(
            f"target shows the operators of a model file: found {type(model).__name__}",
            hint="give the path of an ONNX or TFLite file or an onnx.ModelProto, or leave target out",
        )
    given = given_inputs(inputs or {})
    with named_model(model, example_inputs) as spec, named_samples(data) as samples, heard(progress) as told:
        options = InspectOptions(spec, samples, method, given)
        if target is None:
            return Inspection(run(options, progress=told))
        return OperatorInspection(inspect_operators(options, load_target(target), progress=told))
