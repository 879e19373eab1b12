"""inspect, bench, compare, targets and doctor on a real pack."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgepack.benchmark.results_file import load_results
from edgepack.targets.file import load_targets
from tests.e2e.conftest import Built
from tests.e2e.e2e_cli import assert_fails, invoke, run


def row_of(out: str, name: str) -> list[str]:
    """The cells of a table row."""
    return next(line for line in out.splitlines() if line.strip().startswith(name)).split()


def test_inspect_without_data(model: Path) -> None:
    done = invoke("inspect", model)
    assert done.code == 0, done.err
    assert "weight energy (no data)" in done.out
    assert "in 3 layers" in done.out
    # name, op, out×in, rows, bytes, MACs, break-even, int8 vs int4, ranks, pays
    assert row_of(done.out, "w1")[1:4] == ["Gemm", "96×64", "1"]
    assert row_of(done.out, "w1")[6:8] == ["38", "19"]
    assert row_of(done.out, "w3")[6:8] == ["7", "3"]


def test_inspect_with_data_sees_what_the_layer_sees(model: Path, data: Path) -> None:
    reports = {}
    for name, options in {"data": ("--data", data), "none": ()}.items():
        done = invoke("inspect", model, "--json", *options)
        assert done.code == 0, done.err
        reports[name] = json.loads(done.out)
    layers = {name: {layer["name"]: layer for layer in report["layers"]} for name, report in reports.items()}
    assert (reports["data"]["method"], reports["none"]["method"]) == ("whitened", "svd")
    assert layers["data"]["w1"]["break_even"] == 38
    assert layers["data"]["w2"]["rank_99"] < layers["none"]["w2"]["rank_99"], "8 clusters leave few directions"
    assert sum(layer["macs_share"] for layer in layers["data"].values()) == pytest.approx(1)
    assert all(layer["rows"] == 1 for layer in layers["data"].values())


def test_inspect_recipe_takes_its_calibration(recipe_file: Path) -> None:
    done = invoke("inspect", f"{recipe_file}:recipe")
    assert done.code == 0, done.err
    assert "output energy on the calibration data" in done.out
    assert all(name in done.out for name in ("0.weight", "2.weight", "4.weight"))


@pytest.fixture(scope="module")
def benched(rpi4_pack: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pack, measured here."""
    pack = tmp_path_factory.mktemp("benched") / "points.rpi4"
    shutil.copytree(rpi4_pack.path, pack)
    done = run("bench", pack, "--target", "host", "--quick", "--no-cold", "--json")
    assert done.code == 0, done.err
    assert {row["format"] for row in json.loads(done.out)["rows"]} == {"onnx", "tflite"}
    return pack


VARIANTS = {(variant, fmt) for variant in ("edgepack", "dense-fp32", "dense-int8") for fmt in ("onnx", "tflite")}


def test_bench_writes_raw_values_into_the_pack(benched: Path, rpi4_pack: Built) -> None:
    (result,) = (benched / "results").glob("*.json")
    (raw,) = load_results(benched)
    assert raw.conditions.quick is True
    assert not (rpi4_pack.path / "results").exists()
    assert str(benched) not in result.read_text()


def rows(benched: Path, *options: str) -> str:
    done = invoke("compare", benched, *options)
    assert done.code == 0, done.err
    return done.out


def test_compare_json(benched: Path) -> None:
    found: list[dict[str, Any]] = json.loads(rows(benched, "--json"))["rows"]
    assert {(row["variant"], row["format"]) for row in found} == VARIANTS
    by_name = {(row["variant"], row["format"]): row for row in found}
    for row in found:
        assert row["size_bytes"] == (benched / file_of(row)).stat().st_size
        assert 0 < row["latency_p50_s"] <= row["latency_p90_s"] < 1
    assert by_name["edgepack", "onnx"]["metric"] > 98


def file_of(row: dict[str, Any]) -> str:
    if row["variant"] == "edgepack":
        return f"model.{row['format']}"
    return f"baseline/{row['variant'].removeprefix('dense-')}.{row['format']}"


def test_compare_csv(benched: Path) -> None:
    table = list(csv.DictReader(io.StringIO(rows(benched, "--csv"))))
    assert {(row["variant"], row["format"]) for row in table} == VARIANTS


def test_compare_markdown(benched: Path) -> None:
    lines = rows(benched, "--markdown").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(VARIANTS)
    assert len({line.count("|") for line in table}) == 1


def test_compare_terminal(benched: Path) -> None:
    out = rows(benched)
    assert all(variant in out for variant, _ in VARIANTS)
    assert "quick run" in out


@pytest.mark.parametrize("options", [("--csv", "--json"), ("--markdown", "--csv"), ("--markdown", "--json")])
def test_compare_formats_exclude_each_other(benched: Path, options: Sequence[str]) -> None:
    done = invoke("compare", benched, *options)
    assert done.code == 2
    assert "exclude each other" in done.err + done.out


@pytest.mark.parametrize("command", ["bench", "compare"])
def test_not_a_pack(tmp_path: Path, command: str) -> None:
    assert_fails(invoke(command, tmp_path / "nope"), 3, [r"nope: no such folder"])
    assert_fails(invoke(command, tmp_path), 3, ["not a pack", r"manifest\.json"])


@pytest.mark.parametrize(
    ("content", "says"), [("{", "not JSON"), ("[]", "schema version None"), ('{"schema_version": 99}', "version 99")]
)
@pytest.mark.parametrize("command", ["bench", "compare"])
def test_damaged_manifest(tmp_path: Path, command: str, content: str, says: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert_fails(invoke(command, tmp_path), 3, [says], hint=False)


def test_compare_before_bench_says_what_to_do(rpi4_pack: Built) -> None:
    done = invoke("compare", rpi4_pack.path)
    assert done.code == 0, done.err
    assert "not measured yet" in done.out
    assert f"edgepack bench {rpi4_pack.path}" in " ".join(done.out.split())


def test_bench_of_damaged_models_is_a_device_error(rpi4_pack: Built, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(rpi4_pack.path, pack)
    (pack / "model.onnx").write_bytes(b"no model at all")
    done = invoke("bench", pack, "--target", "host", "--quick", "--no-cold", "--formats", "onnx")
    assert_fails(done, 4, ["model.onnx|edgepack"], hint=False)
    assert not (pack / "results").exists()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--target", "rpi99"), 3, 'unknown target "rpi99"'),
        (("--formats", "onxn"), 2, "unknown format 'onxn'"),
        (("--target", "beaglebone-black"), 3, "beaglebone-black cannot run onnx"),
    ],
)
def test_bench_options(rpi4_pack: Built, options: Sequence[str], code: int, says: str) -> None:
    assert_fails(invoke("bench", rpi4_pack.path, *options), code, [says], hint=False)


def test_bench_of_a_format_that_is_not_in_the_pack(tmp_path: Path, model: Path) -> None:
    pack = tmp_path / "pack"
    assert invoke("build", model, "--target", "rpi4", "--formats", "onnx", "--out", pack).code == 0
    assert_fails(invoke("bench", pack, "--formats", "tflite"), 3, ["no model.tflite; it holds onnx"], hint=False)


def test_targets_list_and_show() -> None:
    listed = invoke("targets", "list")
    assert listed.code == 0
    names = list(load_targets())
    assert all(name in listed.out for name in names)
    assert [target["name"] for target in json.loads(invoke("targets", "list", "--json").out)] == names
    for name in names:
        shown = invoke("targets", "show", name)
        assert shown.code == 0
        assert name in shown.out
    assert json.loads(invoke("targets", "show", "rpi4", "--json").out)["arch"] == "aarch64"


def test_own_target(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("schema_version: 1\ntargets:\n  kiosk:\n    extends: rpi4\n    description: the kiosk\n")
    assert invoke("targets", "check", path).out == f"{path}: good\n"
    shown = invoke("targets", "show", "kiosk", "--targets-file", path)
    assert "the kiosk" in shown.out
    options = ("--target", "kiosk", "--targets-file", path, "--formats", "onnx", "--out", tmp_path / "pack")
    assert invoke("build", model, *options).code == 0
    assert json.loads((tmp_path / "pack" / "manifest.json").read_text())["target"]["name"] == "kiosk"


def test_targets_check_as_json(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("targets: {}\n")
    done = invoke("targets", "check", path, "--json")
    assert done.code == 3
    assert json.loads(done.out) == {"file": str(path), "problems": ["schema_version is missing; expected 1"]}


def test_unknown_target_to_show() -> None:
    assert_fails(invoke("targets", "show", "rpi"), 3, ['unknown target "rpi": did you mean "rpi'])


def test_doctor_finds_what_is_installed() -> None:
    done = invoke("doctor")
    assert done.code == 0
    findings = {finding["name"]: finding for finding in json.loads(invoke("doctor", "--json").out)}
    for name in ("onnxruntime", "ai-edge-litert", "litert-torch", "litert-quantizer", "torch"):
        assert name in done.out
        assert findings[name]["found"], name
