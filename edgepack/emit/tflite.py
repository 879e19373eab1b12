"""Write .tflite files through a worker process that holds litert-torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgepack.emit.tflite_quantize import check_mixture
from edgepack.errors import ModelError
from edgepack.torchgraph.match import layer_key
from edgepack.types import Array, Factors, LinearLayer

_LOG_LINES = 8


@dataclass(frozen=True)
class LoadedProgram:
    """What the worker will convert: names of inputs and outputs, in order, as they will stand in the file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TfliteEmitter:
    """A persistent converter: load one program, then emit it as often as needed.

    The worker starts at `warm_up` (or at first use) and imports in the background; it ends with the context, when this
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
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._ready = False
        self._load_request: dict[str, Any] | None = None
        self._stale = False

    def __enter__(self) -> TfliteEmitter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def warm_up(self) -> None:
        """Start the worker and return at once; a second call does nothing."""
        if self._process is not None:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="edgepack-tflite-")
        with self._log.open("wb") as log:
            # -P keeps the user's folder off sys.path: a file there must not shadow a library.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgepack.emit.tflite_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=_environment(),
            )
        self._ready = False
        self._stale = self._load_request is not None

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
        layers: Sequence[LinearLayer] = (),
        factors: Mapping[str, Factors] | None = None,
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
        form: str,
        samples: Mapping[str, Array] | None = None,
        forms: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """Write an integer form of an fp32 file; see `edgepack.emit.tflite_quantize.quantize`.

        Args:
            source: fp32 .tflite file, dense or factored.
            path: where to write.
            form: of all operators that are not in `forms`.
            samples: for "int8-static": by input name, (samples, *input shape of the file).
            forms: of single linear operators, by the name of the tensor that they write.

        Returns:
            The kinds of operators that had to stay in wider numbers than asked for.

        Raises:
            ModelError: the quantizer failed, the samples do not fit, or an operator is not there.
            ValueError: a form in `forms` that cannot stand beside `form`.
        """
        check_mixture(form, (forms or {}).values())
        request = {
            "do": "quantize",
            "source": str(Path(source).resolve()),
            "path": str(Path(path).resolve()),
            "form": form,
            "forms": dict(forms or {}),
            "samples": "",
        }
        # np.savez keeps "file" for itself, so a model input may not be passed under its own name.
        arrays = {f"input:{name}": array for name, array in (samples or {}).items()}
        return tuple(self._ask(request, arrays, "samples")["kept"])

    def peak_memory_bytes(self) -> int:
        """The largest resident set of the worker so far."""
        return int(self._ask({"do": "memory"})["peak_bytes"])

    def close(self) -> None:
        """End the worker and remove its files."""
        self._end()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def _log(self) -> Path:
        return self._path("worker.log")

    def _path(self, name: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="edgepack-tflite-")
        return Path(self._folder.name) / name

    def _load(self, request: dict[str, Any]) -> LoadedProgram:
        self._load_request = None
        self._stale = False
        reply = self._ask(request)
        self._load_request = request
        return LoadedProgram(tuple(reply["inputs"]), tuple(reply["outputs"]))

    def _ask(
        self, request: dict[str, Any], arrays: Mapping[str, Array] | None = None, field: str = ""
    ) -> dict[str, Any]:
        self.warm_up()
        if not self._ready:
            self._receive("starting")
            self._ready = True
        if self._stale and self._load_request is not None:
            self._exchange(self._load_request)
            self._stale = False
        if not arrays:
            return self._exchange(request)
        path = self._path("arrays.npz")
        try:
            np.savez(path, allow_pickle=False, **arrays)
            return self._exchange({**request, field: str(path)})
        finally:
            path.unlink(missing_ok=True)

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None:
            raise ModelError("the TFLite converter is not running")
        doing = f"{request['do'].replace('_', ' ')} {Path(request.get('path', '')).name}".strip()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except OSError as err:
            raise self._crashed(doing) from err
        try:
            return self._receive(doing)
        except KeyboardInterrupt:
            # An answer that nobody waits for would be taken for the next one's.
            self._end()
            raise

    def _receive(self, doing: str) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdout is None:
            raise ModelError("the TFLite converter is not running")
        line = process.stdout.readline()
        if not line.endswith("\n"):
            raise self._crashed(doing)
        reply: dict[str, Any] = json.loads(line)
        if "error" not in reply:
            return reply
        if doing == "starting":
            self._end()
        if reply.get("known"):
            raise ModelError(reply["error"], hint=reply.get("hint"))
        operator = f" at {reply['operator']}" if reply.get("operator") else ""
        raise ModelError(
            f"the TFLite converter failed{operator} ({doing}): {reply['error']}{self._tail()}",
            hint="replace this operator in the model, or build only the ONNX file (--formats onnx)",
        )

    def _crashed(self, doing: str) -> ModelError:
        """The error for a worker that ended by itself; it is cleared away, so that the next call starts another."""
        tail = self._tail()
        code = self._end()
        if code is not None and code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        else:
            how = f"ended with exit code {code}"
        hint = "report the log above, or build only the ONNX file (--formats onnx)"
        if code in (-signal.SIGKILL, 137):
            hint = "most likely the system ran out of memory: close other programs, or build on a larger machine"
        return ModelError(f"the TFLite converter {how} ({doing}){tail}", hint=hint)

    def _tail(self) -> str:
        """The last lines of the worker's log, for an error message."""
        try:
            text = self._log.read_bytes()[-20_000:].decode("utf-8", "replace")
        except OSError:
            return ""
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "".join(f"\n  | {line[:200]}" for line in lines[-_LOG_LINES:])

    def _end(self) -> int | None:
        process, self._process = self._process, None
        self._ready = False
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # unsent bytes for a process that has gone
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _names(inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> dict[str, list[str] | None]:
    return {"inputs": list(inputs) if inputs else None, "outputs": list(outputs) if outputs else None}


def _environment() -> dict[str, str]:
    """The worker's environment: quiet, one thread, no accelerator look-up, edgepack importable as it is here."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    quiet = {"LITERT_TORCH_SHOW_PROGRESS": "n", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
