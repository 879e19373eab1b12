"""action.yml: its step that checks, run as a runner would, in a repository with a pack that has grown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.check.test_base import git
from tests.check.test_check import write_pack

ACTION = Path(__file__).parents[2] / "action.yml"


def steps() -> list[dict[str, Any]]:
    return list(yaml.safe_load(ACTION.read_text())["runs"]["steps"])


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A temporary folder with edgepack where the step before has installed it."""
    binary = tmp_path / "temp" / "edgepack" / "bin" / "edgepack"
    binary.parent.mkdir(parents=True)
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m edgepack "$@"\n')
    binary.chmod(0o755)
    return tmp_path / "temp"


def check(repository: Path, runner: Path, against: str) -> tuple[int, str, dict[str, str]]:
    """The exit code of the step, its summary, and its outputs."""
    (step,) = [one for one in steps() if one.get("id") == "check"]
    given = {"PACK": "dist/mlp.rpi4", "AGAINST": against, "ARGS": "--no-counts --formats onnx"}
    assert set(step["env"]) == set(given)
    files = {name: str(runner / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        Path(file).write_text("")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=repository,
        env={**os.environ, **given, **files, "RUNNER_TEMP": str(runner)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    outputs = dict(line.split("=", 1) for line in Path(files["GITHUB_OUTPUT"]).read_text().splitlines())
    return done.returncode, Path(files["GITHUB_STEP_SUMMARY"]).read_text() + done.stderr, outputs


def test_a_pack_that_grew_fails_the_job_and_its_summary_says_why(tmp_path: Path, runner: Path) -> None:
    upstream, pack = tmp_path / "upstream", tmp_path / "upstream" / "dist" / "mlp.rpi4"
    write_pack(pack, 256)
    git(tmp_path, "init", "-q", str(upstream))
    git(upstream, "add", "-A")
    git(upstream, "commit", "-q", "-m", "first")
    write_pack(pack, 264)
    git(upstream, "commit", "-q", "-a", "-m", "wider")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{upstream}", str(shallow))

    code, summary, outputs = check(shallow, runner, "HEAD^")
    assert code == 6, summary
    assert "| model.onnx | whole file | size | " in summary
    assert "OVER" in summary
    assert "<failure" in Path(outputs["junit"]).read_text()
    code, summary, _ = check(shallow, runner, "HEAD")
    assert code == 0, summary
    assert "OVER" not in summary
    git(upstream, "branch", "other", "HEAD^")
    code, summary, _ = check(shallow, runner, "other:dist/mlp.rpi4")
    assert code == 6, summary
    code, summary, _ = check(shallow, runner, "no-such-branch")
    assert code == 3, summary
    assert "error: no-such-branch: no such file or folder" in summary


def test_the_image_has_another_name_where_its_runtimes_change(tmp_path: Path) -> None:
    (step,) = [one for one in steps() if one.get("id") == "image"]

    def name() -> str:
        (output := tmp_path / "output").write_text("")
        environment = {**os.environ, "ACTION_PATH": str(tmp_path), "GITHUB_OUTPUT": str(output)}
        subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=environment, check=True, timeout=60)
        return output.read_text()

    folder = tmp_path / "runtimes" / "emulator"
    shutil.copytree(ACTION.parent / "runtimes" / "emulator", folder)
    before = name()
    assert re.fullmatch(r"digest=[0-9a-f]{16}\n", before)
    assert name() == before
    (folder / "requirements.txt").write_text("numpy\n")
    assert name() != before
    (kept,) = [one["with"] for one in steps() if str(one.get("uses", "")).startswith("actions/cache")]
    assert kept["path"] == "~/.cache/edgepack/emulator"
    assert "steps.image.outputs.digest" in kept["key"]


def test_what_the_step_before_installs_is_what_the_emulator_needs() -> None:
    from edgepack.emulator import programs

    (step,) = [one for one in steps() if one.get("name") == "Install"]
    wanted = programs.command("qemu-aarch64", "cc", "debootstrap").removeprefix("apt-get install ").split()
    assert set(wanted) <= set(step["run"].split())


def test_values_of_others_reach_no_shell_as_code() -> None:
    for step in steps():
        assert not re.search(r"\$\{\{", step.get("run", "")), "expressions belong into env"
