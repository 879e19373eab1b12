"""The plugin and its guests, compiled once; tests that need what is not installed are skipped."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtimes.emulator.guest_runs import Emulator

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "runtimes" / "emulator" / "cachesim.c"
PLUGIN_FLAGS = ("-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden")


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`compiled(source, *flags)` gives the program or library."""
    cc, folder = need("cc"), tmp_path_factory.mktemp("compiled")
    done: dict[tuple[Path, tuple[str, ...]], Path] = {}

    def compiled(source: Path, *flags: str) -> Path:
        if (source, flags) not in done:
            out = folder / f"{source.stem}-{len(done)}"
            subprocess.run([cc, *flags, "-o", str(out), str(source)], check=True, timeout=120)
            done[source, flags] = out
        return done[source, flags]

    return compiled


@pytest.fixture(scope="session")
def guest(compiled: Callable[..., Path]) -> Callable[[str], Path]:
    """`guest(name)` gives a static x86-64 program. Its loops stay scalar: QEMU counts a vector access as several."""

    def guest(name: str) -> Path:
        if subprocess.run([need("cc"), "-dumpmachine"], capture_output=True, text=True).stdout[:6] != "x86_64":
            pytest.skip("the compiler does not make x86-64 programs")
        flags = ("-std=gnu11", "-O1", "-fno-tree-vectorize", "-Wall", "-Wextra", "-Werror", "-static", "-pthread")
        return compiled(HERE / "guests" / f"{name}.c", *flags)

    return guest


@pytest.fixture(scope="session")
def emulator(compiled: Callable[..., Path]) -> Emulator:
    return Emulator(need("qemu-x86_64"), compiled(SOURCE, *PLUGIN_FLAGS))


@pytest.fixture(scope="session")
def replay(compiled: Callable[..., Path]) -> Path:
    """The plugin as a program that reads a trace."""
    return compiled(HERE / "replay.c", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE.parent}")
