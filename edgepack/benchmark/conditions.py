"""What results were taken under: which may be merged or compared, and how each figure was got."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from edgepack.backends.registry import FACTS, FORMATS
from edgepack.benchmark.results import BROWSER, RUNNER, BenchResult, Conditions, Tool
from edgepack.benchmark.schedule import FULL, QUICK, Schedule
from edgepack.devices.device import Device, Mode
from edgepack.devices.facts import DeviceFacts
from edgepack.errors import PackError
from edgepack.model.scheme import Format

# How long something else may take does not change what warm latency is.
_WITHOUT_EFFECT = ("sustained_s", "start_below_c", "cool_down_s", "retries", "extra_processes", "extra_s", "narrow")
_HEX = 8

WARM, COLD, SUSTAINED, MEMORY, COUNTERS = "latency", "cold latency", "sustained latency", "memory", "cache misses"
LOAD = "load"
_NEEDS: Mapping[str, Mode] = {COLD: "cold", MEMORY: "memory", COUNTERS: "counters"}
_CANNOT = {
    COLD: "cannot empty the caches",
    MEMORY: "does not say what it holds",
    COUNTERS: "counts no events",
    SUSTAINED: "gives one mean of all its runs",
}


def like_conditions(result: BenchResult, fmt: Format) -> dict[str, str]:
    """All that must be alike before two devices may stand beside each other, as text by name.

    What the devices are is left out: that is what is compared. So is whether latency was also measured with empty
    caches, for that comes after warm latency, and how hot the device was, which the notes say.
    """
    conditions = result.conditions
    tool = conditions.tool(fmt)
    runtime, version = _runtime(conditions, fmt)
    alike = {
        "threads": str(conditions.threads),
        "schedule": _schedule(conditions.schedule, conditions.quick),
        "inputs": conditions.inputs[:_HEX],
        "tool": tool.title,
        runtime: version,
        "governor": _governor(conditions.governors),
        "CPUs": "pinned" if conditions.cpus else "not pinned",
    }
    return alike | {one.file: one.sha256[:_HEX] for one in result.variants if one.format == fmt}


def _runtime(conditions: Conditions, fmt: Format) -> tuple[str, str]:
    """Name and version of what ran the models: as the tool said, else the first that the device had for the format."""
    named = conditions.tool(fmt).runtime
    if named is not None:
        name, _, version = named.rpartition(" ")
        return (name, version) if name else (named, "of unknown version")
    for name in FACTS[fmt].runtimes if conditions.tool(fmt).name == RUNNER.name else ():
        if name in conditions.device.runtimes:
            return name, conditions.device.runtimes[name]
    return "runtime", "not named"


def _schedule(schedule: Schedule, quick: bool) -> str:
    """`quick`, `full`, or one of them with what was changed."""
    name, base = ("quick", QUICK) if quick else ("full", FULL)
    own, usual = asdict(schedule), asdict(base)
    changed = [f"{key} {own[key]:g}" for key in own if own[key] != usual[key] and key not in _WITHOUT_EFFECT]
    return f"{name} with {' and '.join(changed)}" if changed else name


def _governor(governors: Sequence[str]) -> str:
    """The kind: a clock that follows the load is another measurement than one that stays where it is."""
    return "performance or none" if set(governors) <= {"performance"} else "follows the load"


def merge_results(results: Sequence[BenchResult]) -> BenchResult:
    """One result with the raw values of several sessions taken under the same conditions.

    Args:
        results: at least one.

    Raises:
        PackError: the conditions or the model files differ; the message names what does.
    """
    first = results[0]
    for other in results[1:]:
        differing = different_conditions(first, other)
        if differing:
            raise PackError(
                f"two results cannot be merged, they differ in {', '.join(differing)}",
                hint="compare them as separate rows, or measure again under the same conditions",
            )
    return replace(
        first,
        created=max(result.created for result in results),
        import_only={
            fmt: tuple(snapshot for result in results for snapshot in result.import_only[fmt])
            for fmt in first.import_only
        },
        not_measured={figure: why for result in results for figure, why in result.not_measured.items()},
        variants=tuple(
            replace(
                variant,
                warm=tuple(block for result in results for block in result.variants[index].warm),
                cold=tuple(block for result in results for block in result.variants[index].cold),
                memory=tuple(memory for result in results for memory in result.variants[index].memory),
                sustained=tuple(block for result in results for block in result.variants[index].sustained),
            )
            for index, variant in enumerate(first.variants)
        ),
    )


def different_conditions(one: BenchResult, other: BenchResult) -> list[str]:
    """Names of all conditions in which two results differ: `threads`, `device.kernel`, `model.onnx` …"""
    names = [
        part.name
        for part in fields(Conditions)
        if part.name != "device" and getattr(one.conditions, part.name) != getattr(other.conditions, part.name)
    ]
    names += [
        f"device.{part.name}"
        for part in fields(DeviceFacts)
        if getattr(one.conditions.device, part.name) != getattr(other.conditions.device, part.name)
    ]
    if set(one.import_only) != set(other.import_only):
        names.append("import_only")
    files = {(v.name, v.format): v.sha256 for v in one.variants}
    others = {(v.name, v.format): v.sha256 for v in other.variants}
    if list(files) != list(others):
        return [*names, "variants"]
    return names + [f"{name} ({fmt})" for (name, fmt), digest in files.items() if others[name, fmt] != digest]


@dataclass(frozen=True)
class Asked:
    """Which figures a session takes besides warm latency."""

    cold: bool
    sustained: bool
    memory: bool
    counters: bool


def lacking(device: Device, *, cold: bool) -> tuple[str, ...]:
    """Figures that were asked for and that a device has no mode for."""
    wanted = (COLD, MEMORY, COUNTERS) if cold else (MEMORY, COUNTERS)
    return tuple(figure for figure in wanted if _NEEDS[figure] not in device.modes)


def reasons(missing: Iterable[str], tools: Mapping[Format, Tool]) -> dict[str, str]:
    """Why figures are missing, by figure."""
    names = " and ".join(sorted({tool.name for tool in tools.values()}))
    return {figure: f"{names} {_CANNOT[figure]}" for figure in missing}


def methods(conditions: Conditions, asked: Asked) -> dict[str, str]:
    """A sentence for every figure: what was called, which clock, how many processes, what was subtracted."""
    plan, tools = conditions.schedule, [(fmt, conditions.tool(fmt)) for fmt in FORMATS if fmt in conditions.tools]
    cpus = ", ".join(map(str, conditions.cpus))
    where = f"on CPU{'s' * (len(conditions.cpus) > 1)} {cpus}" if cpus else "on CPUs that the kernel chose"
    threads = f"{conditions.threads} thread{'s' * (conditions.threads > 1)}"
    clock = "; ".join(_clock(fmt, tool) for fmt, tool in tools)
    found = {
        WARM: f"{clock}; {_processes(plan.processes, 'fresh ')}{_extra(plan)}, the variants in turns, after a warm-up "
        f"of {plan.warmup_runs} runs and {plan.warmup_s:g} s; at least {plan.runs} runs and {plan.seconds:g} s each; "
        f"{threads} {where}; median of the process medians"
    }
    if asked.cold:
        found[COLD] = (
            f"the same with a buffer read before every run that is four times the largest cache; "
            f"{_processes(plan.cold_processes)} of {plan.cold_runs} runs"
        )
    if asked.sustained:
        found[SUSTAINED] = f"one process, {plan.sustained_s:g} s back to back; medians of its first and last fifth"
    if any(tool.name == RUNNER.name for _, tool in tools):
        found[LOAD] = "time from the start of the process to the first answer: interpreter, imports, session, inference"
    if asked.memory:
        found[MEMORY] = _memory([tool for _, tool in tools], plan.memory_processes)
    if asked.counters:
        found[COUNTERS] = (
            f"perf_event_open, user mode, one event at a time; median of 5 counts of {plan.counter_runs} inferences, "
            "believed if the event also counts the lines of a streamed buffer"
        )
    return found


def _extra(plan: Schedule) -> str:
    """How many more there may be."""
    if not plan.extra_processes:
        return ""
    return (
        f" and up to {plan.extra_processes} more, for {plan.extra_s:g} s at most, while an interval is wider than "
        f"{plan.narrow:.0%} of its median"
    )


def _clock(fmt: Format, tool: Tool) -> str:
    by = f"{tool.title} ({tool.runtime})" if tool.runtime else tool.title
    if tool.name == RUNNER.name:
        return f"{fmt}: {by}, each {FACTS[fmt].timed_call} between two readings of perf_counter_ns"
    if tool.name == BROWSER:
        return f"{fmt}: {by}, batches of at least 0.1 s between two readings of performance.now"
    return f"{fmt}: {by}, as it times itself"


def _processes(count: int, kind: str = "") -> str:
    return f"{count} {kind}process{'es' * (count != 1)}"


def _memory(tools: Sequence[Tool], processes: int) -> str:
    if not any(tool.name == RUNNER.name for tool in tools):
        return f"as {' and '.join(tool.title for tool in tools)} says; median of {_processes(processes)}"
    return (
        "resident set from smaps_rollup or status and its peak from VmHWM, less those of processes that only import "
        f"the runtime; median of {_processes(processes)} each, apart from those that are timed"
    )
