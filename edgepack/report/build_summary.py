"""What `edgepack build` says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.report.cells import size
from edgepack.report.cross_validation import cross_validation_table
from edgepack.report.planned import layer_table
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Group

FILE_HEADERS = ("file", "scheme", "size", "vs fp32", "vs int8", "metric", "drop", "scored on")
WIRE_HEADER = "on the wire"


def render_build(out: Path, manifest: Mapping[str, Any]) -> Group:
    """The files with their sizes and metric, the layers with what became of them, and the warnings."""
    from rich.console import Group
    from rich.text import Text

    files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    metric = manifest["metric"]
    guard = metric["name"] if metric["guarded"] else "none: no data"
    unlabelled = metric["guarded"] and not manifest["data"]["labelled"]
    note = " with the original model (no labels)" if unlabelled and metric["name"] == "agreement" else ""
    head = f"{out}: {manifest['model']['name']} for {manifest['target']['name']}, guard: {guard}{note}"
    wire = any("wire_bytes" in entry for entry in files.values())
    rows = [_file_row(name, files, wire=wire) for name in sorted(files, reverse=True)]
    headers = (*FILE_HEADERS[:3], WIRE_HEADER, *FILE_HEADERS[3:]) if wire else FILE_HEADERS
    table = plain_table(headers, rows, right=headers[2:-1])
    lines = [Text(head), table, *_validated(manifest), *_recoveries(files), *_plans(files)]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in manifest["warnings"]]
    return Group(*lines)


def _validated(manifest: Mapping[str, Any]) -> list[Any]:
    from rich.text import Text

    record = manifest.get("cross_validation")
    if record is None:
        return []
    kept = f"{record['percent']}% of each layer's weights"
    head = f"rank by {record['folds']} folds of {record['samples']} samples: {kept}"
    return [Text(head), cross_validation_table(record)]


def _file_row(name: str, files: Mapping[str, Mapping[str, Any]], *, wire: bool) -> tuple[str, ...]:
    entry = files[name]
    fp32, int8 = (files.get(f"baseline/{kind}.{entry['format']}") for kind in ("fp32", "int8"))
    metric = entry["metric"]
    drop = None if fp32 is None or metric is None else fp32["metric"] - metric
    return (
        name,
        entry["scheme"],
        size(entry["size_bytes"]),
        *((size(entry["wire_bytes"]) if "wire_bytes" in entry else "–",) if wire else ()),
        _times(fp32, entry),
        _times(int8, entry),
        "–" if metric is None else f"{metric:.2f}",
        "–" if drop is None else f"{round(drop, 2) + 0.0:+.2f}",
        entry["scored_on"] or "–",
    )


def _times(baseline: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> str:
    if baseline is None or baseline is entry:
        return "–"
    return f"{baseline['size_bytes'] / entry['size_bytes']:.1f}×"


def _recoveries(files: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    from rich.text import Text

    lines = []
    for name, entry in sorted(files.items()):
        found = entry.get("recovery")
        if found is not None:
            loss = found["held_out_loss"]
            said = f"recovered in {found['steps']} steps, held-out loss {loss['before']:.3g} → {loss['after']:.3g}"
            rest = ", ".join(found["not_trained"])
            lines.append(Text(f"{name}: {said}{'; not trained: ' if rest else ''}{rest}"))
    return lines


def _plans(files: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """One table of layers where all formats have the same plan, else one for each, under its file's name."""
    from rich.text import Text

    plans = {name: entry["layers"] for name, entry in sorted(files.items()) if name.startswith("model.")}
    first = next(iter(plans.values()))
    if all(plan == first for plan in plans.values()):
        return [layer_table(first)]
    return [part for name, plan in plans.items() for part in (Text(f"layers of {name}"), layer_table(plan))]
