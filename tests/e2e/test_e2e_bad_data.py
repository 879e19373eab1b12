"""Data that do not fit: one clear line that says what was found and what was expected, exit 3, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.e2e_cli import assert_fails, invoke
from tests.e2e.e2e_models import points

X = points(300, 4)[0]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"x": np.zeros_like(X)}, "all 300 samples are identical"),
    "constant": ({"x": np.full_like(X, 0.5)}, "all 300 samples are identical"),
    "name": ({"X": X}, r"found arrays \['X'\], the model's inputs are \['x'\]"),
    "extra": ({"x": X, "z": X}, r"found arrays \['x', 'z'\]"),
    "only labels": ({"y": np.zeros(300)}, r"found arrays \[\]|found arrays \['y'\]"),
    "width": ({"x": X[:, :60]}, r"'x' has shape \(300, 60\), expected \(N, 64\)"),
    "axes": ({"x": X[0]}, r"'x' has shape \(64,\), expected \(N, 64\)"),
    "scalar": ({"x": np.float32(1)}, r"'x' has shape \(\)"),
    "text": ({"x": X.astype(str)}, "'x' has dtype <U32, the model takes float32"),
    "complex": ({"x": X.astype(complex)}, "dtype complex128"),
    "nan": ({"x": np.where(X > 3, np.nan, X)}, "'x' holds NaN or Inf"),
    "overflow": ({"x": X.astype(float) * 1e300}, "'x' holds NaN or Inf as float32"),
    "no samples": ({"x": X[:0]}, "no samples"),
    "one sample": ({"x": X[:1]}, "cannot be split"),
    "label count": ({"x": X, "y": np.zeros(7, int)}, r"differ in samples .*'y': 7"),
    "label text": ({"x": X, "y": np.array(["a"] * 300)}, "'y' has shape .* dtype <U1"),
    "label too large": (
        {"x": X, "y": np.full(300, 8)},
        r"labels 'y' \(int64 \(100,\), from 8 to 8\) fit no output of the model",
    ),
    "label negative": ({"x": X, "y": np.full(300, -1)}, r"labels 'y' \(int64 \(100,\), from -1 to -1\) fit no output"),
    "pickled": ({"x": np.array([{"a": 1}], dtype=object)}, "pickles are never read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(tmp_path: Path, model: Path, name: str) -> None:
    arrays, says = BAD[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    out = tmp_path / "out" / "pack"
    done = invoke(
        *("build", model, "--target", "rpi4", "--formats", "onnx", "--data", tmp_path / "bad.npz", "--out", out)
    )
    assert_fails(done, 3, [says], hint=False, out=out)


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a zip archive")


def _empty(path: Path) -> None:
    path.touch()


def _truncated(path: Path) -> None:
    np.savez(path, x=X)
    path.write_bytes(path.read_bytes()[:5000])


def _array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, X)


@pytest.mark.parametrize("make", [_garbage, _empty, _truncated, _array])
@pytest.mark.parametrize("option", ["--data", "--test"])
def test_not_an_npz(tmp_path: Path, model: Path, option: str, make: Any) -> None:
    make(tmp_path / "bad.npz")
    out = tmp_path / "out" / "pack"
    done = invoke(
        *("build", model, "--target", "rpi4", "--formats", "onnx", option, tmp_path / "bad.npz", "--out", out)
    )
    assert_fails(done, 3, [r"bad\.npz: not an \.npz archive"], out=out)


@pytest.mark.parametrize("command", ["build", "inspect"])
def test_missing_data_file(tmp_path: Path, model: Path, command: str) -> None:
    out = tmp_path / "out" / "pack"
    options = ("--target", "rpi4", "--out", out) if command == "build" else ()
    done = invoke(command, model, "--data", tmp_path / "nope.npz", *options)
    assert_fails(done, 3, [r"nope\.npz: no such file"], out=out)


def test_bad_test_data_is_found_before_the_search(tmp_path: Path, model: Path, data: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=X[:, :5])
    out = tmp_path / "out" / "pack"
    options = ("--formats", "onnx", "--data", data, "--test", tmp_path / "bad.npz", "--out", out)
    done = invoke("build", model, "--target", "rpi4", *options)
    assert_fails(done, 3, [r"bad\.npz: 'x' has shape \(300, 5\)"], hint=False, out=out)


def test_data_of_other_number_types_are_cast(tmp_path: Path, model: Path) -> None:
    for dtype in (np.float64, np.int16, np.float16):
        np.savez(tmp_path / "data.npz", x=(X * 10).astype(dtype))
        out = tmp_path / str(np.dtype(dtype))
        options = ("--formats", "onnx", "--rank", "8", "--data", tmp_path / "data.npz", "--out", out)
        done = invoke("build", model, "--target", "rpi4", *options)
        assert done.code == 0, done.err
