"""Devices without Python: TFLite's benchmark_model and ONNX Runtime's onnxruntime_perf_test in place of the runner.

They measure warm latency and say something of memory; the rest of the protocol needs the runner. Written from the
tools' sources and tested with stand-ins that print what these print: neither tool was run, and no phone.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgepack.backends.registry import FACTS
from edgepack.devices.device import SCHEMA_VERSION, Job, Mode, last_lines, read_reply
from edgepack.devices.native_probe import (
    PROBE_SCRIPT,
    Figures,
    hottest,
    probe_report,
    read_benchmark_model,
    read_perf_test,
    sections,
    tried,
)
from edgepack.devices.remote import RemoteDevice
from edgepack.errors import StableDeviceError, TransientDeviceError, UsageError
from edgepack.model.scheme import Format
from edgepack.workspace import file_digest

PROBE_TIMEOUT_S = 120.0
BENCHMARK_MODEL, PERF_TEST = "benchmark_model", "onnxruntime_perf_test"
_FORMATS: Mapping[str, Format] = {facts.tool: fmt for fmt, facts in FACTS.items()}
_SPARE_S = 15.0
# Seconds that a clock of whole seconds may be short of the limit.
_SLACK_S = 2

# The report of a script: its output, in letters that need no escape in JSON.
_ENVELOPE = """
printf '{"schema_version": %d, "answer": "'
answer "$@" | base64 | tr -d '\\n'
printf '"}\\n'
"""

# In the job's own folder. LIMIT CPUS TOOL COMMAND...: how it ended and what it said; without a tool, how hot it is.
_RUN_SCRIPT = """
limit=$1 cpus=$2 tool=$3
shift 3
hot() { cat /sys/class/thermal/thermal_zone*/temp 2> /dev/null | tr '\\n' ' '; }
before=$(hot)
started=$(date +%s)
code=0
if [ -n "$tool" ]; then
    chmod 700 "$tool"
    timeout -s KILL "$limit" "$@" < /dev/null > text 2>&1
    code=$?
fi
[ -n "$cpus" ] || cpus=$(cd /sys/devices/system/cpu && echo cpu[0-9]* | tr -d cpu)
answer() {
    echo "== code"; echo $code
    echo "== seconds"; echo $(($(date +%s) - started))
    echo "== hot"; echo "$before,$(hot)"
    echo "== governors"
    for cpu in $cpus; do cat "/sys/devices/system/cpu/cpu$cpu/cpufreq/scaling_governor" 2> /dev/null; done
    echo "== text"; [ -f text ] && tail -c 200000 text | sed 's/^==/ ==/'
    echo; echo "== times"; [ -f times.csv ] && head -c 30000000 times.csv | sed 's/^==/ ==/'
    echo
}
"""

_NOTHING = dict.fromkeys(
    ("rss_bytes", "pss_bytes", "anon_bytes", "file_bytes", "peak_bytes", "swap_bytes", "major_faults")
)


@dataclass(frozen=True)
class Tool:
    """A program that measures models of one format.

    Attributes:
        path: here.
        there: on the device.
        version: the start of its SHA-256: neither tool says its own.
    """

    name: str
    path: Path
    there: str
    version: str


class NativeDevice:
    """Runs jobs with tools that the user has built, or downloaded, for the device.

    Args:
        device: at the end of a link; its Python is not used. Who made it closes it.
        benchmark_model: TFLite's, for models of this format.
        perf_test: ONNX Runtime's.

    Raises:
        UsageError: a tool is no file here, or there is none.
    """

    modes: frozenset[Mode] = frozenset({"latency", "memory"})

    def __init__(self, device: RemoteDevice, *, benchmark_model: Path | None, perf_test: Path | None) -> None:
        self._device = device
        self._tools: dict[Format, Tool] = {}
        self._too_slow: dict[tuple[str | None, int], int] = {}
        for fmt, name, path in _named(benchmark_model, perf_test):
            if not path.is_file():
                raise UsageError(
                    f"no {name} at {path}", hint="give the path of a program for the device's architecture"
                )
            digest = file_digest(path)
            self._tools[fmt] = Tool(name, path, device.push(path), f"sha256 {digest[:12]}")
        if not self._tools:
            raise UsageError("no tool for a device without Python", hint="give --benchmark-model or --perf-test")

    @property
    def name(self) -> str:
        """See `Device.name`."""
        return self._device.name

    @property
    def resumed(self) -> int:
        """See `Device.resumed`."""
        return self._device.resumed

    def probe(self) -> Mapping[str, Any]:
        """See `Device.probe`: what the shell can read; the tools stand in the place of runtimes."""
        tools = list(self._tools.values())
        there = [tool.there for tool in tools]
        command = ["sh", "-c", "answer() {" + PROBE_SCRIPT + "}\n" + _ENVELOPE % SCHEMA_VERSION, "sh", *there]
        what = f"probe of {self.name}"
        found = sections(_answer(what, self._device.run_command(command, there, what, PROBE_TIMEOUT_S, once=True)))
        runtimes = {tool.name: tried(tool.version, found.get(f"tool {tool.there}", "")) for tool in tools}
        return probe_report(found, self._device.facts, runtimes)

    def push(self, path: Path) -> str:
        """See `Device.push`."""
        return self._device.push(path)

    def run(self, job: Job) -> Mapping[str, Any]:
        """See `Device.run`. The inputs of the job are left alone: the tools make random ones."""
        what = f"{job.title} on {self.name}"
        if job.mode not in self.modes or job.format is None:
            raise StableDeviceError(f"{what}: the tools on the device cannot do that", hint="it needs Python there")
        if job.model is None:
            return self._baseline(job, what)
        tool = self._tools.get(job.format)
        if tool is None:
            name = FACTS[job.format].tool
            raise StableDeviceError(f"{what}: there is no tool for {job.format}", hint=f"give the path of {name}")
        figures, found = self._measure(tool, job, what)
        return tool_report(job, tool.name, tool.version, figures, found)

    def close(self) -> None:
        """See `Device.close`: the device behind is closed by whoever made it."""

    def _measure(self, tool: Tool, job: Job, what: str) -> tuple[Figures, dict[str, str]]:
        if job.mode == "memory":
            job = replace(job, runs=3, seconds=0.0, warmup_runs=0, warmup_s=0.0)
        if tool.name == BENCHMARK_MODEL:
            found = self._run(tool, _benchmark_model(tool, job), job, what)
            return read_benchmark_model(what, found.get("text", "")), found
        # perf_test runs for a time or a number of times, not until both are reached. So it runs for the time; where
        # that was too short for the number, once more for the number, which then takes longer than the time.
        times = self._too_slow.get((job.model, job.threads))
        figures, found = self._perf_test(tool, job, what, times)
        if times is None and figures.runs < job.runs:
            times = 2 * figures.warmup_runs + job.runs
            self._too_slow[job.model, job.threads] = times
            figures, found = self._perf_test(tool, job, what, times)
        if not figures.runs:
            raise StableDeviceError(f"{what}: {figures.warmup_runs} inferences were not enough to warm up")
        return figures, found

    def _perf_test(self, tool: Tool, job: Job, what: str, times: int | None) -> tuple[Figures, dict[str, str]]:
        found = self._run(tool, _perf_test(tool, job, times), job, what)
        text, rows = found.get("text", ""), found.get("times", "")
        figures = read_perf_test(what, text, rows, warmup_runs=job.warmup_runs, warmup_s=job.warmup_s)
        return figures, found

    def _run(self, tool: Tool, command: list[str], job: Job, what: str) -> dict[str, str]:
        mask = f"{sum(1 << cpu for cpu in job.cpus):x}"
        pinned = ["taskset", mask] if job.cpus else []
        limit = max(1, round(job.timeout_s))
        files = [tool.there, *([job.model] if job.model else [])]
        arguments = [str(limit), " ".join(map(str, job.cpus)), tool.there, *pinned, *command]
        expect_s = job.warmup_s + job.seconds
        found = self._script(arguments, files, what, limit + _SPARE_S, expect_s=expect_s)
        code, seconds = _number(what, found, "code"), _number(what, found, "seconds")
        text = found.get("text", "").encode()
        if code in (124, 137) and seconds >= limit - _SLACK_S:
            raise TransientDeviceError(
                f"{what}: no answer within {limit} s, killed", hint="the device may be busy; try again"
            )
        if 128 < code <= 192:
            read_reply(what, 128 - code, b"", text)  # says which signal it was and what it means
        tail = last_lines(text).replace("last lines on stderr", "it says")
        if code in (126, 127):
            raise StableDeviceError(
                f"{what}: {tool.name} cannot be started there{tail}",
                hint=f"is it built for {self._device.facts.machine}, and for the device's system?",
            )
        if code != 0:
            raise StableDeviceError(f"{what}: {tool.name} failed with exit code {code}{tail}")
        return found

    def _baseline(self, job: Job, what: str) -> dict[str, Any]:
        """No tool runs without a model: the temperature is all that is looked at."""
        return import_report(job, self._script(["1", "", ""], [], what, PROBE_TIMEOUT_S, once=True))

    def _script(
        self,
        arguments: list[str],
        files: list[str],
        what: str,
        timeout_s: float,
        *,
        expect_s: float = 0.0,
        once: bool = False,
    ) -> dict[str, str]:
        command = ["sh", "-c", _RUN_SCRIPT + _ENVELOPE % SCHEMA_VERSION, "sh", *arguments]
        report = self._device.run_command(command, files, what, timeout_s, expect_s=expect_s, once=once)
        return sections(_answer(what, report))


def _named(benchmark_model: Path | None, perf_test: Path | None) -> list[tuple[Format, str, Path]]:
    """Format that a tool measures, its name and where it is."""
    paths = {BENCHMARK_MODEL: benchmark_model, PERF_TEST: perf_test}
    return [(_FORMATS[name], name, path) for name, path in paths.items() if path is not None]


def _benchmark_model(tool: Tool, job: Job) -> list[str]:
    """Both the number of runs and the seconds are reached, as in the runner; `max_secs` would cut both short."""
    return [
        tool.there,
        f"--graph={job.model}",
        f"--num_threads={job.threads}",
        f"--num_runs={job.runs}",
        f"--min_secs={job.seconds}",
        f"--max_secs={job.timeout_s}",
        f"--warmup_runs={max(1, job.warmup_runs)}",
        f"--warmup_min_secs={job.warmup_s}",
    ]


def _perf_test(tool: Tool, job: Job, times: int | None) -> list[str]:
    """For the job's seconds, or `times` inferences. -I: inputs made by the tool, -S: random ones of this seed."""
    number = times if times is not None else job.warmup_runs + job.runs
    by_time = times is None and job.warmup_s + job.seconds > 0
    length = ["-t", str(math.ceil(job.warmup_s + job.seconds))] if by_time else ["-r", str(number)]
    mode = ["-m", "duration" if by_time else "times", *length]
    threads = ["-x", str(job.threads), "-y", "1"]
    return [tool.there, "-e", "cpu", "-I", "-S", "1", *threads, *mode, str(job.model), "times.csv"]


def _answer(what: str, report: Mapping[str, Any]) -> str:
    answer = report.get("answer")
    try:
        if isinstance(answer, str) and answer:
            return base64.b64decode(answer, validate=True).decode(errors="replace").replace("\r\n", "\n")
    except binascii.Error:
        pass
    raise StableDeviceError(
        f"{what}: found {json.dumps(answer)[:80]}, expected an answer in base64", hint="has the device base64?"
    )


def _number(what: str, found: Mapping[str, str], name: str) -> int:
    text = found.get(name, "")
    if not text.isdecimal() or len(text) > 9:
        raise StableDeviceError(f"{what}: its {name} is {text[:40]!r}, expected a number")
    return int(text)


def tool_report(job: Job, name: str, version: str, figures: Figures, found: Mapping[str, str]) -> dict[str, Any]:
    """The report of a job of mode `latency` or `memory`.

    Args:
        job: as it was asked for.
        name, version: of the tool.
        figures: of its output.
        found: what the script around it says: `governors`, `hot`.
    """
    phases = dict.fromkeys(("process_s", "numpy_s", "runtime_s"))
    common = {
        "schema_version": SCHEMA_VERSION,
        "mode": job.mode,
        "tool": {"name": name, "version": version},
        "runtime": None,
        "format": job.format,
        "threads": job.threads,
        "cpus": list(job.cpus),
        "inputs": "random",
        "load": {**phases, "session_s": figures.session_s, "first_inference_s": figures.first_inference_s},
        "governor": ", ".join(sorted({line[:40] for line in found.get("governors", "").split()})) or None,
    }
    return {**common, **(_memory if job.mode == "memory" else _latency)(figures, found)}


def import_report(job: Job, found: Mapping[str, str]) -> dict[str, Any]:
    """The report of mode `memory` without a model, which no tool runs.

    What benchmark_model says of memory is above its own start. So that start, the tool without a model, is 0.
    """
    above_start = job.format is not None and FACTS[job.format].tool == BENCHMARK_MODEL
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": job.mode,
        "import_only": True,
        "imported": {**_NOTHING, "peak_bytes": 0 if above_start else None},
        "temperature_c": _temperatures(found)[1],
    }


def _latency(figures: Figures, found: Mapping[str, str]) -> dict[str, Any]:
    return {
        "latency_s": list(figures.latency_s),
        "kept_every": figures.kept_every,
        "runs": figures.runs,
        "seconds": figures.seconds,
        "warmup_runs": figures.warmup_runs,
        "clock": None,
        "temperature_c": list(_temperatures(found)),
        "throttle": None,
        "others_busy": None,
    }


def _memory(figures: Figures, found: Mapping[str, str]) -> dict[str, Any]:
    return {
        "import_only": False,
        "imported": {**_NOTHING, "peak_bytes": 0 if figures.above_start else None},
        "loaded": {**_NOTHING, "peak_bytes": figures.loaded_bytes},
        "ran": {**_NOTHING, "peak_bytes": figures.ran_bytes},
        "temperature_c": _temperatures(found)[1],
    }


def _temperatures(found: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Before and after, °C."""
    before, _, after = found.get("hot", "").partition(",")
    return hottest(before.split()), hottest(after.split())
