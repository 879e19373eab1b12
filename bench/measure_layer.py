"""One layer of 4096×4096, batch 1, one thread: dense and as a pair of rank 256, in every scheme of both runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latencies import measure_files

from edgepack import BuildOptions, load_target
from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.schemes import SCHEMES
from edgepack.benchmark.schedule import Schedule
from edgepack.benchmark.session import Variant
from edgepack.data import example
from edgepack.errors import ProofError
from edgepack.methods.registry import factorizer
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import DENSE, low_rank
from edgepack.model.types import LayerPlan, Spectrum
from edgepack.pipeline import verify
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.datasets import Data, load_data
from edgepack.pipeline.decompositions import decompose
from edgepack.pipeline.pareto import LayerPlans
from edgepack.plan.candidates import break_even_rank
from edgepack.quantize.rotation import balanced
from edgepack.sources import open_model
from edgepack.targets.target import HOST
from edgepack.workspace import Cache, Workspace, digest

MODEL = f"{Path(__file__).parent / 'models' / 'layer_4096.py'}:recipe"
RANK = 256
METHOD = "whitened"
SEED = 0

SCHEDULE = Schedule(
    processes=5,
    warmup_runs=5,
    warmup_s=0.2,
    runs=50,
    seconds=0.3,
    cold_processes=1,
    cold_runs=1,
    memory_processes=1,
    counter_runs=10,
    retries=1,
)
QUICK = Schedule(
    processes=4,
    warmup_runs=3,
    warmup_s=0.05,
    runs=20,
    seconds=0.1,
    cold_processes=1,
    cold_runs=1,
    memory_processes=1,
    counter_runs=10,
    retries=0,
)


@dataclass(frozen=True)
class LayerFile:
    """A model in one file; `layer` is "dense" or "pair"."""

    layer: str
    scheme: Scheme
    variant: Variant


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Write every file and measure them."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        return measure_files_of(model_files(Path(folder)), quick=quick)


def measure_files_of(files: Sequence[LayerFile], *, quick: bool = False) -> dict[str, Any]:
    """Every file in turns, in fresh processes, in one session; `rows` are in the order of the files."""
    measured = measure_files([file.variant for file in files], QUICK if quick else SCHEDULE, model="layer-4096")
    rows = zip(files, measured.pop("rows"), strict=True)
    return {
        "rank": RANK,
        "quick": quick,
        **measured,
        "rows": [{"layer": file.layer, "form": file.scheme.name, **row} for file, row in rows],
    }


def model_files(work: Path, model: str = MODEL, rank: int = RANK) -> list[LayerFile]:
    """Write a model in every scheme into the folder, dense and factored at one rank where that pays; each pair file
    with the proof that it still is two thin matmuls."""
    workspace = Workspace(Cache(), work, SEED)
    opened = open_model(model, work)
    data = load_data(None, opened, model, SEED)
    plan, factors = factored(opened, data, workspace, rank)
    # The grid that is safe on this machine's instruction set; its size does not change the kernel.
    qmax = BuildOptions(model=model, target=load_target(HOST)).weight_grids[-1]
    written: list[LayerFile] = []
    for fmt in FORMATS:
        with backend(fmt).engine() as engine:
            given = WriterData(data.calibration, example(data.validation, opened.inputs, SEED), qmax)
            written += _written(backend(fmt).open(opened, given, engine, workspace), plan, factors, work)
    return written


def factored(opened: Model, data: Data, workspace: Workspace, rank: int) -> tuple[LayerPlans, dict[str, Replacement]]:
    subject = Subject(opened, data.calibration, digest(opened.sha256, data.digest()))
    spectra, _ = decompose(subject, METHOD, workspace)
    algorithm = factorizer(METHOD)
    plans = tuple(_plan(view, spectrum, rank) for view, spectrum in zip(subject.views, spectra, strict=True))
    factors = {
        view.name: balanced(algorithm.factors(view, spectrum, rank), spectrum, seed=SEED)
        for view, spectrum, plan in zip(subject.views, spectra, plans, strict=True)
        if plan.rank is not None
    }
    return plans, factors


def _plan(layer: View, spectrum: Spectrum, rank: int) -> LayerPlan:
    sides = layer.out_features, layer.in_features
    limit = break_even_rank(*sides)
    structure = low_rank(rank) if rank <= limit else DENSE
    lost = 0.0 if structure.is_dense else float(spectrum.lost_share()[rank])
    dense, ops = (linear_ops(*sides, one, 1) for one in (DENSE, structure))
    return LayerPlan(layer.name, dense, structure, ops, limit, lost, "one rank for all layers")


def _written(files: Writer, plan: LayerPlans, factors: Mapping[str, Replacement], work: Path) -> Iterator[LayerFile]:
    fmt = files.fmt
    for scheme in SCHEMES[fmt]:
        path = work / f"dense.{scheme}.{fmt}"
        files.write_dense(path) if scheme.is_float else files.write_baseline(scheme, path)
        yield LayerFile("dense", scheme, Variant(f"dense-{scheme}", fmt, path))
    for scheme in SCHEMES[fmt]:
        path = work / f"pair.{scheme}.{fmt}"
        written = files.write(factors, FileScheme.of(scheme), path)
        proof = verify.structures_kept(files.read(path), files.read_optimized(path), written, plan)
        if not proof.passed:
            raise ProofError(f"{path.name}: {proof.name}: {proof.detail}")
        yield LayerFile("pair", scheme, Variant(f"pair-{scheme}", fmt, path))
