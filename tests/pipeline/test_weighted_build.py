"""Builds whose factors are weighed by output gradients: from torch, from ONNX, and where there are no gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.schemes import INT8_DYNAMIC
from edgepack.errors import UsageError
from edgepack.model.structure import low_rank
from edgepack.pipeline.build import build
from edgepack.pipeline.inspect import InspectOptions, inspect
from edgepack.pipeline.prepare import prepared
from edgepack.workspace import Cache, silent
from tests.pipeline.small_builds import options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weighted")


def built(model: Path, cache: Path, out: Path, **changes: Any) -> Any:
    return build(options(model, out=out, rank=8, precision="int8", **changes), cache=Cache(cache)).manifest.record()


def drop(manifest: Any) -> float:
    return float(manifest["files"]["model.onnx"]["validation"]["drop"])


def test_an_onnx_model_is_weighed_by_gradients_of_its_torch_program(
    classifier: Path, cache: Path, tmp_path: Path
) -> None:
    found = {name: built(classifier, cache, tmp_path / name, method=name) for name in ("svd", "fisher", "two-sided")}
    for name in ("fisher", "two-sided"):
        assert found[name]["method"] == name
        assert found[name]["loss_weighted_by"] == "output gradients"
        assert all(proof["passed"] for proof in found[name]["files"]["model.onnx"]["proofs"].values())
    assert found["svd"]["loss_weighted_by"] == "output gradients", "losses are weighed by them whatever factors it"
    assert drop(found["two-sided"]) < drop(found["svd"])


def test_the_second_time_gradients_come_from_the_cache(
    classifier: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(classifier, cache, tmp_path / "first", method="two-sided")
    for name in ("gradient_moments", "curvatures"):
        monkeypatch.setattr(f"edgepack.torchgraph.gradients.{name}", lambda *_, **__: pytest.fail("computed again"))
    again = built(classifier, cache, tmp_path / "again", method="two-sided")
    assert again["files"]["model.onnx"]["sha256"] == first["files"]["model.onnx"]["sha256"]


def test_the_factors_of_integer_layers_are_weighed_too(classifier: Path, cache: Path) -> None:
    with prepared(options(classifier, method="two-sided"), Cache(cache), silent) as ready:
        evaluator, metric = ready.evaluator, ready.evaluator.replacements.rounder.gradients["w1"]
        rounder = evaluator.replacements.rounder
        layer = evaluator.analysis.views[0]
        spectrum = evaluator.spectra[layer.name]
        assert spectrum.dual is not None
        pair = rounder.factors(layer, spectrum, low_rank(16), INT8_DYNAMIC)
        plain = rounder.plain(layer, spectrum, 16)
        x = ready.data.validation.inputs["x"].astype(np.float64)

        def cost(weight: Any) -> float:
            error = (x - spectrum.mean) @ (layer.weight - weight).T
            return float(np.einsum("ni,ij,nj->", error, metric, error) / len(x))

        # Nothing but rounding stands between the two: int8 adds little to what the truncation costs.
        assert cost(pair.A @ pair.B) == pytest.approx(cost(plain.A @ plain.B), rel=0.05)
        whole = cost(0 * layer.weight)
        assert cost(plain.A @ plain.B) < 0.9 * whole


def test_inspect_looks_at_the_same_spectra(classifier: Path, cache: Path) -> None:
    data = classifier.parent / "data.npz"
    methods = ("two-sided", "svd")
    found = {name: inspect(InspectOptions(str(classifier), data=data, method=name), Cache(cache)) for name in methods}
    assert found["two-sided"].method == "two-sided"
    assert [one.rank_90 for one in found["two-sided"].layers] != [one.rank_90 for one in found["svd"].layers]


@pytest.mark.parametrize(
    ("method", "energy"),
    [("two-sided", "weighed output"), ("fisher", "weighed output"), ("whitened", "output"), ("svd", "weight")],
)
def test_inspect_says_what_its_ranks_keep_a_share_of(classifier: Path, cache: Path, method: str, energy: str) -> None:
    report = inspect(InspectOptions(str(classifier), data=classifier.parent / "data.npz", method=method), Cache(cache))
    assert {layer.energy for layer in report.layers} == {energy}
    assert report.has_data


def test_inspect_names_layers_that_lack_gradients_or_inputs(tmp_path: Path) -> None:
    """Of three layers one answers, one gives the second output alone, and one is fed zeros."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((32, 32)) for name in ("first", "second", "unseen")} | {"zero": np.zeros(1)}
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("MatMul", ["nothing", "unseen"], ["u"]),
        helper.make_node("MatMul", ["x", "first"], ["f"]),
        helper.make_node("Add", ["u", "f"], ["y"]),
        helper.make_node("MatMul", ["x", "second"], ["z"]),
    ]
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32]) for name in "xyz")
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "two", [x], [y, z], constants)
    model = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((80, 32)).astype(np.float32))
    report = inspect(
        InspectOptions(str(model), data=tmp_path / "data.npz", method="two-sided"), Cache(tmp_path / "cache")
    )
    found = {layer.name: layer.energy for layer in report.layers}
    assert found == {"first": "weighed output", "second": "output", "unseen": "weight"}


def test_a_model_without_gradients_is_refused(tmp_path: Path) -> None:
    """The answer is the number of a class: nothing that could be differentiated."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ArgMax", ["h"], ["y"], axis=1, keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1])
    weight = numpy_helper.from_array(rng.standard_normal((32, 32)).astype(np.float32), "w")
    graph = helper.make_graph(nodes, "argmax", [x], [y], [weight])
    model = tmp_path / "argmax.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 32)).astype(np.float32))
    with pytest.raises(UsageError, match="--method two-sided") as caught:
        built(model, tmp_path / "cache", tmp_path / "pack", method="two-sided")
    assert caught.value.hint is not None
    assert "--method whitened" in caught.value.hint
    assert not (tmp_path / "pack").exists()


def test_there_is_nothing_to_weigh_without_data(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--method fisher needs calibration data"):
        built(classifier, tmp_path / "cache", tmp_path / "pack", method="fisher", data=None)
