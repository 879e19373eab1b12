"""Installation and what stops it. Faults are provoked with real programs that fail, on a PATH of the test's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edgepack.emulator import install as installing
from edgepack.emulator import programs, sysroot
from edgepack.emulator.guest import guest
from edgepack.emulator.install import install, missing
from edgepack.emulator.plugin import cache_arguments, plugin_file
from edgepack.errors import EdgepackError, OutputError, StableDeviceError, TargetsError, TransientDeviceError
from edgepack.targets.file import get_target


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Leaves nothing on the PATH but the programs named here: real ones by name, others as scripts."""

    def make(*names: str, **scripts: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(shutil.which(name))
        for name, script in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(programs, "_EVERY_USER", ())
        monkeypatch.delenv("CC", raising=False)
        return folder

    return make


def _error(call) -> EdgepackError:
    with pytest.raises(EdgepackError) as caught:
        call()
    return caught.value


def test_without_qemu_the_hint_installs_it(cache: Path, only) -> None:
    only()
    error = _error(lambda: guest(get_target("rpi4")))
    assert isinstance(error, StableDeviceError)
    assert "qemu-aarch64 is not installed" in error.message
    assert "edgepack emulator install" in error.hint
    assert "apt-get install qemu-user" in error.hint
    assert missing("aarch64") == "qemu-aarch64, cc, the aarch64 system"


@pytest.mark.system
def test_without_the_root_folder_the_hint_installs_it(cache: Path) -> None:
    error = _error(lambda: guest(get_target("rpi4")))
    assert "aarch64 system is not installed" in error.message
    assert "edgepack emulator install" in error.hint


def test_who_is_not_root_is_told_what_to_type(cache: Path, only, monkeypatch: pytest.MonkeyPatch) -> None:
    only()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = _error(lambda: install("aarch64"))
    assert error.exit_code == 4
    assert error.hint.startswith("sudo apt-get install qemu-user gcc libc6-dev debootstrap")


def test_without_a_compiler_the_hint_installs_one(cache: Path, only) -> None:
    folder = only(qemu_x86_64='echo "qemu-x86_64 version 7.2.0"')
    error = _error(lambda: plugin_file(str(folder / "qemu-x86-64")))
    assert "cc is not installed" in error.message
    assert "apt-get install gcc" in error.hint


def test_a_compiler_that_fails_is_quoted(cache: Path, only) -> None:
    folder = only(qemu="echo 7.2", cc="echo 'fatal error: stdio.h: No such file or directory' >&2; exit 1")
    error = _error(lambda: plugin_file(str(folder / "qemu")))
    assert "stdio.h: No such file or directory" in error.message
    assert list(cache.rglob("*.so")) == [], "no half-written plugin"


def test_without_a_network_the_step_is_named_and_can_be_tried_again(cache: Path, only) -> None:
    only("dpkg-deb", debootstrap="echo 'E: Failed getting release file' >&2; exit 1")
    error = _error(sysroot.install_sysroot)
    assert isinstance(error, TransientDeviceError)
    assert "fetching Debian's arm64 packages failed: E: Failed getting release file" in error.message
    assert "edgepack emulator install" in error.hint
    assert not sysroot.is_ready()


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "file" / "cache"))
    assert isinstance(_error(sysroot.install_sysroot), OutputError)


def test_a_library_of_another_architecture_is_named(tmp_path: Path) -> None:
    import onnxruntime

    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / library.name).write_bytes(library.read_bytes()[:4096])
    error = _error(lambda: sysroot.check_architecture(tmp_path))
    assert f"onnxruntime/{library.name} is not an aarch64 library (ELF machine 62, expected 183)" in error.message


@pytest.mark.system
def test_what_is_installed_stays(emulator: Path) -> None:
    before = (sysroot.root_folder().stat().st_mtime_ns, sysroot.wheels_folder().stat().st_mtime_ns)
    steps: list[str] = []
    done = install("aarch64", lambda stage, at=0, of=0: steps.append(stage))
    assert (sysroot.root_folder().stat().st_mtime_ns, sysroot.wheels_folder().stat().st_mtime_ns) == before
    assert steps == ["emulator: programs", "emulator: plugin", "emulator: plugin"]
    assert done.onnxruntime == "1.31.1"
    assert missing("aarch64") is None


@pytest.mark.system
def test_an_interrupted_installation_goes_on(emulator: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root folder is there, the wheels are half unpacked."""
    root = sysroot.root_folder()
    root.parent.mkdir(parents=True)
    root.symlink_to(emulator / "aarch64" / root.name)
    partial = sysroot.wheels_folder().with_name(f"{sysroot.wheels_folder().name}.partial")
    partial.mkdir()
    (partial / "half").write_text("x")
    sysroot.install_sysroot()
    assert sysroot.is_ready()
    assert not partial.exists()
    assert not (sysroot.wheels_folder() / "half").exists()


@pytest.mark.system
def test_runtimes_that_do_not_import_are_reported(emulator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "_TRY", "import no_such_runtime")
    error = _error(lambda: install("aarch64"))
    assert "cannot import the runtimes: ModuleNotFoundError: No module named 'no_such_runtime'" in error.message


def test_the_caches_of_a_target_become_the_plugins_arguments() -> None:
    assert cache_arguments(get_target("rpi4")) == (
        "l1i=49152:3:64",
        "l1d=32768:2:64",
        "l2=1048576:16:64:shared",
    )
    assert cache_arguments(get_target("rpi5"))[2:] == ("l2=524288:8:64", "l3=2097152:16:64:shared")
    assert cache_arguments(get_target("rk3566"))[2:] == ("l2=524288:16:64:shared",)


def test_a_target_without_cache_facts_says_which(tmp_path: Path) -> None:
    error = _error(lambda: cache_arguments(get_target("android-a53")))
    assert isinstance(error, TargetsError)
    assert "android-a53 cannot be emulated" in error.message
    assert "targets.yaml" in error.hint
    own = tmp_path / "targets.yaml"
    own.write_text(
        "schema_version: 1\ntargets:\n"
        "  odd: {extends: rpi4, clusters: {a72: {L2: {size_bytes: 1000K, ways: 7, shared: cluster}}}}\n"
    )
    assert "no whole number of sets" in _error(lambda: cache_arguments(get_target("odd", own))).message


def test_a_target_of_an_architecture_without_runtimes_is_refused() -> None:
    assert "no runtime for armv7l" in _error(lambda: guest(get_target("beaglebone-black"))).message


@pytest.mark.system
def test_an_x86_target_lacks_what_it_lacks(emulator: Path) -> None:
    old, new = guest(get_target("j4125")), guest(get_target("n100"))
    assert "-avx2" in old.options[1]
    assert new.options[1] == "max"
    assert new.notes == ("QEMU has no avx-vnni: the kernels are those without",)
