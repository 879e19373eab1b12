"""`edgepack emulator install`: everything that emulation needs, tried out at the end."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from edgepack.emulator import programs, sysroot
from edgepack.emulator.guest import guest
from edgepack.emulator.plugin import plugin_file
from edgepack.errors import StableDeviceError
from edgepack.targets.file import get_target
from edgepack.targets.target import HOST, Target
from edgepack.workspace import Progress, silent

ARCHITECTURES = ("aarch64", "x86_64")
_TRIED_ON = {"aarch64": "rpi4", "x86_64": HOST}
_TRY = "import onnxruntime, ai_edge_litert.interpreter; print(onnxruntime.__version__)"
TRY_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Installed:
    """What `install` left: where QEMU, the plugin and (aarch64) the root folder are, and the runtime that answered."""

    arch: str
    qemu: str
    plugin: str
    root: str | None
    onnxruntime: str


def install(arch: str, progress: Progress = silent) -> Installed:
    """Installs the emulator for one architecture; what is there already stays.

    Args:
        arch: of `ARCHITECTURES`.
        progress: told of every step.

    Raises:
        StableDeviceError: something cannot be installed here, or does not run once it is.
        TransientDeviceError: the network failed; run it again.
        OutputError: the cache folder cannot be written.
    """
    qemu_name = f"qemu-{arch}"
    own_system = arch == "aarch64"
    progress("emulator: programs", 0, 5)
    programs.install([qemu_name, "cc", *(["debootstrap", "dpkg-deb"] if own_system and not sysroot.is_ready() else [])])
    if own_system:
        sysroot.install_sysroot(progress)
    progress("emulator: plugin", 4, 5)
    qemu = programs.require(qemu_name)
    plugin = plugin_file(qemu)
    version = _try(get_target(_TRIED_ON[arch]))
    progress("emulator: plugin", 5, 5)
    return Installed(arch, qemu, str(plugin), str(sysroot.root_folder()) if own_system else None, version)


def missing(arch: str) -> str | None:
    """What of the emulator is missing, None where all is there."""
    absent = [program for program in (f"qemu-{arch}", "cc") if programs.find(program) is None]
    if arch == "aarch64" and not sysroot.is_ready():
        absent.append("the aarch64 system")
    return ", ".join(absent) or None


def _try(target: Target) -> str:
    """Imports both runtimes on the emulated target; the version of onnxruntime."""
    found = guest(target)
    done = subprocess.run(
        [found.qemu, *found.options, found.python, "-c", _TRY],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=found.environment,
        timeout=TRY_TIMEOUT_S,
    )
    if done.returncode:
        raise StableDeviceError(
            f"the emulated {target.name} cannot import the runtimes: {programs.last_line(done.stderr)}",
            hint="remove the folder emulator in edgepack's cache and install it again",
        )
    return done.stdout.decode().strip()
