"""A recurrent model from end to end: the weights of its inputs are factored, proved, and within the promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepack.backends.onnx.schemes import FP32
from edgepack.backends.tflite.read import linear_ops, operators
from edgepack.backends.tflite.schemes import INT8_STATIC
from edgepack.distill.budget import Epochs
from edgepack.model.scheme import FileScheme
from edgepack.pipeline.build import build
from edgepack.pipeline.inspect import InspectOptions, inspect
from edgepack.pipeline.pareto import planned
from edgepack.pipeline.prepare import prepared
from edgepack.sources.keras import import_keras
from edgepack.sources.torch import export_program, save_program
from edgepack.workspace import Cache, silent
from tests.pipeline.small_builds import options
from tests.pipeline.small_recurrent import CLASSES, FEATURES, GATES, STEPS, UNITS, sequences, write_recurrent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

LIMIT = 3.0


def factored(source: Path, folder: Path) -> dict[str, Any]:
    """What became of the inputs' weights in a TFLite file of rank 8 in int8, `pack/model.tflite`, which is proved."""
    given = {"formats": ("tflite",), "rank": 8, "precision": "int8", "keep": "head", "baseline": False}
    asked = options(source, **given, out=folder / "pack")
    record = build(asked, cache=Cache(folder / "cache")).manifest.record()
    entry = record["files"]["model.tflite"]
    assert {proof["passed"] for proof in entry["proofs"].values()} == {True}, entry["proofs"]
    (layer,) = (layer for layer in entry["layers"] if layer["layer"] == "W")
    return dict(layer)


def test_a_tflite_file_has_factored_inputs_in_front_of_the_fused_operator(tmp_path: Path) -> None:
    source = write_recurrent(tmp_path, "LSTM")
    layer = factored(source, tmp_path)
    assert (layer["rank"], layer["scheme"]) == (8, "int8-dynamic-range")
    names = operators(tmp_path / "pack" / "model.tflite")
    assert names.index("FULLY_CONNECTED") < names.index("UNIDIRECTIONAL_SEQUENCE_LSTM")


@pytest.mark.parametrize("is_loop", [True, False], ids=["torch's", "the other"])
def test_of_the_two_kinds_of_gru_one_is_a_loop_in_tflite(is_loop: bool, tmp_path: Path) -> None:
    """The other one, which torch has no operator for, is unrolled; its inputs are factored in the converted program."""
    source = write_recurrent(tmp_path, "GRU", linear_before_reset=int(is_loop))
    layer = factored(source, tmp_path)
    assert layer["rank"] == 8
    names = operators(tmp_path / "pack" / "model.tflite")
    assert names.count("WHILE") == is_loop
    assert names.count("LOGISTIC") == 2 if is_loop else names.count("LOGISTIC") >= STEPS


def stream(folder: Path) -> Path:
    """A torch program of two layers of both directions, their states from outside and back, and samples beside it."""
    import torch
    from torch import Tensor, nn

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(FEATURES, UNITS, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(2 * UNITS, CLASSES)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            y, (h, c) = self.cells(x, (h, c))
            return self.head(y), h, c

    torch.manual_seed(0)
    state = torch.zeros(4, 1, UNITS)
    program = export_program(Stream(), (torch.zeros(1, STEPS, FEATURES), state, state))
    save_program(program, folder / "stream.pt2")
    states = {name: np.random.default_rng(1).normal(size=(64, 4, 1, UNITS)).astype(np.float32) for name in "hc"}
    np.savez(folder / "data.npz", x=sequences(64, 1)[0][:, None], **states)
    return folder / "stream.pt2"


def keras_cells(folder: Path) -> Path:
    """Keras' cells of both directions, and further ones on top of them."""
    keras = import_keras()
    both = keras.layers.Bidirectional(keras.layers.LSTM(UNITS, return_sequences=True))
    own = [both, keras.layers.LSTM(UNITS), keras.layers.Dense(CLASSES)]
    keras.Sequential([keras.Input((STEPS, FEATURES), name="x"), *own]).save(folder / "cells.keras")
    np.savez(folder / "data.npz", x=sequences(64, 1)[0])
    return folder / "cells.keras"


@pytest.mark.parametrize(("source", "cells"), [(stream, 2), (keras_cells, 3)], ids=["torch", "keras"])
def test_other_sources_have_the_same_and_so_has_a_pack_of_what_was_written(
    source: Callable[[Path], Path], cells: int, tmp_path: Path
) -> None:
    """Of a torch or keras model without ONNX, and of the TFLite file that it was made to."""
    (tmp_path / "samples").mkdir()
    spec = source(tmp_path / "samples")
    given = {"formats": ("tflite",), "rank": 8, "precision": "int8", "data": tmp_path / "samples" / "data.npz"}
    for name in ("first", "second"):
        out = tmp_path / name
        record = build(options(spec, **given, out=out), cache=Cache(tmp_path / "cache")).manifest.record()
        entry = record["files"]["model.tflite"]
        assert {proof["passed"] for proof in entry["proofs"].values()} == {True}, entry["proofs"]
        factored = [(layer["rank"], layer["scheme"]) for layer in entry["layers"] if layer["out_features"] >= 4 * UNITS]
        assert factored == [(8, "int8-dynamic-range")] * cells
        names = [op.op for op in linear_ops(out / "model.tflite")]
        assert sum("LSTM" in each for each in names) == cells
        fused = [place for place, each in enumerate(names) if "LSTM" in each]
        assert {names[place - 1] for place in fused} == {"FULLY_CONNECTED"}
        spec = out / "baseline" / "fp32.tflite"


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
        plans = tuple(
            planned(layer_candidates, layer_candidates.candidates[0], spectra, 0.0)
            for layer_candidates in ready.all_candidates["onnx"]
        )
        assert [plan.structure.rank for plan in plans] == [8, None]
        assert ready.evaluator.replacements.distilled(plans, FileScheme.of(FP32)) is None


def test_factors_of_a_file_in_integers_stand_in_front_of_the_operator_in_float(tmp_path: Path) -> None:
    """The first is a product in integers; LiteRT's quantizer leaves the LSTM, which has the second, in float32."""
    source = write_recurrent(tmp_path, "LSTM")
    with prepared(options(source, formats=("tflite",), rank=8), Cache(tmp_path / "cache"), silent) as ready:
        evaluator, files = ready.evaluator, ready.files["tflite"]
        plans = tuple(
            planned(one, one.candidates[0], evaluator.analysis.spectra, 0.0) for one in ready.all_candidates["tflite"]
        )
        scheme = FileScheme.of(INT8_STATIC)
        plans = tuple(replace(plan, scheme=INT8_STATIC) for plan in plans)
        factors = files.takes(evaluator.replacements.factors(plans, scheme))
        trial = evaluator.file_evaluator.trial(files, plans, factors, scheme, tmp_path / "int8.tflite")
        assert trial.sound, trial.failure
        assert {"DEQUANTIZE", "UNIDIRECTIONAL_SEQUENCE_LSTM"} <= {*operators(trial.path)}


def test_inspect_reports_all_gates_as_one_matrix(tmp_path: Path) -> None:
    source = write_recurrent(tmp_path, "LSTM")
    report = inspect(InspectOptions(str(source), data=tmp_path / "data.npz"), Cache(tmp_path / "cache"))
    (found,) = (layer for layer in report.layers if layer.name == "W")
    assert (found.op, found.out_features, found.in_features, found.rows) == ("LSTM", 4 * UNITS, FEATURES, STEPS)
    inputs_and_states = STEPS * 4 * UNITS * (FEATURES + UNITS)
    assert found.macs_share == pytest.approx(inputs_and_states / (inputs_and_states + UNITS * CLASSES))
