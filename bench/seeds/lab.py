"""A trained model opened, its layers observed; files written from parts, scored and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from models.mnist_mlp import digits
from torch import nn

import edgepack
from edgepack.coded import stored_numbers
from edgepack.data import Samples
from edgepack.emit.tflite import TfliteEmitter
from edgepack.errors import EdgepackError
from edgepack.inference import THREADS, load, predict
from edgepack.pipeline.activations import observe
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.pipeline.opened import Opened, open_model
from edgepack.pipeline.tflite_files import TfliteFiles
from edgepack.pipeline.transporting import packed
from edgepack.sources.torch import export_program, save_program
from edgepack.transport.parts import JpegStream
from edgepack.types import Array, Coded, Factors, LinearLayer, Replacement
from edgepack.workspace import TOOLS, Cache, Keyed, Step, Workspace, digest

LARGEST = 127
"""Of int8 codes. Files are scored in exact integer arithmetic, as on the targets."""
FORMS = {"fp32": "fp32", "int8-dynamic": "int8-dynamic-range"}
"""Of ONNX, and what is next to it in TFLite."""

Made = dict[str, Any]
"""A way to write a model: its accuracy, its numbers, its files, what LiteRT had against it."""
Parts = Mapping[str, Replacement]


@dataclass(frozen=True)
class Lab:
    """A dense model at work.

    Attributes:
        layers: in the order of the network, with the moments of their inputs on the training digits.
        tflite: None where no TFLite files are wanted.
        images: (N, 784), of the digits that it was trained on, for all that is fitted.
        test: samples that files are scored on.
    """

    opened: Opened
    layers: tuple[LinearLayer, ...]
    onnx: OnnxFiles
    tflite: TfliteFiles | None
    images: Array
    test: Samples
    workspace: Workspace
    work: Path

    def make(
        self,
        label: str,
        what: Sequence[Any],
        parts: Callable[[], Parts],
        scheme: str = "int8-dynamic",
        *,
        streams: Callable[[], Sequence[JpegStream]] = tuple,
        tflite: bool = True,
    ) -> Made:
        """A way to write the model; nothing is done twice.

        Args:
            label: for people.
            what: everything that the parts depend on, beside the model.
            parts: by layer name; other layers are dense, in the scheme.
            scheme: of the layers that are not in code, for ONNX.
            streams: images that weights travel as.
            tflite: whether to write the TFLite file as well, if the lab does.
        """
        wanted = tflite and self.tflite is not None
        entry: Keyed[Made] = Keyed([sources(), self.opened.sha256, label, what, scheme, wanted])
        key = self.workspace.key(MADE, entry)
        known = self.workspace.known(MADE, entry)
        paths = {fmt: self.workspace.cache.path(MADE.name, key, f".{fmt}") for fmt in ("onnx", "tflite")}
        if known is None or not all(paths[fmt].is_file() for fmt in known["files"]):
            made = self._made(parts(), scheme, paths, streams(), wanted)
            known = self.workspace.keep(MADE, entry, made)
        return {"label": label, **known, "paths": {fmt: str(paths[fmt]) for fmt in known["files"]}}

    def _made(
        self, parts: Parts, scheme: str, paths: Mapping[str, Path], streams: Sequence[JpegStream], tflite: bool
    ) -> Made:
        paths["onnx"].parent.mkdir(parents=True, exist_ok=True)
        coded = {name: "coded" for name, part in parts.items() if isinstance(part, Coded)}
        if scheme == "int8-dynamic" and not parts:
            self.onnx.write_baseline(scheme, self.work / "model.onnx")
        else:
            self.onnx.write(parts, self.onnx.rest(scheme)[0], self.work / "model.onnx", coded)
        made: Made = {
            "accuracy": self.accuracy(self.work / "model.onnx"),
            "parameters": self.parameters(parts),
            "files": {"onnx": _file(self.work / "model.onnx", "onnx", streams)},
            "refused": None,
        }
        shutil.copyfile(self.work / "model.onnx", paths["onnx"])
        if tflite and self.tflite is not None:
            try:
                self.tflite.write(parts, FORMS[scheme], self.work / "model.tflite", coded)
            except (EdgepackError, ValueError) as err:
                made["refused"] = str(err)
            else:
                made["files"]["tflite"] = _file(self.work / "model.tflite", "tflite", streams)
                shutil.copyfile(self.work / "model.tflite", paths["tflite"])
        return made

    def accuracy(self, path: Path) -> float:
        """In percent, on the test samples, of an ONNX file in its runtime."""
        answers = predict(load(path, "onnx", threads=THREADS), self.test)
        return float((answers.argmax(axis=1) == self.test.labels).mean() * 100)

    def parameters(self, parts: Parts) -> int:
        """Numbers that are stored for the whole model, of any width, biases included."""
        biases = sum(layer.out_features for layer in self.layers)
        return biases + sum(count(parts.get(layer.name), layer) for layer in self.layers)


def _as_made(made: Made) -> Made:
    return made


MADE: Step[Made, Made] = Step("seeds", 2, _as_made, tools=TOOLS)


@cache
def sources() -> str:
    """Of edgepack's own files: what another version of it wrote is written again."""
    folder = Path(edgepack.__file__).parent
    return digest(*(path.read_text() for path in sorted(folder.rglob("*.py"))))


def count(part: Replacement | None, layer: LinearLayer) -> int:
    """Numbers that are stored for a layer's weight."""
    if isinstance(part, Factors):
        return part.A.size + part.B.size
    return stored_numbers(part) if isinstance(part, Coded) else layer.weight.size


def _file(path: Path, fmt: Any, streams: Sequence[JpegStream]) -> dict[str, int]:
    return {"size_bytes": path.stat().st_size, "wire_bytes": len(packed(path, fmt, streams).content)}


def open_lab(
    model: nn.Module, cache: Cache, work: Path, converter: TfliteEmitter | None = None, split: int | None = None
) -> Lab:
    """Open a trained model of digits.

    Args:
        model: takes (N, 784).
        cache: where results are kept.
        work: an empty folder.
        converter: of TFLite files; it works for the lab that was opened last.
        split: score on the training digits from this one on, which the model has not seen, in place of the test digits.
    """
    work.mkdir(parents=True)
    images, labels, test_images, test_labels = digits()
    scored = Samples({"x": test_images}, test_labels)
    if split is not None:
        scored, images = Samples({"x": images[split:]}, labels[split:]), images[:split]
    save_program(export_program(model, (torch.zeros(1, 784),)), work / "source.pt2")
    opened = open_model(str(work / "source.pt2"), work)
    name = opened.inputs[0].name
    calibration = Samples({name: images})
    workspace = Workspace(cache, work)
    seen = observe(opened.model, [layer.name for layer in opened.layers], calibration, workspace)
    layers = tuple(replace(layer, moments=seen[layer.name]) for layer in opened.layers)
    tflite = None
    if converter is not None:
        tflite = TfliteFiles(converter, opened, calibration, {name: images[:1]}, workspace)
    files = OnnxFiles(opened.model, calibration, largest=LARGEST)
    return Lab(opened, layers, files, tflite, images, scored, workspace, work)
