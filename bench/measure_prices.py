"""What plans are predicted to take on a board against counts of their whole files: schemes, pairs, mixtures of two.

`bench/measure_prices.py --target rpi4` counts in QEMU what is missing, one model after the other, keeps it under
bench/results/prices/, and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import figures_file
import measure_layer
from block_tables import TITLES, markdown_table
from counted_time import counted_s
from results_page import put_section

from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.schemes import SCHEMES
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.cost.model import EmulatedCosts
from edgepack.data import example
from edgepack.emulator.counts import middle
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import DENSE, Op, Structure, low_rank
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
    "ResNet-8": (f"{MODELS / 'untrained.py'}:resnet8", 16),
    "VGG-like": (f"{MODELS / 'untrained.py'}:vgg", 24),
}
CONVOLUTIONS = ("MNIST CNN", "ResNet-8", "VGG-like")
"""Of the cases, those with convolutions."""
SEED = 0
TARGET = "rpi4"
COMMAND = f"python bench/measure_prices.py --target {TARGET}"
ABOUT = """How far predicted latencies of whole files are off the counted ones on a Raspberry Pi 4, as a share of these:
every model dense and with low-rank factors, in every scheme and in mixtures of two. What stands between the layers,
such as pooling, is counted and not predicted. *As matrices*: predicted without counts of convolutions, each as a
matrix that multiplies its patches."""


@dataclass(frozen=True)
class Planned:
    """One file, and the time that its plan was predicted to take, with and without counts of convolutions."""

    variant: Variant
    predicted_s: float
    as_matrices_s: float


def measure(target: Target, name: str) -> list[dict[str, Any]]:
    """A row per file of one model."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        files = list(_files(*CASES[name], target, Path(folder)))
        result = emulate_variants([file.variant for file in files], None, target=target, model=name)
    rows = []
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
                "off_as_matrices": file.as_matrices_s / seconds - 1,
            }
        )
    return rows


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
            yield from _of_format(files, plans, factors, estimates, work)


def _of_format(
    files: Writer, plans: LayerPlans, factors: Mapping[str, Replacement], estimates: LatencyEstimates, work: Path
) -> Iterator[Planned]:
    dense = work / f"dense.{files.fmt}"
    files.write_dense(dense)
    products = backend(files.fmt).convolutions(dense)
    both = (estimates, _as_matrices(estimates))
    structures = {layer.layer: low_rank(factors[layer.layer].rank) for layer in plans if layer.layer in factors}
    for number, schemes in enumerate(_mixtures(files.fmt, len(plans))):
        for kind, own in (("dense", {}), ("pairs", factors)):
            path = work / f"{number}.{kind}.{files.fmt}"
            # Weights of other operators are decoded at load, where the format knows that: they are priced in float32.
            whole = FileScheme(schemes[0], files.rest(schemes[0])[-1].others)
            others = {p.layer: scheme for p, scheme in zip(plans, schemes, strict=True) if scheme != schemes[0]}
            got = files.write(files.takes(own), whole, path, others).schemes
            ways = [
                (plan.layer, structures[plan.layer] if plan.layer in own else DENSE, got.get(plan.layer, scheme))
                for plan, scheme in zip(plans, schemes, strict=True)
            ]
            found = [_whole_s(one, files.fmt, products, ways) for one in both]
            known = [one for one in found if one is not None]
            if len(known) == len(both):
                title = " then ".join(dict.fromkeys(map(str, schemes)))
                yield Planned(Variant(f"{kind} {title}", files.fmt, path), *known)


def _whole_s(
    estimates: LatencyEstimates, fmt: Format, products: Sequence[Op], ways: Sequence[tuple[str, Structure, Scheme]]
) -> float | None:
    """Of a file: a call, the convolutions that are no layers, and the layers; None where one has no estimate."""
    found = [estimates.estimate(*way) for way in ways]
    known = [one.latency_s for one in found if one is not None]
    return (
        sum(known) + estimates.call_s(fmt) + estimates.convolutions_s(fmt, products)
        if len(known) == len(found)
        else None
    )


def _as_matrices(estimates: LatencyEstimates) -> LatencyEstimates:
    """The same of tables without convolutions."""
    sources = {
        fmt: replace(source, table=replace(source.table, convolutions=None))
        if isinstance(source, EmulatedCosts)
        else source
        for fmt, source in estimates.sources.items()
    }
    return LatencyEstimates(sources, estimates.sheet, estimates.uses, estimates.layers)


def _mixtures(fmt: Format, layers: int) -> Iterator[tuple[Scheme, ...]]:
    """Every scheme by itself, and each with the last layer in the next one."""
    single = [scheme for scheme in SCHEMES[fmt] if scheme.scope == "layer"]
    for scheme in SCHEMES[fmt]:
        yield (scheme,) * layers
    for first, last in zip(single, (*single[1:], single[0]), strict=True) if layers > 1 else ():
        yield (*(first,) * (layers - 1), last)


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per model and format: median and 90th percentile of |predicted / counted - 1| over its files."""
    lines = []
    keys = list(dict.fromkeys((row["model"], row["format"]) for row in rows))
    groups = {
        (name, TITLES[fmt]): [row for row in rows if (row["model"], row["format"]) == (name, fmt)] for name, fmt in keys
    }
    groups["all with convolutions", ""] = [row for row in rows if row["model"] in CONVOLUTIONS]
    groups["all", ""] = list(rows)
    for (name, runtime), own in groups.items():
        shown = [_share(own, key, share) for key in ("off", "off_as_matrices") for share in (0.5, 0.9)]
        lines.append([name, runtime, str(len(own)), *shown])
    headers = ["model", "runtime", "files", "median", "90 % within", "as matrices", "90 % within, as matrices"]
    return f"{ABOUT}\n\n{markdown_table(headers, lines, right=headers[2:])}"


def _share(rows: Sequence[Mapping[str, Any]], key: str, share: float) -> str:
    off = sorted(abs(row.get(key, row["off"])) for row in rows)  # without convolutions both are one
    return f"{off[int(share * (len(off) - 1))]:.1%}".replace("%", " %") if off else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, count what is missing, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--only", action="append", choices=list(CASES), help="count this model again; may be repeated")
    options = parser.parse_args(arguments)
    kept = f"prices/{options.target}"
    rows: list[dict[str, Any]] = figures_file.rows(kept) or []
    known = {row["model"] for row in rows}
    for name in options.only or [name for name in CASES if name not in known]:
        measured = measure(get_target(options.target), name)
        rows = [row for row in rows if row["model"] != name] + measured
        figures_file.store(kept, {"target": options.target, "rows": rows})
        for row in measured:
            print(
                f"{row['model']:16} {row['format']:7} {row['plan']:44} {row['instructions']:>11,} instructions, "
                f"counted {row['counted_s'] * 1e6:9.1f} µs, predicted {row['predicted_s'] * 1e6:9.1f} µs "
                f"{row['off']:+7.1%}, as matrices {row['off_as_matrices']:+7.1%}"
            )
    print(render(rows))
    if options.target == TARGET:
        put_section("prices", COMMAND, figures_file.load(kept), render(rows))


if __name__ == "__main__":
    main()
