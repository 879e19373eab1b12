"""The search over plans, with files that only note what was written and a prover that says what each one loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepack.cache import Cache
from edgepack.metrics import Drop
from edgepack.pipeline.attempt import Attempt
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.search import Search
from edgepack.progress import silent
from edgepack.targets import get_target
from edgepack.types import Contents, Factors, LayerPlan, LinearLayer, Proof, Spectrum

LAYER = LinearLayer("fc", np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), None, "Gemm")
SPECTRUM = Spectrum(np.eye(64, dtype=np.float32), np.geomspace(1, 1e-4, 64))


def drop(value: float) -> Drop:
    return Drop("agreement", 100.0, 100.0 - value, 0.0, 256)


class Files:
    """Writes the rank into the file instead of a model."""

    fmt = "onnx"
    calibrated = True
    fp32_forms = ("fp32",)
    probe_form = "int8-dynamic"

    def forms(self, preferred: Sequence[str]) -> tuple[str, ...]:
        return ("int8-dynamic",)

    def write(self, factors: Mapping[str, Factors], form: str, out: Path) -> None:
        out.write_text(f"{form} {factors['fc'].rank if factors else 'dense'}")

    def write_dense(self, out: Path) -> None: ...
    def write_baseline(self, form: str, out: Path) -> str:
        return ""

    def read(self, path: Path) -> Contents:
        return Contents((), ())

    read_optimized = read


class Prover:
    """Answers with drops by the content of the file: for probes, and for the attempts that follow."""

    guard = SimpleNamespace(metric="agreement", guarded=True)

    def __init__(self, probed: Mapping[str, float], attempted: Mapping[str, float]) -> None:
        self.probed, self.attempted = probed, attempted

    def drop_of(self, path: Path, fmt: str) -> Drop:
        return drop(self.probed[path.read_text()])

    def attempt(
        self, files: Files, plan: tuple[LayerPlan, ...], factors: Mapping[str, Factors], form: str, out: Path
    ) -> Attempt:
        files.write(factors, form, out)
        passed = (Proof("outputs", True, ""),)
        return Attempt("onnx", form, out, plan, passed, drop(self.attempted[out.read_text()]))


def searched(tmp_path: Path, prover: Prover, **options: Any) -> Attempt:
    chosen = BuildOptions("model.onnx", get_target("rpi4"), formats=("onnx",), **options)
    cache = Cache(tmp_path / "cache")
    files: Any = {"onnx": Files()}
    search = Search(chosen, [LAYER], [SPECTRUM], "svd", files, prover, cache, "key", tmp_path, silent, largest=127)  # type: ignore[arg-type]
    return search.run().attempts["onnx"]


RANKS = ("8", "16", "24", "dense")


def test_smallest_rank_within_the_budget(tmp_path: Path) -> None:
    drops = {f"int8-dynamic {rank}": value for rank, value in zip(RANKS, (3.0, 0.4, 0.1, 0.0), strict=True)}
    found = searched(tmp_path, Prover(drops, drops), max_drop=0.5)
    assert found.path.read_text() == "int8-dynamic 16"
    assert found.layers[0].rank == 16


@pytest.mark.parametrize(("best", "rank"), [("16", 16), ("dense", None)])
def test_closest_attempt_keeps_its_own_file(tmp_path: Path, best: str, rank: int | None) -> None:
    """Later plans are written in the same form: they must not take the place of the file that is kept."""
    probed = {f"int8-dynamic {rank}": value for rank, value in zip(RANKS, (0.4, 0.0, 0.0, 0.0), strict=True)}
    attempted = {f"int8-dynamic {rank}": 2.0 for rank in RANKS} | {f"int8-dynamic {best}": 1.0}
    found = searched(tmp_path, Prover(probed, attempted), max_drop=0.3, precision="int8")
    assert found.lost == 1.0
    assert found.layers[0].rank == rank
    assert found.path.read_text() == f"int8-dynamic {best}"


def test_dense_says_that_no_rank_met_the_budget(tmp_path: Path) -> None:
    drops = {f"int8-dynamic {rank}": value for rank, value in zip(RANKS, (9.0, 8.0, 7.0, 0.0), strict=True)}
    found = searched(tmp_path, Prover(drops, drops), max_drop=0.5)
    assert found.layers[0].rank is None
    assert found.layers[0].reason == "no rank met the budget"


def test_fp32_only_where_int8_loses_too_much(tmp_path: Path) -> None:
    drops = {f"int8-dynamic {rank}": 5.0 for rank in RANKS}
    drops |= {f"fp32 {rank}": value for rank, value in zip(RANKS, (3.0, 0.4, 0.1, 0.0), strict=True)}
    found = searched(tmp_path, Prover(drops, drops), max_drop=0.5)
    assert (found.form, found.path.read_text()) == ("fp32", "fp32 16")
    kept = searched(tmp_path, Prover(drops, drops), max_drop=0.5, precision="int8")
    assert kept.form == "int8-dynamic"
    assert not kept.within(0.5)


def test_layers_that_the_data_never_reach_stay_dense(tmp_path: Path) -> None:
    """An auto search must not factor what no guard sees, however little the metric says it costs."""
    other = replace(LAYER, name="unseen")
    chosen = BuildOptions("model.onnx", get_target("rpi4"), formats=("onnx",), max_drop=0.5)
    files: Any = {"onnx": Files()}
    prover: Any = Prover({f"int8-dynamic {rank}": 0.0 for rank in RANKS}, {"int8-dynamic 8": 0.0})
    search = Search(
        *(chosen, [LAYER, other], [SPECTRUM, SPECTRUM], "svd", files, prover, Cache(tmp_path / "cache"), "key"),
        *(tmp_path, silent),
        largest=127,
        unseen=["unseen"],
    )
    plans = search.run().attempts["onnx"].layers
    assert [plan.rank for plan in plans] == [8, None]
    assert plans[1].reason == "the data never reach it"
