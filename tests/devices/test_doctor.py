"""What `doctor` finds is what is installed."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from edgepack.devices.doctor import EMULATOR_PROGRAMS, PACKAGES, PROGRAMS, TESTED_RUNTIMES, examine, newest_tested

ROOT = Path(__file__).parents[2]


def test_installed_packages_are_found_with_their_version() -> None:
    found = {f.name: f.found for f in examine()}
    assert found["onnxruntime"] == version("onnxruntime")
    assert found["onnx-ir"] == version("onnx-ir")
    emulator = ["emulator aarch64", "emulator x86_64", *(row[0] for row in EMULATOR_PROGRAMS)]
    assert list(found) == [row[0] for row in PACKAGES + PROGRAMS] + emulator


def test_missing_ones_come_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("edgepack.devices.doctor.version", missing)
    monkeypatch.setattr("edgepack.emulator.programs._EVERY_USER", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    findings = {finding.name: finding for finding in examine()}
    for finding in findings.values():
        assert finding.found is None
        assert re.match(r"(pip install|apt-get install|edgepack emulator install) \S", finding.install)
        assert finding.purpose
    arm, x86 = findings["emulator aarch64"], findings["emulator x86_64"]
    assert (arm.lacks, arm.install) == (
        "qemu-aarch64, cc, the aarch64 system",
        "edgepack emulator install --arch aarch64",
    )
    assert (x86.lacks, x86.install) == ("qemu-x86_64, cc", "edgepack emulator install --arch x86_64")


def test_an_emulator_is_there_when_all_its_parts_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("qemu-x86_64", "qemu-aarch64", "cc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "empty"))
    found = {finding.name: finding for finding in examine()}
    assert found["emulator x86_64"].found == str(tmp_path / "qemu-x86_64")
    assert found["cc"].found == str(tmp_path / "cc")
    assert found["emulator aarch64"].found is None
    assert found["emulator aarch64"].lacks == "the aarch64 system"


def test_programs_are_looked_up_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "adb"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    (tmp_path / "ssh").write_text("not executable")
    (tmp_path / "ssh").chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {f.name: f.found for f in examine()}
    assert found["adb"] == str(tool)
    assert found["ssh"] is None


def test_every_package_is_one_that_edgepack_installs() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    for name, _, install in PACKAGES:
        assert f'"{name}>=' in declared
        extra = re.search(r"\[(\w+)\]", install)
        assert extra is None or f"{extra[1]} = [" in declared


def test_tested_runtimes_are_those_of_the_constraints() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {name: pinned[name] for name in TESTED_RUNTIMES} == TESTED_RUNTIMES


def test_runtimes_newer_than_tested_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"onnxruntime": "99.0.1", "ai-edge-litert": TESTED_RUNTIMES["ai-edge-litert"], "torch": "99.0"}
    monkeypatch.setattr("edgepack.devices.doctor.version", lambda name: here.get(name, "1.0"))
    tested = {finding.name: finding.tested for finding in examine() if finding.tested is not None}
    assert tested == {"onnxruntime": TESTED_RUNTIMES["onnxruntime"]}


def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.devices.doctor.TESTED_RUNTIMES", {"onnxruntime": "1.31.1"})
    for found in ("1.31.1", "1.31.1.0", "1.31.1rc2", "1.9.9", "1.31", "odd"):
        assert newest_tested("onnxruntime", found) is None, found
    for found in ("1.31.2", "1.31.1.1", "1.32.0.dev20261101", "1.100", "2"):
        assert newest_tested("onnxruntime", found) == "1.31.1", found
    assert newest_tested("torch", "99") is None
