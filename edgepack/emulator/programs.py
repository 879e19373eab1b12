"""The programs of the system that the emulator needs: found, or installed from Debian where we may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgepack.errors import StableDeviceError, TransientDeviceError

_PACKAGES = {
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
    "cc": "gcc libc6-dev",
    "debootstrap": "debootstrap debian-archive-keyring gpgv",
    "dpkg-deb": "dpkg",
}
"""Debian packages by program."""

_EVERY_USER = ("/usr/local/sbin", "/usr/sbin", "/sbin")
APT_TIMEOUT_S = 900.0


def find(program: str) -> str | None:
    """Path of a program, also where only root's PATH has it; None where it is missing."""
    wanted = os.environ.get("CC", "cc") if program == "cc" else program
    return shutil.which(wanted, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_EVERY_USER]))


def require(program: str) -> str:
    """Path of a program.

    Raises:
        StableDeviceError: it is missing; the hint installs it.
    """
    path = find(program)
    if path is None:
        raise StableDeviceError(f"{program} is not installed", hint=f"edgepack emulator install, or {command(program)}")
    return path


def command(*programs: str) -> str:
    """What to type to install programs."""
    return f"apt-get install {' '.join(_PACKAGES[program] for program in programs)}"


def install(programs: Sequence[str]) -> None:
    """Installs the missing ones of these programs with apt-get, as root.

    Raises:
        StableDeviceError: not root, no apt-get, or it refused.
        TransientDeviceError: it took too long.
    """
    missing = [program for program in programs if find(program) is None]
    if not missing:
        return
    names = ", ".join(missing)
    if not Path("/usr/bin/apt-get").exists() or os.geteuid() != 0:
        raise StableDeviceError(
            f"{names} not installed, and only root can install from Debian's packages here",
            hint=f"sudo {command(*missing)}",
        )
    packages = [package for program in missing for package in _PACKAGES[program].split()]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        try:
            done = subprocess.run(
                ["/usr/bin/apt-get", "-q", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment,
                timeout=APT_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as err:
            raise TransientDeviceError(
                f"apt-get {arguments[0]} took over {APT_TIMEOUT_S:.0f} s", hint="check the network and try again"
            ) from err
        if done.returncode and arguments[0] == "install":
            raise StableDeviceError(
                f"apt-get could not install {', '.join(packages)}: {last_line(done.stderr)}",
                hint=f"check the network, then: {command(*missing)}",
            )


def version(program: str) -> str:
    """The first line of what a program says of its version, empty where it says nothing."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.partition("\n")[0][:200]


def last_line(output: bytes) -> str:
    """The last line that says something, for a message."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
