"""The door for samples: everything that can be wrong with an .npz, the split, and how samples become runs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgepack import data
from edgepack.data import from_recipe, read_npz, validate
from edgepack.errors import DataError
from edgepack.model.types import Array, TensorSpec


def spec(name: str = "x", shape: tuple[int | None, ...] = (None, 3), dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, np.dtype(dtype))


X = (spec(),)
IDS = (spec("ids", (1, None), "int64"), spec("mask", (1, None), "int64"))


def varied(*shape: int, dtype: str = "float32") -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def saved(folder: Path, **arrays: Array) -> Path:
    path = folder / "d.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_reads_inputs_and_labels(tmp_path: Path) -> None:
    samples = read_npz(saved(tmp_path, x=varied(5, 3, dtype="float64"), y=np.arange(5)), X)
    assert len(samples) == 5
    assert samples.inputs["x"].dtype == np.float32
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]
    head = samples.take(np.array([3, 0]))
    assert head.labels is not None
    assert (head.inputs["x"][:, 0].tolist(), head.labels.tolist()) == ([9.0, 0.0], [3, 0])
    assert len(samples.head(99)) == 5
    assert len(samples.head(2)) == 2


def test_compressed_and_fortran_ordered(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.asfortranarray(varied(5, 3)))
    samples = read_npz(tmp_path / "d.npz", X)
    np.testing.assert_array_equal(samples.inputs["x"], varied(5, 3))
    assert samples.inputs["x"].flags.c_contiguous


BAD_ARRAYS: dict[str, tuple[Mapping[str, Array], str]] = {
    "wrong name": ({"z": varied(5, 3)}, "found arrays ['z'], the model's inputs are ['x']"),
    "one too many": ({"x": varied(5, 3), "w": varied(5, 3)}, "found arrays ['w', 'x']"),
    "only labels": ({"y": np.arange(5)}, "found arrays []"),
    "nothing": ({}, "found arrays []"),
    "too wide": ({"x": varied(5, 4)}, "'x' has shape (5, 4), expected (N, 3), N = samples"),
    "too few axes": ({"x": varied(5)}, "'x' has shape (5,), expected (N, 3)"),
    "a number": ({"x": np.float32(3)}, "'x' has shape (), expected (N, 3)"),
    "too many axes": ({"x": varied(5, 1, 1, 3)}, "'x' has shape (5, 1, 1, 3), expected (N, 3)"),
    "stacked, wrong inside": ({"x": varied(5, 2, 4)}, "'x' has shape (5, 2, 4), expected (N, any, 3)"),
    "complex": ({"x": varied(5, 3, dtype="complex64")}, "'x' has dtype complex64, the model takes float32"),
    "text": ({"x": np.full((5, 3), "a")}, "'x' has dtype <U1, the model takes float32"),
    "NaN": (
        {"x": np.where(varied(5, 3) == 10, np.nan, varied(5, 3))},
        "holds NaN or Inf as float32 (first in sample 3)",
    ),
    "Inf": ({"x": np.where(varied(5, 3) == 0, np.inf, 1.0)}, "holds NaN or Inf as float32 (first in sample 0)"),
    "too large for float32": ({"x": varied(5, 3, dtype="float64") * 1e300}, "holds NaN or Inf as float32"),
    "no samples": ({"x": varied(0, 3)}, "no samples"),
    "no samples but labels": ({"x": varied(0, 3), "y": np.zeros(0)}, "no samples"),
    "constant": ({"x": np.full((9, 3), 0.1)}, "all 9 samples are identical"),
    "zeros": ({"x": np.zeros((9, 3))}, "all 9 samples are identical"),
    "labels too short": (
        {"x": varied(5, 3), "y": np.arange(4)},
        "differ in samples on their first axis: {'x': 5, 'y': 4}",
    ),
    "labels without an axis": (
        {"x": varied(5, 3), "y": np.int64(3)},
        "'y' has shape () and dtype int64, expected N numbers",
    ),
    "labels in words": ({"x": varied(2, 3), "y": np.array(["cat", "dog"])}, "'y' has shape (2,) and dtype <U3"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case: str, tmp_path: Path) -> None:
    arrays, expected = BAD_ARRAYS[case]
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        read_npz(path, X)
    assert expected in caught.value.message
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.exit_code == 3


def test_did_you_mean(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_npz(saved(tmp_path, input_id=varied(5, 3)), (spec("input_ids"),))
    assert caught.value.hint == "rename 'input_id' to 'input_ids'"
    with pytest.raises(DataError) as caught:
        read_npz(saved(tmp_path, z=varied(5, 3)), (spec("input_ids"),))
    assert caught.value.hint == "one array per model input: input_ids"


def test_integers_must_fit() -> None:
    small = (spec("x", (None, 3), "int32"),)
    assert validate({"x": varied(4, 3, dtype="int64")}, small, "o").inputs["x"].dtype == np.int32
    with pytest.raises(DataError, match="holds int64 values that do not fit the model's int32"):
        validate({"x": varied(4, 3, dtype="int64") + 2**40}, small, "o")
    with pytest.raises(DataError, match="'x' has dtype float32, the model takes int32"):
        validate({"x": varied(4, 3)}, small, "o")


def test_a_model_input_called_y_is_no_label() -> None:
    samples = validate({"y": varied(4, 3)}, (spec("y"),), "o")
    assert samples.labels is None
    assert list(samples.inputs) == ["y"]


def test_one_sample_cannot_be_constant() -> None:
    assert len(validate({"x": np.zeros((1, 3))}, X, "o")) == 1


def test_one_constant_input_among_others_is_fine() -> None:
    ids = {"ids": varied(6, 4, dtype="int64"), "mask": np.ones((6, 4), np.int64)}
    assert list(validate(ids, IDS, "o").inputs) == ["ids", "mask"]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            read_npz(path, X)


class Trap:
    """Unpickling it would leave a mark."""

    fired = False

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (_fire, ())


def _fire() -> None:
    Trap.fired = True


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    trap = np.array([Trap(), Trap()], dtype=object)
    np.savez(tmp_path / "d.npz", x=trap)
    np.save(tmp_path / "bare.npz", trap, allow_pickle=True)
    with pytest.raises(DataError, match="pickles are never read") as caught:
        read_npz(tmp_path / "d.npz", X)
    assert "float32" in (caught.value.hint or "")
    with pytest.raises(DataError):
        read_npz(tmp_path / "bare.npz.npy", X)
    assert not Trap.fired


@pytest.mark.parametrize("compressed", [False, True])
def test_every_truncation_is_refused(tmp_path: Path, compressed: bool) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, x=varied(5, 3))
    whole, path = buffer.getvalue(), tmp_path / "d.npz"
    for size in range(0, len(whole), 3):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"d\.npz"):
            read_npz(path, X)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_refused_or_harmless(tmp_path: Path, compressed: bool) -> None:
    """Flip every byte: a typed error, or the array as it was; never another exception, never other numbers."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, x=varied(5, 3))
    whole, path = buffer.getvalue(), tmp_path / "d.npz"
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = read_npz(path, X).inputs["x"]
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, varied(5, 3))
    assert refused > len(whole) / 2


def test_not_an_archive_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"not an \.npz archive"):
        read_npz(path, X)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "hello")
    with pytest.raises(DataError, match="'x' is not a numpy array"):
        read_npz(path, X)


def test_sizes_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**45, 3)})
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(DataError, match=r"d\.npz"):
        read_npz(path, X)
    monkeypatch.setattr(data, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="unpacked, at most"):
        read_npz(saved(tmp_path, x=varied(500, 3)), X)


def test_recipe_data_by_name_order_and_iterable() -> None:
    two = (spec("a"), spec("b", (None, 2)))
    a, b = varied(6, 3), varied(6, 2)
    for calibration in (
        {"b": b, "a": a},
        {"first": a, "second": b},
        [(a[:4], b[:4]), (a[4:], b[4:])],
        iter([(a[i : i + 1], b[i : i + 1]) for i in range(6)]),
    ):
        samples = from_recipe(calibration, two, "r.py:f")
        np.testing.assert_array_equal(samples.inputs["a"], a)
        np.testing.assert_array_equal(samples.inputs["b"], b)
    labelled = from_recipe({"first": a, "second": b, "y": np.arange(6)}, two, "r.py:f")
    assert labelled.labels is not None
    assert from_recipe([a[:2], a[2:]], X, "r.py:f").inputs["x"].shape == (6, 3)


@pytest.mark.parametrize(("rows", "found"), [([], "nothing"), ([(varied(1, 3), varied(1, 3))], "2 arrays")])
def test_recipe_rows_of_the_wrong_length(rows: list[tuple[Array, ...]], found: str) -> None:
    with pytest.raises(DataError, match=f"r.py:f: calibration yields {found}, the model takes 1 inputs"):
        from_recipe(rows, X, "r.py:f")
