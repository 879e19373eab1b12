"""The emulated session: what every model file of a pack makes the target execute and fetch, as a whole and by layer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import __version__
from edgepack.backends.registry import backend
from edgepack.backends.runtime import load
from edgepack.backends.segments import LayerShape, Segment
from edgepack.benchmark.pack import pack_variants
from edgepack.benchmark.results import EmulatedResult, EmulatedVariant, Emulation, LayerCounts
from edgepack.benchmark.results_file import save_result
from edgepack.benchmark.session import Variant
from edgepack.data import Samples, rename
from edgepack.devices.device import Job
from edgepack.devices.emulated import EmulatedDevice
from edgepack.emulator.counts import Counts, middle, per_inference
from edgepack.errors import ModelError, StableDeviceError, TransientDeviceError
from edgepack.metrics.values import sqnr_db
from edgepack.model.scheme import Format
from edgepack.model.types import Array
from edgepack.pack.facts import read_facts
from edgepack.pack.folder import RESULTS, example_of
from edgepack.targets.target import Target
from edgepack.workspace import Progress, file_digest, silent

RUNS, ROUNDS, WARMUP_RUNS = 4, 5, 3
CHAIN_ROUNDS, CHAIN_WARMUP_RUNS = 3, 1
TIMEOUT_S = 3600.0
MAX_DB = 200.0
"""Written where the answers are equal to the last bit; the negative where they are no numbers."""


def emulate_variants(
    variants: Sequence[Variant],
    layers: Mapping[tuple[str, Format], Sequence[LayerShape]] | None,
    *,
    target: Target,
    model: str = "model",
    inputs: Path | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> EmulatedResult:
    """Counts one inference of every model file on the emulated target.

    Args:
        variants: at least one; with `inputs`, their answers are compared with this machine's.
        layers: by variant's name and format, the linear layers of the file in graph order; None to count whole files
            alone.
        target: aarch64 or x86_64, with known caches.
        model: its name, for the result.
        inputs: npz with one array per model input; seeded values otherwise.
        threads: of the inference.
        progress: told of every finished process.

    Raises:
        ModelError: a model file is missing, or its runtime refuses it.
        TargetsError: the target has no runtime for a format, or its caches are not known.
        DeviceError: the emulator is not installed, or the emulated process failed.
        DataError: the inputs do not fit a model.
    """
    for variant in variants:
        target.require_format(variant.format)
        if not variant.path.is_file():
            raise ModelError(f"{variant.name} ({variant.format}): no model file at {variant.path}")
    say = progress or silent
    formats = list(dict.fromkeys(variant.format for variant in variants))
    total = len(formats) + (0 if layers is None else len(variants))
    device = EmulatedDevice(target)
    found: dict[tuple[str, Format], EmulatedVariant] = {}
    versions: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="edgepack-emulate-") as folder:
            session = _Session(device, Path(folder), inputs, threads, unsigned=target.arch == "x86_64")
            for done, fmt in enumerate(formats):
                say("emulate: whole models", done, total)
                own = [variant for variant in variants if variant.format == fmt]
                whole, runtime = session.whole(own)
                versions[runtime["name"]] = runtime["version"]
                found |= {(one.name, one.format): one for one in whole}
            for done, variant in enumerate(() if layers is None else variants, start=len(formats)):
                say("emulate: layers", done, total)
                key = variant.name, variant.format
                found[key] = session.with_layers(found[key], variant, (layers or {}).get(key, ()))
            say("emulate: layers", total, total)
    finally:
        device.close()
    return EmulatedResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgepack_version=__version__,
        model=model,
        target=target.name,
        threads=threads,
        inputs=file_digest(inputs) if inputs is not None else "seeded",
        emulation=Emulation(device.caches, device.cpu, device.qemu_version, versions, device.notes),
        variants=tuple(found[variant.name, variant.format] for variant in variants),
    )


class _Session:
    """What all counts of a session share: the device, a folder for segments, the inputs.

    Args:
        unsigned: whether ONNX Runtime keeps 8-bit activations unsigned on the target, as it does on x86.
    """

    def __init__(
        self, device: EmulatedDevice, folder: Path, inputs: Path | None, threads: int, *, unsigned: bool
    ) -> None:
        self._device = device
        self._folder = folder
        self._inputs = inputs
        self._threads = threads
        self._unsigned = unsigned

    def whole(self, variants: Sequence[Variant]) -> tuple[list[EmulatedVariant], Mapping[str, Any]]:
        """Every file of one format, in one process; also which runtime ran them."""
        fmt = variants[0].format
        answers = self._folder / f"answers.{fmt}.npz"
        job = self._job(fmt, [variant.path for variant in variants], answers)
        report, found = self._count(job)
        emulated = _arrays(answers) if self._inputs is not None else {}
        counted = []
        for index, variant in enumerate(variants):
            counted.append(
                EmulatedVariant(
                    name=variant.name,
                    format=variant.format,
                    file=variant.path.name,
                    size_bytes=variant.path.stat().st_size,
                    sha256=file_digest(variant.path),
                    rounds=tuple(per_inference(found, index)),
                    agreement_db=self._agreement(variant, emulated, index),
                )
            )
        return counted, report["runtime"]

    def with_layers(self, counted: EmulatedVariant, variant: Variant, layers: Sequence[LayerShape]) -> EmulatedVariant:
        """The same with the counts of its layers."""
        folder = self._folder / f"{variant.name}.{variant.format}"
        folder.mkdir()
        try:
            segments = self._split(variant, layers, folder)
        except ModelError as err:
            return replace(counted, layers_missing=err.message[:1000])
        blank = folder / f"blank.{variant.format}"
        backend(variant.format).blank(blank)
        job = self._job(variant.format, [blank, *(segment.path for segment in segments)], None)
        _, found = self._count(replace(job, chain=True, warmup_runs=CHAIN_WARMUP_RUNS, rounds=CHAIN_ROUNDS))
        # What a call of the runtime costs by itself belongs to the whole and to no layer.
        call = _median_of(found, 0)
        each = [_median_of(found, index) - call for index in range(1, len(segments) + 1)]
        return replace(counted, layers=_add_up(segments, each))

    def _split(self, variant: Variant, layers: Sequence[LayerShape], folder: Path) -> Sequence[Segment]:
        split = backend(variant.format).split
        return split(variant.path, layers, folder, unsigned=self._unsigned)

    def _job(self, fmt: Format, paths: Sequence[Path], answers: Path | None) -> Job:
        first, *more = (self._device.push(path) for path in paths)
        return Job(
            "marks",
            fmt,
            first,
            None if self._inputs is None else self._device.push(self._inputs),
            None if answers is None else str(answers),
            threads=self._threads,
            warmup_runs=WARMUP_RUNS,
            runs=RUNS,
            rounds=ROUNDS,
            more_models=tuple(more),
            timeout_s=TIMEOUT_S,
        )

    def _count(self, job: Job) -> tuple[Mapping[str, Any], list[tuple[int, int, Counts]]]:
        try:
            return self._device.count(job)
        except TransientDeviceError:
            return self._device.count(job)

    def _agreement(self, variant: Variant, emulated: Mapping[str, Array], index: int) -> float | None:
        """How well the emulated answers match this machine's, with the exact integer sums of the target."""
        if self._inputs is None:
            return None
        running = load(variant.path, variant.format)
        samples = rename(Samples(_arrays(self._inputs)), running.inputs)
        here = running.run(samples.arrays)
        there = [answer for name, answer in emulated.items() if name.startswith(f"{index}:")]
        if [answer.shape for answer in there] != [answer.shape for answer in here]:
            raise StableDeviceError(
                f"{variant.path.name}: the emulated target answers in other shapes than this machine: found "
                f"{[answer.shape for answer in there]}, expected {[answer.shape for answer in here]}"
            )
        found = [sqnr_db(one, other) for one, other in zip(there, here, strict=True)]
        return float(np.clip(np.nan_to_num(found, nan=-MAX_DB), -MAX_DB, MAX_DB).min())


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _median_of(found: Sequence[tuple[int, int, Counts]], model: int) -> Counts:
    return middle([counts for index, _, counts in found if index == model])


def _add_up(segments: Sequence[Segment], each: Sequence[Counts]) -> tuple[LayerCounts, ...]:
    """One entry per layer and part: a layer that stands in several places is the sum of them."""
    found: dict[tuple[str, bool], list[Counts]] = {}
    for segment, counts in zip(segments, each, strict=True):
        found.setdefault((segment.name, segment.layer), []).append(counts)
    return tuple(LayerCounts(name, layer, reduce(add, counts), len(counts)) for (name, layer), counts in found.items())


def emulate_pack(
    pack_dir: Path,
    *,
    target: Target,
    threads: int = 1,
    formats: Sequence[Format] | None = None,
    by_layer: bool = True,
    progress: Progress | None = None,
) -> EmulatedResult:
    """Counts `model.*` of a pack, `baseline/fp32.*` and `baseline/int8.*`, as far as they are there.

    The result is written to `results/` of the pack, over an earlier one of the same target and threads.

    Args:
        pack_dir: with `manifest.json`.
        target: aarch64 or x86_64, with known caches.
        threads: of the inference.
        formats: which to count; by default all in the pack that the target runs.
        by_layer: also count every layer.
        progress: told of every finished process.

    Raises:
        PackError: not a pack, or without a model of an asked format, or with layers that are none.
        TargetsError: the target has no runtime for a format, or its caches are not known.
        DeviceError, ModelError, DataError: see `emulate_variants`.
    """
    facts = read_facts(pack_dir)
    variants = pack_variants(pack_dir, target, formats)
    layers = None
    if by_layer:
        layers = {(v.name, v.format): facts.layer_shapes(v.name, v.format) for v in variants}
    result = emulate_variants(
        variants,
        layers,
        target=target,
        model=facts.model_name,
        inputs=example_of(pack_dir),
        threads=threads,
        progress=progress,
    )
    save_result(result, pack_dir / RESULTS / result.file_name)
    return result
