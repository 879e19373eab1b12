"""`edgepack.inspect`: what there is to gain in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.api.given import GivenModel, GivenSamples, given_inputs, named_model, named_samples
from edgepack.api.progress import Wanted, heard
from edgepack.api.results import Inspection
from edgepack.pipeline.inspect import InspectOptions
from edgepack.pipeline.inspect import inspect as run


def inspect(
    model: GivenModel,
    *,
    data: GivenSamples | None = None,
    example_inputs: Sequence[Any] | None = None,
    method: str | None = None,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    progress: Wanted = True,
) -> Inspection:
    """Every layer of a model: its share of bytes and multiplications, its break-even rank, and the ranks it needs.

    Args:
        model, data, example_inputs, progress: see `build`.
        method: factorizer that the ranks are by; None for whitened with data and svd without.
        inputs: shapes of inputs that the model leaves open, by name.

    Raises:
        UsageError, InputError: bad arguments, model or data.
    """
    given = given_inputs(inputs or {})
    with named_model(model, example_inputs) as spec, named_samples(data) as samples, heard(progress) as told:
        return Inspection(run(InspectOptions(spec, samples, method, given), progress=told))
