"""Tasks for the tests of executors: workers import them from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from edgepack.errors import DataError


def who(*_: object) -> int:
    """The process that works."""
    return os.getpid()


def nap(seconds: float, value: int) -> tuple[int, float, float]:
    """The value, and from when to when it took on the machine's clock."""
    start = time.monotonic()
    time.sleep(seconds)
    return value, start, time.monotonic()


def decomposed(seed: int, side: int = 301) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Functions whose last bits depend on the threads of BLAS."""
    from scipy.linalg import eigh

    random = np.random.default_rng(seed)
    matrix = random.standard_normal((side, side + 77))
    values, vectors = eigh(matrix @ matrix.T, driver="evd")
    single = matrix.astype(np.float32)
    return values, np.linalg.qr(matrix.T)[0] + vectors[0, 0], single @ single.T


def blas_threads(*_: object) -> set[int]:
    """Threads of every BLAS that is loaded."""
    import scipy.linalg  # noqa: F401

    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def scaled(matrix: np.ndarray, factor: float) -> float:
    return float(matrix.sum()) * factor


def refuse(folder: str, index: int) -> int:
    """The first one fails, the others leave a trace."""
    if index == 0:
        raise DataError("layer fc1: NaN flows", hint="look for an overflow")
    (Path(folder) / str(index)).touch()
    time.sleep(0.2)
    return index


def die_unless(pid: int, index: int) -> int:
    """Dies in every process but one."""
    if os.getpid() != pid and index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return index


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sign_in(folder: str, index: int) -> int:
    """Leaves its process id, then takes its time."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(30)
    return index


def decomposed_behind(gate: str, seed: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`decomposed`; all seeds but 0 wait for a file, a minute at most, so that who has them stays at work."""
    for _ in range(6000):
        if seed == 0 or Path(gate).exists():
            break
        time.sleep(0.01)
    return decomposed(seed, side)
