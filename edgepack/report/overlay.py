"""What each layer of a packed file takes and loses, at its nodes in the graph, for the tools that show graphs.

For Model Explorer (https://github.com/google-ai-edge/model-explorer, "custom node data") as values by the names of what
nodes give; for Netron, which shows the metadata of nodes, as a copy of the ONNX file. The packed file itself stays
without: it is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepack.backends.registry import backend
from edgepack.pack.facts import read_facts
from edgepack.pack.manifest import LayerEntry, Manifest, PackedFile
from edgepack.workspace import atomic_path

NODE_METADATA = 10
"""IR version of ONNX since which nodes have metadata."""
LEAST, MOST = "#ffffff", "#ff8a3d"
"""Colours of the smallest and of the largest value."""


def write_overlays(pack: Path, manifest: Manifest, folder: Path) -> list[Path]:
    """A file for each figure of each model file: `model.onnx.bytes.json` …

    Bytes and latency stand at the product that ends a layer, so that their sum is the model's; rank, scheme and error
    at each of its products. Layers whose nodes are not found, convolutions among them, have none. Of an ONNX file all
    of it stands in `model.netron.onnx` as well.

    Raises:
        ModelError: a model file cannot be read.
        OutputError: nothing can be written there.
    """
    written = []
    for name, entry in manifest.files.items():
        if isinstance(entry, PackedFile) and (pack / name).is_file():
            overlays = dict(_overlays(pack, name, entry))
            for figure, document in overlays.items():
                path = folder / f"{name}.{figure}.json"
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(document, indent=1) + "\n")
                written.append(path)
            if entry.format == "onnx" and overlays:
                written.append(folder / f"{Path(name).stem}.netron.onnx")
                with atomic_path(written[-1]) as temporary:
                    temporary.write_bytes(_annotated(pack / name, overlays))
    return written


def _annotated(path: Path, overlays: Mapping[str, Mapping[str, Any]]) -> bytes:
    """An ONNX file whose nodes say what overlays hold at what they give; weights in other files stay there."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    model.ir_version = max(model.ir_version, NODE_METADATA)
    for node in model.graph.node:
        for figure, document in overlays.items():
            for output in node.output:
                if output in document["results"]:
                    node.metadata_props.add(key=f"edgepack.{figure}", value=str(document["results"][output]["value"]))
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _overlays(pack: Path, name: str, entry: PackedFile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    shapes = read_facts(pack).layer_shapes("edgepack", entry.format)
    nodes = backend(entry.format).layer_values(pack / name, shapes)
    for figure, everywhere, get in FIGURES:
        results: dict[str, object] = {}
        for layer in entry.layers:
            value, own = get(layer), nodes.get(layer.layer, ())
            if value is not None and own:
                results |= {key: {"value": value} for key in (own if everywhere else own[-1:])}
        if results:
            colours = [{"stop": 0, "bgColor": LEAST}, {"stop": 1, "bgColor": MOST}]
            yield figure, {"results": results} | ({} if figure == "scheme" else {"gradient": colours})


def _lost(layer: LayerEntry) -> float | None:
    return None if layer.lost_shares is None else layer.lost_shares.total


FIGURES: tuple[tuple[str, bool, Callable[[LayerEntry], float | str | None]], ...] = (
    ("bytes", False, lambda layer: None if layer.predicted is None else layer.predicted.size_bytes),
    ("latency_s", False, lambda layer: None if layer.predicted is None else layer.predicted.latency_s),
    ("rank", True, lambda layer: layer.rank),
    ("scheme", True, lambda layer: layer.scheme),
    ("error_share", True, _lost),
)
"""Name, whether it stands at every product of a layer, and its value."""
