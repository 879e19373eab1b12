"""The command line where it cannot write, or not all letters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EDGEPACK = str(Path(sys.executable).with_name("edgepack"))


def run(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    script = f"set -o pipefail; {command.replace('edgepack', EDGEPACK, 1)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, env={**os.environ, **environment}, timeout=120)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("edgepack targets list >&-", 0),
        ("edgepack targets list > /dev/full", 2),
        ("edgepack targets list --json > /dev/full", 2),
        ("edgepack --help > /dev/full", 2),
        ("edgepack targets list | true", 141),
        ("edgepack --help | true", 141),
        ("edgepack inspect missing.onnx 2> /dev/full", 3),
        ("edgepack inspect missing.onnx 2>&-", 3),
        ("edgepack bulid 2>&-", 2),
        ("edgepack targets list <&- >&- 2>&-", 0),
    ],
)
def test_streams_that_take_nothing(command: str, code: int) -> None:
    assert run(command).returncode == code


def test_a_full_disk_is_named() -> None:
    assert b"No space left" in run("edgepack --help > /dev/full").stderr


def test_tables_in_ascii() -> None:
    done = run("edgepack targets list", LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert b"4xcortex-a72" in done.stdout
    assert b"\\u" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["build", "n" * 260 + ".onnx", "--target", "rpi4"], 3),
        (["build", "~nobody-here/m.onnx", "--target", "rpi4"], 3),
        (["inspect", "..a.b:f"], 3),
        (["compare", "d/" * 2500], 3),
        (["targets", "check", "pipe"], 3),
        (["targets", "check", "loop"], 3),
    ],
    ids=lambda value: value[-1][:10] if isinstance(value, list) else str(value),
)
def test_names_of_no_file(tmp_path: Path, arguments: list[str], code: int) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    done = subprocess.run([EDGEPACK, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "internal error" in done.stderr) == (code, False)
