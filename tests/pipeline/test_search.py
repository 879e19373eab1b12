"""The search along the front, with files that only note what was written and an evaluator that says what each loses."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, TABLES4
from edgepack.errors import ModelError, ProofError
from edgepack.metrics.drop import Drop
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Aim, LayerPlan, Proof, Spectrum
from edgepack.pipeline.activations import Covariances, Subject
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.gradients import Sensitivity
from edgepack.pipeline.limits import Rest
from edgepack.pipeline.method_fits import NOTHING
from edgepack.pipeline.pareto import Step
from edgepack.pipeline.replacements import Replacements
from edgepack.pipeline.rounding import Rounder
from edgepack.pipeline.search import FINALISTS, Found, Search
from edgepack.workspace import Cache, Progress, Workspace, silent
from tests.linear_plans import linear_plan
from tests.pipeline.small_builds import options

LAYER = linear_layer("fc", np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), None)
SPECTRUM = Spectrum(np.eye(64, dtype=np.float32), np.geomspace(1, 1e-4, 64))
NEVER = float("inf")
NOTHING_BESIDE = Rest(0, 0, 0.0)
INT8 = replace(INT8_DYNAMIC, name="int8")
OTHERS = replace(INT8_DYNAMIC, name="x")
INT4 = replace(INT8_DYNAMIC, name="int4", bits=4)
WHOLE = replace(INT8_STATIC, name="int8-static", scope="file")


def drop(value: float) -> Drop:
    return Drop("agreement", 100.0, 100.0 - value, value, value, 0.0, 256)


def step(rank: int | None, latency: float, size: int = 1000, loss: float | None = None, scheme: Scheme = INT8) -> Step:
    """A plan of one layer; by default it loses more the smaller its rank is."""
    layer = linear_plan("fc", 64, 64, rank, 31, 0.0, "a reason", scheme=scheme)
    return Step((layer,), 1 / (rank or 64) if loss is None else loss, size, size, latency)


class Files:
    """Writes down what it was asked for instead of a model."""

    fmt = "onnx"

    trial_scheme = FileScheme.of(INT8_DYNAMIC)

    def __init__(
        self,
        whole: tuple[Scheme, ...] = (),
        others: tuple[Scheme | None, ...] = (None,),
        tables: tuple[tuple[str, Scheme], ...] = (),
    ) -> None:
        self.file_schemes, self.others, self.tables = whole, others, tables
        self.written: list[str] = []

    def rest(self, scheme: Scheme) -> tuple[FileScheme, ...]:
        return tuple(FileScheme(scheme, other or scheme) for other in self.others)

    def write(
        self,
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> None:
        assert not schemes, "a single layer has the scheme of the file"
        out.write_text(f"{scheme} {factors['fc'].rank if factors else 'dense'}")
        self.written.append(out.read_text())

    def takes(self, factors: Mapping[str, Replacement]) -> dict[str, Replacement]:
        return dict(factors)

    def supports(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        return "no kernel" if structure.rank == NO_KERNEL else None


NO_KERNEL = 16
"""A rank at which a layer cannot have another scheme than the planned one."""


class FileEvaluator:
    """Drops by the content of a file, of plans, then of emitted files where they differ; `broken` fail a proof."""

    def __init__(
        self,
        of_plans: Mapping[str, float],
        of_files: Mapping[str, float] | None = None,
        broken: Sequence[str] = (),
        refused: Sequence[str] = (),
        has_data: bool = True,
    ) -> None:
        self.of_plans, self.of_files = of_plans, {**of_plans, **(of_files or {})}
        self.broken, self.refused = broken, refused
        self.validation = SimpleNamespace(metric="agreement", has_data=has_data)

    def drop_of(self, path: Path, fmt: str) -> Drop:
        return drop(self.of_plans[path.read_text()])

    def trial(
        self,
        files: Files,
        plan: tuple[LayerPlan, ...],
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
    ) -> FileTrial:
        files.write(factors, scheme, out)
        if out.read_text() in self.refused:
            raise ModelError("the runtime refuses it")
        proof = Proof("outputs", out.read_text() not in self.broken, "far from the reference")
        found = drop(self.of_files[out.read_text()]) if self.validation.has_data else None
        return FileTrial("onnx", scheme, out, plan, (proof,), found)


def made_evaluator(
    tmp_path: Path,
    file_evaluator: Any,
    target: str = "rpi4",
    max_drop: float = 0.5,
    progress: Progress = silent,
    layer: Layer = LAYER,
) -> Evaluator:
    asked = options(tmp_path / "m.onnx", target, max_drop=max_drop, data=None)
    workspace = Workspace(Cache(tmp_path / "cache"), tmp_path, progress=progress)
    subject = Subject(Model("m", "onnx", "0" * 64, "onnx", None, (), (layer,), {}, None, None), None, "key")
    unseen = Covariances(subject, workspace)
    sensitivity = Sensitivity(False, None, dict)
    analysis = Analysis(subject, "svd", {LAYER.name: SPECTRUM}, (), unseen, None, sensitivity, 127, "key")
    replacements = Replacements(analysis, Rounder(unseen, "svd", 127, {}, workspace), None, None, NOTHING)
    return Evaluator(asked, analysis, replacements, file_evaluator, None, "latency", "key", workspace)


def searched(
    tmp_path: Path,
    steps: Sequence[Step],
    file_evaluator: Any,
    files: Files | None = None,
    limit: float | None = 0.5,
    **kw: Any,
) -> Found:
    evaluator = made_evaluator(tmp_path, file_evaluator, **kw)
    return Search(evaluator, files or Files(), NOTHING_BESIDE, NEVER).run(steps, limit)  # type: ignore[arg-type]


FRONT = [step(None, 9.0), step(32, 5.0), step(24, 2.0), step(16, 3.0), step(8, 1.0)]
DROPS = {"int8 dense": 0.0, "int8 32": 0.1, "int8 24": 0.2, "int8 16": 0.4, "int8 8": 3.0}


def models(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnx"))


def test_the_fastest_within_the_budget_not_the_first_nor_the_most_compressed(tmp_path: Path) -> None:
    found = searched(tmp_path, FRONT, FileEvaluator(DROPS))
    assert found.trial.path.read_text() == "int8 24"
    assert found.trial.layers[0].rank == 24
    assert found.trial.within(0.5)
    assert found.latency_s == {}
    assert [plan_trial.loss for plan_trial in found.plan_trials] == sorted(
        plan_trial.loss for plan_trial in found.plan_trials
    )


class RoundedTwice(FileEvaluator):
    """A plan that is tried again was rounded together: `of_plans` is what drafts lose, `of_files` all else."""

    def __init__(self, of_plans: Mapping[str, float], of_files: Mapping[str, float]) -> None:
        super().__init__(of_plans, of_files)
        self.tried: list[str] = []

    def drop_of(self, path: Path, fmt: str) -> Drop:
        self.tried.append(path.read_text())
        return drop((self.of_plans if self.tried.count(self.tried[-1]) == 1 else self.of_files)[self.tried[-1]])


def test_plans_in_4_bits_beyond_those_whose_drafts_are_good_are_tried_as_they_are_written(tmp_path: Path) -> None:
    front = [step(rank, latency, scheme=INT4) for rank, latency in ((None, 9), (32, 5), (24, 4), (16, 3), (8, 1))]
    drafts = {"int4 dense": 0.0, "int4 32": 0.4, "int4 24": 1.0, "int4 16": 2.0, "int4 8": 9.0}
    evaluator = RoundedTwice(drafts, {**dict.fromkeys(drafts, 0.0), "int4 24": 0.2, "int4 16": 0.3, "int4 8": 0.9})
    assert searched(tmp_path, front, evaluator).trial.path.read_text() == "int4 16"
    assert evaluator.tried[-3:] == ["int4 24", "int4 16", "int4 8"]
    assert max(evaluator.tried.count(name) for name in ("int4 dense", "int4 32")) == 1


def test_drafts_in_8_bits_are_believed(tmp_path: Path) -> None:
    over = {**DROPS, "int8 24": 0.6, "int8 16": 0.7}
    evaluator = RoundedTwice(over, {**over, "int8 24": 0.1})
    assert searched(tmp_path, FRONT, evaluator).trial.path.read_text() == "int8 32"
    assert max(map(evaluator.tried.count, evaluator.tried)) == 1


def test_of_equally_fast_plans_the_smaller(tmp_path: Path) -> None:
    front = [step(None, 9.0), step(32, 2.0, 500), step(24, 2.0, 400), step(16, 2.0, 600)]
    assert searched(tmp_path, front, FileEvaluator(DROPS)).trial.layers[0].rank == 24


def test_where_none_is_within_the_budget_the_closest(tmp_path: Path) -> None:
    over = {name: value + 2 for name, value in DROPS.items()}
    found = searched(tmp_path, FRONT, FileEvaluator(over))
    assert (found.trial.lost, found.trial.layers[0].rank) == (2.0, None)
    assert not found.trial.within(0.5)
    assert found.trial.path.read_text() == "int8 dense"


def test_the_closest_by_measurement_not_by_prediction(tmp_path: Path) -> None:
    over = {name: value + 2 for name, value in DROPS.items()} | {"int8 32": 1.5}
    found = searched(tmp_path, FRONT, FileEvaluator(over))
    assert (found.trial.lost, found.trial.layers[0].rank) == (1.5, 32)
    assert models(tmp_path) == [found.trial.path]


@pytest.mark.parametrize("best", ["24", "16", "dense"])
def test_of_files_that_lose_more_than_their_probes_the_best_is_kept(tmp_path: Path, best: str) -> None:
    of_files = dict.fromkeys(DROPS, 2.0) | {f"int8 {best}": 1.0}
    found = searched(tmp_path, FRONT, FileEvaluator(DROPS, of_files))
    assert found.trial.path.read_text() == f"int8 {best}"
    assert found.trial.lost == 1.0


def test_a_file_over_the_budget_gives_way_to_the_next_plan(tmp_path: Path) -> None:
    found = searched(tmp_path, FRONT, FileEvaluator(DROPS, {"int8 24": 0.6}))
    assert found.trial.layers[0].rank == 16


@dataclass(frozen=True)
class KeptBack:
    """Samples that were kept back: drops by the content of a file, known to `spread` at a confidence of 90 %."""

    drops: Mapping[str, float]
    spread: float = 0.0
    confidence: float = 0.9
    has_data: bool = True

    @property
    def scale(self) -> KeptBack:
        return self

    def answers(self, path: Path, fmt: str) -> str:
        return path.read_text()

    def drop(self, answers: str) -> Drop:
        value = self.drops[answers]
        bound = value + self.spread * float(norm.ppf(self.confidence) / norm.ppf(0.9))
        return Drop("agreement", 100.0, 100.0 - value, value, bound, 0.0, 256, self.confidence)


def confirmed(tmp_path: Path, kept_back: KeptBack) -> Found:
    evaluator = replace(made_evaluator(tmp_path, FileEvaluator(DROPS)), confirmation=kept_back)  # type: ignore[arg-type]
    return Search(evaluator, Files(), NOTHING_BESIDE, NEVER).run(FRONT, 0.5)  # type: ignore[arg-type]


def test_a_plan_that_is_confirmed_is_said_to_drop_what_it_drops_there(tmp_path: Path) -> None:
    found = confirmed(tmp_path, KeptBack({"int8 24": 0.3}))
    assert found.trial.layers[0].rank == 24
    assert found.trial.drop is not None
    assert found.trial.drop.value == 0.2
    assert found.trial.stated is not None
    assert found.trial.stated.value == 0.3
    assert found.trial.within(0.5)


def test_a_plan_that_is_not_confirmed_gives_way_to_a_milder_one(tmp_path: Path) -> None:
    """The next one loses at most 0.7 times as much by prediction: rank 32 against 24 would not, dense does."""
    found = confirmed(tmp_path, KeptBack({"int8 24": 0.7, "int8 32": 0.1, "int8 dense": 0.0}))
    assert found.trial.layers[0].rank is None
    assert models(tmp_path) == [found.trial.path]


def test_after_a_plan_beyond_its_draft_come_those_whose_drafts_are_good(tmp_path: Path) -> None:
    """Also where none of them is much milder."""
    front = [step(32, 5, scheme=INT4), step(24, 4, scheme=INT4)]
    drafts = {"int4 32": 0.4, "int4 24": 1.0}
    kept_back = KeptBack({"int4 24": 0.7, "int4 32": 0.1})
    evaluator = made_evaluator(tmp_path, RoundedTwice(drafts, {"int4 32": 0.0, "int4 24": 0.2}))
    evaluator = replace(evaluator, confirmation=kept_back)  # type: ignore[arg-type]
    found = Search(evaluator, Files(), NOTHING_BESIDE, NEVER).run(front, 0.5)  # type: ignore[arg-type]
    assert found.trial.path.read_text() == "int4 32"
    assert found.trial.within(0.5)


def test_where_nothing_is_confirmed_the_closest(tmp_path: Path) -> None:
    found = confirmed(tmp_path, KeptBack({"int8 24": 0.7, "int8 32": 0.9, "int8 dense": 0.8}))
    assert found.trial.layers[0].rank == 24
    assert found.trial.path.is_file()
    assert not found.trial.within(0.5)


def test_every_look_spends_half_of_the_error_that_is_left(tmp_path: Path) -> None:
    """A bound of 0.5 at 90 % is over it at the 95 % of the first look."""
    found = confirmed(tmp_path, KeptBack({"int8 24": 0.3, "int8 dense": 0.0}, spread=0.2))
    assert found.trial.layers[0].rank is None
    assert found.trial.stated is not None
    assert found.trial.stated.confidence == 0.9
    kept = confirmed(tmp_path, KeptBack({"int8 24": 0.3}, spread=0.15)).trial
    assert kept.layers[0].rank == 24
    assert kept.stated is not None
    assert kept.stated.bound == pytest.approx(0.3 + 0.15 * norm.ppf(0.95) / norm.ppf(0.9))


def test_files_that_lost_are_removed(tmp_path: Path) -> None:
    found = searched(tmp_path, FRONT, FileEvaluator(DROPS, {"int8 24": 0.6, "int8 16": 0.6}))
    assert found.trial.layers[0].rank == 32
    assert models(tmp_path) == [found.trial.path]


def test_a_broken_file_is_never_taken_and_is_told(tmp_path: Path) -> None:
    file_evaluator = FileEvaluator(DROPS, broken=["int8 24"])
    evaluator = made_evaluator(tmp_path, file_evaluator)
    found = Search(evaluator, Files(), NOTHING_BESIDE, NEVER).run(FRONT, 0.5)  # type: ignore[arg-type]
    assert found.trial.layers[0].rank == 16
    assert evaluator.workspace.warnings == ("the scheme int8 was dropped: outputs: far from the reference",)


def test_a_scheme_that_the_runtime_refuses_is_told(tmp_path: Path) -> None:
    file_evaluator = FileEvaluator(DROPS | {"int8+x 24": 0.2}, refused=["int8 24"])
    evaluator = made_evaluator(tmp_path, file_evaluator)
    found = Search(evaluator, Files(others=(None, OTHERS)), NOTHING_BESIDE, NEVER).run([FRONT[2]], None)  # type: ignore[arg-type]
    assert found.trial.scheme == FileScheme(INT8, OTHERS)
    assert evaluator.workspace.warnings == ("the scheme int8 cannot be used here: the runtime refuses it",)


@pytest.mark.parametrize(
    ("lost", "has_data", "written"),
    [
        (0.3, True, ["int8 24", "int8+tables4 24"]),
        (0.6, True, ["int8 24", "int8+tables4 24", "int8 24"]),
        (0.3, False, ["int8 24"]),
    ],
)
def test_tables_in_4_bits_are_tried_first_where_there_are_data(
    tmp_path: Path, lost: float, has_data: bool, written: list[str]
) -> None:
    files = Files(tables=(("tokens", TABLES4),))
    searched(tmp_path, [FRONT[2]], FileEvaluator(DROPS, {"int8+tables4 24": lost}, has_data=has_data), files)
    assert files.written == written, "the trial, and then the file"


def test_where_nothing_is_sound_that_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match=r"no onnx file of any plan could be written and proved.*far from"):
        searched(tmp_path, FRONT, FileEvaluator(DROPS, broken=list(DROPS)))


def test_without_a_limit_the_fastest_is_taken_unprobed(tmp_path: Path) -> None:
    files = Files()
    found = searched(tmp_path, FRONT, FileEvaluator(DROPS), files, limit=None)
    assert found.trial.layers[0].rank == 8
    assert found.plan_trials == ()
    assert files.written == ["int8 8"]


def test_without_data_nothing_is_probed(tmp_path: Path) -> None:
    found = searched(tmp_path, FRONT, FileEvaluator({}, has_data=False))
    assert found.trial.layers[0].rank == 8
    assert found.trial.drop is None
    assert found.plan_trials == ()


def test_whole_schemes_only_where_all_weights_have_their_width(tmp_path: Path) -> None:
    files = Files(whole=(WHOLE,))
    drops = {"int8-dynamic 8": 1.0, "int8-static 8": 0.1, "int8-dynamic dense": 0.0, "int8-static dense": 0.0}
    front = [step(8, 1.0, scheme=INT8_DYNAMIC)]
    found = searched(tmp_path, front, FileEvaluator(drops), files)
    assert found.trial.scheme == FileScheme.of(WHOLE), "the dynamic scheme loses too much"
    assert found.trial.layers[0].scheme == WHOLE, "the plan says what the file holds"
    fp32 = Files(whole=(WHOLE,))
    searched(tmp_path, [step(8, 1.0, scheme=FP32)], FileEvaluator({"fp32 8": 9.0}), fp32)
    assert {name.split()[0] for name in fp32.written} == {"fp32"}


def test_the_ladder_is_bisected_and_not_walked(tmp_path: Path) -> None:
    front = [step(64 - i, 64.0 - i) for i in range(60)]
    drops = {f"int8 {64 - i}": (0.0 if i < 20 else 9.0) for i in range(60)}
    found = searched(tmp_path, front, FileEvaluator(drops))
    assert found.trial.layers[0].rank == 64 - 19
    assert len(found.plan_trials) <= 14


def test_a_start_is_looked_at_first(tmp_path: Path) -> None:
    front = [step(64 - i, 64.0 - i, loss=float(i)) for i in range(60)]
    drops = {f"int8 {64 - i}": (0.0 if i < 50 else 9.0) for i in range(60)}
    files = Files()
    search = Search(made_evaluator(tmp_path, FileEvaluator(drops)), files, NOTHING_BESIDE, NEVER, 48.5)  # type: ignore[arg-type]
    assert search.run(front, 0.5).trial.layers[0].rank == 64 - 49
    assert files.written[0] == f"int8 {64 - 48}"


def test_after_the_deadline_one_probe_decides(tmp_path: Path) -> None:
    files = Files()
    search = Search(made_evaluator(tmp_path, FileEvaluator(DROPS)), files, NOTHING_BESIDE, time.monotonic() - 1)  # type: ignore[arg-type]
    found = search.run(FRONT, 0.5)
    assert len(found.plan_trials) == 1
    assert found.trial.within(0.5)
    assert found.trial.layers == found.plan_trials[0].layers


def test_exploring_probes_every_step(tmp_path: Path) -> None:
    front = [step(64 - i, 64.0 - i) for i in range(40)]
    drops = {f"int8 {64 - i}": float(i) for i in range(40)}
    search = Search(made_evaluator(tmp_path, FileEvaluator(drops)), Files(), NOTHING_BESIDE, NEVER)  # type: ignore[arg-type]
    search.explore(front[::8])
    assert [plan_trial.layers[0].rank for plan_trial in search.plan_trials] == [64, 56, 48, 40, 32]


def test_exploring_ends_with_its_time_and_says_so(tmp_path: Path) -> None:
    evaluator = made_evaluator(tmp_path, FileEvaluator(DROPS))
    search = Search(evaluator, Files(), NOTHING_BESIDE, time.monotonic() - 1)  # type: ignore[arg-type]
    search.explore(FRONT)
    assert [plan_trial.layers[0].rank for plan_trial in search.plan_trials] == [None]
    assert evaluator.workspace.warnings == ("the time ran out before all plans were tried: raise --time-limit",)


def test_probes_of_several_ladders_are_all_kept(tmp_path: Path) -> None:
    """The planner searches one front within the promise, and another one where that fails."""
    search = Search(made_evaluator(tmp_path, FileEvaluator(DROPS)), Files(), NOTHING_BESIDE, NEVER)  # type: ignore[arg-type]
    search.run(FRONT[3:], 0.5)
    found = search.run(FRONT[:3], 0.5)
    assert [plan_trial.layers[0].rank for plan_trial in found.plan_trials] == [None, 32, 24, 16, 8]


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    """Every trial is kept as soon as it is there."""
    reached: list[str] = []

    class Interrupted(FileEvaluator):
        def drop_of(self, path: Path, fmt: str) -> Drop:
            if len(reached) == 2:
                raise KeyboardInterrupt
            reached.append(path.read_text())
            return super().drop_of(path, fmt)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, FRONT, Interrupted(DROPS))
    files = Files()
    asked: list[str] = []

    class Counting(FileEvaluator):
        def drop_of(self, path: Path, fmt: str) -> Drop:
            asked.append(path.read_text())
            return super().drop_of(path, fmt)

    found = searched(tmp_path, FRONT, Counting(DROPS), files)
    assert found.trial.layers[0].rank == 24
    assert set(asked).isdisjoint(reached)
    assert len(asked) + len(reached) == len(found.plan_trials)


class Measured:
    """Latencies of files by their content; notes what was compared."""

    def __init__(self, by_content: Mapping[str, float]) -> None:
        self.by_content = by_content
        self.compared: list[str] = []

    def __call__(self, paths: Mapping[str, Path], fmt: str) -> dict[str, float]:
        self.compared = [path.read_text() for path in paths.values()]
        return {name: self.by_content[path.read_text()] for name, path in paths.items()}


def measured_by(monkeypatch: pytest.MonkeyPatch, by_content: Mapping[str, float]) -> Measured:
    """What evaluators measure from now on."""
    measured = Measured(by_content)
    monkeypatch.setattr(Evaluator, "latencies", lambda self, paths, fmt: measured(paths, fmt))
    return measured


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        ({"int8 24": 2.0, "int8 16": 1.0, "int8 32": 3.0}, 16),
        ({"int8 24": 2.0, "int8 16": 1.9, "int8 32": 1.95}, 24),
        ({"int8 24": 2.0, "int8 16": 1.7, "int8 32": 1.0}, 32),
    ],
    ids=["clearly faster", "not clearly", "the third"],
)
def test_on_this_machine_the_finalists_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latency: dict[str, float], expected: int
) -> None:
    evaluator = made_evaluator(tmp_path, FileEvaluator(DROPS), target="host")
    measured = measured_by(monkeypatch, latency)
    found = Search(evaluator, Files(), NOTHING_BESIDE, NEVER).run(FRONT, 0.5)  # type: ignore[arg-type]
    assert measured.compared == ["int8 24", "int8 16", "int8 32"], "the fastest by prediction first"
    assert len(measured.compared) == FINALISTS
    assert found.trial.layers[0].rank == expected
    assert sorted(found.latency_s.values()) == sorted(latency.values())
    assert all(name.endswith(("int8 24", "int8 16", "int8 32")) for name in found.latency_s)
    assert models(tmp_path) == [found.trial.path]


def test_on_this_machine_every_variant_of_a_plan_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = {"int8-dynamic 8": 0.1, "int8-static 8": 0.1}
    evaluator = made_evaluator(tmp_path, FileEvaluator(drops), target="host")
    measured = measured_by(monkeypatch, {"int8-dynamic 8": 2.0, "int8-static 8": 1.0})
    files: Any = Files(whole=(WHOLE,))
    found = Search(evaluator, files, NOTHING_BESIDE, NEVER).run([step(8, 1.0, scheme=INT8_DYNAMIC)], 0.5)
    assert measured.compared == ["int8-dynamic 8", "int8-static 8"]
    assert found.trial.scheme == FileScheme.of(WHOLE)


@pytest.mark.parametrize(
    ("operator", "rank", "rival", "changes", "compared"),
    [
        ("Conv", 8, INT8_STATIC, {}, ["fp32 8", "int8-static-qdq 8"]),
        ("Gemm", 8, INT8_STATIC, {}, []),
        ("Conv", 8, INT8_STATIC, {"precision": "fp32"}, []),
        ("Conv", 8, FP32, {}, []),
        ("Conv", NO_KERNEL, INT8_STATIC, {}, []),
    ],
    ids=["estimated", "measured", "asked for", "the same", "no kernel"],
)
def test_on_this_machine_a_plan_is_tried_in_the_scheme_of_dense_int8(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operator: str,
    rank: int,
    rival: Scheme,
    changes: dict[str, Any],
    compared: list[str],
) -> None:
    """What the estimates say is fastest need not be so, but for layers that were measured one by one."""
    schemes = (FP32, INT8_STATIC)
    drops = FileEvaluator({f"{scheme} {each}": 0.1 for scheme in schemes for each in (8, NO_KERNEL)})
    layer = linear_layer("fc", LAYER.weights["weight"], None, operator)
    evaluator = made_evaluator(tmp_path, drops, "host", layer=layer)
    evaluator = replace(evaluator, options=replace(evaluator.options, **changes))
    measured = measured_by(monkeypatch, {"fp32 8": 2.0, "int8-static-qdq 8": 1.0})
    search = Search(evaluator, Files(), NOTHING_BESIDE, NEVER, rival=rival)  # type: ignore[arg-type]
    found = search.run([step(rank, 1.0, scheme=FP32)], 0.5)
    assert measured.compared == compared
    assert found.trial.scheme == FileScheme.of(INT8_STATIC if compared else FP32)


@pytest.mark.parametrize("aim", ["balanced", "size"])
def test_a_whole_file_in_more_bits_than_planned_is_measured_where_bytes_are_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aim: Aim
) -> None:
    drops = {"int4 8": 0.1, "int8-static 8": 0.1}
    evaluator = replace(made_evaluator(tmp_path, FileEvaluator(drops), target="host"), aim=aim)
    measured_by(monkeypatch, {"int4 8": 3.0, "int8-static 8": 1.0})
    files: Any = Files(whole=(WHOLE,))
    int4 = replace(INT8_DYNAMIC, name="int4", bits=4)
    found = Search(evaluator, files, NOTHING_BESIDE, NEVER).run([step(8, 1.0, scheme=int4)], 0.5)
    assert found.trial.scheme.layers.name == ("int4" if aim == "size" else "int8-static")
    assert ("int8-static 8" in files.written) == (aim == "balanced")


def test_for_another_target_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = made_evaluator(tmp_path, FileEvaluator(DROPS))
    monkeypatch.setattr(
        Evaluator, "latencies", lambda *_: pytest.fail("this machine says nothing about a Raspberry Pi")
    )
    assert Search(evaluator, Files(), NOTHING_BESIDE, NEVER).run(FRONT, 0.5).trial.layers[0].rank == 24  # type: ignore[arg-type]


def test_progress_says_what_is_best_so_far(tmp_path: Path) -> None:
    said: list[str] = []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        said.append(stage)

    evaluator = made_evaluator(tmp_path, FileEvaluator(DROPS), progress=progress)
    Search(evaluator, Files(), NOTHING_BESIDE, NEVER).run(FRONT, 0.5)  # type: ignore[arg-type]
    assert said[0] == "search onnx"
    assert any(", best so far 2.00 s at a drop of 0.20" in line for line in said)
    assert json.dumps(said)
