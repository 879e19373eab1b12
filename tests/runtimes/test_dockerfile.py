"""The Dockerfile, step by step and without Docker: what it copies, installs and calls is there and is enough."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgepack.cli import app
from edgepack.emulator import programs, sysroot

TOP = Path(__file__).parents[2]


def steps() -> list[tuple[str, str]]:
    """Instructions and what stands behind them, continued lines joined."""
    lines = (TOP / "runtimes" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def of(instruction: str) -> list[str]:
    return [rest for name, rest in steps() if name == instruction]


def commands() -> list[list[str]]:
    """Of all RUN lines."""
    return [shlex.split(command) for line in of("RUN") for command in re.split(r"&&", line)]


def test_it_has_these_steps_in_this_order() -> None:
    names = [name for name, _ in steps()]
    assert names == ["FROM", "ARG", "ARG", "RUN", "COPY", "COPY", "COPY", "RUN", "ENV", "RUN", "WORKDIR", "ENTRYPOINT"]


def test_its_system_is_the_one_of_the_emulator() -> None:
    (base,) = of("FROM")
    assert base == f"python:{sysroot.PYTHON}-slim-{sysroot.SUITE}"


def test_it_installs_every_program_that_the_emulator_needs() -> None:
    (asked,) = [command for command in commands() if command[:2] == ["apt-get", "install"]]
    needed = programs.command("qemu-aarch64", "cc", "debootstrap", "dpkg-deb").split()[2:]
    assert sorted(word for word in asked[2:] if not word.startswith("-")) == sorted(needed)


def test_what_it_calls_is_a_command() -> None:
    (called,) = [command[1:] for command in commands() if command[0] == "edgepack"]
    assert CliRunner().invoke(app, [*called, "--help"]).exit_code == 0
    assert of("ENTRYPOINT") == ['["edgepack"]']


def test_the_extra_is_one() -> None:
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert of("ARG")[0].removeprefix("EXTRAS=") in extras


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What COPY brings into the image, in its root."""
    for line in of("COPY"):
        *sources, place = line.split()
        for source in sources:
            path = TOP / source
            target = tmp_path / place.lstrip("/") / (path.name if place.endswith("/") else "")
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return tmp_path


def test_what_it_copies_installs(context: Path) -> None:
    """Without what it depends on, which takes a network; the constraints are those of a file that it copies."""
    (asked,) = [command for command in commands() if command[:2] == ["pip", "install"]]
    assert (context / asked[asked.index("-c") + 1].lstrip("/")).is_file()
    source = context / asked[-1].partition("[")[0].lstrip("/")
    quiet = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(context / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    code = "from edgepack.workspace import shipped; print(shipped('runtimes/emulator/requirements.txt'))"
    env = {**os.environ, "PYTHONPATH": str(context / "site")}
    asked = [sys.executable, "-c", code]
    found = subprocess.run(asked, capture_output=True, text=True, env=env, cwd=context, check=True)
    assert found.stdout.strip() == str(context / "site" / "edgepack" / "runtimes" / "emulator" / "requirements.txt")
