"""The facts of a device without Python, in the runner's probe schema: the kernel's files, read there, parsed here.

What TFLite's benchmark_model and ONNX Runtime's onnxruntime_perf_test print, as numbers. Nothing in it is trusted.

The texts are those of tensorflow/lite/tools/benchmark/benchmark_model.cc with tsl/util/stats_calculator.h (TensorFlow
2.4 to 2.19), and of onnxruntime/test/perftest/performance_runner.cc (onnxruntime 1.8 to 1.23).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.devices.device import last_lines
from edgepack.devices.shell import ShellFacts
from edgepack.errors import StableDeviceError
from edgepack.validation import plain_lines

# The part numbers of cpuinfo by core, as the runner has them.
ARM_PARTS = {
    "0xc08": "cortex-a8", "0xd03": "cortex-a53", "0xd05": "cortex-a55", "0xd07": "cortex-a57", "0xd08": "cortex-a72",
    "0xd09": "cortex-a73", "0xd0a": "cortex-a75", "0xd0b": "cortex-a76", "0xd0d": "cortex-a77", "0xd41": "cortex-a78",
    "0xd44": "cortex-x1", "0xd0c": "neoverse-n1", "0xd40": "neoverse-v1", "0xd49": "neoverse-n2",
}  # fmt: skip

# On the device: every file under its name. Globs that match nothing stay as they are, and are no files.
PROBE_SCRIPT = r"""
cpu=/sys/devices/system/cpu
for file in /proc/cpuinfo /proc/meminfo /proc/device-tree/model /sys/class/dmi/id/product_name $cpu/online \
    $cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq $cpu/cpu[0-9]*/cpufreq/scaling_governor \
    $cpu/cpu[0-9]*/cache/index[0-9]*/level $cpu/cpu[0-9]*/cache/index[0-9]*/type \
    $cpu/cpu[0-9]*/cache/index[0-9]*/size $cpu/cpu[0-9]*/cache/index[0-9]*/ways_of_associativity \
    $cpu/cpu[0-9]*/cache/index[0-9]*/coherency_line_size $cpu/cpu[0-9]*/cache/index[0-9]*/shared_cpu_list \
    /sys/class/thermal/thermal_zone[0-9]*/temp; do
    [ -r "$file" ] || continue
    echo "== $file"
    head -c 200000 "$file" 2> /dev/null | tr -d '\000'
    echo
done
echo "== allowed"
grep Cpus_allowed_list /proc/self/status
command -v getprop > /dev/null && {
    echo "== android"
    echo "model $(getprop ro.product.manufacturer) $(getprop ro.product.model)"
    echo "chip $(getprop ro.soc.model)"
    echo "release $(getprop ro.build.version.release)"
}
for tool in "$@"; do
    chmod 700 "$tool"
    echo "== tool $tool"
    timeout -s KILL 20 "$tool" --help < /dev/null > probed 2>&1
    echo "code $?"
    tail -n 3 probed | cut -c 1-300
done
"""
_CPU = "/sys/devices/system/cpu"
_SIZES = {"": 0, "K": 10, "M": 20, "G": 30}
_MOST_CPUS = 4096

KEEP = 1000
"""Between so many and twice as many raw times are kept, evenly spaced, as the runner does."""
_MOST_S, _MOST_RUNS, _MOST_BYTES = 1e5, 10**9, 1 << 50
_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,3})?)"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, Warmup \(avg\): {_NUMBER}, "
    rf"Inference \(avg\): {_NUMBER}"
)
_COUNT = re.compile(r"^(?:\w+: )?count=(\d{1,12}) ", re.MULTILINE)
_FOOTPRINT = re.compile(
    r"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): "
    rf"init={_NUMBER} overall={_NUMBER}"
)
_SESSION = re.compile(rf"Session creation time cost: {_NUMBER} s")
_FIRST = re.compile(rf"First inference time cost: {_NUMBER} ms")
_PEAK = re.compile(r"Peak working set size: ?(\d{1,18})")


def sections(text: str) -> dict[str, str]:
    """What stands under each `== name` of an answer."""
    parts = re.split(r"^== (.+)$", text, flags=re.MULTILINE)
    return {name.strip(): body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def probe_report(
    found: Mapping[str, str], facts: ShellFacts, runtimes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The probe report of a device, as far as its shell sees it.

    Args:
        found: text by file, of `PROBE_SCRIPT`.
        facts: of the shell.
        runtimes: the tools, as the runner reports runtimes.
    """
    info = found.get("/proc/cpuinfo", "")
    memory = dict(re.findall(r"(\w+):\s+(\d{1,12}) kB", found.get("/proc/meminfo", "")))
    android = dict(line.partition(" ")[::2] for line in found.get("android", "").splitlines())
    dmi = found.get("/sys/class/dmi/id/product_name", "")
    release = android.get("release", "").strip()
    chip = android.get("chip", "").strip()
    allowed = found.get("allowed", "").partition(":")[2]
    return {
        "schema_version": 1,
        "mode": "probe",
        "machine": facts.machine,
        "device_model": _line(android.get("model", "").strip() or found.get("/proc/device-tree/model", "") or dmi),
        "cpu_model": _line(_first(info, r"^(?:model name|Hardware|uarch)\s*:\s*(.+)$") or chip),
        "features": _first(info, r"^(?:flags|Features|isa)\s*:\s*(.+)$").split()[:500],
        "hwcap": None,
        "cpus": _cpus(found, info),
        "allowed_cpus": [] if "taskset" in facts.lacks else cpu_list(allowed.strip()),
        "caches": _caches(found),
        **{key: int(memory.get(name, 0)) * 1024 for key, name in _MEMORY.items()},
        "temperature_c": hottest(text for name, text in found.items() if name.endswith("/temp")),
        "kernel": _line(facts.kernel),
        "libc": _line(facts.libc or (f"bionic of Android {release}" if release else "")),
        "python": "",
        "runtimes": dict(runtimes),
        "counters": {"available": False, "reason": "the tools on the device read no counters"},
    }


_MEMORY = {"ram_bytes": "MemTotal", "available_bytes": "MemAvailable", "swap_bytes": "SwapTotal"}


def hottest(texts: Any) -> float | None:
    """The highest of thousandths of °C, None where none is a temperature: a zone that reads what cannot be is none."""
    degrees = [int(text) / 1000 for text in texts if re.fullmatch(r"-?\d{1,6}", text)]
    return max((one for one in degrees if -50 < one < 150), default=None)


def cpu_list(text: str) -> list[int]:
    """[0, 1, 2, 5] of "0-2,5"; empty of anything else."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        return []
    cpus: set[int] = set()
    for part in text.split(",")[:_MOST_CPUS]:
        first, _, last = part.partition("-")
        cpus.update(range(int(first), min(int(last or first), _MOST_CPUS) + 1))
    return sorted(cpus)


def _cpus(found: Mapping[str, str], info: str) -> list[dict[str, Any]]:
    parts = {}
    for block in re.split(r"\n\s*\n", info):
        number = _first(block, r"^processor\s*:\s*(\d{1,4})$")
        if number:
            parts[int(number)] = _first(block, r"^CPU part\s*:\s*(\S+)$")[:20]
    online = cpu_list(found.get(f"{_CPU}/online", "")) or sorted(parts)
    cpus = []
    for cpu in online:
        folder = f"{_CPU}/cpu{cpu}/cpufreq"
        part = parts.get(cpu, "")
        cpus.append(
            {
                "cpu": cpu,
                "core": ARM_PARTS.get(part, part),
                "max_khz": _positive(found.get(f"{folder}/cpuinfo_max_freq", "")),
                "governor": _line(found.get(f"{folder}/scaling_governor", "")) or None,
            }
        )
    return cpus


def _caches(found: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each cache once."""
    folders = {name.rpartition("/")[0] for name in found if re.fullmatch(rf"{_CPU}/cpu\d+/cache/index\d+/size", name)}
    caches: dict[tuple[Any, ...], dict[str, Any]] = {}
    for folder in sorted(folders):
        size = re.fullmatch(r"(\d{1,9})([KMG]?)", found[f"{folder}/size"])
        kind = _line(found.get(f"{folder}/type", "")).lower()
        cpus = cpu_list(found.get(f"{folder}/shared_cpu_list", ""))
        level = _positive(found.get(f"{folder}/level", ""))
        if size and int(size[1]):
            caches[level, kind, tuple(cpus)] = {
                "level": level,
                "type": kind,
                "size_bytes": int(size[1]) << _SIZES[size[2]],
                "ways": _positive(found.get(f"{folder}/ways_of_associativity", "")),
                "line_bytes": _positive(found.get(f"{folder}/coherency_line_size", "")),
                "cpus": cpus,
            }
    return list(caches.values())


def tried(version: str, answer: str) -> dict[str, Any]:
    """What trying a tool with `--help` says: whether it runs there, and why not."""
    first, _, rest = answer.partition("\n")
    code = int(first[5:]) if re.fullmatch(r"code \d{1,3}", first) else None
    lines: Sequence[str] = [line for line in rest.splitlines() if line.strip()] or ["no message"]
    error = None
    if code is None:
        error = "it could not be tried"
    elif code in (126, 127):
        error = f"it cannot be started, perhaps for it is built for another architecture or system: {lines[-1]}"
    elif 128 < code <= 192:
        error = f"it died of signal {code - 128}" + (", an illegal instruction" if code == 132 else "")
    return {"version": version, "imports": error is None, "error": error and _line(error)}


def _line(text: str) -> str:
    """One printable line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:200]


def _first(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else ""


def _positive(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,12}", text) and int(text) > 0 else None


@dataclass(frozen=True)
class Figures:
    """What a tool measured, in seconds and bytes; None where it does not say.

    Attributes:
        latency_s: single inferences in order, every `kept_every`-th of `runs`; or one, the mean of all.
        runs, seconds: of the timed part; no runs where all of them were warm-up.
        warmup_runs: before it.
        session_s: from the model file to a model that is ready.
        above_start: what `loaded_bytes` and `ran_bytes`, the peaks after the load and after inference, leave out: the
            tool's own memory when it starts.
    """

    latency_s: tuple[float, ...]
    kept_every: int
    runs: int
    seconds: float
    warmup_runs: int
    session_s: float | None
    first_inference_s: float | None
    loaded_bytes: int | None
    ran_bytes: int | None
    above_start: bool


def read_benchmark_model(what: str, text: str) -> Figures:
    """The figures of one run of benchmark_model: it gives the mean of all inferences, no single ones.

    Args:
        what: the run, for messages.
        text: all it printed.

    Raises:
        StableDeviceError: that is not its output, or a figure cannot be.
    """
    timings, counts = _TIMINGS.search(text), _COUNT.findall(text)
    if timings is None or len(counts) != 2:
        raise _unexpected(what, text, "the line 'Inference timings in us' and two lines 'count='")
    # Small numbers are whole, large ones in the notation 1.24e+06.
    init_s, first_s, _, mean_s = (float(number) / 1e6 for number in timings.groups())
    warmup_runs, runs = int(counts[0]), int(counts[1])
    footprint = _FOOTPRINT.search(text)
    loaded, ran = (_whole(float(number) * (1 << 20)) for number in footprint.groups()) if footprint else (None, None)
    _check(what, text, [mean_s], runs, [init_s, first_s], [loaded, ran])
    return Figures((mean_s,), 1, runs, mean_s * runs, warmup_runs, init_s, first_s, loaded, ran, above_start=True)


def read_perf_test(what: str, text: str, times: str, *, warmup_runs: int, warmup_s: float) -> Figures:
    """The figures of one run of onnxruntime_perf_test, and every single time of its result file.

    The tool warms up with one inference. So the first times, until both `warmup_runs` and `warmup_s` are reached, are
    taken for warm-up too.

    Args:
        what: the run, for messages.
        text: all it printed.
        times: its result file: a line `model,seconds,peak bytes,CPU share,number` for every inference.
        warmup_runs, warmup_s: to leave out.

    Raises:
        StableDeviceError: that is not its output, or a figure cannot be.
    """
    every = [_time(what, line, index) for index, line in enumerate(_rows(times))]
    skip, spent = 0, 0.0
    while skip < len(every) and (skip < warmup_runs or spent < warmup_s):
        spent += every[skip]
        skip += 1
    timed = every[skip:]
    session, first, peak = _SESSION.search(text), _FIRST.search(text), _PEAK.search(text)
    if not every or session is None:
        raise _unexpected(what, text, f"'Session creation time cost' and a file of times; found {len(every)} of them")
    session_s, first_s = float(session[1]), float(first[1]) / 1e3 if first else None
    ran = int(peak[1]) if peak else None
    _check(what, text, every, len(every), [session_s, first_s], [ran])
    step = max(1, len(timed) // KEEP)
    return Figures(
        tuple(timed[::step]),
        step,
        len(timed),
        sum(timed),
        1 + skip,
        session_s,
        first_s,
        loaded_bytes=None,
        ran_bytes=ran or None,
        above_start=False,
    )


def _rows(times: str) -> list[str]:
    """The lines of single times: with statistics asked for, an empty line and other lines follow."""
    return [line for line in times.partition("\n\n")[0].splitlines() if line.strip()]


def _time(what: str, line: str, index: int) -> float:
    fields = line.rsplit(",", 4)
    if len(fields) != 5 or not re.fullmatch(_NUMBER, fields[1]) or fields[4].strip() != str(index):
        raise _unexpected(what, line, f"the time of inference {index} as 'model,seconds,bytes,CPU share,{index}'")
    return float(fields[1])


def _whole(value: float) -> int:
    return int(min(value, 2.0 * _MOST_BYTES))


def _check(
    what: str,
    text: str,
    latencies: Sequence[float],
    runs: int,
    phases: Sequence[float | None],
    amounts: Sequence[int | None],
) -> None:
    if not 1 <= runs <= _MOST_RUNS or not all(0 < seconds < _MOST_S for seconds in latencies):
        raise _unexpected(what, text, f"positive times of 1 to {_MOST_RUNS} inferences")
    if not all(seconds is None or 0 <= seconds < _MOST_S for seconds in phases):
        raise _unexpected(what, text, "seconds of loading")
    if not all(amount is None or 0 <= amount <= _MOST_BYTES for amount in amounts):
        raise _unexpected(what, text, "amounts of memory")


def _unexpected(what: str, text: str, expected: str) -> StableDeviceError:
    clean = plain_lines(text[-20_000:])
    found = last_lines(clean.encode()).removeprefix("; last lines on stderr: ")[:600] or "nothing"
    return StableDeviceError(
        f"{what}: the tool's output is not as expected: found {found!r}; expected {expected}",
        hint="is it benchmark_model or onnxruntime_perf_test, of a version that edgepack knows?",
    )
