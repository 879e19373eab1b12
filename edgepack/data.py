"""Samples: the door for `.npz` files and recipe data, and their seeded split in three."""

from __future__ import annotations

import difflib
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import DataError
from edgepack.model.types import Array, TensorSpec
from edgepack.workers.sandbox import MORE, limits_of

LABELS = "y"
FEWEST_CONFIRMED = 60
"""Samples: of fewer no part is kept back, as it would confirm nothing."""
MAX_BYTES = 8 * 2**30
DYNAMIC_BATCH = 4
"""Samples of one run where the model leaves it open: few, because all activations of a run are in memory at once, and
because a file that takes its ranges from the data takes them from the whole run, which on a device is one sample."""

FIRST_RUNS = 4
"""Samples by which a conversion is compared with its source."""
COPIED = 64
"""Samples at a time, from one file to another."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Samples of different shapes and of one number of axes, where an array has them in one shape.

    Attributes:
        values: (n,) those of all samples, one after the other.
        shapes: (N, axes) int64.
    """

    values: Array
    shapes: Array

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def ndim(self) -> int:
        """Axes, that of the samples among them."""
        return 1 + int(self.shapes.shape[1])

    def row(self, number: int) -> Array:
        """One sample, without an axis for samples."""
        start, end = self._ends[number], self._ends[number + 1]
        return np.asarray(self.values[start:end].reshape(self.shapes[number]))

    @cached_property
    def _ends(self) -> Array:
        """(N + 1,) where each sample begins, and the last one ends."""
        return np.concatenate([[0], np.cumsum(self.shapes.prod(axis=1))])

    def take(self, indices: Array) -> Ragged:
        """The samples at `indices`, in that order; those of a file are in a file as well."""
        shapes = self.shapes[indices]
        rows = (self.row(int(number)).reshape(-1) for number in indices)
        if not isinstance(self.values, np.memmap) or not len(indices):
            return Ragged(np.concatenate([self.values[:0], *rows]), shapes)
        taken = _in_a_file(self.values.dtype, (int(shapes.prod(axis=1).sum()),))
        start = 0
        for row in rows:
            taken[start : start + len(row)] = row
            start += len(row)
        return Ragged(taken, shapes)


@dataclass(frozen=True)
class Samples:
    """Aligned arrays, one per model input, first axis = samples, and their labels if there are any."""

    inputs: Mapping[str, Array | Ragged]
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: Array) -> Samples:
        """The samples at `indices`, in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return Samples({name: _taken(array, indices) for name, array in self.inputs.items()}, labels)

    @property
    def ragged(self) -> bool:
        """Whether they differ in shape."""
        return any(isinstance(array, Ragged) for array in self.inputs.values())

    @property
    def arrays(self) -> dict[str, Array]:
        """The inputs that are of one shape."""
        return {name: array for name, array in self.inputs.items() if not isinstance(array, Ragged)}

    def head(self, count: int) -> Samples:
        """The first `count` samples."""
        return self.take(np.arange(min(count, len(self))))


def _taken(array: Array | Ragged, indices: Array) -> Array | Ragged:
    """The rows at `indices`; those of an array that is mapped into memory are in a file as well."""
    if isinstance(array, Ragged):
        return array.take(indices)
    if not isinstance(array, np.memmap) or not len(indices):
        return np.asarray(array[indices])
    taken = _in_a_file(array.dtype, (len(indices), *array.shape[1:]))
    for start in range(0, len(indices), COPIED):
        taken[start : start + COPIED] = array[indices[start : start + COPIED]]
    return taken


def _in_a_file(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Room for an array in an unnamed file that is mapped into memory."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def read_npz(path: Path, specs: Sequence[TensorSpec]) -> Samples:
    """Read and validate `path` against the model's inputs; never unpickles.

    Raises:
        DataError: missing, not an npz, pickled, too large, or not fitting `specs`.
    """
    return _varied(validate(read_arrays(path), specs, str(path)), str(path))


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` by name; never unpickles.

    Raises:
        DataError: missing, not an npz, pickled or too large.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="--data takes an .npz with one array per model input")
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        most = min(MAX_BYTES, limits_of(path.stat().st_size).memory_bytes)
        if total > most:
            raise DataError(
                f"{path}: {total / 2**30:.1f} GiB unpacked, at most {most / 2**30:.1f} GiB of "
                f"{path.stat().st_size} bytes are read",
                hint=f"save it with numpy.savez, uncompressed; or {MORE}",
            )
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as err:
        raise DataError(
            f"{path}: not an .npz archive, or truncated ({err})", hint="write it with numpy.savez(path, x=…, y=…)"
        ) from err
    except MemoryError as err:
        raise DataError(f"{path}: an array claims more memory than there is ({err})") from err
    except DataError:
        raise
    except Exception as err:  # numpy parses headers as Python literals, and raises whatever that does
        raise DataError(
            f"{path}: an array holds Python objects or is damaged ({err}); pickles are never read",
            hint="save plain numeric arrays: numpy.savez(path, x=np.asarray(x, dtype=np.float32))",
        ) from err
    foreign = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if foreign:
        raise DataError(
            f"{path}: {foreign[0]!r} is not a numpy array", hint="write it with numpy.savez(path, x=…, y=…)"
        )
    return arrays


def from_recipe(
    calibration: Mapping[str, Array] | Iterable[tuple[Array, ...]], specs: Sequence[TensorSpec], origin: str
) -> Samples:
    """A recipe's calibration data as `Samples`; arrays are matched by name, else by order.

    Raises:
        DataError: the arrays do not fit `specs`.
    """
    if isinstance(calibration, Mapping):
        arrays = {name: np.asarray(array) for name, array in calibration.items()}
    else:
        rows = [tuple(np.asarray(a) for a in (r if isinstance(r, tuple | list) else (r,))) for r in calibration]
        if not rows or any(len(r) != len(specs) for r in rows):
            found = f"{len(rows[0])} arrays" if rows else "nothing"
            raise DataError(f"{origin}: calibration yields {found}, the model takes {len(specs)} inputs")
        arrays = {spec.name: np.concatenate([r[i] for r in rows]) for i, spec in enumerate(specs)}
    names = [name for name in arrays if name != LABELS]
    if len(names) == len(specs) and not set(names) & {spec.name for spec in specs}:
        labels = {LABELS: arrays[LABELS]} if LABELS in arrays else {}
        arrays = {spec.name: arrays[name] for spec, name in zip(specs, names, strict=True)} | labels
    return _varied(validate(arrays, specs, origin), origin)


def validate(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], origin: str) -> Samples:
    """Check names, shapes, dtypes, counts and finiteness against the model's inputs.

    Raises:
        DataError: naming the array, what was found and what was expected.
    """
    wanted = {spec.name: spec for spec in specs}
    labels = None if LABELS in wanted else arrays.get(LABELS)
    given = {name: array for name, array in arrays.items() if name in wanted or name != LABELS}
    _check_names(given, wanted, origin)
    inputs = {name: _fitted(given[name], spec, origin) for name, spec in wanted.items()}
    if labels is not None and (labels.ndim == 0 or labels.dtype.kind not in "iubf"):
        raise DataError(f"{origin}: {LABELS!r} has shape {labels.shape} and dtype {labels.dtype}, expected N numbers")
    counts = {name: len(array) for name, array in inputs.items()} | ({} if labels is None else {LABELS: len(labels)})
    if len(set(counts.values())) != 1:
        raise DataError(f"{origin}: the arrays differ in samples on their first axis: {counts}")
    if min(counts.values()) == 0:
        raise DataError(f"{origin}: no samples")
    return Samples(inputs, labels)


def _varied(samples: Samples, origin: str) -> Samples:
    """The samples, if they differ from one another: identical ones say nothing about a layer's inputs."""
    if len(samples) > 1 and all((array == array[:1]).all() for array in samples.arrays.values()):
        raise identical(origin, len(samples))
    return samples


def identical(origin: str, count: int) -> DataError:
    """That samples do not differ."""
    return DataError(
        f"{origin}: all {count} samples are identical; statistics need inputs that vary",
        hint="give representative inputs, a few hundred or more",
    )


def _check_names(given: Mapping[str, Array], wanted: Mapping[str, TensorSpec], origin: str) -> None:
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if not missing and not unknown:
        return
    guess = difflib.get_close_matches(missing[0], unknown, n=1) if missing and unknown else []
    hint = f"rename {guess[0]!r} to {missing[0]!r}" if guess else f"one array per model input: {', '.join(wanted)}"
    raise DataError(
        f"{origin}: found arrays {sorted(given)}, the model's inputs are {list(wanted)}"
        f" (and an optional {LABELS!r} with labels)",
        hint=hint,
    )


def is_stacked(array: Array | Ragged, spec: TensorSpec) -> bool:
    """Whether each entry of `array` is one whole input (an axis more than the model's) rather than one batch row."""
    return array.ndim == len(spec.shape) + 1


def _fitted(array: Array, spec: TensorSpec, origin: str) -> Array:
    shape = (None, *spec.shape) if is_stacked(array, spec) else (None, *spec.shape[1:])
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        expected = ", ".join("N" if i == 0 else ("any" if d is None else str(d)) for i, d in enumerate(shape))
        raise DataError(f"{origin}: {spec.name!r} has shape {array.shape}, expected ({expected}), N = samples")
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise DataError(f"{origin}: {spec.name!r} has dtype {array.dtype}, the model takes {spec.dtype}")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=spec.dtype)
    if cast.dtype.kind == "f" and not np.isfinite(cast).all():
        bad = int(np.argwhere(~np.isfinite(cast))[0][0])
        raise DataError(f"{origin}: {spec.name!r} holds NaN or Inf as {spec.dtype} (first in sample {bad})")
    if cast.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise DataError(f"{origin}: {spec.name!r} holds {array.dtype} values that do not fit the model's {spec.dtype}")
    return cast


@dataclass(frozen=True)
class Parts:
    """Samples in three parts that share none.

    Attributes:
        calibration: what layers are factored and rounded by.
        validation: what plans are chosen on.
        confirmation: what the chosen plan alone is scored on; None where there are too few samples for that.
    """

    calibration: Samples
    validation: Samples
    confirmation: Samples | None


def split(samples: Samples, seed: int, calibration: int) -> Parts:
    """Seeded and disjoint: so many samples for calibration, at most a third; half of the others to validate, half to
    confirm.

    Raises:
        DataError: fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        raise DataError(
            f"{count} sample cannot be split into calibration and validation", hint="give at least 2, better 2000"
        )
    first = min(max(calibration, 1), max(count // 3, 1))
    second = count if count < FEWEST_CONFIRMED else first + (count - first) // 2
    order = np.random.default_rng(seed).permutation(count)
    parts = [samples.take(np.sort(rows)) for rows in (order[:first], order[first:second], order[second:])]
    return Parts(parts[0], parts[1], parts[2] if len(parts[2]) else None)


def feeds(
    samples: Samples, specs: Sequence[TensorSpec], *, dynamic_batch: int = DYNAMIC_BATCH
) -> Iterator[tuple[dict[str, Array], int]]:
    """Cut samples into runs of the model: (inputs by name, how many samples of the run are real).

    A fixed batch dimension is filled up by repeating the last sample; a dynamic one takes `dynamic_batch` at a time,
    but samples of different shapes one by one.
    """
    count = len(samples)
    stacked = {spec.name: is_stacked(samples.inputs[spec.name], spec) for spec in specs}
    batches = [spec.shape[0] for spec in specs if not stacked[spec.name] and spec.shape]
    alone = samples.ragged or any(stacked.values())
    size = 1 if alone else next((b for b in batches if b is not None), dynamic_batch)
    for start in range(0, count, size):
        stop = min(start + size, count)
        filled = stop - start < size and any(b is not None for b in batches)
        rows = np.minimum(np.arange(start, start + size), count - 1) if filled else slice(start, stop)
        feed = {n: _run(a, start, rows, stacked=stacked[n]) for n, a in samples.inputs.items()}
        yield feed, stop - start


def _run(array: Array | Ragged, start: int, rows: Any, *, stacked: bool) -> Array:
    """What one run takes of an input."""
    if isinstance(array, Ragged):
        row = array.row(start)
        return row if stacked else row[None]
    return np.asarray(array[start, ...] if stacked else array[rows])


def first_runs(samples: Samples, specs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
    """Inputs of a few single runs, those of the first ones that have the shapes of `example`."""
    first, *others = (feed for feed, _ in feeds(samples.head(FIRST_RUNS), specs, dynamic_batch=1))
    alike = [other for other in others if all(other[name].shape == array.shape for name, array in first.items())]
    return [first, *alike]


def example(samples: Samples | None, specs: Sequence[TensorSpec], seed: int) -> dict[str, Array]:
    """One run's inputs: the first samples, or seeded stand-ins where there is no data (dynamic dimensions become 1)."""
    if samples is not None:
        feed, valid = next(feeds(samples, specs))
        if not any(is_stacked(samples.inputs[s.name], s) for s in specs):
            keep = next((s.shape[0] for s in specs if s.shape and s.shape[0] is not None), 1)
            feed = {name: array[: keep or 1] for name, array in feed.items()}
        del valid
        return feed
    rng = np.random.default_rng(seed)
    return {spec.name: _stand_in(spec, rng) for spec in specs}


def _stand_in(spec: TensorSpec, rng: np.random.Generator) -> Array:
    shape = tuple(1 if d is None else d for d in spec.shape)
    if spec.dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype=spec.dtype)
    zeros: np.ndarray[Any, Any] = np.zeros(shape, dtype=spec.dtype)
    return zeros


def turned(array: Array, shape: Sequence[int | None]) -> Array:
    """An image (N, C, H, W) with its channels last where a file takes it so: where only that has the shape."""
    if array.ndim != 4 or _has(array, shape) or not _has(last := np.moveaxis(array, 1, 3), shape):
        return array
    return np.ascontiguousarray(last)


def _has(array: Array, shape: Sequence[int | None]) -> bool:
    return len(shape) == array.ndim and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))


def rename(samples: Samples, specs: Sequence[TensorSpec]) -> Samples:
    """Samples under the names of `specs`, matched by order where the names differ."""
    if {spec.name for spec in specs} == set(samples.inputs):
        return samples
    return Samples(dict(zip((s.name for s in specs), samples.inputs.values(), strict=True)), samples.labels)
