"""The suite's own rule: under EDGEPACK_REQUIRE_ALL=1 a skipped system test fails, and only that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEM = """
import pytest
@pytest.mark.system
def test_needs_a_tool(): pytest.skip("no tool")
@pytest.mark.system
@pytest.mark.skipif(True, reason="no kernel feature")
def test_needs_a_kernel(): pass
@pytest.fixture
def gone(): pytest.skip("skipped in a fixture")
@pytest.mark.system
def test_needs_a_fixture(gone): pass
"""
PLAIN = """
import pytest
def test_skips(): pytest.skip("of no concern")
@pytest.mark.system
@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail(): raise AssertionError
@pytest.mark.system
def test_passes(): pass
"""
MODULE = 'import pytest\npytest.skip("whole module", allow_module_level=True)\n'


def run(folder: Path, source: str, require_all: str | None) -> subprocess.CompletedProcess[str]:
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    (folder / "test_sample.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = system: x\nfilterwarnings = error\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("EDGEPACK_", "PYTEST_"))}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if require_all is not None:
        env["EDGEPACK_REQUIRE_ALL"] = require_all
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("source", "require_all", "code", "summary"),
    [
        (SYSTEM, "1", 1, ""),
        (SYSTEM, None, 0, "3 skipped"),
        (SYSTEM, "0", 0, "3 skipped"),
        (PLAIN, "1", 0, "1 passed, 1 skipped, 1 xfailed"),
        (MODULE, "1", 2, ""),
        (MODULE, None, 5, "1 skipped"),
    ],
)
def test_rule(tmp_path: Path, source: str, require_all: str | None, code: int, summary: str) -> None:
    done = run(tmp_path, source, require_all)
    assert done.returncode == code, done.stdout + done.stderr
    assert summary in done.stdout
    assert ("skipped although EDGEPACK_REQUIRE_ALL=1" in done.stdout) == (code in (1, 2))


def test_every_way_to_skip_fails(tmp_path: Path) -> None:
    out = run(tmp_path, SYSTEM, "1").stdout
    for reason in ("no tool", "no kernel feature", "skipped in a fixture"):
        assert reason in out
    for name in ("test_needs_a_tool", "test_needs_a_kernel", "test_needs_a_fixture"):
        assert f"::{name}" in out
    assert "skipped," not in out.splitlines()[-1]


def test_the_cache_is_not_the_users(cache_folder: Path) -> None:
    from edgepack.workspace import default_root

    assert default_root() == cache_folder
