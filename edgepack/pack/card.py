"""What a pack tells those who find it: a model card, and a script that runs its models without edgepack."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgepack import units
from edgepack.pack.manifest import DropEntry, FileEntry, LayerEntry, Manifest, PackedFile
from edgepack.workspace import shipped

CARD, SCRIPT = "README.md", "run.py"


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write `README.md` and `run.py` into a pack; names from the model stand in the first only, escaped."""
    (folder / CARD).write_text("\n".join(_lines(manifest)) + "\n", encoding="utf-8")
    shutil.copyfile(shipped("runtimes/run_pack.py"), folder / SCRIPT)


def _lines(manifest: Manifest) -> Iterator[str]:
    model, target = manifest.model, manifest.target.name
    yield f"# {_escape(model.name)} for {_escape(target)}"
    yield ""
    yield f"Made by edgepack from {_escape(model.source)} (SHA-256 {model.sha256}) for the target {_escape(target)}."
    yield f"`python {SCRIPT}` runs it on `example_inputs.npz`; nothing of edgepack is needed for that."
    yield ""
    yield "| file | scheme | size | drop | at most | latency |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for name, entry in sorted(manifest.files.items(), key=lambda one: ("/" in one[0], one[0])):
        yield _row(name, entry, manifest)
    yield ""
    for name, entry in sorted(manifest.files.items()):
        if entry.channels_last:
            yield f"{name} takes {', '.join(map(_escape, entry.channels_last))} as (N, H, W, C): channels last."
            yield ""
    yield from _judged(manifest)
    for name, entry in sorted(manifest.files.items()):
        if isinstance(entry, PackedFile) and entry.layers:
            yield ""
            yield f"Layers of {name}: {_layers(entry.layers)}."
    yield ""
    versions = (f"{_escape(name)} {_escape(version)}" for name, version in sorted(manifest.versions.items()))
    yield f"Versions: {', '.join(versions)}."
    yield ""
    yield "License: not stated. It is that of the original model unless its owner says otherwise."


def _row(name: str, entry: FileEntry, manifest: Manifest) -> str:
    lost = entry.stated
    drop = (units.NONE, units.NONE) if lost is None else (f"{lost.drop:+.2f}", f"{lost.bound:+.2f}")
    cells = (name, entry.scheme, units.size(entry.size_bytes), *drop, _latency(name, entry, manifest))
    return f"| {' | '.join(map(_escape, cells))} |"


def _latency(name: str, entry: FileEntry, manifest: Manifest) -> str:
    measured = manifest.latency_s.get(f"{entry.format}/{name}")
    if measured is not None:
        return f"{units.seconds(measured)}, measured while building"
    if isinstance(entry, PackedFile) and entry.corners:
        source = manifest.cost_sources.get(entry.format, "predicted")
        return f"{units.seconds(entry.corners[0].latency_s)}, {source}"
    return units.NONE


def _judged(manifest: Manifest) -> Iterator[str]:
    metric, lost = manifest.metric, _first_drop(manifest)
    if not metric.validated or lost is None:
        yield "There were no data: what the models lose was not measured."
        return
    yield (
        f"Drop: of {_escape(metric.name)}, in its unit, against the original on {lost.samples} samples. "
        f"*At most*: what the true drop stays under with {lost.confidence:.0%} confidence."
    )
    yield "Latency: of one inference on one thread, predicted where it does not say measured."


def _first_drop(manifest: Manifest) -> DropEntry | None:
    drops = (entry.stated for entry in manifest.files.values())
    return next((one for one in drops if one is not None), None)


def _layers(layers: tuple[LayerEntry, ...]) -> str:
    kinds = Counter(layer.structure for layer in layers)
    dense = sum(layer.out_features * layer.in_features for layer in layers)
    kept = sum(layer.weight_parameters for layer in layers)
    counted = ", ".join(f"{count} {_escape(kind)}" for kind, count in kinds.most_common())
    return f"{counted}; {kept} of the original's {dense} weights" if dense else counted


def _escape(text: str) -> str:
    return units.markdown(" ".join(text.split()))
