"""bench --emulate on a real pack, and what compare makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgepack.benchmark.results_file import load_emulated
from edgepack.cost.count import SETTLED_INSTRUCTIONS
from edgepack.report.emulated import RUNTIME
from tests.e2e.conftest import Built
from tests.e2e.e2e_cli import assert_fails, invoke, run
from tests.report.shown import csv_rows

pytestmark = pytest.mark.system
VARIANTS = {(variant, fmt) for variant in ("edgepack", "dense-fp32", "dense-int8") for fmt in ("onnx", "tflite")}


@pytest.fixture(scope="module")
def counted(emulator: Path, rpi4_pack: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of the pack, counted on the emulated target, and what the command printed."""
    pack = tmp_path_factory.mktemp("counted") / "points.rpi4"
    shutil.copytree(rpi4_pack.path, pack)
    done = run("bench", pack, "--target", "rpi4", "--emulate", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    document: dict[str, Any] = json.loads(done.out)
    return pack, document


def by_name(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["variant"], row["format"]): row for row in document["emulated"]}


def test_every_file_is_counted_and_agrees_with_this_machine(counted: tuple[Path, dict[str, Any]]) -> None:
    pack, document = counted
    assert document["rows"] == []
    rows = by_name(document)
    assert set(rows) == VARIANTS
    for row in rows.values():
        assert row["instructions"] > 1000
        assert 0 <= row["l1d_misses"] < row["accesses"]
        assert row["last_level"] == "L2"
        assert 0 < row["time_low_s"] < row["time_high_s"]
        # Of the smallest file, 8,000 instructions, the Python around the call is a few per cent.
        assert row["spread_instructions"] < max(0.02, SETTLED_INSTRUCTIONS / row["instructions"])
        assert row["agreement_db"] > 30
        assert any(note.startswith("emulated, not measured") for note in row["notes"])
        assert any("no prefetcher" in note for note in row["notes"])
    assert rows["edgepack", "onnx"]["metric"] > 98
    assert rows["edgepack", "onnx"]["vs_fp32"]["instructions"] > 0
    assert rows["dense-fp32", "onnx"]["vs_fp32"] is None
    (result,) = load_emulated(pack)
    assert [path.name for path in (pack / "results").iterdir()] == ["rpi4.emulated.1t.json"]
    assert str(pack) not in (pack / "results" / result.file_name).read_text()


def test_layers_stand_beside_what_the_manifest_planned(counted: tuple[Path, dict[str, Any]]) -> None:
    pack, document = counted
    files = json.loads((pack / "manifest.json").read_text())["files"]
    for (variant, fmt), row in by_name(document).items():
        planned = {layer["layer"]: layer["rank"] for layer in files[f"model.{fmt}"]["layers"]}
        found = {part["name"]: part["rank"] for part in row["parts"] if part["layer"]}
        assert set(found) == set(planned), (variant, fmt)
        assert found == (planned if variant == "edgepack" else dict.fromkeys(planned)), (variant, fmt)
        assert row["parts"][-1]["name"] == RUNTIME
        assert sum(part["instructions"] for part in row["parts"]) == pytest.approx(row["instructions"])


def test_compare_shows_a_pack_that_was_only_emulated(counted: tuple[Path, dict[str, Any]]) -> None:
    pack, document = counted
    assert json.loads(invoke("compare", pack, "--json").out) == document
    shown = invoke("compare", pack)
    assert shown.code == 0, shown.err
    assert "L2 misses" in shown.out
    assert "time bound: arithmetic on the counts, no measurement" in shown.out
    for fmt in ("onnx", "tflite"):
        assert f"layers of {document['emulated'][0]['model']}, rpi4, {fmt}: edgepack" in shown.out
    text = invoke("compare", pack, "--csv").out
    files, parts = (csv_rows(text, kind) for kind in ("emulated", "emulated parts"))
    assert {(row["variant"], row["format"]) for row in files} == VARIANTS
    assert {part["name"] for part in parts} > {RUNTIME, "0.weight"}
    tables = invoke("compare", pack, "--markdown").out.split("\n\n")
    assert sum(table.startswith("| ") for table in tables) == 3, "the files, and the layers of each format"


def test_a_cpu_that_nothing_emulates(emulator: Path, rpi4_pack: Built) -> None:
    done = invoke("bench", rpi4_pack.path, "--target", "pixel6a", "--emulate")
    assert_fails(done, 3, ["target pixel6a cannot be emulated: the size and ways of its L1i are not known"])
    assert not (rpi4_pack.path / "results").exists()


def test_without_the_emulator_the_hint_installs_it(
    rpi4_pack: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    done = invoke("bench", rpi4_pack.path, "--target", "rpi4", "--emulate")
    assert_fails(done, 4, ["not installed"])
    assert "edgepack emulator install" in done.err
