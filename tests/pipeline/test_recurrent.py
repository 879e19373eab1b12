"""A recurrent model from end to end: the weights of its inputs are factored, priced, proved, and within the promise."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgepack.backends.onnx.schemes import FP32
from edgepack.backends.tflite.read import operators
from edgepack.distill.budget import Epochs
from edgepack.model.scheme import FileScheme
from edgepack.pipeline.build import build
from edgepack.pipeline.inspect import InspectOptions, inspect
from edgepack.pipeline.pareto import planned
from edgepack.pipeline.prepare import prepared
from edgepack.workspace import Cache, silent
from tests.pipeline.small_builds import options
from tests.pipeline.small_recurrent import CLASSES, FEATURES, GATES, STEPS, UNITS, write_recurrent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

LIMIT = 1.5


def test_a_tflite_file_has_factored_inputs_in_front_of_the_fused_operator(tmp_path: Path) -> None:
    source = write_recurrent(tmp_path, "LSTM")
    given = {"formats": ("tflite",), "rank": 8, "precision": "int8", "keep": "head", "baseline": False}
    asked = options(source, **given, out=tmp_path / "pack")
    record = build(asked, cache=Cache(tmp_path / "cache")).manifest.record()
    entry = record["files"]["model.tflite"]
    assert {proof["passed"] for proof in entry["proofs"].values()} == {True}, entry["proofs"]
    (layer,) = (layer for layer in entry["layers"] if layer["layer"] == "W")
    assert (layer["rank"], layer["scheme"]) == (8, "int8-dynamic-range")
    names = operators(tmp_path / "pack" / "model.tflite")
    assert names.index("FULLY_CONNECTED") < names.index("UNIDIRECTIONAL_SEQUENCE_LSTM")


@pytest.mark.parametrize("operator", GATES)
def test_a_pack_has_factored_inputs_in_front_of_the_fused_operator(operator: str, tmp_path: Path) -> None:
    source = write_recurrent(tmp_path, operator)
    record = build(
        options(source, formats=("onnx",), max_drop=LIMIT, out=tmp_path / "pack"), cache=Cache(tmp_path / "cache")
    ).manifest.record()
    entry = record["files"]["model.onnx"]
    assert {proof["passed"] for proof in entry["proofs"].values()} == {True}, entry["proofs"]
    assert entry["confirmation"]["bound"] <= LIMIT
    assert entry["size_bytes"] < record["files"]["baseline/int8.onnx"]["size_bytes"]
    (layer,) = (layer for layer in entry["layers"] if layer["layer"] == "W")
    assert (layer["out_features"], layer["in_features"]) == (GATES[operator] * UNITS, FEATURES)
    assert layer["rank"] is not None
    nodes = {node.op_type: node for node in onnx.load(tmp_path / "pack" / "model.onnx").graph.node}
    assert operator in nodes or f"DynamicQuantize{operator}" in nodes
    assert nodes.keys() & {"MatMul", "MatMulInteger", "MatMulNBits"}


def test_factors_in_front_of_cells_are_not_trained_and_stop_nothing(tmp_path: Path) -> None:
    source = write_recurrent(tmp_path, "GRU")
    asked = options(source, formats=("onnx",), rank=8, keep="head", distill=Epochs(1))
    with prepared(asked, Cache(tmp_path / "cache"), silent) as ready:
        spectra = ready.evaluator.analysis.spectra
        plans = tuple(planned(menu, menu.candidates[0], spectra, 0.0) for menu in ready.menus["onnx"])
        assert [plan.structure.rank for plan in plans] == [8, None]
        assert ready.evaluator.replacements.recovered(plans, FileScheme.of(FP32)) is None


def test_inspect_reports_all_gates_as_one_matrix(tmp_path: Path) -> None:
    source = write_recurrent(tmp_path, "LSTM")
    report = inspect(InspectOptions(str(source), data=tmp_path / "data.npz"), Cache(tmp_path / "cache"))
    (found,) = (layer for layer in report.layers if layer.name == "W")
    assert (found.op, found.out_features, found.in_features, found.rows) == ("LSTM", 4 * UNITS, FEATURES, STEPS)
    inputs_and_states = STEPS * 4 * UNITS * (FEATURES + UNITS)
    assert found.macs_share == pytest.approx(inputs_and_states / (inputs_and_states + UNITS * CLASSES))
