"""What is inside the wheel, and that an installed edgepack finds it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
TYPED = ("edgepack/py.typed", "edgepack/__init__.pyi")
PAGE = tuple(f"edgepack/report/render/page/page.{kind}" for kind in ("css", "js"))


QUIET = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("source") / "edgepack"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "targets.yaml"):
        shutil.copy(TOP / name, folder)
    for name in ("edgepack", "runtimes"):
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as an index or a packager does."""
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=source, timeout=300)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    pip("wheel", *QUIET, "-w", folder, archive)
    (path,) = folder.glob("*.whl")
    return path


def test_an_environment_of_its_own_has_the_command(wheel: Path, tmp_path: Path) -> None:
    """What edgepack depends on is that of this Python; edgepack itself is what the wheel brings."""
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", python, "install", *QUIET, "--no-index", wheel)
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    command = str(tmp_path / "venv" / "bin" / "edgepack")
    asked = [str(python), "-c", "import edgepack; print(edgepack.__file__)"]
    where = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path)
    assert where.stdout.strip() == str(site / "edgepack" / "__init__.py"), where.stderr
    done = subprocess.run([command, "targets", "show", "rpi4"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "cortex-a72" in done.stdout) == (0, True), done.stderr


def test_the_wheel_holds_the_package_and_the_shipped_files_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    python = {str(path.relative_to(TOP)) for path in (TOP / "edgepack").rglob("*.py")}
    shipped = {f"edgepack/{path.relative_to(TOP)}" for path in (TOP / "runtimes").rglob("*") if path.is_file()}
    shipped = {name for name in shipped if not name.endswith(".pyc")} | {"edgepack/targets.yaml", *TYPED, *PAGE}
    assert {"edgepack/runtimes/runner.py", "edgepack/runtimes/CONTRACT.md"} <= shipped
    tables = {str(path.relative_to(TOP)) for path in (TOP / "edgepack" / "cost" / "tables").glob("*.json")}
    assert len(tables) >= 4
    assert names == python | shipped | tables


def test_without_the_runtimes_of_the_page_there_is_no_wheel(source: Path, tmp_path: Path) -> None:
    part = tmp_path / "edgepack"
    vendor = shutil.ignore_patterns("vendor", "emulator")
    shutil.copytree(source, part, ignore=vendor)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=part, timeout=300)
    assert done.returncode != 0
    assert "Fetch them: make vendor" in done.stderr


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
