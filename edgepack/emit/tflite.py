"""Write .tflite files through a process that holds litert-torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgepack.emit.tflite_process import ConverterProcess
from edgepack.emit.tflite_quantize import check_mixture
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.torchgraph.match import layer_key
from edgepack.types import Array


@dataclass(frozen=True)
class LoadedProgram:
    """What will be converted: names of inputs and outputs, in order, as they will stand in the file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TfliteEmitter:
    """A persistent converter: load one program, then emit it as often as needed.

    Its process starts at `warm_up` (or at first use) and imports in the background; it ends with the context, when this
    process ends, or when it crashes; in the last case the next call starts another one and loads the program again.

    Example:
        with TfliteEmitter() as emitter:
            emitter.warm_up()
            …
            emitter.load_program("dense.pt2")
            emitter.emit("factored.tflite", layers, factors)
            emitter.quantize("factored.tflite", "int8.tflite", "int8-dynamic-range")
    """

    def __init__(self) -> None:
        self._process = ConverterProcess()
        self._load_request: dict[str, Any] | None = None
        self._loaded_by = 0

    def __enter__(self) -> TfliteEmitter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def warm_up(self) -> None:
        """Start the process and return at once; a second call does nothing."""
        self._process.start()

    def load_program(
        self, path: Path | str, *, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
    ) -> LoadedProgram:
        """Load the dense program from a `.pt2` file.

        Args:
            path: file from `edgepack.sources.torch.save_program`.
            inputs: names for the file's inputs, in the program's order; default: forward()'s argument names.
            outputs: likewise for the outputs, for example those of the ONNX file.

        Raises:
            ModelError: the file cannot be read.
        """
        return self._load({"do": "load_program", "path": str(Path(path).resolve()), **_names(inputs, outputs)})

    def load_onnx(
        self,
        path: Path | str,
        shapes: Mapping[str, Sequence[int]],
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> LoadedProgram:
        """Turn an ONNX file into a torch program (pnnx) and load it; its outputs are compared with onnxruntime's.

        Args:
            path: the dense ONNX file.
            shapes: static shape of each input, by name.
            inputs, outputs: names for the .tflite file; default: those of the ONNX graph.

        Raises:
            ModelError: the conversion stops at a node (named), or the outputs differ.
        """
        plain = {name: [int(n) for n in shape] for name, shape in shapes.items()}
        request = {"do": "load_onnx", "path": str(Path(path).resolve()), "shapes": plain, **_names(inputs, outputs)}
        return self._load(request)

    def emit(
        self,
        path: Path | str,
        layers: Sequence[Layer] = (),
        factors: Mapping[str, Replacement] | None = None,
    ) -> tuple[str, ...]:
        """Write the fp32 file: dense, or with two thin layers in the place of each layer in `factors`.

        Args:
            path: where to write.
            layers: the model's linear layers as found in the ONNX graph; all of them, to tell equal weights apart.
            factors: by layer name.

        Returns:
            Names of factored layers that have no counterpart in the torch graph and so stayed dense in this file.

        Raises:
            ModelError: the converter failed; the operator is named where it is known.
        """
        pairs = dict(factors or {})
        request: dict[str, Any] = {"do": "emit", "path": str(Path(path).resolve()), "factors": list(pairs)}
        arrays: dict[str, Array] = {}
        if pairs:
            request["layers"] = []
            for index, key in enumerate(map(layer_key, layers)):
                entry = {"name": key.name, "digest": key.digest, "uses": key.uses, "bias": ""}
                if key.bias is not None:
                    entry["bias"] = f"layer_{index}"
                    arrays[f"layer_{index}"] = key.bias
                request["layers"].append(entry)
            for index, pair in enumerate(pairs.values()):
                arrays |= {f"A_{index}": pair.A, f"B_{index}": pair.B}
                if pair.bias is not None:
                    arrays[f"bias_{index}"] = pair.bias
        reply = self._ask(request, arrays, "arrays")
        return tuple(reply["missing"])

    def quantize(
        self,
        source: Path | str,
        path: Path | str,
        scheme: Scheme,
        samples: Mapping[str, Array] | None = None,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> tuple[str, ...]:
        """Write an integer scheme of an fp32 file; see `edgepack.emit.tflite_quantize.quantize`.

        Args:
            source: fp32 .tflite file, dense or factored.
            path: where to write.
            scheme: of all operators that are not in `schemes`.
            samples: for `INT8_STATIC`: by input name, (samples, *input shape of the file).
            schemes: of single linear operators, by the name of the tensor that they write.

        Returns:
            The kinds of operators that had to stay in wider numbers than asked for.

        Raises:
            ModelError: the quantizer failed, the samples do not fit, or an operator is not there.
            ValueError: `scheme` is none of a TFLite file, or one in `schemes` cannot stand beside it.
        """
        check_mixture(scheme, (schemes or {}).values())
        request = {
            "do": "quantize",
            "source": str(Path(source).resolve()),
            "path": str(Path(path).resolve()),
            "scheme": scheme.name,
            "schemes": {operator: own.name for operator, own in (schemes or {}).items()},
            "samples": "",
        }
        # np.savez keeps "file" for itself, so a model input may not be passed under its own name.
        arrays = {f"input:{name}": array for name, array in (samples or {}).items()}
        return tuple(self._ask(request, arrays, "samples")["kept"])

    def close(self) -> None:
        """End the process and remove its files."""
        self._process.close()

    def _load(self, request: dict[str, Any]) -> LoadedProgram:
        self._load_request = None
        reply = self._ask(request)
        self._load_request, self._loaded_by = request, self._process.starts
        return LoadedProgram(tuple(reply["inputs"]), tuple(reply["outputs"]))

    def _ask(
        self, request: dict[str, Any], arrays: Mapping[str, Array] | None = None, field: str = ""
    ) -> dict[str, Any]:
        """What the process answers; one that was started anew is told of the program first."""
        self._process.start()
        if self._load_request is not None and self._loaded_by != self._process.starts:
            self._process.ask(self._load_request)
            self._loaded_by = self._process.starts
        if not arrays:
            return self._process.ask(request)
        path = self._process.folder / "arrays.npz"
        try:
            np.savez(path, allow_pickle=False, **arrays)
            return self._process.ask({**request, field: str(path)})
        finally:
            path.unlink(missing_ok=True)


def _names(inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> dict[str, list[str] | None]:
    return {"inputs": list(inputs) if inputs else None, "outputs": list(outputs) if outputs else None}
