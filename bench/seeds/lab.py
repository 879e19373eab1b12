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
from edgepack.archive.archive import pack
from edgepack.archive.images import JpegImage
from edgepack.backends.backend import THREADS, Writer, WriterData
from edgepack.backends.onnx.schemes import CONSTEXPR, FP32, INT8_DYNAMIC
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.registry import FORMATS, TOOLS, backend
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite import schemes as tflite_schemes
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.data import Samples
from edgepack.errors import EdgepackError
from edgepack.model.constexpr import stored_numbers
from edgepack.model.kinds import views_of
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.types import Array
from edgepack.pipeline.activations import observe
from edgepack.sources import open_model
from edgepack.sources.torch import export_program, save_program
from edgepack.workspace import Cache, Keyed, Step, Workspace, digest

LARGEST = 127
"""Of int8 codes. Files are scored in exact integer arithmetic, as on the targets."""
IN_TFLITE = {FP32: tflite_schemes.FP32, INT8_DYNAMIC: tflite_schemes.INT8_DYNAMIC}
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

    opened: Model
    layers: tuple[View, ...]
    onnx: OnnxWriter
    tflite: Writer | None
    images: Array
    test: Samples
    workspace: Workspace
    work: Path

    def make(
        self,
        label: str,
        what: Sequence[Any],
        parts: Callable[[], Parts],
        scheme: Scheme = INT8_DYNAMIC,
        *,
        images: Callable[[], Sequence[JpegImage]] = tuple,
        tflite: bool = True,
    ) -> Made:
        """A way to write the model; nothing is done twice.

        Args:
            label: for people.
            what: everything that the parts depend on, beside the model.
            parts: by layer name; other layers are dense, in the scheme.
            scheme: of the layers that are not in code, for ONNX.
            images: that weights travel as.
            tflite: whether to write the TFLite file as well, if the lab does.
        """
        wanted = tflite and self.tflite is not None
        entry: Keyed[Made] = Keyed([sources(), self.opened.sha256, label, what, scheme, wanted])
        key = self.workspace.key(MADE, entry)
        known = self.workspace.known(MADE, entry)
        paths = {fmt: self.workspace.cache.path(MADE.name, key, f".{fmt}") for fmt in FORMATS}
        if known is None or not all(paths[fmt].is_file() for fmt in known["files"]):
            made = self._made(parts(), scheme, paths, images(), wanted)
            known = self.workspace.keep(MADE, entry, made)
        return {"label": label, **known, "paths": {fmt: str(paths[fmt]) for fmt in known["files"]}}

    def _made(
        self, parts: Parts, scheme: Scheme, paths: Mapping[Format, Path], images: Sequence[JpegImage], tflite: bool
    ) -> Made:
        paths["onnx"].parent.mkdir(parents=True, exist_ok=True)
        constexpr = [name for name, part in parts.items() if part.structure.is_constexpr]
        if scheme == INT8_DYNAMIC and not parts:
            self.onnx.write_baseline(scheme, self.work / "model.onnx")
        else:
            schemes = dict.fromkeys(constexpr, CONSTEXPR)
            self.onnx.write(parts, self.onnx.rest(scheme)[0], self.work / "model.onnx", schemes)
        made: Made = {
            "accuracy": self.accuracy(self.work / "model.onnx"),
            "parameters": self.parameters(parts),
            "files": {"onnx": _onnx_file(self.work / "model.onnx", images)},
            "refused": None,
        }
        shutil.copyfile(self.work / "model.onnx", paths["onnx"])
        if tflite and self.tflite is not None:
            try:
                schemes = dict.fromkeys(constexpr, tflite_schemes.CONSTEXPR)
                self.tflite.write(parts, FileScheme.of(IN_TFLITE[scheme]), self.work / "model.tflite", schemes)
            except (EdgepackError, ValueError) as err:
                made["refused"] = str(err)
            else:
                made["files"]["tflite"] = {"size_bytes": (self.work / "model.tflite").stat().st_size}
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


def count(part: Replacement | None, layer: View) -> int:
    """Numbers that are stored for a layer's weight."""
    if part is None or part.structure.is_dense:
        return layer.weight.size
    return stored_numbers(part) if part.structure.is_constexpr else part.A.size + part.B.size


def _onnx_file(path: Path, images: Sequence[JpegImage]) -> dict[str, int]:
    return {"size_bytes": path.stat().st_size, "wire_bytes": len(pack(path.name, path.read_bytes(), images))}


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
    seen = observe(opened, [layer.name for layer in opened.layers], calibration, workspace)
    layers = tuple(replace(view, moments=seen[view.name]) for view in views_of(opened.layers))
    tflite = None
    if converter is not None:
        given = WriterData(calibration, {name: images[:1]}, LARGEST)
        tflite = backend("tflite").open(opened, given, converter, workspace)
    files = OnnxWriter(opened.content, calibration, qmax=LARGEST)
    return Lab(opened, layers, files, tflite, images, scored, workspace, work)
