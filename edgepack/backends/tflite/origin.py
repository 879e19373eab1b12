"""Where the float32 files of a model come from: a converter, or the file that is itself the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgepack.backends.tflite import quantizer
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.requantize import requantize
from edgepack.backends.tflite.rewrite import Places, find_places
from edgepack.backends.tflite.sites import TfliteModel
from edgepack.backends.tflite.tidy import shorten_names
from edgepack.errors import LayerError
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array


class Quantize(Protocol):
    """Writes an integer scheme of a float32 file."""

    def __call__(
        self,
        source: Path,
        path: Path,
        scheme: Scheme,
        samples: Mapping[str, Array] | None,
        schemes: Mapping[str, Scheme],
    ) -> object:
        """See `edgepack.backends.tflite.quantizer.quantize`."""


class Origin(Protocol):
    """What a writer has its float32 files from."""

    @property
    def source(self) -> bytes | None:
        """The file as it was given; None where the model was none."""

    @property
    def has_halves(self) -> bool:
        """Whether that decodes float16 weights."""

    def begin(self) -> None:
        """Start what `write` takes for the dense model, where that is done by another process."""

    def write(self, factors: Mapping[str, Replacement], path: Path) -> None:
        """Write the model, with two thin layers in the place of each layer in `factors`.

        Raises:
            ModelError: it cannot be written.
        """

    def places(self, dense: Path) -> Places:
        """Where the layers are in the dense file that `write` wrote."""

    @property
    def quantize(self) -> Quantize:
        """Where quantizing is done: in the converter's process, or in this one."""


class Conversion:
    """See `Origin`: a torch program or an ONNX file, through a converter."""

    source: bytes | None = None
    has_halves = False

    def __init__(
        self,
        converter: TfliteEmitter,
        opened: Model,
        shapes: Mapping[str, Sequence[int]],
        samples: Sequence[Mapping[str, Array]],
    ) -> None:
        """Nothing is converted yet.

        Args:
            converter: that writes the files.
            opened: the model.
            shapes: of the inputs, by name.
            samples: inputs of single runs on which what is made of the model is compared with it.
        """
        self._converter, self._opened, self._shapes, self._samples = converter, opened, shapes, samples
        self._loaded = False

    def begin(self) -> None:
        """See `Origin.begin`."""
        if self._opened.program is not None:
            self._converter.begin_program(self._opened.program, self._samples)
        else:
            self._converter.begin_onnx(self._opened.files["onnx"], self._shapes, self._samples)

    def write(self, factors: Mapping[str, Replacement], path: Path) -> None:
        """See `Origin.write`."""
        opened = self._opened
        if not self._loaded:
            if opened.program is not None:
                self._converter.load_program(opened.program, self._samples)
            else:
                self._converter.load_onnx(opened.files["onnx"], self._shapes, self._samples)
            self._loaded = True
        missing = self._converter.emit(path, opened.layers, factors or None)
        shorten_names(path)
        if missing:
            raise LayerError(
                dict.fromkeys(missing, "it has no counterpart in the torch graph that TFLite is made from")
            )

    def places(self, dense: Path) -> Places:
        """See `Origin.places`: found by what the weights hold."""
        return find_places(dense, self._opened.layers, self._opened.vectors)

    @property
    def quantize(self) -> Quantize:
        """See `Origin.quantize`."""
        return self._converter.quantize


class Given:
    """See `Origin`: a TFLite file, which is edited; no converter is needed."""

    def __init__(self, model: TfliteModel) -> None:
        self._model = model
        self.source: bytes | None = model.source
        self.has_halves = model.has_halves

    def begin(self) -> None:
        """See `Origin.begin`: nothing takes another process."""

    def write(self, factors: Mapping[str, Replacement], path: Path) -> None:
        """See `Origin.write`."""
        if factors:
            raise LayerError(dict.fromkeys(factors, "its operators cannot be replaced in the file"))
        path.write_bytes(self._model.content)

    def places(self, dense: Path) -> Places:
        """See `Origin.places`: those where the layers were found."""
        outputs = {name: tuple(site.op.output for site in own) for name, own in self._model.sites.items()}
        return Places(dense, self._model.layers, outputs, self._model.folds)

    @property
    def quantize(self) -> Quantize:
        """See `Origin.quantize`."""
        return requantize if self._model.in_integers else quantizer.quantize
