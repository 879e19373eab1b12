"""What is read from a manifest, and what a stranger's may not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.backends.segments import LayerShape
from edgepack.errors import PackError
from edgepack.pack.facts import facts_of

PACK = Path("some/mlp.rpi4")
LAYER: dict[str, Any] = {"layer": "fc1", "out_features": 512, "in_features": 784, "rank": 32}
DENSE: dict[str, Any] = {"layer": "fc2", "out_features": 10, "in_features": 512, "rank": None}


def manifest(*layers: Any) -> dict[str, Any]:
    return {"files": {"model.onnx": {"layers": list(layers)}}}


def test_the_packed_file_has_its_ranks_and_the_baselines_have_none() -> None:
    packed = facts_of(manifest(LAYER, DENSE), PACK).layer_shapes("edgepack", "onnx")
    assert packed == (LayerShape("fc1", 512, 784, 32), LayerShape("fc2", 10, 512, None))
    for baseline in ("dense-fp32", "dense-int8"):
        dense = facts_of(manifest(LAYER, DENSE), PACK).layer_shapes(baseline, "onnx")
        assert dense == (LayerShape("fc1", 512, 784, None), LayerShape("fc2", 10, 512, None))
    assert facts_of(manifest(), PACK).layer_shapes("edgepack", "onnx") == ()


@pytest.mark.parametrize(("structure", "beside"), [("low-rank", False), ("low-rank-correction", True), (7, False)])
def test_factors_beside_a_matrix_are_told_by_the_structure(structure: Any, beside: bool) -> None:
    for layer, wanted in (({**LAYER, "structure": structure}, beside), ({**DENSE, "structure": structure}, False)):
        (found,) = facts_of(manifest(layer), PACK).layer_shapes("edgepack", "onnx")
        assert found.beside is wanted


@pytest.mark.parametrize(
    ("products", "wanted"),
    [
        ([[8, 144], [48, 24]], ((8, 144), (48, 24))),
        ([[8, 144], [48, -24]], ()),
        ([[8, 144, 1]], ()),
        ([[8, 144]] * 9, ()),
        ("8", ()),
    ],
)
def test_products_in_a_row_are_told_by_their_sides(products: Any, wanted: tuple[tuple[int, int], ...]) -> None:
    (found,) = facts_of(manifest({**LAYER, "products": products}), PACK).layer_shapes("edgepack", "onnx")
    assert found.products == wanted


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (5, "layer 0 of model.onnx has no name that can be shown"),
        ({}, "layer 0 of model.onnx has no name that can be shown"),
        ({**LAYER, "layer": ""}, "has no name that can be shown"),
        ({**LAYER, "layer": "\x1b[2J"}, "has no name that can be shown"),
        ({**LAYER, "layer": "x" * 401}, "has no name that can be shown"),
        ({**LAYER, "out_features": 0}, "layer fc1 of model.onnx is 0×784, rank 32; expected positive numbers"),
        ({**LAYER, "in_features": "784"}, "expected positive numbers"),
        ({**LAYER, "rank": 0}, "expected positive numbers"),
        ({**LAYER, "rank": True}, "expected positive numbers"),
        ({**LAYER, "rank": 1.5}, "expected positive numbers"),
    ],
)
def test_layers_that_are_none(entry: Any, says: str) -> None:
    with pytest.raises(PackError) as caught:
        facts_of(manifest(entry), PACK).layer_shapes("dense-int8", "onnx")
    assert says in caught.value.message
    assert caught.value.hint == "build the pack again"


@pytest.mark.parametrize("files", [None, {}, {"model.onnx": {}}, {"model.onnx": {"layers": {}}}, {"model.onnx": 3}])
def test_no_layers_at_all(files: Any) -> None:
    with pytest.raises(PackError, match=r"its manifest lists no layers for model\.onnx"):
        facts_of({"files": files}, PACK).layer_shapes("edgepack", "onnx")


@pytest.mark.parametrize("entry", [None, {}, 3, {"name": None}, {"name": ""}, {"name": "a\nb"}])
def test_names(entry: Any) -> None:
    assert facts_of({"model": {"name": "mlp"}}, PACK).model_name == "mlp"
    assert facts_of({"model": entry}, PACK).model_name == "mlp.rpi4"
    assert facts_of({"target": {"name": "rpi4"}}, PACK).target_name == "rpi4"
    with pytest.raises(PackError, match="its manifest names no target") as caught:
        _ = facts_of({"target": entry}, PACK).target_name
    assert caught.value.hint == "say which with --target"


@pytest.mark.parametrize("value", [10**400, float("inf"), True, "97"])
def test_a_figure_that_is_none(value: Any) -> None:
    files = {"model.onnx": {"metric": value}, "baseline/fp32.onnx": {"metric": 98.0}}
    found = facts_of({"files": files}, PACK).file("edgepack", "onnx")
    assert (found.metric, found.drop) == (None, None)


def test_ranks_are_those_of_layers_that_have_a_name() -> None:
    found = facts_of(manifest(LAYER, DENSE, {"rank": 3}, {**LAYER, "layer": "fc3", "out_features": "x"}), PACK)
    assert found.file("edgepack", "onnx").ranks == {"fc1": 32, "fc3": 32}
