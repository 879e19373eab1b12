"""`--distill` in builds: factors trained against the model's own answers, kept, gone on with, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.onnx.schemes import FP32
from edgepack.distill import training
from edgepack.distill.budget import Epochs
from edgepack.distill.fake import Rounding
from edgepack.errors import ModelError, UsageError
from edgepack.metrics.drop import Drop
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme
from edgepack.model.types import Proof
from edgepack.pipeline import search
from edgepack.pipeline.build import build
from edgepack.pipeline.distill import Distillation
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.prepare import Prepared
from edgepack.quantize.grids import WeightGrid
from edgepack.report.build import build_report
from edgepack.workspace import Cache, Progress, Workspace, silent
from tests.pipeline.small_builds import options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def distillation(ready: Prepared, cache: Path, progress: Progress = silent) -> Distillation:
    """Of the prepared classifier, whose program comes from its ONNX file."""
    calibration = ready.data.calibration
    assert calibration is not None
    workspace = Workspace(Cache(cache), cache, progress=progress)
    return Distillation(ready.opened, calibration, True, Epochs(2), "key", workspace)


INT8 = Rounding({role: WeightGrid(127) for role in "AB"}, activations=True)


@pytest.fixture(scope="module")
def int8(start: dict[str, Replacement]) -> dict[str, Rounding]:
    """Both layers in int8 per channel."""
    return dict.fromkeys(start, INT8)


@pytest.fixture(scope="module")
def start(ready: Prepared) -> dict[str, Replacement]:
    evaluator, rounder = ready.evaluator, ready.evaluator.replacements.rounder
    views = evaluator.analysis.views[:2]
    return {view.name: rounder.plain(view, evaluator.spectra[view.name], 24) for view in views}


def test_an_onnx_model_is_trained_once_and_known_afterwards(
    ready: Prepared,
    start: dict[str, Replacement],
    int8: dict[str, Rounding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = distillation(ready, tmp_path).of(start, int8)
    assert first.held_out[1] < first.held_out[0]
    assert first.steps > 0
    assert first.missing == ()
    assert set(first.factors) == set(start)
    assert not list((tmp_path / "distilling").rglob("*.pt"))
    monkeypatch.setattr("edgepack.pipeline.distill.distill_factors", None)
    again = distillation(ready, tmp_path).of(start, int8)
    for name, pair in first.factors.items():
        np.testing.assert_array_equal(again.factors[name].A, pair.A)
        np.testing.assert_array_equal(again.factors[name].bias, pair.bias)
    assert (again.steps, again.held_out) == (first.steps, first.held_out)


def test_what_was_interrupted_goes_on(ready: Prepared, start: dict[str, Replacement], tmp_path: Path) -> None:
    whole = distillation(ready, tmp_path / "whole").of(start, {})

    class StoppedError(Exception):
        pass

    seen: list[int] = []

    def stop(stage: str, done: int = 0, total: int = 0) -> None:
        seen.append(done)
        if done > total // 2 > 0:
            raise StoppedError

    with pytest.raises(StoppedError):
        distillation(ready, tmp_path / "cut", stop).of(start, {})
    assert len(list((tmp_path / "cut" / "distilling").rglob("*.pt"))) == 1
    seen.clear()
    told = distillation(ready, tmp_path / "cut", lambda stage, done=0, total=0: seen.append(done))
    rest = told.of(start, {})
    assert min(seen) > 0, "from the checkpoint on"
    for name, pair in whole.factors.items():
        np.testing.assert_array_equal(rest.factors[name].B, pair.B)


def test_a_build_trains_its_pairs_and_says_so(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"rank": 16, "precision": "int8", "baseline": False}
    plain = build(options(classifier, **given, out=tmp_path / "plain"), cache=Cache(warm_cache))
    made = build(options(classifier, **given, distill=Epochs(3), out=tmp_path / "made"), cache=Cache(warm_cache))
    files = [result.manifest.record()["files"]["model.onnx"] for result in (plain, made)]
    assert files[0]["distillation"] is None
    loss = files[1]["distillation"]["held_out_loss"]
    assert loss["after"] < loss["before"]
    assert files[1]["distillation"]["steps"] > 0
    assert made.manifest.record()["options"]["distill"] == "3epochs"
    assert files[1]["size_bytes"] == pytest.approx(files[0]["size_bytes"], rel=0.15), "but for scales that are shared"
    assert files[1]["validation"]["drop"] < files[0]["validation"]["drop"]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_training_that_makes_nothing_better_leaves_the_file_as_it_was(
    precision: str, classifier: Path, warm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "RELATIVE_RATE", 1e-12)
    given: dict[str, Any] = {"rank": 24, "precision": precision, "baseline": False}
    plain = build(options(classifier, **given, out=tmp_path / "plain"), cache=Cache(warm_cache))
    made = build(options(classifier, **given, distill=Epochs(1), out=tmp_path / "made"), cache=Cache(tmp_path / "own"))
    before, entry = (result.manifest.record()["files"]["model.onnx"] for result in (plain, made))
    assert entry["distillation"]["kept"] is False
    assert entry["distillation"]["steps"] > 0
    assert before["distillation"] is None
    assert entry["sha256"] == before["sha256"]
    said = build_report(made.out, made.manifest).blocks
    assert any("training made the file no better" in str(block) for block in said)


def test_a_trained_file_is_taken_where_it_is_sound_and_loses_no_more() -> None:
    def trial(bound: float, *, sound: bool = True) -> FileTrial:
        drop = Drop("accuracy", 99.0, 98.0, bound, bound, 0.1, 100)
        return FileTrial("onnx", FileScheme.of(FP32), Path("m"), (), (Proof("same-outputs", sound, ""),), drop)

    assert search._better(trial(0.2), trial(0.3))
    assert search._better(trial(0.3), trial(0.3))
    assert not search._better(trial(0.4), trial(0.3))
    assert not search._better(trial(0.1, sound=False), trial(0.3))
    assert search._better(trial(0.4), trial(0.3, sound=False))


def test_weights_in_four_bits_are_written_as_they_were_trained(
    classifier: Path, warm_cache: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"rank": 24, "precision": "int4", "baseline": False}
    plain = build(options(classifier, **given, out=tmp_path / "plain"), cache=Cache(warm_cache))
    made = build(options(classifier, **given, distill=Epochs(8), out=tmp_path / "made"), cache=Cache(warm_cache))
    before, after = (result.manifest.record()["files"]["model.onnx"] for result in (plain, made))
    assert after["distillation"]["kept"] is True
    assert after["distillation"]["held_out_loss"]["after"] < 0.9 * after["distillation"]["held_out_loss"]["before"]
    assert after["validation"]["drop"] <= before["validation"]["drop"]
    assert all(proof["passed"] for proof in after["proofs"].values())


def test_without_a_limit_of_its_own_faster_plans_are_trained_first(
    classifier: Path, warm_cache: Path, tmp_path: Path
) -> None:
    def weights(**changes: Any) -> int:
        asked = options(classifier, max_drop=1.0, out=tmp_path / str(len(changes)), **changes)
        made = build(asked, cache=Cache(warm_cache)).manifest.record()["files"]["model.onnx"]
        assert made["validation"]["drop"] <= 1.0
        return int(made["matrix_parameters"])

    assert weights(distill=Epochs(3)) <= weights()


def test_there_must_be_data(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--distill trains on calibration data") as err:
        build(options(classifier, data=None, distill=Epochs(1), out=tmp_path / "p"), cache=Cache(tmp_path / "c"))
    assert "--data" in (err.value.hint or "")
    assert not (tmp_path / "p").exists()


def test_a_model_that_torch_cannot_take_is_refused(
    ready: Prepared, start: dict[str, Replacement], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, shapes: object, samples: object) -> None:
        raise ModelError("the operator Foo has no counterpart")

    monkeypatch.setattr("edgepack.torchgraph.from_onnx.onnx_to_program", refuse)
    with pytest.raises(ModelError, match="--distill trains in torch: the operator Foo") as err:
        distillation(ready, tmp_path).of(start, {})
    assert "leave --distill out" in (err.value.hint or "")
