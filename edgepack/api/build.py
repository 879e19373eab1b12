"""`edgepack.build`: model in, pack out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_type_hints, overload

from edgepack.api.given import GivenModel, GivenSamples, given_formats, given_inputs, named_model, named_samples
from edgepack.api.progress import Wanted, heard
from edgepack.api.results import Pack, Packs
from edgepack.api.target import load_target, load_targets
from edgepack.distill.budget import Budget, parse_budget
from edgepack.errors import UsageError
from edgepack.model.types import Aim
from edgepack.pipeline.build import best_attempts, failure_of_some, for_targets
from edgepack.pipeline.build import build as run
from edgepack.pipeline.options import BuildOptions, PrecisionChoice, Rank, parse_duration, parse_size
from edgepack.sources.images import ImageOptions
from edgepack.sources.inputs import GivenInput
from edgepack.targets.target import Target

_READERS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "max_size": ("max_size_bytes", parse_size),
    "max_memory": ("max_memory_bytes", parse_size),
    "max_latency": ("max_latency_s", parse_duration),
    "time_limit": ("time_limit_s", parse_duration),
    "distill": ("distill", parse_budget),
}
"""What stands in words: the field of `BuildOptions`, and what reads the words."""


class BuildKeywords(TypedDict, total=False):
    """The options of the command line, in its words or as values: sizes as "2MB" or in bytes, times as "5ms" or in
    seconds, `distill="3epochs"`, formats as "onnx,tflite", inputs as `{"x": (1, 3, 224, 224)}`."""

    test: GivenSamples
    optimize: Aim
    max_drop: float
    metric: str
    confidence: float
    formats: str | Sequence[str]
    rank: Rank
    precision: PrecisionChoice
    refit: bool
    method: str
    max_size: int | str
    max_memory: int | str
    max_latency: float | str
    time_limit: float | str
    pick: tuple[int, ...]
    distill: Budget | str
    scheduler: str
    out: str | PathLike[str]
    seed: int
    fresh: bool
    baseline: bool
    archive: bool
    channels_last: bool
    keep: str
    only: str
    inputs: Mapping[str, tuple[int, ...]] | tuple[GivenInput, ...]
    images: ImageOptions


@overload
def build(
    model: GivenModel,
    target: str | Target = "host",
    *,
    data: GivenSamples | None = None,
    example_inputs: Sequence[Any] | None = None,
    targets_file: str | PathLike[str] | None = None,
    progress: Wanted = True,
    **options: Unpack[BuildKeywords],
) -> Pack: ...


@overload
def build(
    model: GivenModel,
    target: list[str] | list[Target] | tuple[str | Target, ...],
    *,
    data: GivenSamples | None = None,
    example_inputs: Sequence[Any] | None = None,
    targets_file: str | PathLike[str] | None = None,
    progress: Wanted = True,
    **options: Unpack[BuildKeywords],
) -> Packs: ...


def build(
    model: GivenModel,
    target: str | Target | list[str] | list[Target] | tuple[str | Target, ...] = "host",
    *,
    data: GivenSamples | None = None,
    example_inputs: Sequence[Any] | None = None,
    targets_file: str | PathLike[str] | None = None,
    progress: Wanted = True,
    **options: Unpack[BuildKeywords],
) -> Pack | Packs:
    """Build a pack: the model with its layers factored and in fewer bits, its dense baselines, and a manifest.

    Args:
        model: a path, `file.py:function`, an `onnx.ModelProto`, a `Recipe`, or a torch or keras model.
        target: the CPU that it is for: a name of `targets.yaml`, or "host" for this machine. Of a list of them each
            gets a pack, and what comes before the plans is done once for all.
        data: samples that plans are judged on: a path, arrays by name with labels as `y`, or one sample after another.
        example_inputs: tensors of one call, for a torch or keras model alone.
        targets_file: more targets.
        progress: whether a bar is shown where somebody looks on, or what is told instead.
        **options: see `BuildKeywords` and `BuildOptions`. Where `out` names a model file, such as "small.onnx", that
            file is all that is written, and the path of the pack; for a list of targets it is the folder of their
            packs.

    Returns:
        The pack; for a list of targets their packs, by the names of the targets.

    Raises:
        UsageError, InputError: bad arguments, model or data; nothing is written.
        DeviceError: a measurement failed; nothing is written.
        BudgetError: no plan meets the budget; the best attempt is written, and `open_pack` opens it.
    """
    test = options.pop("test", None)
    keywords = parsed(options)
    with named_model(model, example_inputs) as spec, named_samples(data) as samples, named_samples(test) as tested:
        if isinstance(target, list | tuple):
            several = True
            targets = load_targets(target, targets_file)
        else:
            several = False
            targets = [load_target(target, targets_file)]
        asked = BuildOptions(model=spec, target=targets[0], data=samples, test=tested, **keywords)
        with heard(progress) as told:
            if not several:
                done = run(asked, progress=told)
                return Pack(done.out, done.manifest)
            if asked.pick:
                raise UsageError(f"pick is for one target, found a list of {len(targets)}")
            results = best_attempts(for_targets(asked, targets), progress=told)
    if (failure := failure_of_some(results)) is not None:
        raise failure
    return Packs(tuple(results))


def parsed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `BuildOptions`, with words as what they say.

    Raises:
        UsageError: an unknown field, or words that say nothing.
    """
    known = get_type_hints(BuildKeywords)
    if unknown := [name for name in options if name not in known]:
        raise UsageError(f"{unknown[0]}: no such option", hint=f"there are {', '.join(known)}")
    found: dict[str, Any] = {}
    for name, value in options.items():
        field, read = _READERS.get(name, (name, None))
        found[field] = read(value) if read is not None and isinstance(value, str) else value
    if "formats" in found:
        found["formats"] = given_formats(found["formats"])
    if "out" in found:
        found["out"] = Path(found["out"])
    if isinstance(found.get("inputs"), Mapping):
        found["inputs"] = given_inputs(found["inputs"])
    return found
