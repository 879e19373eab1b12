"""Options that make no sense, targets that do not fit, budgets that nobody can meet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepack.backends.registry import FORMATS
from tests.e2e.e2e_cli import Done, assert_fails, assert_untouched, invoke


def build(model: Path, data: Path, out: Path, *options: str, target: str = "rpi4") -> Done:
    formats = () if "--formats" in options else ("--formats", "onnx")
    return invoke("build", model, "--target", target, "--data", data, "--out", out, *formats, *options)


USAGE: dict[str, tuple[list[str], str]] = {
    "rank 0": (["--rank", "0"], "--rank 0: must be more than 0"),
    "rank negative": (["--rank", "-3"], "--rank -3: must be more than 0"),
    "rank too large": (["--rank", "65"], "--rank 65: ranks here go from 1 to 64"),
    "rank above one": (["--rank", "1.5"], "--rank 1.5: a share .* between 0 and 1"),
    "rank word": (["--rank", "many"], "--rank many: expected auto, cv, a whole number, or a share"),
    "rank cv without labels": (["--rank", "cv"], "--rank cv needs labelled data"),
    "rank nan": (["--rank", "nan"], "--rank nan"),
    "drop negative": (["--max-drop", "-1"], "--max-drop -1.0: a drop is 0 or more"),
    "drop nan": (["--max-drop", "nan"], "--max-drop nan: a drop is 0 or more"),
    "drop infinite": (["--max-drop", "inf"], "--max-drop inf: a drop is 0 or more"),
    "method": (["--method", "magic"], "unknown method 'magic'; there are svd, whitened"),
    "metric": (["--metric", "bleu"], "unknown metric 'bleu'; there are accuracy, top5, f1, agreement, cosine, r2"),
    "metric without labels": (["--metric", "accuracy"], "--metric accuracy needs labels"),
    "format": (["--formats", "onxn"], "unknown format 'onxn'; there are onnx, tflite"),
    "no format": (["--formats", ","], "no format asked for"),
    "flash word": (["--max-size", "tiny"], "'tiny' is not a size"),
    "flash zero": (["--max-size", "0"], "--max-size must be more than 0"),
    "ram word": (["--max-memory", "plenty"], "'plenty' is not a size"),
    "ram zero": (["--max-memory", "0"], "--max-memory must be more than 0"),
    "latency word": (["--max-latency", "soon"], "'soon' is not a time; write it like 5ms, 300us or 10min"),
    "latency zero": (["--max-latency", "0ms"], "--max-latency must be more than 0"),
    "latency negative": (["--max-latency", "-3ms"], "--max-latency must be more than 0"),
    "search time": (["--time-limit", "0min"], "--time-limit 0.0 s: must be more than 0"),
    "search time nan": (["--time-limit", "nan"], "'nan' is not a time"),
    "pick word": (["--pick", "best"], "--pick best: expected numbers of plans as --explore lists them"),
    "pick zero": (["--pick", "0"], "--pick 0: expected numbers of plans"),
    "pick and rank": (["--pick", "3", "--rank", "8"], "--pick takes a plan that --explore found"),
    "pick and explore": (["--pick", "3", "--explore"], "--explore lists plans and --pick builds one"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors(tmp_path: Path, model: Path, data: Path, name: str) -> None:
    options, says = USAGE[name]
    out = tmp_path / "out" / "pack"
    assert_fails(build(model, data, out, *options), 2, [says], hint=False, out=out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--precision", "int2"], "int2"),
        (["--seed", "-1"], "--seed"),
        (["--max-drop", "little"], "--max-drop"),
        (["--tarfet", "rpi4"], "--target"),
    ],
)
def test_what_the_parser_refuses(tmp_path: Path, model: Path, data: Path, options: list[str], says: str) -> None:
    done = build(model, data, tmp_path / "out" / "pack", *options)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert_untouched(tmp_path / "out" / "pack")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--refit"], "--refit needs calibration data"),
        (["--method", "two-sided"], "--method two-sided needs calibration data"),
        (["--rank", "cv"], "--rank cv needs labelled data: 'y' in the .npz"),
    ],
)
def test_what_needs_data_without_any(tmp_path: Path, model: Path, options: list[str], says: str) -> None:
    out = tmp_path / "out" / "pack"
    done = invoke("build", model, "--target", "rpi4", "--formats", "onnx", "--out", out, *options)
    assert_fails(done, 2, [says], out=out)


def test_whitening_without_data(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out" / "pack"
    options = ("--formats", "onnx", "--method", "whitened", "--out", out)
    assert_fails(invoke("build", model, "--target", "rpi4", *options), 2, ["needs calibration data"], out=out)


@pytest.mark.parametrize(
    ("name", "says"),
    [("rpi44", 'unknown target "rpi44": did you mean "rpi4'), ("zzz", 'unknown target "zzz"')],
)
def test_unknown_target(tmp_path: Path, model: Path, data: Path, name: str, says: str) -> None:
    out = tmp_path / "out" / "pack"
    done = build(model, data, out, target=name)
    assert_fails(done, 3, [says], out=out)
    assert "known targets: " in done.err
    assert "rpi4," in done.err


@pytest.mark.parametrize("fmt", FORMATS)
def test_target_without_a_runtime(tmp_path: Path, model: Path, data: Path, fmt: str) -> None:
    out = tmp_path / "out" / "pack"
    done = build(model, data, out, "--formats", fmt, target="beaglebone-black")
    assert_fails(done, 3, [f"beaglebone-black cannot run {fmt}", "armv7l"], out=out)


BAD_TARGETS: dict[str, tuple[str, str]] = {
    "not yaml": ("targets: [\n", "line 2: not YAML"),
    "empty": ("", "expected the keys schema_version and targets"),
    "list": ("- rpi4\n", "expected the keys schema_version and targets"),
    "no version": ("targets: {}\n", "schema_version is missing"),
    "typo": (
        "schema_version: 1\ntargets:\n  mine:\n    extends: rpi4\n    hots: [pi@pi]\n",
        'line 5: target mine: .*did you mean "hosts"',
    ),
    "extends nothing": ("schema_version: 1\ntargets:\n  mine:\n    extends: rpi44\n", 'did you mean "rpi4'),
    "binary": ("\x00\x01\x02", r"targets\.yaml"),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_malformed_targets_file(tmp_path: Path, model: Path, data: Path, name: str) -> None:
    content, says = BAD_TARGETS[name]
    path = tmp_path / "targets.yaml"
    path.write_text(content)
    out = tmp_path / "out" / "pack"
    done = build(model, data, out, "--targets-file", str(path))
    assert_fails(done, 3, [r"targets\.yaml: ", says], hint=False, out=out)
    check = invoke("targets", "check", path)
    assert check.code == 3
    assert check.err.startswith(f"error: {path}: ")


def test_targets_file_that_is_not_there(tmp_path: Path, model: Path, data: Path) -> None:
    out = tmp_path / "out" / "pack"
    done = build(model, data, out, "--targets-file", str(tmp_path / "nope.yaml"))
    assert_fails(done, 3, [r"nope\.yaml"], hint=False, out=out)


UNMEETABLE: dict[str, tuple[list[str], list[str]]] = {
    "rank": (
        ["--rank", "2", "--max-drop", "0.1"],
        ["within 0.1", "in r2", r"w\d at rank 2 in \S+ \(alone it drops"],
    ),
    "int8": (
        ["--precision", "int8", "--metric", "cosine", "--max-drop", "0"],
        ["within 0:", "in cosine", r"w\d (dense|at rank \d+) in int8\S* \(alone it drops"],
    ),
    "fp32 rank": (
        ["--rank", "2", "--precision", "fp32", "--max-drop", "0"],
        ["within 0:", r"file \(fp32\)", r"w\d at rank 2 in fp32 "],
    ),
}


@pytest.mark.parametrize("name", UNMEETABLE)
def test_budget_that_cannot_be_met(tmp_path: Path, model: Path, data: Path, name: str) -> None:
    """Exit 5; the best attempt is written all the same and can be used."""
    options, says = UNMEETABLE[name]
    out = tmp_path / "out" / "pack"
    done = build(model, data, out, *options)
    assert_fails(done, 5, says)
    assert "the best attempt is" in done.err
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    assert manifest["budget_met"] is False
    entry = manifest["files"]["model.onnx"]
    assert entry["validation"]["drop"] > manifest["options"]["max_drop"]
    assert all(proof["passed"] for proof in entry["proofs"].values())
    assert entry["size_bytes"] == (out / "model.onnx").stat().st_size
    assert [p.name for p in out.parent.iterdir()] == ["pack"]


def test_unmet_budget_as_json(tmp_path: Path, model: Path, data: Path) -> None:
    done = build(model, data, tmp_path / "out", "--rank", "2", "--max-drop", "0.1", "--json")
    assert done.code == 5
    error = json.loads(done.out)["error"]
    assert error["exit_code"] == 5
    assert error["kind"] == "BudgetError"
    assert "within 0.1" in error["message"]


def test_error_as_json_is_one_document(tmp_path: Path, model: Path, data: Path) -> None:
    done = build(model, data, tmp_path / "out", "--rank", "65", "--json")
    assert done.code == 2
    assert done.err == ""
    error = json.loads(done.out)["error"]
    assert set(error) == {"kind", "message", "hint", "exit_code"}
    assert (error["kind"], error["exit_code"]) == ("UsageError", 2)


def test_verbose_json_stays_json(tmp_path: Path, model: Path, data: Path) -> None:
    done = build(model, data, tmp_path / "out", "--rank", "65", "--json", "-v")
    json.loads(done.out)
    assert "Traceback" in done.err
