"""Builds by methods that are functions: fitted once, offered beside what there is, written and proved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.errors import UsageError
from edgepack.methods import registry
from edgepack.model.constexpr import Writer
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline.build import build
from edgepack.workspace import Cache
from tests.pipeline.small_builds import options

RANK = 0.25


def rounded(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """Each weight as one of 16 numbers, two of them a byte; a quarter of the bytes is too few."""
    if share < 0.5:
        return "sixteen numbers take half of the bytes"
    del seed, gradient
    low, high = layer.weight.min(), layer.weight.max()
    codes = np.rint((layer.weight - low) / (high - low) * 15).astype(np.uint8).reshape(-1, 2)
    w = Writer()
    levels = np.linspace(low, high, 16, dtype=np.float32)
    book = np.stack(np.meshgrid(levels, levels, indexing="ij"), -1).reshape(256, 2)
    index = w.step("cast", w.constant("codes", codes[:, 0] * 16 + codes[:, 1]), to="int32")
    pairs = w.step("gather", w.constant("book", book), index, axis=0)
    return w.decoded(w.step("reshape", pairs, shape=layer.weight.shape), layer.bias)


def halves(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """A pair by plain SVD."""
    del seed, gradient
    rank = int(share * layer.weight.size / sum(layer.weight.shape))
    if not rank:
        return "less than rank 1"
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    return low_rank((u[:, :rank] * s[:rank]).astype(np.float32), v[:rank].astype(np.float32), layer.bias)


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.methods.registry.METHODS", {"rounded": rounded, "halves": halves})


def built(model: Path, cache: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return build(options(model, out=out, **changes), cache=Cache(cache)).manifest.record()


@pytest.mark.usefixtures("methods")
def test_a_layer_is_stored_in_code_and_proved(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    record = built(classifier, warm_cache, out, method="rounded", rank=0.5)
    entry = record["files"]["model.onnx"]
    assert record["method"] == "rounded"
    assert {proof["passed"] for proof in entry["proofs"].values()} == {True}
    assert "stored-in-code" in entry["proofs"]
    layers = {layer["layer"]: layer for layer in entry["layers"]}
    assert layers["w1"]["scheme"] == "constexpr"
    assert layers["w1"]["alternative"]["method"] == "rounded"
    assert layers["w1"]["alternative"]["parameters"] == pytest.approx(layers["w1"]["in_features"] * 160, rel=0.02)
    fp32 = record["files"]["baseline/fp32.onnx"]
    assert entry["size_bytes"] < fp32["size_bytes"] / 7
    assert any("rounded only saves bytes" in warning for warning in record["warnings"])
    assert read_manifest(out).packed("onnx").layers


@pytest.mark.usefixtures("methods")
def test_the_second_time_fits_come_from_the_cache(
    classifier: Path, warm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(classifier, warm_cache, tmp_path / "first", method="rounded", rank=0.5)
    monkeypatch.setattr("edgepack.pipeline.method_fits.compress", lambda *_, **__: pytest.fail("fitted again"))
    again = built(classifier, warm_cache, tmp_path / "again", method="rounded", rank=0.5)
    assert again["files"]["model.onnx"]["sha256"] == first["files"]["model.onnx"]["sha256"]


@pytest.mark.usefixtures("methods")
def test_pairs_of_a_function_take_the_schemes_of_pairs(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    record = built(
        classifier, warm_cache, tmp_path / "pack", method="halves", rank=RANK, precision="int8", optimize="latency"
    )
    entry = record["files"]["model.onnx"]
    assert {proof["passed"] for proof in entry["proofs"].values()} == {True}
    first = entry["layers"][0]
    assert (first["rank"], first["scheme"]) == (35, "int8-weights")
    assert first["alternative"]["method"] == "halves"
    assert first["reason"] == "halves at 0.25 of the bytes rank 35 int8-weights"


@pytest.mark.usefixtures("methods")
def test_the_smallest_plan_within_the_drop_is_taken(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    record = built(classifier, warm_cache, tmp_path / "pack", method="rounded", max_drop=2.0)
    entry = record["files"]["model.onnx"]
    assert entry["validation"]["drop"] <= 2.0
    assert entry["size_bytes"] < record["files"]["baseline/int8.onnx"]["size_bytes"]


@pytest.mark.usefixtures("methods")
def test_methods_compete(classifier: Path, warm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.pipeline.datasets.AUTO", ("halves",))
    record = built(classifier, warm_cache, tmp_path / "pack", method="auto", max_drop=2.0)
    layers = record["files"]["model.onnx"]["layers"]
    assert record["method"] == "auto"
    kinds = {other["alternative"]["method"] for layer in layers for other in layer["others"] if other["alternative"]}
    assert kinds <= {"halves"}
    assert kinds


@pytest.mark.usefixtures("methods")
@pytest.mark.parametrize("changes", [{"rank": "cv"}, {"refit": True}])
def test_options_for_pairs_are_refused(classifier: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="works on low-rank factors, and --method rounded makes none"):
        built(classifier, tmp_path / "cache", tmp_path / "pack", method="rounded", **changes)


def bad_shape(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement:
    del share, seed, gradient
    return low_rank(np.zeros((3, 2), np.float32), np.zeros((2, 5), np.float32), layer.bias)


def test_what_does_not_fit_the_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.methods.registry.METHODS", {"bad": bad_shape})
    layer = View("one", np.ones((8, 16), np.float32), None)
    wanted = "--method bad: one: found [(3, 2), (2, 5)], expected [(8, 2), (2, 16)]"
    with pytest.raises(UsageError, match=re.escape(wanted)):
        registry.compress("bad", layer, 0.5)


def write_texts(folder: Path) -> Path:
    """A table of 600 words, the mean of twelve, and two layers; unlabelled data beside it."""
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.normal(size=(600, 64)),
        "w1": rng.normal(size=(96, 64)) / 8,
        "b1": rng.normal(size=96),
        "w2": rng.normal(size=(8, 96)) / 10,
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("ReduceMean", ["words", "axis"], ["text"], keepdims=0),
        helper.make_node("Gemm", ["text", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2"], ["y"], transB=1),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 12])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    stored.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(nodes, "texts", [ids], [y], stored)
    path = folder / "texts.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    np.savez(folder / "data.npz", ids=rng.integers(0, 600, (400, 12)))
    return path


@pytest.mark.usefixtures("methods")
def test_beside_layers_in_code_other_weights_take_8_bits(tmp_path: Path) -> None:
    changes = {"method": "rounded", "rank": 0.5, "metric": "cosine"}
    record = built(write_texts(tmp_path), tmp_path / "cache", tmp_path / "pack", **changes)
    entry, fp32 = record["files"]["model.onnx"], record["files"]["baseline/fp32.onnx"]
    assert [layer["scheme"] for layer in entry["layers"]].count("constexpr") >= 1
    assert {proof["passed"] for proof in entry["proofs"].values()} == {True}
    table = 600 * 64
    assert entry["scheme"].endswith(("+int8-weights", "+tables4"))
    assert entry["size_bytes"] < fp32["size_bytes"] - 2.5 * table
    assert not any("was dropped" in warning for warning in record["warnings"])


@pytest.mark.usefixtures("methods")
@pytest.mark.parametrize("changes", [{}, {"rank": 32}, {"method": "rounded", "rank": 0.5}], ids=str)
def test_where_fp32_is_asked_for_other_weights_stay_so(changes: dict[str, Any], tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    record = built(write_texts(tmp_path), tmp_path / "cache", pack, precision="fp32", metric="cosine", **changes)
    table = next(one for one in onnx.load(pack / "model.onnx").graph.initializer if list(one.dims) == [600, 64])
    assert table.data_type == TensorProto.FLOAT
    entry = record["files"]["model.onnx"]
    assert not entry["scheme"].endswith("+int8-weights")
    assert {proof["passed"] for proof in entry["proofs"].values()} == {True}
    assert not any("was dropped" in warning for warning in record["warnings"])


def test_a_table_in_8_bits_is_held_to_the_tolerance_of_8_bits(tmp_path: Path) -> None:
    """Its noise is 57 dB below the answers: too much for a file in fp32, next to nothing for one with int8 weights."""
    record = built(
        write_texts(tmp_path), tmp_path / "cache", tmp_path / "pack", rank=32, precision="int8", metric="cosine"
    )
    entry, fp32 = record["files"]["model.onnx"], record["files"]["baseline/fp32.onnx"]
    assert entry["scheme"].endswith("int8-weights")
    assert entry["size_bytes"] < fp32["size_bytes"] - 2.9 * 600 * 64
    assert entry["validation"]["drop"] <= 0.5
    found = entry["proofs"]["outputs"]
    assert found["passed"]
    assert 10 < float(found["detail"].split()[0]) < 60
    assert found["detail"].endswith("at least 10 dB")
    assert not any("was dropped" in warning for warning in record["warnings"])
