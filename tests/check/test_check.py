"""A pack held against its base on the emulated target, as the command line does it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgepack.check import check as module
from edgepack.check.check import CheckOptions, check_pack
from edgepack.check.figures import PackFigures
from edgepack.errors import UsageError
from edgepack.targets.file import get_target
from tests.bench_models import write_mlp
from tests.check.test_base import git
from tests.check.test_changes import BASE, FILE, counts
from tests.e2e.e2e_cli import Done, assert_fails, invoke
from tests.manifests import document

HIDDEN, OUT = 256, 10


def write_pack(folder: Path, inputs: int) -> Path:
    """A perceptron whose first layer is as wide as that."""
    write_mlp(folder / "model.onnx", [inputs, HIDDEN, OUT])
    sides = {"w0": (HIDDEN, inputs), "w1": (OUT, HIDDEN)}
    layers = [
        {"layer": name, "out_features": rows, "in_features": columns, "rank": None, "reason": "x"}
        for name, (rows, columns) in sides.items()
    ]
    size = (folder / "model.onnx").stat().st_size
    file = {"scheme": "fp32", "size_bytes": size, "metric": 97.0, "drop": 0.1, "layers": layers}
    (folder / "manifest.json").write_text(json.dumps(document({"files": {"model.onnx": file}})))
    return folder


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pack, and one whose first layer has 3.1 % more inputs."""
    folder = tmp_path_factory.mktemp("packs")
    return write_pack(folder / "mlp.rpi4", 256), write_pack(folder / "wider", 264)


@pytest.mark.system
def test_a_layer_that_grew_by_three_percent_is_found_and_named(
    emulator: Path, packs: tuple[Path, Path], tmp_path: Path
) -> None:
    own, wider = packs
    taken = invoke("check", own, "--json")
    assert taken.code == 0, taken.err
    (base := tmp_path / "base.json").write_text(taken.out)
    figures: dict[str, Any] = json.loads(taken.out)["figures"]
    (file,) = figures["files"]
    assert [layer["name"] for layer in file["layers"] if layer["layer"]] == ["w0", "w1"]
    assert file["layers"][0]["counts"]["instructions"] > 10_000

    comment, cases = tmp_path / "comment.md", tmp_path / "cases.xml"
    found = invoke("check", wider, "--against", base, "--json", "--markdown", comment, "--junit", cases)
    assert found.code == 6, found.out + found.err
    over = [one for one in json.loads(found.out)["changes"] if one["over"]]
    assert (over[0]["part"], over[0]["figure"]) in {("w0", "instructions"), (None, "size_bytes")}
    grown = {one["part"]: one["growth"] for one in over if one["figure"] == "instructions"}
    assert 0.02 < grown["w0"] < 0.06, "8 of 256 columns, and what is left over of a kernel's tiles"
    assert "w1" not in grown
    error = json.loads(found.out)["error"]
    assert (error["kind"], error["exit_code"]) == ("RegressionError", 6)
    assert "model.onnx, w0" in error["message"]
    assert "| model.onnx | w0 | instructions | " in comment.read_text()
    failed = [one.get("name") for one in ElementTree.parse(cases).iter("testcase") if one.find("failure") is not None]
    assert "w0: instructions" in failed
    assert "w1: instructions" not in failed


@pytest.mark.system
def test_a_pack_is_no_worse_than_it_was_in_a_revision(emulator: Path, packs: tuple[Path, Path], tmp_path: Path) -> None:
    pack = tmp_path / "dist" / packs[0].name
    shutil.copytree(packs[0], pack)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    before = sorted(pack.rglob("*"))
    done = invoke("check", pack, "--against", "HEAD")
    assert done.code == 0, done.out + done.err
    assert "figures within what is allowed" in done.out
    assert sorted(pack.rglob("*")) == before, "a check writes nothing into a pack"


def test_sizes_and_drops_need_no_emulator(packs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    own, wider = packs
    within = invoke("check", own, "--against", own, "--no-counts")
    assert within.code == 0, within.err
    over = invoke("check", wider, "--against", own, "--no-counts")
    assert_fails(over, 6, ["1 of 2 figures grew by more than is allowed against .*: model.onnx$"])
    assert "OVER" in over.out
    monkeypatch.chdir(own.parent)
    Path("edgepack.yaml").write_text("model: x.onnx\ncheck: {size: 5%}\n")
    allowed = invoke("check", wider, "--against", own, "--no-counts")
    assert allowed.code == 0, allowed.err
    assert " 5.0%" in allowed.out
    Path("edgepack.yaml").write_text("check: {size: lots}\n")
    assert_fails(invoke("check", wider, "--against", own), 3, ["size: found 'lots', expected a share"], hint=False)


@pytest.mark.parametrize("arguments", [("--quick",), ("--local",), ("--local", "--against", "figures.json")])
def test_latency_needs_two_packs(arguments: tuple[str, ...], packs: tuple[Path, Path], tmp_path: Path) -> None:
    done: Done = invoke("check", packs[0], "--no-counts", "--json")
    (tmp_path / "figures.json").write_text(done.out)
    given = [str(tmp_path / one) if one.endswith(".json") else one for one in arguments]
    assert invoke("check", packs[0], "--no-counts", *given).code == 2


def test_latency_is_measured_in_turns(packs: tuple[Path, Path]) -> None:
    own, _ = packs
    done = invoke("check", own, "--against", own, "--no-counts", "--target", "host", "--local", "--quick", "--json")
    (latency,) = [one for one in json.loads(done.out)["changes"] if one["what"] == "latency"]
    assert latency["base"] > 0
    assert latency["own"] > 0
    assert latency["growth"] == pytest.approx(latency["own"] / latency["base"] - 1)


def test_figures_of_another_target_are_no_base(packs: tuple[Path, Path], tmp_path: Path) -> None:
    document = json.loads(invoke("check", packs[0], "--no-counts", "--json").out)
    (path := tmp_path / "base.json").write_text(json.dumps(document))
    assert_fails(invoke("check", packs[0], "--against", path), 3, ["holds no counts"])


def test_of_figures_those_of_the_asked_formats_are_the_base(packs: tuple[Path, Path], tmp_path: Path) -> None:
    document = json.loads(invoke("check", packs[0], "--no-counts", "--json").out)
    (file,) = document["figures"]["files"]
    (path := tmp_path / "base.json").write_text(
        json.dumps({**document, "figures": {**document["figures"], "files": [file, {**file, "format": "tflite"}]}})
    )
    gone = invoke("check", packs[0], "--against", path, "--no-counts")
    assert_fails(gone, 6, [r"against .*: model\.tflite$"])
    assert "the pack has no such file any more" in " ".join(gone.out.split())
    asked = invoke("check", packs[0], "--against", path, "--no-counts", "--formats", "onnx")
    assert asked.code == 0, asked.err
    path.write_text(
        json.dumps({**document, "figures": {**document["figures"], "files": [{**file, "format": "tflite"}]}})
    )
    done = invoke("check", packs[0], "--against", path, "--no-counts", "--formats", "onnx")
    assert_fails(done, 3, [r"has figures of model\.tflite alone"], hint=False)


def figures(instructions: float) -> PackFigures:
    return replace(BASE, files=(replace(FILE, counts=counts(instructions, 1e5)),))


@pytest.mark.parametrize(
    ("counted", "calls", "over"),
    [([1.0e6], 1, 0), ([1.02e6, 1.0e6], 2, 0), ([1.02e6, 1.03e6, 1.0e6], 3, 0), ([1.02e6] * 3, 3, 1)],
)
def test_what_seems_to_have_grown_is_counted_again(
    counted: list[float], calls: int, over: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "base.json"
    path.write_text("{}")
    taken = iter(counted)
    monkeypatch.setattr(module, "take_figures", lambda *_, **__: figures(next(taken)))
    monkeypatch.setattr("edgepack.check.base.read_figures", lambda _: figures(1e6))
    checked = check_pack(tmp_path, str(path), CheckOptions(get_target("rpi4"), counted=False))
    assert len(checked.over) == over
    assert len(list(taken)) == len(counted) - calls


def test_nothing_is_measured_against_nothing(tmp_path: Path) -> None:
    from edgepack.check.latency import Measuring
    from edgepack.devices.connect import ConnectOptions, one_place

    target, options = get_target("host"), ConnectOptions(local=True)
    measuring = Measuring(one_place(target, options, "x"), options)
    with pytest.raises(UsageError, match="nothing to measure against"):
        check_pack(tmp_path, None, CheckOptions(target, measuring=measuring))
