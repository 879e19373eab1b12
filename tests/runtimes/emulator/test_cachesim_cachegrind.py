"""The plugin against valgrind's cachegrind, another cache model under another translator, on the same program."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.runtimes.emulator.cache_model import Geometry
from tests.runtimes.emulator.guest_runs import Emulator

pytestmark = pytest.mark.system
TOLERANCE = 0.02
L1 = Geometry(32768, 4, 64)
SMALL_LAST, LARGE_LAST = Geometry(1 << 18, 16, 64), Geometry(1 << 23, 16, 64)
SHAPES = [(512, 512, 4), (1500, 700, 2)]


def cachegrind(guest: Sequence[str | Path], folder: Path, last: Geometry) -> dict[str, int]:
    """Totals by the plugin's names. The last level counts misses of all kinds."""
    out = folder / "cachegrind.out"
    caches = {"I1": L1, "D1": L1, "LL": last}
    options = [f"--{name}={cache.size},{cache.ways},{cache.line}" for name, cache in caches.items()]
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=yes", *options, f"--cachegrind-out-file={out}"]
    done = subprocess.run([*command, *map(str, guest)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    names, totals = (re.search(rf"^{key}: (.*)$", text, re.M) for key in ("events", "summary"))
    assert names is not None
    assert totals is not None
    found = dict(zip(names[1].split(), map(int, totals[1].split()), strict=True))
    return {
        "instructions": found["Ir"],
        "accesses": found["Dr"] + found["Dw"],
        "l1d": found["D1mr"] + found["D1mw"],
        "l2": found["ILmr"] + found["DLmr"] + found["DLmw"],
    }


@pytest.mark.parametrize("last", [SMALL_LAST, LARGE_LAST], ids=["streams", "fits"])
@pytest.mark.parametrize(("rows", "columns", "repeats"), SHAPES)
def test_a_matrix_vector_product_counts_as_in_cachegrind(
    emulator: Emulator,
    guest: Callable[[str], Path],
    tmp_path: Path,
    rows: int,
    columns: int,
    repeats: int,
    last: Geometry,
) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    command = [guest("matvec"), str(rows), str(columns), str(repeats)]
    expected = cachegrind(command, tmp_path, last)
    found = emulator.count(command, tmp_path, caches=(L1, L1, last))[-1]
    steps = rows * columns * repeats
    assert expected["accesses"] > 2 * steps
    assert expected["l1d"] > steps // 16
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=TOLERANCE), name
