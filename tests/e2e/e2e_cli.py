"""The command line as a user meets it: in a process of its own, or in this one where that is enough."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from edgepack.cli import app


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def invoke(*args: object, env: dict[str, str] | None = None) -> Done:
    """Run the command in this process, where the libraries are imported already."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def command(*args: object) -> list[str]:
    """The command line for a process of its own."""
    return [sys.executable, "-m", "edgepack", *map(str, args)]


def run(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Done:
    """Run the command in a process of its own."""
    done = subprocess.run(
        command(*args),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def assert_fails(done: Done, code: int, says: Sequence[str], *, hint: bool = True, out: Path | None = None) -> None:
    """One clear error, the documented exit code, no traceback, and nothing at `out` or half-written beside it."""
    assert done.code == code, f"exit {done.code}\n{done.out}\n{done.err}"
    lines = done.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert lines[0] == errors[0], done.err
    assert len(errors[0]) < 600, errors[0]
    assert "Traceback" not in done.err + done.out
    assert "internal error" not in done.err
    for part in says:
        assert re.search(part, errors[0]), f"{part!r} is not in {errors[0]!r}"
    hints = [line for line in lines if line.startswith("  hint: ")]
    assert len(lines) == 1 + len(hints), done.err
    if hint:
        assert len(hints) == 1, done.err
    if out is not None:
        assert_untouched(out)


def assert_untouched(out: Path) -> None:
    """Nothing at the output folder, and no temporary folder beside it."""
    assert not out.exists()
    if out.parent.is_dir():
        assert [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")] == []
