"""One build for several targets: what is shared is done once, and every pack is the one of a build of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepack.errors import BudgetError, UsageError
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline import prepare
from edgepack.pipeline.build import best_attempt, best_attempts, failure_of_some, for_targets
from edgepack.report.build_each import packs_report
from edgepack.targets.file import get_target, get_targets
from edgepack.workspace import Cache
from tests.e2e.e2e_cli import invoke
from tests.pipeline.small_builds import options
from tests.report.shown import terminal_text

NAMES = ["rpi4", "rpi5", "n100"]


def test_one_analysis_serves_all_and_changes_no_pack(
    classifier: Path, warm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_model = prepare.open_model

    def counted(model: str, *rest: object) -> object:
        opened.append(model)
        return open_model(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "open_model", counted)
    said: list[str] = []
    asked = options(classifier, out=tmp_path / "packs")
    each = for_targets(asked, [get_target(name) for name in NAMES])
    results = best_attempts(each, cache=Cache(warm_cache), progress=lambda stage, *_: said.append(stage))
    assert len(opened) == 1
    assert [one.out for one in results] == [tmp_path / "packs" / f"points.{name}" for name in NAMES]
    assert [read_manifest(one.out).target.name for one in results] == NAMES
    assert "open model" in said
    assert any(stage.startswith("rpi5: ") for stage in said)

    for name, result in zip(NAMES, results, strict=True):
        alone = best_attempt(options(classifier, target=name, out=tmp_path / "alone" / name), cache=Cache(warm_cache))
        for file in ("model.onnx", "manifest.json", "baseline/int8.onnx"):
            assert (alone.out / file).read_bytes() == (result.out / file).read_bytes(), f"{name}: {file}"

    report = packs_report(results)
    served = [name for file in report.record["files"] for name in file["targets"]]
    assert sorted(served) == sorted(NAMES)
    by_digest = {file["sha256"] for file in report.record["files"]}
    assert by_digest == {one.manifest.packed("onnx").sha256 for one in results}
    shown = terminal_text(report)
    assert all(f"{name}: {tmp_path}" in shown for name in NAMES)


def test_targets_of_other_arithmetic_are_analyzed_apart(classifier: Path) -> None:
    keys = [options(classifier, target=name).analysis_key for name in ("rpi4", "n100", "j4125", "host")]
    assert keys[0] == keys[1]
    assert len(set(map(repr, keys))) == 3
    in_place = [options(classifier, target=name, channels_last=True).analysis_key for name in ("rpi4", "rpi5")]
    assert in_place[0] != in_place[1], "their files are changed in their place"


def test_a_pack_in_the_way_leaves_all_unwritten(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    each = for_targets(options(classifier, out=tmp_path), [get_target("rpi4"), get_target("rpi5")])
    (tmp_path / "points.rpi5").mkdir()
    (tmp_path / "points.rpi5" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"points\.rpi5 exists and is not a pack"):
        best_attempts(each, cache=Cache(warm_cache))
    assert [path.name for path in tmp_path.iterdir()] == ["points.rpi5"]


def test_budgets_that_are_not_met_are_told_together(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    targets = [get_target("rpi4"), get_target("rpi5")]
    each = for_targets(options(classifier, out=tmp_path, max_size_bytes=2000), targets)
    results = best_attempts(each, cache=Cache(warm_cache))
    failure = failure_of_some(results)
    assert isinstance(failure, BudgetError)
    assert failure.message.startswith("the budget is not met on 2 of 2 targets: rpi4: ")
    assert "; rpi5: " in failure.message
    assert str(tmp_path / "points.rpi5") in (failure.hint or "")
    assert failure_of_some([]) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target", "rpi4,rpi4"), "rpi4 is named twice"),
        (("--target", "rpi4,rpi5", "--explore"), "--explore and --pick are for one target, found 2"),
        (("--target", "rpi4,rpi5", "--pick", "1"), "--explore and --pick are for one target, found 2"),
        (("--target", "rpi4,rpi5", "--out", "small.onnx"), "--out small.onnx is one file, and 2 targets are asked for"),
    ],
)
def test_what_is_for_one_target_alone(arguments: tuple[str, ...], says: str, classifier: Path) -> None:
    done = invoke("build", classifier, *arguments, "--formats", "onnx", "--json")
    assert done.code == 2, done.out
    assert json.loads(done.out)["error"]["message"].endswith(says)


def test_names_may_stand_apart() -> None:
    assert [target.name for target in get_targets("rpi4, rpi5")] == ["rpi4", "rpi5"]
