"""The aarch64 Debian that the emulator runs: its packages and the runtimes' wheels, in the cache folder.

Every step ends with a rename: a folder that is there is whole, and an interrupted installation goes on where it was.
debootstrap checks the archive's signature and every package's SHA-256, pip the SHA-256 of every wheel.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgepack.emulator import programs
from edgepack.errors import OutputError, StableDeviceError, TransientDeviceError
from edgepack.workspace import Progress, default_root, file_digest, shipped, silent

SUITE = "bookworm"
PACKAGES = ("python3", "libstdc++6", "libgomp1")
PYTHON = "3.11"
KEPT = ("bin", "etc", "lib", "usr")
"""Folders of the root that a guest needs; QEMU finds everything else on this machine."""
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_AARCH64 = 183  # e_machine of an ELF file
STEP_TIMEOUT_S = 1800.0


def root_folder() -> Path:
    """Where the root folder is, or would be."""
    return _home() / f"root-{SUITE}"


def wheels_folder() -> Path:
    """Where the wheels are, or would be; the name changes with their list."""
    return _home() / f"wheels-{file_digest(_requirements())[:16]}"


def is_ready() -> bool:
    """Whether the root folder and the wheels are both there."""
    return root_folder().is_dir() and wheels_folder().is_dir()


def install_sysroot(progress: Progress = silent) -> None:
    """Downloads and unpacks what is not there yet: about 130 MB to fetch, 360 MB on disk, one minute.

    Raises:
        StableDeviceError: a program is missing, or a package or wheel is not what it should be.
        TransientDeviceError: the network failed.
        OutputError: the cache folder cannot be written.
    """
    try:
        _home().mkdir(parents=True, exist_ok=True)
        with (_home() / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second installation waits, and then finds everything there
            _install(progress)
    except OSError as err:
        raise OutputError(
            f"cannot write the emulator's files to {_home()}: {err.strerror}",
            hint="make room there, or set EDGEPACK_CACHE to another folder",
        ) from err


def _install(progress: Progress) -> None:
    if not root_folder().is_dir():
        progress("emulator: Debian packages", 1, 5)
        _download_debs(_home() / "debs")
        progress("emulator: unpacking", 2, 5)
        _unpack(_home() / "debs", root_folder())
        shutil.rmtree(_home() / "debs")
    if not wheels_folder().is_dir():
        progress("emulator: runtimes", 3, 5)
        _install_wheels(wheels_folder())


def _home() -> Path:
    return default_root() / "emulator" / "aarch64"


def _requirements() -> Path:
    return shipped("runtimes/emulator/requirements.txt")


def _download_debs(folder: Path) -> None:
    """debootstrap keeps what an earlier, interrupted run has fetched and checked."""
    folder.mkdir(exist_ok=True)
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keyring.is_file():
        raise StableDeviceError(
            f"Debian's keys are missing: no {keyring}", hint="apt-get install debian-archive-keyring"
        )
    arguments = ["--download-only", "--arch=arm64", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    _run(
        [programs.require("debootstrap"), *arguments, f"--keyring={keyring}", SUITE, str(folder)],
        "fetching Debian's arm64 packages",
    )


def _unpack(debs: Path, root: Path) -> None:
    """Only unpacks: nothing of the packages is run, so this needs neither root nor a chroot."""
    found = sorted((debs / "var/cache/apt/archives").glob("*.deb"))
    if not any(deb.name.startswith("python3_") for deb in found):
        raise StableDeviceError(f"debootstrap fetched {len(found)} packages without python3: {debs}")
    partial = _empty(root)
    dpkg = programs.require("dpkg-deb")
    # Later packages may lie on folders of earlier ones, so they go in one after the other; two at a time decompress.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda deb: _run([dpkg, "-x", str(deb), str(partial)], f"unpacking {deb.name}"), found))
    for entry in partial.iterdir():
        if entry.name not in KEPT:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    partial.rename(root)


def _install_wheels(folder: Path) -> None:
    partial = _empty(folder)
    arguments = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    arguments += [part for platform in _PLATFORMS for part in ("--platform", platform)]
    arguments += ["--python-version", PYTHON, "--implementation", "cp", "--no-compile", "--target", str(partial)]
    _run(
        [sys.executable, "-m", "pip", "install", *arguments, "-r", str(_requirements())],
        "installing the aarch64 wheels",
    )
    check_architecture(partial)
    for old in folder.parent.glob("wheels-*"):
        if old != partial:
            shutil.rmtree(old)
    partial.rename(folder)


def check_architecture(folder: Path) -> None:
    """Every library under a folder is an aarch64 ELF file.

    Raises:
        StableDeviceError: one is for another CPU; it is named.
    """
    for library in sorted(folder.rglob("*.so*")):
        with library.open("rb") as file:
            header = file.read(20)
        machine = int.from_bytes(header[18:20], "little") if header[:4] == b"\x7fELF" else None
        if machine != _AARCH64:
            raise StableDeviceError(
                f"{library.relative_to(folder)} is not an aarch64 library (ELF machine {machine}, expected {_AARCH64})",
                hint=f"rm -r {folder.parent} and then: edgepack emulator install",
            )


def _empty(folder: Path) -> Path:
    """A fresh folder beside the one to be made."""
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def _run(arguments: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=STEP_TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise TransientDeviceError(
            f"{what} took over {STEP_TIMEOUT_S:.0f} s", hint="run it again: it goes on where it was"
        ) from err
    if done.returncode:
        said = programs.last_line(done.stderr) if done.stderr.strip() else programs.last_line(done.stdout)
        raise TransientDeviceError(
            f"{what} failed: {said}", hint="check the network and the disk, then: edgepack emulator install"
        )
