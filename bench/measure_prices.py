"""What plans are predicted to take on a board against counts of their whole files: schemes, pairs, mixtures of two.

`bench/measure_prices.py --target rpi4` counts in QEMU, prints a table and keeps it under bench/results/prices/.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import measure_layer
from counted_time import counted_s
from figures_file import store

from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.schemes import SCHEMES
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.data import example
from edgepack.emulator.counts import middle
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import DENSE, low_rank
from edgepack.pipeline.datasets import load_data
from edgepack.pipeline.latency_estimates import LatencyEstimates, make_estimates
from edgepack.pipeline.pareto import LayerPlans
from edgepack.quantize.grids import WEIGHT_MAX
from edgepack.sources import open_model
from edgepack.targets.file import get_target
from edgepack.targets.target import Target
from edgepack.workspace import Cache, Workspace

MODELS = Path(__file__).parent / "models"
CASES = {
    "MNIST MLP": (f"{MODELS / 'mnist_mlp.py'}:recipe", 32),
    "MNIST CNN": (f"{MODELS / 'mnist_cnn.py'}:recipe", 24),
    "1024×1024 layer": (f"{MODELS / 'layer_4096.py'}:recipe_1024", 128),
}
SEED = 0


@dataclass(frozen=True)
class Planned:
    """One file, and the time that its plan was predicted to take."""

    variant: Variant
    predicted_s: float


def measure(target: Target, names: Sequence[str]) -> dict[str, Any]:
    """A row per file, and the median and 90th percentile of |predicted / counted - 1|."""
    rows: list[dict[str, Any]] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
            files = list(_files(*CASES[name], target, Path(folder)))
            result = emulate_variants([file.variant for file in files], None, target=target, model=name)
            for file, found in zip(files, result.variants, strict=True):
                seconds = counted_s(found, target)
                rows.append(
                    {
                        "model": name,
                        "format": found.format,
                        "plan": found.name,
                        "size_bytes": found.size_bytes,
                        "instructions": round(middle(found.rounds).instructions),
                        "counted_s": seconds,
                        "predicted_s": file.predicted_s,
                        "off": file.predicted_s / seconds - 1,
                    }
                )
    off = sorted(abs(row["off"]) for row in rows)
    return {"target": target.name, "rows": rows, "median": median(off), "p90": off[int(0.9 * (len(off) - 1))]}


def _files(model: str, rank: int, target: Target, work: Path) -> Iterator[Planned]:
    workspace = Workspace(Cache(), work, SEED)
    opened = open_model(model, work, FORMATS)
    data = load_data(None, opened, model, SEED)
    plans, factors = measure_layer.factored(opened, data, workspace, rank)
    estimates = make_estimates(target, opened, data.validation, FORMATS, workspace)
    for fmt in FORMATS:
        with backend(fmt).engine() as engine:
            given = WriterData(data.calibration, example(data.validation, opened.inputs, SEED), WEIGHT_MAX)
            files = backend(fmt).open(opened, given, engine, workspace)
            dense = work / f"dense.{fmt}"
            files.write_dense(dense)
            beside_s = estimates.call_s(fmt) + estimates.convolutions_s(fmt, backend(fmt).convolutions(dense))
            yield from _of_format(files, plans, factors, estimates, beside_s, work)


def _of_format(
    files: Writer,
    plans: LayerPlans,
    factors: Mapping[str, Replacement],
    estimates: LatencyEstimates,
    beside_s: float,
    work: Path,
) -> Iterator[Planned]:
    structures = {layer.layer: low_rank(factors[layer.layer].rank) for layer in plans if layer.layer in factors}
    for number, schemes in enumerate(_mixtures(files.fmt, len(plans))):
        for kind, own in (("dense", {}), ("pairs", factors)):
            found = [
                estimates.estimate(plan.layer, structures[plan.layer] if own and plan.layer in own else DENSE, scheme)
                for plan, scheme in zip(plans, schemes, strict=True)
            ]
            known = [one.latency_s for one in found if one is not None]
            if len(known) < len(found):
                continue
            path = work / f"{number}.{kind}.{files.fmt}"
            # Weights of other operators are decoded at load, where the format knows that: they are priced in float32.
            whole = FileScheme(schemes[0], files.rest(schemes[0])[-1].others)
            others = {p.layer: scheme for p, scheme in zip(plans, schemes, strict=True) if scheme != schemes[0]}
            files.write(files.takes(own), whole, path, others)
            title = " then ".join(dict.fromkeys(map(str, schemes)))
            yield Planned(Variant(f"{kind} {title}", files.fmt, path), beside_s + sum(known))


def _mixtures(fmt: Format, layers: int) -> Iterator[tuple[Scheme, ...]]:
    """Every scheme by itself, and each with the last layer in the next one."""
    single = [scheme for scheme in SCHEMES[fmt] if scheme.scope == "layer"]
    for scheme in SCHEMES[fmt]:
        yield (scheme,) * layers
    for first, last in zip(single, (*single[1:], single[0]), strict=True) if layers > 1 else ():
        yield (*(first,) * (layers - 1), last)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, count, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--only", action="append", choices=list(CASES), help="only this model; may be repeated")
    options = parser.parse_args(arguments)
    figures = measure(get_target(options.target), options.only or list(CASES))
    for row in figures["rows"]:
        print(
            f"{row['model']:16} {row['format']:7} {row['plan']:44} {row['instructions']:>11,} instructions, "
            f"counted {row['counted_s'] * 1e6:9.1f} µs, predicted {row['predicted_s'] * 1e6:9.1f} µs {row['off']:+7.1%}"
        )
    for name in options.only or list(CASES):
        off = median(abs(row["off"]) for row in figures["rows"] if row["model"] == name)
        print(f"{name}: median {off:.1%} off")
    print(f"{len(figures['rows'])} files: median {figures['median']:.1%} off, 90 % within {figures['p90']:.1%}")
    store(f"prices/{options.target}", figures)


if __name__ == "__main__":
    main()
