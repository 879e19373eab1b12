"""Builds for a target that is not at hand: its table orders the forms and keeps the promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from edgepack.cache import Cache
from edgepack.pipeline import pricing
from edgepack.pipeline.build import build
from edgepack.pipeline.opened import open_model
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.pricing import Uses, prices_for
from edgepack.plan.cost import STATED
from edgepack.plan.table import CallCost, CostTable, Deviation, FormCosts, Grid, HeldOut, Point
from edgepack.plan.table_file import table_identity
from edgepack.targets import Target, get_target
from edgepack.types import FORMS

SIDE, ROWS = 128, 3
GRID = Grid((16, 512), (8, 512), (1, 16))
RPI4 = get_target("rpi4")


def write_model(path: Path, *, shared: bool) -> Path:
    """Two layers of rank 8, which may share one weight; `ROWS` rows per inference. Data are written beside it."""
    rng = np.random.default_rng(0)
    names = ("w", "w" if shared else "v")
    weights = {name: rng.standard_normal((SIDE, 8)) @ rng.standard_normal((8, SIDE)) / SIDE for name in names}
    constants = [numpy_helper.from_array(weight.astype(np.float32), name) for name, weight in weights.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, ROWS, SIDE]) for name in "xy")
    nodes = [
        helper.make_node("MatMul", ["x", names[0]], ["h"]),
        helper.make_node("Relu", ["h"], ["p"]),
        helper.make_node("MatMul", ["p", names[1]], ["y"]),
    ]
    graph = helper.make_graph(nodes, "two", [x], [y], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.savez(path.parent / "data.npz", x=rng.standard_normal((320, ROWS, SIDE)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "two.onnx", shared=False)


def table(dense: dict[str, float], pair: dict[str, float]) -> CostTable:
    """Costs in instructions per weight and row, by form."""
    core, isa, caches = table_identity(RPI4)

    def costs(form: str) -> FormCosts:
        def instructions(point: Point) -> int:
            return round((dense if point.rank is None else pair)[form] * point.weights * point.batch)

        zeros = dict.fromkeys(("L1i", "L1d", "L2"), (0,) * GRID.size)
        return FormCosts(tuple(map(instructions, GRID.points("onnx", form))), zeros)  # type: ignore[arg-type]

    return CostTable(
        *(core, isa, caches, "QEMU 0", (), {"onnx": "onnxruntime 0"}, GRID),
        calls={"onnx": CallCost(1000, {"L1i": 0, "L1d": 0, "L2": 0})},
        costs={"onnx": {form: costs(form) for form in FORMS["onnx"]}},
        held_out={
            "onnx": dict.fromkeys(FORMS["onnx"], HeldOut(Deviation(48, 0.01, 0.05), None, {"L1d": None, "L2": None}))
        },
    )


def built(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: CostTable | None) -> dict[str, Any]:
    def table_for(target: Target) -> CostTable | None:
        return found

    monkeypatch.setattr(pricing, "table_for", table_for)
    data = model.parent / "data.npz"
    options = BuildOptions(
        str(model), RPI4, data=data, formats=("onnx",), precision="int8", max_drop=100, out=tmp_path / "pack"
    )
    build(options, cache=Cache(tmp_path / "cache"))
    return json.loads((tmp_path / "pack" / "manifest.json").read_text())["files"]


EVEN = {"fp32": 1.0, "int8-dynamic": 0.5, "int8-static-qdq": 0.5}
DYNAMIC = {**EVEN, "int8-dynamic": 0.2}
STATIC = {**EVEN, "int8-static-qdq": 0.2}


@pytest.mark.parametrize(
    ("dense", "pair", "forms"),
    [
        (STATIC, DYNAMIC, ("int8-static-qdq", "int8-dynamic")),
        (DYNAMIC, STATIC, ("int8-dynamic", "int8-static-qdq")),
    ],
)
def test_the_table_chooses_the_forms(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dense: dict[str, float],
    pair: dict[str, float],
    forms: tuple[str, str],
) -> None:
    files = built(model, tmp_path, monkeypatch, table(dense, pair))
    assert (files["baseline/int8.onnx"]["form"], files["model.onnx"]["form"]) == forms
    assert files["model.onnx"]["layers"][0]["rank"] == 8
    for name in ("baseline/int8.onnx", "model.onnx"):
        assert files[name]["form_chosen_by"] == (
            "emulated cost table, interpolation error (median, 90th percentile): instructions 1.0 %, 5.0 %"
        )


def test_without_a_table_the_stated_order_stays(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = built(model, tmp_path, monkeypatch, None)
    assert (files["baseline/int8.onnx"]["form"], files["model.onnx"]["form"]) == ("int8-dynamic", "int8-static-qdq")
    assert {files[name]["form_chosen_by"] for name in ("baseline/int8.onnx", "model.onnx")} == {STATED}


@pytest.mark.parametrize(("times", "kept"), [(1.05, True), (3.0, False)])
def test_a_pack_that_costs_clearly_more_by_the_table_is_dense(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: float, kept: bool
) -> None:
    """Of rank 8, the pair has an eighth of the weights."""
    files = built(model, tmp_path, monkeypatch, table(EVEN, {form: 8 * times * share for form, share in EVEN.items()}))
    layers = files["model.onnx"]["layers"]
    assert [layer["rank"] for layer in layers] == ([8, 8] if kept else [None, None])
    if not kept:
        assert layers[0]["reason"].startswith(
            "3.00 times the cost of dense int8 by the emulated cost table, interpolation"
        )
        assert files["model.onnx"]["sha256"] == files["baseline/int8.onnx"]["sha256"]


def test_rows_are_those_of_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(str(write_model(tmp_path / "shared.onnx", shared=True)), tmp_path)
    monkeypatch.setattr(pricing, "table_for", lambda target: table(EVEN, EVEN))
    prices = prices_for(RPI4, opened, None, 0)
    assert prices is not None
    (layer,) = opened.layers
    assert prices.uses == {layer.name: Uses(2, ROWS)}
    monkeypatch.setattr(pricing, "table_for", lambda target: None)
    assert prices_for(RPI4, opened, None, 0) is None


def test_the_shipped_table_prices_a_model(model: Path, tmp_path: Path) -> None:
    prices = prices_for(RPI4, open_model(str(model), tmp_path), None, 0)
    assert prices is not None
    assert prices.source.name == "emulated cost table"
    assert prices_for(replace(RPI4, isa=("neon", "i8mm")), open_model(str(model), tmp_path), None, 0) is None
