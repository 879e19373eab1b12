"""The facts of a device without Python, in the runner's probe schema: the kernel's files, read there, parsed here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.bench.devices.shell import ShellFacts

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
