"""What `doctor` finds is what is installed."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from edgepack.doctor import PACKAGES, PROGRAMS, examine

ROOT = Path(__file__).parents[1]


def test_installed_packages_are_found_with_their_version() -> None:
    found = {f.name: f.found for f in examine()}
    assert found["onnxruntime"] == version("onnxruntime")
    assert found["onnx-ir"] == version("onnx-ir")
    assert list(found) == [row[0] for row in PACKAGES + PROGRAMS]


def test_missing_ones_come_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("edgepack.doctor.version", missing)
    monkeypatch.setenv("PATH", str(tmp_path))
    for finding in examine():
        assert finding.found is None
        assert re.match(r"(pip install|apt-get install) \S", finding.install)
        assert finding.purpose


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
