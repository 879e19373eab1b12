"""What is found in a pack of the zoo and measured of it: layers by kind, latency here, counts of the target."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from latencies import measure_files
from onnx import numpy_helper
from zoo_files import ModelFile

from edgepack.backends.tflite.file import objects
from edgepack.backends.tflite.read import builtin_names
from edgepack.benchmark.schedule import QUICK
from edgepack.benchmark.session import Variant
from edgepack.devices.device import Job
from edgepack.devices.emulated import EmulatedDevice
from edgepack.emulator.counts import middle, per_inference
from edgepack.pack.folder import EXAMPLE
from edgepack.pack.manifest import read_document
from edgepack.sources import open_model
from edgepack.targets.target import Target

LEFT: Mapping[str, str] = {
    "no rank saves": r"saves too little",
    "it would lose too much": r"lose (far more than|[\d.]+ times) what the plan has left",
    "slower or larger there": r"would be .*(slower|larger)",
    "one weight in several places": r"have the same weight",
    "the whole file was kept": r"^the (planned file|best plan|pack)",
}
"""Why a layer has no low-rank factors, by what its manifest says; the first that fits."""
OTHER, NO_LAYER = "other reasons", "no layer"
SMALL = 1024
"""Elements of a constant that is no weight worth a line."""
TIMEOUT_S = 900.0


def layers(file: ModelFile, out: Path) -> dict[str, Counter[str]]:
    """By kind of layer, how many have factors, and why the others have none; of operators with weights that are no
    layers, how many there are."""
    entries = read_document(out)["files"][f"model.{file.format}"]["layers"]
    with tempfile.TemporaryDirectory() as folder:
        source = open_model(str(file.running), Path(folder), (file.format,))
        kinds = {layer.name: layer.kind for layer in source.layers}
    found: dict[str, Counter[str]] = {}
    for entry in entries:
        fate = "factors" if entry["rank"] is not None else _why(entry["reason"])
        found.setdefault(kinds[entry["layer"]], Counter())[fate] += 1
    outside = Counter((_onnx_others if file.format == "onnx" else _tflite_others)(file.file))
    return found | {name: Counter({NO_LAYER: count}) for name, count in outside.items()}


def _why(reason: str) -> str:
    return next((name for name, pattern in LEFT.items() if re.search(pattern, reason)), OTHER)


def _onnx_others(path: Path) -> Iterator[str]:
    waiting = [onnx.load(path).graph]
    while waiting:
        graph = waiting.pop()
        large = {one.name for one in graph.initializer if np.prod(one.dims) >= SMALL}
        for node in graph.node:
            waiting += [one.g for one in node.attribute if one.HasField("g")]
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                large |= set(node.output) if numpy_helper.to_array(node.attribute[0].t).size >= SMALL else set()
            groups = next((one.i for one in node.attribute if one.name == "group"), 1)
            kind = "transposed convolution" if node.op_type == "ConvTranspose" else None
            if node.op_type == "Conv" and groups > 1:
                kind = "convolution of several groups"
            if kind is not None and large & set(node.input):
                yield kind
            if node.op_type in ("LSTM", "GRU", "RNN"):
                yield "recurrent state"


def _tflite_others(path: Path) -> Iterator[str]:
    model, names = objects(path.read_bytes()), builtin_names()
    kinds = {"DEPTHWISE_CONV_2D": "convolution of several groups", "TRANSPOSE_CONV": "transposed convolution"}
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            kind = kinds.get(names.get(model.operatorCodes[operator.opcodeIndex].builtinCode, ""))
            shapes = [graph.tensors[at].shape for at in operator.inputs[:2]]
            if kind is not None and any(shape is not None and np.prod(shape) >= SMALL for shape in shapes):
                yield kind


def faster(file: ModelFile, out: Path) -> float:
    """Latency of dense int8 over that of the pack's file on this machine: medians of fresh processes, in turns."""
    if _is_int8(file, out):
        return 1.0
    kept = measure_files(_variants(file, out), QUICK, model=file.name, inputs=_inputs(file, out))
    packed, int8 = (median(row["process_medians_s"]) for row in kept["rows"])
    return round(int8 / packed, 3)


def counts(file: ModelFile, out: Path, target: Target) -> dict[str, dict[str, float]]:
    """Instructions and lines that came into L2, of one inference of the pack's file and of dense int8."""
    variants = _variants(file, out)[: 1 if _is_int8(file, out) else None]
    with closing(EmulatedDevice(target)) as device:
        first, *more = (device.push(one.path) for one in variants)
        inputs = device.push(_inputs(file, out))
        job = Job(
            "marks", file.format, first, inputs, None, threads=1, warmup_runs=1, runs=1, rounds=1,
            more_models=tuple(more), timeout_s=TIMEOUT_S,
        )  # fmt: skip
        _, found = device.count(job)
    each = [middle(per_inference(found, at)) for at in range(len(variants))]
    told = [{"instructions": one.instructions, "l2_misses": one.misses["L2"]} for one in each]
    return {"pack": told[0], "int8": told[-1]}


def _is_int8(file: ModelFile, out: Path) -> bool:
    """Whether the pack's file is the dense int8 one."""
    packed, int8 = (one.path.read_bytes() for one in _variants(file, out))
    return packed == int8


def _variants(file: ModelFile, out: Path) -> list[Variant]:
    paths = {"pack": out / f"model.{file.format}", "int8": out / "baseline" / f"int8.{file.format}"}
    return [Variant(name, file.format, path) for name, path in paths.items()]


def _inputs(file: ModelFile, out: Path) -> Path:
    own = out / f"{Path(EXAMPLE).stem}.{file.format}.npz"
    return own if own.exists() else out / EXAMPLE
