"""One layer of 4096×4096, batch 1, one thread: dense and as a pair of rank 256, in every scheme of both runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latencies import measure_files

from edgepack import verify
from edgepack.backends.schemes import SCHEMES
from edgepack.bench.schedule import Schedule
from edgepack.bench.session import Variant
from edgepack.cache import Cache, digest
from edgepack.data import example
from edgepack.errors import ProofError
from edgepack.factorize import factorizer
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import DENSE, low_rank
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.guarding import Data, load_data
from edgepack.pipeline.ladder import LayerPlans
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.pipeline.opened import Opened, open_model
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.statistics import decompose
from edgepack.pipeline.tflite_files import TfliteFiles
from edgepack.plan.candidates import break_even_rank
from edgepack.progress import silent
from edgepack.quantize.gauge import balanced
from edgepack.targets import HOST, get_target
from edgepack.types import LayerPlan, Spectrum

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
    cache = Cache()
    opened = open_model(model, work)
    data = load_data(None, opened, model, SEED)
    plan, factors = _factored(opened, data, cache, rank)
    # The grid that is safe on this machine's instruction set; its size does not change the kernel.
    largest = BuildOptions(model=model, target=get_target(HOST)).weight_grids[-1]
    onnx = OnnxFiles(opened.model, data.calibration, largest=largest)
    with TfliteFiles(cache, work) as tflite:
        tflite.open(opened, data.calibration, example(data.guard, opened.inputs, SEED))
        return [file for files in (onnx, tflite) for file in _written(files, plan, factors, work)]


def _factored(opened: Opened, data: Data, cache: Cache, rank: int) -> tuple[LayerPlans, dict[str, Replacement]]:
    key = digest(opened.sha256, data.digest())
    spectra, _ = decompose(opened.model, views_of(opened.layers), METHOD, data.calibration, key, cache, silent)
    algorithm = factorizer(METHOD)
    plans = tuple(_plan(layer, spectrum, rank) for layer, spectrum in zip(opened.layers, spectra, strict=True))
    factors = {
        view.name: balanced(algorithm.factors(view, spectrum, rank), spectrum, seed=SEED)
        for view, spectrum, plan in zip(views_of(opened.layers), spectra, plans, strict=True)
        if plan.rank is not None
    }
    return plans, factors


def _plan(layer: Layer, spectrum: Spectrum, rank: int) -> LayerPlan:
    sides = layer.out_features, layer.in_features
    limit = break_even_rank(*sides)
    taken = rank if rank <= limit else None
    lost = 0.0 if taken is None else float(spectrum.lost_share()[taken])
    structure = DENSE if taken is None else low_rank(taken)
    dense, ops = (kind_of(layer).ops(layer, each, 1) for each in (DENSE, structure))
    return LayerPlan(layer.name, dense, structure, ops, limit, lost, "one rank for all layers")


def _written(
    files: ModelFiles, plan: LayerPlans, factors: Mapping[str, Replacement], work: Path
) -> Iterator[LayerFile]:
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
