"""Packs with measured results, emulated ones, both or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.benchmark.results import EmulatedResult, EmulatedVariant, Emulation
from edgepack.benchmark.results_file import save_result
from edgepack.emulator.counts import Counts
from edgepack.errors import PackError, TargetsError
from edgepack.report.comparison import compare_packs, comparison_report
from tests.report.shown import text

COUNTS = Counts(100_000.0, 40_000.0, 320_000.0, {"L1i": 3.0, "L1d": 500.0, "L2": 20.0})
FILE = EmulatedVariant("edgepack", "onnx", "model.onnx", 123, "ab" * 32, (COUNTS,))
CACHES = ("l1i=49152:3:64", "l1d=32768:2:64", "l2=1048576:16:64:shared")
RESULT = EmulatedResult(
    "now", "0.1", "mlp", "rpi4", 1, "seeded", Emulation(CACHES, "cortex-a72", "qemu", {}, ()), (FILE,)
)


def pack(folder: Path, *results: EmulatedResult) -> Path:
    folder.mkdir()
    manifest = {"schema_version": 1, "files": {"model.onnx": {"scheme": "int8-dynamic", "metric": 97.0, "layers": []}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for result in results:
        save_result(result, folder / "results" / result.file_name)
    return folder


def test_a_pack_that_was_only_emulated_compares(tmp_path: Path) -> None:
    compared = compare_packs([pack(tmp_path / "a", RESULT), pack(tmp_path / "b", replace(RESULT, threads=4))])
    assert compared.rows == ()
    assert [(row.target, row.threads, row.scheme) for row in compared.emulated] == [
        ("rpi4", 1, "int8-dynamic"),
        ("rpi4", 4, "int8-dynamic"),
    ]
    one, four = compared.emulated
    assert one.time_low_s is not None
    assert four.time_low_s is not None
    assert one.time_low_s > four.time_low_s


def test_a_pack_without_results_shows_its_files_and_how_to_measure_them(tmp_path: Path) -> None:
    empty = pack(tmp_path / "a")
    with pytest.raises(PackError, match="no model files, and no results"):
        compare_packs([empty])
    (empty / "model.onnx").write_bytes(b"12345")
    compared = compare_packs([empty])
    (row,) = compared.unmeasured
    assert (row.format, row.variant, row.size_bytes) == ("onnx", "edgepack", 5)
    shown = text(comparison_report(compared.rows, compared.emulated, compared.unmeasured))
    assert "not measured yet" in shown
    assert f"measure it: edgepack bench {empty}" in " ".join(shown.split())


def test_a_target_that_is_not_known_here_has_no_bound(tmp_path: Path) -> None:
    own = pack(tmp_path / "a", replace(RESULT, target="kiosk"))
    (row,) = compare_packs([own]).emulated
    assert row.time_low_s is None
    assert row.time_unknown == "no target kiosk here; --targets-file takes the file that describes it"
    path = tmp_path / "mine.yaml"
    path.write_text("schema_version: 1\ntargets:\n  kiosk:\n    extends: rpi4\n    description: the kiosk\n")
    (row,) = compare_packs([own], path).emulated
    assert row.time_low_s is not None
    assert row.assumptions[0].startswith("cortex-a72 at 1500 MHz")


def test_a_bad_targets_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("targets: {}\n")
    with pytest.raises(TargetsError, match="schema_version is missing"):
        compare_packs([pack(tmp_path / "a", RESULT)], path)
