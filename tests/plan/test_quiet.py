from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from edgepack.plan.knapsack import no_native_output


@pytest.mark.skipif(os.name != "posix", reason="needs the C library's own buffer")
def test_what_native_code_prints_goes_nowhere_and_all_else_arrives(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    libc.printf(b"before, ")
    with no_native_output():
        libc.printf(b"inside")
        os.write(1, b"inside")
    libc.printf(b"after")
    libc.fflush(None)
    assert capfd.readouterr().out == "before, after"


def test_output_returns_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), no_native_output():
        raise RuntimeError
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"


def test_a_process_without_standard_output() -> None:
    code = "import os; os.close(1)\nfrom edgepack.plan.knapsack import no_native_output\nwith no_native_output(): pass"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
