"""One layer of 4096×4096 at rank 256, batch 1, one thread. The ratios come from one session with the files in turns.

pytest-benchmark's own times are of this process, one file after the other: good to look at, not to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import measure_layer
import pytest
from block_speed import speedup
from pytest_benchmark.fixture import BenchmarkFixture

from edgepack.backends.registry import FORMATS
from edgepack.backends.runtime import load
from edgepack.backends.schemes import FP32, SCHEMES, scheme_named
from edgepack.data import example
from edgepack.model.scheme import INT8_BITS, Format, Scheme
from edgepack.units import ratio, seconds

Row = Mapping[str, Any]
CASES = [(layer, scheme) for fmt in FORMATS for layer in ("dense", "pair") for scheme in SCHEMES[fmt]]
# A pair of rank 256 holds an eighth of the dense layer's weights; half of what that promises must arrive.
LEAST_SPEEDUP_INT8, LEAST_SPEEDUP_FP32 = 4.0, 16.0


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[measure_layer.LayerFile]:
    return measure_layer.model_files(tmp_path_factory.mktemp("layer"))


@pytest.fixture(scope="session")
def rows(files: list[measure_layer.LayerFile]) -> dict[tuple[str, Scheme], Row]:
    measured = measure_layer.measure_files_of(files)
    return {(row["layer"], scheme_named(row["format"], row["form"])): row for row in measured["rows"]}


@pytest.mark.parametrize(("layer", "scheme"), CASES, ids=lambda one: getattr(one, "key", one))
def test_one_inference(
    benchmark: BenchmarkFixture,
    files: list[measure_layer.LayerFile],
    rows: dict[tuple[str, Scheme], Row],
    note: Callable[[str], None],
    layer: str,
    scheme: Scheme,
) -> None:
    fmt = scheme.backend
    file = next(f for f in files if (f.layer, f.scheme) == (layer, scheme))
    model = load(file.variant.path, fmt, exact=False)
    feed = example(None, model.inputs, measure_layer.SEED)
    benchmark.group = f"layer 4096×4096, {fmt}"
    benchmark.extra_info.update(rows[layer, scheme])
    benchmark(model.run, feed)

    fp32, int8 = baselines(rows, fmt)
    against = {"fp32": speedup(rows[layer, scheme], fp32), "int8": speedup(rows[layer, scheme], int8)}
    benchmark.extra_info.update({f"speedup_vs_dense_{name}": found.speedup for name, found in against.items()})
    p50 = seconds(median(rows[layer, scheme]["process_medians_s"]))
    vs = ", ".join(f"against dense {name}: {ratio(found)}" for name, found in against.items())
    note(f"layer {fmt:6} {layer:5} {scheme.name:18} {p50:>8}  {vs}")
    if layer == "pair" and not scheme.is_float:
        assert against["int8"].speedup > LEAST_SPEEDUP_INT8
        assert against["fp32"].speedup > LEAST_SPEEDUP_FP32


def baselines(rows: dict[tuple[str, Scheme], Row], fmt: Format) -> tuple[Row, Row]:
    """Dense fp32, and dense int8 in the scheme that is fastest here."""
    dense = {scheme: row for (layer, scheme), row in rows.items() if layer == "dense" and scheme.backend == fmt}
    int8 = [row for scheme, row in dense.items() if scheme.bits == INT8_BITS]
    return dense[FP32[fmt]], min(int8, key=lambda row: median(row["process_medians_s"]))
