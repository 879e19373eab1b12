"""Samples as people have them: an `.npz`, a folder with a file for each, or a function that yields one after the other.

Those of a folder or a function are read one at a time into unnamed files that are mapped into memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from edgepack.data import LABELS, Ragged, Samples, identical, is_stacked, read_arrays, read_npz, validate
from edgepack.errors import DataError, UsageError
from edgepack.model.types import Array, TensorSpec
from edgepack.sources.images import IMAGES, ImageOptions, image_reader
from edgepack.sources.recipe import MOST_YIELDED, file_module, user_errors

Row = tuple[str, Mapping[str, Array]]
"""One sample: where it is from, and its arrays by name, without an axis for samples."""

_ARRAYS = frozenset({".npz", ".npy"})
_FOLDER = "a folder holds one file a sample, all .npz, all .npy or all images, or folders of these, one for each class"
_YIELDS = "the function takes no arguments and yields a dict for each sample, such as {'x': array, 'y': 3}"


def read_samples(path: Path, specs: Sequence[TensorSpec], images: ImageOptions | None = None) -> Samples:
    """Read and check the samples that `--data` or `--test` names.

    Args:
        path: an `.npz` with all samples; a folder with an `.npz`, `.npy` or image for each, in folders named by their
            class where they have one; or `file.py:function`.
        specs: inputs of the model.
        images: how images become arrays; None where nothing was said.

    Raises:
        DataError: nothing there, something else in between, or samples that do not fit the model or one another.
        UsageError: what was said of images does not fit the model, or there are none.
    """
    file, _, function = str(path).rpartition(":")
    files = _files(path) if path.is_dir() else []
    pictures = bool(files) and files[0][0].suffix.lower() in IMAGES
    if images is not None and not pictures:
        raise UsageError(
            f"{path}: no folder of images", hint="leave --image-size, --mean, --std and --layout out, or give one"
        )
    if file.endswith(".py") and function.isidentifier():
        return _collected(_yielded(Path(file), function), specs, str(path))
    if pictures:
        return _collected(_pictures(files, specs, images or ImageOptions(), path), specs, str(path))
    if files:
        return _collected(_arrays(files, specs), specs, str(path))
    return read_npz(path, specs)


def _files(folder: Path) -> list[tuple[Path, int | None]]:
    """The files of a folder by name, with the number of the class whose folder they lie in.

    Raises:
        DataError: none, several kinds of them, or some beside folders.
    """
    entries = _listed(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    if folders and len(folders) < len(entries):
        found = next(entry for entry in entries if not entry.is_dir())
        raise DataError(f"{folder}: it holds {found.name} beside folders such as {folders[0].name}", hint=_FOLDER)
    numbered = all(one.name.isdecimal() and len(one.name) < 10 for one in folders)
    classes = [(one, int(one.name) if numbered else number) for number, one in enumerate(folders)]
    files: list[tuple[Path, int | None]] = [(file, number) for one, number in classes for file in _listed(one)]
    files = files if folders else [(file, None) for file in entries]
    if not files:
        raise DataError(f"{folder}: the folder holds no files", hint=_FOLDER)
    first = files[0][0].suffix.lower()
    kind = next((kind for kind in (IMAGES, *({one} for one in _ARRAYS)) if first in kind), frozenset())
    strange = next((file for file, _ in files if file.suffix.lower() not in kind or not file.is_file()), None)
    if strange is not None:
        raise DataError(f"{strange}: no image, .npz or .npy, or not what the files before it are", hint=_FOLDER)
    return files


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, by name; what is hidden there is no sample."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as err:
        raise DataError(f"{folder}: cannot be read: {err.strerror}") from err


def _labelled(arrays: dict[str, Array], number: int | None) -> dict[str, Array]:
    return arrays if number is None else {LABELS: np.asarray(number), **arrays}


def _arrays(files: Sequence[tuple[Path, int | None]], specs: Sequence[TensorSpec]) -> Iterator[Row]:
    for file, number in files:
        if file.suffix.lower() == ".npz":
            yield str(file), _labelled(read_arrays(file), number)
        else:
            yield str(file), _labelled({_only(specs, file).name: _array(file)}, number)


def _array(file: Path) -> Array:
    if not file.is_file():
        raise DataError(f"{file}: a pipe or something else, a file was expected")
    try:
        array: Array = np.load(file, allow_pickle=False, mmap_mode="r")
    except Exception as err:  # numpy parses headers as Python literals, and raises whatever that does
        raise DataError(
            f"{file}: not a numeric .npy array, or truncated ({err})", hint="write it with numpy.save"
        ) from err
    return array


def _pictures(
    files: Sequence[tuple[Path, int | None]], specs: Sequence[TensorSpec], options: ImageOptions, folder: Path
) -> Iterator[Row]:
    spec = _only(specs, folder)
    read = image_reader(spec, options)
    for file, number in files:
        yield str(file), _labelled({spec.name: read(file)}, number)


def _only(specs: Sequence[TensorSpec], origin: Path) -> TensorSpec:
    if len(specs) != 1:
        raise DataError(
            f"{origin}: one array a sample, the model takes the inputs {', '.join(spec.name for spec in specs)}",
            hint="give an .npz for each sample with an array for every input",
        )
    return specs[0]


def _yielded(file: Path, function: str) -> Iterator[Row]:
    """What a function of the user yields, with its file importable meanwhile."""
    spec = f"{file}:{function}"
    if not file.is_file():
        raise DataError(f"{spec}: no such file", hint=_YIELDS)
    with file_module(file.resolve(), spec) as module:
        made = getattr(module, function, None)
        if not callable(made):
            raise DataError(f"{spec}: the file defines no function {function!r}", hint=_YIELDS)
        with user_errors(spec, "running", _YIELDS):
            for number, row in enumerate(made()):
                if number == MOST_YIELDED:
                    raise DataError(f"{spec}: it yields more than {number} samples", hint=f"end it there; {_YIELDS}")
                origin = f"{spec}: sample {number}"
                if not isinstance(row, Mapping):
                    raise DataError(f"{origin} is {type(row).__name__}, a dict was expected", hint=_YIELDS)
                yield origin, {str(name): np.asarray(value) for name, value in row.items()}


@dataclass
class _Stored:
    """The rows of one array, one after the other in an unnamed file.

    Attributes:
        file: that they are in.
        first: (1, …).
        varies: whether one of them differs from it.
        shapes: of every row, without its axis for samples.
    """

    file: IO[bytes]
    first: Array
    varies: bool = False
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, row: Array, name: str, origin: str) -> None:
        """One more, (1, …) with as many axes as the first.

        Raises:
            DataError: it has others, or holds nothing.
        """
        if row.ndim != self.first.ndim or row.size == 0:
            raise DataError(
                f"{origin}: {name!r} has shape {row.shape[1:]}, that of the first sample {self.first.shape[1:]}",
                hint="all samples of a build have the same axes, whatever their lengths",
            )
        self.varies = self.varies or not np.array_equal(row, self.first)
        self.file.write(row.tobytes())
        self.shapes.append(row.shape[1:])

    def array(self) -> Array | Ragged:
        """(N, …), mapped into memory."""
        self.file.flush()
        if len(set(self.shapes)) == 1:
            return np.memmap(self.file, self.first.dtype, "r+", shape=(len(self.shapes), *self.shapes[0]))
        shapes = np.array(self.shapes, np.int64)
        values = np.memmap(self.file, self.first.dtype, "r+", shape=(int(shapes.prod(axis=1).sum()),))
        return Ragged(values, shapes)


def _collected(rows: Iterator[Row], specs: Sequence[TensorSpec], origin: str) -> Samples:
    """All rows, checked one by one."""
    stored: dict[str, _Stored] = {}
    labels: list[Array] = []
    named = {spec.name: spec for spec in specs}
    with ExitStack() as files:
        try:
            for where, arrays in rows:
                given = {name: _one(array, named.get(name)) for name, array in arrays.items()}
                sample = validate(given, specs, where)
                _add_label(labels, sample.labels, where, first=not stored)
                for name, row in sample.arrays.items():
                    if name not in stored:
                        stored[name] = _Stored(files.enter_context(tempfile.TemporaryFile()), row)
                    stored[name].add(row, name, where)
            inputs = {name: one.array() for name, one in stored.items()}
            _check_batches(inputs, named, origin)
        except OSError as err:
            raise DataError(f"{origin}: its samples cannot be kept: {err.strerror}") from err
    if not stored:
        raise DataError(f"{origin}: no samples", hint=_YIELDS)
    found = Samples(inputs, np.concatenate(labels) if labels else None)
    if len(found) > 1 and not any(one.varies for one in stored.values()):
        raise identical(origin, len(found))
    return found


def _check_batches(inputs: Mapping[str, Array | Ragged], named: Mapping[str, TensorSpec], origin: str) -> None:
    """Samples of different shapes are run one by one."""
    for name, spec in named.items():
        many = bool(spec.shape) and spec.shape[0] not in (None, 1) and not is_stacked(inputs[name], spec)
        if many and isinstance(inputs[name], Ragged):
            raise DataError(
                f"{origin}: samples of {name!r} differ in shape, the model takes {spec.shape[0]} of them at once",
                hint="pad or cut them to one shape",
            )


def _add_label(labels: list[Array], label: Array | None, where: str, *, first: bool) -> None:
    """Of one more sample, (1, …), to those of the samples before it."""
    if not first and (label is None) == bool(labels):
        raise DataError(f"{where}: some samples have a label {LABELS!r} and others have none")
    if label is not None:
        labels.append(label)
        if label.shape != labels[0].shape:
            raise DataError(f"{where}: its label has shape {label.shape[1:]}, the first {labels[0].shape[1:]}")


def _one(array: Array, spec: TensorSpec | None) -> Array:
    """With an axis for samples in front, unless that is there and has one."""
    there = (
        spec is not None and array.ndim == len(spec.shape) and array.shape[:1] == (1,) and spec.shape[0] in (None, 1)
    )
    return array if there else array[None]
