"""The process that holds litert-torch, and the conversation with it: one line of JSON each way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from edgepack.errors import ModelError

_LOG_LINES = 8


class ConverterProcess:
    """Runs from `start` until `close`, the end of this process, or a crash of its own.

    Attributes:
        starts: how often it was started. One that is new knows nothing of what the one before it was told.
    """

    def __init__(self) -> None:
        self.starts = 0
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._ready = False

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
        self.starts += 1

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to the running process and wait for what it answers.

        Raises:
            ModelError: it failed, or ended; in that case the next `start` makes another one.
        """
        if not self._ready:
            self._receive("starting")
            self._ready = True
        requests, _ = self._pipes()
        doing = f"{request['do'].replace('_', ' ')} {Path(request.get('path', '')).name}".strip()
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
        except OSError as err:
            raise self._crashed(doing) from err
        try:
            return self._receive(doing)
        except KeyboardInterrupt:
            # An answer that nobody waits for would be taken for the next one's.
            self._end()
            raise

    def close(self) -> None:
        """End it and remove its files."""
        self._end()
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

    def _receive(self, doing: str) -> dict[str, Any]:
        _, replies = self._pipes()
        line = replies.readline()
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


def _environment() -> dict[str, str]:
    """The worker's environment: quiet, one thread, no accelerator look-up, edgepack importable as it is here."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    quiet = {"LITERT_TORCH_SHOW_PROGRESS": "n", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
