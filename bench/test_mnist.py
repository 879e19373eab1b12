"""The MNIST MLP at a drop of at most 0.3 points: how much smaller and faster the pack is than its dense baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import measure_mnist
import pytest
from block_speed import speedup
from pytest_benchmark.fixture import BenchmarkFixture

from edgepack.backends.registry import FORMATS
from edgepack.backends.runtime import load
from edgepack.data import example
from edgepack.model.scheme import Format
from edgepack.units import ratio, size

Row = Mapping[str, Any]
MOST_PARAMETERS = 0.12
LEAST_SHRINK_FP32, LEAST_SHRINK_INT8 = 25.0, 6.0


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mnist") / "pack"


@pytest.fixture(scope="session")
def rows(pack: Path) -> dict[tuple[str, str], Row]:
    return {(row["format"], row["variant"]): row for row in measure_mnist.measure_pack(pack)["rows"]}


@pytest.mark.parametrize("fmt", FORMATS)
def test_pack_against_its_baselines(
    benchmark: BenchmarkFixture,
    rows: dict[tuple[str, str], Row],
    pack: Path,
    note: Callable[[str], None],
    fmt: Format,
) -> None:
    packed, fp32, int8 = (rows[fmt, name] for name in ("edgepack", "dense-fp32", "dense-int8"))
    model = load(pack / f"model.{fmt}", fmt, exact=False)
    feed = example(None, model.inputs, 0)
    benchmark.group = "mnist-mlp pack"
    benchmark.extra_info.update(packed)
    benchmark(model.run, feed)

    against = {"fp32": speedup(packed, fp32), "int8": speedup(packed, int8)}
    for name, found in against.items():
        benchmark.extra_info |= {f"speedup_vs_dense_{name}": found.speedup, f"shrink_vs_dense_{name}": found.shrink}
    vs = ", ".join(f"{ratio(found)} and {found.shrink:.1f}× smaller than {name}" for name, found in against.items())
    note(
        f"mnist {fmt:6} {packed['form']:18} {size(packed['size_bytes']):>8}, {packed['parameters_share']:.1%} of the"
        f" weights, drop {packed['test_drop']:+.2f} on the test, {packed['validation_drop']:+.2f} on validation, {vs}"
    )
    assert packed["validation_drop"] <= measure_mnist.MAX_DROP
    assert packed["parameters_share"] <= MOST_PARAMETERS
    assert against["fp32"].shrink >= LEAST_SHRINK_FP32
    assert against["int8"].shrink >= LEAST_SHRINK_INT8
    assert {found.verdict for found in against.values()} == {"faster"}
