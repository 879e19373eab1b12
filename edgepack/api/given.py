"""Models and samples that a program holds, as the sources know them: by a name or a path."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgepack.data import LABELS
from edgepack.errors import DataError, ModelError
from edgepack.model.scheme import Format
from edgepack.model.types import Array, Recipe
from edgepack.paths import require_model, require_samples
from edgepack.pipeline.options import parse_formats
from edgepack.sources.inputs import GivenInput

if TYPE_CHECKING:
    import onnx
    from torch.nn import Module

GivenModel: TypeAlias = "str | PathLike[str] | Recipe | Module | onnx.ModelProto"
"""A model: its path or another name of the command line, or the model itself."""
GivenSamples = str | PathLike[str] | Mapping[str, Any] | Iterable[Any]
"""Samples: what `--data` takes; arrays with the samples on the first axis, by the input's name, labels as `y`; or one
sample after the other, each a mapping of arrays without that axis, or an array where the model has one input."""

_MODELS = "give a path, file.py:function, an onnx.ModelProto, a Recipe, or a torch or keras model with example_inputs"
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_recipes: dict[str, Recipe] = {}


def __getattr__(name: str) -> Callable[[], Recipe]:
    """A function that returns the recipe of that name, which is how sources open it."""
    if name not in _recipes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda: _recipes[name]


@contextmanager
def named_model(model: GivenModel, example_inputs: Sequence[Any] | None = None) -> Iterator[str]:
    """What MODEL of the command line would be for it, while the block runs.

    Args:
        model: a path or any other name of a model, a Recipe, a torch or keras model, or an ONNX model.
        example_inputs: tensors, as `Recipe` has them, for a torch or keras model alone.

    Raises:
        ModelError: it is anything else, or lacks its example inputs.
    """
    if isinstance(model, str | PathLike):
        _no_examples(example_inputs)
        require_model(str(model))
        yield str(model)
    elif isinstance(model, Recipe):
        _no_examples(example_inputs)
        with _named_recipe(model) as spec:
            yield spec
    elif hasattr(model, "SerializeToString"):
        _no_examples(example_inputs)
        import onnx

        with tempfile.TemporaryDirectory(prefix="edgepack-given-") as folder:
            path = Path(folder, f"{_NAME.sub('-', model.graph.name)[:80] or 'graph'}.onnx")
            onnx.save(model, path)
            yield str(path)
    elif callable(model):
        if example_inputs is None:
            raise ModelError(
                f"{type(model).__name__}: how it is called is not known",
                hint="give example_inputs=(x,): their shapes and batch are those of the files",
            )
        with _named_recipe(Recipe(model, tuple(example_inputs))) as spec:
            yield spec
    else:
        raise ModelError(f"found {type(model).__name__}, a model was expected", hint=_MODELS)


def _no_examples(example_inputs: Sequence[Any] | None) -> None:
    if example_inputs is not None:
        raise ModelError("example_inputs are for a torch or keras model: this one has its own", hint="leave them out")


@contextmanager
def _named_recipe(recipe: Recipe) -> Iterator[str]:
    name = type(recipe.model).__name__
    before = _recipes.get(name)
    _recipes[name] = recipe
    try:
        yield f"{__name__}:{name}"
    finally:
        if before is None:
            del _recipes[name]
        else:
            _recipes[name] = before


@contextmanager
def named_samples(samples: GivenSamples | None) -> Iterator[Path | None]:
    """What `--data` of the command line would be for them, while the block runs. They are written to disk one by one.

    Raises:
        DataError: it is no kind of samples.
    """
    if samples is None or isinstance(samples, str | PathLike):
        require_samples(samples)
        yield None if samples is None else Path(samples)
        return
    with tempfile.TemporaryDirectory(prefix="edgepack-given-") as folder:
        if isinstance(samples, Mapping):
            path = Path(folder, "samples.npz")
            arrays: dict[str, Any] = {str(name): _array(value) for name, value in samples.items()}
            np.savez(path, allow_pickle=False, **arrays)
            try:
                yield path
            except DataError as err:  # the file is ours, so the caller does not know it
                message = err.message.replace(f"{path}: ", "data: ").replace(str(path), "data")
                raise DataError(message, hint=err.hint) from err
        elif isinstance(samples, Iterable):
            path = Path(folder, "samples")
            path.mkdir()
            for number, sample in enumerate(samples):
                _write_sample(path / f"{number:09d}", sample)
            yield path
        else:
            raise DataError(
                f"found {type(samples).__name__}, samples were expected",
                hint=f"give a path, {{'x': (N, …), {LABELS!r}: (N,)}}, or an iterable of samples",
            )


def _write_sample(stem: Path, sample: Any) -> None:
    if isinstance(sample, Mapping):
        arrays: dict[str, Any] = {str(name): _array(value) for name, value in sample.items()}
        np.savez(stem.with_suffix(".npz"), allow_pickle=False, **arrays)
    else:
        np.save(stem.with_suffix(".npy"), _array(sample), allow_pickle=False)


def _array(value: Any) -> Array:
    """A tensor or anything like an array.

    Raises:
        DataError: it holds anything but numbers.
    """
    detached = value.detach().cpu() if hasattr(value, "detach") else value
    array = np.asarray(detached)
    if array.dtype.hasobject:
        raise DataError(f"found an array of {array.dtype}, numbers were expected")
    return array


def given_formats(formats: str | Sequence[str]) -> tuple[Format, ...]:
    """`"onnx,tflite"`, or their names one by one.

    Raises:
        UsageError: an unknown format.
    """
    return parse_formats(formats if isinstance(formats, str) else ",".join(formats))


def given_inputs(shapes: Mapping[str, Sequence[int]]) -> tuple[GivenInput, ...]:
    """Shapes of inputs by name, as sources take them."""
    return tuple(GivenInput(name, tuple(shape)) for name, shape in shapes.items())
