"""`edgepack targets calibrate`, from the command line to the kept table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgepack.backends.onnx.schemes import FP32
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.schemes import TABULATED
from edgepack.cli import app
from edgepack.cost.measure import points_for
from edgepack.cost.measured import load_measured
from edgepack.devices.local import LocalDevice
from edgepack.errors import ModelError, TargetsError
from edgepack.model.scheme import Format
from edgepack.pipeline import measure_target
from edgepack.pipeline.measure_target import calibrate_target
from edgepack.targets.file import get_target
from tests.pipeline.two_layers import ROWS, SIDE, write_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_layers_of_a_model_are_measured_shown_and_kept(folder: Path) -> None:
    model = write_model(folder / "two.onnx", shared=False)
    command = ["targets", "calibrate", "host", str(model), "--local", "--quick", "--formats", "tflite"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    wanted = points_for([(SIDE, SIDE, ROWS)], ("tflite",))
    assert (record["target"], record["threads"], record["asked"]) == ("host", 1, len(wanted))
    assert len(record["layers"]) == len(wanted)
    assert record["refused"] == []
    assert set(load_measured(Path(record["path"])).entries) == set(wanted)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert f"asked for {len(wanted)} layers, {len(wanted)} are known" in again.stdout
    for scheme in TABULATED["tflite"]:
        assert scheme.name in again.stdout


def test_without_a_model_it_is_the_standard_grid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = points_for([(16, 24, 1)], ("onnx",), {"onnx": (FP32,), "tflite": ()})
    asked: list[tuple[Format, ...]] = []

    def standard(formats: tuple[Format, ...]) -> list[object]:
        asked.append(formats)
        return list(few)

    monkeypatch.setattr(measure_target, "standard_points", standard)
    found = calibrate_target(LocalDevice(), get_target("host"), quick=True)
    assert asked == [FORMATS]
    assert set(found.table.entries) == set(few)
    assert found.points == len(few)
    assert found.path.is_file()


def test_another_machine_than_the_target_is_refused(folder: Path) -> None:
    done = CliRunner().invoke(app, ["targets", "calibrate", "rk3588", "--local"])
    assert done.exit_code == TargetsError.exit_code
    assert "local is no rk3588: found" in done.output
    assert not (folder / "cache" / "measured").exists()


def test_where_to_measure_has_to_be_said(folder: Path) -> None:
    done = CliRunner().invoke(app, ["targets", "calibrate", "rpi4"])
    assert done.exit_code == 2
    assert "edgepack targets calibrate rpi4 --host user@host, or --local for this machine" in done.output


def test_a_target_without_the_runtime_is_refused() -> None:
    with pytest.raises(TargetsError, match="cannot run tflite"):
        calibrate_target(LocalDevice(), get_target("visionfive2"), formats=("tflite",))
    with pytest.raises(TargetsError, match="has no runtime"):
        calibrate_target(LocalDevice(), get_target("visionfive2"))


def test_a_model_without_linear_layers_is_refused(folder: Path) -> None:
    backend("onnx").blank(folder / "blank.onnx")
    with pytest.raises(ModelError, match="no linear layer found"):
        calibrate_target(LocalDevice(), get_target("host"), model=str(folder / "blank.onnx"))
