"""`edgepack doctor`: what is installed here, and the command that installs what is missing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from edgepack.emulator import programs
from edgepack.emulator.install import ARCHITECTURES, missing
from edgepack.workspace import newest_tested


@dataclass(frozen=True)
class Finding:
    """One tool: its version or path where it was found, else the command that installs it.

    Attributes:
        lacks: what of a tool with several parts is missing.
        tested: the newest version that the tests ran on, of a runtime that is newer here.
    """

    name: str
    purpose: str
    found: str | None
    install: str
    lacks: str | None = None
    tested: str | None = None


PACKAGES = (
    ("onnxruntime", "runs .onnx files", "pip install onnxruntime"),
    ("onnx-ir", "reads and writes .onnx files", "pip install onnx-ir"),
    ("torch", "opens torch recipes and .pt2 files", "pip install 'edgepack[torch]'"),
    ("onnxscript", "exports torch models to ONNX", "pip install 'edgepack[torch]'"),
    ("ai-edge-litert", "runs .tflite files", "pip install 'edgepack[tflite]'"),
    ("litert-torch", "writes .tflite files", "pip install 'edgepack[tflite]'"),
    ("litert-quantizer", "writes int8 .tflite files", "pip install 'edgepack[tflite]'"),
    ("pnnx", "turns .onnx sources into .tflite", "pip install 'edgepack[tflite]'"),
    ("scikit-learn", "finds codebooks for --method kmeans", "pip install 'edgepack[methods]'"),
    ("pillow", "writes images for --method jpeg", "pip install 'edgepack[methods]'"),
)

PROGRAMS = (
    ("ssh", "reaches devices over SSH", "apt-get install openssh-client"),
    ("adb", "reaches Android devices", "apt-get install adb"),
)

EMULATOR_PROGRAMS = (
    ("cc", "compiles the emulator's cache model"),
    ("debootstrap", "fetches the system of emulated Arm targets"),
)


def examine() -> list[Finding]:
    """Look for every package and program that edgepack can use."""
    findings = [_package(name, purpose, install) for name, purpose, install in PACKAGES]
    findings += [Finding(name, purpose, shutil.which(name), install) for name, purpose, install in PROGRAMS]
    findings += [_emulator(arch) for arch in ARCHITECTURES]
    return findings + [
        Finding(name, purpose, programs.find(name), programs.command(name)) for name, purpose in EMULATOR_PROGRAMS
    ]


def _package(name: str, purpose: str, install: str) -> Finding:
    found = _version(name)
    tested = None if found is None else newest_tested(name, found)
    return Finding(name, purpose, found, install, tested=tested)


def _emulator(arch: str) -> Finding:
    lacks = missing(arch)
    found = None if lacks else programs.find(f"qemu-{arch}")
    purpose = f"counts what {arch} targets execute and fetch"
    return Finding(f"emulator {arch}", purpose, found, f"edgepack emulator install --arch {arch}", lacks)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
