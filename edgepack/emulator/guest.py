"""How a program is run on an emulated target: QEMU, its CPU model, the root folder, the Python inside."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgepack.emulator import programs, sysroot
from edgepack.emulator.facts import cpu_files, write_facts
from edgepack.errors import StableDeviceError
from edgepack.targets.target import Target
from edgepack.workspace import default_root, digest

_MODELS = {
    "cortex-a53": "cortex-a53",
    "cortex-a57": "cortex-a57",
    "cortex-a72": "cortex-a72",
    "cortex-a76": "cortex-a76",
}
"""QEMU's CPU models by core. A core that it lacks runs as one with the same instructions."""
_NEAREST = {"dotprod": "cortex-a76", "": "cortex-a72"}
# What a target without these instructions must not have; QEMU's own x86 CPU has all of them. Fused multiply-add and AVX
# come with AVX2 in every CPU that has it.
_X86_FLAGS = {"avx": ("avx", "f16c"), "avx2": ("avx2", "fma", "bmi1", "bmi2")}
_X86_IMPLIED = {"avx": ("avx", "avx2")}
_X86_ABSENT = ("avx512f", "avx512-vnni", "avx-vnni", "amx-int8")


@dataclass(frozen=True)
class Guest:
    """The start of a command line that runs Python on the emulated target.

    Attributes:
        qemu: path of QEMU.
        options: of QEMU: CPU model and root folder.
        python: path of the interpreter.
        environment: of the process, whole.
        notes: where the emulated CPU is not the target's.
    """

    qemu: str
    options: tuple[str, ...]
    python: str
    environment: dict[str, str]
    notes: tuple[str, ...]


def guest(target: Target) -> Guest:
    """How to run Python on the emulated target.

    Raises:
        StableDeviceError: QEMU or the root folder is not installed, or nothing emulates the target's architecture.
    """
    # One hash seed: the order of Python's sets would otherwise differ between runs, and with it the counts.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    if target.arch == "aarch64":
        return _aarch64(target, environment)
    if target.arch == "x86_64":
        return _x86(target, environment)
    raise StableDeviceError(
        f"target {target.name} cannot be emulated: there is no runtime for {target.arch}, only for aarch64 and x86_64"
    )


def _aarch64(target: Target, environment: dict[str, str]) -> Guest:
    qemu = programs.require("qemu-aarch64")
    if not sysroot.is_ready():
        raise StableDeviceError(
            "the emulator's aarch64 system is not installed", hint="edgepack emulator install (about a minute)"
        )
    core = target.main_cluster.core
    model = _MODELS.get(core) or _NEAREST["dotprod" if "dotprod" in target.isa else ""]
    notes = () if model == core else (f"QEMU has no {core}: its instructions are run as {model}'s",)
    root = _overlay(target)
    environment = {**environment, "PYTHONPATH": str(sysroot.wheels_folder()), "PYTHONHOME": f"{root}/usr"}
    return Guest(qemu, ("-cpu", model, "-L", str(root)), f"{root}/usr/bin/python3", environment, notes)


def _x86(target: Target, environment: dict[str, str]) -> Guest:
    if platform.machine() != "x86_64":
        raise StableDeviceError(
            f"target {target.name} is emulated with this machine's own Python, and it is {platform.machine()}",
            hint="emulate x86 targets on an x86_64 machine",
        )
    absent = [
        flag
        for name, flags in _X86_FLAGS.items()
        if not any(implying in target.isa for implying in _X86_IMPLIED.get(name, (name,)))
        for flag in flags
    ]
    missing = [name for name in _X86_ABSENT if name in target.isa]
    notes = (f"QEMU has no {', '.join(missing)}: the kernels are those without",) if missing else ()
    model = ",".join(["max", *(f"-{flag}" for flag in absent)])
    if "avx" in absent:  # numpy's OpenBLAS goes by the maker of the CPU, and takes its newest kernels to be there
        environment = {**environment, "OPENBLAS_CORETYPE": "Nehalem"}
    return Guest(programs.require("qemu-x86_64"), ("-cpu", model), sys.executable, environment, notes)


def _overlay(target: Target) -> Path:
    """A root folder of the target's own: the installed one by links, and the files that describe its CPU."""
    root = sysroot.root_folder()
    folder = default_root() / "emulator" / "targets" / digest(str(root), cpu_files(target))[:16]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    for name in sysroot.KEPT:
        (partial / name).symlink_to(root / name, target_is_directory=True)
    write_facts(target, partial)
    try:
        partial.rename(folder)
    except OSError:  # another process was faster, and made the same
        if not folder.is_dir():
            raise
    return folder
