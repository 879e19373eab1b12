"""Write .tflite files through a process that holds litert-torch: one line of JSON each way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from edgepack.backends.tflite.quantizer import check_mixture
from edgepack.errors import ModelError
from edgepack.lifeline import TiedProcess
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.serialize import packed_part
from edgepack.model.types import Array
from edgepack.torchgraph.match import layer_key

_LOG_LINES = 8
HINT = "replace this operator in the model, or build only the ONNX file (--formats onnx)"
_Request = tuple[dict[str, Any], Mapping[str, Array], str]
"""What is asked, arrays that go with it, and the field for the path of their file."""


@dataclass(frozen=True)
class LoadedProgram:
    """What will be converted: names of inputs and outputs, in order, as they will stand in the file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TfliteEmitter:
    """A persistent converter: load one program, then emit it as often as needed.

    Its process starts at `warm_up` (or at first use) and imports in the background; it ends with the context, when this
    process ends, or when it crashes; in the last case the next call starts another one and loads the program again.
    Several may share one process, which the one who made it closes.

    Example:
        with TfliteEmitter() as emitter:
            emitter.warm_up()
            …
            emitter.begin_program("dense.pt2")
            …
            emitter.load_program("dense.pt2")
            emitter.emit("factored.tflite", layers, factors)
            emitter.quantize("factored.tflite", "int8.tflite", "int8-dynamic-range")
    """

    def __init__(self, shared: ConverterProcess | None = None) -> None:
        self._process = shared or ConverterProcess()
        self._shared = shared is not None
        self._program: _Request | None = None

    def __enter__(self) -> TfliteEmitter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def warm_up(self) -> None:
        """Start the process and return at once; a second call does nothing."""
        self._process.start()

    def begin_program(self, path: Path | str, samples: Sequence[Mapping[str, Array]] = ()) -> None:
        """Start to convert a program and return at once; `load_program` and the first dense `emit` bring what came of
        it, errors included.

        Args:
            path, samples: as of `load_program`.
        """
        self._begin(_program_request(path), _numbered(samples))

    def begin_onnx(
        self, path: Path | str, shapes: Mapping[str, Sequence[int]], samples: Sequence[Mapping[str, Array]] = ()
    ) -> None:
        """The same of an ONNX file, for `load_onnx` with the same arguments."""
        self._begin(_onnx_request(path, shapes), _numbered(samples))

    def load_program(
        self,
        path: Path | str,
        samples: Sequence[Mapping[str, Array]] = (),
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> LoadedProgram:
        """Load the dense program from a `.pt2` file.

        Args:
            path: file from `edgepack.sources.torch.save_program`.
            samples: inputs of single runs on which the dense file is compared with it; its example inputs where none
                has their shapes.
            inputs: names for the file's inputs, in the program's order; default: forward()'s argument names.
            outputs: likewise for the outputs, for example those of the ONNX file.

        Raises:
            ModelError: the file cannot be read.
        """
        return self._load(_program_request(path, inputs, outputs), _numbered(samples))

    def load_onnx(
        self,
        path: Path | str,
        shapes: Mapping[str, Sequence[int]],
        samples: Sequence[Mapping[str, Array]] = (),
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> LoadedProgram:
        """Turn an ONNX file into a torch program and load it; its outputs are compared with onnxruntime's.

        Args:
            path: the dense ONNX file.
            shapes: static shape of each input, by name.
            samples: inputs of single runs for this comparison, and that of the dense file; seeded ones where there are
                none.
            inputs, outputs: names for the .tflite file; default: those of the ONNX graph.

        Raises:
            ModelError: the conversion stops at a node (named), or the outputs differ.
        """
        return self._load(_onnx_request(path, shapes, inputs, outputs), _numbered(samples))

    def emit(
        self,
        path: Path | str,
        layers: Sequence[Layer] = (),
        factors: Mapping[str, Replacement] | None = None,
    ) -> tuple[str, ...]:
        """Write the fp32 file: dense, or with thin layers in the place of each layer in `factors`.

        The dense file is run in LiteRT, and its outputs are compared with the program's by signal over noise.

        Args:
            path: where to write.
            layers: the model's linear layers; all of them, to tell equal weights apart.
            factors: by layer name.

        Returns:
            Names of factored layers that have no counterpart in the torch graph and so stayed dense in this file.

        Raises:
            ModelError: the converter failed; the operator is named where it is known. Or the dense file crashes LiteRT,
                or answers in another way than the program; what computes the first value that differs is named.
        """
        pairs = dict(factors or {})
        if not pairs:
            self._emit_dense(path)
            return ()
        request: dict[str, Any] = {"do": "emit", "path": str(Path(path).resolve()), "factors": list(pairs)}
        arrays: dict[str, Array] = {}
        request["layers"] = []
        for index, key in enumerate(map(layer_key, layers)):
            entry = {"name": key.name, "digest": key.digest, "uses": key.uses, "bias": ""}
            if key.bias is not None:
                entry["bias"] = f"layer_{index}"
                arrays[f"layer_{index}"] = key.bias
            request["layers"].append(entry)
        for index, pair in enumerate(pairs.values()):
            arrays |= {f"{index}/{name}": array for name, array in packed_part(pair).items()}
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
        """Write an integer scheme of an fp32 file; see `edgepack.backends.tflite.quantizer.quantize`.

        Args:
            source: fp32 .tflite file, dense or factored.
            path: where to write.
            scheme: of all operators that are not in `schemes`.
            samples: for `INT8_STATIC`: by input name, (samples, *input shape of the file).
            schemes: of single linear operators and lookups, by the name of the tensor that they write.

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
        """End the process and remove its files, unless it is shared."""
        if not self._shared:
            self._process.close()

    @property
    def _dense_requests(self) -> tuple[dict[str, Any], dict[str, Any]]:
        path = str(self._process.folder / "dense.tflite")
        return {"do": "emit", "path": path, "factors": []}, {"do": "prove", "path": path}

    def _emit_dense(self, path: Path | str) -> None:
        emit, prove = self._dense_requests
        self._ask(emit)
        if (how := self._ask(prove)["difference"]) is not None:
            raise ModelError(f"the TFLite file's {how}{self._where_it_differs()}", hint=HINT)
        shutil.move(emit["path"], path)

    def _where_it_differs(self) -> str:
        """Which value is the first that LiteRT computes in another way, in words; nothing where a file that gives all
        values cannot be made."""
        try:
            first = self._ask({"do": "find", "path": str(self._process.folder / "values.tflite")})["first"]
        except ModelError:
            return ""
        if first is None:
            return "; a file that gives all of its values has them right, so the converter joins some in a wrong way"
        return f"; the first value that differs is that of {first}"

    def _begin(self, request: dict[str, Any], samples: Mapping[str, Array]) -> None:
        self._process.start()
        sent = dict(request)
        if samples:
            path = self._process.folder / "samples.npz"
            np.savez(path, allow_pickle=False, **samples)
            sent["samples"] = str(path)
        self._process.begin(request, sent)
        for each in self._dense_requests:
            self._process.begin(each)

    def _load(self, request: dict[str, Any], samples: Mapping[str, Array] | None = None) -> LoadedProgram:
        self._program = None
        program = request, samples or {}, "samples"
        reply = self._ask(*program)
        self._program = self._process.holds = program
        return LoadedProgram(tuple(reply["inputs"]), tuple(reply["outputs"]))

    def _ask(
        self, request: dict[str, Any], arrays: Mapping[str, Array] | None = None, field: str = ""
    ) -> dict[str, Any]:
        """What the process answers; one that holds another program, or none yet, is told of this one first."""
        self._process.start()
        if self._program is not None and self._process.holds is not self._program:
            self._send(*self._program)
            self._process.holds = self._program
        return self._send(request, arrays or {}, field)

    def _send(self, request: dict[str, Any], arrays: Mapping[str, Array], field: str) -> dict[str, Any]:
        """Ask with arrays in a file that the field of the request names."""
        if not arrays or self._process.has_begun(request):
            return self._process.ask(request)
        path = self._process.folder / "arrays.npz"
        try:
            np.savez(path, allow_pickle=False, **arrays)
            return self._process.ask({**request, field: str(path)})
        finally:
            path.unlink(missing_ok=True)


def _numbered(samples: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The arrays of all samples, each behind the number of its sample, so that none has a name that `savez` keeps."""
    return {f"{number}:{name}": array for number, sample in enumerate(samples) for name, array in sample.items()}


def _program_request(
    path: Path | str, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> dict[str, Any]:
    return {"do": "load_program", "path": str(Path(path).resolve()), **_names(inputs, outputs), "samples": ""}


def _onnx_request(
    path: Path | str,
    shapes: Mapping[str, Sequence[int]],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> dict[str, Any]:
    plain = {name: [int(n) for n in shape] for name, shape in shapes.items()}
    names = _names(inputs, outputs)
    return {"do": "load_onnx", "path": str(Path(path).resolve()), "shapes": plain, **names, "samples": ""}


def _names(inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> dict[str, list[str] | None]:
    return {"inputs": list(inputs) if inputs else None, "outputs": list(outputs) if outputs else None}


class ConverterProcess:
    """Runs from `start` until `close`, the end of this process, or a crash of its own.

    Attributes:
        holds: the request whose program it holds. One that was started anew holds none.
    """

    def __init__(self) -> None:
        self.holds: _Request | None = None
        self._process: TiedProcess | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._ready = False
        self._begun: list[Mapping[str, Any]] = []

    @property
    def folder(self) -> Path:
        """For files that are handed over; removed by `close`."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="edgepack-tflite-")
        return Path(self._folder.name)

    @property
    def pid(self) -> int | None:
        """None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and return at once: it imports in the background. Nothing happens where it runs."""
        if self._process is not None:
            return
        with self._log.open("wb") as log:
            # -P keeps the user's folder off sys.path: a file there must not shadow a library.
            self._process = TiedProcess(
                [sys.executable, "-P", "-m", "edgepack.backends.tflite.converter_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=_environment(),
            )
        self._ready = False
        self.holds = None

    def begin(self, request: Mapping[str, Any], sent: Mapping[str, Any] | None = None) -> None:
        """Send a request and return at once; `ask` for the same waits for the answer.

        Args:
            sent: what is sent, where that says more than what will be asked for.
        """
        self._write(sent or request, _doing(request))
        self._begun.append(request)

    def has_begun(self, request: Mapping[str, Any]) -> bool:
        """Whether the request has been sent by `begin`, and nobody has asked for its answer."""
        return request in self._begun

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to the running process and wait for what it answers.

        Raises:
            ModelError: it failed, or ended; in that case the next `start` makes another one.
        """
        doing = _doing(request)
        try:
            if not self._ready:
                self._receive("starting")
                self._ready = True
            while self._begun and self._begun[0] != request:
                self._line(_doing(self._begun.pop(0)))  # answers come in turn; nobody asked for this one
            if self._begun:
                self._begun.pop(0)
            else:
                self._write(request, doing)
            return self._receive(doing)
        except KeyboardInterrupt:
            # An answer that nobody waits for would be taken for the next one's.
            self._end()
            raise

    def close(self) -> None:
        """End it and remove its files. What it was asked for is done, so nobody waits for it to take itself apart."""
        self._end(patience_s=0.0)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def _log(self) -> Path:
        return self.folder / "worker.log"

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        """Where requests go, and where replies come from."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ModelError("the TFLite converter is not running")
        return process.stdin, process.stdout

    def _write(self, request: Mapping[str, Any], doing: str) -> None:
        requests, _ = self._pipes()
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
        except OSError as err:
            raise self._crashed(doing) from err

    def _line(self, doing: str) -> str:
        _, replies = self._pipes()
        line = replies.readline()
        if not line.endswith("\n"):
            raise self._crashed(doing)
        return line

    def _receive(self, doing: str) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self._line(doing))
        if "error" not in reply:
            return reply
        if doing == "starting":
            self._end()
        if reply.get("known"):
            raise ModelError(reply["error"], hint=reply.get("hint"))
        operator = f" at {reply['operator']}" if reply.get("operator") else ""
        raise ModelError(
            f"the TFLite converter failed{operator} ({doing}): {reply['error']}{self._tail()}",
            hint=HINT,
        )

    def _crashed(self, doing: str) -> ModelError:
        """The error for a worker that ended by itself; it is cleared away, so that the next call starts another."""
        tail = self._tail()
        code = self._end()
        if code is not None and code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        else:
            how = f"ended with exit code {code}"
        who = "LiteRT, which ran the converted file," if doing.startswith("prove") else "the TFLite converter"
        hint = "report the log above, or build only the ONNX file (--formats onnx)"
        if code in (-signal.SIGKILL, 137):
            hint = "most likely the system ran out of memory: close other programs, or build on a larger machine"
        return ModelError(f"{who} {how} ({doing}){tail}", hint=hint)

    def _tail(self) -> str:
        """The last lines of the worker's log, for an error message."""
        try:
            text = self._log.read_bytes()[-20_000:].decode("utf-8", "replace")
        except OSError:
            return ""
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "".join(f"\n  | {line[:200]}" for line in lines[-_LOG_LINES:])

    def _end(self, patience_s: float = 0.5) -> int | None:
        process, self._process = self._process, None
        self._ready, self._begun = False, []
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # unsent bytes for a process that has gone
        try:
            return process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.let_go()


def _doing(request: Mapping[str, Any]) -> str:
    return f"{request['do'].replace('_', ' ')} {Path(request.get('path', '')).name}".strip()


def _environment() -> dict[str, str]:
    """The worker's environment: quiet, one thread, no accelerator look-up, edgepack importable as it is here."""
    package = str(Path(__file__).resolve().parents[3])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    quiet = {"LITERT_TORCH_SHOW_PROGRESS": "n", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
