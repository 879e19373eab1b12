"""Benches a pack: its models against their own dense baselines, the results into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepack.bench.devices.device import Device
from edgepack.bench.results import BenchResult
from edgepack.bench.results_file import save_result
from edgepack.bench.session import STANDARD, Settings, Variant, bench_variants
from edgepack.errors import PackError
from edgepack.model.scheme import FORMATS, Format
from edgepack.pack.facts import read_facts
from edgepack.targets import Target
from edgepack.workspace import Progress

PACKED = "edgepack"
BASELINES = ("fp32", "int8")


def bench_pack(
    pack_dir: Path,
    *,
    target: Target,
    device: Device,
    settings: Settings = STANDARD,
    progress: Progress | None = None,
    formats: Sequence[Format] | None = None,
) -> BenchResult:
    """Measures `model.*` of a pack against `baseline/fp32.*` and `baseline/int8.*`, as far as they are there.

    The result is written to `results/` of the pack, over an earlier one of the same target, device, cluster, threads
    and length.

    Args:
        pack_dir: with `manifest.json`.
        target: the one that the pack is for, or the one that the device is.
        device: where to measure; the caller closes it.
        settings: what is measured, and for how long.
        progress: told of every finished process.
        formats: which to measure; by default all in the pack that the target runs.

    Raises:
        PackError: not a pack, or without a model of an asked format.
        TargetsError: the target has no runtime for a format.
        DeviceError, DataError, UsageError: see `bench_variants`.
    """
    name = read_facts(pack_dir).model_name
    variants = pack_variants(pack_dir, target, formats)
    example = pack_dir / "example_inputs.npz"
    result = bench_variants(
        variants,
        target=target,
        device=device,
        settings=settings,
        progress=progress,
        model=name,
        inputs=example if example.is_file() else None,
    )
    save_result(result, pack_dir / "results" / result.file_name)
    return result


def pack_variants(pack_dir: Path, target: Target, formats: Sequence[Format] | None = None) -> list[Variant]:
    """The model files of a pack that a target can run: per format the packed one, dense fp32, dense int8.

    Raises:
        PackError: the pack has no model of an asked format, or none at all.
        TargetsError: the target runs none of them, or not an asked one.
    """
    there = [fmt for fmt in FORMATS if (pack_dir / f"model.{fmt}").is_file()]
    if not there:
        raise PackError(f"{pack_dir}: no model.onnx and no model.tflite", hint="build the pack again")
    for fmt in formats or ():
        target.require_format(fmt)
        if fmt not in there:
            raise PackError(f"{pack_dir}: no model.{fmt}; it holds {', '.join(there)}")
    chosen = [fmt for fmt in formats or there if fmt in target.formats]
    if not chosen:
        target.require_format(there[0])
    variants = []
    for fmt in chosen:
        variants.append(Variant(PACKED, fmt, pack_dir / f"model.{fmt}"))
        for precision in BASELINES:
            path = pack_dir / "baseline" / f"{precision}.{fmt}"
            if path.is_file():
                variants.append(Variant(f"dense-{precision}", fmt, path))
    return variants
