"""`edgepack build -o small.onnx`: the file, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgepack as ep
from edgepack.backends.runtime import load
from tests.e2e.e2e_cli import Done, assert_fails, invoke


def build(model: Path, data: Path, out: Path, *more: str) -> Done:
    cache = {"EDGEPACK_CACHE": str(out.parent.parent / "cache")}
    asked = ("--target", "rpi4", "--data", data, "--max-drop", "1", *more)
    return invoke("build", model, *asked, "-o", out, env=cache)


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_the_file_runs_and_is_all_that_there_is(suffix: str, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / f"small.{suffix}"
    done = build(model, data, out)
    assert done.code == 0, done.err
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert done.out.splitlines()[0] == f"{out}: points for rpi4, metric: r2" or str(out) in "".join(done.out.split())
    assert f" {out.name} " in done.out
    assert "model.onnx" not in done.out
    assert "baseline/" not in done.out
    samples = np.load(data)["x"][:1]
    (answer,) = load(out, suffix).run({"x": samples})
    assert np.isfinite(answer).all()
    again = build(model, data, out, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["file"] == str(out)


def test_a_budget_that_is_not_met_leaves_the_best_attempt(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "small.onnx"
    done = build(model, data, out, "--max-size", "2kB")
    assert done.code == 5
    assert f" {out.name} " in done.out
    assert f"the best attempt is written to {out}" in done.err
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--formats", "tflite"), "small.onnx is one file, and --formats asks for tflite"),
        (("--archive",), "small.onnx is one file: there is no pack for --archive"),
    ],
)
def test_what_a_file_cannot_have_is_refused(
    more: tuple[str, ...], says: str, model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models" / "small.onnx"
    assert_fails(build(model, data, out, *more), 2, [says], out=out)


def test_the_model_itself_is_never_replaced(model: Path, data: Path) -> None:
    before = model.read_bytes()
    assert_fails(build(model, data, model), 2, ["points.onnx is the model itself"])
    assert model.read_bytes() == before


def test_from_python_the_pack_is_the_file(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    pack = ep.build(model, "rpi4", data=data, max_drop=1, out=out, progress=False)
    assert pack.path == pack["onnx"].path == out
    assert out.stat().st_size == pack["onnx"].size_bytes
    assert "small.onnx" in pack.to_markdown()
    with pytest.raises(ep.errors.PackError):
        ep.compare([pack])
