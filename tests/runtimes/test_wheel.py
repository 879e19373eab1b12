"""What is inside the wheel, and that an installed edgepack finds it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
TYPED = ("edgepack/py.typed", "edgepack/__init__.pyi")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "targets.yaml"):
        shutil.copy(TOP / name, source)
    for name in ("edgepack", "runtimes"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "README.md").write_text("# edgepack\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_the_shipped_files_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    python = {str(path.relative_to(TOP)) for path in (TOP / "edgepack").rglob("*.py")}
    shipped = {f"edgepack/{path.relative_to(TOP)}" for path in (TOP / "runtimes").rglob("*") if path.is_file()}
    shipped = {name for name in shipped if not name.endswith(".pyc")} | {"edgepack/targets.yaml", *TYPED}
    assert {"edgepack/runtimes/runner.py", "edgepack/runtimes/CONTRACT.md"} <= shipped
    tables = {str(path.relative_to(TOP)) for path in (TOP / "edgepack" / "cost" / "tables").glob("*.json")}
    assert len(tables) >= 4
    assert names == python | shipped | tables


def test_an_installed_edgepack_finds_what_it_shipped(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import edgepack\n"
        "from edgepack.workspace import shipped; from edgepack.targets.file import get_target\n"
        "print(shipped('runtimes/runner.py')); print(get_target('rpi4').arch, get_target('host').cores > 0)"
    )
    site = str(tmp_path / "site")
    done = subprocess.run([sys.executable, "-c", code, site], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [f"{site}/edgepack/runtimes/runner.py", "aarch64 True"], done.stderr


def test_a_checkout_finds_them_at_its_top() -> None:
    from edgepack.errors import StableDeviceError
    from edgepack.workspace import shipped

    assert shipped("targets.yaml") == TOP / "targets.yaml"
    with pytest.raises(StableDeviceError, match=r"own file nothing\.txt is missing"):
        shipped("nothing.txt")
