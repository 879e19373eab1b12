"""Arguments that make no sense end QEMU with a message, before the guest starts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtimes.emulator.guest_runs import Emulator

pytestmark = pytest.mark.system

L1 = ["l1i=32768:4:64", "l1d=32768:4:64"]
CASES = {
    "cachesim: out= is missing": [*L1],
    "cachesim: a cache is missing: l1d=": ["out=OUT", "l1i=32768:4:64"],
    "cachesim: a cache is missing: l2=": ["out=OUT", *L1, "l3=1048576:16:64"],
    "cachesim: unknown argument: l5=1:1:64": ["out=OUT", *L1, "l5=1:1:64"],
    "cachesim: unknown argument: start=now": ["out=OUT", *L1, "start=now"],
    "cachesim: given twice: l1d=": ["out=OUT", *L1, "l1d=32768:4:64"],
    "cachesim: expected SIZE:WAYS:LINE[:shared]: 32768:4": ["out=OUT", *L1, "l2=32768:4"],
    "cachesim: expected SIZE:WAYS:LINE[:shared]: big": ["out=OUT", *L1, "l2=big"],
    "cachesim: expected SIZE:WAYS:LINE[:shared]: 32768:4:64x": ["out=OUT", *L1, "l2=32768:4:64x"],
    "cachesim: expected SIZE:WAYS:LINE[:shared]: 32768:4:64:mine": ["out=OUT", *L1, "l2=32768:4:64:mine"],
    "cachesim: expected SIZE:WAYS:LINE[:shared]: -32768:4:64": ["out=OUT", *L1, "l2=-32768:4:64"],
    "cachesim: a cache of the first level is private: 64:1:64:shared": ["out=OUT", "l1i=64:1:64:shared"],
    "cachesim: lines shorter than those of a level before: l2=": ["out=OUT", *L1, "l2=1048576:16:32"],
} | {
    f"cachesim: no whole number of sets, or a line that is no power of two from 16 to 4096: {text}": [
        "out=OUT",
        *L1,
        f"l2={text}",
    ]
    for text in ("32768:3:64", "32768:4:60", "32768:4:8", "32768:0:64", "0:4:64", "32768:4294967300:64")
}


@pytest.mark.parametrize("message", list(CASES))
def test_arguments(emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path, message: str) -> None:
    arguments = [argument.replace("OUT", str(tmp_path / "out")) for argument in CASES[message]]
    done = emulator.start([guest("walk"), "10"], *arguments)
    assert (done.returncode, done.stderr.strip()) == (1, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out", "trace"])
def test_a_file_that_cannot_be_written(
    emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "none" / "file"
    files = {"out": tmp_path / "out", "trace": tmp_path / "trace", name: path}
    done = emulator.start([guest("walk"), "10"], *L1, *(f"{key}={value}" for key, value in files.items()))
    assert (done.returncode, done.stderr.strip()) == (1, f"cachesim: {path}: No such file or directory")


def test_a_full_disk(emulator: Emulator, guest: Callable[[str], Path]) -> None:
    done = emulator.start([guest("walk"), "10"], *L1, "out=/dev/full")
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "cachesim: cannot write the counters: No space left on device",
    )


def test_an_architecture_without_a_known_mark(emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path) -> None:
    other = shutil.which("qemu-riscv64")
    if other is None:
        pytest.skip("qemu-riscv64 is not installed")
    done = Emulator(other, emulator.plugin).start([guest("walk"), "10"], *L1, f"out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.strip() == "cachesim: no system call number of prctl known for: riscv64"


def test_a_cache_too_large_for_the_memory(emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path) -> None:
    command = emulator.command([guest("walk"), "10"], *L1, f"l2={1 << 41}:16:64:shared", f"out={tmp_path / 'out'}")
    limited = ["sh", "-c", 'ulimit -v 67108864; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (1, "cachesim: out of memory: l2=")
