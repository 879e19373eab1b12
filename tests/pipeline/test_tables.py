"""Embedding tables among what a plan chooses from: their candidates, and a file with them as planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, TABLES4, WEIGHTS8
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import answers, load
from edgepack.cost.model import LatencyEstimate
from edgepack.data import Samples
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import DENSE, Op, low_rank
from edgepack.model.types import LayerPlan
from edgepack.pipeline.candidates import LayerCandidates
from edgepack.pipeline.pareto import planned
from edgepack.pipeline.tables import as_stored, table_candidates
from edgepack.workspace import Cache, Workspace
from tests.backends.onnx.test_writer import model, node, normal

TOKENS, WIDTH = 400, 128


class Flat:
    """Every product takes as long as it has weights."""

    def of_product(self, scheme: Scheme, op: Op) -> LatencyEstimate:
        return LatencyEstimate(1e-9 * op.macs, "flat", 0.1)

    def source_name(self, fmt: str) -> str:
        return "flat"


def looked_up() -> tuple[OnnxWriter, Samples]:
    """Rows of twenty directions and a little more, and a layer behind them."""
    nodes = [
        node("Cast", ["x"], ["ids"], to=7),
        node("Gather", ["table", "ids"], ["rows"]),
        node("MatMul", ["rows", "fc"], ["y"]),
    ]
    table = normal(TOKENS, 20) @ normal(20, WIDTH, seed=1) + 0.1 * normal(TOKENS, WIDTH, seed=2)
    source = model(nodes, [6], {"table": table, "fc": normal(WIDTH, 24, seed=3)}, 17)
    samples = Samples({"x": np.random.default_rng(4).integers(0, TOKENS, (64, 6)).astype(np.float32)})
    return OnnxWriter(source, samples, qmax=127), samples


@pytest.fixture
def files() -> OnnxWriter:
    return looked_up()[0]


def candidates_of(files: OnnxWriter, tmp_path: Path, *, known: bool = False) -> LayerCandidates:
    analysis: Any = SimpleNamespace(
        sensitivity=SimpleNamespace(known=known), subject=SimpleNamespace(calibration=looked_up()[1]), key="k"
    )
    workspace = Workspace(Cache(tmp_path / "cache"), tmp_path)
    estimates: Any = Flat()
    (layer_candidates,) = table_candidates(files, analysis, estimates, "cosine", workspace)
    return layer_candidates


def test_a_table_is_offered_whole_and_narrower_in_8_bits_and_in_4(files: OnnxWriter, tmp_path: Path) -> None:
    found = {(one.structure, one.scheme): one for one in candidates_of(files, tmp_path).candidates}
    assert {structure.rank for structure, _ in found} == {None, 32, 64, 96}
    assert {scheme for _, scheme in found} == {WEIGHTS8, TABLES4}
    for structure, scheme in found:
        one = found[structure, scheme]
        assert one.latency_s == (0 if structure.is_dense else pytest.approx(1e-9 * 6 * WIDTH * (structure.rank or 0)))
        assert one.loss >= found[structure, WEIGHTS8].loss
        assert one.size_bytes <= found[structure, WEIGHTS8].size_bytes
    assert found[low_rank(32), WEIGHTS8].loss < 0.01, "the rows are of few directions"


def test_a_small_table_is_offered_whole_alone(tmp_path: Path) -> None:
    source = model([node("Gather", ["table", "x"], ["y"])], [6], {"table": normal(40, 64)}, 17)
    source.graph.inputs[0].dtype = ir.DataType.INT64
    files = OnnxWriter(source, Samples({"x": np.zeros((64, 6), np.int64)}), qmax=127)
    found = {(one.structure, one.scheme) for one in candidates_of(files, tmp_path).candidates}
    assert found == {(DENSE, WEIGHTS8), (DENSE, TABLES4)}


def test_sizes_are_those_of_files(files: OnnxWriter, tmp_path: Path) -> None:
    whole = FileScheme(INT8_DYNAMIC, WEIGHTS8)
    layer_candidates = candidates_of(files, tmp_path)
    sizes = []
    for one in layer_candidates.candidates:
        files.write({}, as_stored(whole, [planned(layer_candidates, one, {}, 0.0)]), tmp_path / "m.onnx")
        sizes.append((tmp_path / "m.onnx").stat().st_size - one.size_bytes)
    assert max(sizes) - min(sizes) < 600, "what is beside the table is the same"


def test_where_gradients_weigh_layers_a_table_loses_what_it_moves_the_answer(files: OnnxWriter, tmp_path: Path) -> None:
    """The square error of files with a smaller rank, and with rows in 4 bits."""
    moved = {(one.structure, one.scheme): one for one in candidates_of(files, tmp_path, known=True).candidates}
    plain, thin = FileScheme(FP32, WEIGHTS8), moved[low_rank(32), WEIGHTS8]
    changed = {
        (low_rank(32), WEIGHTS8): replace(plain, factored=(("table", thin.ops[1]),)),
        (DENSE, TABLES4): replace(plain, single=(("table", TABLES4),)),
    }
    files.write({}, plain, tmp_path / "m.onnx")
    reference = answers(load(tmp_path / "m.onnx", "onnx"), looked_up()[1])[0]
    for way, scheme in changed.items():
        files.write({}, scheme, tmp_path / "m.onnx")
        found = answers(load(tmp_path / "m.onnx", "onnx"), looked_up()[1])[0]
        assert moved[way].loss == pytest.approx(np.square(found - reference).sum() / 64, rel=0.3)


def table_plan(files: OnnxWriter, tmp_path: Path, rank: int | None, scheme: Scheme) -> LayerPlan:
    layer_candidates = candidates_of(files, tmp_path)
    wanted = DENSE if rank is None else low_rank(rank)
    chosen = next(one for one in layer_candidates.candidates if (one.structure, one.scheme) == (wanted, scheme))
    return planned(layer_candidates, chosen, {}, 0.0)


def test_a_file_says_how_its_tables_differ(files: OnnxWriter, tmp_path: Path) -> None:
    way = FileScheme(INT8_DYNAMIC, WEIGHTS8)
    assert as_stored(way, [table_plan(files, tmp_path, None, WEIGHTS8)]) == way
    assert as_stored(way, [table_plan(files, tmp_path, None, TABLES4)]) == replace(way, single=(("table", TABLES4),))
    thin = as_stored(way, [table_plan(files, tmp_path, 32, TABLES4)])
    assert (dict(thin.single), {name: op.columns for name, op in thin.factored}) == ({"table": TABLES4}, {"table": 32})
    assert str(thin) == "int8-dynamic+tables4 rank 32"
    assert str(as_stored(way, [table_plan(files, tmp_path, 32, WEIGHTS8)])) == "int8-dynamic+int8-weights rank 32"
