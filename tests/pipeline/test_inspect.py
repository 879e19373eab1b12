"""`inspect` of a model without building, and of a pack that was built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.errors import PackError
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline.build import build
from edgepack.pipeline.inspect import InspectOptions, inspect
from edgepack.plan.candidates import break_even_rank
from edgepack.report.inspect import model_report, pack_report
from edgepack.workspace import Cache
from tests.pipeline.small_builds import CLASSES, FEATURES, HIDDEN, options
from tests.pipeline.test_tables import TOKENS, WIDTH, looked_up
from tests.report.shown import terminal_text

SHAPES = {"w1": (HIDDEN, FEATURES), "w2": (HIDDEN, HIDDEN), "w3": (CLASSES, HIDDEN)}


def test_a_model_with_data(classifier: Path, warm_cache: Path) -> None:
    report = inspect(InspectOptions(str(classifier), data=classifier.parent / "data.npz"), Cache(warm_cache))
    assert {layer.name: (layer.out_features, layer.in_features) for layer in report.layers} == SHAPES
    assert report.method == "whitened"
    assert report.linear_bytes == sum(4 * rows * columns for rows, columns in SHAPES.values())
    for layer in report.layers:
        rows, columns = SHAPES[layer.name]
        assert layer.break_even == break_even_rank(rows, columns)
        assert 0 < layer.rank_90 <= layer.rank_99 <= min(rows, columns)
        assert layer.rows == 1
    assert sum(layer.macs_share or 0 for layer in report.layers) == pytest.approx(1)


def test_a_model_without_data(classifier: Path, warm_cache: Path) -> None:
    report = inspect(InspectOptions(str(classifier)), Cache(warm_cache))
    assert report.method == "svd"
    assert not report.has_data
    assert {layer.energy for layer in report.layers} == {"weight"}
    assert [layer.rows for layer in report.layers] == [1, 1, 1]


def test_embedding_tables_are_shown_with_the_ranks_that_their_rows_need(warm_cache: Path, tmp_path: Path) -> None:
    source, samples = looked_up()
    source.write_dense(tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", **samples.inputs)
    report = inspect(InspectOptions(str(tmp_path / "m.onnx"), data=tmp_path / "data.npz"), Cache(warm_cache))
    (table,) = report.tables
    assert (table.name, table.op, table.out_features, table.in_features) == ("table", "Gather", TOKENS, WIDTH)
    assert (table.rows, table.break_even) == (6, break_even_rank(TOKENS, WIDTH))
    assert 10 < table.rank_90 <= 20 <= table.rank_99 < WIDTH
    assert "embedding tables" in terminal_text(model_report(report))


def test_a_pack_says_what_became_of_each_layer(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    result = build(options(classifier, out=tmp_path / "pack", max_drop=40.0), cache=Cache(warm_cache))
    manifest = read_manifest(tmp_path / "pack")
    assert manifest == result.manifest
    assert "model.onnx: " in terminal_text(pack_report(tmp_path / "pack", manifest))


def test_what_is_no_pack(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(PackError, match="not a pack"):
        read_manifest(tmp_path)
    with pytest.raises(PackError, match="not a pack"):
        read_manifest(classifier.parent)
