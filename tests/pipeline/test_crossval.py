"""`--rank cv`: real builds on labelled data, what the manifest says of them, an interrupt, and data without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.data import Samples
from edgepack.errors import DataError, UsageError
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline import crossval
from edgepack.pipeline.build import build
from edgepack.pipeline.crossval import FOLDS, PERCENTS, check_labels
from edgepack.pipeline.prepare import Prepared
from edgepack.report.build import build_report
from edgepack.workspace import Cache, Progress, silent
from tests.pipeline.small_builds import options, points
from tests.report.shown import terminal_text


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


def built(model: Path, cache: Path, out: Path, *, progress: Progress = silent, **changes: Any) -> Any:
    asked: dict[str, Any] = {"rank": "cv", "precision": "int8", **changes}
    return build(options(model, out=out, **asked), cache=Cache(cache), progress=progress).manifest.record()


def test_the_pack_has_the_smallest_share_within_a_standard_error_of_the_best(
    classifier: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = built(classifier, cache, tmp_path / "pack")
    shown = build_report(tmp_path / "pack", read_manifest(tmp_path / "pack"))
    found = manifest["cross_validation"]
    assert manifest["options"]["rank"] == "cv"
    assert (found["folds"], found["samples"]) == (FOLDS, manifest["data"]["calibration_samples"])
    rows = {row["percent"]: row for row in found["table"]}
    assert set(rows) <= set(PERCENTS)
    best = rows[found["best"]]
    assert found["threshold"] == pytest.approx(best["mean"] - best["standard_error"])
    assert rows[found["percent"]]["mean"] is None or rows[found["percent"]]["mean"] >= found["threshold"]
    for percent, row in rows.items():
        assert len(row["scores"]) <= FOLDS
        if percent < found["percent"] and row["mean"] is not None:
            assert row["mean"] < found["threshold"]
    layers = {layer["layer"]: layer for layer in manifest["files"]["model.onnx"]["layers"]}
    assert layers["w3"]["rank"] is None  # 8 rows: never worth a pair
    for name in ("w1", "w2"):
        sides = layers[name]["out_features"], layers[name]["in_features"]
        assert layers[name]["rank"] == int(found["percent"] / 100 * sides[0] * sides[1] / sum(sides))
    said = terminal_text(shown, 120)
    assert f"{found['percent']}% of each layer's weights" in said
    assert "chosen" in said


def test_scores_are_of_samples_that_the_factors_were_not_made_from(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the validation set, on which the pack is scored in the end, has no part in it."""
    made: list[set[bytes]] = []
    scored: list[set[bytes]] = []
    decompose, predict = crossval.decompose, crossval.predict

    def seen(samples: Any) -> set[bytes]:
        return {row.tobytes() for row in samples.inputs["x"]}

    monkeypatch.setattr(
        crossval, "decompose", lambda *a, **k: made.append(seen(a[0].calibration)) or decompose(*a, **k)
    )
    monkeypatch.setattr(crossval, "predict", lambda m, s: scored.append(seen(s)) or predict(m, s))
    monkeypatch.setattr(crossval, "PERCENTS", (8,))
    manifest = built(classifier, tmp_path / "cache", tmp_path / "pack", method="svd")
    assert len(made) == len(scored) == FOLDS
    for fold in range(FOLDS):
        assert not made[fold] & scored[fold]
        assert made[fold] | scored[fold] == made[0] | scored[0]
    assert len(made[0] | scored[0]) == manifest["data"]["calibration_samples"]


def test_an_interrupt_loses_only_what_runs(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossval, "PERCENTS", (8, 16))
    stage = "cross-validate the rank"

    def stop(name: str, done: int = 0, total: int = 0) -> None:
        if (name, done) == (stage, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(classifier, tmp_path / "cache", tmp_path / "pack", progress=stop, method="svd")
    answered: list[int] = []
    predict = crossval.predict
    monkeypatch.setattr(crossval, "predict", lambda m, s: answered.append(1) or predict(m, s))
    steps: list[tuple[str, int]] = []

    def step(name: str, done: int = 0, total: int = 0) -> None:
        steps.append((name, done))

    manifest = built(classifier, tmp_path / "cache", tmp_path / "pack", progress=step, method="svd")
    scores = sum(len(row["scores"]) for row in manifest["cross_validation"]["table"])
    assert len(answered) == scores - 4
    assert [done for name, done in steps if name == stage] == list(range(scores))


def test_the_parts_of_the_data_may_differ_in_size(ready: Prepared) -> None:
    x, y = points(50, 3)
    np.testing.assert_array_equal(check_labels(Samples({"x": x}, y), ready.validation), y)


def test_data_without_labels_are_refused(classifier: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x=points(60, 1)[0])
    for data in (tmp_path / "plain.npz", None):
        with pytest.raises(UsageError, match=r"--rank cv needs labelled data: 'y' in the \.npz"):
            built(classifier, tmp_path / "cache", tmp_path / "pack", data=data)
    assert not (tmp_path / "pack").exists()


def test_a_class_with_fewer_samples_than_folds_is_named(classifier: Path, tmp_path: Path) -> None:
    x, y = points(400, 1)
    y[y == 5] = 4
    y[:3] = 5
    np.savez(tmp_path / "rare.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"class 5 has \d samples?, expected at least one for each of 5") as caught:
        built(classifier, tmp_path / "cache", tmp_path / "pack", data=tmp_path / "rare.npz")
    assert caught.value.hint is not None
