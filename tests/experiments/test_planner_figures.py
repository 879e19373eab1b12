from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import blocks_planner
import cases
import measure_allocation
import measure_loss_order
import measure_planner
import measure_solver
import numpy as np
import pytest

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, NBITS4, NBITS8
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.types import Candidate
from tests.linear_plans import linear_candidate


def layer_candidates() -> list[Candidate]:
    return [
        linear_candidate(FP32, None, 0.0, 400, 400, 9e-6),
        linear_candidate(INT8_DYNAMIC, None, 0.01, 100, 100, 5e-6),
        linear_candidate(NBITS8, None, 0.02, 110, 110, 4e-6),
        linear_candidate(NBITS4, None, 0.3, 50, 50, 3e-6),
        linear_candidate(INT8_DYNAMIC, 8, 0.2, 20, 20, 1e-6),
    ]


def test_the_rival_is_the_fastest_dense_plan_in_one_scheme_of_eight_bits() -> None:
    without = [one for one in layer_candidates() if one.scheme != NBITS8]
    assert measure_allocation.dense_int8_s([layer_candidates(), layer_candidates()]) == pytest.approx(8e-6)
    assert measure_allocation.dense_int8_s([layer_candidates(), without]) == pytest.approx(10e-6)
    with pytest.raises(ValueError, match="no scheme of 8 bits"):
        measure_allocation.dense_int8_s([layer_candidates()[:1]])


def test_bounds_lie_between_the_fastest_plan_and_dense_int8() -> None:
    rows = measure_allocation.compared([layer_candidates(), layer_candidates()])
    assert [row["latency_s"] for row in rows] == pytest.approx([3.5e-6, 5e-6, 6.5e-6])
    for row in rows:
        assert row["loss"]["exact"] == min(loss for loss in row["loss"].values() if loss is not None)


def test_a_wrong_exact_plan_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for picks, problem in (((4, 4), "loses .*, the exact plan 0.4"), ((0, 0), "exact takes")):
        rules = {"greedy": measure_allocation.ALLOCATORS["greedy"], "exact": lambda layers, bound, own=picks: own}
        monkeypatch.setattr(measure_allocation, "ALLOCATORS", rules)
        with pytest.raises(ValueError, match=problem):
            measure_allocation.compared([layer_candidates(), layer_candidates()])
        monkeypatch.undo()


def test_a_rule_that_finds_what_the_exact_plan_does_not_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {**measure_allocation.ALLOCATORS, "exact": lambda layers, bound: None}
    monkeypatch.setattr(measure_allocation, "ALLOCATORS", rules)
    with pytest.raises(ValueError, match="the exact plan None"):
        measure_allocation.compared([layer_candidates()])


def allocation(losses: list[dict[str, float | None]]) -> dict[str, Any]:
    row = {"model": "m", "format": "onnx", "layers": 2, "candidates": 10, "share": 0.5, "latency_s": 1e-3}
    return {
        "target": "rpi4",
        "rules": ["greedy", "exact"],
        "rows": [{**row, "cost_source": "table", "loss": one} for one in losses],
    }


def test_losses_are_shown_relative_to_the_exact_plan() -> None:
    text = blocks_planner.render_allocation(
        allocation([{"greedy": 4.0, "exact": 2.0}, {"greedy": 8.0, "exact": 1.0}, {"greedy": None, "exact": 1.0}])
    )
    cells = [line.strip("| ").split(" | ")[-2:] for line in text.splitlines() if line.startswith("| m ")]
    assert cells == [["1.000", "2.000"], ["1.000", "8.000"], ["1.000", "–"]]
    assert "greedy 8.000 at worst, 4.000 in the geometric mean, none in 1 of 3." in text


def test_a_loss_where_the_exact_plan_has_none_is_infinite() -> None:
    assert blocks_planner.relative({"greedy": 0.5, "exact": 0.0}, "greedy") == math.inf
    assert blocks_planner.relative({"greedy": 0.0, "exact": 0.0}, "greedy") == 1.0
    text = blocks_planner.render_allocation(allocation([{"greedy": 0.5, "exact": 0.0}, {"greedy": 3.0, "exact": 1.0}]))
    assert "greedy ∞ at worst, 3.000 in the geometric mean." in text
    assert text.splitlines()[2].endswith("| 0 | ∞ |")


def test_the_commonest_reason_is_counted_without_its_figures() -> None:
    reasons = ["rank 8 would be 1.3× slower", "the data never reach it", "rank 16 would be 2× slower"]
    assert measure_planner.commonest(reasons) == {"layers": 2, "reason": "rank 8 would be 1.3× slower"}
    assert measure_planner.commonest([]) is None


@pytest.mark.parametrize(("own", "said"), [(50, "2.00× smaller"), (200, "2.00× larger"), (100, "the same")])
def test_sizes_are_compared_in_words(own: int, said: str) -> None:
    assert blocks_planner.smaller(own, 100) == said


def planner() -> dict[str, Any]:
    def file(size: int, medians: list[float]) -> dict[str, Any]:
        return {"size_bytes": size, "process_medians_s": medians}

    times = [1.0e-5, 1.1e-5, 1.2e-5, 1.3e-5, 1.4e-5, 1.5e-5]
    row = {
        "model": "m",
        "format": "onnx",
        "forms": {"fp32": 3, "nbits8": 1},
        "layers": 4,
        "factored": 1,
        "dense_reason": {"layers": 2, "reason": "why"},
        "validation_drop": -0.001,
        "int8_drop": 0.25,
        "test_drop": None,
        "trials": 7,
        "cost_source": "roofline",
        "files": {
            "edgepack": file(100, times),
            "dense-int8": file(300, [2 * value for value in times]),
            "dense-fp32": file(900, times),
        },
    }
    model = {"name": "m", "metric": "cosine", "max_drop": 0.5, "validation_samples": 80, "build_s": 12.4}
    order = {"model": "m", "change": "1 − cosine", "samples": 80, "layers": 4, "factored": 1.5}
    return {
        "schedule": {"processes": 6},
        "models": [{**model, "loss_weighted_by": "output energy", "lost_formats": ["no TFLite file: an operator"]}],
        "rows": [row],
        "solver": {
            "layers": 200,
            "candidates": 60,
            "instances": 3,
            "rows": [{"instance": "random", "seconds": 1.23, "longest_s": 2.0}],
        },
        "loss_order": {
            "plans": 20,
            "rows": [{**order, "least_change": 0.01, "largest_change": 0.2, "curvature": 0.95, "energy": 0.7}],
        },
    }


def test_a_pack_stands_against_dense_int8() -> None:
    text = blocks_planner.render_planner(planner())
    assert "| m | ONNX Runtime | 1 of 4 | 3 fp32, 1 nbits8 | 100 B | 300 B | 3.00× smaller |" in text
    assert "| 2.00× faster | no difference | +0.00 | +0.25 | – |" in text
    assert "0.50 hundredths of cosine on 80 validation samples" in text
    assert "m: no TFLite file: an operator" in text
    assert "| 12 s | 7 | roofline | by output energy | why (2 of 3) |" in text
    assert "random 1.2 s" in text
    assert "| 1.5 of 4 | 0.950 | 0.700 |" in text


def test_solver_instances_are_of_three_kinds() -> None:
    random, same = (measure_solver.instance(3, 0.1, equal=equal) for equal in (False, True))
    for layers in (random, same):
        assert len(layers) == measure_solver.LAYERS
        assert {len(layer) for layer in layers} == {measure_solver.CANDIDATES}
    assert all(layer == same[0] for layer in same)
    assert random[0] != random[1]
    assert measure_solver.instance(3, 0.1, equal=False) == random


@pytest.mark.parametrize(("count", "least", "most"), [(2, 2, 2), (40, 1, 25)])
def test_random_plans_factor_about_a_quarter_of_many_layers_and_all_of_few(count: int, least: int, most: int) -> None:
    layers = [linear_layer(f"l{i}", np.zeros((64, 96), np.float32), None) for i in range(count)]
    for rng in np.random.default_rng(1).spawn(20):
        ranks = measure_loss_order._drawn(layers, rng)
        assert least <= len(ranks) <= most
        assert all(measure_loss_order.LEAST_RANK <= rank <= 38 for rank in ranks.values())


def test_changes_are_none_for_the_same_answers_and_grow_with_the_error() -> None:
    rng = np.random.default_rng(0)
    reference, noise = rng.standard_normal((2, 50, 10)).astype(np.float32)
    for change in measure_loss_order.CHANGES.values():
        assert change(reference, reference) == pytest.approx(0.0, abs=1e-7)
        assert 0 < change(reference, reference + 0.1 * noise) < change(reference, reference + noise)
    assert measure_loss_order.kl_divergence(reference, reference + 3.0) == pytest.approx(0.0, abs=1e-6)
    assert measure_loss_order.cosine_distance(reference, 3 * reference) == pytest.approx(0.0, abs=1e-6)


def test_recipes_of_the_cases_are_there(tmp_path: Path) -> None:
    names = (*measure_planner.NAMES, *measure_allocation.NAMES)
    for case in cases.cases([name for name in dict.fromkeys(names) if name != "magika"], tmp_path):
        assert Path(case.model.removesuffix(":recipe")).is_file()
