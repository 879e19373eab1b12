#!/usr/bin/env python3
"""Measures one model on the device it runs on. See CONTRACT.md for the arguments and the report.

One file, the standard library, numpy and whichever of onnxruntime, ai-edge-litert and tflite-runtime the device has;
Python 3.9 or newer. One JSON object goes to stdout, everything else to stderr.
"""

# Python 3.9 has no zip(strict=); the clock below starts before every import but its own.
# ruff: noqa: B905, E402

from __future__ import annotations

import time

_FIRST_LINE_NS = time.perf_counter_ns()

import argparse
import ctypes
import errno
import gc
import glob
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import random
import re
import signal
import struct
import subprocess
import sys
import zipfile

SCHEMA_VERSION = 1
KEEP_SAMPLES = 1000  # between this many and twice this many raw times are kept, evenly spaced
ARM_CORES = {
    "0xc08": "cortex-a8", "0xd03": "cortex-a53", "0xd05": "cortex-a55", "0xd07": "cortex-a57", "0xd08": "cortex-a72",
    "0xd09": "cortex-a73", "0xd0a": "cortex-a75", "0xd0b": "cortex-a76", "0xd0d": "cortex-a77", "0xd41": "cortex-a78",
    "0xd44": "cortex-x1", "0xd0c": "neoverse-n1", "0xd40": "neoverse-v1", "0xd49": "neoverse-n2",
}  # fmt: skip


class RunnerError(Exception):
    """A failure with a kind that the caller can act on; see CONTRACT.md."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


# ---------------------------------------------------------------- files of the kernel


def read_text(path, default=""):
    """A small text file, or the default where the kernel does not give it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\x00\n ")
    except OSError:
        return default


def cpu_list(text):
    """[0, 1, 2, 5] of "0-2,5"."""
    cpus = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def size_bytes(text):
    """Bytes of "32K" or "1M", as sysfs writes a cache size; None of anything else."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None


def positive(text):
    """The number in a sysfs file, None where it is absent or 0 (unknown)."""
    return int(text) if text.isdigit() and int(text) > 0 else None


def read_caches(root="/sys/devices/system/cpu"):
    """Each cache once: level, type, size, ways, line, and the CPUs that share it; getconf where sysfs has none."""
    caches = {}
    for index in sorted(glob.glob(root + "/cpu[0-9]*/cache/index[0-9]*")):
        entry = {
            "level": positive(read_text(index + "/level")),
            "type": read_text(index + "/type").lower(),
            "size_bytes": size_bytes(read_text(index + "/size")),
            "ways": positive(read_text(index + "/ways_of_associativity")),
            "line_bytes": positive(read_text(index + "/coherency_line_size")),
            "cpus": cpu_list(read_text(index + "/shared_cpu_list")),
        }
        if entry["size_bytes"]:
            caches[(entry["level"], entry["type"], tuple(entry["cpus"]))] = entry
    return list(caches.values()) or getconf_caches()


def getconf_caches():
    """Caches as the C library reports them: sizes only, and nothing about who shares them."""
    try:
        done = subprocess.run(["getconf", "-a"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    facts = dict(line.split(None, 1) for line in done.stdout.decode().splitlines() if len(line.split(None, 1)) == 2)
    caches = []
    for key, level, kind in (
        ("LEVEL1_DCACHE", 1, "data"),
        ("LEVEL1_ICACHE", 1, "instruction"),
        ("LEVEL2_CACHE", 2, "unified"),
        ("LEVEL3_CACHE", 3, "unified"),
    ):
        size, ways, line = (positive(facts.get(key + part, "").strip()) for part in ("_SIZE", "_ASSOC", "_LINESIZE"))
        if size:
            caches.append(
                {"level": level, "type": kind, "size_bytes": size, "ways": ways, "line_bytes": line, "cpus": []}
            )
    return caches


def last_level_cache_bytes():
    """Size of the largest cache, None where the machine does not say."""
    return max((cache["size_bytes"] for cache in read_caches() if cache["type"] != "instruction"), default=None)


def status_bytes():
    """The kB lines of /proc/self/status and smaps_rollup, in bytes; smaps_rollup counts exactly."""
    facts = {}
    for path, prefix in (("/proc/self/status", ""), ("/proc/self/smaps_rollup", "rollup:")):
        for line in read_text(path).splitlines():
            match = re.match(r"(\w+):\s+(\d+) kB", line)
            if match:
                facts[prefix + match[1]] = int(match[2]) * 1024
    return facts


def memory_now():
    """What this process holds now and has held at most, bytes. None: the kernel does not say."""
    facts = status_bytes()
    faults = read_text("/proc/self/stat").rpartition(")")[2].split()
    return {
        "rss_bytes": facts.get("rollup:Rss", facts.get("VmRSS")),
        "pss_bytes": facts.get("rollup:Pss"),
        "anon_bytes": facts.get("rollup:Anonymous", facts.get("RssAnon")),
        "file_bytes": facts.get("RssFile"),
        "peak_bytes": facts.get("VmHWM"),
        "swap_bytes": facts.get("VmSwap"),
        "major_faults": int(faults[9]) if len(faults) > 9 else None,
    }


# ---------------------------------------------------------------- what holds a CPU back


def temperature_c(root="/sys"):
    """The hottest thermal zone, °C, None where there is none; a zone that reads what cannot be is no sensor."""
    zones = [read_text(path) for path in glob.glob(root + "/class/thermal/thermal_zone*/temp")]
    degrees = [int(zone) / 1000 for zone in zones if re.fullmatch(r"-?\d{1,6}", zone)]
    return max((one for one in degrees if -50 < one < 150), default=None)


def governor(cpus, root="/sys"):
    """Governor of these CPUs, several joined by a comma, None where the kernel has none."""
    found = {read_text(f"{root}/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus} - {""}
    return ", ".join(sorted(found)) or None


def throttle(root="/sys"):
    """(source, number) that tells of a slowed CPU: the firmware's word of a Raspberry Pi, or the events of an x86."""
    try:  # the program first: the bits that it keeps since boot are gone from the file after every read
        nothing = subprocess.DEVNULL
        done = subprocess.run(
            ["vcgencmd", "get_throttled"], stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, timeout=2
        )
        word = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", done.stdout.decode(errors="replace").strip())
    except (OSError, subprocess.TimeoutExpired):
        word = None
    if word:
        return "vcgencmd", int(word[1], 16)
    text = read_text(root + "/devices/platform/soc/soc:firmware/get_throttled")
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text):
        return "get_throttled", int(text, 16)
    counts = glob.glob(root + "/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    numbers = [int(text) for text in map(read_text, counts) if text.isdigit()]
    return ("core_throttle_count", sum(numbers)) if numbers else None


def cpu_seconds(root="/proc"):
    """Seconds that all CPUs were busy and idle since boot, and that this process took; None where nobody tells."""
    ticks = [int(text) for text in first_match(read_text(root + "/stat"), r"^cpu +([\d ]+)$").split()[:8]]
    if len(ticks) < 8:
        return None
    tick = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / tick, idle / tick, time.process_time()


def others_busy(before, after):
    """Share of all CPUs' time that other programs, or other guests of the machine, took; None where it is too short."""
    if before is None or after is None:
        return None
    busy, idle, own = (late - early for early, late in zip(before, after))
    # The kernel counts in ticks of 10 ms, an error of one or two for every CPU.
    return min(1.0, max(0.0, busy - own) / (busy + idle)) if busy + idle >= 1.0 else None


class Watch:
    """What may have held the CPU back while it was measured. Nothing of it runs while the clock is running."""

    def __init__(self, numpy):
        self.numpy, self.throttle = numpy, throttle()

    def begin(self):
        """Just before the timed part, the warm-up done: a program that is started here would cool everything down."""
        self.clock, self.hot, self.seconds = clock_loop(self.numpy), temperature_c(), cpu_seconds()

    def end(self):
        """Just after the timed part: what the report says of it."""
        busy, hot, clock = others_busy(self.seconds, cpu_seconds()), temperature_c(), clock_loop(self.numpy)
        after = throttle() if self.throttle else None
        told = after and after[0] == self.throttle[0]
        return {
            "clock": {"before_s": self.clock, "after_s": clock},
            "temperature_c": [self.hot, hot],
            "governor": governor(allowed_cpus()),
            "throttle": {"source": after[0], "before": self.throttle[1], "after": after[1]} if told else None,
            "others_busy": busy,
        }


# ---------------------------------------------------------------- probe


def probe(args):
    """Facts about the device: CPU, caches, memory, software, counters."""
    info = read_text("/proc/cpuinfo")
    memory = dict(re.findall(r"(\w+):\s+(\d+) kB", read_text("/proc/meminfo")))
    return {
        "machine": platform.machine(),
        "device_model": read_text("/proc/device-tree/model") or read_text("/sys/class/dmi/id/product_name"),
        "cpu_model": first_match(info, r"^(?:model name|Hardware|uarch)\s*:\s*(.+)$"),
        "features": first_match(info, r"^(?:flags|Features|isa)\s*:\s*(.+)$").split(),
        "hwcap": hwcaps(),
        "cpus": probe_cpus(info),
        "allowed_cpus": allowed_cpus(),
        "caches": read_caches(),
        "ram_bytes": int(memory.get("MemTotal", 0)) * 1024,
        "available_bytes": int(memory.get("MemAvailable", 0)) * 1024,
        "swap_bytes": int(memory.get("SwapTotal", 0)) * 1024,
        "temperature_c": temperature_c(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "runtimes": {name: probe_runtime(name, args.imports) for name in RUNTIMES if runtime_version(name)},
        "counters": probe_counters(),
    }


def first_match(text, pattern):
    """The first group of the first line that matches, or an empty string."""
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else ""


def hwcaps():
    """AT_HWCAP and AT_HWCAP2 as the kernel handed them to this process; None without getauxval."""
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (AttributeError, OSError):
        return None
    getauxval.restype = ctypes.c_ulong
    return [int(getauxval(ctypes.c_ulong(key))) for key in (16, 26)]


def probe_cpus(info):
    """Each online CPU: its core, top frequency (kHz) and governor."""
    parts = {}
    for block in info.split("\n\n"):
        number = first_match(block, r"^processor\s*:\s*(\d+)$")
        if number:
            parts[int(number)] = first_match(block, r"^CPU part\s*:\s*(\S+)$")
    online = cpu_list(read_text("/sys/devices/system/cpu/online")) or sorted(parts) or list(range(os.cpu_count() or 1))
    cpus = []
    for cpu in online:
        folder = f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/"
        cpus.append(
            {
                "cpu": cpu,
                "core": ARM_CORES.get(parts.get(cpu, ""), parts.get(cpu, "")),
                "max_khz": positive(read_text(folder + "cpuinfo_max_freq")),
                "governor": governor([cpu]),
            }
        )
    return cpus


def allowed_cpus():
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def runtime_version(name):
    """The installed version, None where the runtime is not installed."""
    for distribution in (name, name + "-nightly"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def probe_runtime(name, imports):
    """A runtime's version and, unless `imports` is off, whether it imports; tried apart: it may kill the process."""
    report = {"version": runtime_version(name), "imports": None, "error": None}
    if not imports:
        return report
    command = [sys.executable, os.path.abspath(__file__), "import-check", "--runtime", name]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120)
    except subprocess.TimeoutExpired:
        report.update(imports=False, error="the import took over 120 s")
        return report
    except OSError as err:
        report["error"] = f"cannot start a second Python: {err}"
        return report
    report["imports"] = done.returncode == 0
    if done.returncode < 0:
        report["error"] = "the import died of " + signal_name(-done.returncode)
    elif done.returncode > 0:
        report["error"] = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:500]
    return report


def signal_name(number):
    """SIGILL of 4."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def import_check(args):
    """Imports one runtime and reports nothing else: the process's end is the answer."""
    __import__(RUNTIMES[args.runtime].module)
    return {"version": runtime_version(args.runtime)}


# ---------------------------------------------------------------- runtimes


class Ort:
    """An onnxruntime session. One call is `run_with_iobinding`: inputs stay where the runtime reads them."""

    def __init__(self, runtime, model, threads, alone=True):
        self.runtime = runtime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        if threads == 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        elif not alone:  # its threads must not spin on while another model is timed
            options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def inputs(self):
        """(name, shape with None where it is dynamic, numpy dtype) of every input."""
        return [
            (put.name, [n if isinstance(n, int) and n > 0 else None for n in put.shape], ort_dtype(put.type))
            for put in self.session.get_inputs()
        ]

    def prepare(self, arrays):
        """Puts the inputs where the runtime reads them and gives the call of one inference."""
        self.feeds = arrays
        binding = self.session.io_binding()
        self.held = []  # the binding does not keep its inputs alive
        for name, array in arrays.items():
            self.held.append(self.runtime.OrtValue.ortvalue_from_numpy(array))
            binding.bind_ortvalue_input(name, self.held[-1])
        for put in self.session.get_outputs():
            binding.bind_output(put.name)
        call = self.session.run_with_iobinding
        return lambda: call(binding)

    def outputs(self):
        """The answers to the prepared inputs by name."""
        names = [put.name for put in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, self.feeds)))

    raw_outputs = outputs

    def feed(self, arrays):
        """Writes the prepared inputs again."""
        for value, array in zip(self.held, arrays.values()):
            value.update_inplace(array)


def ort_dtype(name):
    """The numpy name of "tensor(float)"."""
    inner = name[len("tensor(") : -1] if name.startswith("tensor(") else name
    known = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
    dtype = known.get(inner, inner)
    if not re.fullmatch(r"float(16|32|64)|u?int(8|16|32|64)|bool", dtype):
        raise RunnerError("inputs", f"an input has the type {name}; this runner feeds plain numeric tensors")
    return dtype


class LiteRt:
    """A LiteRT (or TensorFlow Lite) interpreter with its default XNNPACK delegate. One call is `invoke`."""

    def __init__(self, runtime, model, threads, alone=True):
        self.interpreter = runtime.Interpreter(model_path=model, num_threads=threads)
        self.interpreter.allocate_tensors()

    def inputs(self):
        """(name, shape with None where it is dynamic, numpy dtype) of every input."""
        puts = []
        for put in self.interpreter.get_input_details():
            signature = put.get("shape_signature", put["shape"])
            puts.append((put["name"], [int(n) if n > 0 else None for n in signature], put["dtype"].__name__))
        return puts

    def prepare(self, arrays):
        """Puts the inputs where the runtime reads them and gives the call of one inference."""
        details = {put["name"]: put for put in self.interpreter.get_input_details()}
        for name, array in arrays.items():
            if list(details[name]["shape"]) != list(array.shape):
                self.interpreter.resize_tensor_input(details[name]["index"], array.shape)
        self.interpreter.allocate_tensors()
        for name, array in arrays.items():
            self.interpreter.set_tensor(details[name]["index"], array)
        return self.interpreter.invoke

    def outputs(self):
        """The answers to the prepared inputs by name."""
        return {
            put["name"]: dequantized(self.interpreter.get_tensor(put["index"]), put)
            for put in self.interpreter.get_output_details()
        }

    def raw_outputs(self):
        """The answers as they are stored, quantised ones too."""
        details = self.interpreter.get_output_details()
        return {put["name"]: self.interpreter.get_tensor(put["index"]) for put in details}

    def feed(self, arrays):
        """Writes the prepared inputs again."""
        for put in self.interpreter.get_input_details():
            self.interpreter.set_tensor(put["index"], arrays[put["name"]])

    def quantization(self, name):
        """(scale, zero point) of an integer input, None of any other."""
        for put in self.interpreter.get_input_details():
            if put["name"] == name and put["quantization"][0]:
                return put["quantization"]
        return None


def dequantized(array, put):
    """Real values of a quantised output, float32; any other output as it is."""
    scale, zero = put["quantization"]
    return ((array.astype("float32") - zero) * scale).astype("float32") if scale else array


class Runtime:
    """One that a device may have: the format that it serves, the module to import, and the class that opens a model.

    The class takes the module, the path of a model, the threads, and whether it is alone in the process. It has
    `inputs`, `prepare`, `outputs`, `raw_outputs` and `feed`, and `quantization` where inputs may be integers on a grid.
    """

    def __init__(self, fmt, module, session):
        self.format, self.module, self.session = fmt, module, session


# By name on PyPI; those of one format in the order in which they are looked for.
RUNTIMES = {
    "onnxruntime": Runtime("onnx", "onnxruntime", Ort),
    "ai-edge-litert": Runtime("tflite", "ai_edge_litert.interpreter", LiteRt),
    "tflite-runtime": Runtime("tflite", "tflite_runtime.interpreter", LiteRt),
}


def import_runtime(fmt):
    """(name, module, version) of the first installed runtime that serves a format, and the seconds it took."""
    start = time.perf_counter_ns()
    reasons = []
    for name, runtime in RUNTIMES.items():
        if runtime.format != fmt:
            continue
        try:
            __import__(runtime.module)
        except ImportError as err:
            reasons.append(f"{name}: {err}")
            continue
        return name, sys.modules[runtime.module], runtime_version(name), seconds_since(start)
    raise RunnerError("runtime-missing", "no runtime for {} imports here ({})".format(fmt, "; ".join(reasons)))


def seconds_since(start_ns):
    """Seconds on the monotonic clock."""
    return (time.perf_counter_ns() - start_ns) / 1e9


def process_age_s():
    """Seconds from the start of this process to now; the kernel counts in ticks of 10 ms. None off Linux."""
    fields = read_text("/proc/self/stat").rpartition(")")[2].split()
    if len(fields) < 20 or not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(age, 0.0)


# ---------------------------------------------------------------- one loaded model


class Loaded:
    """A model ready to run, and how long each phase of getting there took."""

    def __init__(self, args):
        before_s = process_age_s()
        booted_s = None if before_s is None else max(0.0, before_s - seconds_since(_FIRST_LINE_NS))
        start = time.perf_counter_ns()
        import numpy

        self.numpy = numpy
        numpy_s = seconds_since(start)
        self.runtime, self.module, self.version, runtime_s = import_runtime(args.format)
        self.memory_imported = memory_now()
        start = time.perf_counter_ns()
        self.alone = args.mode != "turns"
        self.session = self.open(args.model, args.threads) if args.model is not None else None
        self.load = {
            "process_s": booted_s,
            "numpy_s": numpy_s,
            "runtime_s": runtime_s,
            "session_s": seconds_since(start),
        }
        self.memory_loaded = memory_now()

    def open(self, path, threads):
        """A session of a model file."""
        if not os.path.isfile(path):
            raise RunnerError("model-missing", f"no model file at {path}")
        try:
            return RUNTIMES[self.runtime].session(self.module, path, threads, self.alone)
        except Exception as err:  # a runtime raises types of its own; the report names them
            raise RunnerError("model-rejected", f"{os.path.basename(path)}: {type(err).__name__}: {err}") from err

    def first_run(self, args):
        """Feeds the inputs and runs once; returns the call that runs again."""
        arrays, self.matched = read_inputs(self, args)
        call = self.session.prepare(arrays)
        start = time.perf_counter_ns()
        call()
        self.load["first_inference_s"] = seconds_since(start)
        return call

    def report(self, args):
        """The part that every mode's report shares."""
        return {
            "runtime": {"name": self.runtime, "version": self.version},
            "format": args.format,
            "threads": args.threads,
            "cpus": allowed_cpus(),
            "load": self.load,
            "inputs": getattr(self, "matched", None),
        }


def read_inputs(loaded, args):
    """The model's inputs by name, from the npz or seeded, and how they were matched."""
    return read_arrays(loaded, loaded.session.inputs(), args)


def read_arrays(loaded, specs, args):
    """Arrays for these inputs by name, from the npz or seeded, and how they were matched."""
    if args.inputs is None:
        return seed_arrays(loaded, specs), "seeded"
    try:
        with loaded.numpy.load(args.inputs, allow_pickle=False) as file:
            given = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise RunnerError("inputs", f"cannot read {args.inputs}: {err}") from err
    by_name = {name: match_name(name, given) for name, _, _ in specs}
    if all(by_name.values()):
        chosen, how = [given[by_name[name]] for name, _, _ in specs], "name"
    elif len(given) == len(specs):
        chosen, how = list(given.values()), "order"
    else:
        raise RunnerError("inputs", f"the model takes {[s[0] for s in specs]}, the file holds {list(given)}")
    return {spec[0]: fit(loaded, spec, array) for spec, array in zip(specs, chosen)}, how


def seed_arrays(loaded, specs):
    """Seeded values for these inputs by name."""
    return {name: seeded(loaded, index, *spec) for index, (name, *spec) in enumerate(specs)}


def match_name(name, given):
    """The array for a model input; TFLite writes `serving_default_x:0` where the source said `x`."""
    bare = name.split(":")[0]
    for candidate in (name, bare, re.sub(r"^serving_default_", "", bare)):
        if candidate in given:
            return candidate
    return None


def fit(loaded, spec, array):
    """One given array as the model wants it: shape checked, dtype cast where no value is lost, quantised if asked."""
    name, shape, dtype = spec
    numpy = loaded.numpy
    if array.ndim == 4 and not has_shape(array, shape) and has_shape(numpy.moveaxis(array, 1, 3), shape):
        array = numpy.moveaxis(array, 1, 3)  # the file takes images with their channels last
    if shape and not has_shape(array, shape):
        raise RunnerError("inputs", f"input {name} wants the shape {shape}, found {list(array.shape)}")
    if array.dtype.kind == "f" and dtype.startswith(("int", "uint")):
        grid = loaded.session.quantization(name) if hasattr(loaded.session, "quantization") else None
        if grid is None:
            raise RunnerError("inputs", f"input {name} wants {dtype}, found {array.dtype}")
        limits = numpy.iinfo(dtype)
        return numpy.clip(numpy.round(array / grid[0]) + grid[1], limits.min, limits.max).astype(dtype)
    if not numpy.can_cast(array.dtype, dtype, "same_kind"):
        raise RunnerError("inputs", f"input {name} wants {dtype}, found {array.dtype}")
    return numpy.ascontiguousarray(array, dtype=dtype)


def has_shape(array, shape):
    """Whether an array has these sides, of which None stands for any."""
    return len(shape) == array.ndim and all(want in (None, have) for want, have in zip(shape, array.shape))


def seeded(loaded, index, shape, dtype):
    """A repeatable input: reals in [-1, 1), integers 0 … 9 (valid as token ids). numpy.random would add to memory."""
    numpy = loaded.numpy
    sizes = [size or 1 for size in shape]
    count = 1
    for size in sizes:
        count *= size
    codes = numpy.frombuffer(random.Random(index).randbytes(count), dtype=numpy.uint8).reshape(sizes)
    if dtype.startswith("float"):
        return (codes.astype("float32") / 128 - 1).astype(dtype)
    if dtype in ("int8", "uint8"):
        return codes.astype(dtype)
    return (codes % 2 if dtype == "bool" else codes % 10).astype(dtype)


# ---------------------------------------------------------------- measuring


def clock_loop(numpy):
    """Seconds of a fixed chain of dependent adds, the best of 200, five times: slower means a slower clock."""
    zeros = numpy.zeros(2048)
    accumulate = numpy.add.accumulate
    clock = time.perf_counter_ns
    rounds = []
    for _ in range(5):
        best = None
        for _ in range(200):
            start = clock()
            accumulate(zeros, out=zeros)
            spent = clock() - start
            best = spent if best is None or spent < best else best
        rounds.append(best / 1e9)
    return rounds


def timed(call, runs, seconds, between=None):
    """Times single calls until both `runs` and `seconds` are reached; the raw times, thinned evenly."""
    clock = time.perf_counter_ns
    kept, every, count = [], 1, 0
    limit = int(seconds * 1e9)
    gc.collect()
    gc.disable()
    start = clock()
    while True:
        if between is not None:
            between()
        began = clock()
        call()
        ended = clock()
        if count % every == 0:
            kept.append((ended - began) / 1e9)
            if len(kept) >= 2 * KEEP_SAMPLES:
                kept = kept[::2]
                every *= 2
        count += 1
        if count >= runs and ended - start >= limit:
            break
    gc.enable()
    return {"latency_s": kept, "kept_every": every, "runs": count, "seconds": (ended - start) / 1e9}


def latency(args):
    """Warm latency: everything that fits the caches is in them."""
    loaded = Loaded(args)
    call = loaded.first_run(args)
    watch = Watch(loaded.numpy)
    warmup = timed(call, args.warmup_runs, args.warmup_seconds)
    watch.begin()
    result = timed(call, args.runs, args.seconds)
    return {**loaded.report(args), **result, **watch.end(), "warmup_runs": warmup["runs"]}


def turns(args):
    """Warm latency of many models in one process, in turns, so that drift of the machine falls on all alike."""
    loaded = Loaded(args)
    first, watch = loaded.session, Watch(loaded.numpy)
    models = [Turns(loaded, first, args)]
    for path in args.more_models:
        models.append(Turns(loaded, loaded.open(path, args.threads), args))
    loaded.session = first
    watch.begin()
    gc.collect()
    gc.disable()
    for _ in range(args.rounds):
        for model in models:
            model.take()
    gc.enable()
    watched = watch.end()
    result = {
        "rounds": args.rounds,
        "models": [{"calls": model.calls, "turns_s": model.seconds, "cpu_s": model.cpu_seconds} for model in models],
    }
    return {**loaded.report(args), **result, **watched}


class Turns:
    """One model of many: warmed up when it is made, then timed a turn at a time."""

    def __init__(self, loaded, session, args):
        loaded.session = session
        self.call = loaded.first_run(args)
        warm = timed(self.call, max(1, args.warmup_runs), args.warmup_seconds)
        fastest = max(min(warm["latency_s"]), 1e-7)
        self.calls = max(args.runs, int(-(-args.seconds // fastest)))
        self.seconds, self.cpu_seconds = [], []

    def take(self):
        """A turn: one call that brings the model back into the caches, then calls timed together, per call."""
        call, calls, clock = self.call, self.calls, time.perf_counter_ns
        call()
        cpu = time.process_time_ns()
        start = clock()
        for _ in range(calls):
            call()
        spent = clock() - start
        self.cpu_seconds.append((time.process_time_ns() - cpu) / calls / 1e9)
        self.seconds.append(spent / calls / 1e9)


def evictor(args, numpy):
    """(call, bytes): reads a buffer of at least 4x the last-level cache, so that nothing of the model stays."""
    cache = last_level_cache_bytes()
    size = args.evict_bytes or 4 * (cache or 16 << 20)
    # ones, not zeros: untouched zero pages are all the same physical page and would evict nothing.
    buffer = numpy.ones(size // 8)
    return (lambda: numpy.add.reduce(buffer)), buffer.nbytes, cache


def cold(args):
    """Cold latency: the caches are emptied before every single run."""
    loaded = Loaded(args)
    call = loaded.first_run(args)
    evict, evicted, cache = evictor(args, loaded.numpy)
    watch = Watch(loaded.numpy)
    timed(call, args.warmup_runs, 0.0, between=evict)
    watch.begin()
    result = timed(call, args.runs, args.seconds, between=evict)
    result.update(watch.end(), evicted_bytes=evicted, last_level_cache_bytes=cache)
    return {**loaded.report(args), **result}


def memory(args):
    """What the process holds: with the runtime imported only, or with the model loaded and run."""
    loaded = Loaded(args)
    result = {"import_only": args.import_only, "imported": loaded.memory_imported, "temperature_c": temperature_c()}
    if not args.import_only:
        call = loaded.first_run(args)
        for _ in range(3):
            call()
        result.update(loaded=loaded.memory_loaded, ran=memory_now())
    return {**loaded.report(args), **result}


def outputs(args):
    """Runs the given inputs once and writes what the model answers."""
    if args.inputs is None or args.outputs is None:
        raise RunnerError("usage", "outputs needs --inputs and --outputs")
    loaded = Loaded(args)
    loaded.first_run(args)
    arrays = loaded.session.outputs()
    return {**loaded.report(args), **write_outputs(loaded, arrays, args.outputs)}


def as_array(numpy, value):
    """An answer as an array: classifiers of other libraries give a list of maps from class to share."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return numpy.array([[row[name] for name in value[0]] for row in value], dtype="float32")
    if isinstance(value, list):
        return numpy.zeros(0, dtype="float32")  # a sequence of tensors, which nothing reads
    return value


def write_outputs(loaded, answers, path):
    """Writes answers to an npz; what of it the report says."""
    arrays = {name: as_array(loaded.numpy, value) for name, value in answers.items()}
    with open(path, "wb") as file:
        loaded.numpy.savez(file, **arrays)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    named = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}
    return {"outputs": named, "file": path, "sha256": digest}


# ---------------------------------------------------------------- marks for an emulator

LIGHT_S = 0.05  # an inference that takes longer here, in QEMU, is counted one by one and in two rounds
MARK = 0x45504D4B  # an option of prctl that no kernel knows; the emulator's plugin reads its counters at it


def marker():
    """A call that sends the next mark: 0 starts the plugin, every later one ends an interval."""
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)
    numbers = itertools.count()
    return lambda: prctl(MARK, next(numbers))


def marks(args):
    """Runs models between marks: each apart, or as the segments of one model, in order, with --chain."""
    loaded = Loaded(args)
    sessions = [loaded.session] + [loaded.open(path, args.threads) for path in args.more_models]
    mark = marker()
    gc.collect()
    gc.disable()
    walk = marked_chain if args.chain else marked_each
    intervals = walk(loaded, sessions, mark, args)
    gc.enable()
    report = {**loaded.report(args), "models": len(sessions), "intervals": intervals}
    if args.outputs is not None:
        answers = [session.outputs() for session in sessions]
        numbered = {f"{index}:{name}": array for index, each in enumerate(answers) for name, array in each.items()}
        report.update(write_outputs(loaded, numbered, args.outputs))
    return report


def marked_each(loaded, sessions, mark, args):
    """Each model in turn: `runs` inferences between two marks, twice as many between the next, `rounds` times."""
    calls, light = [], []
    for session in sessions:
        loaded.session = session
        calls.append(loaded.first_run(args))
        start = time.perf_counter_ns()
        calls[-1]()
        light.append(seconds_since(start) < LIGHT_S)
    loaded.session = sessions[0]
    mark()
    intervals = []
    for index, call in enumerate(calls):
        # The first round of a light model is not counted: the interpreter is still replacing its own instructions.
        runs, rounds, dry = (args.runs, args.rounds, 1) if light[index] else (1, 2, 0)
        for _ in range(args.warmup_runs if light[index] else 1):
            call()
        for turn in range(dry + rounds):
            mark()
            for factor in (1, 2):
                for _ in range(factor * runs):
                    call()
                mark()
                intervals.append(None if turn < dry else {"model": index, "runs": factor * runs})
            intervals.append(None)
    return intervals[:-1]


def marked_chain(loaded, sessions, mark, args):
    """A first model with seeded inputs, then the segments of another in order, each fed from those before it."""
    values, calls, fed = {}, [], []
    for session in sessions:  # the first time through: buffers are made, nothing is counted
        specs = session.inputs()
        missing = [put for put in specs if put[0] not in values]
        if session is sessions[0]:
            values.update(seed_arrays(loaded, missing))
        elif missing:
            arrays, loaded.matched = read_arrays(loaded, missing, args)
            values.update(arrays)
        fed.append({put[0]: values[put[0]] for put in specs})
        calls.append(session.prepare(fed[-1]))
        calls[-1]()
        values.update(session.raw_outputs())
    mark()
    intervals = []
    for turn in range(args.warmup_runs + args.rounds):
        for index, call in enumerate(calls):
            # Only the inference lies between the marks. Rewriting its inputs puts them into the caches, where the part
            # before has left them in the whole model.
            sessions[index].feed(fed[index])
            mark()
            call()
            mark()
            intervals += [{"model": index, "runs": 1} if turn >= args.warmup_runs else None, None]
    return intervals[:-1]


# ---------------------------------------------------------------- counters of the CPU

PERF_SYSCALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "armv7l": 364, "i686": 336}
GENERIC_COUNTERS = {
    "cycles": (0, 0),
    "instructions": (0, 1),
    "cache-misses": (0, 3),
    "ll-read-misses": (3, 0x10002),
}
# Arm events whose count times the line size is what came from memory, by core.
ARM_COUNTERS = {
    "cortex-a53": {"l2d_cache_refill": (4, 0x17)},
    "cortex-a57": {"l2d_cache_refill": (4, 0x17)},
    "cortex-a72": {"l2d_cache_refill": (4, 0x17)},
    "cortex-a55": {"l3d_cache_refill": (4, 0x2A)},
    "cortex-a76": {"l3d_cache_refill": (4, 0x2A), "ll_cache_miss_rd": (4, 0x37)},
    "cortex-x1": {"l3d_cache_refill": (4, 0x2A), "ll_cache_miss_rd": (4, 0x37)},
}


def open_counter(kind, config):
    """A disabled counter of this process and the threads it will start, user mode only; OSError with the reason."""
    number = PERF_SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(0, f"no perf_event_open known for {platform.machine()}")
    attr = ctypes.create_string_buffer(64)
    disabled, inherit, no_kernel, no_hypervisor = 1, 1 << 1, 1 << 5, 1 << 6
    struct.pack_into("=IIQ", attr, 0, kind, 64, config)
    struct.pack_into("=QQ", attr, 32, 3, disabled | inherit | no_kernel | no_hypervisor)  # 3: times enabled, running
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(ctypes.c_long(number), attr, 0, -1, ctypes.c_int(-1), ctypes.c_ulong(8))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def probe_counters():
    """{"available": bool, "reason": text or None}: can this process count instructions and cache misses?"""
    try:
        os.close(open_counter(*GENERIC_COUNTERS["instructions"]))
    except OSError as err:
        return {"available": False, "reason": refusal(err)}
    return {"available": True, "reason": None}


def refusal(err):
    """Why perf_event_open said no, for people."""
    if err.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        return "the kernel offers no such counter here (usual in virtual machines)"
    if err.errno in (errno.EACCES, errno.EPERM):
        return f"not permitted (perf_event_paranoid is {read_text('/proc/sys/kernel/perf_event_paranoid', 'unknown')})"
    return err.strerror


def count(descriptor, call, runs):
    """Counts `runs` calls; None where the kernel shared the counter with another, for then the count is a guess."""
    import fcntl

    fcntl.ioctl(descriptor, 0x2403, 0)  # reset
    fcntl.ioctl(descriptor, 0x2400, 0)  # enable
    for _ in range(runs):
        call()
    fcntl.ioctl(descriptor, 0x2401, 0)  # disable
    value, enabled, running = struct.unpack("=QQQ", os.read(descriptor, 24))
    return value if running and running >= 0.999 * enabled else None


def counters(args):
    """Counts each event in passes of its own, and once more while streaming a buffer of known size."""
    wanted = dict(GENERIC_COUNTERS)
    for core in {cpu["core"] for cpu in probe_cpus(read_text("/proc/cpuinfo"))}:
        wanted.update(ARM_COUNTERS.get(core, {}))
    for name, kind, config in (re.fullmatch(r"([\w-]+)=(\d+):(\w+)", text).groups() for text in args.counter):
        wanted[name] = (int(kind), int(config, 0))
    opened, report = {}, {}
    for name, event in wanted.items():  # before the session starts its threads, so that they inherit
        try:
            opened[name] = open_counter(*event)
        except OSError as err:
            report[name] = {"unavailable": refusal(err)}
    loaded = Loaded(args)
    call = loaded.first_run(args)
    timed(call, args.warmup_runs, args.warmup_seconds)
    evict, evicted, _ = evictor(args, loaded.numpy) if opened else (None, 0, None)
    for name, descriptor in opened.items():
        counts = [count(descriptor, call, args.runs) for _ in range(5)]
        if None in counts:
            report[name] = {"unavailable": "the kernel multiplexed the counter"}
        else:
            streamed = {"count": count(descriptor, evict, 1), "bytes": evicted}
            report[name] = {"runs": args.runs, "counts": counts, "stream": streamed}
        os.close(descriptor)
    return {**loaded.report(args), "counters": report}


# ---------------------------------------------------------------- the door


MODES = {
    "probe": probe,
    "latency": latency,
    "turns": turns,
    "cold": cold,
    "memory": memory,
    "counters": counters,
    "outputs": outputs,
    "marks": marks,
    "import-check": import_check,
}


def parse(argv):
    """The arguments; see CONTRACT.md."""
    parser = argparse.ArgumentParser(description="Measures one model on this device; one JSON object on stdout.")
    parser.add_argument("mode", choices=sorted(MODES))
    parser.add_argument("--model")
    parser.add_argument("--format", choices=list(dict.fromkeys(one.format for one in RUNTIMES.values())))
    parser.add_argument("--inputs", help="npz with one array per model input")
    parser.add_argument("--outputs", help="npz to write (mode outputs)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpus", help="CPUs to stay on, such as 0-2,5")
    parser.add_argument("--warmup-runs", type=int, default=5)
    parser.add_argument("--warmup-seconds", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--evict-bytes", type=int, help="buffer that empties the caches; default 4x the largest")
    parser.add_argument("--rounds", type=int, default=3, help="modes turns and marks: how often each is repeated")
    parser.add_argument("--more-models", nargs="+", default=[], metavar="FILE", help="modes turns and marks: also run")
    parser.add_argument("--chain", action="store_true", help="mode marks: --more-models are the segments of one model")
    parser.add_argument("--import-only", action="store_true", help="mode memory: the runtime alone, no model")
    parser.add_argument("--counter", action="append", default=[], metavar="NAME=TYPE:CONFIG", help="one more event")
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), help="mode import-check")
    parser.add_argument("--no-imports", dest="imports", action="store_false", help="mode probe: import no runtime")
    args = parser.parse_args(argv)
    if args.mode not in ("probe", "import-check"):
        if args.format is None:
            parser.error("--format is needed")
        if (args.model is None) != args.import_only:
            parser.error("exactly one of --model and --import-only is needed")
        if args.import_only and args.mode != "memory":
            parser.error("--import-only belongs to the mode memory")
        if (args.more_models and args.mode not in ("marks", "turns")) or (args.chain and args.mode != "marks"):
            parser.error("--more-models belongs to the modes turns and marks, --chain to marks")
    if args.threads < 1 or args.runs < 1 or args.rounds < 1 or args.warmup_runs < 0:
        parser.error("--threads, --runs and --rounds start at 1, --warmup-runs at 0")
    if args.evict_bytes is not None and args.evict_bytes < 8:
        parser.error("--evict-bytes starts at 8")
    if not all(re.fullmatch(r"[\w-]+=\d+:(0x[0-9a-fA-F]+|\d+)", text) for text in args.counter):
        parser.error("--counter is NAME=TYPE:CONFIG")
    return args


def main(argv):
    """Runs one mode; returns the exit code: 0 measured, 1 failed with an `error` in the report, 2 bad arguments."""
    # Runtimes print to stdout from C: their file descriptor 1 becomes stderr, the report keeps the real one.
    args = parse(argv)
    real_stdout = os.dup(1)
    os.dup2(2, 1)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's own threads are no part of what is measured
    report = {"schema_version": SCHEMA_VERSION, "mode": args.mode}
    code = 0
    try:
        if args.cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cpu_list(args.cpus))
        report.update(MODES[args.mode](args))
    except RunnerError as err:
        report["error"], code = {"kind": err.kind, "message": str(err)[:4000]}, 1
    except Exception as err:  # noqa: BLE001 (the process ends here, and the report carries what it was)
        report["error"], code = {"kind": "failed", "message": f"{type(err).__name__}: {err}"[:4000]}, 1
    with os.fdopen(real_stdout, "w", encoding="utf-8") as stdout:
        json.dump(report, stdout, allow_nan=False)
        stdout.write("\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
