"""The figures of a pack that a check holds against those of another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgepack.backends.registry import KnownFormat
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.pack import PACKED, pack_variants
from edgepack.benchmark.results import EmulatedVariant, Emulation, LayerCounts
from edgepack.benchmark.session import Variant
from edgepack.emulator.counts import Counts, middle
from edgepack.errors import PackError
from edgepack.model.scheme import Format
from edgepack.pack.facts import PackFacts, read_facts
from edgepack.pack.folder import example_of
from edgepack.targets.target import Target
from edgepack.validation import STRICT, printable
from edgepack.workspace import Progress, file_digest

KIND = "edgepack-check"
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class FileFigures:
    """One model file.

    Attributes:
        metric, drop: as the manifest says; None where it does not.
        counts: of one inference; None where nothing was counted.
        layers: layers and the parts between them; empty where the file could not be taken apart, and
            `layers_missing` says why.
    """

    format: KnownFormat
    size_bytes: int
    sha256: str
    metric: float | None
    drop: float | None
    counts: Counts | None = None
    layers: tuple[LayerCounts, ...] = ()
    layers_missing: str | None = None

    @property
    def name(self) -> str:
        """Of the file in its pack."""
        return f"model.{self.format}"


@dataclass(frozen=True)
class PackFigures:
    """A pack.

    Attributes:
        target: on which was counted.
        metric: its name; None without data.
        inputs: digest of the example inputs that were counted with, or "seeded".
        emulation: with what was counted; None where nothing was.
    """

    # Read by pydantic when a file is loaded; the classes inside inherit it.
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    model: str
    target: str
    metric: str | None
    inputs: str
    emulation: Emulation | None
    files: tuple[FileFigures, ...]

    def file(self, fmt: Format) -> FileFigures | None:
        """The model file of a format."""
        return next((one for one in self.files if one.format == fmt), None)


def take_figures(
    pack: Path,
    target: Target,
    formats: Sequence[Format] | None = None,
    *,
    counted: bool = True,
    progress: Progress | None = None,
) -> PackFigures:
    """Sizes and drops of the model files of a pack, and what one inference of each executes and fetches.

    Nothing of the pack is changed, and no earlier count is used.

    Args:
        pack: with `manifest.json`.
        target: to count on, one thread; aarch64 or x86_64 with known caches, where anything is counted.
        formats: which; by default all in the pack that the target runs.
        counted: whether to count at all.
        progress: told of every finished process.

    Raises:
        PackError: not a pack, or without a model of an asked format.
        TargetsError: the target has no runtime for a format, or its caches are not known.
        DeviceError, ModelError, DataError: see `emulate_variants`.
    """
    facts = read_facts(pack)
    variants = [one for one in pack_variants(pack, target, formats) if one.name == PACKED]
    inputs = example_of(pack)
    emulation, found = None, {}
    if counted:
        layers = {(one.name, one.format): _shapes(facts, one.format) for one in variants}
        result = emulate_variants(variants, layers, target=target, inputs=inputs, progress=progress)
        emulation, found = result.emulation, {one.format: one for one in result.variants}
    return PackFigures(
        model=facts.model_name,
        target=target.name,
        metric=facts.metric,
        inputs="seeded" if inputs is None else file_digest(inputs),
        emulation=emulation,
        files=tuple(_figures(one, facts, found.get(one.format)) for one in variants),
    )


def _shapes(facts: PackFacts, fmt: Format) -> Sequence[Any]:
    """Layers as the manifest lists them; none where it lists none, and then only the whole file is counted."""
    return () if facts.file(PACKED, fmt).layers is None else facts.layer_shapes(PACKED, fmt)


def _figures(one: Variant, facts: PackFacts, counted: EmulatedVariant | None) -> FileFigures:
    known = facts.file(PACKED, one.format)
    return FileFigures(
        format=one.format,
        size_bytes=one.path.stat().st_size,
        sha256=file_digest(one.path),
        metric=known.metric,
        drop=known.drop,
        counts=None if counted is None else middle(counted.rounds),
        layers=() if counted is None else counted.layers,
        layers_missing=None if counted is None else counted.layers_missing,
    )


def read_figures(path: Path) -> PackFigures:
    """The figures that `edgepack check --json` wrote of its pack.

    Raises:
        PackError: no such document.
    """
    from pydantic import TypeAdapter, ValidationError

    hint = "write it with: edgepack check PACK --json > FILE"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        document = json.loads(raw[:MAX_BYTES]) if raw else None
    except OSError as err:
        raise PackError(f"{path}: cannot read the base: {err.strerror}", hint=hint) from err
    except (ValueError, RecursionError) as err:
        raise PackError(f"{path}: found no JSON, expected what `edgepack check --json` wrote", hint=hint) from err
    if not isinstance(document, dict) or document.get("kind") != KIND or not isinstance(document.get("figures"), dict):
        raise PackError(f"{path}: found no document of `edgepack check --json`", hint=hint)
    try:
        found = TypeAdapter(PackFigures).validate_json(json.dumps(document["figures"]))
    except (ValidationError, ValueError) as err:
        what = str(err)
        if isinstance(err, ValidationError):
            first = err.errors(include_url=False, include_input=False)[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise PackError(f"{path}: not figures of this edgepack: {what}"[:500], hint=hint) from err
    if not printable(found) or len({one.format for one in found.files}) != len(found.files) or not found.files:
        raise PackError(f"{path}: its files are none, or a name holds control characters", hint=hint)
    return found
