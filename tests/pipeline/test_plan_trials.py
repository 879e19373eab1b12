"""Trials of real plans: emitted once, kept in the cache, told apart by their schemes and ranks."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, NBITS4
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.limits import Rest
from edgepack.pipeline.pareto import Step, make_front
from edgepack.pipeline.prepare import Prepared, prepared
from edgepack.pipeline.search import plan_trial
from edgepack.pipeline.variants import trial_scheme
from edgepack.plan.solve import Bounds, Infeasible
from edgepack.workspace import Cache, silent
from tests.pipeline.small_builds import options, working_in


class Counted:
    """The real files of a format, with a list of what was written."""

    def __init__(self, ready: Prepared) -> None:
        self._files = ready.files["onnx"]
        self.written: list[tuple[FileScheme, dict[str, int], dict[str, Scheme]]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._files, name)

    def write(
        self,
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> None:
        self.written.append(
            (
                scheme,
                {name: one.rank for name, one in factors.items() if one.structure.ranks},
                dict(schemes or {}),
            )
        )
        self._files.write(factors, scheme, out, schemes)


@pytest.fixture
def evaluator(ready: Prepared, tmp_path: Path) -> Evaluator:
    """The prepared model with an empty cache."""
    return working_in(tmp_path, ready.evaluator, cache=Cache(tmp_path / "cache"))


@pytest.fixture
def files(ready: Prepared) -> Counted:
    return Counted(ready)


@pytest.fixture(scope="module")
def steps(ready: Prepared) -> tuple[Step, ...]:
    made = make_front(ready.all_candidates["onnx"], ready.evaluator.spectra, Bounds(), Rest(0, 0, 0.0))
    assert not isinstance(made, Infeasible)
    return made


def test_a_plan_is_emitted_once_and_then_known(evaluator: Evaluator, files: Counted, steps: tuple[Step, ...]) -> None:
    step = steps[-1]
    first = plan_trial(evaluator, files, step)  # type: ignore[arg-type]
    again = plan_trial(evaluator, files, step)  # type: ignore[arg-type]
    assert first == again
    assert len(files.written) == 1
    scheme, ranks, _ = files.written[0]
    assert scheme == first.scheme == trial_scheme(evaluator.options, files, step.layers)  # type: ignore[arg-type]
    assert ranks == {layer.layer: layer.rank for layer in step.layers if layer.rank is not None}
    assert first.drop.samples == 400
    assert (first.loss, first.latency_s, first.layers) == (step.loss, step.latency_s, step.layers)
    assert list(evaluator.workspace.folder.glob("trial*")) == []


def test_factors_that_are_rounded_together_are_another_trial(
    evaluator: Evaluator, files: Counted, steps: tuple[Step, ...]
) -> None:
    step = with_scheme(next(step for step in steps if all(layer.rank for layer in step.layers[:2])), NBITS4)
    drafted, together, again = (
        plan_trial(evaluator, files, step, rounded_together=how)  # type: ignore[arg-type]
        for how in (False, True, True)
    )
    assert len(files.written) == 2
    assert together == again
    assert together.drop != drafted.drop


def test_its_figures_are_those_of_the_file(ready: Prepared, evaluator: Evaluator, steps: tuple[Step, ...]) -> None:
    found = plan_trial(evaluator, ready.files["onnx"], steps[0])
    path = evaluator.workspace.folder / "own.onnx"
    ready.files["onnx"].write({}, FileScheme.of(FP32), path)
    assert found.size_bytes == path.stat().st_size
    assert found.drop == evaluator.file_evaluator.drop_of(path, "onnx")
    assert found.drop.value == 0.0


def with_scheme(step: Step, scheme: Scheme) -> Step:
    return replace(step, layers=tuple(replace(layer, scheme=scheme) for layer in step.layers))


def test_other_schemes_and_ranks_are_other_probes(
    evaluator: Evaluator, files: Counted, steps: tuple[Step, ...]
) -> None:
    dense = steps[0]
    mixed = replace(dense, layers=(replace(dense.layers[0], scheme=INT8_DYNAMIC), *dense.layers[1:]))
    made = [dense, with_scheme(dense, INT8_DYNAMIC), with_scheme(dense, NBITS4), mixed, steps[-1]]
    sizes = [plan_trial(evaluator, files, step).size_bytes for step in made]  # type: ignore[arg-type]
    assert len(files.written) == len(set(sizes)) == len(made)
    assert [plan_trial(evaluator, files, step).size_bytes for step in made] == sizes  # type: ignore[arg-type]
    assert len(files.written) == len(made)


def test_reasons_and_predictions_make_no_other_probe(
    evaluator: Evaluator, files: Counted, steps: tuple[Step, ...]
) -> None:
    """The same plan under another bound has other words, and another target other latencies."""
    step = steps[1]
    first = plan_trial(evaluator, files, step)  # type: ignore[arg-type]
    other = replace(step, latency_s=1.0, layers=tuple(replace(one, reason="else") for one in step.layers))
    second = plan_trial(evaluator, files, other)  # type: ignore[arg-type]
    assert len(files.written) == 1
    assert (second.drop, second.size_bytes, second.latency_s) == (first.drop, first.size_bytes, 1.0)


def test_another_build_does_not_take_it(evaluator: Evaluator, files: Counted, steps: tuple[Step, ...]) -> None:
    for key, qmax in ((evaluator.key, 127), ("other model", 127), (evaluator.key, 63)):
        analysis = replace(evaluator.analysis, qmax=qmax)
        plan_trial(replace(evaluator, key=key, analysis=analysis), files, steps[1])  # type: ignore[arg-type]
    assert len(files.written) == 3


def test_fresh_probes_again(evaluator: Evaluator, files: Counted, steps: tuple[Step, ...]) -> None:
    first = plan_trial(evaluator, files, steps[1])  # type: ignore[arg-type]
    workspace = evaluator.workspace
    fresh = working_in(workspace.folder, evaluator, cache=Cache(workspace.cache.root, fresh=True))
    assert plan_trial(fresh, files, steps[1]) == first  # type: ignore[arg-type]
    assert len(files.written) == 2


def test_an_interrupted_probe_leaves_nothing_behind(
    evaluator: Evaluator, files: Counted, steps: tuple[Step, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluator.file_evaluator, "drop_of", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan_trial(evaluator, files, steps[1])  # type: ignore[arg-type]
    assert plan_trial(evaluator, files, steps[1]).drop.samples == 400  # type: ignore[arg-type]
    assert len(files.written) == 2


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("changed", ["labels", "seed"])
def test_other_labels_or_another_split_are_probed_anew(
    classifier: Path, warm_cache: Path, tmp_path: Path, ready: Prepared, changed: str
) -> None:
    """The validation set decides what a plan loses, so it is a part of what a trial is kept under."""
    import numpy as np

    asked = options(classifier)
    if changed == "labels":
        with np.load(classifier.parent / "data.npz") as data:
            labels = data["y"].copy()
            random.Random(0).shuffle(labels)
            np.savez(tmp_path / "other.npz", x=data["x"], y=labels)
        asked = replace(asked, data=tmp_path / "other.npz")
    else:
        asked = replace(asked, seed=7)
    with prepared(asked, Cache(warm_cache), silent) as other:
        assert other.evaluator.key != ready.evaluator.key
