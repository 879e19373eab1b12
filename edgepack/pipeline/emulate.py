"""Counts a pack on an emulated target and keeps the result in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepack.bench.emulate import emulate_variants
from edgepack.bench.emulated_results import EmulatedResult
from edgepack.bench.packs import pack_variants
from edgepack.bench.results_file import save_result
from edgepack.model.scheme import Format
from edgepack.pack.facts import read_facts
from edgepack.pack.folder import RESULTS
from edgepack.targets import Target
from edgepack.workspace import Progress


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
    example = pack_dir / "example_inputs.npz"
    result = emulate_variants(
        variants,
        layers,
        target=target,
        model=facts.model_name,
        inputs=example if example.is_file() else None,
        threads=threads,
        progress=progress,
    )
    save_result(result, pack_dir / RESULTS / result.file_name)
    return result
