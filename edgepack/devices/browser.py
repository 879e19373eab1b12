"""A browser as a device: a page runs the model files in onnxruntime-web and LiteRT.js, each in a fresh frame."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.registry import FACTS
from edgepack.backends.runtime import load
from edgepack.data import Samples, example, rename
from edgepack.devices.browser_server import BrowserServer, require_page
from edgepack.devices.device import SCHEMA_VERSION, Job, Mode
from edgepack.errors import StableDeviceError, TransientDeviceError
from edgepack.metrics.values import sqnr_db
from edgepack.model.scheme import Format
from edgepack.model.types import Array
from edgepack.validation import STRICT, plain_text, printable
from edgepack.workspace import Progress, silent

TOOL = "browser"
"""In reports and results."""
HELLO_S = 600.0
"""How long somebody may take to open the page."""
SILENT_S = 60.0
"""A page that is awake takes a job long before."""
LOADING_S = 180.0
"""What a job may take beside what it times: a runtime of 14 MB comes over the air each time."""
LEAST_DB = 20.0
"""Signal to noise ratio of answers against this machine's below which it is another model that was timed."""
MOST_DB = 200.0
MOST_AXES = 64
_DTYPES = frozenset({"bool", "float16", "float32", "float64"}) | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
MOST_SAMPLES, MOST_RUNS, MOST_SECONDS = 100_000, 1e12, 1e5
_BROWSERS = (
    ("Edg(?:A|iOS)?", "Edge"), ("OPR", "Opera"), ("SamsungBrowser", "Samsung Internet"),
    ("(?:Firefox|FxiOS)", "Firefox"),
    ("(?:HeadlessChrome|Chrome|CriOS)", "Chrome"), ("Version", "Safari"),
)  # fmt: skip
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Macintosh", "CrOS", "Linux")


@dataclass(frozen=True)
class Hello:
    """What a page says of itself."""

    user_agent: str
    cores: int
    isolated: bool
    memory_gib: float | None

    @property
    def browser(self) -> str:
        """`Chrome 150`."""
        for pattern, name in _BROWSERS:
            found = re.search(rf"\b{pattern}/(\d{{1,5}})", self.user_agent, re.ASCII)
            if found:
                return f"{name} {found[1]}"
        return "a browser"

    @property
    def title(self) -> str:
        """`Chrome 150 on Android`."""
        system = next((name for name in _SYSTEMS if name in self.user_agent), "an unknown system")
        return f"{self.browser} on {system}"


@dataclass(frozen=True)
class Answer:
    """One output, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True)
class Report:
    """What a frame says of a job.

    Attributes:
        latency_s: seconds per inference, the mean of each batch of `runs_per_sample`.
        seconds: of all batches.
    """

    latency_s: tuple[float, ...]
    runs_per_sample: int
    seconds: float
    first_inference_s: float
    runtime_s: float
    session_s: float
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Failure:
    """Why a job has no report, in the words of the runtime."""

    error: str


@dataclass(frozen=True)
class _Expected:
    """What a model file is fed, and what it answers here."""

    inputs: Mapping[str, Array]
    answers: Sequence[Array]


class BrowserDevice:
    """Runs jobs in a page that somebody has opened.

    Args:
        server: whose page it is; who made it closes it.
        progress: told while somebody has yet to open the page.
    """

    modes: frozenset[Mode] = frozenset({"latency"})
    name = TOOL
    resumed = 0

    def __init__(self, server: BrowserServer, progress: Progress = silent) -> None:
        self._server, self._progress = server, progress
        self._versions = require_page()
        self._hello: Hello | None = None
        self._jobs = 0
        self._shown = (0, 0)
        self._numbers: dict[str, int] = {}

    def showing(self, progress: Progress) -> Progress:
        """The same, shown on the page as well."""

        def told(stage: str, done: int = 0, total: int = 0) -> None:
            self._shown = (done, total)
            progress(stage, done, total)

        return told

    def probe(self) -> Mapping[str, Any]:
        """See `Device.probe`: what a browser tells. Waits until the page is open."""
        hello = self._page()
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": "browser",
            "device_model": hello.title,
            "cpu_model": "",
            "features": [],
            "cpus": [{"cpu": cpu, "core": "", "max_khz": None, "governor": None} for cpu in range(hello.cores)],
            "caches": [],
            "ram_bytes": int((hello.memory_gib or 0) * 2**30),
            "kernel": "",
            "libc": "",
            "python": "",
            "runtimes": {name: {"version": version, "imports": True} for name, version in self._versions.items()},
            "allowed_cpus": [],
            "counters": {"available": False, "reason": "a browser counts no events"},
        }

    def push(self, path: Path) -> str:
        """See `Device.push`: the page fetches a model when a job asks for it."""
        return str(path.resolve())

    def run(self, job: Job) -> Mapping[str, Any]:
        """See `Device.run`: the answers are compared with this machine's, and the ratio is in the report."""
        what = f"{job.title} in the browser"
        hello = self._page()
        if job.mode not in self.modes or job.format is None or job.model is None:
            raise StableDeviceError(f"{what}: a browser cannot do that")
        if job.threads > 1 and not hello.isolated:
            raise StableDeviceError(
                f"{what}: {job.threads} threads, and the page has one, as its address is not cross-origin isolated",
                hint="leave out --threads, or let the device reach the page as localhost: without --lan, over "
                "`adb reverse tcp:PORT tcp:PORT`",
            )
        expected = _expected(job.model, job.format, job.inputs)
        report = self._answered(job, expected, what)
        package = FACTS[job.format].browser_package
        runtime = {"name": package, "version": self._versions[package]}
        return _device_report(job, report, hello, runtime) | {
            "agreement_db": _agreement(report.answers, expected, what)
        }

    def close(self) -> None:
        """See `Device.close`: there is nothing on the device."""

    def _page(self) -> Hello:
        desk = self._server.desk
        until = time.monotonic() + HELLO_S
        with desk.changed:
            while desk.hello is None:
                self._progress(f"open {self._server.address}")
                desk.changed.wait(1.0)
                if time.monotonic() > until:
                    raise StableDeviceError(
                        f"nobody opened {self._server.address} within {HELLO_S / 60:.0f} minutes",
                        hint="with --lan a phone in the same network can",
                    )
            found = _read(Hello, desk.hello, "the page")
        if not isinstance(found, Hello) or not 1 <= found.cores <= 4096:
            raise StableDeviceError("the page says of itself what cannot be", hint="load it again")
        return found

    def _answered(self, job: Job, expected: _Expected, what: str) -> Report:
        desk = self._server.desk
        limit = time.monotonic() + job.timeout_s + LOADING_S
        model = str(job.model)
        content = None if model in self._numbers else _content(job, expected)
        with desk.changed:
            self._jobs += 1
            if content is not None:
                self._numbers[model] = len(desk.models)
                desk.models.append(content)
            desk.report = None
            desk.job = self._described(job, expected, self._numbers[model])
            desk.taken = False
            given = time.monotonic()
            try:
                while desk.report is None:
                    desk.changed.wait(1.0)
                    now = time.monotonic()
                    if now > given + SILENT_S and not desk.taken:
                        raise TransientDeviceError(
                            f"{what}: the page did not take it within {SILENT_S:.0f} s",
                            hint="is the page in front, and the screen on?",
                        )
                    if now > limit:
                        raise TransientDeviceError(f"{what}: no answer within {job.timeout_s + LOADING_S:.0f} s")
                raw = desk.report
            finally:
                desk.job = desk.report = None
        found = _read(Report, raw, what)
        if isinstance(found, Failure):
            raise StableDeviceError(f"{what}: {found.error}", hint="leave the format out with --formats")
        problem = next(_problems(found), None)
        if problem is not None:
            raise StableDeviceError(f"{what}: the report cannot be: {problem}")
        return found

    def _described(self, job: Job, expected: _Expected, number: int) -> dict[str, Any]:
        done, total = self._shown
        return {
            "number": self._jobs,
            "title": Path(str(job.model)).name,
            "done": done,
            "total": total,
            "format": job.format,
            "model": f"model/{number}",
            "threads": job.threads,
            "warmup_runs": job.warmup_runs,
            "warmup_s": job.warmup_s,
            "runs": job.runs,
            "seconds": job.seconds,
            "inputs": [
                {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "data": _text(array)}
                for name, array in expected.inputs.items()
            ],
        }


@contextmanager
def opened_browser(*, lan: bool, announce: Any, progress: Progress = silent) -> Iterator[BrowserDevice]:
    """A browser, for the time of a session; the server stops with it.

    Args:
        lan: see `BrowserServer`.
        announce: told the address to open.
        progress: told while nobody has opened it.

    Raises:
        UsageError: it cannot listen, or a package of the extra is missing.
        StableDeviceError: the runtimes of the page were not fetched.
    """
    require_page()
    server = BrowserServer(lan=lan)
    end = "This measurement was ended."
    try:
        announce(server.address)
        yield BrowserDevice(server, progress)
        end = "Done: the figures are in the pack. This page can be closed."
    finally:
        server.close(end)


def _expected(model: str, fmt: Format, inputs: str | None) -> _Expected:
    running = load(Path(model), fmt)
    samples = None
    if inputs is not None:
        with np.load(inputs, allow_pickle=False) as archive:
            samples = rename(Samples({name: archive[name] for name in archive.files}), running.inputs)
    feed = example(samples, running.inputs, 0)
    return _Expected(feed, running.run(feed))


def _content(job: Job, expected: _Expected) -> bytes:
    """Of the model file: LiteRT.js takes no sides that are left open, so that they are those of the inputs."""
    content = Path(str(job.model)).read_bytes()
    if job.format != "tflite":
        return content
    from edgepack.backends.tflite.resize import closed

    return closed(content, {name: array.shape for name, array in expected.inputs.items()})


def _agreement(answers: Sequence[Answer], expected: _Expected, what: str) -> float:
    """Signal to noise ratio of the worst output, dB."""
    here, there = expected.answers, [_array(answer, what) for answer in answers]
    if [array.shape for array in there] != [array.shape for array in here]:
        raise StableDeviceError(
            f"{what}: it answers in other shapes than on this machine: found {[array.shape for array in there]}, "
            f"expected {[array.shape for array in here]}"
        )
    found = [sqnr_db(one, other) for one, other in zip(there, here, strict=True)]
    worst = float(np.clip(np.nan_to_num(found, nan=-MOST_DB, posinf=MOST_DB, neginf=-MOST_DB), -MOST_DB, MOST_DB).min())
    if worst < LEAST_DB:
        raise StableDeviceError(
            f"{what}: its answers are not those of this machine: {worst:.0f} dB, expected {LEAST_DB:.0f} or more",
            hint="the browser's runtime computes something else: its times would say nothing",
        )
    return worst


def _array(answer: Answer, what: str) -> Array:
    try:
        if answer.dtype not in _DTYPES:  # whatever else numpy makes types of is not asked
            raise TypeError(answer.dtype[:40])
        raw = base64.b64decode(answer.data, validate=True)
        return np.frombuffer(raw, np.dtype(answer.dtype)).reshape(answer.shape)
    except (binascii.Error, TypeError, ValueError, OverflowError) as err:
        said = f"{plain_text(answer.dtype, 40)} {plain_text(str(answer.shape[:MOST_AXES]))}"
        raise StableDeviceError(f"{what}: its output is no array of {said}") from err


def _read(kind: type[Hello] | type[Report], raw: bytes, what: str) -> Any:
    """One of the dataclasses, or `Failure` in the place of a `Report`."""
    from pydantic import TypeAdapter, ValidationError

    settings: Any = STRICT | {"str_max_length": 1 << 26}
    either: Any = tuple[kind | Failure] if kind is Report else tuple[kind]  # type: ignore[valid-type]
    try:
        (found,) = TypeAdapter(either, config=settings).validate_json(b"[" + raw + b"]")
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise StableDeviceError(f"{what}: what the page sent is not as expected: {where}: {first['msg']}") from err
    texts = [found.user_agent] if isinstance(found, Hello) else [found.error] if isinstance(found, Failure) else []
    if not printable(texts) or any(len(text) > 1000 for text in texts):
        raise StableDeviceError(f"{what}: what the page sent holds control characters, or is too long")
    return found


def _problems(report: Report) -> Iterator[str]:
    times = (*report.latency_s, report.seconds)
    if (
        not report.latency_s
        or len(report.latency_s) > MOST_SAMPLES
        or not all(0 < time_s < MOST_SECONDS for time_s in times)
    ):
        yield "expected positive times"
    if not 1 <= report.runs_per_sample <= MOST_RUNS:
        yield f"{report.runs_per_sample} runs in a sample"
    if not all(0 <= time_s < MOST_SECONDS for time_s in (report.first_inference_s, report.runtime_s, report.session_s)):
        yield "expected times of 0 or more"


def _text(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _device_report(job: Job, report: Report, hello: Hello, runtime: Mapping[str, str]) -> dict[str, Any]:
    """As the runner would have it; what a browser does not tell is missing."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": job.mode,
        "tool": {"name": TOOL, "version": hello.browser},
        "runtime": dict(runtime),
        "format": job.format,
        "threads": job.threads,
        "cpus": [],
        "inputs": "name",
        "load": {
            "process_s": None,
            "numpy_s": None,
            "runtime_s": report.runtime_s,
            "session_s": report.session_s,
            "first_inference_s": report.first_inference_s,
        },
        "governor": None,
        "latency_s": list(report.latency_s),
        "kept_every": 1,
        "runs": len(report.latency_s) * report.runs_per_sample,
        "runs_per_sample": report.runs_per_sample,
        "seconds": report.seconds,
        "clock": None,
        "temperature_c": [None, None],
        "throttle": None,
        "others_busy": None,
    }
