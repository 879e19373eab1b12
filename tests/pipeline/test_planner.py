"""Plans of a real model for a Raspberry Pi 4: the promise, the budget, and what gives way to what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack.backends.onnx.schemes import FP32
from edgepack.metrics.drop import Drop
from edgepack.pipeline.baselines import Baseline, make_baseline
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.prepare import Prepared
from edgepack.pipeline.search import Planned, plan
from tests.pipeline.small_builds import options, working_in

NEVER = float("inf")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="module")
def baseline(ready: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    """Dense int8 of the model; it loses next to nothing."""
    folder = tmp_path_factory.mktemp("baseline")
    return make_baseline(working_in(folder, ready.evaluator), ready.files["onnx"], ready.estimates)


def evaluator_with(ready: Prepared, classifier: Path, work: Path, **changes: Any) -> Evaluator:
    """For the fastest plan: that is what most is known of."""
    return working_in(work, ready.evaluator, options=options(classifier, **changes), aim="latency")


def planned(ready: Prepared, evaluator: Evaluator, baseline: Baseline, **kw: Any) -> Planned:
    rival = replace(baseline, limit=evaluator.options.drop_limit)
    asked = {"deadline_s": NEVER, **kw}
    return plan(evaluator, ready.files["onnx"], ready.all_candidates["onnx"], ready.estimates, rival, **asked)


def size_of(made: Planned) -> int:
    return made.found.trial.path.stat().st_size


@pytest.mark.parametrize("limit", [0.5, 70.0])
def test_never_larger_than_dense_int8_and_within_the_budget(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline, limit: float
) -> None:
    """Float32 is the fastest dense scheme of these small layers: without the promise the file would be four times as
    large."""
    evaluator = evaluator_with(ready, classifier, work, max_drop=limit)
    made = planned(ready, evaluator, baseline)
    assert made.failure is None
    assert made.found.trial.lost <= limit
    assert made.found.trial.sound
    assert size_of(made) <= 1.01 * baseline.int8.stat().st_size
    good = [plan_trial for plan_trial in made.found.plan_trials if plan_trial.drop.bound <= limit]
    own = sum(layer.predicted.latency_s for layer in made.found.trial.layers if layer.predicted)
    assert own == pytest.approx(min(plan_trial.latency_s for plan_trial in good)), "the fastest of all that were tried"
    assert made.loss == pytest.approx(sum(one.predicted.loss for one in made.found.trial.layers if one.predicted))


def test_a_larger_budget_is_never_slower(ready: Prepared, classifier: Path, work: Path, baseline: Baseline) -> None:
    latencies = []
    for limit in (0.5, 60.0):
        made = planned(ready, evaluator_with(ready, classifier, work, max_drop=limit), baseline)
        latencies.append(sum(one.predicted.latency_s for one in made.found.trial.layers if one.predicted))
    assert latencies[1] < latencies[0]


def test_where_int8_misses_the_budget_a_plan_of_its_size_still_comes_first(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline
) -> None:
    bad = replace(baseline, int8_drop=Drop("accuracy", 94.5, 80.0, 14.5, 16.0, 1.0, 256))
    made = planned(ready, evaluator_with(ready, classifier, work, max_drop=0.5), bad)
    assert made.found.trial.lost <= 0.5
    assert size_of(made) <= 1.01 * baseline.int8.stat().st_size


@pytest.mark.parametrize("changes", [{"precision": "fp32"}, {"rank": 100}, {"pick": (1,)}])
def test_what_was_asked_for_is_not_bound_by_the_promise(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline, changes: dict[str, Any]
) -> None:
    counted = [
        replace(
            layer_candidates,
            candidates=tuple(one for one in layer_candidates.candidates if one.scheme.estimated_like is None),
        )
        for layer_candidates in ready.all_candidates["onnx"]
    ]
    evaluator = evaluator_with(ready, classifier, work, max_drop=0.5, **changes)
    made = planned(replace(ready, all_candidates={"onnx": counted}), evaluator, baseline)
    assert size_of(made) > 2 * baseline.int8.stat().st_size, "dense float32 is the fastest of these candidates"


def test_a_promise_that_no_plan_within_the_budget_can_keep_gives_way(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline
) -> None:
    """The budget comes first: where only float32 layers meet it, the file may be larger than dense int8."""
    precise = tuple(
        replace(
            layer_candidates,
            candidates=tuple(
                one for one in layer_candidates.candidates if one.scheme == FP32 or one.structure.rank == 8
            ),
        )
        for layer_candidates in ready.all_candidates["onnx"]
    )
    evaluator = evaluator_with(ready, classifier, work, max_drop=0.5)
    rival = replace(baseline, limit=0.5)
    made = plan(evaluator, ready.files["onnx"], precise, ready.estimates, rival, deadline_s=NEVER)
    assert made.failure is None
    assert made.found.trial.lost <= 0.5
    assert size_of(made) > baseline.int8.stat().st_size
    assert made.found.trial.path.is_file()
    losses = [plan_trial.loss for plan_trial in made.found.plan_trials]
    assert losses == sorted(losses)
    assert len(
        {tuple((one.scheme, one.rank) for one in plan_trial.layers) for plan_trial in made.found.plan_trials}
    ) == len(losses)


def test_a_budget_that_nothing_meets_gives_the_closest_file(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline
) -> None:
    lossy = tuple(
        replace(
            layer_candidates,
            candidates=tuple(one for one in layer_candidates.candidates if one.structure.rank in (8, 72, 112))
            or layer_candidates.candidates,
        )
        for layer_candidates in ready.all_candidates["onnx"]
    )
    evaluator = evaluator_with(ready, classifier, work, max_drop=0.5)
    rival = replace(baseline, limit=0.5)
    made = plan(evaluator, ready.files["onnx"], lossy, ready.estimates, rival, deadline_s=NEVER)
    assert made.failure is None, "which layers are to blame is said elsewhere"
    assert made.found.trial.lost > 0.5
    validated = made.found.trial.drop
    assert validated is not None
    assert validated.bound <= 1.05 * min(plan_trial.drop.bound for plan_trial in made.found.plan_trials), (
        "on the same samples"
    )
    assert made.found.trial.path.is_file()


def test_the_time_ends_the_search_with_a_file(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline
) -> None:
    made = planned(ready, evaluator_with(ready, classifier, work, max_drop=30.0), baseline, deadline_s=0.0)
    assert len(made.found.plan_trials) <= 2, "one per ladder"
    assert made.found.trial.path.is_file()
    assert made.found.trial.sound


def test_what_is_late_ends_with_its_last_resort_and_says_so(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline
) -> None:
    """One plan is tried and at most two are written, where a search with time goes on under wider bounds."""
    lossy = tuple(
        replace(one, candidates=tuple(c for c in one.candidates if c.structure.rank in (8, 72)) or one.candidates)
        for one in ready.all_candidates["onnx"]
    )
    evaluator = evaluator_with(ready, classifier, work, max_drop=0.5)
    rival = replace(baseline, limit=0.5)
    made = plan(evaluator, ready.files["onnx"], lossy, ready.estimates, rival, deadline_s=0.0)
    assert len(made.found.plan_trials) == 1
    assert made.found.trial.lost > 0.5
    assert "the time ran out before a plan kept the budget: raise --time-limit" in evaluator.workspace.warnings


def test_a_second_search_emits_only_its_file(
    ready: Prepared, classifier: Path, work: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = evaluator_with(ready, classifier, work, max_drop=12.0)
    first = planned(ready, evaluator, baseline)
    asked: list[Path] = []
    monkeypatch.setattr(evaluator.file_evaluator, "drop_of", lambda path, fmt: asked.append(path))
    again = planned(ready, evaluator, baseline)
    assert asked == [], "every trial is known"
    assert again.found.trial.layers == first.found.trial.layers
    assert again.found.plan_trials == first.found.plan_trials
    assert [path.name for path in work.glob("*.onnx")] == [again.found.trial.path.name]
