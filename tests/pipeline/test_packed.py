"""What is read from a manifest, and what a stranger's may not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import PackError
from edgepack.pipeline.packed import layer_shapes, model_name, target_name
from edgepack.segments import LayerShape

PACK = Path("some/mlp.rpi4")
LAYER: dict[str, Any] = {"layer": "fc1", "out_features": 512, "in_features": 784, "rank": 32}
DENSE: dict[str, Any] = {"layer": "fc2", "out_features": 10, "in_features": 512, "rank": None}


def manifest(*layers: Any) -> dict[str, Any]:
    return {"files": {"model.onnx": {"layers": list(layers)}}}


def test_the_packed_file_has_its_ranks_and_the_baselines_have_none() -> None:
    packed = layer_shapes(manifest(LAYER, DENSE), PACK, "edgepack", "onnx")
    assert packed == (LayerShape("fc1", 512, 784, 32), LayerShape("fc2", 10, 512, None))
    for baseline in ("dense-fp32", "dense-int8"):
        dense = layer_shapes(manifest(LAYER, DENSE), PACK, baseline, "onnx")
        assert dense == (LayerShape("fc1", 512, 784, None), LayerShape("fc2", 10, 512, None))
    assert layer_shapes(manifest(), PACK, "edgepack", "onnx") == ()


@pytest.mark.parametrize(("structure", "beside"), [("low-rank", False), ("low-rank-correction", True), (7, False)])
def test_factors_beside_a_matrix_are_told_by_the_structure(structure: Any, beside: bool) -> None:
    for layer, wanted in (({**LAYER, "structure": structure}, beside), ({**DENSE, "structure": structure}, False)):
        (found,) = layer_shapes(manifest(layer), PACK, "edgepack", "onnx")
        assert found.beside is wanted


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
        layer_shapes(manifest(entry), PACK, "dense-int8", "onnx")
    assert says in caught.value.message
    assert caught.value.hint == "build the pack again"


@pytest.mark.parametrize("files", [None, {}, {"model.onnx": {}}, {"model.onnx": {"layers": {}}}, {"model.onnx": 3}])
def test_no_layers_at_all(files: Any) -> None:
    with pytest.raises(PackError, match=r"its manifest lists no layers for model\.onnx"):
        layer_shapes({"files": files}, PACK, "edgepack", "onnx")


@pytest.mark.parametrize("entry", [None, {}, 3, {"name": None}, {"name": ""}, {"name": "a\nb"}])
def test_names(entry: Any) -> None:
    assert model_name({"model": {"name": "mlp"}}, PACK) == "mlp"
    assert model_name({"model": entry}, PACK) == "mlp.rpi4"
    assert target_name({"target": {"name": "rpi4"}}, PACK) == "rpi4"
    with pytest.raises(PackError, match="its manifest names no target") as caught:
        target_name({"target": entry}, PACK)
    assert caught.value.hint == "say which with --target"
