"""--explore and --pick on a real model: rows, the front, numbers that stay, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.onnx.schemes import FP32
from edgepack.errors import BudgetError, UsageError
from edgepack.metrics.drop import Drop
from edgepack.model.scheme import FileScheme
from edgepack.pipeline.build import build
from edgepack.pipeline.explore import AIMS, PER_AIM, PER_PRECISION, Exploration, ExploredRow, _on_front, explore
from edgepack.pipeline.search import PlanTrial
from edgepack.report.build import explored_report
from edgepack.workspace import Cache, file_digest
from tests.pipeline.small_builds import options


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def found(classifier: Path, cache: Cache) -> Exploration:
    return explore(options(classifier), cache=cache)


def figures(row: ExploredRow) -> tuple[float, float, float]:
    return row.drop.value, row.latency_s, row.size_bytes


def test_rows_are_numbered_from_the_least_loss_on(found: Exploration) -> None:
    rows = found.rows
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert 5 <= len(rows) <= PER_AIM * len(AIMS) + PER_PRECISION * len({4, 8, 32}) + 1
    assert len({(figures(row), row.scheme, row.weights_share) for row in rows}) == len(rows)
    first, last = rows[0], rows[-1]
    assert (first.drop.value, first.factored, first.weights_share) == (0.0, (0, 3), 1.0)
    assert last.factored == (2, 3)
    assert last.drop.value > 10
    assert last.size_bytes < first.size_bytes / 10
    assert {row.format for row in rows} == {"onnx"}
    assert {row.source for row in rows} == {"emulated cost table"}
    assert found.warnings == ()


def test_both_ends_are_there(found: Exploration) -> None:
    """The fastest plan and the smallest one are looked at, whatever they lose."""
    assert min(row.size_bytes for row in found.rows) < 30_000, "integers at rank 8"
    fastest = min(found.rows, key=lambda row: row.latency_s)
    assert fastest.scheme == "fp32"
    assert fastest.size_bytes > 1.5 * min(row.size_bytes for row in found.rows)


def test_dense_int8_and_every_precision_that_has_figures_are_there(found: Exploration) -> None:
    schemes = {row.scheme for row in found.rows}
    assert {"fp32", "int8-weights", "int4-weights"} <= {each for label in schemes for each in label.split("+")}
    (dense,) = [row for row in found.rows if row.factored[0] == 0 and row.scheme.startswith("int8")]
    assert dense.weights_share == 1.0
    assert dense.ranks == {}
    assert dense.size_bytes < 0.3 * found.rows[0].size_bytes
    for row in found.rows:
        assert len(row.ranks) == row.factored[0]
        assert all(rank % 8 == 0 for rank in row.ranks.values())


def test_the_front_against_all_pairs(found: Exploration) -> None:
    for row in found.rows:
        beaten = any(
            all(a <= b for a, b in zip(figures(other), figures(row), strict=True)) and figures(other) != figures(row)
            for other in found.rows
        )
        assert row.on_front is not beaten
    assert any(row.on_front for row in found.rows)


def made(value: float, latency: float, size: int) -> PlanTrial:
    return PlanTrial(
        "onnx",
        FileScheme.of(FP32),
        (),
        Drop("accuracy", 100.0, 100.0 - value, value, value, 0.0, 10),
        0.0,
        latency,
        size,
    )


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], True),
        ([made(1.0, 1.0, 10)], True),
        ([made(1.0, 1.0, 9)], False),
        ([made(0.5, 0.5, 11)], True),
        ([made(0.5, 1.0, 10), made(2.0, 0.1, 1)], False),
    ],
    ids=["alone", "an equal", "smaller", "larger", "better"],
)
def test_the_front_of_small_sets(others: Sequence[PlanTrial], expected: bool) -> None:
    own = made(1.0, 1.0, 10)
    assert _on_front(own, [own, *others]) is expected


def test_a_pick_is_the_plan_of_that_number(found: Exploration, classifier: Path, cache: Cache, tmp_path: Path) -> None:
    """The same bytes each time, no more of them than the list says, and its drop."""
    number = len(found.rows) - 1
    row = found.rows[number - 1]
    digests = []
    for out in (tmp_path / "one", tmp_path / "two"):
        manifest = build(options(classifier, pick=(number,), out=out), cache=cache).manifest.record()
        entry = manifest["files"]["model.onnx"]
        digests.append(file_digest(out / "model.onnx"))
        assert entry["scheme"] == row.scheme
        assert 0.8 * row.size_bytes < entry["size_bytes"] <= row.size_bytes, "factors may come to share their scales"
        assert entry["validation"]["drop"] == pytest.approx(row.drop.value, abs=1.0)
        assert sum(layer["rank"] is not None for layer in entry["layers"]) == row.factored[0]
        assert manifest["options"]["pick"] == [number]
        assert sum(layer["predicted"]["latency_s"] for layer in entry["layers"]) == pytest.approx(row.latency_s)
    assert digests[0] == digests[1]
    assert explore(options(classifier), cache=cache) == found, "the list stays as it was"


def test_a_pick_over_the_budget_is_built_and_said(
    found: Exploration, classifier: Path, cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=r"no plan keeps the drop within 0\.5"):
        build(options(classifier, pick=(len(found.rows),), max_drop=0.5, out=tmp_path / "p"), cache=cache)
    assert (tmp_path / "p" / "model.onnx").is_file()


def test_picks_that_are_refused(found: Exploration, classifier: Path, cache: Cache, tmp_path: Path) -> None:
    beyond = len(found.rows) + 1
    for pick, says in (
        ((beyond,), rf"--pick {beyond}: there are plans 1 to {len(found.rows)}"),
        ((1, 2), "--pick names two onnx plans"),
        ((3, 3), "--pick names two onnx plans"),
    ):
        with pytest.raises(UsageError, match=says):
            build(options(classifier, pick=pick, out=tmp_path / "p"), cache=cache)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pick", [(), (1,)])
def test_without_data_there_is_nothing_to_compare(
    classifier: Path, cache: Cache, tmp_path: Path, pick: tuple[int, ...]
) -> None:
    asked = options(classifier, data=None, pick=pick, out=tmp_path / "p")
    with pytest.raises(UsageError, match="only where data measure what they lose") as caught:
        build(asked, cache=cache) if pick else explore(asked, cache=cache)
    assert caught.value.hint == "give --data F.npz"


def test_limits_hold_for_what_is_explored(classifier: Path, cache: Cache) -> None:
    rows = explore(options(classifier, max_size_bytes=100_000), cache=cache).rows
    assert max(row.size_bytes for row in rows) <= 105_000
    with pytest.raises(BudgetError, match=r"no onnx plan fits --max-size 5\.00 kB"):
        explore(options(classifier, max_size_bytes=5_000), cache=cache)


def test_the_time_is_kept_and_told(classifier: Path, tmp_path: Path) -> None:
    found = explore(options(classifier, time_limit_s=1e-6), cache=Cache(tmp_path))
    assert len(found.rows) == 1
    assert found.warnings == ("the time ran out before all plans were tried: raise --time-limit",)


def test_for_machines(found: Exploration) -> None:
    rows: list[dict[str, Any]] = explored_report(found.rows).record["plans"]
    assert [set(row) for row in rows] == [
        {
            *("number", "on_front", "format", "scheme", "factored", "ranks", "weights_share", "size_bytes"),
            *("latency_s", "source", "drop"),
        }
    ] * len(rows)
    assert set(rows[0]["drop"]) == {
        *("metric", "dense", "emitted", "value", "bound", "confidence", "standard_error", "samples", "output", "score"),
    }
    assert all(row["drop"]["bound"] > row["drop"]["value"] for row in rows)
    assert np.isfinite([row["latency_s"] for row in rows]).all()
    assert replace(found.rows[0]) == found.rows[0]
