"""Whole builds around the proof of structure: layers of the same sides, a layer that the runtime makes dense again, and
a format that cannot be written at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.cli import app
from edgepack.errors import ModelError
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.types import Written
from edgepack.pipeline.build import build
from edgepack.workspace import Cache
from tests.pipeline.small_builds import options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def write_chain(path: Path, *sides: tuple[int, int]) -> Path:
    """Linear layers (outputs, inputs) with a bias, one behind the other with ReLU between them; data beside it."""
    rng = np.random.default_rng(0)
    nodes, constants, x = [], {}, "x"
    for number, (rows, columns) in enumerate(sides):
        constants[f"w{number}"] = rng.normal(size=(rows, columns)) / np.sqrt(columns)
        constants[f"b{number}"] = rng.normal(size=rows)
        y = "y" if number == len(sides) - 1 else f"h{number}"
        nodes.append(helper.make_node("Gemm", [x, f"w{number}", f"b{number}"], [y], transB=1))
        x = f"r{number}"
        if y != "y":
            nodes.append(helper.make_node("Relu", [y], [x]))
    ends = [("x", sides[0][1]), ("y", sides[-1][0])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in ends]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    np.savez(path.parent / "data.npz", x=rng.normal(size=(600, sides[0][1])).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("sides", "rank", "ranks"),
    [
        # The pair of the first layer has the sides of the second one, which stays dense.
        ([(64, 32), (16, 64), (32, 16), (16, 32)], 16, [16, None, None, None]),
        # The second layer is factored, and its own dense sides are those of both halves of the first one's pair.
        ([(128, 128), (32, 128), (8, 32)], 0.5, [32, 12, 3]),
    ],
    ids=["beside a dense layer", "beside a factored one"],
)
def test_a_pair_with_the_sides_of_another_layers_matrix(
    sides: list[tuple[int, int]], rank: int | float, ranks: list[int | None], cache: Path, tmp_path: Path
) -> None:
    model = write_chain(tmp_path / "chain.onnx", *sides)
    asked = options(model, rank=rank, formats=("onnx", "tflite"), out=tmp_path / "pack")
    record = build(asked, cache=Cache(cache)).manifest.record()
    for fmt in ("onnx", "tflite"):
        entry = record["files"][f"model.{fmt}"]
        assert [layer["rank"] for layer in entry["layers"]] == ranks
        assert [layer["structure"] for layer in entry["layers"]] == ["low-rank" if r else "dense" for r in ranks]
        assert all(proof["passed"] for proof in entry["proofs"].values()), entry["proofs"]
    assert not [warning for warning in record["warnings"] if "stays dense" in warning]


@pytest.fixture
def multiplied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX files hold both factors of `w0`, but as x (B A): the runtime makes one matrix of them when it loads it."""
    write = OnnxWriter.write

    def wrongly(
        self: OnnxWriter,
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> Written:
        written = write(self, factors, scheme, out, schemes)
        model = onnx.load(out)
        by_constant = {name: node for node in model.graph.node for name in node.input}
        if "w0.B" in by_constant and "w0.A" in by_constant:
            first, second = by_constant["w0.B"], by_constant["w0.A"]
            x = first.input[0]
            first.input[:] = ["w0.B", "w0.A"]
            second.input[:] = [x, first.output[0], *second.input[2:]]
            onnx.save(model, out)
        return written

    monkeypatch.setattr(OnnxWriter, "write", wrongly)


@pytest.mark.usefixtures("multiplied_out")
def test_a_layer_that_the_runtime_makes_dense_again_is_named_and_written_dense(cache: Path, tmp_path: Path) -> None:
    model = write_chain(tmp_path / "chain.onnx", (64, 48), (72, 64), (8, 72))
    out = tmp_path / "pack"
    given = ["--target", "rpi4", "--formats", "onnx", "--rank", "8", "--precision", "fp32", "--out", str(out)]
    done = CliRunner().invoke(app, ["build", str(model), "--data", str(tmp_path / "data.npz"), *given])
    assert done.exit_code == 0, done.output
    record = json.loads((out / "manifest.json").read_text())
    entry = record["files"]["model.onnx"]
    first, second, last = entry["layers"]
    assert (first["layer"], first["structure"], first["rank"]) == ("w0", "dense", None)
    assert first["reason"] == "dense fp32: it could not be written as rank 8 fp32: no product with 8×48, 64×8"
    assert first["weight_parameters"] == 64 * 48
    assert (second["structure"], second["rank"]) == ("low-rank", 8)
    assert last["structure"] == "dense"
    assert all(proof["passed"] for proof in entry["proofs"].values()), entry["proofs"]
    (warning,) = (each for each in record["warnings"] if "w0" in each)
    assert warning == "w0 stays dense in the onnx file: no product with 8×48, 64×8"
    assert warning in " ".join(done.output.split())
    held = {array.name for array in onnx.load(out / "model.onnx").graph.initializer}
    assert {"w0", "w1.A", "w1.B"} <= held
    assert not {"w0.A", "w0.B"} & held


@pytest.mark.parametrize("step", ["write_baseline", "write"])
def test_a_format_that_fails_leaves_the_other(
    step: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ModelError("the converter has no RotaryEmbedding", hint="use --formats onnx")

    monkeypatch.setattr(TfliteWriter, step, fails)
    model = write_chain(tmp_path / "chain.onnx", (64, 48), (8, 64))
    given = ["build", str(model), "--data", str(tmp_path / "data.npz"), "--target", "rpi4", "--rank", "8"]
    out = tmp_path / "pack"
    done = CliRunner().invoke(app, [*given, "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads((out / "manifest.json").read_text())
    assert {name.rpartition(".")[2] for name in record["files"]} == {"onnx"}
    assert list(out.rglob("*.tflite")) == []
    (warning,) = (each for each in record["warnings"] if "tflite" in each.lower())
    assert "the converter has no RotaryEmbedding" in warning
    alone = CliRunner().invoke(app, [*given, "--formats", "tflite", "--out", str(tmp_path / "alone")])
    assert alone.exit_code == 3
    assert "the converter has no RotaryEmbedding" in alone.stderr.splitlines()[0]
    assert not (tmp_path / "alone").exists()
